r"""Held-out scores made p-values and thresholds: conformal prediction.

Let s_1, ..., s_n be the held-out scores of normal rows of a class. The p-value of a score s is

    p = (1 + #{i: s_i >= s}) / (n + 1),

the share of normal rows, the new one included, that score at least as high. Where the n rows and a
new one are exchangeable and the model depends on none of them (calibration="split"), p <= alpha has
a probability of at most alpha for every alpha (Vovk, Gammerman and Shafer 2005). Under
leave-one-out each row has a model of its own, which shares all but one of n rows with the final
model; docs/calibration.md says what is left of the bound.

A row is as normal as it is under the class that suits it best, so that with several classes its
p-value is the largest over the classes. The least score would favour classes whose scores run low.

The smallest p-value is 1 / (n + 1), and no level alpha below it can be asked for. A finer tail is a
model: the excesses of the largest tenth of the scores, at least ten, over the next score follow a
generalised Pareto distribution (Pickands 1975), fitted by maximum likelihood. A shape below zero,
which would end the tail at some score, is replaced by zero, an exponential.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.inputs.labels import by_class
from pydfm.model.fitting import FittedDFM
from pydfm.model.held_out import HeldOutSample
from pydfm.runtime.checks import check_share

TAILS: Final = ("gpd",)
LEVELS: Final = (0.01, 0.05, 0.1)
"""False-alarm rates whose thresholds are shown."""

_LEAST_TAIL = 10
ROUNDING: Final = 1e-9
"""(n + 1) alpha is meant to be an integer where it is one but for rounding."""

# Larger numbers of images are told by their order alone.
_COUNTABLE = 2**53
# Differences of held-out and new scores that are sorted at once.
_DIFFERENCES = 4_000_000


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto distribution of the excesses of scores over `start`.

    Attributes
    ----------
    start : float
        The score at which the tail begins.
    share : float
        Share of normal rows that score above it.
    shape, scale : float
        Parameters of the distribution: not negative, and positive.
    """

    start: float
    share: float
    shape: float
    scale: float

    @classmethod
    def fit(cls, scores: NDArray[np.floating]) -> "Tail":
        """Fit it to the largest of `scores` (n,), ascending.

        Raises
        ------
        ValueError
            If there are too few scores, or the largest are equal.
        """
        from scipy.stats import genpareto

        n = len(scores)
        count = max(n // 10, _LEAST_TAIL)
        if n < 3 * _LEAST_TAIL:
            raise ValueError(
                f"tail is 'gpd', which is fitted to the largest of at least {3 * _LEAST_TAIL} "
                f"held-out scores of normal rows, and there are {n}; fit with more rows, or leave "
                "tail out"
            )
        start = float(scores[-count - 1])
        excesses = scores[-count:].astype(np.float64) - start
        excesses = excesses[excesses > 0]
        if len(excesses) < 2:
            raise ValueError(
                "tail is 'gpd', but the largest held-out scores of normal rows are equal, which "
                "leaves no tail to fit; leave tail out"
            )
        unit = float(excesses.mean())  # so that the search starts near its end
        shape, _, scale = genpareto.fit(excesses / unit, floc=0)
        if not (shape > 0 and math.isfinite(shape) and scale > 0):
            shape, scale = 0.0, 1.0
        return cls(start, (count + 1) / (n + 1), float(shape), float(scale) * unit)

    def p_values(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return p-values of `scores` above `start`."""
        from scipy.stats import genpareto

        excesses = np.asarray(scores, dtype=np.float64) - self.start
        return np.asarray(self.share * genpareto.sf(excesses, self.shape, scale=self.scale))

    def threshold(self, alpha: float) -> float:
        """Return the score above which p-values are below `alpha`."""
        from scipy.stats import genpareto

        return self.start + float(genpareto.isf(alpha / self.share, self.shape, scale=self.scale))


@dataclass(frozen=True)
class Ranks:
    """Held-out scores of a class under one model, by which a new score is ranked.

    Attributes
    ----------
    scores : ndarray of shape (n,), float32
        Ascending.
    weights : ndarray of shape (n + 1,), float64
        The weight of all scores from each on, and 0. A unit weighs 1, and each of its m rows 1 / m.
    """

    scores: NDArray[np.float32]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, scores: NDArray[np.floating], weights: NDArray[np.float64]) -> "Ranks":
        """Rank `scores` (n,), each with a weight."""
        order = np.argsort(scores, kind="stable")
        total = np.concatenate([np.cumsum(weights[order][::-1])[::-1], [0.0]])
        if np.array_equal(weights, np.ones(len(weights))):
            total = np.arange(len(weights), -1, -1, dtype=np.float64)
        return cls(scores[order].astype(np.float32), total)

    def at_least(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the weight of the held-out scores that are at least as high as `scores` (...)."""
        return np.asarray(self.weights[np.searchsorted(self.scores, scores, side="left")])


@dataclass(frozen=True)
class Calibration:
    """Held-out scores of normal rows, of one type.

    Attributes
    ----------
    ranks : tuple of tuple of Ranks
        Of each class and, where rows were held out in folds, of each fold.
    n_units : ndarray of shape (C,), float64
        Number of units of each class, n in the formulas.
    classes : sequence or None
        Labels of the classes; None without any.
    tails : tuple of Tail or None, or None
        The tail of each class, only where it was asked for; p-values below 1 / (n + 1) then come
        from it.
    """

    ranks: tuple[tuple[Ranks, ...], ...]
    n_units: NDArray[np.float64]
    classes: Sequence[Any] | None = None
    tails: tuple[Tail | None, ...] | None = None

    @classmethod
    def of(
        cls,
        scores: NDArray[np.floating],
        classes: NDArray[np.intp],
        names: Sequence[Any] | None = None,
        units: NDArray[np.intp] | None = None,
        folds: NDArray[np.intp] | None = None,
        n_folds: int = 1,
    ) -> "Calibration":
        """Take held-out scores.

        Parameters
        ----------
        scores : ndarray of shape (n,)
        classes : ndarray of shape (n,)
            Numbered in the order of their names.
        names : sequence, optional
            Labels of the classes; None without any.
        units : ndarray of shape (n,), optional
            Rows of a class that share one count together; default each by itself.
        folds : ndarray of shape (n,), optional
        n_folds : int
        """
        ranks, counts = [], []
        for c in range(1 if names is None else len(names)):
            own = classes == c
            weights = np.ones(int(own.sum()))
            if units is not None:
                _, inverse, sizes = np.unique(units[own], return_inverse=True, return_counts=True)
                weights = 1 / sizes[inverse.reshape(-1)]
                counts.append(float(len(sizes)))
            else:
                counts.append(float(len(weights)))
            fold = np.zeros(len(weights), dtype=np.intp) if folds is None else folds[own]
            each = [fold == k for k in range(n_folds)]
            ranks.append(tuple(Ranks.of(scores[own][k], weights[k]) for k in each))
        return cls(tuple(ranks), np.array(counts), names)

    @property
    def in_folds(self) -> bool:
        """Whether each fold has scores of its own."""
        return len(self.ranks[0]) > 1

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which classes (C,) have held-out scores."""
        return self.n_units > 0

    @property
    def smallest_alpha(self) -> float:
        """The smallest level at which every class has a threshold, without a modelled tail."""
        return float(1 / (self.n_units[self.usable].min(initial=np.inf) + 1))

    def with_tail(self, tail: str) -> "Calibration":
        """Return this with a modelled `tail`, "gpd", of each class."""
        if tail not in TAILS:
            raise ValueError(f"tail is {tail!r}; it must be None or 'gpd'")
        if self.in_folds:
            raise ValueError(
                "tail is 'gpd', which needs held-out scores under one model, and calibration is "
                "'kfold', with one for each fold; fit with 'loo' or 'split', or leave tail out"
            )
        tails = tuple(Tail.fit(own[0].scores) if len(own[0].scores) else None for own in self.ranks)
        return replace(self, tails=tails)

    def p_values(
        self, scores: Sequence[NDArray[np.floating]] | NDArray[np.floating], c: int = 0
    ) -> NDArray[np.float64]:
        """Return p-values (...) under the class at place `c`; NaN where it has no held-out scores.

        Parameters
        ----------
        scores : ndarray of shape (n_folds, ...)
            Under the model of each fold; (1, ...) without folds.
        c : int
        """
        first = np.asarray(scores[0])
        if self.n_units[c] == 0:
            return np.full(first.shape, np.nan)
        above = sum(ranks.at_least(own) for ranks, own in zip(self.ranks[c], scores, strict=True))
        p = (1 + above) / (self.n_units[c] + 1)
        tail = None if self.tails is None else self.tails[c]
        if tail is not None:
            p = np.where(first > tail.start, tail.p_values(first), p)
        missing = np.isnan(first)
        return np.where(missing, np.nan, p) if missing.any() else np.asarray(p)

    def levels(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return all levels at which decisions change, ascending, and their thresholds.

        Of one class and one model: p-values are at most a level exactly where scores are above its
        threshold.
        """
        (ranks,) = self.ranks[0]
        scores, last = np.unique(ranks.scores[::-1], return_index=True)
        above = ranks.weights[len(ranks.scores) - last][::-1]
        alphas = (1 + above) / (self.n_units[0] + 1)
        return alphas, scores[::-1].astype(np.float64)

    def thresholds_to_show(self, alpha: float) -> dict[str, list[float | None]]:
        """Return the thresholds of the classes at `LEVELS` and `alpha`, by the level.

        Levels below the smallest p-value are left out; None where a class has no threshold. Empty
        where rows were held out in folds.
        """
        found: dict[str, list[float | None]] = {}
        for level in sorted({*LEVELS, alpha}):
            if level >= self.smallest_alpha and not self.in_folds:
                each = [self.threshold(level, c) for c in range(len(self.ranks))]
                found[f"{level:g}"] = [None if math.isnan(one) else one for one in each]
        return found

    def threshold(self, alpha: float, c: int = 0) -> float:
        """Return the score of the class at place `c` above which p-values are at most `alpha`.

        Where `alpha` is below the smallest p-value, the score above which p-values are smallest.
        NaN where the class has no held-out scores.

        Raises
        ------
        AttributeError
            If rows were held out in folds, each of which has a threshold of its own.
        """
        if self.in_folds:
            raise AttributeError(
                "calibration is 'kfold': a score is compared under the model of each fold, and "
                "there is no one threshold; use predict, p_value or decision_function"
            )
        if self.n_units[c] == 0:
            return math.nan
        tail = None if self.tails is None else self.tails[c]
        if tail is not None and alpha < tail.share:
            return tail.threshold(alpha)
        (ranks,) = self.ranks[c]
        # The highest score whose p-value exceeds the level.
        kept = np.flatnonzero(1 + ranks.weights[:-1] > self._rejected(alpha, c))
        return float(ranks.scores[kept[-1]]) if len(kept) else -math.inf

    def margins(
        self,
        scores: Sequence[NDArray[np.floating]] | NDArray[np.floating],
        alpha: float,
        c: int = 0,
    ) -> NDArray[np.float64]:
        """Return how far below the threshold of the class `c` scores (N,) are; negative = above.

        Under folds: the largest t for which the p-value of the scores raised by t, each under the
        model of its fold, exceeds `alpha`; with one model that is threshold less score.

        Parameters
        ----------
        scores : ndarray of shape (n_folds, N)
        alpha : float
        c : int
        """
        if not self.in_folds:
            return np.asarray(self.threshold(alpha, c) - np.asarray(scores[0], dtype=np.float64))
        if self.n_units[c] == 0:
            return np.full(len(scores[0]), np.nan)
        least = self._rejected(alpha, c)
        parts = []
        step = max(1, _DIFFERENCES // max(sum(len(ranks.scores) for ranks in self.ranks[c]), 1))
        for first in range(0, len(scores[0]), step):
            block = [np.asarray(own[first : first + step], dtype=np.float64) for own in scores]
            away, weights = [], []
            for ranks, own in zip(self.ranks[c], block, strict=True):
                away.append(ranks.scores - own[:, None])
                weights.append(np.broadcast_to(-np.diff(ranks.weights), away[-1].shape))
            differences, weight = np.concatenate(away, axis=1), np.concatenate(weights, axis=1)
            order = np.argsort(-differences, axis=1)
            total = 1 + np.take_along_axis(weight, order, axis=1).cumsum(axis=1)
            place = (total > least).argmax(axis=1)
            found = np.take_along_axis(differences, order, axis=1)[np.arange(len(order)), place]
            parts.append(np.where(total[:, -1] > least, found, -np.inf))
        return np.concatenate(parts)

    def p_values_of(self, sample: HeldOutSample) -> NDArray[np.float64]:
        """Return p-values (n,) of the held-out rows, each among the units of its class and fold.

        A row's own unit counts as one that scores as high: where the n units of its class are
        exchangeable, p is at most alpha for a share of at most alpha of them.
        """
        p = np.empty(len(sample.classes))
        scores = sample.scores[0]
        for c, places in by_class(sample.classes):
            for fold, ranks in enumerate(self.ranks[c]):
                own = places[sample.folds[places] == fold]
                above = ranks.at_least(scores[own])
                for _, rows in by_class(sample.units[own]):
                    theirs = scores[own[rows]]
                    share = (theirs >= theirs[:, None]).mean(axis=1)
                    above[rows] += 1 - share
                p[own] = above / max(ranks.weights[0], 1)
        return p

    def reject(self, sample: HeldOutSample, alpha: float) -> NDArray[np.bool_]:
        """Return which held-out rows (n,) are anomalous at a level, each among the others.

        Where `alpha` is below the smallest p-value, those with the smallest one are.
        """
        p, rejected = self.p_values_of(sample), np.zeros(len(sample.classes), dtype=bool)
        for c, places in by_class(sample.classes):
            for fold, ranks in enumerate(self.ranks[c]):
                own = places[sample.folds[places] == fold]
                least = 1 / max(ranks.weights[0], 1)
                rejected[own] = p[own] <= max(alpha, least) + ROUNDING
        return rejected

    def for_core(self, alpha: float | None) -> _core.HeldOutScores | None:
        """Return this for the core, with the thresholds of a level; None for folds and tails.

        Parameters
        ----------
        alpha : float or None
            None where no margins are asked for.
        """
        if self.in_folds or self.tails is not None:
            return None
        each = [own[0] for own in self.ranks]
        starts = np.cumsum([0] + [len(own.scores) for own in each], dtype=np.int64)
        thresholds = np.full(len(each), np.nan)
        if alpha is not None:
            thresholds = np.array([self.threshold(alpha, c) for c in range(len(each))])
        return _core.HeldOutScores(
            np.concatenate([own.scores for own in each]),
            np.concatenate([own.weights for own in each]),
            starts,
            self.n_units,
            thresholds,
        )

    def own_p_values(self, c: int = 0) -> NDArray[np.float64]:
        """Return p-values (n,) of the held-out rows of the class at place `c` among the others."""
        own = [ranks.at_least(ranks.scores) / max(ranks.weights[0], 1) for ranks in self.ranks[c]]
        return np.concatenate(own)

    def _rejected(self, alpha: float, c: int) -> float:
        """Return how many of n + 1 units, one of which is the new one, may be rejected."""
        return most_rejected(float(self.n_units[c]), alpha)


def most_rejected(n_units: float, alpha: float) -> float:
    """Return how many of `n_units` + 1, one of which is the new one, a level may reject.

    At least one: below 1 / (n + 1) the smallest level is taken.
    """
    return max(alpha * (n_units + 1), 1.0) + ROUNDING


def calibration_of(
    fitted: FittedDFM, score_type: str, tail: str | None = None, layer: int | None = None
) -> Calibration:
    """Return the calibration of a score type.

    Parameters
    ----------
    fitted : FittedDFM
    score_type : str
    tail : {"gpd"}, optional
        A model of the scores' tail.
    layer : int, optional
        The place of one layer; default all layers together.

    Raises
    ------
    ValueError
        If there are no held-out scores of that type.
    """
    found: Calibration = fitted.once(
        ("calibration", score_type, tail, layer),
        lambda: _calibration_of(fitted, score_type, tail, layer),
    )
    return found


def _calibration_of(
    fitted: FittedDFM, score_type: str, tail: str | None, layer: int | None
) -> Calibration:
    held_out = fitted.held_out_of(score_type)
    sample = held_out.samples.get(score_type)
    if sample is None or len(sample.classes) == 0:
        raise ValueError(
            f"score_type is {score_type!r}, of which there are no held-out scores; fit with that "
            "score_type, or with more rows"
        )
    calibration = Calibration.of(
        sample.scores[0 if layer is None else layer + 1],
        sample.classes,
        fitted.model.classes,
        sample.units,
        sample.folds,
        max(len(held_out.folds), 1),
    )
    return calibration if tail is None else calibration.with_tail(tail)


def thresholds(fitted: FittedDFM, score_type: str, alpha: float) -> NDArray[np.float64]:
    """Return the thresholds (C,) of a score type under each class; NaN where there is none.

    Raises
    ------
    ValueError
        If `alpha` is out of its range.
    AttributeError
        If rows were held out in folds, each of which has a threshold of its own.
    """
    check_share("alpha", alpha)
    calibration = calibration_of(fitted, score_type)
    found = [calibration.threshold(alpha, c) for c in range(len(calibration.ranks))]
    warn_of_few(calibration, alpha)
    return np.array(found)


def warn_of_few(calibration: Calibration, alpha: float) -> None:
    """Warn where a level is below the smallest p-value, or a class has no held-out scores."""
    for message in few_held_out(calibration, alpha):
        warnings.warn(message, stacklevel=4)


def few_held_out(calibration: Calibration, alpha: float) -> list[str]:
    """Return what to warn of: a level below the smallest p-value, classes without held-out scores.

    A modelled tail has no smallest p-value.
    """
    names = calibration.classes
    counts = calibration.n_units
    messages = []
    if not calibration.usable.all():
        assert names is not None
        some = [names[int(c)] for c in np.flatnonzero(~calibration.usable)]
        named = f"the class {some[0]!r} has" if len(some) == 1 else f"{len(some)} classes have"
        messages.append(
            f"{named} no held-out scores, since nothing is left of a class without its only image "
            "or group: other classes decide; fit with more of it"
        )
    counted = np.array([t is None for t in calibration.tails or (None,) * len(counts)])
    few = calibration.usable & counted & (alpha * (counts + 1) + ROUNDING < 1)
    if few.any():
        c = int(np.where(few, counts, np.inf).argmin())
        n, needed = int(counts[c]), 1 / alpha - ROUNDING
        more = f"{math.ceil(needed) - 1 - n}" if needed < _COUNTABLE else f"about {needed:.0e}"
        named = "" if names is None else f" of the class {names[c]!r}"
        messages.append(
            f"alpha is {alpha:.6g}, and {n} held-out images or groups{named} give no p-value below "
            f"1 / {n + 1} = {1 / (n + 1):.3g}: that level is used; {more} more are needed "
            f"for {alpha:.6g}"
        )
    return messages


def map_range(fitted: FittedDFM, alpha: float, map_type: str | None) -> tuple[float, float]:
    """Return what maps of good images typically reach, and `map_threshold`.

    The first is the median of the largest values of the maps of held-out images.
    """
    threshold = map_threshold(fitted, alpha, map_type)
    maxima = fitted.held_out.map_maxima
    assert maxima is not None
    return min(float(np.median(maxima)), threshold), threshold


def map_threshold(fitted: FittedDFM, alpha: float, map_type: str | None) -> float:
    """Return the value that a share `alpha` of the maps of normal images exceed anywhere.

    Parameters
    ----------
    fitted : FittedDFM
    alpha : float
    map_type : str or None
        Score type of the maps; see `Model.map_type`.

    Raises
    ------
    ValueError
        As `thresholds`; and if the model has no maps of held-out images, or those of another type.
    """
    check_share("alpha", alpha)
    maxima, known = fitted.held_out.map_maxima, fitted.held_out.map_type
    if maxima is None:
        raise ValueError(
            "the model has no maps of held-out images; fit to images, with layers that have "
            "positions and a score type that has maps"
        )
    if known is not None and map_type != known:
        raise ValueError(
            f"the maps are of score_type={map_type!r}, and those of held-out images of {known!r}, "
            "so that there is no threshold for them; fit with that score_type, or recalibrate with "
            "it and later images"
        )
    if fitted.held_out.folds:
        warnings.warn(
            "calibration is 'kfold': the threshold of maps comes from models of nine tenths of the "
            "images, and is not exact for the model of all",
            stacklevel=3,
        )
    calibration = Calibration.of(maxima, np.zeros(len(maxima), dtype=np.intp))
    warn_of_few(calibration, alpha)
    return calibration.threshold(alpha)
