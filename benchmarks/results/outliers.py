"""CIFAR-10 against MNIST, beside pytorch-ood on the same features."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from sklearn.preprocessing import normalize

from benchmarks.report import Table, verdict
from benchmarks.results.cifar import load_cifar
from pydfm import DFM
from pydfm.features.backbones.torchvision import torchvision_models
from pydfm.metrics import evaluate
from pydfm.parameters import COVARIANCES
from pydfm.stats.scores import CORE_SCORES, SCORE_TYPES

SHARE, TARGET, VIM_DIMENSION = 0.97, 0.97, 32

# Beside the plain Gaussians of the first table: parameters and scores.
DENSITIES = {
    "mixtures": ({"density": "gmm"}, ("mahalanobis", "nll", "ppca")),
    "shrinkage": ({"regularization": "shrinkage"}, ("mahalanobis", "nll", "ppca")),
    # Ren et al. 2021 compare two Gaussians of full rank.
    "tied, all components": (
        {"covariance": "tied", "n_components": None},
        ("mahalanobis", "relative_mahalanobis"),
    ),
}

_METRICS = {"auroc": "AUROC", "aupr_in": "AUPR-in", "aupr": "AUPR-out", "fpr95": "FPR95"}
_UNIT = "avgpool, unit length"


def tables(data: Path) -> dict[str, tuple[str, Table]]:
    cifar = load_cifar(data)
    both = np.concatenate([cifar.test_x, cifar.mnist_x])
    labels = np.repeat([False, True], [len(cifar.test_x), len(cifar.mnist_x)])

    found = []  # layer, covariance, score, metrics
    for covariance in COVARIANCES:
        kinds = CORE_SCORES if covariance == "global" else SCORE_TYPES
        dfm = cifar.fitted(SHARE, covariance=covariance)
        scores = dfm.layer_scores(both, score_type=kinds)
        if covariance == COVARIANCES[0]:
            features = _features(cifar, dfm, both)
        # The classifier gives what it does not know short features, which lie near all classes.
        train, others = features[_UNIT]
        unit = DFM(SHARE, covariance=covariance).fit(train, labels=cifar.train_y)
        scores[_UNIT] = unit.score(others, score_type=kinds)
        for layer, rows in scores.items():
            for kind, row in zip(kinds, rows, strict=True):
                found.append((layer, covariance, kind, evaluate(row, labels)))
    best = max(metrics["auroc"] for *_, metrics in found)
    order = list(features)
    found.sort(key=lambda row: order.index(row[0]))  # stable
    rows = [
        [
            *names,
            *_figures(metrics),
            verdict(best >= TARGET, f"best >= {TARGET}") if metrics["auroc"] == best else "",
        ]
        for *names, metrics in found
    ]
    peers = [
        [layer, name, *_of(scores, labels)]
        for layer, (train, others) in features.items()
        for name, scores in _pytorch_ood(layer, cifar, train, others)
    ]
    tables = {
        "outliers": (
            "CIFAR-10 against MNIST",
            Table(("layer", "covariance", "score", *_METRICS.values(), "target"), rows),
        ),
        "outliers-variants": (
            "Layers together, and other densities",
            Table(
                ("what", "layer", "score", *_METRICS.values()),
                _variants(cifar, features, both, labels),
            ),
        ),
    }
    if peers:
        tables["outliers-peers"] = (
            "The same features under pytorch-ood",
            Table(("layer", "who", *_METRICS.values()), peers),
        )
    return tables


def _features(cifar, dfm, both):
    """Return features of the training images and of both test sets, by layer."""
    ends = np.cumsum([grid.size for grid in dfm.feature_spec_.grids])[:-1]
    parts = [np.split(dfm.extract(images), ends, axis=1) for images in (cifar.train_x, both)]
    features = dict(zip(dfm.feature_spec_.layers, zip(*parts, strict=True), strict=True))
    features[_UNIT] = tuple(normalize(part) for part in features["avgpool"])
    return features


def _variants(cifar, features, both, labels):
    rows = []
    for rule in ("sum", "max"):
        # With the relative score as the type, rows are held out in a way that gives it too.
        dfm = cifar.fitted(SHARE, combine=rule, score_type=SCORE_TYPES)
        scores = zip(SCORE_TYPES, dfm.score(both), strict=True)
        rows += [[f"{rule} of layers", "all", kind, *_of(row, labels)] for kind, row in scores]
    for title, (parameters, kinds) in DENSITIES.items():
        for layer, (train, others) in features.items():
            dfm = DFM(calibration=None, **{"n_components": SHARE, **parameters})
            dfm.fit(train, labels=cifar.train_y)
            scores = zip(kinds, dfm.score(others, score_type=kinds), strict=True)
            rows += [[title, layer, kind, *_of(row, labels)] for kind, row in scores]
    return rows


def _of(scores, labels):
    return _figures(evaluate(scores, labels))


def _figures(found):
    return [f"{found[name]:.3f}" for name in _METRICS]


def _pytorch_ood(layer, cifar, train, both):
    """Yield names and scores of its detectors; none if it is not installed."""
    if importlib.util.find_spec("pytorch_ood") is None:
        return
    torchvision_models()  # or torchvision fails beside a CPU build of torch
    from pytorch_ood.detector import KNN, Mahalanobis, ViM

    x, y, z = (torch.from_numpy(array) for array in (train, cifar.train_y, both))
    yield "Mahalanobis", Mahalanobis(None).fit_features(x, y).predict_features(z)
    yield "KNN (of unit length)", KNN(None).fit_features(x, y).predict_features(z)
    if layer == "avgpool":  # ViM needs the features that the logits are made of
        head = cifar.network.linear
        vim = ViM(None, VIM_DIMENSION, head.weight, head.bias)
        yield f"ViM ({VIM_DIMENSION})", vim.fit_features(x, y).predict_features(z)
