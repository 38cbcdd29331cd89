r"""A scatter matrix in bounded memory: Frequent Directions, whose error is known.

Of rows A (N, D) the sketch keeps rows B (at most 2 l of them) such that, in every direction,

    0 <= |A v|^2 - |B v|^2 <= error    for all unit vectors v.

``error``, the sum of what was taken away, is known exactly. It is at most |A - A_k|_F^2 / (l - k)
for every k < l, where A_k is the best approximation of rank k (Ghashami et al. 2016, theorem 1.1;
the algorithm is Liberty's of 2013). When the buffer of 2 l rows is full, the l-th squared singular
value is subtracted from all of them, and the rows that reach zero are dropped. Two sketches are
merged by adding the rows of one to the other; their errors add up. The sum of |a|^2 over all rows
is kept too, so that shares of the total variance are exact.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydfm import _core


@dataclass(frozen=True)
class FrequentDirections:
    """The sketch of some rows of D features.

    Attributes
    ----------
    size : int
        The l of the formula, at least one. Memory is that of 2 l rows in float64.
    rows : ndarray of shape (m, D), float64
        The rows B, m < 2 l. Never written to.
    energy : float
        Sum of the squares of all rows that were added.
    error : float
        Upper bound of what the sketch misses in any direction.
    """

    size: int
    rows: NDArray[np.float64]
    energy: float = 0.0
    error: float = 0.0

    @classmethod
    def empty(cls, size: int, n_features: int) -> "FrequentDirections":
        """Return the sketch of no rows."""
        return cls(size, np.zeros((0, n_features)))

    def add(self, rows: NDArray[np.float64], n_threads: int) -> "FrequentDirections":
        """Return the sketch with `rows` (N, D) added."""
        energy = self.energy + float(np.square(rows).sum())
        return self._with_rows(rows, energy, self.error, n_threads)

    def merge(self, other: "FrequentDirections", n_threads: int) -> "FrequentDirections":
        """Return the sketch of the rows of both."""
        energy, error = self.energy + other.energy, self.error + other.error
        return self._with_rows(other.rows, energy, error, n_threads)

    def _with_rows(
        self, rows: NDArray[np.float64], energy: float, error: float, n_threads: int
    ) -> "FrequentDirections":
        kept = self.rows
        for first in range(0, len(rows), self.size):
            kept = np.concatenate([kept, rows[first : first + self.size]])
            if len(kept) >= 2 * self.size:
                kept, lost = _shrunk(kept, self.size, n_threads)
                error += lost
        return FrequentDirections(self.size, kept, energy, error)


def _shrunk(
    rows: NDArray[np.float64], size: int, n_threads: int
) -> tuple[NDArray[np.float64], float]:
    """Return fewer than `size` rows in place of `rows`, and what they lose in any direction."""
    products = _core.product(rows, rows, transposed=True, n_threads=n_threads)
    values, vectors = _core.eigh(products, n_threads=n_threads)
    lost = max(float(values[size - 1]), 0.0)
    kept = values[: size - 1]
    kept = kept[kept > lost]
    scale = np.sqrt((kept - lost) / kept)
    scaled = scale[:, None] * vectors[: len(kept)]
    return _core.product(scaled, rows, n_threads=n_threads), lost
