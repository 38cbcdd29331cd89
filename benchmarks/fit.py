"""Fitting: few rows of many features, and many rows; the accuracy of each beside its time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours, peers
from benchmarks.measure import Case, Comparison
from benchmarks.workloads import (
    TOLERANCE,
    Model,
    Population,
    reference_scores,
    relative_error,
)

TITLE: Final = "Fit"
NOTES: Final = ("eigenvalue error", "score error")

_HELD_OUT: Final = 200
# A float32 covariance has errors of percents in its small eigenvalues: shown beside its time.
_PEERS_TOLERANCE: Final = 0.1
# Multiplications, in units of rows x features x smaller, beyond which an SVD takes a minute.
_SVD_LIMIT: Final = 5e10


@dataclass(frozen=True)
class Shape:
    """N rows of D features, k components to keep."""

    rows: int
    features: int
    components: int

    @property
    def population(self) -> Population:
        return Population(self.features, self.components)

    @property
    def few(self) -> bool:
        return self.rows < self.features

    @property
    def svd_is_affordable(self) -> bool:
        return self.rows * self.features * min(self.rows, self.features) < _SVD_LIMIT

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.features:,}"


SHAPES: Final = (
    Shape(209, 16_384, 150),
    Shape(391, 16_384, 300),
    Shape(391, 65_536, 300),
    Shape(50_000, 512, 120),
    Shape(50_000, 2048, 400),
    Shape(5_000, 4096, 800),
)
QUICK: Final = (SHAPES[0], SHAPES[3])


@dataclass(frozen=True)
class Peer:
    """A peer: its fit, and the targets of its time over pydfm's with few rows and with many."""

    make: Callable[[NDArray[Any], int], peers.Fit]
    few: float | None
    many: float | None
    dtype: type = np.float32
    svd: bool = False
    only_many: bool = False


PEERS: Final = {
    "torch.linalg.svd in float64": Peer(peers.torch_svd, 8.0, None, svd=True),
    "scikit-learn full, fed float64": Peer(
        lambda X, k: peers.sklearn_fit(X, k, "full"), 12.0, None, np.float64, svd=True
    ),
    "scikit-learn full, fed float32": Peer(
        lambda X, k: peers.sklearn_fit(X, k, "full"), None, None, svd=True
    ),
    "scikit-learn covariance_eigh, fed float64": Peer(
        lambda X, k: peers.sklearn_fit(X, k, "covariance_eigh"),
        None,
        2.0,
        np.float64,
        only_many=True,
    ),
    "scikit-learn covariance_eigh, fed float32": Peer(
        lambda X, k: peers.sklearn_fit(X, k, "covariance_eigh"), None, 1.0, only_many=True
    ),
    "numpy eigh in float64 (the reference)": Peer(peers.numpy_fit, None, None),
}
NAMES: Final = ("pydfm", *PEERS)


@lru_cache(maxsize=1)
def _data(shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.float64], Model]:
    X = shape.population.rows(shape.rows)
    double = X.astype(np.float64)
    return X, double, peers.numpy_fit(double, shape.components)()


def comparison(shape: Shape, n_threads: int) -> Comparison:
    """Return the comparison of all fits that the shape allows."""
    X, double, reference = _data(shape)
    k = shape.components
    held_out = shape.population.rows(_HELD_OUT, seed=1)
    fre, _, mahalanobis = reference_scores(reference, held_out)
    cases = [Case("pydfm", ours.fit(X, k, n_threads))]
    for name, peer in PEERS.items():
        if (peer.svd and not shape.svd_is_affordable) or (peer.only_many and shape.few):
            continue
        fed = double if peer.dtype is np.float64 else X
        cases.append(Case(name, peer.make(fed, k), peer.few if shape.few else peer.many))

    def check(model: Model, tolerance: float = _PEERS_TOLERANCE) -> None:
        assert relative_error(model.variances, reference.variances) < tolerance

    check(cases[0].run(), TOLERANCE)

    def notes(model: Model) -> tuple[str, ...]:
        got_fre, _, got_mahalanobis = reference_scores(model, held_out)
        score_error = max(
            relative_error(got_fre, fre), relative_error(got_mahalanobis, mahalanobis)
        )
        return (
            f"{relative_error(model.variances, reference.variances):.0e}",
            f"{score_error:.0e}",
        )

    return Comparison(f"{shape}, k = {k}", n_threads, cases, check, notes)


def comparisons(quick: bool, threads: Sequence[int]) -> Iterator[Comparison]:
    """Yield comparisons by shape and number of threads."""
    for shape in QUICK if quick else SHAPES:
        for n_threads in threads:
            yield comparison(shape, n_threads)
