"""How well a fitted model does on the test images of a category: of images, and of pixels."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pydfm.datasets.category import Category
from pydfm.datasets.masks import load_masks
from pydfm.metrics import aupro, evaluate, pixel_auroc

if TYPE_CHECKING:
    from pydfm.estimator import DFM


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
    dfm: "DFM",
    category: Category,
    score_type: str | None = None,
    *,
    features: NDArray[np.float32] | None = None,
) -> CategoryMetrics:
    """Measure `dfm`, fitted on images, on the test images of `category`.

    Parameters
    ----------
    dfm : DFM
    category : Category
    score_type : str, optional
        In place of the parameter of `dfm`.
    features : ndarray of shape (N, D), optional
        Those of the test images, where they are known; NaN for images that cannot be read.

    Raises
    ------
    ValueError
        If only good images can be read, or no image, or if there are several score types.
    """
    kind = dfm.score_type if score_type is None else score_type
    if not isinstance(kind, str):
        raise ValueError(f"score_type is {kind!r}; metrics are of one type: pass score_type")
    if features is None:
        features, read = extract_read(dfm, category.test)
    else:
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


def extract_read(dfm: "DFM", images: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the features (N, D) of images, and which of them (N,) could be read.

    Raises
    ------
    ValueError
        If the features of an image that could be read are not finite: what has no score must not
        be left out of a figure without a word.
    """
    features = dfm.extract(images)
    read = np.ones(len(features), dtype=bool)
    read[[one.index for one in dfm.skipped_]] = False
    strange = read & ~np.isfinite(features).all(axis=1)
    if strange.any():
        first = int(strange.argmax())
        name = f"'{images[first]}'" if isinstance(images, list) else f"number {first}"
        raise ValueError(
            f"{strange.sum()} of {len(features)} images have features that are not finite, the "
            f"first is {name}: they overflow; pass precision='float32', or leave such images out"
        )
    return features, read
