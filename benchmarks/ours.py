"""pydfm, in the shape of `peers`; the only place here that calls its compiled core."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pydfm
from benchmarks.workloads import Model
from pydfm import _core
from pydfm.subspace import Subspace


def _subspace(model: Model) -> Subspace:
    return Subspace(
        mean=model.mean,
        components=np.ascontiguousarray(model.components),
        explained_variance=model.variances.copy(),
        noise_variance=model.noise_variance,
        total_variance=float(model.variances.sum()),
        n_samples=len(model.mean) + 1,
    )


def scores(
    model: Model, X: NDArray[Any], n_threads: int, kinds: tuple[str, ...] = ("fre", "nll")
) -> Callable[[], NDArray[np.float32]]:
    """Scores of several kinds at once, as `DFM.score` gets them."""
    subspace = _subspace(model)
    return lambda: subspace.score(X, list(kinds), n_threads)


def nearest_scores(
    models: Sequence[Model], X: NDArray[Any], n_threads: int, kind: str
) -> Callable[[], Any]:
    """The lowest scores over the classes, and whose they are."""
    subspaces = [_subspace(model) for model in models]
    scorers = [subspace._scorer for subspace in subspaces]
    classes = _core.Classes(scorers, n_threads=n_threads)

    def run() -> Any:
        scores, found = _core.score_nearest(X, classes, score_types=[kind], n_threads=n_threads)
        return scores[0], found[0]

    return run


def core_scores(model: Model, X: NDArray[Any], n_threads: int) -> Callable[[], Any]:
    """The core's call alone, without the checks around it."""
    subspace, kinds = _subspace(model), ["fre", "nll"]
    return lambda: _core.score(X, subspace._scorer, score_types=kinds, n_threads=n_threads)


def fit(X: NDArray[Any], k: int, n_threads: int) -> Callable[[], Model]:
    """`DFM.fit` on features."""

    def run() -> Model:
        return model_of(pydfm.DFM(k, n_threads=n_threads).fit(X))

    return run


def model_of(dfm: pydfm.DFM) -> Model:
    """The numbers of a fitted estimator."""
    return Model(dfm.mean_, dfm.components_, dfm.explained_variance_, dfm.noise_variance_)


def eigh(matrix: NDArray[np.float64], n_threads: int) -> Callable[[], Any]:
    """All eigenpairs: values, descending, and vectors, one to a row."""
    return lambda: _core.eigh(matrix, n_threads=n_threads)


def leading_eigenpairs(
    matrix: NDArray[np.float64], share: float, n_threads: int
) -> Callable[[], Any]:
    """The fewest eigenpairs that hold more than `share` of the trace (and all eigenvalues)."""

    def run() -> Any:
        values, vectors = _core.eigh(matrix, share=share, n_threads=n_threads)
        return values[: len(vectors)], vectors

    return run
