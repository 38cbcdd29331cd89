"""Eigenpairs of a symmetric matrix: all, and the leading fifth with 97 % of the trace."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours
from benchmarks.measure import Case, Comparison
from benchmarks.workloads import Population

TITLE: Final = "Symmetric eigensolver"
NOTES: Final = ("eigenvalue error / lambda_1", "residual / lambda_1")

SIZES: Final = (300, 512, 1024, 2048, 4096)
QUICK: Final = SIZES[:3]
NAMES: Final = ("pydfm", "numpy.linalg.eigh")

_SHARE: Final = 0.97
_PROMISE: Final = 1e-10
# Below this size the leading pairs need only not be slower.
_LEADING_FROM: Final = 1024


@lru_cache(maxsize=1)
def _matrix(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    population = Population(n, n // 5, _SHARE)
    return population.covariance, population.variances


def comparison(n: int, n_threads: int, *, leading: bool) -> Comparison:
    """Compare all pairs, or the leading ones, for which numpy computes all too."""
    matrix, exact = _matrix(n)

    def numpy_eigh() -> Any:
        values, vectors = np.linalg.eigh(matrix)
        return values[::-1], vectors.T[::-1]

    def errors(answer: Any) -> tuple[float, float]:
        values, vectors = answer
        residual = vectors @ matrix - values[:, np.newaxis] * vectors
        value_error = np.abs(values - exact[: len(values)]).max()
        return float(value_error), float(np.sqrt(np.square(residual).sum(axis=1).max()))

    def check(answer: Any) -> None:
        assert max(errors(answer)) < _PROMISE
        products = answer[1] @ answer[1].T
        assert np.abs(products - np.eye(len(products))).max() < _PROMISE

    if leading:
        run = ours.leading_eigenpairs(matrix, _SHARE, n_threads)
        target = 2.0 if n >= _LEADING_FROM else 1.0
        work = f"n = {n}, those of {_SHARE:.0%}"
    else:
        run, target, work = ours.eigh(matrix, n_threads), 1.0, f"n = {n}, all"
    cases = [Case(NAMES[0], run), Case(NAMES[1], numpy_eigh, target)]
    return Comparison(
        work, n_threads, cases, check, lambda answer: tuple(f"{e:.0e}" for e in errors(answer))
    )


def comparisons(quick: bool, threads: Sequence[int]) -> Iterator[Comparison]:
    """Yield comparisons by size and number of threads."""
    for n in QUICK if quick else SIZES:
        for n_threads in threads:
            yield comparison(n, n_threads, leading=False)
            yield comparison(n, n_threads, leading=True)
