r"""How well scores and score maps tell what is anomalous, by scikit-learn's metrics and AUPRO.

Of images (and of the samples of out-of-distribution detection): `evaluate`. Of maps: `pixel_auroc`
and `aupro`. A pixel is anomalous where its mask is not zero; G are the good pixels of all maps, be
they of a defective picture or of a good one, and C_1 ... C_K the connected components of all masks,
where pixels that touch at a corner are connected. At a threshold t

    FPR(t) = #{p in G: s(p) >= t} / #G
    PRO(t) = 1/K sum_k #{p in C_k: s(p) >= t} / #C_k

and AUPRO is the area under PRO as a function of FPR, from 0 to ``max_fpr``, by trapezoids between
the points that the distinct scores give and linear interpolation at ``max_fpr``, divided by
``max_fpr`` [1]_. So a small defect weighs as much as a large one.

Trapezoids make every good pixel a term of a sum: it adds (PRO(s) + PRO(just above s)) / 2 / #G,
ties included. So only the anomalous pixels are sorted, the good ones looked up among them block by
block: exact over all thresholds, with one copy of the scores and some blocks as working memory.

Failure cases: no anomalous or no good pixel, a score that is not finite, and shapes that differ
raise ValueError.

References
----------
.. [1] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger, "The MVTec Anomaly Detection
   Dataset: A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", International
   Journal of Computer Vision 129 (2021), section 5.2.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Maps: TypeAlias = NDArray[Any] | Sequence[ArrayLike]

# Good pixels are looked up in blocks of so many.
_BLOCK = 1 << 20


def evaluate(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Measure how well `scores` separate anomalous from normal samples.

    Parameters
    ----------
    scores : array-like of shape (N,)
        Larger = more anomalous; finite.
    labels : array-like of shape (N,)
        True or non-zero for anomalous (out-of-distribution) samples; both kinds must be there.
        Numbers, not texts.

    Returns
    -------
    dict of str to float
        - "auroc": area under the ROC curve, the chance that an anomalous sample scores above a
          normal one;
        - "aupr": average precision, anomalous samples being the positive ones (AUPR-out of [1]_);
        - "aupr_in": average precision, normal samples being the positive ones (AUPR-in);
        - "f1_max": the largest F1 over all thresholds;
        - "threshold": the score at which it is reached (anomalous: score >= threshold);
        - "fpr95": share of normal samples flagged when 95 % of the anomalous ones are found.

    Raises
    ------
    ValueError
        If lengths differ, a score or label is not finite, or only one kind of label is there.
    TypeError
        If scores or labels are not numbers.

    References
    ----------
    .. [1] D. Hendrycks, K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
       Examples in Neural Networks", 2017, arXiv:1610.02136.

    Examples
    --------
    >>> import pydfm
    >>> found = pydfm.evaluate([0.1, 0.4, 0.3, 2.0, 0.2], [0, 0, 1, 1, 0])
    >>> {name: round(value, 3) for name, value in found.items() if name != "aupr_in"}
    {'auroc': 0.833, 'aupr': 0.833, 'f1_max': 0.8, 'threshold': 0.3, 'fpr95': 0.333}
    """
    from sklearn.metrics import (
        average_precision_score,
        precision_recall_curve,
        roc_auc_score,
        roc_curve,
    )

    s, y = _check(scores, labels)
    false_positives, true_positives, _ = roc_curve(y, s, drop_intermediate=False)
    precision, recall, thresholds = precision_recall_curve(y, s)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(np.argmax(f1[:-1]))
    return {
        "auroc": float(roc_auc_score(y, s)),
        "aupr": float(average_precision_score(y, s)),
        "aupr_in": float(average_precision_score(~y, -s)),
        "f1_max": float(f1[best]),
        "threshold": float(thresholds[best]),
        "fpr95": float(false_positives[np.argmax(true_positives >= 0.95)]),
    }


def pixel_auroc(maps: Maps, masks: Maps) -> float:
    """Area under the ROC curve over the pixels of all maps.

    Parameters
    ----------
    maps : array of shape (N, H, W), or sequence of N arrays of shape (H, W)
        Scores, larger = more anomalous; finite. In a sequence sizes may differ.
    masks : like `maps`
        True or non-zero where a pixel is anomalous.

    Returns
    -------
    float
        The chance that an anomalous pixel scores above a good one, ties counting half.

    Raises
    ------
    ValueError
        If shapes differ, a score is not finite, or all pixels are of one kind.

    Examples
    --------
    >>> import numpy as np
    >>> from pydfm.metrics import pixel_auroc
    >>> maps = np.array([[[0.0, 1.0], [2.0, 3.0]]])  # (N, H, W)
    >>> pixel_auroc(maps, maps >= 2)
    1.0
    """
    good, bad, _ = _pixels(maps, masks)
    bad.sort()
    above = 0
    for block in _blocks(good):
        # Bad pixels above a good one, those level with it counting half.
        above += 2 * len(bad) * len(block)
        above -= int(np.searchsorted(bad, block, side="left").sum())
        above -= int(np.searchsorted(bad, block, side="right").sum())
    return above / (2 * len(bad) * len(good))


def aupro(maps: Maps, masks: Maps, max_fpr: float = 0.3) -> float:
    """Area under the curve of the per-region overlap, up to a share of false positives.

    Exact over all thresholds; the definition is that of MVTec AD's own evaluation, given in full
    at the head of this module.

    Parameters
    ----------
    maps : array of shape (N, H, W), or sequence of N arrays of shape (H, W)
        Scores, larger = more anomalous; finite. In a sequence sizes may differ.
    masks : like `maps`
        True or non-zero where a pixel is anomalous; regions are its 8-connected components.
    max_fpr : float in (0, 1], default=0.3
        The false positive rate over all good pixels at which the curve ends.

    Returns
    -------
    float
        In [0, 1]; 1 where every anomalous pixel scores above all good ones, about ``max_fpr / 2``
        for scores that know nothing.

    Raises
    ------
    ValueError
        If shapes differ, a score is not finite, all pixels are of one kind, or `max_fpr` is out of
        range.

    Examples
    --------
    >>> import numpy as np
    >>> from pydfm.metrics import aupro
    >>> maps = np.array([[[0.0, 1.0], [2.0, 3.0]]])  # (N, H, W)
    >>> aupro(maps, maps >= 2)
    1.0
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr is {max_fpr!r}; it must be above 0 and at most 1")
    good, bad, weights = _pixels(maps, masks)
    order = np.argsort(bad)
    bad = bad[order]
    # overlap[i] is PRO where the i lowest anomalous pixels are missed.
    overlap = np.append(1.0 - np.append(0.0, np.cumsum(weights[order])[:-1]), 0.0)

    # The curve ends among the good pixels that share the score `last`.
    allowed = max_fpr * len(good)
    rank = len(good) - int(np.ceil(allowed))
    good.partition(rank)
    last = good[rank]
    above = good[rank:][good[rank:] > last]
    area = 0.0
    for block in _blocks(above):
        area += overlap[np.searchsorted(bad, block, side="left")].sum() / 2
        area += overlap[np.searchsorted(bad, block, side="right")].sum() / 2
    start = overlap[np.searchsorted(bad, last, side="right")]
    end = overlap[np.searchsorted(bad, last, side="left")]
    width = allowed - len(above)
    tied = np.count_nonzero(good == last)
    area += width * (start + (end - start) * width / tied / 2)
    return float(area / allowed)


def _pixels(maps: Maps, masks: Maps) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]:
    """Scores of the good pixels, of the anomalous ones, and what each of these adds to PRO."""
    from scipy import ndimage

    if len(maps) != len(masks):
        raise ValueError(
            f"there are {len(maps)} maps and {len(masks)} masks; each map needs its mask"
        )
    scores = [np.asarray(one) for one in maps]
    anomalous = [np.asarray(mask).astype(bool, copy=False) for mask in masks]
    for i, (one, mask) in enumerate(zip(scores, anomalous, strict=True)):
        if one.ndim != 2 or one.shape != mask.shape:
            raise ValueError(
                f"map {i} has the shape {one.shape} and its mask {mask.shape}; both must be (H, W)"
            )
        if not np.isfinite(one).all():
            raise ValueError(f"map {i} has {one[~np.isfinite(one)][0]}; leave such maps out")
    n_bad = sum(int(np.count_nonzero(mask)) for mask in anomalous)
    n_good = sum(one.size for one in scores) - n_bad
    if not n_bad or not n_good:
        kind = "anomalous" if n_bad else "good"
        raise ValueError(f"all pixels are {kind} by the masks; good and anomalous ones are needed")

    good = np.empty(n_good, dtype=np.result_type(*scores))
    bad, weights = np.empty(n_bad, dtype=good.dtype), np.empty(n_bad)
    n_regions = good_end = bad_end = 0
    for one, mask in zip(scores, anomalous, strict=True):
        good_begin, good_end = good_end, good_end + one.size - int(np.count_nonzero(mask))
        good[good_begin:good_end] = one[~mask]
        if mask.any():
            regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
            region = regions[mask]
            bad_begin, bad_end = bad_end, bad_end + len(region)
            bad[bad_begin:bad_end] = one[mask]
            weights[bad_begin:bad_end] = 1.0 / np.bincount(region)[region]
            n_regions += count
    return good, bad, weights / n_regions


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield `values` in blocks, each sorted in place: numpy looks up sorted values far faster."""
    for first in range(0, len(values), _BLOCK):
        block = values[first : first + _BLOCK]
        block.sort()
        yield block


def _check(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    s, y = np.asarray(scores), np.asarray(labels)
    if s.ndim != 1 or y.shape != s.shape:
        raise ValueError(f"scores have the shape {s.shape} and labels {y.shape}; both must be (N,)")
    if len(s) == 0:
        raise ValueError("scores is empty; normal and anomalous samples are needed")
    for name, values in (("scores", s), ("labels", y)):
        if values.dtype.kind not in "fiub":
            raise TypeError(f"{name} is of the type {values.dtype}; they must be real numbers")
        finite = np.isfinite(values)
        if not finite.all():
            place = int(np.argmin(finite))
            raise ValueError(f"{name} has {values[place]} at {place}; leave such samples out")
    y = y != 0
    if y.all() or not y.any():
        kind = "anomalous" if y.any() else "normal"
        raise ValueError(f"labels are all {kind}; normal and anomalous samples are needed")
    return s.astype(np.float64), y
