r"""The densities of classes: rows in, scores out; and how they are fitted to accumulated rows.

Every class has a mean and a subspace with a Gaussian, or a mixture of Gaussians, in it. Under
``covariance="class"`` each class has a subspace of its own (Ahuja et al. 2019); under "tied" the
classes share that of the scatter within them (Lee et al. 2018, equations 1 and 2); under "global"
all rows are one class. A row's score is the least over the classes, or that under its given class.
``relative_mahalanobis`` is the least mahalanobis over the classes less that under the Gaussian of
all rows (Ren et al. 2021, equation 3): what tells one class from another counts, what all classes
share does not. It may be negative.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.inputs.arrays import blocks, check_finite
from pydfm.features.inputs.labels import by_class
from pydfm.stats.accumulator import Accumulator
from pydfm.stats.mixture import Mixture, fit_mixture
from pydfm.stats.sample import RowSample
from pydfm.stats.scores import CORE_SCORES, SCORES
from pydfm.stats.subspace import Spectrum, Subspace, SubspaceFit

# Total variances whose squared distances, and 1e6 times larger or smaller ones, float32 can hold.
_LEAST_VARIANCE, _MOST_VARIANCE = 1e-30, 1e31

_CORE = frozenset(CORE_SCORES)


@dataclass(frozen=True)
class Density:
    """Classes of rows with D features, and how far a row is from them.

    Attributes
    ----------
    subspaces : tuple of Subspace
        One for each class; tied ones share their components.
    together : Subspace, callable or None
        Subspace of all rows together, or what fits it; where there are several classes.
    mixtures : tuple of Mixture or None
        One for each class, in the coordinates of its subspace.
    """

    subspaces: tuple[Subspace, ...]
    together: Subspace | Callable[[], Subspace] | None = None
    mixtures: tuple[Mixture, ...] | None = None

    @property
    def n_features(self) -> int:
        """Number of features per row, D."""
        return len(self.subspaces[0].mean)

    @property
    def background(self) -> Subspace | None:
        """Subspace of all rows together, fitted when it is first asked for."""
        if not callable(self.together):
            return self.together
        if "_background" not in vars(self):
            object.__setattr__(self, "_background", self.together())
        background: Subspace = vars(self)["_background"]
        return background

    def check_scores(self, score_types: Sequence[str], classes: Sequence[Any] | None) -> None:
        """Raise ValueError if the classes cannot give one of the `score_types`."""
        for kind in score_types:
            score = SCORES[kind]
            if score.background and self.together is None:
                raise ValueError(
                    f"score_type is {kind!r}, which compares classes with all of them together; "
                    "fit with the labels of at least two classes, and with covariance='class' or "
                    "'tied'"
                )
            if not score.needs_variance:
                continue
            for i, subspace in enumerate(self.subspaces):
                if subspace.noise_variance > 0:
                    continue
                if classes is None or len(self.subspaces) == 1:
                    raise ValueError(
                        f"score_type is {kind!r}, which needs variance, but all rows of X are "
                        "equal; use score_type='fre'"
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
        """Return scores (T, N) of `features` (N, D) for T `score_types`, and their classes (T, N).

        Parameters
        ----------
        features : ndarray of shape (N, D)
        score_types : sequence of str
        n_threads : int
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
        if classes is not None:
            scores = np.empty((len(score_types), len(rows)), dtype=np.float32)
            for c, places in by_class(classes):
                scores[:, places] = self._class_scores(c, rows[places], score_types, n_threads)
            return scores, np.broadcast_to(classes.astype(np.int32), scores.shape)
        if len(self.subspaces) == 1:
            scores = self._class_scores(0, rows, score_types, n_threads)
            return scores, np.zeros(scores.shape, dtype=np.int32)
        # The core finds the nearest class by bounds where a score grows with one of its own.
        if self.mixtures is None and all(
            len(SCORES[kind].inputs) == 1 and SCORES[kind].increasing for kind in score_types
        ):
            inputs = [SCORES[kind].inputs[0] for kind in score_types]
            found, nearest = _core.score_nearest(
                rows, self._classes(n_threads), score_types=inputs, n_threads=n_threads
            )
            each = [
                self._value(kind, {SCORES[kind].inputs[0]: own}, rows, theirs, n_threads)
                for kind, own, theirs in zip(score_types, found, nearest, strict=True)
            ]
            return np.stack(each), nearest
        scores = np.full((len(score_types), len(rows)), np.inf, dtype=np.float32)
        nearest = np.zeros(scores.shape, dtype=np.int32)
        for c in range(len(self.subspaces)):
            theirs = self._class_scores(c, rows, score_types, n_threads)
            nearest[theirs < scores] = c
            scores = np.minimum(scores, theirs)
        return scores, nearest

    def judges(self, score_type: str) -> bool:
        """Whether `judge` has this score type: one of Gaussian classes, of one input."""
        return self.mixtures is None and SCORES[score_type].inputs == (score_type,)

    def judge(
        self,
        features: NDArray[Any],
        score_type: str,
        held_out: _core.HeldOutScores,
        n_threads: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return scores (N,) of `features` (N, D), and p-values and margins (2, N), in one pass.

        Parameters
        ----------
        features : ndarray of shape (N, D)
        score_type : str
        held_out : _core.HeldOutScores
            Of each class, with thresholds.
        n_threads : int

        Raises
        ------
        ValueError
            If a row holds NaN or infinity.
        """
        scores, judged = [], []
        for first, rows in blocks(features):
            own, _, p, margins = _core.judge(
                rows,
                self._classes(n_threads),
                held_out,
                score_type=score_type,
                n_threads=n_threads,
            )
            if np.isnan(own).any():
                check_finite(rows, first)
            scores.append(own[0])
            judged.append(np.stack([p, margins]))
        return np.concatenate(scores), np.concatenate(judged, axis=1)

    def _classes(self, n_threads: int) -> _core.Classes:
        """Return the core's preparation of the classes, which is made once."""
        if "_prepared" not in vars(self):
            scorers = [subspace.scorer for subspace in self.subspaces]
            prepared = _core.Classes(scorers, n_threads=n_threads)
            object.__setattr__(self, "_prepared", prepared)
        prepared_classes: _core.Classes = vars(self)["_prepared"]
        return prepared_classes

    def __getstate__(self) -> dict[str, Any]:
        # As a subspace's scorer, what is prepared is made for this processor; and what fits the
        # background holds all rows.
        kept = {name: value for name, value in vars(self).items() if name[0] != "_"}
        return {**kept, "together": self.background}

    def _class_scores(
        self, c: int, rows: Any, score_types: Sequence[str], n_threads: int
    ) -> NDArray[np.float32]:
        """Return scores (T, N) under the class `c`."""
        subspace = self.subspaces[c]
        if self.mixtures is not None:
            of = self._mixture_scores(c, rows, n_threads)
        elif _CORE.issuperset(score_types):
            return _core.score(rows, subspace.scorer, score_types=score_types, n_threads=n_threads)
        else:
            needed = tuple(dict.fromkeys(name for k in score_types for name in SCORES[k].inputs))
            found = _core.score(rows, subspace.scorer, score_types=needed, n_threads=n_threads)
            of = dict(zip(needed, found, strict=True))
        own = np.full(len(rows), c)
        return np.stack([self._value(kind, of, rows, own, n_threads) for kind in score_types])

    def _mixture_scores(self, c: int, rows: Any, n_threads: int) -> dict[str, NDArray[np.float32]]:
        """Return the core's scores (N,) of the mixture of class `c`."""
        assert self.mixtures is not None
        subspace = self.subspaces[c]
        scores = _core.score(rows, subspace.scorer, score_types=CORE_SCORES, n_threads=n_threads)
        of = dict(zip(CORE_SCORES, scores.astype(np.float64), strict=True))
        # What probabilistic PCA adds for the noise outside of the subspace is left as it is.
        noise = of["ppca"] - of["nll"]
        of["mahalanobis"], of["nll"] = self.mixtures[c].score(subspace, rows, n_threads)
        of["ppca"] = of["nll"] + noise
        most = float(np.finfo(np.float32).max)
        return {kind: own.clip(-most, most).astype(np.float32) for kind, own in of.items()}

    def _value(
        self,
        kind: str,
        of: Mapping[str, NDArray[np.float32]],
        rows: Any,
        classes: NDArray[np.integer[Any]],
        n_threads: int,
    ) -> NDArray[np.float32]:
        """Return the score (N,) that the registry makes of the core's scores under `classes`."""
        score = SCORES[kind]
        inputs: list[NDArray[Any]] = [of[name] for name in score.inputs]
        if score.background:
            assert self.background is not None
            for i, name in enumerate(score.inputs):
                if name == "mahalanobis":
                    # Two numbers of like size: what float32 rounds off would be left of them.
                    inputs[i] = self._mahalanobis(rows, classes, n_threads)
                    inputs.append(self.background.mahalanobis(rows, n_threads))
                else:
                    inputs += list(self.background.score(rows, [name], n_threads))
        return np.asarray(score.value(*inputs), dtype=np.float32)

    def _mahalanobis(
        self, rows: Any, classes: NDArray[np.integer[Any]], n_threads: int
    ) -> NDArray[np.float64]:
        """Return Mahalanobis scores (N,) of rows under `classes` (N,), in float64."""
        found = np.empty(len(rows))
        for c, places in by_class(classes.astype(np.intp)):
            found[places] = self.subspaces[c].mahalanobis(rows[places], n_threads)
        return found


def possible_scores(check: Callable[[list[str]], None]) -> list[str]:
    """Return the score types that `check` accepts, which raises ValueError for the others."""
    kinds = []
    for kind in SCORES:
        with contextlib.suppress(ValueError):
            check([kind])
            kinds.append(kind)
    return kinds


@dataclass(frozen=True)
class DensityFit:
    """A fitted density, and what held-out scores of its rows are computed from.

    Attributes
    ----------
    density : Density
    fits : dict of int to SubspaceFit
        By the number of the class, or 0 where all classes share one scatter.
    tied : bool
        Whether they do.
    """

    density: Density
    fits: Mapping[int, SubspaceFit]
    tied: bool


def fit_density(
    cells: Mapping[int, Accumulator],
    order: Sequence[int],
    *,
    n_components: float | int | None,
    regularization: str | float | None,
    tied: bool,
    mixture_rows: RowSample | None,
    random_state: int,
    n_threads: int,
    classes: Sequence[Any] | None = None,
    whole: bool = False,
    quiet: bool = False,
) -> DensityFit:
    """Fit the density of accumulated rows.

    Parameters
    ----------
    cells : mapping of int to Accumulator
        Rows of each class, by its number; where `tied`, all rows under 0.
    order : sequence of int
        The numbers of the classes, in the order that the density has them in.
    n_components, regularization
        As in `pydfm.stats.subspace.fit_subspace`.
    tied : bool
        Whether the classes share one scatter.
    mixture_rows : RowSample or None
        The rows to fit mixtures to, tagged with the numbers of their classes.
    random_state : int
        Seed of the mixtures.
    n_threads : int
    classes : sequence, optional
        Labels of the classes, for messages.
    whole : bool
        See `Spectrum.fit`.
    quiet : bool
        Whether warnings are left out, where the same rows gave them before.

    Raises
    ------
    ValueError
        With fewer than two rows, rows that are not finite, or more components than min(N, D).
    """
    used = [0] if tied else order
    n_samples = sum(cells[c].n_samples for c in used) if cells else 0
    if n_samples < 2:
        raise ValueError(f"X has n_samples={n_samples}; fit needs at least two rows (images)")
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore", UserWarning)
        fits = {
            c: Spectrum.of(cells[c], n_threads).fit(
                n_components, regularization, n_threads, whole=whole
            )
            for c in used
        }
        subspaces = tuple(fits[0].subspaces[c] if tied else fits[c].subspaces[0] for c in order)
        background = None
        if len(subspaces) > 1:
            background = functools.partial(
                _background_of,
                {c: cells[c] for c in used},
                n_components=n_components,
                regularization=regularization,
                n_threads=n_threads,
            )
        _check_scale(subspaces)
        _warn_of_sketch(subspaces)
        _check_components(subspaces, n_components, tied, n_samples, classes)
        mixtures = None
        if mixture_rows is not None:
            _, rows, numbers, _ = mixture_rows.take()
            mixtures = tuple(
                fit_mixture(subspace, rows[numbers == c], random_state, n_threads)
                for c, subspace in zip(order, subspaces, strict=True)
            )
            _warn_of_sampling(mixtures, n_samples)
    return DensityFit(Density(subspaces, background, mixtures), fits, tied)


def _background_of(cells: Mapping[int, Accumulator], **options: Any) -> Subspace:
    """Return the subspace of the rows of all classes together; see `fit_background`."""
    return fit_background(cells, **options).subspaces[0]


def fit_background(
    cells: Mapping[int, Accumulator],
    *,
    n_components: float | int | None,
    regularization: str | float | None,
    n_threads: int,
) -> SubspaceFit:
    """Fit the subspace of the rows of all classes together; parameters as in `fit_density`."""
    together: Accumulator | None = None
    for cell in cells.values():
        one = np.zeros(len(cell.counts()), dtype=np.intp)
        together = together or Accumulator(None, cell.max_bytes)
        together = together.merge(cell, one, n_threads=n_threads)
    assert together is not None
    return Spectrum.of(together, n_threads).fit(n_components, regularization, n_threads)


def _check_scale(subspaces: tuple[Subspace, ...]) -> None:
    """Raise ValueError where squared distances leave what float32 scores can hold."""
    variances = [own.total_variance for own in subspaces if len(own.components)]
    largest = max(variances, default=1.0)
    if not _LEAST_VARIANCE <= largest <= _MOST_VARIANCE:
        size = math.sqrt(largest / len(subspaces[0].mean))
        raise ValueError(
            f"X varies by about {size:.1e} in each feature, and squares of that leave the range of "
            f"float32, which scores are in; multiply all features by about {1 / size:.0e}"
        )


def _warn_of_sketch(subspaces: tuple[Subspace, ...]) -> None:
    """Warn where rows were sketched, and how far variances may be off."""
    worst = max(subspaces, key=lambda subspace: subspace.variance_error)
    if worst.variance_error > 0:
        largest = max(worst.explained_variance[:1], default=0.0)
        warnings.warn(
            "max_memory leaves no room for the rows or their exact scatter: a sketch replaces it, "
            f"whose variances are too low by at most {worst.variance_error:.3g}, where the largest "
            f"is {largest:.3g}; allow more memory for exact ones",
            stacklevel=3,
        )


def _warn_of_sampling(mixtures: tuple[Mixture, ...], n_samples: int) -> None:
    """Warn where mixtures are fitted on some of the rows only."""
    n_rows = sum(mixture.n_samples for mixture in mixtures)
    if n_rows < n_samples:
        warnings.warn(
            f"density is 'gmm', and max_memory leaves room for {n_rows} of {n_samples} rows: "
            "mixtures are fitted on these, drawn at random",
            stacklevel=3,
        )


def _check_components(
    subspaces: tuple[Subspace, ...],
    n_components: float | int | None,
    tied: bool,
    n_samples: int,
    classes: Sequence[Any] | None,
) -> None:
    """Warn where there is less variance than components were asked for."""
    wanted = n_components if n_components is not None and n_components >= 1 else None
    if len(subspaces) > 1 and not tied:
        _check_components_of_classes(subspaces, wanted, classes)
        return
    n_features, kept = len(subspaces[0].mean), len(subspaces[0].components)
    most = min(n_samples, n_features)
    if wanted is not None and wanted > most:
        raise ValueError(
            f"n_components is {wanted}; with the rows and features given it may be at most "
            f"min(N, D) = {most}"
        )
    if kept == 0 and len(subspaces) == 1:
        message = (
            "all rows of X are equal: there is no variance to model, and fre becomes the squared "
            "distance from that row"
        )
    elif kept == 0:
        message = (
            "all rows of each class are equal: there is no variance within classes to model, and "
            "fre becomes the squared distance from a class's rows"
        )
    elif subspaces[0].variance_error > 0 and wanted is None:
        share = 1.0 if n_components is None else float(n_components)
        held = subspaces[0].explained_variance.sum() / subspaces[0].total_variance
        if held >= share:
            return
        message = (
            f"n_components is {n_components}, but the sketch that max_memory leaves room for has "
            f"{kept} components, which hold {held:.3f} of the variance"
        )
    elif wanted is not None and wanted > kept:
        message = (
            f"n_components is {wanted}, but X has variance in {kept} directions only: {kept} "
            "components are kept"
        )
    else:
        return
    warnings.warn(message, stacklevel=4)


def _check_components_of_classes(
    subspaces: tuple[Subspace, ...], wanted: float | int | None, classes: Sequence[Any] | None
) -> None:
    counts = np.array([len(subspace.components) for subspace in subspaces])
    few = int((counts < wanted).sum()) if wanted is not None else int((counts == 0).sum())
    if not few:
        return
    least = int(counts.argmin())
    name = repr(classes[least]) if classes is not None else least
    asked = f"n_components is {wanted}, but" if wanted is not None else "the rows of"
    have = "have variance in fewer directions" if wanted is not None else "are all equal"
    warnings.warn(
        f"{asked} {few} of {len(subspaces)} classes {have}, and keep as many components as they "
        f"have: class {name}, of {subspaces[least].n_samples} row(s), keeps {counts[least]}",
        stacklevel=5,
    )
