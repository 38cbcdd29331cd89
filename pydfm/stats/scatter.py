r"""The scatter of rows about the means of their classes: exact, or sketched in bounded memory.

Of two sets of rows, which hold n and m of a class with means that differ by delta, the scatters add
up, with n m / (n + m) delta delta' for each class that both have (Chan, Golub and LeVeque 1979). So
rows come, in any number of batches, and go again. Where a limit of memory has no room for a D x D
matrix there is a sketch of known error (`pydfm.stats.sketch`), from which no rows can be taken.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.inputs.arrays import Rows, check_finite
from pydfm.features.inputs.labels import by_class
from pydfm.stats.sketch import FrequentDirections

_EPS = float(np.finfo(np.float64).eps)

# What is left of a scatter, once rows are taken away, must be above this share of what it was: the
# digits that are lost are those of the quotient.
_LEAST_LEFT = 1e-8
_NOT_FITTED = (
    "X holds rows that the model was not fitted on: without them a variance would be negative"
)

_Moments: TypeAlias = tuple[int, NDArray[np.float64], NDArray[np.float64]]
_Products: TypeAlias = NDArray[np.float64] | FrequentDirections


@dataclass(frozen=True)
class Scatter:
    """Rows of classes: how many, their means, and the products of their deviations from these.

    Attributes
    ----------
    counts : ndarray of shape (C,), intp
    means : ndarray of shape (C, D), float64
    products : ndarray of shape (D, D), float64, or FrequentDirections
        Never written to.
    """

    counts: NDArray[np.intp]
    means: NDArray[np.float64]
    products: _Products

    @classmethod
    def of(
        cls,
        rows: Rows,
        classes: NDArray[np.intp],
        n_threads: int,
        max_bytes: int | None = None,
        first: int = 0,
    ) -> "Scatter":
        """Take the scatter of `rows` (N, D), counted from `first`, of `classes` (N,).

        Raises
        ------
        ValueError
            If they are not finite, or too large to be squared.
        """
        counts = np.bincount(classes)
        exact = fits_memory(rows.shape[1], max_bytes)
        if exact and len(counts) == 1:
            _, mean, matrix = _core.moments(rows, n_threads=n_threads)
            check_sums(rows, mean, matrix, first)
            return cls(counts, mean[None], matrix)
        means = class_means(rows, classes)
        if not np.isfinite(means).all():
            check_finite(rows, first)
        deviations = rows - means[classes]
        if exact:
            matrix = _squares(deviations, n_threads)
            check_sums(rows, means, matrix, first)
            return cls(counts, means, matrix)
        assert max_bytes is not None
        # Its buffer holds twice as many rows, and once more when it shrinks.
        size = max(max_bytes // (4 * 8 * rows.shape[1]), 2)
        sketch = FrequentDirections.empty(size, rows.shape[1])
        return cls(counts, means, sketch.add(deviations, n_threads))

    @property
    def sketched(self) -> bool:
        """Whether the products are a sketch."""
        return isinstance(self.products, FrequentDirections)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory."""
        sums = self.products
        matrix = sums.rows if isinstance(sums, FrequentDirections) else sums
        return int(self.means.nbytes + matrix.nbytes)

    def merged(self, other: "Scatter", numbers: NDArray[np.intp], n_threads: int) -> "Scatter":
        """Return the scatter of all rows, of which class c of `other` is ``numbers[c]`` here.

        Several classes of `other` may become one.
        """
        n_classes = max(len(self.counts), int(numbers.max()) + 1)
        exact = isinstance(self.products, np.ndarray) and isinstance(other.products, np.ndarray)
        if exact and len(self.counts) == len(other.counts) == n_classes == 1:
            # In one pass over memory, which is what it costs.
            count, mean, matrix = _core.merge_moments(self._moments, other._moments)
            return Scatter(np.array([count]), mean[None], matrix)
        counts = np.zeros(n_classes, dtype=np.intp)
        means = np.zeros((n_classes, self.means.shape[1]))
        counts[: len(self.counts)], means[: len(self.counts)] = self.counts, self.means
        steps = []
        for c in np.flatnonzero(other.counts):
            own = numbers[c]
            n, m = int(counts[own]), int(other.counts[c])
            delta = other.means[c] - means[own]
            if n:
                steps.append(np.sqrt(n * m / (n + m)) * delta)
            means[own] += m / (n + m) * delta
            counts[own] += m
        return Scatter(counts, means, _sum(self.products, other.products, steps, n_threads))

    def renumbered(self, numbers: NDArray[np.intp], n_threads: int) -> "Scatter":
        """Return the scatter of the same rows, whose class c is now ``numbers[c]``."""
        if np.array_equal(numbers, np.arange(len(self.counts))):
            return self
        nothing: _Products
        if isinstance(self.products, FrequentDirections):
            nothing = FrequentDirections.empty(self.products.size, self.means.shape[1])
        else:
            nothing = np.zeros_like(self.products)
        return Scatter(self.counts[:0], self.means[:0], nothing).merged(self, numbers, n_threads)

    def without(self, rows: Rows, classes: NDArray[np.intp], n_threads: int) -> "Scatter":
        """Return the scatter without `rows` (N, D) of `classes` (N,).

        Raises
        ------
        ValueError
            If they are not all among its rows, as far as can be told; or if what is left is so
            small that its digits are lost; or in a sketch.
        """
        if isinstance(self.products, FrequentDirections):
            raise ValueError(
                "rows cannot be removed from a sketch; fit again, or with a larger max_memory"
            )
        gone = Scatter.of(rows, classes, n_threads)
        have = np.zeros(len(gone.counts), dtype=np.intp)
        have[: len(self.counts)] = self.counts[: len(have)]
        if (gone.counts > have).any():
            worst, of = int((gone.counts - have).argmax()), " of a class" * (len(self.counts) > 1)
            raise ValueError(
                f"X has more rows{of} than the model was fitted on: {gone.counts[worst]}, where "
                f"there were {have[worst]}"
            )
        rest = self._without(gone, n_threads)
        if rest.counts.sum() > 1:
            _check_rest(self._moments[2], rest._moments[2])
        return rest

    def _without(self, gone: "Scatter", n_threads: int) -> "Scatter":
        if len(self.counts) == 1:
            try:
                count, mean, matrix = _core.subtract_moments(self._moments, gone._moments)
            except ValueError:  # a variance would be negative
                raise ValueError(_NOT_FITTED) from None
            return Scatter(np.array([count]), mean[None], matrix)
        counts, means, steps = self.counts.copy(), self.means.copy(), []
        for c in np.flatnonzero(gone.counts):
            n, m = int(self.counts[c]), int(gone.counts[c])
            if n > m:
                means[c] += m / (n - m) * (means[c] - gone.means[c])
                steps.append(np.sqrt((n - m) * m / n) * (gone.means[c] - means[c]))
            counts[c] = n - m
        matrix = self._moments[2] - gone._moments[2]
        if steps:
            matrix -= _squares(np.stack(steps), n_threads)
        return Scatter(counts, means, matrix)

    @property
    def _moments(self) -> _Moments:
        """Of the first class, where the products are exact."""
        assert isinstance(self.products, np.ndarray)
        return int(self.counts[0]), self.means[0], self.products


def _sum(a: _Products, b: _Products, steps: list[NDArray[np.float64]], n_threads: int) -> _Products:
    """Return the sum of the products of two sets of rows and of `steps`."""
    if isinstance(a, FrequentDirections) and isinstance(b, FrequentDirections):
        sketch = a.merge(b, n_threads)
        return sketch.add(np.stack(steps), n_threads) if steps else sketch
    if isinstance(a, FrequentDirections) or isinstance(b, FrequentDirections):
        raise ValueError("one is a sketch and the other is not; give both one max_memory")
    total = a + b
    return total + _squares(np.stack(steps), n_threads) if steps else total


def class_means(rows: NDArray[Any], classes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the means (C, D) of `rows` (N, D), each mended by that of what is left.

    Of classes without rows they are zero.
    """
    means = np.zeros((int(classes.max()) + 1, rows.shape[1]))
    for c, places in by_class(classes):
        own = rows[places]
        mean = own.mean(axis=0, dtype=np.float64)
        means[c] = mean + (own - mean).mean(axis=0)
    return means


def scatter_bytes(n_features: int) -> int:
    """Return the bytes of a scatter, and of as much again while it is added up."""
    return 2 * 8 * n_features**2


def fits_memory(n_features: int, max_bytes: int | None) -> bool:
    """Whether a scatter does."""
    return max_bytes is None or scatter_bytes(n_features) <= max_bytes


def most_kept(n_features: int, max_bytes: int | None) -> int:
    """Return how many rows are kept, at most, before they are folded into a scatter."""
    if fits_memory(n_features, max_bytes):
        return n_features
    assert max_bytes is not None
    return min(n_features, max(max_bytes // (2 * 8 * n_features), 1))


def check_sums(
    rows: NDArray[Any], mean: NDArray[np.float64], products: NDArray[np.float64], first: int
) -> None:
    """Raise ValueError where `rows`, counted from `first`, gave means or products not finite."""
    if not np.isfinite(mean).all():
        check_finite(rows, first)
    if not np.isfinite(np.trace(products)):
        raise ValueError(
            f"X contains values up to {np.abs(rows).max():.1e}, whose squares are beyond float64; "
            "divide the features by a constant"
        )


def resolution_of(
    values: NDArray[np.float64], mean: NDArray[np.float64], n_samples: int, n_features: int
) -> float:
    """Eigenvalues of a scatter up to this are rounding.

    The mean is exact to eps |mean|: what is below that, or eps of the largest, is rounding.
    """
    resolution = max(n_samples, n_features) * _EPS * max(float(values[0]), 0.0)
    # Not numpy's norm: its BLAS would leave a thread spinning on a core that is needed next.
    return max(resolution, n_samples * (2 * _EPS) ** 2 * float(np.square(mean).sum()))


def _squares(rows: NDArray[np.float64], n_threads: int) -> NDArray[np.float64]:
    """Products X'X (D, D) of `rows` (N, D); not numpy's, whose threads would keep a core busy."""
    count, mean, scatter = _core.moments(rows, n_threads=n_threads)
    return scatter + count * np.outer(mean, mean)


def _check_rest(before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
    """Raise ValueError unless `after` can be a scatter, of which there are digits left."""
    least, most = np.diagonal(after).min(), np.trace(before)
    if least < -1e-12 * most:
        raise ValueError(_NOT_FITTED)
    if np.trace(after) < _LEAST_LEFT * most:
        raise ValueError(
            "the rows that remain are too small beside those of X to be exact; fit again on the "
            "remaining rows"
        )
