"""Takes rows, with classes or without, in any number of batches, and gives their density."""

import copy
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.density import Density
from pydfm.features import blocks
from pydfm.labels import by_class
from pydfm.left_out_rows import Reduction
from pydfm.mixture import Mixture, fit_mixture
from pydfm.sample import RowSample
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
        A mixture needs rows at the end, so that they are kept: all, or under `max_bytes` a sample.
    random_state : int
        Seed of the mixtures, and of samples.
    left_out : bool
        Whether `left_out` will be asked for: it takes a sample of the rows, at most 5,000 or
        1,000 of each class.
    max_bytes : int, optional
        Of memory, for each class or for tied ones together; past it scatters are sketched. Of a
        mixture half of it is for rows.
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
        self._regularization = regularization
        self._random_state = random_state
        self._n_threads = n_threads
        self._left_out = left_out
        self._max_bytes = max_bytes
        # One to a class, or one for all where they are tied.
        self._fitters: list[SubspaceFitter] = []
        # Fitters that a copy of this has too, and that are copied before they change.
        self._shared: set[int] = set()
        # Of all rows, what mixtures are fitted on.
        self._rows: RowSample | None = None
        if density == "gmm":
            most = None if max_bytes is None else max_bytes // 2
            self._rows = RowSample(sys.maxsize, random_state, most)
            self._max_bytes = most
        self.n_samples = 0
        self._n_seen = 0  # with those that were taken away since

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, scatters and samples take."""
        kept = 0 if self._rows is None else self._rows.n_bytes
        return sum(fitter.n_bytes for fitter in self._fitters) + kept

    def copy(self) -> "DensityFitter":
        """Return a fitter of the same rows; what is added to one is not in the other."""
        other = copy.copy(self)
        other._fitters = list(self._fitters)
        self._shared = set(range(len(self._fitters)))
        other._shared = set(self._shared)
        if self._rows is not None:
            other._rows = self._rows.copy()
        return other

    def add(
        self,
        features: NDArray[Any],
        classes: NDArray[np.intp] | None = None,
        *,
        owned: bool = True,
    ) -> None:
        """Add `features` (N, D), of `classes` (N,) numbered from 0; see `SubspaceFitter.add`."""
        if self._rows is not None:
            for first, rows in blocks(features):
                places = np.arange(self._n_seen + first, self._n_seen + first + len(rows))
                theirs = None if classes is None else classes[first : first + len(rows)]
                self._rows.add(rows, places, theirs)
        self.n_samples += len(features)
        self._n_seen += len(features)
        size = _SAMPLE if classes is None or self._tied else _CLASS_SAMPLE
        for c, rows, theirs in self._by_fitter(features, classes):
            self._own(c, size).add(rows, theirs, owned=owned or rows is not features)
        if self._max_bytes is not None and len(self._fitters) > 1:
            self._check_memory(self._max_bytes)

    def own(self) -> None:
        """Copy rows that are kept where they may be the caller's, who may change them."""
        for c in range(len(self._fitters)):
            self._own(c).own()

    def merge(self, other: "DensityFitter", numbers: NDArray[np.intp] | None = None) -> None:
        """Add all rows that were added to `other`, whose class c is ``numbers[c]`` here.

        `other` has the same settings, and stays as it is.
        """
        if numbers is None:
            numbers = np.arange(len(other.counts()), dtype=np.intp)
        if self._rows is not None and other._rows is not None:
            self._rows.merge(other._rows, self._n_seen, numbers)
        self.n_samples += other.n_samples
        self._n_seen += other._n_seen
        for i, fitter in enumerate(other._fitters):
            c = 0 if self._tied else int(numbers[i])
            while len(self._fitters) <= c:
                self._fitters.append(fitter.emptied())
            self._own(c).merge(fitter, numbers if self._tied else np.zeros(1, dtype=np.intp))

    def forget(self, features: NDArray[Any], classes: NDArray[np.intp] | None = None) -> None:
        """Take rows away again; see `SubspaceFitter.forget`."""
        if self._rows is not None:
            found = self._rows.find(features, classes)
            if self._rows.n_rows == self.n_samples and not found.all():
                raise ValueError(
                    f"row {found.argmin()} of X is none of those the model was fitted on"
                )
        for c, rows, theirs in self._by_fitter(features, classes):
            self._own(c).forget(rows, theirs)
        if self._rows is not None:
            self._rows = self._rows.without(np.asarray(features, np.float64), classes)
        self.n_samples -= len(features)

    def forget_class(self, c: int) -> None:
        """Take all rows of class `c` away."""
        if self._tied:
            raise ValueError(
                "covariance is 'tied', where the scatter of one class cannot be told from that of "
                "the others; forget its rows"
            )
        self.n_samples -= self._fitters[c].n_samples
        self._fitters[c] = self._fitters[c].emptied()
        if self._rows is not None:
            self._rows = self._rows.without_tag(c)

    def counts(self) -> NDArray[np.intp]:
        """Return the number of rows (C,) of each class."""
        if self._tied and self._fitters:
            return self._fitters[0].counts()
        return np.array([fitter.n_samples for fitter in self._fitters], dtype=np.intp)

    def fit(
        self,
        order: Sequence[int] | None = None,
        classes: Sequence[Any] | None = None,
        *,
        whole: bool = False,
    ) -> Density:
        """Return the density of all rows.

        Parameters
        ----------
        order : sequence of int, optional
            The numbers of the classes, in the order that the density is to have them in.
        classes : sequence, optional
            What they are called.
        whole : bool
            See `SubspaceFitter.fit`.

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
        if self._tied:
            everyone = self._own(0).fit(*settings, whole=whole)
            subspaces = tuple(everyone[c] for c in order)
        else:
            subspaces = tuple(self._own(c).fit(*settings, whole=whole)[0] for c in order)
        background = None
        if len(subspaces) > 1:
            together = SubspaceFitter(self._n_threads, max_bytes=self._max_bytes)
            for c in [0] if self._tied else order:
                one = np.zeros(len(self._fitters[c].counts()), dtype=np.intp)
                together.merge(self._fitters[c], one)
            (background,) = together.fit(*settings)
        self._check_components(subspaces, classes)
        mixtures = None
        if self._rows is not None:
            _, rows, numbers = self._rows.take()
            mixtures = tuple(
                fit_mixture(subspace, rows[numbers == c], self._random_state, self._n_threads)
                for c, subspace in zip(order, subspaces, strict=True)
            )
            self._tell_sampled(mixtures)
        return Density(subspaces, background, mixtures)

    def left_out(self, maps: Reduction | None = None) -> LeftOutScores:
        """Scores of rows under the class they are of, fitted without them, after `fit`.

        Exact for Gaussians without regularization (`pydfm.leave_one_out`).

        Parameters
        ----------
        maps : callable, optional
            Makes maps of residuals.
        """
        parts = [fitter.left_out(maps) for fitter in self._fitters if fitter.n_samples]
        places, classes, scores = (
            np.concatenate(part, axis=-1) for part in list(zip(*parts, strict=True))[:3]
        )
        if not self._tied:
            numbers = np.flatnonzero(self.counts())
            classes = np.repeat(numbers, [len(part[0]) for part in parts])
        each = [part[3] for part in parts if part[3] is not None]
        named = dict(zip(GAUSSIAN_SCORES, scores, strict=True))
        return LeftOutScores(classes, places, named, np.concatenate(each) if each else None)

    def _by_fitter(
        self, features: NDArray[Any], classes: NDArray[np.intp] | None
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[np.intp] | None]]:
        """Yield the numbers of fitters, with the rows and classes that are theirs."""
        if classes is None or self._tied:
            yield 0, features, classes
            return
        for c, places in by_class(classes):
            yield c, features if len(places) == len(features) else features[places], None

    def _own(self, c: int, sample_size: int = _CLASS_SAMPLE) -> SubspaceFitter:
        """Return the fitter numbered `c`, which no other has."""
        while len(self._fitters) <= c:
            sample = None
            if self._left_out:
                least = sample_size // 10
                sample = RowSample(sample_size, self._random_state, _SAMPLE_BYTES, least)
            self._fitters.append(SubspaceFitter(self._n_threads, sample, self._max_bytes))
        if c in self._shared:
            self._fitters[c] = self._fitters[c].copy()
            self._shared.discard(c)
        return self._fitters[c]

    def _check_memory(self, most: int) -> None:
        taken = sum(fitter.n_bytes for fitter in self._fitters)
        if taken > most:
            raise ValueError(
                f"max_memory leaves {most:.3g} bytes for the statistics of the classes, and those "
                f"of {len(self._fitters)} take {taken:.3g}; covariance='tied' needs one scatter "
                "for all, or allow more"
            )

    def _tell_sampled(self, mixtures: tuple[Mixture, ...]) -> None:
        """Tell where mixtures are fitted on some of the rows only."""
        n_rows = sum(mixture.n_samples for mixture in mixtures)
        if n_rows < self.n_samples:
            warnings.warn(
                f"density is 'gmm', and max_memory leaves room for {n_rows} of {self.n_samples} "
                "rows: mixtures are fitted on these, drawn at random",
                stacklevel=4,
            )

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
