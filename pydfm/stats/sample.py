"""A random sample, of bounded size, of rows that come in any number of batches."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pydfm.features.inputs.arrays import Rows

Renumber = Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.intp]]
"""Maps the tags (n,) and units (n,) of rows to the units that they become in another sample."""

# Two rows count as the same if their distance is at most this share of their length, and of that
# to the mean.
_SAME = 1e-5
_SAME_AWAY = 1e-3


class Taken(NamedTuple):
    """The rows of a sample, in the order of their places.

    Attributes
    ----------
    places : ndarray of shape (n,)
    rows : ndarray of shape (n, ...)
    tags : ndarray of shape (n,)
    units : ndarray of shape (n,)
    """

    places: NDArray[np.intp]
    rows: Rows
    tags: NDArray[np.intp]
    units: NDArray[np.intp]

    def pick(self, which: Any) -> "Taken":
        """Return some of the rows."""
        return Taken(self.places[which], self.rows[which], self.tags[which], self.units[which])


class StoredSample(NamedTuple):
    """What a sample holds, beside its limits.

    Attributes
    ----------
    rows : ndarray of shape (n, ...) or None
        None where there are none.
    places, tags, units : ndarray of shape (n,)
    numbers : ndarray of shape (n,)
        In [0, 1]; the lowest stay.
    size : int
        Largest number of rows, of the type of these.
    dropped : bool
        Whether some rows that came are not kept.
    """

    rows: Rows | None
    places: NDArray[np.intp]
    tags: NDArray[np.intp]
    units: NDArray[np.intp]
    numbers: NDArray[np.float64]
    size: int
    dropped: bool


class RowSample:
    """An immutable random sample of at most `size` of the rows that were added.

    Each row has a number in [0, 1), and the rows with the lowest numbers stay. The number depends
    only on the seed, on the row's unit (the rows that belong together) and on its place: so units
    stay or go as a whole, but for the last, the sample does not depend on batches, and samples of
    the same rows in other features hold the same places. Where a merged sample has dropped rows,
    its rows keep the numbers that they have there, so that each row of either sample stands for as
    many.

    Parameters
    ----------
    size : int
        Largest number of rows.
    seed : int
    max_bytes : int, optional
        Limit of memory, of rows of the type of the first ones; but `least` rows are kept in any
        case.
    least : int
    """

    def __init__(
        self, size: int, seed: int = 0, max_bytes: int | None = None, least: int = 1
    ) -> None:
        self._limits = (size, seed, max_bytes, least)
        self._size = size
        self._seed = seed
        self._max_bytes = max_bytes
        self._least = least
        # Arrays are shared between samples and never written to. New rows are put behind the
        # others; dropped rows stay, up to this many, until the rows that are kept are copied.
        self._most_gone = size // 2
        self._chunks: tuple[NDArray[Any], ...] = ()
        self._slots = np.zeros(0, dtype=np.intp)  # in all chunks, one behind the other
        self._places = np.zeros(0, dtype=np.intp)
        self._tags = np.zeros(0, dtype=np.intp)
        self._units = np.zeros(0, dtype=np.intp)
        self._numbers = np.zeros(0)
        self._dropped = False  # whether some rows that came are not kept

    @property
    def n_rows(self) -> int:
        """Number of rows in the sample."""
        return len(self._slots)

    @property
    def complete(self) -> bool:
        """Whether all rows that were added and not removed are in the sample."""
        return not self._dropped

    @property
    def n_bytes(self) -> int:
        """Bytes of memory."""
        return sum(int(chunk.nbytes) for chunk in self._chunks)

    def emptied(self) -> "RowSample":
        """Return a sample of no rows, with the same limits."""
        return RowSample(*self._limits)

    def stored(self) -> StoredSample:
        """Return what the sample holds, in the order in which it does."""
        rows = self._rows(self._slots) if self.n_rows else None
        own = (self._places, self._tags, self._units, self._numbers)
        return StoredSample(rows, *own, self._size, self._dropped)

    def restored(self, stored: StoredSample) -> "RowSample":
        """Return the sample with these limits that `stored` came from.

        Raises
        ------
        ValueError
            If a sample with these limits cannot hold as many rows.
        """
        other = self.emptied()
        other._dropped = stored.dropped
        if stored.rows is not None:
            fits = other._limited(stored.rows)
            if not len(stored.rows) <= stored.size <= fits._size:
                raise ValueError(
                    f"a sample of at most {fits._size} rows has {len(stored.rows)} of {stored.size}"
                )
            other = fits
            other._size = stored.size
            other._chunks = (stored.rows,)
            other._slots = np.arange(len(stored.rows))
            other._places, other._tags = stored.places, stored.tags
            other._units, other._numbers = stored.units, stored.numbers
        return other

    def _limited(self, rows: NDArray[Any]) -> "RowSample":
        """Return a copy with the limits of rows of this type, where they are the first."""
        other = copy.copy(self)
        if not other._chunks and other._max_bytes is not None:
            fit = other._max_bytes // (rows.itemsize * max(math.prod(rows.shape[1:]), 1))
            other._size = max(min(other._size, fit), other._least)
            other._most_gone = max(min(other._size // 2, fit - other._size), 0)
        return other

    def add(
        self,
        rows: NDArray[Any],
        places: NDArray[np.intp],
        tags: NDArray[np.intp] | None = None,
        units: NDArray[np.intp] | None = None,
    ) -> "RowSample":
        """Return the sample with rows added.

        Parameters
        ----------
        rows : ndarray of shape (N, ...)
        places : ndarray of shape (N,)
            Where each row stands among all that come.
        tags : ndarray of shape (N,), optional
            Default 0.
        units : ndarray of shape (N,), optional
            Equal for rows that belong together; default the places.
        """
        if tags is None:
            tags = np.zeros(len(rows), dtype=np.intp)
        units = places if units is None else units
        taken = Taken(places, rows, tags, units)
        return self._with_rows(taken, _numbers(units, places, self._seed))

    def _with_rows(self, new_rows: Taken, numbers: NDArray[np.float64]) -> "RowSample":
        places, rows, tags, units = new_rows
        other = self._limited(rows)
        kept = self.n_rows
        stay = np.arange(kept + len(rows))
        if len(stay) > other._size:
            everyone = np.append(self._numbers, numbers)
            stay = np.sort(np.argpartition(everyone, other._size - 1)[: other._size])
            other._dropped = True
        old, new = np.split(stay, [np.searchsorted(stay, kept)])
        new -= kept
        if len(new):
            end = sum(map(len, self._chunks))
            other._chunks = (*self._chunks, rows[new])
            other._slots = np.append(self._slots[old], np.arange(end, end + len(new)))
            other._places = np.append(self._places[old], places[new])
            other._tags = np.append(self._tags[old], tags[new])
            other._units = np.append(self._units[old], units[new])
            other._numbers = np.append(self._numbers[old], numbers[new])
            if end + len(new) - len(stay) > other._most_gone:
                other._chunks = (other._rows(other._slots),)
                other._slots = np.arange(len(stay))
        return other

    def take(self) -> Taken:
        """Return the rows, by their places; those of one place in the order they came in."""
        order = np.argsort(self._places, kind="stable")
        rows = self._rows(self._slots[order])
        return Taken(self._places[order], rows, self._tags[order], self._units[order])

    def _rows(self, slots: NDArray[np.intp]) -> NDArray[Any]:
        rows = np.empty(
            (len(slots), *self._chunks[0].shape[1:]), dtype=np.result_type(*self._chunks)
        )
        order = np.argsort(slots)
        ends = np.cumsum([len(chunk) for chunk in self._chunks])
        parts = np.split(order, np.searchsorted(slots[order], ends[:-1]))
        for chunk, end, part in zip(self._chunks, ends, parts, strict=True):
            rows[part] = chunk[slots[part] - (end - len(chunk))]
        return rows

    def merge(
        self,
        other: "RowSample",
        first: int = 0,
        numbers: NDArray[np.intp] | None = None,
        units: Renumber | None = None,
    ) -> "RowSample":
        """Return the sample of both.

        Parameters
        ----------
        other : RowSample
        first : int
            From which the places of `other` are counted.
        numbers : ndarray of shape (T,), optional
            What the tags 0, ..., T - 1 of `other` become.
        units : callable, optional
            What the units of `other` become.
        """
        if other.n_rows == 0:
            return self
        taken = other.take()
        own = taken.units if units is None else units(taken.tags, taken.units)
        places, tags = first + taken.places, taken.tags
        drawn = other._ordered_numbers()
        if not other._dropped:
            drawn = _numbers(own, places, self._seed)
        tags = tags if numbers is None else numbers[tags]
        merged = self._with_rows(Taken(places, taken.rows, tags, own), drawn)
        merged._dropped |= other._dropped
        return merged

    def find(self, rows: NDArray[Any], tags: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Return which of `rows` (N, D), with `tags` (N,), are in the sample."""
        found = np.zeros(len(rows), dtype=bool)
        if self.n_rows:
            _, kept, kept_tags, _ = self.take()
            _, missing = find_rows(kept, np.asarray(rows, dtype=np.float64), kept_tags, tags)
            found[:] = True
            found[missing] = False
        return found

    def remove(
        self, rows: NDArray[np.float64], tags: NDArray[np.intp] | None = None
    ) -> "RowSample":
        """Return the sample without those of `rows` (N, D), with `tags` (N,), that are in it."""
        if self.n_rows == 0:
            return self
        _, kept, kept_tags, _ = self.take()
        gone, _ = find_rows(kept, rows, kept_tags, tags)
        return self._restricted(np.delete(np.arange(len(kept)), gone))

    def remove_tag(self, tag: int) -> "RowSample":
        """Return the sample without the rows that have this tag."""
        return (
            self if self.n_rows == 0 else self._restricted(np.flatnonzero(self.take().tags != tag))
        )

    def _restricted(self, stay: NDArray[np.intp]) -> "RowSample":
        other = self.emptied()
        if len(stay):
            taken = self.take().pick(stay)
            other = other._with_rows(taken, self._ordered_numbers()[stay])
        other._dropped = self._dropped
        return other

    def _ordered_numbers(self) -> NDArray[np.float64]:
        return self._numbers[np.argsort(self._places, kind="stable")]


def find_rows(
    kept: NDArray[Any],
    rows: NDArray[np.float64],
    kept_tags: NDArray[np.intp] | None = None,
    tags: NDArray[np.intp] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find `rows` (N, D) among those `kept`, with the same tags; each kept row is used once.

    The features of an image may differ in their last bits with the batch it came in, so that two
    rows count as the same if their distance is at most 1e-5 of their length, and at most 1e-3 of
    that to the mean of `kept`: a large offset, which all rows share, says nothing. Such rows are as
    near along any direction of unit length: only rows that are near along one direction are
    compared.

    Returns
    -------
    gone : ndarray
        Places in `kept` of the rows that were found.
    missing : ndarray
        Places in `rows` of the rows that were not found.
    """
    if len(kept) == 0:
        return np.zeros(0, dtype=np.intp), np.arange(len(rows))
    direction = np.random.default_rng(0).normal(size=kept.shape[1])
    direction /= np.sqrt(np.square(direction).sum())
    along = np.einsum("ij,j->i", kept, direction)  # in one thread
    order = np.argsort(along)
    lengths = np.sqrt(np.square(rows).sum(axis=1))
    away = np.sqrt(np.square(rows - kept.mean(axis=0, dtype=np.float64)).sum(axis=1))
    most = np.minimum(_SAME * lengths, _SAME_AWAY * away)
    reach = most + 1e-9 * lengths  # and what is rounding
    places = np.einsum("ij,j->i", rows, direction)
    begin = np.searchsorted(along[order], places - reach)
    end = np.searchsorted(along[order], places + reach, side="right")
    free = np.ones(len(kept), dtype=bool)
    found = np.full(len(rows), -1)
    for i in np.flatnonzero(begin < end):
        near = order[begin[i] : end[i]]
        near = near[free[near]]
        if tags is not None and kept_tags is not None:
            near = near[kept_tags[near] == tags[i]]
        if len(near):
            far = np.square(kept[near] - rows[i]).sum(axis=1)
            nearest = far.argmin()
            if far[nearest] <= most[i] ** 2:
                found[i] = near[nearest]
                free[near[nearest]] = False
    return found[found >= 0], np.flatnonzero(found < 0)


def _numbers(units: NDArray[np.intp], places: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
    """Return pseudo-random numbers (N,) in [0, 1): those of a unit are next to each other."""
    share = 2.0**-32
    return np.floor(hashed(units, seed) / share) * share + hashed(places, seed) * share * (
        1 - share
    )


def hashed(places: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
    """Return pseudo-random numbers (N,) in [0, 1), each a function of its place (splitmix64)."""
    steps = places.astype(np.uint64) + np.uint64(1) + (np.uint64(seed % 2**31) << np.uint64(32))
    z = steps * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) * 2.0**-64)
