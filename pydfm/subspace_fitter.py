"""Rows of one class in, in any number of batches, and the subspace of all of them out.

Fitters can be added to one another, and rows taken away, exactly but for rounding. A copy is cheap:
arrays are shared, and never written to once they are in a fitter.
"""

import copy
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows, blocks, check_finite
from pydfm.row_keeping import (
    NOT_FITTED,
    Reduction,
    check_rest,
    exact_mean,
    fits_memory,
    left_out,
    most_kept,
    sketch_size,
)
from pydfm.sample import RowSample, find_rows
from pydfm.sketch import FrequentDirections
from pydfm.subspace import Subspace, check_sums, fit_subspace

_Moments: TypeAlias = tuple[int, NDArray[np.float64], NDArray[np.float64]]


class SubspaceFitter:
    """Takes rows of one class.

    Parameters
    ----------
    n_threads : int
    sample : RowSample, optional
        Of the rows that are folded, to score them without themselves.
    max_bytes : int, optional
        Of memory; past it a sketch is kept in place of moments.

    Attributes
    ----------
    n_samples : int
    sample : RowSample or None
    """

    def __init__(
        self, n_threads: int, sample: RowSample | None = None, max_bytes: int | None = None
    ) -> None:
        self.n_samples = 0
        self._n_threads = n_threads
        self.sample = sample
        self._max_bytes = max_bytes
        self._kept: list[Rows] = []
        self._places: list[NDArray[np.intp]] = []  # of the rows kept
        self._n_kept = 0
        self._n_seen = 0  # with those that were taken away since
        self._moments: _Moments | None = None
        self._sketch: FrequentDirections | None = None
        self._gram: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._n_components = 0  # of the last fit

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, moments and sample take."""
        arrays = [*self._kept, *(self._moments or ())[1:], *(self._gram or ())]
        if self._sketch is not None:
            arrays.append(self._sketch.rows)
        sampled = 0 if self.sample is None else self.sample.n_bytes
        return sum(int(array.nbytes) for array in arrays) + sampled

    def copy(self) -> "SubspaceFitter":
        """Return a fitter of the same rows."""
        other = copy.copy(self)
        other._kept, other._places = list(self._kept), list(self._places)
        if self.sample is not None:
            other.sample = self.sample.copy()
        if self._sketch is not None:
            other._sketch = self._sketch.copy()
        return other

    def add(self, features: NDArray[Any], *, owned: bool = True) -> None:
        """Add `features` (N, D), which must stay as they are if they are `owned`."""
        for _, rows in blocks(features):
            places = np.arange(self._n_seen, self._n_seen + len(rows))
            self._n_seen += len(rows)
            self._keep(rows, places)
        if not owned and self._kept:
            self._kept[-1] = self._kept[-1].copy()

    def own(self) -> None:
        """Copy rows that are kept where they may be the caller's, who may change them."""
        if len(self._kept) == 1:
            self._kept = [self._kept[0].copy()]
        elif self._kept:
            self._kept, self._places = [self._joined()], [np.concatenate(self._places)]

    def merge(self, other: "SubspaceFitter") -> None:
        """Add all rows that were added to `other`, which stays as it is."""
        if other._moments is not None:
            # Folded in the order in which they came, which the sample counts by.
            if self._kept:
                self._fold()
            if self.sample is not None and other.sample is not None:
                self.sample.merge(other.sample, self._n_seen)
            self.add_moments(other._moments, other._sketch)
        first = self._n_seen
        for rows, places in zip(other._kept, other._places, strict=True):
            self._keep(rows, first + places)
        self._n_seen = first + other._n_seen

    def add_moments(self, moments: _Moments, sketch: FrequentDirections | None = None) -> None:
        """Add rows by their moments; or by count and mean, beside the `sketch` of the scatter."""
        self.n_samples += moments[0]
        self._join(moments, sketch)

    def forget(self, features: NDArray[Any]) -> None:
        """Take rows `features` (N, D) away again.

        Raises
        ------
        ValueError
            If one of them was not added, as far as can be told; if the rows left are too few, or
            so small beside these that their digits are lost; or in a sketch.
        """
        rows = np.ascontiguousarray(features, dtype=np.float64)
        check_finite(rows)
        if self._sketch is not None:
            raise ValueError(
                "rows cannot be taken away from a sketch; fit again, or with a larger max_memory"
            )
        kept = self._joined() if self._kept else rows[:0]
        gone, missing = find_rows(kept, rows)
        if len(missing):
            if self._moments is None:
                raise ValueError(f"row {missing[0]} of X is none of those the model was fitted on")
            self._moments = _subtracted(self._moments, rows[missing], self._n_threads)
            if self.sample is not None:
                self.sample = self.sample.without(rows[missing])
        stay = np.delete(np.arange(len(kept)), gone)
        places = np.concatenate(self._places)[stay] if self._places else stay
        self._kept = [kept[stay]] if len(stay) else []
        self._places = [places] if len(stay) else []
        self._n_kept = len(stay)
        self.n_samples -= len(rows)
        if self._moments is not None and self._moments[0] == 0:
            self._moments = None

    def fit(
        self, n_components: float | int | None, regularization: str | float | None = None
    ) -> Subspace:
        """Return the subspace of all rows added; see `fit_subspace`.

        Raises
        ------
        ValueError
            If they are not finite.
        """
        rows: Rows | None = None
        energy, error = None, 0.0
        if self._moments is None:
            rows = self._joined()
            self._kept, self._places = [rows], [np.concatenate(self._places)]
            mean, products = self._gram = _core.gram(rows, n_threads=self._n_threads)
            check_sums(rows, mean, products, 0)
        else:
            if self._kept:
                self._fold()
            _, mean, products = self._moments
            if self._sketch is not None:
                rows, energy, error = self._sketch.rows, self._sketch.energy, self._sketch.error
                products = rows @ rows.T
        subspace = fit_subspace(
            mean if self._sketch is None else np.zeros_like(mean),
            products,
            rows,
            n_samples=self.n_samples,
            n_components=n_components,
            regularization=regularization,
            n_threads=self._n_threads,
            energy=energy,
            error=error,
        )
        self._n_components = len(subspace.components)
        return subspace if self._sketch is None else replace(subspace, mean=mean)

    def left_out(
        self, reduce: Reduction | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float32] | None]:
        """Scores of rows, each under the subspace that the others have, after `fit`.

        Parameters
        ----------
        reduce : callable, optional
            Makes numbers (b, ...) of the residuals (b, D) of some rows, x less its mean and less
            its projection, both of the others.

        Returns
        -------
        places : ndarray of shape (n,)
            Which rows, as they came: all, or those of the sample where they were folded.
        scores : ndarray of shape (4, n), float64
            Of `GAUSSIAN_SCORES`, without regularization; NaN where the others cannot give it: all
            but fre of two rows, every score of a single one.
        reduced : ndarray of shape (n, ...), float32, or None
            What `reduce` made of the residuals; NaN where there are none.
        """
        rows, kept = None, None
        if self._moments is None:
            assert self._gram is not None
            mean, products = self._gram
            kept, places = self._joined(), np.concatenate(self._places)
        else:
            assert self.sample is not None
            _, mean, products = self._moments
            places, rows, _ = self.sample.take()
        scores, reduced = left_out(
            products,
            rows,
            mean,
            class_sizes=self.n_samples,
            n_samples=self.n_samples,
            n_classes=1,
            n_components=self._n_components,
            n_threads=self._n_threads,
            reduce=reduce,
            kept=kept,
        )
        return places, scores, reduced

    def _keep(self, rows: Rows, places: NDArray[np.intp]) -> None:
        self._kept.append(rows)
        self._places.append(places)
        self._n_kept += len(rows)
        self.n_samples += len(rows)
        if self._n_kept > most_kept(rows.shape[1], self._max_bytes):
            self._fold()

    def _joined(self) -> Rows:
        # Batches may differ in type: the widest holds them all.
        return self._kept[0] if len(self._kept) == 1 else cast(Rows, np.concatenate(self._kept))

    def _fold(self) -> None:
        rows, places = self._joined(), np.concatenate(self._places)
        self._kept, self._places, self._n_kept = [], [], 0
        if self.sample is not None:
            self.sample.add(rows, places)
        n_features = rows.shape[1]
        if fits_memory(n_features, self._max_bytes):
            moments = _core.moments(rows, n_threads=self._n_threads)
            check_sums(rows, moments[1], moments[2], self.n_samples - len(rows))
            self._join(moments, None)
            return
        sketch = FrequentDirections(
            sketch_size(n_features, self._max_bytes), n_features, self._n_threads
        )
        mean = exact_mean(rows)
        if not np.isfinite(mean).all():
            check_finite(rows, self.n_samples - len(rows))
        for _, part in blocks(rows):
            sketch.add(part - mean)
        self._join((len(rows), mean, np.zeros((0, 0))), sketch)

    def _join(self, moments: _Moments, sketch: FrequentDirections | None) -> None:
        if self._moments is None:
            self._moments, self._sketch = moments, None if sketch is None else sketch.copy()
        elif sketch is None and self._sketch is None:
            self._moments = _core.merge_moments(self._moments, moments)
        elif sketch is not None and self._sketch is not None:
            n, mean, nothing = self._moments
            m, other_mean, _ = moments
            delta = other_mean - mean
            self._sketch.merge(sketch)
            self._sketch.add(np.sqrt(n * m / (n + m)) * delta[None])
            self._moments = n + m, mean + m / (n + m) * delta, nothing
        else:
            raise ValueError("one is a sketch and the other is not; give both one max_memory")


def _subtracted(moments: _Moments, rows: NDArray[np.float64], n_threads: int) -> _Moments:
    """Moments without `rows`."""
    if len(rows) > moments[0]:
        raise ValueError(
            f"X has {len(rows)} rows, more than the {moments[0]} that the model was fitted on"
        )
    try:
        rest = _core.subtract_moments(moments, _core.moments(rows, n_threads=n_threads))
    except ValueError:  # a variance would be negative
        raise ValueError(NOT_FITTED) from None
    if rest[0] > 1:
        check_rest(moments[2], rest[2])
    return rest
