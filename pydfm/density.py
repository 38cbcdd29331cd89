r"""Features in, scores out: the densities of classes, and the scores of rows under them.

Every class has a mean and a subspace with a Gaussian, or a mixture of Gaussians, in it. Under
``covariance="class"`` each class's subspace is its own (Ahuja et al. 2019); under "tied" the
classes share that of the scatter within them (Lee et al. 2018, equations 1 and 2); under "global"
all rows are one class. A row's score is the least over the classes, or that of the class it is
said to have. Beside the scores of `pydfm.subspace` there is

- ``relative_mahalanobis``: the least mahalanobis over the classes, less that under the Gaussian of
  all rows (Ren et al. 2021, equation 3): what tells one class from another counts, what all
  classes share does not. It may be negative.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import blocks, check_finite
from pydfm.labels import by_class
from pydfm.mixture import Mixture, fit_mixture
from pydfm.sample import RowSample
from pydfm.subspace import GAUSSIAN_SCORES, PooledFitter, Reduction, Subspace, SubspaceFitter

SCORE_TYPES: Final = (*GAUSSIAN_SCORES, "relative_mahalanobis")
COVARIANCES: Final = ("class", "tied", "global")
DENSITIES: Final = ("gaussian", "gmm")

# Rows that are scored without themselves at most, in all and of a class.
_SAMPLE = 10_000
_CLASS_SAMPLE = 1_000


@dataclass(frozen=True)
class Density:
    """Classes of rows with D features, and how far a row is from them.

    Attributes
    ----------
    subspaces : tuple of Subspace
        One to a class; tied ones share their components.
    background : Subspace or None
        Of all rows together; where there are several classes.
    mixtures : tuple of Mixture or None
        One to a class, in the coordinates of its subspace.
    """

    subspaces: tuple[Subspace, ...]
    background: Subspace | None = None
    mixtures: tuple[Mixture, ...] | None = None

    @property
    def n_features(self) -> int:
        """D."""
        return len(self.subspaces[0].mean)

    def check_scores(self, score_types: Sequence[str], classes: Sequence[Any] | None) -> None:
        """Raise ValueError where the classes cannot give one of the `score_types`."""
        for kind in score_types:
            if kind == "relative_mahalanobis" and self.background is None:
                raise ValueError(
                    "score_type is 'relative_mahalanobis', which compares classes with all of "
                    "them together; fit with the labels of at least two classes, and with "
                    "covariance='class' or 'tied'"
                )
            if kind == "fre":
                continue
            for i, subspace in enumerate(self.subspaces):
                if subspace.noise_variance > 0:
                    continue
                if classes is None or len(self.subspaces) == 1:
                    raise ValueError(
                        f"score_type is {kind!r}, which needs variance, but all rows of X are "
                        "equal; only 'fre' can score then"
                    )
                raise ValueError(
                    f"score_type is {kind!r}, which needs variance, but the "
                    f"{subspace.n_samples} row(s) of the class {classes[i]!r} have none; give it "
                    "more, leave it out, use covariance='tied', or score by 'fre'"
                )

    def score(
        self,
        features: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scores (T, N) of `features` (N, D) for T `score_types`, and whose they are (T, N).

        Parameters
        ----------
        classes : ndarray of shape (N,), optional
            The class of each row, in place of the nearest.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity.
        """
        parts = []
        for first, rows in blocks(features):
            own = None if classes is None else classes[first : first + len(rows)]
            scores, nearest = self._score(rows, score_types, n_threads, own)
            if np.isnan(scores).any():
                check_finite(rows, first)
            parts.append((scores, nearest))
        if len(parts) == 1:
            return parts[0]
        each, theirs = zip(*parts, strict=True)
        return np.concatenate(each, axis=1), np.concatenate(theirs, axis=1)

    def _score(
        self,
        rows: Any,
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        kinds = ["mahalanobis" if kind == "relative_mahalanobis" else kind for kind in score_types]
        if classes is not None:
            scores = np.empty((len(kinds), len(rows)), dtype=np.float32)
            for c, places in by_class(classes):
                scores[:, places] = self._class_scores(c, rows[places], kinds, n_threads)
            nearest = np.broadcast_to(classes.astype(np.int32), scores.shape)
        elif len(self.subspaces) == 1:
            scores = self._class_scores(0, rows, kinds, n_threads)
            nearest = np.zeros(scores.shape, dtype=np.int32)
        elif self.mixtures is None:
            scores, nearest = _core.score_nearest(
                rows,
                [subspace._scorer for subspace in self.subspaces],
                score_types=kinds,
                n_threads=n_threads,
            )
        else:
            scores = np.full((len(kinds), len(rows)), np.inf, dtype=np.float32)
            nearest = np.zeros(scores.shape, dtype=np.int32)
            for c in range(len(self.subspaces)):
                theirs = self._class_scores(c, rows, kinds, n_threads)
                nearest[theirs < scores] = c
                scores = np.minimum(scores, theirs)
        if "relative_mahalanobis" in score_types:
            assert self.background is not None
            shared = self.background.score(rows, ["mahalanobis"], n_threads)[0]
            for i, kind in enumerate(score_types):
                if kind == "relative_mahalanobis":
                    scores[i] -= shared
        return scores, nearest

    def _class_scores(
        self, c: int, rows: Any, kinds: Sequence[str], n_threads: int
    ) -> NDArray[np.float32]:
        """Scores (T, N) under the class `c`."""
        subspace = self.subspaces[c]
        if self.mixtures is None:
            return _core.score(rows, subspace._scorer, score_types=kinds, n_threads=n_threads)
        scores = _core.score(
            rows, subspace._scorer, score_types=GAUSSIAN_SCORES, n_threads=n_threads
        )
        of = dict(zip(GAUSSIAN_SCORES, scores.astype(np.float64), strict=True))
        # What probabilistic PCA adds for the noise outside of the subspace is left as it is.
        noise = of["ppca"] - of["nll"]
        of["mahalanobis"], of["nll"] = self.mixtures[c].score(subspace, rows, n_threads)
        of["ppca"] = of["nll"] + noise
        most = float(np.finfo(np.float32).max)
        return np.stack([of[kind] for kind in kinds]).clip(-most, most).astype(np.float32)


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
    """Takes rows, with labels or without, in any number of batches, and gives their density.

    Parameters
    ----------
    n_components, regularization
        As in `SubspaceFitter.fit`.
    covariance : {"class", "tied"}
        "global" is what becomes of rows without classes.
    density : {"gaussian", "gmm"}
        A mixture needs all rows at the end, so that they are kept.
    random_state : int
        Seed of the mixtures, and of samples.
    left_out : bool
        Whether `left_out` will be asked for: it takes a sample of the rows, at most 10,000 or
        1,000 of each class.
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
    ) -> None:
        self._n_components = n_components
        self._covariance = covariance
        self._mixtures = density == "gmm"
        self._regularization = regularization
        self._random_state = random_state
        self._n_threads = n_threads
        self._fitters: list[SubspaceFitter] = []
        self._pooled: PooledFitter | None = None
        self._rows: list[tuple[NDArray[Any], NDArray[np.intp]]] = []
        self._left_out = left_out
        self.n_samples = 0

    def add(self, features: NDArray[Any], classes: NDArray[np.intp] | None = None) -> None:
        """Add `features` (N, D), of `classes` (N,) numbered from 0; both must stay as they are."""
        self.n_samples += len(features)
        size = _SAMPLE if classes is None else _CLASS_SAMPLE
        if classes is None:
            classes = np.zeros(len(features), dtype=np.intp)
        if self._mixtures:
            self._rows.append((features, classes))
        if self._covariance == "tied":
            if self._pooled is None:
                self._pooled = PooledFitter(self._n_threads, self._sample(_SAMPLE))
            self._pooled.add(features, classes)
            return
        for c, places in by_class(classes):
            while len(self._fitters) <= c:
                self._fitters.append(SubspaceFitter(self._n_threads, self._sample(size)))
            whole = len(places) == len(features)
            self._fitters[c].add(features if whole else features[places])

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
        background = None
        order = [0] if order is None else order
        if self._pooled is not None:
            everyone = self._pooled.fit(*settings)
            subspaces = tuple(everyone[c] for c in order)
            if len(subspaces) > 1:
                background = self._pooled.fit_together(*settings)
        else:
            subspaces = tuple(self._fitters[c].fit(*settings) for c in order)
            if len(subspaces) > 1:
                together = SubspaceFitter(self._n_threads)
                for fitter in self._fitters:
                    together.merge(fitter)
                background = together.fit(*settings)
        self._check_components(subspaces, classes)
        mixtures = None
        if self._mixtures:
            mixtures = tuple(
                fit_mixture(subspace, self._rows_of(c), self._random_state, self._n_threads)
                for c, subspace in zip(order, subspaces, strict=True)
            )
        return Density(subspaces, background, mixtures)

    def merge(self, other: "DensityFitter") -> None:
        """Add all rows that were added to `other`, whose settings and classes are the same."""
        self.n_samples += other.n_samples
        self._rows += other._rows
        for c, fitter in enumerate(other._fitters):
            while len(self._fitters) <= c:
                self._fitters.append(SubspaceFitter(self._n_threads))
            self._fitters[c].merge(fitter)
        if other._pooled is not None:
            if self._pooled is None:
                self._pooled = PooledFitter(self._n_threads)
            self._pooled.merge(other._pooled)

    def counts(self) -> NDArray[np.intp]:
        """Return the number of rows (C,) of each class."""
        if self._pooled is not None:
            return self._pooled.counts()
        return np.array([fitter.n_samples for fitter in self._fitters], dtype=np.intp)

    def release(self) -> None:
        """Let go of rows that are kept; what `left_out` needs stays."""
        self._rows = []
        for fitter in self._fitters:
            fitter.release()
        if self._pooled is not None:
            self._pooled.release()

    def left_out(self, maps: Reduction | None = None) -> LeftOutScores:
        """Scores of rows under the class they are of, fitted without them, after `fit`.

        Exact for Gaussians without regularization (`pydfm.leave_one_out`).

        Parameters
        ----------
        maps : callable, optional
            Makes maps of residuals; needs the rows, so that `release` must come later.
        """
        found: NDArray[np.float32] | None
        if self._pooled is not None:
            places, classes, scores, found = self._pooled.left_out(maps)
        else:
            parts = [fitter.left_out(maps) for fitter in self._fitters]
            places = np.concatenate([part[0] for part in parts])
            classes = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
            scores = np.concatenate([part[1] for part in parts], axis=1)
            each = [part[2] for part in parts if part[2] is not None]
            found = np.concatenate(each) if each else None
        return LeftOutScores(
            classes, places, dict(zip(GAUSSIAN_SCORES, scores, strict=True)), found
        )

    def _sample(self, size: int) -> RowSample | None:
        return RowSample(size, self._random_state) if self._left_out else None

    def _rows_of(self, c: int) -> NDArray[Any]:
        return np.concatenate([rows[classes == c] for rows, classes in self._rows])

    def _check_components(
        self, subspaces: tuple[Subspace, ...], classes: Sequence[Any] | None
    ) -> None:
        """Tell where there is less variance than components were asked for."""
        wanted = self._n_components
        if wanted is not None and wanted < 1:
            wanted = None
        shared = len(subspaces) == 1 or self._pooled is not None
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
