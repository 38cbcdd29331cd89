"""CIFAR-10 against MNIST, beside pytorch-ood on the same features."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from sklearn.preprocessing import normalize

from benchmarks.report import Table, verdict
from benchmarks.results.cifar import LAYERS, load_cifar
from benchmarks.results.densities import COVARIANCES, Densities
from pydfm import networks
from pydfm.density import SCORE_TYPES
from pydfm.evaluation import evaluate

SHARE, TARGET, VIM_DIMENSION = 0.97, 0.97, 32

_METRICS = {"auroc": "AUROC", "aupr_in": "AUPR-in", "aupr": "AUPR-out", "fpr95": "FPR95"}


def tables(data: Path) -> dict[str, tuple[str, Table]]:
    cifar = load_cifar(data)
    rows, peers = [], []
    labels = np.repeat([False, True], [len(cifar.test_x), len(cifar.mnist_x)])
    for layer, train, both in _features(cifar):
        for covariance in COVARIANCES:
            density = Densities(covariance, SHARE).fit(train, cifar.train_y)
            for kind in SCORE_TYPES:
                found = evaluate(density.score(both, kind), labels)
                rows.append([layer, covariance, kind, *_figures(found), found["auroc"]])
        for name, scores in _pytorch_ood(layer, cifar, train, both):
            peers.append([layer, name, *_figures(evaluate(scores, labels))])
    best = max(row[-1] for row in rows)
    for row in rows:
        met = verdict(best >= TARGET, f"best >= {TARGET}")
        row[-1] = met if row[-1] == best else ""
    tables = {
        "outliers": (
            "CIFAR-10 against MNIST",
            Table(("layer", "covariance", "score", *_METRICS.values(), "target"), rows),
        )
    }
    if peers:
        tables["outliers-peers"] = (
            "The same features under pytorch-ood",
            Table(("layer", "who", *_METRICS.values()), peers),
        )
    return tables


def _features(cifar):
    """Layers, their features of the training images, and of both test sets."""
    for layer in LAYERS:
        train, test, mnist = (
            cifar.features(images, layer) for images in (cifar.train_x, cifar.test_x, cifar.mnist_x)
        )
        both = np.concatenate([test, mnist])
        yield layer, train, both
    # The classifier gives what it does not know short features, which lie near all classes.
    yield f"{layer}, unit length", normalize(train), normalize(both)


def _figures(found):
    return [f"{found[name]:.3f}" for name in _METRICS]


def _pytorch_ood(layer, cifar, train, both):
    """Names and scores of its detectors; none where it is not installed."""
    if importlib.util.find_spec("pytorch_ood") is None:
        return
    networks._torchvision_models()  # or torchvision fails beside a CPU build of torch
    from pytorch_ood.detector import KNN, Mahalanobis, ViM

    x, y, z = (torch.from_numpy(array) for array in (train, cifar.train_y, both))
    yield "Mahalanobis", Mahalanobis(None).fit_features(x, y).predict_features(z)
    yield "KNN (of unit length)", KNN(None).fit_features(x, y).predict_features(z)
    if layer == "avgpool":  # ViM needs the features that the logits are made of
        head = cifar.network.linear
        vim = ViM(None, VIM_DIMENSION, head.weight, head.bias)
        yield f"ViM ({VIM_DIMENSION})", vim.fit_features(x, y).predict_features(z)
