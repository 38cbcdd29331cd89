"""Scores: fre and nll of many rows at once, of one row, and under many classes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import pydfm
from benchmarks import ours, peers
from benchmarks.measure import Case, Comparison
from benchmarks.workloads import (
    TOLERANCE,
    ClassPopulation,
    Model,
    Population,
    reference_scores,
    relative_error,
)

TITLE: Final = "Score"
NOTES: Final = ()

# Number of rows that are compared with the float64 reference.
_CHECKED: Final = 500


@dataclass(frozen=True)
class Shape:
    """M rows of D features; k components hold `share` of the variance."""

    rows: int
    features: int
    components: int
    share: float = 0.97

    @property
    def population(self) -> Population:
        return Population(self.features, self.components, self.share)

    def __str__(self) -> str:
        small = "" if self.share == 0.97 else f" ({self.share:.1%} of the variance)"
        return f"{self.rows:,} x {self.features:,}, k = {self.components}{small}"


SHAPES: Final = (
    Shape(10_000, 512, 120),
    Shape(10_000, 512, 300),
    Shape(10_000, 2048, 400),
    Shape(10_000, 16_384, 150),
)
QUICK: Final = SHAPES[:3]
# Residuals so small that many rows are scored again in float64; without targets.
SMALL_RESIDUALS: Final = Shape(10_000, 512, 300, share=0.995)
ONE_ROW: Final = Shape(1, 512, 120)

# Classes to find the nearest of.
N_CLASSES: Final = (10, 100, 1000)
NEAREST_KINDS: Final = ("fre", "mahalanobis")

# Name -> how to make it, and the least ratio of its time to pydfm's.
PEERS: Final[dict[str, tuple[Callable[[Model, NDArray[Any]], Callable[[], Any]], float | None]]] = {
    "numpy `X @ W` alone (the roof)": (peers.matmul, 0.9),
    "numpy, two products": (peers.numpy_two_products, 2.0),
    "numpy, one product": (peers.numpy_one_product, None),
    "scikit-learn PCA": (peers.sklearn_transform, 2.0),
    "torch, anomalib's formulas": (peers.torch_scores, 3.0),
}
NAMES: Final = ("pydfm, `DFM.score`", *PEERS)


@lru_cache(maxsize=1)
def _data(shape: Shape) -> tuple[Model, NDArray[np.float32]]:
    population = shape.population
    return population.model, population.rows(shape.rows)


def bulk(shape: Shape, n_threads: int) -> Comparison:
    """Compare fre and nll of many rows, computed at once."""
    model, X = _data(shape)
    cases = [Case("pydfm, `DFM.score`", ours.scores(model, X, n_threads))]
    for name, (make, target) in PEERS.items():
        cases.append(Case(name, make(model, X), None if shape is SMALL_RESIDUALS else target))
    check = partial(_check, reference_scores(model, X[:_CHECKED]))
    return Comparison(f"fre and nll, {shape}", n_threads, cases, check)


def ppca(shape: Shape, n_threads: int) -> Comparison:
    """Compare the score ppca, which is scikit-learn's score_samples."""
    model, X = _data(shape)
    first = Case("pydfm, `DFM.score`", ours.scores(model, X, n_threads, ("ppca",)))
    other = Case("scikit-learn score_samples", peers.sklearn_ppca(model, X), 2.0)
    fre, nll, _ = reference_scores(model, X[:_CHECKED])
    s, rest = model.noise_variance, shape.features - shape.components
    reference = nll + (fre / s + rest * np.log(2 * np.pi * s)) / 2

    def check(answer: NDArray[Any]) -> None:
        assert relative_error(np.ravel(answer)[:_CHECKED], reference) < TOLERANCE

    return Comparison(f"ppca, {shape}", n_threads, [first, other], check)


def one_row(shape: Shape, n_threads: int, *, bare: bool) -> Comparison:
    """Compare one row: the core's call alone (`bare`), or `DFM.score` with all its checks."""
    dfm = pydfm.DFM(shape.components, n_threads=n_threads).fit(shape.population.rows(2000))
    model, row = ours.model_of(dfm), shape.population.rows(1, seed=1)
    numpy_run = peers.numpy_one_product(model, row)
    if bare:
        first = Case("pydfm, the core's call", ours.core_scores(model, row, n_threads))
        other = Case("numpy, four lines", numpy_run, 1.0)
    else:
        first = Case("pydfm, `DFM.score`", lambda: dfm.score(row))
        other = Case("numpy, four lines", numpy_run, 1 / 3)
    check = partial(_check, reference_scores(model, row))
    return Comparison(f"one row, {shape}", n_threads, [first, other], check)


@lru_cache(maxsize=1)
def _classes(n_classes: int) -> tuple[list[Model], NDArray[np.float32]]:
    population = ClassPopulation(n_classes, 512, 60)
    return population.models, population.rows(10_000)


def nearest(n_classes: int, kind: str, n_threads: int) -> Comparison:
    """Compare the lowest score over the classes, and the class that has it."""
    models, X = _classes(n_classes)
    first = Case("pydfm, `DFM.score`", ours.nearest_scores(models, X, n_threads, kind))
    other = Case("numpy, class by class", peers.numpy_nearest(models, X, kind), 3.0)
    row = {"fre": 0, "mahalanobis": 2}[kind]
    few = X[:_CHECKED]
    each = np.stack([reference_scores(model, few)[row] for model in models])

    mine = ours.nearest_classes(models, few, n_threads, kind)

    def check(answer: Any) -> None:
        scores, found = answer if isinstance(answer, tuple) else (answer, mine)
        chosen = each[np.asarray(found)[: len(few)], np.arange(len(few))]
        assert relative_error(np.asarray(scores)[: len(few)], each.min(axis=0)) < TOLERANCE
        assert relative_error(chosen, each.min(axis=0)) < TOLERANCE

    work = f"class-conditional {kind}, {n_classes:,} classes, {len(X):,} x 512, k = 60"
    return Comparison(work, n_threads, [first, other], check)


def _check(reference: NDArray[np.float64], answer: Any) -> None:
    for got, want in zip(np.atleast_2d(answer), reference, strict=False):
        assert relative_error(got[: len(want)], want) < TOLERANCE


def comparisons(quick: bool, threads: Sequence[int]) -> Iterator[Comparison]:
    """Yield comparisons by shape and number of threads."""
    for n_threads in threads:
        yield one_row(ONE_ROW, n_threads, bare=True)
        yield one_row(ONE_ROW, n_threads, bare=False)
    for shape in QUICK if quick else (*SHAPES, SMALL_RESIDUALS):
        for n_threads in threads:
            yield bulk(shape, n_threads)
            if shape is SHAPES[0]:
                yield ppca(shape, n_threads)
    for n_classes in N_CLASSES[:2] if quick else N_CLASSES:
        for n_threads in threads:
            for kind in NEAREST_KINDS:
                yield nearest(n_classes, kind, n_threads)
