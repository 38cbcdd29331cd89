"""How well a fitted model does on the test pictures of a category: images, and pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydfm.datasets import Category, load_masks
from pydfm.dfm import DFM
from pydfm.evaluation import aupro, evaluate, pixel_auroc


@dataclass(frozen=True)
class CategoryMetrics:
    """Metrics of images and of pixels.

    Attributes
    ----------
    read : ndarray of shape (N,), bool
        The test pictures that could be read; all of them, unless ``on_error`` is "skip".
    image : dict of str to float
        As `pydfm.evaluate` gives them.
    pixel : dict of str to float
        "pixel_auroc" and "aupro", over the good pictures and those that have a mask; empty where
        they cannot be measured.
    no_pixels : str
        Why not.
    """

    read: NDArray[np.bool_]
    image: dict[str, float]
    pixel: dict[str, float]
    no_pixels: str = ""


def measure_category(
    dfm: DFM, category: Category, score_type: str | None = None
) -> CategoryMetrics:
    """Measure `dfm`, fitted on images, on the test pictures of `category`.

    Parameters
    ----------
    score_type : str, optional
        In place of the parameter of `dfm`.

    Raises
    ------
    ValueError
        If only good pictures can be read, or none of them, or `score_type` is several.
    """
    kind = dfm.score_type if score_type is None else score_type
    if not isinstance(kind, str):
        raise ValueError(f"score_type is {kind!r}; metrics are of one type: name one")
    features = dfm.extract(category.test)
    read = np.asarray(np.isfinite(features).all(axis=1))
    scores = dfm.score(features[read], score_type=kind)
    image = evaluate(scores, np.array(category.labels)[read])

    masked = np.array([bool(masks) for masks in category.masks])
    if not (masked & read).any():
        return CategoryMetrics(read, image, {}, "no defective picture has a mask in ground_truth")
    try:
        dfm.model_.check_maps(kind)
    except ValueError as error:
        return CategoryMetrics(read, image, {}, str(error))
    known = read & (masked | ~np.array(category.labels))
    maps = dfm.score_map(features[known], score_type=kind)
    assert dfm.feature_spec_ is not None
    masks = load_masks(category.select(known), dfm.feature_spec_.preprocessing)
    pixel = {"pixel_auroc": pixel_auroc(maps, masks), "aupro": aupro(maps, masks)}
    return CategoryMetrics(read, image, pixel)
