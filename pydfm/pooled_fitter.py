"""Rows of several classes in, and one subspace of their deviations from class means out."""

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows, blocks, check_finite
from pydfm.labels import by_class
from pydfm.row_keeping import (
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
from pydfm.subspace_fitter import SubspaceFitter


class PooledFitter:
    """Takes rows of several classes and gives one subspace of their deviations from class means.

    As `SubspaceFitter`, with the rows' deviations from the means of their classes in place of those
    from one mean. Memory: that of 2 D rows in float64, and the means.
    """

    def __init__(
        self, n_threads: int, sample: RowSample | None = None, max_bytes: int | None = None
    ) -> None:
        self.n_samples = 0
        self._n_threads = n_threads
        self._sample = sample
        self._max_bytes = max_bytes
        # Rows, their classes and their places.
        self._kept: list[tuple[Rows, NDArray[np.intp], NDArray[np.intp]]] = []
        self._n_kept = 0
        self._n_seen = 0  # with those that were taken away since
        # Of the rows that are folded.
        self._counts = np.zeros(0)
        self._means = np.zeros((0, 0))
        self._scatter: NDArray[np.float64] | None = None
        self._sketch: FrequentDirections | None = None
        self._gram: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]] | None = None
        self._n_components = 0  # of the last fit

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, moments and sample take."""
        arrays: list[NDArray[Any]] = [self._means]
        arrays += [array for part in self._kept for array in part]
        arrays += self._gram or ()
        arrays += [] if self._scatter is None else [self._scatter]
        arrays += [] if self._sketch is None else [self._sketch.rows]
        sampled = 0 if self._sample is None else self._sample.n_bytes
        return sum(int(array.nbytes) for array in arrays) + sampled

    def copy(self) -> "PooledFitter":
        """Return a fitter of the same rows."""
        other = copy.copy(self)
        other._kept = list(self._kept)
        if self._sample is not None:
            other._sample = self._sample.copy()
        if self._sketch is not None:
            other._sketch = self._sketch.copy()
        return other

    def add(self, features: NDArray[Any], classes: NDArray[np.intp], *, owned: bool = True) -> None:
        """Add `features` (N, D) of `classes` (N,); see `SubspaceFitter.add`."""
        for first, rows in blocks(features):
            if not np.isfinite(rows).all():
                check_finite(rows, self.n_samples)
            places = np.arange(self._n_seen, self._n_seen + len(rows))
            self._n_seen += len(rows)
            self._keep(rows, classes[first : first + len(rows)], places)
        if not owned and self._kept:
            rows, theirs, places = self._kept[-1]
            self._kept[-1] = rows.copy(), theirs, places

    def own(self) -> None:
        """Copy rows that are kept where they may be the caller's, who may change them."""
        if self._kept:
            rows, classes, places = self._joined()
            rows = rows.copy() if len(self._kept) == 1 else rows
            self._kept = [(rows, classes.copy(), places)]

    def merge(self, other: "PooledFitter", numbers: NDArray[np.intp]) -> None:
        """Add all rows that were added to `other`, whose class c is ``numbers[c]`` here."""
        if len(other._counts):
            if self._kept:
                self._fold()
            if self._sample is not None and other._sample is not None:
                self._sample.merge(other._sample, self._n_seen, numbers)
            n = max(len(self._counts), int(numbers.max()) + 1)
            counts, means = _padded(self._counts, self._means, n, other._means.shape[1])
            theirs, their_means = np.zeros(n), means.copy()
            theirs[numbers[: len(other._counts)]] = other._counts
            their_means[numbers[: len(other._counts)]] = other._means
            shares = theirs / np.maximum(counts + theirs, 1)
            delta = np.where((theirs > 0)[:, None], their_means - means, 0.0)
            steps = np.sqrt(counts * shares)[:, None] * delta
            self._add(other._scatter, other._sketch, steps[counts * theirs > 0])
            self._counts, self._means = counts + theirs, means + shares[:, None] * delta
        self.n_samples += other.n_samples - other._n_kept
        first = self._n_seen
        for rows, classes, places in other._kept:
            self._keep(rows, numbers[classes], first + places)
        self._n_seen = first + other._n_seen

    def forget(self, features: NDArray[Any], classes: NDArray[np.intp]) -> None:
        """Take rows `features` (N, D) of `classes` (N,) away again; see `SubspaceFitter.forget`."""
        rows = np.ascontiguousarray(features, dtype=np.float64)
        check_finite(rows)
        if self._sketch is not None:
            raise ValueError(
                "rows cannot be taken away from a sketch; fit again, or with a larger max_memory"
            )
        kept: Rows = rows[:0]
        kept_classes, places = classes[:0], classes[:0]
        if self._kept:
            kept, kept_classes, places = self._joined()
        gone, missing = find_rows(kept, rows, kept_classes, classes)
        if len(missing):
            if self._scatter is None:
                raise ValueError(f"row {missing[0]} of X is none of those the model was fitted on")
            self._subtract(rows[missing], classes[missing])
        stay = np.delete(np.arange(len(kept)), gone)
        self._kept = []
        if len(stay):
            self._kept = [(kept[stay], kept_classes[stay], places[stay])]
        self._n_kept = len(stay)
        self.n_samples -= len(rows)
        if self._counts.sum() == 0:
            self._scatter, self._counts = None, np.zeros(0)

    def counts(self) -> NDArray[np.intp]:
        """Return the number of rows (C,) of each class."""
        kept = [classes for _, classes, _ in self._kept]
        n = max([len(self._counts), *(int(c.max()) + 1 for c in kept)])
        counts = np.zeros(n, dtype=np.intp)
        counts[: len(self._counts)] = self._counts
        for classes in kept:
            counts += np.bincount(classes, minlength=n)
        return counts

    def fit(
        self, n_components: float | int | None, regularization: str | float | None = None
    ) -> list[Subspace]:
        """Return the subspaces of the classes: one set of components, with each class's mean.

        Of a class without rows there is one with a count of zero.
        """
        deviations: Rows | None = None
        energy, error = None, 0.0
        if self._kept and len(self._counts):
            self._fold()
        if self._kept:
            self._kept = [self._joined()]
            rows, classes, _ = self._kept[0]
            counts, means, deviations = _deviations(rows, classes, np.zeros(0), np.zeros((0, 0)))
            products = _core.gram(deviations, n_threads=self._n_threads)[1]
            self._gram = products, means, classes
        else:
            counts, means = self._counts, self._means
            if self._sketch is not None:
                deviations, energy = self._sketch.rows, self._sketch.energy
                error, products = self._sketch.error, deviations @ deviations.T
            else:
                assert self._scatter is not None
                products = self._scatter
        check_sums(means, means, products, 0)
        shared = fit_subspace(
            np.zeros(means.shape[1]),
            products,
            deviations,
            n_samples=self.n_samples,
            n_classes=int(np.count_nonzero(counts)),
            n_components=n_components,
            regularization=regularization,
            n_threads=self._n_threads,
            energy=energy,
            error=error,
        )
        self._n_components = len(shared.components)
        return [
            replace(shared, mean=mean.copy(), n_samples=int(count))
            for count, mean in zip(counts, means, strict=True)
        ]

    def fit_together(
        self, n_components: float | int | None, regularization: str | float | None = None
    ) -> Subspace:
        """Return the subspace of all rows, whatever their classes."""
        together = SubspaceFitter(self._n_threads, max_bytes=self._max_bytes)
        if len(self._counts):
            self._fold()
            mean = self._counts @ self._means / self.n_samples
            between = (self._means - mean) * np.sqrt(self._counts)[:, None]
            sketch, scatter = None, np.zeros((0, 0))
            if self._sketch is not None:
                sketch = self._sketch.copy()
                sketch.add(between)
            elif self._scatter is not None:
                scatter = self._scatter + between.T @ between
            together.add_moments((self.n_samples, mean, scatter), sketch)
        for rows, _, _ in self._kept:
            together.add(rows)
        return together.fit(n_components, regularization)

    def left_out(
        self, reduce: Reduction | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float32] | None]:
        """Return places, classes, scores and so on; see `SubspaceFitter.left_out`."""
        rows: Rows | None = None
        kept: Rows | None = None
        if len(self._counts) == 0:
            assert self._gram is not None
            products, means, classes = self._gram
            everyone, _, places = self._joined()
            kept = everyone - means[classes] if reduce is not None else None
        else:
            assert self._sample is not None
            assert self._scatter is not None
            products, means = self._scatter, self._means
            places, sample, classes = self._sample.take()
            rows = sample - means[classes]
        sizes = self.counts()
        scores, reduced = left_out(
            products,
            rows,
            np.zeros(means.shape[1]),
            class_sizes=sizes[classes],
            n_samples=self.n_samples,
            n_classes=int(np.count_nonzero(sizes)),
            n_components=self._n_components,
            n_threads=self._n_threads,
            reduce=reduce,
            kept=kept,
        )
        return places, classes, scores, reduced

    def _keep(self, rows: Rows, classes: NDArray[np.intp], places: NDArray[np.intp]) -> None:
        self._kept.append((rows, classes, places))
        self._n_kept += len(rows)
        self.n_samples += len(rows)
        if self._n_kept > most_kept(rows.shape[1], self._max_bytes):
            self._fold()

    def _joined(self) -> tuple[Rows, NDArray[np.intp], NDArray[np.intp]]:
        if len(self._kept) == 1:
            return self._kept[0]
        rows, classes, places = zip(*self._kept, strict=True)
        return cast(Rows, np.concatenate(rows)), np.concatenate(classes), np.concatenate(places)

    def _fold(self) -> None:
        if not self._kept:
            return
        rows, classes, places = self._joined()
        self._kept, self._n_kept = [], 0
        if self._sample is not None:
            self._sample.add(rows, places, classes)
        self._counts, self._means, deviations = _deviations(
            rows, classes, self._counts, self._means
        )
        n_features = rows.shape[1]
        if fits_memory(n_features, self._max_bytes):
            count, mean, scatter = _core.moments(deviations, n_threads=self._n_threads)
            check_sums(deviations, mean, scatter, 0)
            self._add(scatter + count * np.outer(mean, mean), None, deviations[:0])
            return
        size = sketch_size(n_features, self._max_bytes)
        sketch = FrequentDirections(size, n_features, self._n_threads)
        sketch.add(deviations)
        self._add(None, sketch, deviations[:0])

    def _add(
        self,
        scatter: NDArray[np.float64] | None,
        sketch: FrequentDirections | None,
        steps: NDArray[np.float64],
    ) -> None:
        """Add a scatter or a sketch, and the products of `steps` (n, D)."""
        if sketch is not None and self._scatter is None:
            if self._sketch is None:
                self._sketch = sketch.copy()
            else:
                self._sketch.merge(sketch)
            self._sketch.add(steps)
        elif scatter is not None and self._sketch is None:
            total = scatter if self._scatter is None else self._scatter + scatter
            self._scatter = total + steps.T @ steps if len(steps) else total
        else:
            raise ValueError("one is a sketch and the other is not; give both one max_memory")

    def _subtract(self, rows: NDArray[np.float64], classes: NDArray[np.intp]) -> None:
        """Take rows away from the scatter: what `_deviations` gives, read backwards."""
        assert self._scatter is not None
        n = int(classes.max()) + 1
        if n > len(self._counts) or (np.bincount(classes, minlength=n) > self._counts[:n]).any():
            raise ValueError("X has more rows of a class than the model was fitted on")
        counts, means = self._counts.copy(), self._means.copy()
        deviations = rows.copy()
        steps = []
        for c, places in by_class(classes):
            b, own = len(places), rows[places]
            mean = exact_mean(own)
            deviations[places] = own - mean
            left = counts[c] - b
            if left > 0:
                rest = means[c] + b / left * (means[c] - mean)
                steps.append(np.sqrt(left * b / counts[c]) * (mean - rest))
                means[c] = rest
            counts[c] = left
        count, mean, scatter = _core.moments(deviations, n_threads=self._n_threads)
        scatter = scatter + count * np.outer(mean, mean)
        if steps:
            scatter = scatter + np.stack(steps).T @ np.stack(steps)
        rest_scatter = self._scatter - scatter
        check_rest(self._scatter, rest_scatter)
        self._scatter, self._counts, self._means = rest_scatter, counts, means
        if self._sample is not None:
            self._sample = self._sample.without(rows, classes)


def _deviations(
    rows: NDArray[Any],
    classes: NDArray[np.intp],
    counts: NDArray[np.float64],
    means: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return counts and means with `rows` added, and rows whose products the scatter grows by.

    For n rows of a class that has m with a mean delta away, these are the rows less their own
    mean, and sqrt(n m / (n + m)) delta (Chan, Golub and LeVeque 1979).
    """
    deviations = rows.astype(np.float64)
    n_classes = max(len(counts), int(classes.max()) + 1)
    counts, means = _padded(counts, means, n_classes, rows.shape[1])
    steps = []
    for c, places in by_class(classes):
        n, m = len(places), counts[c]
        own = deviations[places]
        mean = exact_mean(own)
        deviations[places] = own - mean
        if m == 0:
            means[c] = mean
        else:
            delta = mean - means[c]
            steps.append(np.sqrt(n * m / (n + m)) * delta)
            means[c] += n / (n + m) * delta
        counts[c] += n
    return counts, means, np.concatenate([deviations, np.stack(steps)]) if steps else deviations


def _padded(
    counts: NDArray[np.float64], means: NDArray[np.float64], n_classes: int, n_features: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return copies of `counts` and `means` with room for `n_classes`."""
    more, wide = np.zeros(n_classes), np.zeros((n_classes, n_features))
    if len(counts):
        more[: len(counts)], wide[: len(counts)] = counts, means
    return more, wide
