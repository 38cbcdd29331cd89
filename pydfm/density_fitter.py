"""Takes rows, with classes or without, in any number of batches, and gives their density."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.density import Density
from pydfm.labels import by_class
from pydfm.mixture import fit_mixture
from pydfm.pooled_fitter import PooledFitter
from pydfm.row_keeping import Reduction
from pydfm.sample import RowSample, find_rows
from pydfm.subspace import GAUSSIAN_SCORES, Subspace
from pydfm.subspace_fitter import SubspaceFitter

# Rows that are scored without themselves at most, in all and of a class; and bytes of them, but for
# a tenth as many rows.
_SAMPLE = 5_000
_CLASS_SAMPLE = 1_000
_SAMPLE_BYTES = 32 << 20


@dataclass(frozen=True)
class LeftOutScores:
    """Scores of rows that a density was fitted on, each under their class fitted without it.

    Attributes
    ----------
    classes : ndarray of shape (n,)
        Numbers of their classes.
    places : ndarray of shape (n,)
        With the class, what tells rows apart: the same rows have the same in every layer.
    scores : dict of str to ndarray of shape (n,)
        By score type; NaN where the others make no model.
    maps : ndarray of shape (n, height, width), float32, or None
        Scores of the positions; NaN where the others make no model.
    """

    classes: NDArray[np.intp]
    places: NDArray[np.intp]
    scores: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float32] | None = None


class DensityFitter:
    """Takes rows in batches; can be added to others of the same settings.

    Parameters
    ----------
    n_components, regularization
        As in `pydfm.subspace.fit_subspace`.
    covariance : {"class", "tied"}
        "global" is what becomes of rows without classes.
    density : {"gaussian", "gmm"}
        A mixture needs all rows at the end, so that they are kept.
    random_state : int
        Seed of the mixtures, and of samples.
    left_out : bool
        Whether `left_out` will be asked for: it takes a sample of the rows, at most 5,000 or
        1,000 of each class.
    max_bytes : int, optional
        Of memory, for each class or for tied ones together; past it scatters are sketched.
    """

    def __init__(
        self,
        n_components: float | int | None,
        *,
        covariance: str,
        density: str,
        regularization: str | float | None,
        random_state: int,
        n_threads: int,
        left_out: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        self._n_components = n_components
        self._tied = covariance == "tied"
        self._mixtures = density == "gmm"
        self._regularization = regularization
        self._random_state = random_state
        self._n_threads = n_threads
        self._left_out = left_out
        self._max_bytes = max_bytes
        self._fitters: list[SubspaceFitter] = []
        self._pooled: PooledFitter | None = None
        self._rows: list[tuple[NDArray[Any], NDArray[np.intp]]] = []
        # Fitters that a copy of this has too, and that are copied before they change.
        self._shared: set[int] = set()
        self.n_samples = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, moments and samples take."""
        kept = sum(int(array.nbytes) for part in self._rows for array in part)
        pooled = 0 if self._pooled is None else self._pooled.n_bytes
        return sum(fitter.n_bytes for fitter in self._fitters) + pooled + kept

    def copy(self) -> "DensityFitter":
        """Return a fitter of the same rows; what is added to one is not in the other."""
        other = copy.copy(self)
        other._fitters, other._rows = list(self._fitters), list(self._rows)
        self._shared = set(range(len(self._fitters)))
        other._shared = set(self._shared)
        if self._pooled is not None:
            other._pooled = self._pooled.copy()
        return other

    def add(
        self,
        features: NDArray[Any],
        classes: NDArray[np.intp] | None = None,
        *,
        owned: bool = True,
    ) -> None:
        """Add `features` (N, D), of `classes` (N,) numbered from 0; see `SubspaceFitter.add`."""
        self.n_samples += len(features)
        size = _SAMPLE if classes is None or self._tied else _CLASS_SAMPLE
        size = max(min(size, _SAMPLE_BYTES // (4 * features.shape[1])), size // 10)
        if classes is None:
            classes = np.zeros(len(features), dtype=np.intp)
        if self._mixtures:
            self._rows.append((features if owned else features.copy(), classes))
        if self._tied:
            if self._pooled is None:
                self._pooled = PooledFitter(self._n_threads, self._sample(size), self._max_bytes)
            self._pooled.add(features, classes, owned=owned)
            return
        for c, places in by_class(classes):
            whole = len(places) == len(features)
            rows = features if whole else features[places]
            self._own(c, size).add(rows, owned=owned or not whole)
        if self._max_bytes is not None and len(self._fitters) > 1:
            self._check_memory(self._max_bytes)

    def own(self) -> None:
        """Copy rows that are kept where they may be the caller's, who may change them."""
        self._rows = [(rows.copy(), classes) for rows, classes in self._rows]
        for c in range(len(self._fitters)):
            self._own(c, 0).own()
        if self._pooled is not None:
            self._pooled.own()

    def merge(self, other: "DensityFitter", numbers: NDArray[np.intp] | None = None) -> None:
        """Add all rows that were added to `other`, whose class c is ``numbers[c]`` here.

        `other` has the same settings, and stays as it is.
        """
        if numbers is None:
            numbers = np.arange(len(other.counts()), dtype=np.intp)
        self.n_samples += other.n_samples
        self._rows += [(rows, numbers[classes]) for rows, classes in other._rows]
        for c, fitter in enumerate(other._fitters):
            size = 0 if fitter.sample is None else fitter.sample.size
            self._own(int(numbers[c]), size).merge(fitter)
        if other._pooled is not None:
            if self._pooled is None:
                self._pooled = PooledFitter(self._n_threads, self._sample(_SAMPLE), self._max_bytes)
            self._pooled.merge(other._pooled, numbers)

    def forget(self, features: NDArray[Any], classes: NDArray[np.intp] | None = None) -> None:
        """Take rows away again; see `SubspaceFitter.forget`."""
        if classes is None:
            classes = np.zeros(len(features), dtype=np.intp)
        if self._tied and self._pooled is not None:
            self._pooled.forget(features, classes)
        else:
            for c, places in by_class(classes):
                self._own(c, 0).forget(features[places])
        if self._mixtures:
            rows, theirs = (np.concatenate(part) for part in zip(*self._rows, strict=True))
            gone, missing = find_rows(rows, np.asarray(features, np.float64), theirs, classes)
            if len(missing):
                raise ValueError(f"row {missing[0]} of X is none of those the model was fitted on")
            self._rows = [(np.delete(rows, gone, axis=0), np.delete(theirs, gone))]
        self.n_samples -= len(features)

    def forget_class(self, c: int) -> None:
        """Take all rows of class `c` away."""
        if self._tied:
            raise ValueError(
                "covariance is 'tied', where the scatter of one class cannot be told from that of "
                "the others; forget its rows"
            )
        self.n_samples -= self._fitters[c].n_samples
        self._fitters[c] = SubspaceFitter(
            self._n_threads, self._sample(_CLASS_SAMPLE), self._max_bytes
        )
        self._rows = [(rows[theirs != c], theirs[theirs != c]) for rows, theirs in self._rows]

    def counts(self) -> NDArray[np.intp]:
        """Return the number of rows (C,) of each class."""
        if self._pooled is not None:
            return self._pooled.counts()
        return np.array([fitter.n_samples for fitter in self._fitters], dtype=np.intp)

    def fit(
        self, order: Sequence[int] | None = None, classes: Sequence[Any] | None = None
    ) -> Density:
        """Return the density of all rows.

        Parameters
        ----------
        order : sequence of int, optional
            The numbers of the classes, in the order that the density is to have them in.
        classes : sequence, optional
            What they are called.

        Raises
        ------
        ValueError
            With fewer than two rows, non-finite rows, or more components than min(N, D).
        """
        if self.n_samples < 2:
            raise ValueError(
                f"X has n_samples={self.n_samples}; fit needs at least two rows (images)"
            )
        settings = (self._n_components, self._regularization)
        order = [0] if order is None else order
        background = None
        if self._pooled is not None:
            everyone = self._pooled.fit(*settings)
            subspaces = tuple(everyone[c] for c in order)
            if len(subspaces) > 1:
                background = self._pooled.fit_together(*settings)
        else:
            subspaces = tuple(self._own(c, 0).fit(*settings) for c in order)
            if len(subspaces) > 1:
                together = SubspaceFitter(self._n_threads, max_bytes=self._max_bytes)
                for c in order:
                    together.merge(self._fitters[c])
                background = together.fit(*settings)
        self._check_components(subspaces, classes)
        mixtures = None
        if self._mixtures:
            mixtures = tuple(
                fit_mixture(subspace, self._rows_of(c), self._random_state, self._n_threads)
                for c, subspace in zip(order, subspaces, strict=True)
            )
        return Density(subspaces, background, mixtures)

    def left_out(self, maps: Reduction | None = None) -> LeftOutScores:
        """Scores of rows under the class they are of, fitted without them, after `fit`.

        Exact for Gaussians without regularization (`pydfm.leave_one_out`).

        Parameters
        ----------
        maps : callable, optional
            Makes maps of residuals.
        """
        found: NDArray[np.float32] | None
        if self._pooled is not None:
            places, classes, scores, found = self._pooled.left_out(maps)
        else:
            parts = [fitter.left_out(maps) for fitter in self._fitters if fitter.n_samples]
            numbers = np.flatnonzero(self.counts())
            places = np.concatenate([part[0] for part in parts])
            classes = np.repeat(numbers, [len(part[0]) for part in parts])
            scores = np.concatenate([part[1] for part in parts], axis=1)
            each = [part[2] for part in parts if part[2] is not None]
            found = np.concatenate(each) if each else None
        named = dict(zip(GAUSSIAN_SCORES, scores, strict=True))
        return LeftOutScores(classes, places, named, found)

    def _own(self, c: int, sample_size: int) -> SubspaceFitter:
        """Return the fitter of class `c`, which no other has."""
        while len(self._fitters) <= c:
            sample = self._sample(sample_size)
            self._fitters.append(SubspaceFitter(self._n_threads, sample, self._max_bytes))
        if c in self._shared:
            self._fitters[c] = self._fitters[c].copy()
            self._shared.discard(c)
        return self._fitters[c]

    def _sample(self, size: int) -> RowSample | None:
        return RowSample(size, self._random_state) if self._left_out else None

    def _check_memory(self, most: int) -> None:
        if self.n_bytes > most:
            raise ValueError(
                f"max_memory leaves {most:.3g} bytes for the statistics of the classes, and those "
                f"of {len(self._fitters)} take {self.n_bytes:.3g}; covariance='tied' needs one "
                "scatter for all, or allow more"
            )

    def _rows_of(self, c: int) -> NDArray[Any]:
        return np.concatenate([rows[classes == c] for rows, classes in self._rows])

    def _check_components(
        self, subspaces: tuple[Subspace, ...], classes: Sequence[Any] | None
    ) -> None:
        """Tell where there is less variance than components were asked for."""
        wanted = self._n_components
        if wanted is not None and wanted < 1:
            wanted = None
        shared = len(subspaces) == 1 or self._tied
        if shared:
            n_features, kept = len(subspaces[0].mean), len(subspaces[0].components)
            most = min(self.n_samples, n_features)
            if wanted is not None and wanted > most:
                raise ValueError(
                    f"n_components is {wanted}; with the rows and features given it may be at "
                    f"most min(N, D) = {most}"
                )
            if kept == 0 and len(subspaces) == 1:
                warnings.warn(
                    "all rows of X are equal: there is no variance to model, and fre becomes the "
                    "squared distance from that row",
                    stacklevel=4,
                )
            elif kept == 0:
                warnings.warn(
                    "all rows of each class are equal: there is no variance within classes to "
                    "model, and fre becomes the squared distance from a class's rows",
                    stacklevel=4,
                )
            elif subspaces[0].variance_error > 0 and wanted is None:
                self._check_share(subspaces[0])
            elif wanted is not None and wanted > kept:
                warnings.warn(
                    f"n_components is {wanted}, but X has variance in {kept} directions only: "
                    f"{kept} components are kept",
                    stacklevel=4,
                )
            return
        counts = np.array([len(subspace.components) for subspace in subspaces])
        few = int((counts < wanted).sum()) if wanted is not None else int((counts == 0).sum())
        if few:
            least = int(counts.argmin())
            name = repr(classes[least]) if classes is not None else least
            asked = f"n_components is {wanted}, but" if wanted is not None else "the rows of"
            have = "have variance in fewer directions" if wanted is not None else "are all equal"
            warnings.warn(
                f"{asked} {few} of {len(subspaces)} classes {have}, and keep as many components as "
                f"they have: class {name}, of {subspaces[least].n_samples} row(s), keeps "
                f"{counts[least]}",
                stacklevel=4,
            )

    def _check_share(self, subspace: Subspace) -> None:
        """Tell where a sketch has too few directions for the share of variance asked for."""
        share = 1.0 if self._n_components is None else float(self._n_components)
        held = subspace.explained_variance.sum() / subspace.total_variance
        if held < share:
            warnings.warn(
                f"n_components is {self._n_components}, but the sketch that max_memory leaves room "
                f"for has {len(subspace.components)} components, which hold {held:.3f} of the "
                "variance",
                stacklevel=5,
            )
