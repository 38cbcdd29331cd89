"""pydfm, in the shape of `peers`; the only place here that calls its compiled core."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pydfm
from benchmarks.workloads import Model
from pydfm import _core
from pydfm.model.fitting import FittedDFM
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model as FittedModel
from pydfm.stats.density import Density
from pydfm.stats.subspace import Subspace


def _subspace(model: Model) -> Subspace:
    return Subspace(
        mean=model.mean,
        components=np.ascontiguousarray(model.components),
        explained_variance=model.variances.copy(),
        noise_variance=model.noise_variance,
        total_variance=float(model.variances.sum()),
        n_samples=len(model.mean) + 1,
    )


def estimator(models: Sequence[Model], kinds: Any, n_threads: int) -> pydfm.DFM:
    """Return a fitted `DFM` of these classes."""
    density = Density(tuple(_subspace(model) for model in models))
    layer = LayerModel("features", slice(0, density.n_features), density)
    classes = None if len(models) == 1 else list(range(len(models)))
    fitted = FittedDFM(None, FittedModel((layer,), classes, {}, 1), None, None)
    dfm = pydfm.DFM(score_type=kinds, calibration=None, n_threads=n_threads)
    return dfm.with_state(fitted=fitted)


def scores(
    model: Model, X: NDArray[Any], n_threads: int, kinds: tuple[str, ...] = ("fre", "nll")
) -> Callable[[], NDArray[np.float32]]:
    """Compute several score types at once by `DFM.score`."""
    dfm = estimator([model], kinds, n_threads)
    return lambda: dfm.score(X)


def nearest_scores(
    models: Sequence[Model], X: NDArray[Any], n_threads: int, kind: str
) -> Callable[[], Any]:
    """Compute the lowest scores over the classes by `DFM.score`."""
    dfm = estimator(models, kind, n_threads)
    return lambda: dfm.score(X)


def nearest_classes(
    models: Sequence[Model], X: NDArray[Any], n_threads: int, kind: str
) -> NDArray[np.intp]:
    """Return the classes with the lowest scores."""
    return np.asarray(estimator(models, kind, n_threads).predict_class(X))


def core_scores(model: Model, X: NDArray[Any], n_threads: int) -> Callable[[], Any]:
    """Call the core alone, without the checks around it."""
    subspace, kinds = _subspace(model), ["fre", "nll"]
    return lambda: _core.score(X, subspace.scorer, score_types=kinds, n_threads=n_threads)


def fit(X: NDArray[Any], k: int, n_threads: int) -> Callable[[], Model]:
    """Run `DFM.fit` on features."""

    def run() -> Model:
        return model_of(pydfm.DFM(k, n_threads=n_threads).fit(X))

    return run


def model_of(dfm: pydfm.DFM) -> Model:
    """Return mean, components and variances of a fitted estimator."""
    return Model(dfm.mean_, dfm.components_, dfm.explained_variance_, dfm.noise_variance_)


def eigh(matrix: NDArray[np.float64], n_threads: int) -> Callable[[], Any]:
    """Compute all eigenpairs: values, descending, and vectors, one per row."""
    return lambda: _core.eigh(matrix, n_threads=n_threads)


def leading_eigenpairs(
    matrix: NDArray[np.float64], share: float, n_threads: int
) -> Callable[[], Any]:
    """Compute the fewest eigenpairs with more than `share` of the trace (and all eigenvalues)."""

    def run() -> Any:
        values, vectors = _core.eigh(matrix, share=share, n_threads=n_threads)
        return values[: len(vectors)], vectors

    return run
