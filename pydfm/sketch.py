r"""A scatter matrix in bounded memory: Frequent Directions, with its error known.

Of rows A (N, D) the sketch keeps rows B (at most 2 l of them) so that, in every direction,

    0 <= |A v|^2 - |B v|^2 <= error    for all unit vectors v,

where `error`, the sum of what was taken away, is known exactly, and at most |A - A_k|_F^2 / (l - k)
for every k < l, A_k being the best approximation of rank k (Ghashami et al. 2016, theorem 1.1; the
algorithm is Liberty's of 2013). When the buffer of 2 l rows is full, its squared singular values
lose the l-th of them, and the rows whose turn to zero go. Sketches merge by taking up each other's
rows; errors add up. The sum of |a|^2 over all rows is kept too, so that shares of the total
variance are exact.
"""

import numpy as np
from numpy.typing import NDArray

from pydfm import _core


class FrequentDirections:
    """The sketch of some rows of D features.

    Parameters
    ----------
    size : int
        l, at least one; memory is that of 2 l rows in float64.
    n_features : int
        D.

    Attributes
    ----------
    energy : float
        Sum of the squares of all rows.
    error : float
        What the sketch misses in any direction, at most.
    """

    def __init__(self, size: int, n_features: int, n_threads: int) -> None:
        self.size = size
        self.energy = 0.0
        self.error = 0.0
        self._n_threads = n_threads
        self._rows = np.zeros((0, n_features))

    @property
    def rows(self) -> NDArray[np.float64]:
        """B."""
        return self._rows

    def copy(self) -> "FrequentDirections":
        """Return a sketch of the same rows."""
        other = FrequentDirections(self.size, self._rows.shape[1], self._n_threads)
        other.energy, other.error, other._rows = self.energy, self.error, self._rows
        return other

    def add(self, rows: NDArray[np.float64]) -> None:
        """Add `rows` (N, D)."""
        self.energy += float(np.square(rows).sum())
        self._take_up(rows)

    def merge(self, other: "FrequentDirections") -> None:
        """Add the rows of `other`."""
        self.energy += other.energy
        self.error += other.error
        self._take_up(other._rows)

    def _take_up(self, rows: NDArray[np.float64]) -> None:
        for first in range(0, len(rows), self.size):
            self._rows = np.concatenate([self._rows, rows[first : first + self.size]])
            if len(self._rows) >= 2 * self.size:
                self._shrink()

    def _shrink(self) -> None:
        values, vectors = _core.eigh(self._rows @ self._rows.T, n_threads=self._n_threads)
        lost = max(float(values[self.size - 1]), 0.0)
        self.error += lost
        kept = values[: self.size - 1]
        kept = kept[kept > lost]
        scale = np.sqrt((kept - lost) / kept)
        self._rows = (scale[:, None] * vectors[: len(kept)]) @ self._rows
