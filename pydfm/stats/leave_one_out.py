r"""Scores of training rows under the model of all other rows, without fitting it again.

Rows that a model was fitted on score lower than new ones, the more so the closer N is to D: a
threshold needs the score that each row has under a model that has not seen it. With v = x - mu,
leaving a row of a class of n rows out turns

    v into rho v,  and the scatter S into S - rho v v',  rho = n / (n - 1).

This is a change of rank one: the spectrum of S - rho v v' follows from that of S and the row's
coordinates V'v in the eigenvectors V of S (docs/method.md, "Leave one out"). So one
eigendecomposition serves all rows, and the scores are those of a new fit without the row, within
1e-8.

The coordinates come from either route of the fit: with N <= D rows, from the eigenvectors of the
Gram matrix alone (`gram_coordinates`); with N > D, as the product of the rows and all eigenvectors
of the scatter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.arrays import Rows
from pydfm.stats.scatter import resolution_of
from pydfm.stats.scores import CORE_SCORES

# Held-out residuals are computed for about this many bytes at once.
_RESIDUAL_BYTES = 32 << 20

_Float64 = NDArray[np.float64]

Reduction: TypeAlias = Callable[[_Float64], _Float64]
"""Maps residuals (b, D) of some rows to numbers (b, ...)."""


@dataclass(frozen=True)
class LeaveOneOut:
    """The part of a model without one row that is the same for every row.

    Attributes
    ----------
    eigenvalues : ndarray of shape (r,)
        Eigenvalues of the scatter (not the covariance) above `resolution`, descending.
    resolution : float
        Eigenvalues of a scatter up to this count as zero.
    n_components : int
        Number of components, from 1 to r; 0 where r is 0. Where a row alone fills a direction, the
        model without it has one component less.
    n_features : int
        Number of features per row, D.
    degrees_of_freedom : float
        Divisor of the scatter of the remaining rows: N - 2, or N - C - 1 where C classes share a
        scatter.
    n_variances : int
        Number of variances of the remaining rows, zeros included: min(N - C, D). The noise
        variance is the mean of all but the leading ones.
    n_left : int
        N - C.
    """

    eigenvalues: _Float64
    resolution: float
    n_components: int
    n_features: int
    degrees_of_freedom: float
    n_variances: int
    n_left: int

    @classmethod
    def of_scatter(
        cls,
        eigenvalues: _Float64,
        resolution: float,
        n_components: int,
        n_features: int,
        n_samples: int,
        n_classes: int = 1,
    ) -> "LeaveOneOut":
        """Make it from all `eigenvalues` of the scatter of `n_samples` rows of `n_classes`."""
        kept = eigenvalues[eigenvalues > resolution]
        return cls(
            eigenvalues=kept,
            resolution=float(resolution),
            n_components=min(n_components, len(kept)),
            n_features=n_features,
            degrees_of_freedom=float(n_samples - n_classes - 1),
            n_variances=min(n_samples - n_classes, n_features),
            n_left=n_samples - n_classes,
        )

    def scores(
        self,
        coordinates: _Float64,
        class_sizes: int | NDArray[np.integer[Any]],
        score_types: Sequence[str],
        n_threads: int,
    ) -> _Float64:
        """Return scores (len(score_types), N) of rows, each under the model without it.

        Parameters
        ----------
        coordinates : ndarray of shape (N, r)
            V'(x - mu), where mu is the mean of the row's class.
        class_sizes : int or ndarray of shape (N,)
            Number of rows of each row's class, at least two.
        score_types : sequence of str
            Of `CORE_SCORES`. All but "fre" need a scatter of the remaining rows, so at least one
            degree of freedom.

        Raises
        ------
        ValueError
            If the remaining rows do not make a model.
        """
        if self.degrees_of_freedom < 1 and set(score_types) != {"fre"}:
            raise ValueError(
                "X has two rows; without one of them the other has no variance, so only 'fre' has "
                "held-out scores; add rows"
            )
        return _core.leave_one_out(
            coordinates,
            self.eigenvalues,
            _rho(class_sizes, len(coordinates)),
            n_components=self.n_components,
            degrees_of_freedom=self.degrees_of_freedom,
            n_variances=self.n_variances,
            n_features=self.n_features,
            resolution=self.resolution,
            score_types=list(score_types),
            n_threads=n_threads,
        )

    def residuals(
        self, coordinates: _Float64, class_sizes: int | NDArray[np.integer[Any]], n_threads: int
    ) -> _Float64:
        """Return residuals (N, r) of rows under the models without them, in the coordinates V.

        Their product with V' (r, D) is x - mu less its projection on the subspace, where mean and
        subspace are those of the other rows; their squared lengths are the fre.
        """
        return _core.leave_one_out_residuals(
            coordinates,
            self.eigenvalues,
            _rho(class_sizes, len(coordinates)),
            n_components=self.n_components,
            resolution=self.resolution,
            n_threads=n_threads,
        )


@dataclass(frozen=True)
class Held:
    """Rows to be scored without themselves, and which of them go together.

    Attributes
    ----------
    rows : ndarray of shape (n, D)
    mean : ndarray of shape (D,)
        What is subtracted from each row to give its deviation from its class's mean.
    classes, units : ndarray of shape (n,)
        Rows of one class and one unit are left out together; all rows of such a unit are there.
    class_sizes : ndarray of shape (C,)
        Number of rows of each class.
    """

    rows: Rows
    mean: _Float64
    classes: NDArray[np.intp]
    units: NDArray[np.intp]
    class_sizes: NDArray[np.intp]


def score_held_out(
    values: _Float64,
    vectors: _Float64,
    held: Held,
    *,
    of_gram: bool,
    n_components: int,
    regularization: str | float | None,
    n_threads: int,
    reduce: Reduction | None = None,
) -> tuple[_Float64, NDArray[np.float32] | None]:
    """Return held-out scores of rows, and what `reduce` makes of their held-out residuals.

    Parameters
    ----------
    values, vectors : ndarray of shape (r,) and (r, D) or (r, N)
        All eigenpairs of the scatter, or of the Gram matrix of all rows, among which are those of
        `held`, or the first of which they are.
    held : Held
    of_gram : bool
        Whether the eigenpairs are those of the Gram matrix of the rows of `held`.
    n_components : int
    regularization : {"shrinkage"}, float or None
        As the model has it.
    n_threads : int
    reduce : callable, optional

    Returns
    -------
    scores : ndarray of shape (4, n), float64
        One row for each of `CORE_SCORES`; NaN where the other rows make no model.
    reduced : ndarray of shape (n, ...), float32, or None
    """
    sizes, n_features = held.class_sizes, len(held.mean)
    n_samples, n_classes = int(sizes.sum()), int(np.count_nonzero(sizes))
    resolution = resolution_of(values, held.mean, n_samples, n_features)
    model = LeaveOneOut.of_scatter(
        values, resolution, n_components, n_features, n_samples, n_classes
    )
    axes = vectors[: len(model.eigenvalues)]
    if of_gram:
        coordinates = gram_coordinates(model.eigenvalues, axes)
    else:
        coordinates = _core.coordinates(held.rows, held.mean, axes, n_threads=n_threads)
    if of_gram and reduce is not None:
        axes = _core.components_from_gram(
            held.rows, held.mean, model.eigenvalues, axes, n_threads=n_threads
        )
    groups = _Groups.of(held.classes, held.units)
    if groups.single and regularization is None:
        scores = _leave_rows_out(model, coordinates, sizes[held.classes], n_threads)
        if reduce is None:
            return scores, None
        return scores, _reduced(model, coordinates, sizes[held.classes], axes, n_threads, reduce)
    return _leave_groups_out(
        model, coordinates, groups, sizes, regularization, axes, n_threads, reduce
    )


@dataclass(frozen=True)
class _Groups:
    """Rows by the units that they are of.

    Attributes
    ----------
    order : ndarray of shape (n,)
        The rows of each unit, one unit after the other.
    starts : ndarray of shape (G + 1,)
        Where each unit begins in that order, and where the last ends.
    classes : ndarray of shape (G,)
        Of each unit.
    """

    order: NDArray[np.intp]
    starts: NDArray[np.int64]
    classes: NDArray[np.intp]

    @classmethod
    def of(cls, classes: NDArray[np.intp], units: NDArray[np.intp]) -> "_Groups":
        order = np.lexsort((units, classes))
        own, theirs = classes[order], units[order]
        new = np.flatnonzero((np.diff(own) != 0) | (np.diff(theirs) != 0)) + 1
        starts = np.concatenate([[0], new, [len(order)]]).astype(np.int64)
        return cls(order, starts, own[starts[:-1]])

    @property
    def single(self) -> bool:
        """Whether each unit has one row."""
        return len(self.classes) == len(self.order)


def _leave_rows_out(
    model: LeaveOneOut, coordinates: _Float64, class_sizes: NDArray[np.intp], n_threads: int
) -> _Float64:
    scores = np.full((len(CORE_SCORES), len(coordinates)), np.nan)
    known = class_sizes >= 2
    if known.any():
        kinds = CORE_SCORES if model.degrees_of_freedom >= 1 else ("fre",)
        scores[: len(kinds), known] = model.scores(
            coordinates[known], class_sizes[known], kinds, n_threads
        )
    return scores


def _leave_groups_out(
    model: LeaveOneOut,
    coordinates: _Float64,
    groups: _Groups,
    class_sizes: NDArray[np.intp],
    regularization: str | float | None,
    axes: _Float64,
    n_threads: int,
    reduce: Reduction | None,
) -> tuple[_Float64, NDArray[np.float32] | None]:
    """Score rows, each without its unit; some units at a time where residuals are reduced."""
    n = len(coordinates)
    scores = np.full((len(CORE_SCORES), n), np.nan)
    reduced: NDArray[np.float32] | None = None
    lengths = np.diff(groups.starts)
    step = n
    if reduce is not None:
        step = max(1, _RESIDUAL_BYTES // (8 * axes.shape[1]))
    begin = 0
    while begin < len(lengths):
        end = int(np.searchsorted(groups.starts, groups.starts[begin] + step, side="right")) - 1
        end = max(end, begin + 1)
        starts = groups.starts[begin : end + 1]
        rows = groups.order[starts[0] : starts[-1]]
        own, m = coordinates[rows], lengths[begin:end]
        # One row less was counted already.
        given: dict[str, Any] = {
            "starts": starts - starts[0],
            "class_sizes": class_sizes[groups.classes[begin:end]].astype(np.float64),
            "n_components": model.n_components,
            "degrees_of_freedom": model.degrees_of_freedom + 1 - m,
            "resolution": model.resolution,
            "n_threads": n_threads,
        }
        scores[:, rows] = _core.leave_groups_out(
            own,
            model.eigenvalues,
            n_variances=np.minimum(model.n_left + 1 - m, model.n_features),
            n_features=model.n_features,
            shrinkage=regularization == "shrinkage",
            floor=0.0 if regularization in (None, "shrinkage") else float(regularization),
            score_types=list(CORE_SCORES),
            **given,
        )
        if reduce is not None:
            residuals = _core.leave_groups_out_residuals(own, model.eigenvalues, **given)
            part = reduce(residuals @ axes).astype(np.float32)
            if reduced is None:
                reduced = np.empty((n, *part.shape[1:]), dtype=np.float32)
            reduced[rows] = part
        begin = end
    return scores, reduced


def _reduced(
    model: LeaveOneOut,
    coordinates: _Float64,
    class_sizes: NDArray[np.intp],
    axes: _Float64,
    n_threads: int,
    reduce: Reduction,
) -> NDArray[np.float32]:
    """Apply `reduce` to the held-out residuals, which lie in the `axes` (r, D), block by block."""
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


def gram_coordinates(values: _Float64, vectors: _Float64) -> _Float64:
    """Return coordinates (N, r) of rows from eigenpairs of their centred Gram matrix.

    Parameters
    ----------
    values : ndarray of shape (r,)
        Positive eigenvalues, which are those of the scatter.
    vectors : ndarray of shape (r, N)
        Row j belongs to values[j]. The coordinate of row i along component j is
        sqrt(values[j]) vectors[j, i]: the singular vectors of the two sides.
    """
    return np.ascontiguousarray((np.sqrt(values)[:, None] * vectors).T)


def _rho(class_sizes: int | NDArray[np.integer[Any]], n_rows: int) -> _Float64:
    sizes = np.broadcast_to(np.asarray(class_sizes, dtype=np.float64), (n_rows,))
    if n_rows and sizes.min() < 2:
        raise ValueError(
            f"X has a class of n_samples={int(sizes.min())}; leaving a row out needs at least two "
            "rows of its class"
        )
    return np.ascontiguousarray(sizes / (sizes - 1))
