"""Normal rows, drawn again for each repeat: rows to fit on, and new rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results.cifar import load_cifar
from benchmarks.results.glassfiber import SIZE, WEIGHTS
from pydfm import DFM
from pydfm.datasets.category import load_category
from pydfm.features.grid import Grid

N_FRESH = 200


@dataclass(frozen=True)
class Draw:
    """Rows to fit on, with their groups, and new rows; with the classes of both, if any."""

    rows: Any
    fresh: Any
    labels: Any = None
    fresh_labels: Any = None
    groups: Any = None


def synthetic(n: int, d: int, repeats: int, *, heavy: bool) -> Iterator[Draw]:
    """Draw Gaussian rows whose i-th variance is 1 / i; `heavy` scales each by a random length.

    A rotation would change no score, so that the axes serve as components.
    """
    rng = np.random.default_rng([n, d, heavy])
    deviations = (1 / np.sqrt(np.arange(1, d + 1))).astype(np.float32)
    for _ in range(repeats):
        x = rng.standard_normal((n + N_FRESH, d), dtype=np.float32) * deviations
        if heavy:
            x *= np.sqrt(5 / rng.chisquare(5, (len(x), 1))).astype(np.float32)
        yield Draw(x[:n], x[n:])


class Pool:
    """Draw real rows: a random part to fit on, and another as new rows."""

    def __init__(self, features: Any, labels: Any = None) -> None:
        self.features = features
        self.labels = labels

    def draws(self, n: int, repeats: int, *, labelled: bool = False) -> Iterator[Draw]:
        rng = np.random.default_rng(n)
        for _ in range(repeats):
            order = rng.permutation(len(self.features))[: n + N_FRESH]
            fitted, fresh = order[:n], order[n:]
            labels = (self.labels[fitted], self.labels[fresh]) if labelled else (None, None)
            yield Draw(self.features[fitted], self.features[fresh], *labels)


def cifar(data: Path) -> Pool:
    """Return the 64 features before ResNet-20's last layer on CIFAR-10, with their classes."""
    known = load_cifar(data)
    images = np.concatenate([known.train_x, known.test_x])
    labels = np.concatenate([known.train_y, known.test_y])
    dfm = DFM(backbone=known.network, layers="avgpool", image_size=32, calibration=None)
    return Pool(dfm.fit(images[:2]).extract(images), labels)


@dataclass(frozen=True)
class Glassfiber:
    """Return features of layer2 and layer3: of good images, and of the labelled test set."""

    train: Any
    test: Any
    defective: Any
    layers: list[tuple[str, Grid]]

    @property
    def good(self) -> Pool:
        return Pool(np.concatenate([self.train, self.test[~self.defective]]))


def glassfiber(data: Path) -> Glassfiber:
    category = load_category(data / "glassfiber")
    dfm = DFM(weights=data / WEIGHTS, layers=("layer2", "layer3"), pool=2, image_size=SIZE)
    dfm.fit(category.train[:2])
    spec = dfm.feature_spec_
    return Glassfiber(
        train=dfm.extract(category.train),
        test=dfm.extract(category.test),
        defective=np.array(category.labels, dtype=bool),
        layers=list(zip(spec.layers, spec.grids, strict=True)),
    )
