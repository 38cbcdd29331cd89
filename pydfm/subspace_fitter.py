"""Rows of one class, or of several that share a scatter, in; their principal subspaces out.

Rows are kept until there are more of them than features; then they are folded into their scatter.
So the cheaper of the N x N Gram matrix and the D x D scatter is decomposed, and memory is bounded
by that of 2 D rows in float64, and the means, however many rows come.

Fitters can be added to one another, and rows taken away, exactly but for rounding. A copy is cheap:
arrays are shared, and never written to once they are in a fitter.
"""

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows, blocks, check_finite
from pydfm.left_out_rows import Reduction, score_left_out
from pydfm.sample import RowSample, find_rows
from pydfm.scatter import Scatter, class_means, fits_memory
from pydfm.sketch import FrequentDirections
from pydfm.subspace import Subspace, check_sums, fit_subspace, leading_eigenpairs

# Rows that are taken away at once, or as many as there are features.
_FORGOTTEN_ROWS = 8192


class SubspaceFitter:
    """Takes rows of classes, numbered from 0; of one class where no numbers are given.

    Parameters
    ----------
    n_threads : int
    sample : RowSample, optional
        Of the rows that are folded, to score them without themselves.
    max_bytes : int, optional
        Of memory; past it the scatter is sketched.

    Attributes
    ----------
    n_samples : int
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
        self._scatter: Scatter | None = None
        # Of the last fit: the Gram matrix of rows that are kept, or all eigenpairs.
        self._gram: NDArray[np.float64] | None = None
        self._pairs: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._means = np.zeros((0, 0))
        self._n_components = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, scatter and sample take."""
        arrays: list[NDArray[Any]] = [array for part in self._kept for array in part]
        arrays += [] if self._gram is None else [self._gram]
        others = (part.n_bytes for part in (self._scatter, self._sample) if part is not None)
        return sum(int(array.nbytes) for array in arrays) + sum(others)

    def copy(self) -> "SubspaceFitter":
        """Return a fitter of the same rows."""
        other = copy.copy(self)
        other._kept = list(self._kept)
        if self._sample is not None:
            other._sample = self._sample.copy()
        return other

    def emptied(self) -> "SubspaceFitter":
        """Return a fitter of the same settings, without rows."""
        sample = None if self._sample is None else self._sample.emptied()
        return SubspaceFitter(self._n_threads, sample, self._max_bytes)

    def add(
        self,
        features: NDArray[Any],
        classes: NDArray[np.intp] | None = None,
        *,
        owned: bool = True,
    ) -> None:
        """Add `features` (N, D) of `classes` (N,), which must stay as they are if `owned`."""
        if classes is None:
            classes = np.zeros(len(features), dtype=np.intp)
        for first, rows in blocks(features):
            places = np.arange(self._n_seen, self._n_seen + len(rows))
            self._n_seen += len(rows)
            self._keep(rows, classes[first : first + len(rows)], places)
        if not owned and self._kept:
            rows, theirs, places = self._kept[-1]
            self._kept[-1] = rows.copy(), theirs, places

    def own(self) -> None:
        """Copy rows that are kept where they may be the caller's, who may change them."""
        if len(self._kept) == 1:
            ((rows, classes, places),) = self._kept
            self._kept = [(rows.copy(), classes, places)]
        elif self._kept:
            self._kept = [self._joined()]

    def merge(self, other: "SubspaceFitter", numbers: NDArray[np.intp]) -> None:
        """Add all rows that were added to `other`, whose class c is ``numbers[c]`` here.

        `other` stays as it is. Several classes of it may become one.
        """
        if other._scatter is not None:
            # Folded in the order in which they came, which the sample counts by.
            self._fold()
            if self._sample is not None and other._sample is not None:
                self._sample.merge(other._sample, self._n_seen, numbers)
            self._take_up(other._scatter, numbers)
            self.n_samples += other.n_samples - other._n_kept
        first = self._n_seen
        for rows, classes, places in other._kept:
            self._keep(rows, numbers[classes], first + places)
        self._n_seen = first + other._n_seen

    def forget(self, features: NDArray[Any], classes: NDArray[np.intp] | None = None) -> None:
        """Take rows `features` (N, D) of `classes` (N,) away again.

        Raises
        ------
        ValueError
            If one of them was not added, as far as can be told; if the rows left are so small
            beside these that their digits are lost; or in a sketch.
        """
        if classes is None:
            classes = np.zeros(len(features), dtype=np.intp)
        # As many at once as a scatter is worth taking away for.
        step = max(_FORGOTTEN_ROWS, features.shape[1])
        for first in range(0, len(features), step):
            rows = np.ascontiguousarray(features[first : first + step], dtype=np.float64)
            check_finite(rows, first)
            self._forget(rows, classes[first : first + step], first)

    def _forget(self, rows: NDArray[np.float64], classes: NDArray[np.intp], first: int) -> None:
        none = rows[:0], classes[:0], classes[:0]
        kept, theirs, places = self._joined() if self._kept else none
        gone, missing = find_rows(kept, rows, theirs, classes)
        if len(missing):
            if self._scatter is None:
                raise ValueError(
                    f"row {first + missing[0]} of X is none of those the model was fitted on"
                )
            self._scatter = self._scatter.without(rows[missing], classes[missing], self._n_threads)
            if self._sample is not None:
                self._sample = self._sample.without(rows[missing], classes[missing])
        stay = np.delete(np.arange(len(kept)), gone)
        self._kept = [(kept[stay], theirs[stay], places[stay])] if len(stay) else []
        self._n_kept = len(stay)
        self.n_samples -= len(rows)
        if self.n_samples == self._n_kept:
            self._scatter = None

    def counts(self) -> NDArray[np.intp]:
        """Return the number of rows (C,) of each class."""
        parts = [np.bincount(classes) for _, classes, _ in self._kept]
        if self._scatter is not None:
            parts.append(self._scatter.counts)
        counts = np.zeros(max((len(part) for part in parts), default=0), dtype=np.intp)
        for part in parts:
            counts[: len(part)] += part
        return counts

    def fit(
        self,
        n_components: float | int | None,
        regularization: str | float | None = None,
        *,
        whole: bool = False,
    ) -> list[Subspace]:
        """Return the subspaces of the classes; several share all but their means.

        Of a class without rows there is one with a count of zero.

        Parameters
        ----------
        n_components, regularization
            As in `fit_subspace`.
        whole : bool
            Whether `left_out` will be asked for, which takes all eigenpairs: they are computed
            once then.

        Raises
        ------
        ValueError
            If rows are not finite.
        """
        rows: Rows | None = None
        energy, error = None, 0.0
        if self._scatter is None:
            rows, classes, places = self._joined()
            self._kept = [(rows, classes, places)]
            counts = np.bincount(classes)
            if len(counts) > 1:
                means = class_means(rows, classes)
                rows, mean = _centred(rows, classes, means)
                products = _core.gram(rows, n_threads=self._n_threads)[1]
            else:
                mean, products = _core.gram(rows, n_threads=self._n_threads)
                means = mean[None]
            check_sums(self._kept[0][0], means, products, 0)
        else:
            self._fold()
            counts, means, sums = self._scatter.counts, self._scatter.means, self._scatter.products
            mean = np.zeros(means.shape[1])
            if isinstance(sums, FrequentDirections):
                rows, energy, error = sums.rows, sums.energy, sums.error
                products = rows @ rows.T
            else:
                products = sums
                mean = means[0] if len(means) == 1 else mean
        wanted = None if whole or energy is not None else n_components
        pairs = leading_eigenpairs(products, wanted, self._n_threads)
        shared = fit_subspace(
            mean,
            *pairs,
            rows,
            n_samples=self.n_samples,
            n_classes=int(np.count_nonzero(counts)),
            n_components=n_components,
            regularization=regularization,
            n_threads=self._n_threads,
            energy=energy,
            error=error,
        )
        self._gram = products if self._scatter is None else None
        self._pairs = pairs if whole else None
        self._means, self._n_components = means, len(shared.components)
        return [
            replace(shared, mean=mean.copy(), n_samples=int(count))
            for count, mean in zip(counts, means, strict=True)
        ]

    def left_out(
        self, reduce: Reduction | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float32] | None]:
        """Scores of rows, each under the subspace that the others have, after `fit`.

        Parameters
        ----------
        reduce : callable, optional
            Makes numbers (b, ...) of the residuals (b, D) of some rows, x less its mean and less
            its projection, both of the others.

        Returns
        -------
        places, classes : ndarray of shape (n,)
            Which rows, as they came: all, or those of the sample where they were folded.
        scores : ndarray of shape (4, n), float64
            Of `GAUSSIAN_SCORES`, without regularization; NaN where the others cannot give it: all
            but fre of two rows, every score of a single one.
        reduced : ndarray of shape (n, ...), float32, or None
            What `reduce` made of the residuals; NaN where there are none.
        """
        products: Any
        if self._scatter is None:
            rows, classes, places = self._joined()
            products = self._gram
        else:
            assert self._sample is not None
            places, rows, classes = self._sample.take()
            products = self._scatter.products
        # They are as large as all else, and only needed here.
        pairs, self._pairs = self._pairs or _core.eigh(products, n_threads=self._n_threads), None
        sizes = self.counts()
        scores, reduced = score_left_out(
            *pairs,
            *_centred(rows, classes, self._means),
            of_gram=self._scatter is None,
            class_sizes=sizes[classes],
            n_samples=self.n_samples,
            n_classes=int(np.count_nonzero(sizes)),
            n_components=self._n_components,
            n_threads=self._n_threads,
            reduce=reduce,
        )
        return places, classes, scores, reduced

    def _keep(self, rows: Rows, classes: NDArray[np.intp], places: NDArray[np.intp]) -> None:
        self._kept.append((rows, classes, places))
        self._n_kept += len(rows)
        self.n_samples += len(rows)
        most = n_features = rows.shape[1]
        if not fits_memory(n_features, self._max_bytes):
            assert self._max_bytes is not None
            most = min(n_features, max(self._max_bytes // (2 * 8 * n_features), 1))
        if self._n_kept > most:
            self._fold()

    def _joined(self) -> tuple[Rows, NDArray[np.intp], NDArray[np.intp]]:
        if len(self._kept) == 1:
            return self._kept[0]
        rows, classes, places = zip(*self._kept, strict=True)
        # Batches may differ in type: the widest holds them all.
        return cast(Rows, np.concatenate(rows)), np.concatenate(classes), np.concatenate(places)

    def _fold(self) -> None:
        if not self._kept:
            return
        rows, classes, places = self._joined()
        self._kept, self._n_kept, self._gram = [], 0, None
        if self._sample is not None:
            self._sample.add(rows, places, classes)
        first = self.n_samples - len(rows)
        folded = Scatter.of(rows, classes, self._n_threads, self._max_bytes, first)
        self._take_up(folded, np.arange(len(folded.counts)))

    def _take_up(self, other: Scatter, numbers: NDArray[np.intp]) -> None:
        numbers = numbers[: len(other.counts)]
        if self._scatter is None:
            self._scatter = other.renumbered(numbers, self._n_threads)
        else:
            self._scatter = self._scatter.merged(other, numbers, self._n_threads)


def _centred(
    rows: Rows, classes: NDArray[np.intp], means: NDArray[np.float64]
) -> tuple[Rows, NDArray[np.float64]]:
    """Return rows whose deviations are those of `rows` from their classes' means, and from what.

    Of one class the core takes the mean away as it reads them.
    """
    if len(means) == 1:
        return rows, means[0]
    return rows - means[classes], np.zeros(rows.shape[1])
