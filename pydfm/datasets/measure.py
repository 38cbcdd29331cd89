"""How well a fitted model does on the test images of a category: of images, and of pixels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydfm.datasets.category import Category
from pydfm.datasets.masks import load_masks
from pydfm.estimator import DFM
from pydfm.metrics import aupro, evaluate, pixel_auroc


@dataclass(frozen=True)
class CategoryMetrics:
    """Metrics of images and of pixels.

    Attributes
    ----------
    read : ndarray of shape (N,), bool
        Which test images could be read; all of them, unless ``on_error`` is "skip".
    image : dict of str to float
        What `pydfm.evaluate` returns.
    pixel : dict of str to float
        "pixel_auroc" and "aupro", over the good images and those that have a mask; empty where
        they cannot be measured.
    no_pixels : str
        Why they cannot.
    """

    read: NDArray[np.bool_]
    image: dict[str, float]
    pixel: dict[str, float]
    no_pixels: str = ""


def measure_category(
    dfm: DFM, category: Category, score_type: str | None = None
) -> CategoryMetrics:
    """Measure `dfm`, fitted on images, on the test images of `category`.

    Parameters
    ----------
    dfm : DFM
    category : Category
    score_type : str, optional
        In place of the parameter of `dfm`.

    Raises
    ------
    ValueError
        If only good images can be read, or no image, or if there are several score types.
    """
    kind = dfm.score_type if score_type is None else score_type
    if not isinstance(kind, str):
        raise ValueError(f"score_type is {kind!r}; metrics are of one type: pass score_type")
    features = dfm.extract(category.test)
    read = np.asarray(np.isfinite(features).all(axis=1))
    scores = dfm.score(features[read], score_type=kind)
    image = evaluate(scores, np.array(category.labels)[read])

    masked = np.array([bool(masks) for masks in category.masks])
    if not (masked & read).any():
        return CategoryMetrics(read, image, {}, "no defective image has a mask in ground_truth")
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
