"""How well scores tell anomalous images from normal ones, by scikit-learn's metrics."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def evaluate(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Measure how well `scores` separate anomalous from normal samples.

    Parameters
    ----------
    scores : array-like of shape (N,)
        Larger = more anomalous; finite.
    labels : array-like of shape (N,)
        True or non-zero for anomalous samples; both kinds must be there. Numbers, not texts.

    Returns
    -------
    dict of str to float
        - "auroc": area under the ROC curve, the chance that an anomalous sample scores above a
          normal one;
        - "aupr": average precision, anomalous samples being the positive ones;
        - "f1_max": the largest F1 over all thresholds;
        - "threshold": the score at which it is reached (anomalous: score >= threshold);
        - "fpr95": share of normal samples flagged when 95 % of the anomalous ones are found.

    Raises
    ------
    ValueError
        If lengths differ, a score or label is not finite, or only one kind of label is there.
    TypeError
        If scores or labels are not numbers.
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
        "f1_max": float(f1[best]),
        "threshold": float(thresholds[best]),
        "fpr95": float(false_positives[np.argmax(true_positives >= 0.95)]),
    }


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
