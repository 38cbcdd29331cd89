"""What rows leave behind: kept rows, or their scatter; a value that adds, merges and removes.

Rows are kept until there are more of them than features; then they are folded into their scatter.
So the cheaper of the N x N Gram matrix and the D x D scatter is decomposed at the fit, and memory
is bounded by that of 2 D rows in float64, and the means, however many rows come.

Accumulators are immutable and share their arrays, so that a copy costs nothing and an interrupted
update leaves the old value as it was. Added, merged and removed rows give, but for rounding, the
accumulator of one call with the same rows.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pydfm.features.inputs.arrays import Rows, blocks, check_finite
from pydfm.stats.identities import UnknownRowError
from pydfm.stats.sample import Renumber, RowSample, find_rows
from pydfm.stats.scatter import Scatter, fits_memory, most_kept

# Rows that are removed at once, or as many as there are features.
_REMOVED_ROWS = 8192


class KeptRows(NamedTuple):
    """Rows with what is known of each.

    Attributes
    ----------
    rows : ndarray of shape (n, D)
    classes : ndarray of shape (n,)
    places : ndarray of shape (n,)
        Where each stands among all rows, of all classes.
    units : ndarray of shape (n,)
        Equal for rows of a class that are left out together.
    """

    rows: Rows
    classes: NDArray[np.intp]
    places: NDArray[np.intp]
    units: NDArray[np.intp]

    def pick(self, which: Any) -> "KeptRows":
        """Return some of the rows."""
        return KeptRows(*(each[which] for each in self))


@dataclass(frozen=True)
class Accumulator:
    """Rows of one class, or of several classes, numbered from 0, that share a scatter.

    Attributes
    ----------
    sample : RowSample or None
        A sample of the rows that were folded, to compute their held-out scores.
    max_bytes : int or None
        Limit of memory; where the scatter does not fit, it is sketched.
    kept : tuple of KeptRows
        Rows that are not folded.
    scatter : Scatter or None
        That of the folded rows.
    n_samples : int
        Number of rows.
    borrowed : bool
        Whether kept rows may lie in memory of the caller, who may change it.
    """

    sample: RowSample | None = None
    max_bytes: int | None = None
    kept: tuple[KeptRows, ...] = ()
    scatter: Scatter | None = None
    n_samples: int = 0
    borrowed: bool = False

    @property
    def n_kept(self) -> int:
        """Number of rows that are not folded."""
        folded = 0 if self.scatter is None else int(self.scatter.counts.sum())
        return self.n_samples - folded

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, scatter and sample take."""
        kept = sum(int(array.nbytes) for part in self.kept for array in part)
        return kept + sum(part.n_bytes for part in (self.scatter, self.sample) if part is not None)

    def emptied(self) -> "Accumulator":
        """Return an accumulator with the same limits and no rows."""
        sample = None if self.sample is None else self.sample.emptied()
        return Accumulator(sample, self.max_bytes)

    def counts(self) -> NDArray[np.intp]:
        """Return the number of rows (C,) of each class."""
        parts = [np.bincount(part.classes) for part in self.kept]
        if self.scatter is not None:
            parts.append(self.scatter.counts)
        counts = np.zeros(max((len(part) for part in parts), default=0), dtype=np.intp)
        for part in parts:
            counts[: len(part)] += part
        return counts

    def add(
        self,
        features: NDArray[Any],
        classes: NDArray[np.intp] | None = None,
        *,
        n_threads: int,
        places: NDArray[np.intp] | None = None,
        units: NDArray[np.intp] | None = None,
        borrowed: bool = False,
    ) -> "Accumulator":
        """Return the accumulator with rows added.

        Parameters
        ----------
        features : ndarray of shape (N, D)
        classes : ndarray of shape (N,), optional
            Numbers of their classes; default 0.
        n_threads : int
        places : ndarray of shape (N,), optional
            Where each row stands among all; default behind those that are there.
        units : ndarray of shape (N,), optional
            Equal for rows of a class that are left out together; default the places.
        borrowed : bool
            Whether the caller may change `features` later; see `compact`.
        """
        if classes is None:
            classes = np.zeros(len(features), dtype=np.intp)
        if places is None:
            places = np.arange(self.n_samples, self.n_samples + len(features))
        given = KeptRows(features, classes, places, places if units is None else units)
        result = replace(self, borrowed=self.borrowed or borrowed)
        # Where rows are sketched, the memory that some take is bounded too.
        fits = fits_memory(features.shape[1], self.max_bytes)
        step = len(features) if fits else most_kept(features.shape[1], self.max_bytes)
        for first, rows in blocks(features):
            for begin in range(0, len(rows), max(step, 1)):
                own = rows[begin : begin + step]
                part = given.pick(slice(first + begin, first + begin + len(own)))
                result = result._keep(part._replace(rows=own), n_threads)
        return result

    def merge(
        self,
        other: "Accumulator",
        numbers: NDArray[np.intp],
        *,
        n_threads: int,
        first: int = 0,
        units: Renumber | None = None,
    ) -> "Accumulator":
        """Return the accumulator of the rows of both.

        Parameters
        ----------
        other : Accumulator
        numbers : ndarray of shape (C,)
            What the classes 0, ..., C - 1 of `other` are here; several may become one.
        n_threads : int
        first : int
            From which the places of `other` are counted.
        units : callable, optional
            What the units of `other` become.
        """
        result = replace(self, borrowed=self.borrowed or other.borrowed)
        if other.scatter is not None:
            result = result.folded(n_threads)
            sample = result.sample
            if sample is not None and other.sample is not None:
                sample = sample.merge(other.sample, first, numbers, units)
            result = replace(
                result,
                sample=sample,
                scatter=_merged(result.scatter, other.scatter, numbers, n_threads),
                n_samples=result.n_samples + other.n_samples - other.n_kept,
            )
        for part in other.kept:
            own = part.units if units is None else units(part.classes, part.units)
            theirs = KeptRows(part.rows, numbers[part.classes], first + part.places, own)
            result = result._keep(theirs, n_threads)
        return result

    def remove(
        self,
        features: NDArray[Any],
        classes: NDArray[np.intp] | None = None,
        *,
        n_threads: int,
        known: bool = False,
    ) -> "Accumulator":
        """Return the accumulator without some rows.

        Parameters
        ----------
        features : ndarray of shape (N, D)
        classes : ndarray of shape (N,), optional
            Numbers of their classes; default 0.
        n_threads : int
        known : bool
            Whether the caller knows that the rows are among those of the accumulator.

        Raises
        ------
        ValueError
            If a row is not among them, or that cannot be known, since rows were folded into
            moments; if the remaining rows are so small beside the removed ones that their digits
            are lost; or if the scatter is sketched.
        """
        if classes is None:
            classes = np.zeros(len(features), dtype=np.intp)
        result = self
        # A scatter is subtracted, which pays for many rows at once.
        step = max(_REMOVED_ROWS, features.shape[1])
        for first in range(0, len(features), step):
            rows = np.ascontiguousarray(features[first : first + step], dtype=np.float64)
            check_finite(rows, first)
            theirs = classes[first : first + step]
            result = result._remove(rows, theirs, first, n_threads, known)
        return result

    def _remove(
        self,
        rows: NDArray[np.float64],
        classes: NDArray[np.intp],
        first: int,
        n_threads: int,
        known: bool,
    ) -> "Accumulator":
        none = KeptRows(rows[:0], classes[:0], classes[:0], classes[:0])
        kept = self._joined() if self.kept else none
        gone, missing = find_rows(kept.rows, rows, kept.classes, classes)
        scatter, sample = self.scatter, self.sample
        if len(missing):
            self._check_known(rows[missing], classes[missing], first + missing, known)
            assert scatter is not None
            scatter = scatter.without(rows[missing], classes[missing], n_threads)
            if sample is not None:
                sample = sample.remove(rows[missing], classes[missing])
        stay = np.delete(np.arange(len(kept.rows)), gone)
        n_samples = self.n_samples - len(rows)
        return replace(
            self,
            sample=sample,
            kept=(kept.pick(stay),) if len(stay) else (),
            scatter=None if n_samples == len(stay) else scatter,
            n_samples=n_samples,
        )

    def _check_known(
        self,
        rows: NDArray[np.float64],
        classes: NDArray[np.intp],
        places: NDArray[np.intp],
        known: bool,
    ) -> None:
        """Raise ValueError unless `rows`, at `places` in X, are among the folded ones."""
        if self.scatter is not None and self.scatter.sketched:
            return  # from which nothing can be removed, as it says itself
        found = np.full(len(rows), known and self.scatter is not None)
        if self.scatter is not None and not known:
            if self.sample is None or not self.sample.complete:
                raise UnknownRowError(
                    int(places[0]),
                    "cannot be recognised: there are more rows than features (or max_memory has no "
                    "room for them), so that their moments are kept and not the rows; fit again "
                    "without it, or forget whole classes",
                )
            found = self.sample.find(rows, classes)
        if not found.all():
            raise UnknownRowError(int(places[found.argmin()]))

    def compact(self) -> "Accumulator":
        """Return the same accumulator, with its kept rows in one array of its own."""
        if not self.kept or (len(self.kept) == 1 and not self.borrowed):
            return self
        joined = self._joined()
        if len(self.kept) == 1:
            joined = joined._replace(rows=joined.rows.copy())
        return replace(self, kept=(joined,), borrowed=False)

    def _joined(self) -> KeptRows:
        """Return all kept rows."""
        if len(self.kept) == 1:
            return self.kept[0]
        # Batches may differ in type: the widest holds them all.
        return KeptRows(
            *(cast(Any, np.concatenate(parts)) for parts in zip(*self.kept, strict=True))
        )

    def folded(self, n_threads: int) -> "Accumulator":
        """Return the accumulator with all rows in the scatter.

        Raises
        ------
        ValueError
            If rows are not finite, or too large to be squared.
        """
        if not self.kept:
            return self
        rows, classes, places, units = self._joined()
        sample = None if self.sample is None else self.sample.add(rows, places, classes, units)
        first = self.n_samples - len(rows)
        scatter = Scatter.of(rows, classes, n_threads, self.max_bytes, first)
        numbers = np.arange(len(scatter.counts))
        return replace(
            self,
            sample=sample,
            kept=(),
            scatter=_merged(self.scatter, scatter, numbers, n_threads),
            borrowed=False,
        )

    def _keep(self, rows: KeptRows, n_threads: int) -> "Accumulator":
        result = replace(self, kept=(*self.kept, rows), n_samples=self.n_samples + len(rows.rows))
        most = most_kept(rows.rows.shape[1], self.max_bytes)
        return result.folded(n_threads) if result.n_kept > most else result


def _merged(
    scatter: Scatter | None, other: Scatter, numbers: NDArray[np.intp], n_threads: int
) -> Scatter:
    numbers = numbers[: len(other.counts)]
    if scatter is None:
        return other.renumbered(numbers, n_threads)
    return scatter.merged(other, numbers, n_threads)
