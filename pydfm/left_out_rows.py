"""Scores of rows left out of a subspace, and what is made of their residuals, block by block."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows
from pydfm.leave_one_out import LeftOut, gram_coordinates
from pydfm.subspace import GAUSSIAN_SCORES, resolution_of

# Residuals of rows that are left out are made of about this many bytes at once.
_RESIDUAL_BYTES = 32 << 20

Reduction: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Makes numbers (b, ...) of residuals (b, D)."""


def score_left_out(
    values: NDArray[np.float64],
    vectors: NDArray[np.float64],
    rows: Rows,
    mean: NDArray[np.float64],
    *,
    of_gram: bool,
    class_sizes: NDArray[np.intp],
    n_samples: int,
    n_classes: int,
    n_components: int,
    n_threads: int,
    reduce: Reduction | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """Left-out scores (4, n) of `rows` (n, D), and what `reduce` makes of their residuals.

    Parameters
    ----------
    values, vectors : ndarray of shape (r,) and (r, D) or (r, n)
        All eigenpairs of the scatter, or of the Gram matrix of `rows`, which are all rows then.
    mean : ndarray of shape (D,)
        What is to be taken from each row to make it the deviation from its class's mean.
    of_gram : bool
    class_sizes : ndarray of shape (n,)
        Of the classes of `rows`.
    """
    n_features = len(mean)
    resolution = resolution_of(values, mean, n_samples, n_features)
    model = LeftOut.of_scatter(values, resolution, n_components, n_features, n_samples, n_classes)
    axes = vectors[: len(model.eigenvalues)]
    if of_gram:
        coordinates = gram_coordinates(model.eigenvalues, axes)
    else:
        coordinates = _core.coordinates(rows, mean, axes, n_threads=n_threads)
    scores = np.full((len(GAUSSIAN_SCORES), len(coordinates)), np.nan)
    known = class_sizes >= 2
    if known.any():
        kinds = GAUSSIAN_SCORES if model.degrees_of_freedom >= 1 else ("fre",)
        scores[: len(kinds), known] = model.scores(
            coordinates[known], class_sizes[known], kinds, n_threads
        )
    if reduce is None:
        return scores, None
    if of_gram:
        axes = _core.components_from_gram(rows, mean, model.eigenvalues, axes, n_threads=n_threads)
    return scores, _reduced(model, coordinates, class_sizes, axes, n_threads, reduce)


def _reduced(
    model: LeftOut,
    coordinates: NDArray[np.float64],
    class_sizes: NDArray[np.intp],
    axes: NDArray[np.float64],
    n_threads: int,
    reduce: Reduction,
) -> NDArray[np.float32]:
    """Apply `reduce` to the left-out residuals, which lie in the `axes` (r, D), block by block."""
    parts = []
    step = max(1, _RESIDUAL_BYTES // (8 * axes.shape[1]))
    for first in range(0, len(coordinates), step):
        block = slice(first, first + step)
        known = class_sizes[block] >= 2
        residuals = np.full((len(known), axes.shape[1]), np.nan)
        if known.any():
            inner = model.residuals(coordinates[block][known], class_sizes[block][known], n_threads)
            residuals[known] = inner @ axes
        parts.append(reduce(residuals).astype(np.float32))
    return np.concatenate(parts)
