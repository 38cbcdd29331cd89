r"""Scores of training rows under the model of all other rows, without fitting it again.

Rows that a model was fitted on score lower than new ones, the more so the closer N is to D: a
threshold needs the score that each row has under a model that has not seen it. With v = x - mu,
leaving a row of a class of n rows out turns

    v into rho v,  and the scatter S into S - rho v v',  rho = n / (n - 1).

This is a change of rank one: the spectrum of S - rho v v' follows from that of S and the row's
coordinates V'v in the eigenvectors V of S (docs/method.md, "Leave one out"). So one
eigendecomposition serves all rows, and the scores are those of a new fit without the row, within
1e-8. Rows that belong together, a unit, leave a change of as many ranks, or one eigenproblem in
these coordinates (docs/method.md, "Leave groups out").

The coordinates come from either route of the fit: with N <= D rows, from the eigenvectors of the
Gram matrix alone (`gram_coordinates`); with N > D, as the product of the rows and all eigenvectors
of the scatter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.inputs.arrays import Rows
from pydfm.stats.scatter import resolution_of
from pydfm.stats.scores import CORE_SCORES

# Held-out residuals are computed for about this many bytes at once.
_RESIDUAL_BYTES = 32 << 20
# Rows of a class are copied by so many bytes at once.
_COPY_BYTES = 32 << 20

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
    """

    eigenvalues: _Float64
    resolution: float
    n_components: int
    n_features: int
    degrees_of_freedom: float
    n_variances: int

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
    means : ndarray of shape (C, D)
        Of the classes.
    mean : ndarray of shape (D,)
        Of all rows.
    classes, units : ndarray of shape (n,)
        Rows of one class and one unit are left out together; all rows of such a unit are there.
    class_sizes : ndarray of shape (C,)
        Number of rows of each class.
    """

    rows: Rows
    means: _Float64
    mean: _Float64
    classes: NDArray[np.intp]
    units: NDArray[np.intp]
    class_sizes: NDArray[np.intp]

    def coordinates(self, axes: _Float64, n_threads: int) -> _Float64:
        """Return coordinates (n, r) along `axes` (r, D) of rows less the means of their classes."""
        if len(self.means) == 1:
            return _core.coordinates(self.rows, self.means[0], axes, n_threads=n_threads)
        found = np.empty((len(self.rows), len(axes)))
        step = max(1, _COPY_BYTES // self.rows[:1].nbytes)
        for c in np.unique(self.classes):
            places = np.flatnonzero(self.classes == c)
            for first in range(0, len(places), step):
                some = places[first : first + step]
                found[some] = _core.coordinates(
                    self.rows[some], self.means[c], axes, n_threads=n_threads
                )
        return found


def score_held_out(
    values: _Float64,
    vectors: _Float64,
    held: Held,
    *,
    of_gram: bool,
    n_components: float | int | None,
    n_kept: int,
    regularization: str | float | None,
    n_threads: int,
    reduce: Reduction | None = None,
) -> tuple[_Float64, NDArray[np.float32] | None]:
    """Return held-out scores of rows, and what `reduce` makes of their held-out residuals.

    Parameters
    ----------
    values, vectors : ndarray of shape (r,) and (r, D) or (r, N)
        All eigenpairs of the scatter, or of the Gram matrix of the rows.
    held : Held
    of_gram : bool
        Whether the eigenpairs are those of the Gram matrix of the rows of `held`.
    n_components, regularization
        As the model has them; a share of variance is that of each model without a unit.
    n_kept : int
        Number of components of the model of all rows.
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
    model = LeaveOneOut.of_scatter(values, resolution, n_kept, n_features, n_samples, n_classes)
    axes = vectors[: len(model.eigenvalues)]
    if of_gram:
        coordinates = gram_coordinates(model.eigenvalues, axes)
    else:
        coordinates = held.coordinates(axes, n_threads)
    if of_gram and reduce is not None:
        # Any mean will do: the vectors of positive eigenvalues sum to zero over each class.
        axes = _core.components_from_gram(
            held.rows, held.mean, model.eigenvalues, axes, n_threads=n_threads
        )
    units = _Units.of(coordinates, held, n_samples - n_classes)
    n = len(coordinates)
    scores = np.full((len(CORE_SCORES), n), np.nan)
    reduced: NDArray[np.float32] | None = None
    counts = np.full(len(units.classes), model.n_components)
    if isinstance(n_components, float) and model.n_components > 0:
        counts = units.count_components(model, n_components, n_threads)
    for count in np.unique(counts):
        alike = replace(model, n_components=int(count))
        for some in units.pieces(np.flatnonzero(counts == count), axes.shape[1], reduce):
            rows = some.order
            scores[:, rows] = some.scores(alike, regularization, n_threads)
            if reduce is not None:
                away = _core.product(some.residuals(alike, n_threads), axes, n_threads=n_threads)
                # Of a class that is one unit nothing is left, where there may be no axes either.
                away[np.repeat(some.class_sizes <= some._sizes, some._sizes)] = np.nan
                part = reduce(away).astype(np.float32)
                if reduced is None:
                    reduced = np.full((n, *part.shape[1:]), np.nan, dtype=np.float32)
                reduced[rows] = part
    return scores, reduced


@dataclass(frozen=True)
class _Units:
    """Units of rows that are left out, one after the other.

    Attributes
    ----------
    order : ndarray of shape (m,)
        Which rows they have.
    coordinates : ndarray of shape (m, r)
        Of these rows, in that order.
    starts : ndarray of shape (G + 1,), int64
        Where each unit begins, and where the last ends.
    classes : ndarray of shape (G,)
    class_sizes : ndarray of shape (G,)
        Number of rows of each unit's class.
    n_left : int
        Number of all rows less that of the classes.
    """

    order: NDArray[np.intp]
    coordinates: _Float64
    starts: NDArray[np.int64]
    classes: NDArray[np.intp]
    class_sizes: NDArray[np.intp]
    n_left: int

    @classmethod
    def of(cls, coordinates: _Float64, held: Held, n_left: int) -> "_Units":
        """Order the rows of `held`, with these coordinates, by their units."""
        order = np.lexsort((held.units, held.classes))
        own, theirs = held.classes[order], held.units[order]
        new = np.flatnonzero((np.diff(own) != 0) | (np.diff(theirs) != 0)) + 1
        starts = np.concatenate([[0], new, [len(order)]]).astype(np.int64)
        classes = own[starts[:-1]]
        return cls(order, coordinates[order], starts, classes, held.class_sizes[classes], n_left)

    def pick(self, which: NDArray[np.intp]) -> "_Units":
        """Return some of the units."""
        lengths = np.diff(self.starts)
        chosen = np.zeros(len(lengths), dtype=bool)
        chosen[which] = True
        rows = np.repeat(chosen, lengths)
        starts = np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64)
        return _Units(
            self.order[rows],
            np.ascontiguousarray(self.coordinates[rows]),
            starts,
            self.classes[chosen],
            self.class_sizes[chosen],
            self.n_left,
        )

    def pieces(
        self, which: NDArray[np.intp], n_features: int, reduce: Reduction | None
    ) -> Iterator["_Units"]:
        """Yield the units `which` (g,), ascending; some at a time where residuals are reduced."""
        if reduce is None:
            yield self if len(which) == len(self.classes) else self.pick(which)
            return
        step = max(1, _RESIDUAL_BYTES // (8 * n_features))
        ends = np.cumsum(np.diff(self.starts)[which])
        for piece in np.split(which, np.flatnonzero(np.diff(ends // step)) + 1):
            yield self.pick(piece)

    def scores(
        self, model: LeaveOneOut, regularization: str | float | None, n_threads: int
    ) -> _Float64:
        """Return scores (4, m) of the rows, each without its unit."""
        if not self.single or regularization is not None:
            floor = None if regularization in (None, "shrinkage") else regularization
            return _core.leave_groups_out(
                **self._given(model, n_threads),
                n_variances=np.minimum(self.n_left - self._sizes + 1, model.n_features),
                n_features=model.n_features,
                shrinkage=regularization == "shrinkage",
                floor=0.0 if floor is None else float(floor),
                score_types=list(CORE_SCORES),
            )
        scores = np.full((len(CORE_SCORES), len(self.order)), np.nan)
        known = self.class_sizes >= 2
        if known.any():
            kinds = CORE_SCORES if model.degrees_of_freedom >= 1 else ("fre",)
            scores[: len(kinds), known] = model.scores(
                self.coordinates[known], self.class_sizes[known], kinds, n_threads
            )
        return scores

    def residuals(self, model: LeaveOneOut, n_threads: int) -> _Float64:
        """Return residuals (m, r) of the rows, each without its unit; NaN where there are none."""
        if not self.single:
            return _core.leave_groups_out_residuals(**self._given(model, n_threads))
        residuals = np.full(self.coordinates.shape, np.nan)
        known = self.class_sizes >= 2
        if known.any():
            residuals[known] = model.residuals(
                self.coordinates[known], self.class_sizes[known], n_threads
            )
        return residuals

    def count_components(
        self, model: LeaveOneOut, share: float, n_threads: int
    ) -> NDArray[np.intp]:
        """Return how many components (G,) hold more than a share of the variance without a unit.

        Without a unit they are nearly as many as with all, from which the search begins.
        """
        lost = np.add.reduceat(np.square(self.coordinates).sum(axis=1), self.starts[:-1])
        sums = np.add.reduceat(self.coordinates, self.starts[:-1], axis=0)
        left = np.maximum(self.class_sizes - self._sizes, 1)
        lost += np.square(sums).sum(axis=1) / left
        most = (1 - share) * (float(model.eigenvalues.sum()) - lost)  # that may be left over

        def enough(which: NDArray[np.intp], count: int) -> NDArray[np.bool_]:
            some = self.pick(which)
            given = some._given(replace(model, n_components=count), n_threads)
            return np.asarray(_core.leave_groups_out_rests(**given) < most[which])

        counts = np.full(len(self.classes), model.n_components)
        known = np.flatnonzero(self._sizes < self.class_sizes)
        down = enough(known, model.n_components)
        some, count = known[down], model.n_components
        while len(some) and count > 1:
            count -= 1
            some = some[enough(some, count)]
            counts[some] = count
        some, count = known[~down], model.n_components
        while len(some) and count < len(model.eigenvalues):
            count += 1
            counts[some] = count
            some = some[~enough(some, count)]
        return counts

    @property
    def single(self) -> bool:
        """Whether each unit has one row."""
        return len(self.classes) == len(self.order)

    @property
    def _sizes(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def _given(self, model: LeaveOneOut, n_threads: int) -> dict[str, Any]:
        """Return the arguments that the core's functions share."""
        return {
            "coordinates": self.coordinates,
            "eigenvalues": model.eigenvalues,
            "starts": self.starts,
            "class_sizes": self.class_sizes.astype(np.float64),
            "n_components": model.n_components,
            "degrees_of_freedom": (self.n_left - self._sizes).astype(np.float64),
            "resolution": model.resolution,
            "n_threads": n_threads,
        }


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
