"""A random sample, of bounded size, of rows that come in any number of batches."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features import Rows


class RowSample:
    """Keeps up to `size` of the rows added: each draws a number, and the lowest stay.

    The numbers depend on the seed and on the place of a row alone, so that the sample does not
    depend on batches, and samples of the same rows in other features hold the same places.

    Parameters
    ----------
    size : int
        Rows that are kept at most.
    seed : int
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.count = 0
        self._rng = np.random.default_rng(seed)
        self._n_kept = 0
        self._numbers = np.zeros(0)
        self._places = np.zeros(0, dtype=np.intp)
        self._tags = np.zeros(0, dtype=np.intp)
        self._rows: Any = None

    def add(self, rows: NDArray[Any], tags: NDArray[np.intp] | None = None) -> None:
        """Add `rows` (N, ...), and a number to go along with each, in `tags` (N,)."""
        numbers = self._rng.random(len(rows))
        first, self.count = self.count, self.count + len(rows)
        kept = self._n_kept
        everyone = np.append(self._numbers[:kept], numbers)
        if len(everyone) > self.size:
            stay = np.zeros(len(everyone), dtype=bool)
            stay[np.argpartition(everyone, self.size - 1)[: self.size]] = True
        else:
            stay = np.ones(len(everyone), dtype=bool)
        new = np.flatnonzero(stay[kept:])
        # Those that come take the slots of those that go; the rest of them are added at the end.
        slots = np.flatnonzero(~stay[:kept])
        slots = np.append(slots, np.arange(kept, kept + len(new) - len(slots)))
        self._reserve(kept + len(new), rows)
        self._n_kept = max(kept, int(slots[-1]) + 1) if len(slots) else kept
        self._numbers[slots] = numbers[new]
        self._places[slots] = first + new
        self._tags[slots] = 0 if tags is None else tags[new]
        self._rows[slots] = rows[new]

    def take(self) -> tuple[NDArray[np.intp], Rows, NDArray[np.intp]]:
        """Return places (n,), ascending, rows (n, ...) and tags (n,)."""
        order = np.argsort(self._places[: self._n_kept])
        return self._places[order], self._rows[order], self._tags[order]

    def _reserve(self, count: int, rows: NDArray[Any]) -> None:
        """Make room for `count` rows, at most `size`, of the type that holds all of them."""
        dtype = rows.dtype if self._rows is None else np.result_type(self._rows, rows)
        room = 0 if self._rows is None else len(self._rows)
        count = min(count, self.size)
        if count <= room and dtype == self._rows.dtype:
            return
        room = min(max(count, 2 * room), self.size) if count > room else room
        larger = np.empty((room, *rows.shape[1:]), dtype=dtype)
        if self._rows is not None:
            larger[: self._n_kept] = self._rows[: self._n_kept]
        self._rows = larger
        self._numbers = np.append(self._numbers, np.zeros(room - len(self._numbers)))
        self._places = np.append(self._places, np.zeros(room - len(self._places), dtype=np.intp))
        self._tags = np.append(self._tags, np.zeros(room - len(self._tags), dtype=np.intp))
