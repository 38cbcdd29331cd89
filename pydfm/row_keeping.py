r"""What fitters of subspaces have in common: rows kept, limits of memory, rows left out.

Rows are kept until there are more of them than features; then they are folded into their moments.
So the cheaper of the N x N Gram matrix and the D x D covariance is decomposed, and memory is
bounded by that of 2 D rows however many come. Under a limit of memory that neither fits into, the
scatter becomes a sketch of known error (`pydfm.sketch`).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows
from pydfm.leave_one_out import LeftOut, gram_coordinates
from pydfm.subspace import GAUSSIAN_SCORES, resolution_of

# What is left of a scatter, once rows are taken away, must be above this share of what it was: the
# digits that are lost are those of the quotient.
_LEAST_LEFT = 1e-8
# Residuals of rows that are left out are made of about this many bytes at once.
_RESIDUAL_BYTES = 32 << 20

Reduction: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Makes numbers (b, ...) of residuals (b, D)."""

NOT_FITTED = (
    "X holds rows that the model was not fitted on: without them a variance would be negative"
)


def exact_mean(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean (D,) of `rows` (N, D), mended by that of what is left."""
    mean = rows.mean(axis=0, dtype=np.float64)
    return np.asarray(mean + (rows - mean).mean(axis=0))


def check_rest(before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
    """Raise ValueError unless `after` can be a scatter, of which there are digits left."""
    least, most = np.diagonal(after).min(), np.trace(before)
    if least < -1e-12 * most:
        raise ValueError(NOT_FITTED)
    if np.trace(after) < _LEAST_LEFT * most:
        raise ValueError(
            "what is left without the rows of X is too small beside them to be told exactly; fit "
            "again on the others"
        )


def fits_memory(n_features: int, max_bytes: int | None) -> bool:
    """Whether moments, and as much again while they are added up, do."""
    return max_bytes is None or 2 * 8 * n_features**2 <= max_bytes


def most_kept(n_features: int, max_bytes: int | None) -> int:
    """Rows that are kept before they are folded."""
    if fits_memory(n_features, max_bytes):
        return n_features
    assert max_bytes is not None
    return min(n_features, max(max_bytes // (2 * 8 * n_features), 1))


def sketch_size(n_features: int, max_bytes: int | None) -> int:
    """Rows l of a sketch: twice as many are in its buffer, and once more when it shrinks."""
    assert max_bytes is not None
    return max(max_bytes // (4 * 8 * n_features), 2)


def left_out(
    products: NDArray[np.float64],
    rows: Rows | None,
    mean: NDArray[np.float64],
    *,
    class_sizes: int | NDArray[np.intp],
    n_samples: int,
    n_classes: int,
    n_components: int,
    n_threads: int,
    reduce: Reduction | None = None,
    kept: Rows | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """Left-out scores (4, n) of some `rows`, or of those `kept` whose Gram matrix is `products`.

    And what `reduce` makes of their residuals.
    """
    values, vectors = _core.eigh(products, n_threads=n_threads)
    n_features = len(mean)
    resolution = resolution_of(values, mean, n_samples, n_features)
    model = LeftOut(
        eigenvalues=values[values > resolution],
        resolution=resolution,
        n_components=n_components,
        n_features=n_features,
        degrees_of_freedom=float(n_samples - n_classes - 1),
        n_variances=min(n_samples - n_classes, n_features),
    )
    vectors = vectors[: len(model.eigenvalues)]
    if rows is None:
        coordinates = gram_coordinates(model.eigenvalues, vectors)
    else:
        coordinates = _core.coordinates(rows, mean, vectors, n_threads=n_threads)
    scores = np.full((len(GAUSSIAN_SCORES), len(coordinates)), np.nan)
    sizes = np.broadcast_to(np.asarray(class_sizes), (len(coordinates),))
    known = sizes >= 2
    if known.any():
        kinds = GAUSSIAN_SCORES if model.degrees_of_freedom >= 1 else ("fre",)
        scores[: len(kinds), known] = model.scores(
            coordinates[known], sizes[known], kinds, n_threads
        )
    if reduce is None:
        return scores, None
    axes = vectors
    if rows is None:
        assert kept is not None
        axes = _core.components_from_gram(
            kept, mean, model.eigenvalues, vectors, n_threads=n_threads
        )
    return scores, _reduced(model, coordinates, sizes, axes, n_threads, reduce)


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
