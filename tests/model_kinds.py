"""One small fitted model of each kind that a model file may hold, and what it says of queries.

Nothing here depends on a random generator, whose numbers may change with a version.
"""

import contextlib
import warnings

import numpy as np
import pandas as pd

import pydfm

N_FEATURES = 6


def waves(*shape, start=0.0):
    """Numbers in [-1, 1] without a pattern."""
    places = np.arange(int(np.prod(shape)), dtype=np.float64)
    return np.sin(start + 12.9898 * places + 0.01 * places**2).reshape(shape)


def network():
    """A module whose weights are the same in every version of torch."""
    import torch
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, padding=1)
    )
    with torch.no_grad():
        for i, own in enumerate(module.parameters()):
            own.copy_(torch.from_numpy(waves(*own.shape, start=i)))
    return module


ROWS = (waves(40, 2) @ waves(2, N_FEATURES, start=1) + 0.3 * waves(40, N_FEATURES, start=2)).astype(
    np.float32
)
LABELS = np.array(["blue", "red"])[np.arange(40) % 2]
GROUPS = np.arange(40) // 2 % 15
IMAGES = (127.5 + 127.5 * waves(20, 3, 16, 16)).astype(np.uint8)
FEATURES = np.float32(1.5) * (ROWS[::5] + waves(8, N_FEATURES, start=3).astype(np.float32))
QUERIES = 255 - IMAGES[::5]

_IMAGES = {"layers": ("0", "2"), "pool": 2, "image_size": 16, "device": "cpu"}

FEATURE_KINDS = {
    "plain": {},
    "types": {"score_type": ("nll", "fre")},
    "classes": {"labels": LABELS},
    "numbers": {"labels": np.arange(40) % 2 - 7},
    "tied": {"covariance": "tied", "labels": LABELS},
    "relative": {"covariance": "tied", "score_type": "relative_mahalanobis", "labels": LABELS},
    "global": {"covariance": "global", "labels": LABELS},
    "gmm": {"density": "gmm", "score_type": "nll", "calibration": "split", "blobs": True},
    "gmm-classes": {"density": "gmm", "calibration": None, "labels": LABELS, "blobs": True},
    "shrinkage": {"regularization": "shrinkage", "score_type": "ppca"},
    "floor": {"regularization": 0.5, "score_type": "ppca"},
    "kfold": {"calibration": "kfold"},
    "split": {"calibration": "split", "labels": LABELS},
    "none": {"calibration": None},
    "sketch": {"max_memory": 400, "calibration": None},
    "names": {"frame": True},
    "folds": {"calibration": "kfold", "groups": GROUPS},
    "groups": {"groups": GROUPS},
    "recalibrated": {"later": 2 * ROWS[::-1], "later_groups": GROUPS},
}
IMAGE_KINDS = {
    "image": {"layers": "0"},
    "layers": {},
    "layers-classes": {"labels": LABELS[:20]},
    "sum": {"image_score": "sum"},
    "max": {"combine": "max"},
    "logistic": {"combine": "logistic", "outliers": QUERIES},
    "mean": {"spatial": "mean", "pool": None},
    "patch": {"spatial": "patch", "layers": "0"},
    "patch-classes": {"spatial": "patch", "score_type": "nll", "labels": LABELS[:20]},
    "images-none": {"calibration": None, "combine": "max"},
    "images-split": {"calibration": "split", "layers": "2"},
    "patch-calibrated": {"spatial": "patch", "layers": "0", "image_score": "calibrated"},
    "images-folds": {"calibration": "kfold", "layers": "2"},
    "shares": {"labels": LABELS[:20], "pool": (4, 2)},
    "patch-scales": {"spatial": "patch", "score_type": "nll"},
}
KINDS = (*FEATURE_KINDS, *IMAGE_KINDS)


def fitted(kind, backbone=None):
    """The fitted model of a kind."""
    parameters = dict({**FEATURE_KINDS, **IMAGE_KINDS}[kind])
    labels = parameters.pop("labels", None)
    groups = parameters.pop("groups", None)
    outliers = parameters.pop("outliers", None)
    later, later_groups = parameters.pop("later", None), parameters.pop("later_groups", None)
    X = ROWS
    if parameters.pop("blobs", False):
        X = ROWS + np.float32(6) * (np.arange(40) < 20)[:, None]
    if parameters.pop("frame", False):
        X = pd.DataFrame(ROWS, columns=[f"feature {i}" for i in range(N_FEATURES)])
    if kind in IMAGE_KINDS:
        X = IMAGES
        parameters = {"backbone": backbone or network(), **_IMAGES, **parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how much of the variance the sketch holds
        dfm = pydfm.DFM(2, alpha=0.25, **parameters)
        dfm.fit(X, labels=labels, groups=groups, outliers=outliers)
        if later is not None:
            dfm.recalibrate(later, groups=later_groups)
    return dfm


def queries_of(dfm):
    """The rows that `answers` takes: features."""
    if dfm.feature_spec_ is not None:
        return dfm.extract(QUERIES)
    return FEATURES


def answers(dfm, rows):
    """All that a model says of rows, by name, as arrays."""
    X = rows
    if hasattr(dfm, "feature_names_in_"):
        X = pd.DataFrame(rows, columns=dfm.feature_names_in_)
    found = {"scores": np.atleast_2d(dfm.score(X))}
    for name, own in dfm.layer_scores(X).items():
        found[f"layer {name}"] = np.atleast_2d(own)
    for kind in ("fre", "mahalanobis", "nll", "ppca"):
        found[kind] = dfm.score(X, score_type=kind)
    if dfm.calibration_ is not None:
        found["p_values"] = dfm.p_value(X)
        with contextlib.suppress(AttributeError):  # under folds
            found["threshold"] = np.atleast_1d(dfm.threshold_)
        found["verdicts"] = dfm.predict(X)
        found["drift"] = np.array([dfm.drift(X).p_value])
    if dfm.model_.classes is not None:
        found["classes"] = dfm.predict_class(X)
        labels = dfm.classes_[np.arange(len(rows)) % len(dfm.classes_)]
        found["given"] = np.atleast_2d(dfm.score(X, labels=labels))
    if dfm.feature_spec_ is not None and dfm.spatial != "mean":
        found["maps"] = dfm.score_map(X)
        if dfm.calibration_ is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # under folds it is not exact
                found["map_threshold"] = np.array([dfm.map_threshold_])
    return found
