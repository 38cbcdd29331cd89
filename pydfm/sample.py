"""A random sample, of bounded size, of rows that come in any number of batches."""

import copy
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features import Rows

# Rows are taken to be the same if their distance is this part of their length.
_SAME = 1e-5


class RowSample:
    """Keeps up to `size` of the rows added: each has a number in [0, 1), and the lowest stay.

    The number depends on the seed and on the place of a row alone, so that the sample does not
    depend on batches, and samples of the same rows in other features hold the same places. Rows of
    a sample that is merged, where it has left out others, keep the numbers that they have there, so
    that each row of either stands for as many.

    Parameters
    ----------
    size : int
        Rows that are kept at most.
    seed : int
    max_bytes : int, optional
        Of these rows, of the type of the first ones; but `least` rows are kept whatever they take.
    """

    def __init__(
        self, size: int, seed: int = 0, max_bytes: int | None = None, least: int = 1
    ) -> None:
        self._size = size
        self._seed = seed
        self._max_bytes = max_bytes
        self._least = least
        # Arrays are shared with copies, and never written to: rows that come are put behind the
        # others, and those that went stay, up to this many, until what is kept is copied.
        self._most_gone = size // 2
        self._chunks: tuple[NDArray[Any], ...] = ()
        self._slots = np.zeros(0, dtype=np.intp)  # in all chunks, one behind the other
        self._places = np.zeros(0, dtype=np.intp)
        self._tags = np.zeros(0, dtype=np.intp)
        self._numbers = np.zeros(0)
        self._left_out = False  # some of the rows that came

    @property
    def n_rows(self) -> int:
        """Rows that are kept."""
        return len(self._slots)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory."""
        return sum(int(chunk.nbytes) for chunk in self._chunks)

    def copy(self) -> "RowSample":
        """Return a sample of the same rows."""
        return copy.copy(self)

    def emptied(self) -> "RowSample":
        """Return a sample of no rows, with the same limits."""
        return RowSample(self._size, self._seed, self._max_bytes, self._least)

    def add(
        self, rows: NDArray[Any], places: NDArray[np.intp], tags: NDArray[np.intp] | None = None
    ) -> None:
        """Add `rows` (N, ...) at `places` (N,), and a tag to go along with each."""
        if tags is None:
            tags = np.zeros(len(rows), dtype=np.intp)
        self._add(rows, places, tags, _numbers(places, self._seed))

    def _add(
        self,
        rows: NDArray[Any],
        places: NDArray[np.intp],
        tags: NDArray[np.intp],
        numbers: NDArray[np.float64],
    ) -> None:
        if not self._chunks and self._max_bytes is not None:
            fit = self._max_bytes // (rows.itemsize * max(math.prod(rows.shape[1:]), 1))
            self._size = max(min(self._size, fit), self._least)
            self._most_gone = max(min(self._size // 2, fit - self._size), 0)
        kept = self.n_rows
        stay = np.arange(kept + len(rows))
        if len(stay) > self._size:
            everyone = np.append(self._numbers, numbers)
            stay = np.sort(np.argpartition(everyone, self._size - 1)[: self._size])
            self._left_out = True
        old, new = np.split(stay, [np.searchsorted(stay, kept)])
        new -= kept
        if len(new):
            end = sum(map(len, self._chunks))
            self._chunks += (rows[new],)
            self._slots = np.append(self._slots[old], np.arange(end, end + len(new)))
            self._places = np.append(self._places[old], places[new])
            self._tags = np.append(self._tags[old], tags[new])
            self._numbers = np.append(self._numbers[old], numbers[new])
            if end + len(new) - len(stay) > self._most_gone:
                self._chunks = (self._rows(self._slots),)
                self._slots = np.arange(len(stay))

    def take(self) -> tuple[NDArray[np.intp], Rows, NDArray[np.intp]]:
        """Return places (n,), ascending, rows (n, ...) and tags (n,)."""
        order = np.argsort(self._places)
        return self._places[order], self._rows(self._slots[order]), self._tags[order]

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
        self, other: "RowSample", first: int, numbers: NDArray[np.intp] | None = None
    ) -> None:
        """Add the rows of `other` behind place `first`, their tags t replaced by ``numbers[t]``."""
        if other.n_rows:
            places, rows, tags = other.take()
            drawn = other._ordered_numbers()
            if not other._left_out:
                drawn = _numbers(first + places, self._seed)
            self._left_out |= other._left_out
            self._add(rows, first + places, tags if numbers is None else numbers[tags], drawn)

    def find(self, rows: NDArray[Any], tags: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Tell which of `rows` (N, D), with `tags` (N,), are in the sample."""
        found = np.zeros(len(rows), dtype=bool)
        if self.n_rows:
            _, kept, kept_tags = self.take()
            _, missing = find_rows(kept, np.asarray(rows, dtype=np.float64), kept_tags, tags)
            found[:] = True
            found[missing] = False
        return found

    def without(
        self, rows: NDArray[np.float64], tags: NDArray[np.intp] | None = None
    ) -> "RowSample":
        """Return a sample without those of `rows` (N, D), with `tags` (N,), that are in it."""
        if self.n_rows == 0:
            return self
        places, kept, kept_tags = self.take()
        gone, _ = find_rows(kept, rows, kept_tags, tags)
        stay = np.delete(np.arange(len(places)), gone)
        return self._restricted(stay)

    def without_tag(self, tag: int) -> "RowSample":
        """Return a sample without the rows that have this tag."""
        return self if self.n_rows == 0 else self._restricted(np.flatnonzero(self.take()[2] != tag))

    def _restricted(self, stay: NDArray[np.intp]) -> "RowSample":
        places, kept, kept_tags = self.take()
        other = self.emptied()
        other._left_out = self._left_out
        if len(stay):
            other._add(kept[stay], places[stay], kept_tags[stay], self._ordered_numbers()[stay])
        return other

    def _ordered_numbers(self) -> NDArray[np.float64]:
        return self._numbers[np.argsort(self._places)]


def find_rows(
    kept: NDArray[Any],
    rows: NDArray[np.float64],
    kept_tags: NDArray[np.intp] | None = None,
    tags: NDArray[np.intp] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Find `rows` (N, D) among those `kept`, with the same tags, each of which is used once.

    Features of a picture may differ in their last bits with the batch it came in, so that rows are
    the same within 1e-5 of their length. Rows that far apart at most are no further apart along any
    direction of unit length: those that are near in one are compared.

    Returns
    -------
    gone : ndarray
        Places in `kept` of those that are there.
    missing : ndarray
        Places in `rows` of those that are not.
    """
    direction = np.random.default_rng(0).normal(size=kept.shape[1])
    direction /= np.sqrt(np.square(direction).sum())
    along = kept @ direction
    order = np.argsort(along)
    lengths = np.sqrt(np.square(rows).sum(axis=1))
    reach = (_SAME + 1e-9) * lengths  # and what is rounding
    places = rows @ direction
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
            if far[nearest] <= (_SAME * lengths[i]) ** 2:
                found[i] = near[nearest]
                free[near[nearest]] = False
    return found[found >= 0], np.flatnonzero(found < 0)


def _numbers(places: NDArray[np.intp], seed: int) -> NDArray[np.float64]:
    """Numbers (N,) in [0, 1) that look drawn at random, each its place's alone (splitmix64)."""
    steps = places.astype(np.uint64) + np.uint64(1) + (np.uint64(seed % 2**31) << np.uint64(32))
    z = steps * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) * 2.0**-64)
