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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.model.fitting import FittedDFM
from pydfm.runtime.checks import check_share

TAILS: Final = ("gpd",)

_LEAST_TAIL = 10
# (n + 1) alpha is meant to be an integer where it is one but for rounding.
_ROUNDING = 1e-9
_MORE = "fit with more normal rows"


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
class Calibration:
    """Held-out scores of normal rows, of one type.

    Attributes
    ----------
    scores : tuple of ndarray, float32
        Those of each class, ascending.
    classes : sequence or None
        Labels of the classes; None without any.
    tails : tuple of Tail or None
        The tail of each class, only where it was asked for; p-values below 1 / (n + 1) then come
        from it.
    """

    scores: tuple[NDArray[np.float32], ...]
    classes: Sequence[Any] | None = None
    tails: tuple[Tail, ...] | None = None

    @classmethod
    def of(
        cls,
        scores: NDArray[np.floating],
        classes: NDArray[np.intp],
        names: Sequence[Any] | None = None,
    ) -> "Calibration":
        """Take `scores` (n,) of rows of `classes` (n,), numbered in the order of their names."""
        n_classes = 1 if names is None else len(names)
        each = [np.sort(scores[classes == c]).astype(np.float32) for c in range(n_classes)]
        return cls(tuple(each), names)

    @property
    def smallest_alpha(self) -> float:
        """The smallest level at which every class has a threshold, without a modelled tail."""
        return max(1 / (len(own) + 1) for own in self.scores)

    def with_tail(self, tail: str) -> "Calibration":
        """Return this with a modelled `tail`, "gpd", of each class."""
        if tail not in TAILS:
            raise ValueError(f"tail is {tail!r}; it must be None or 'gpd'")
        return replace(self, tails=tuple(Tail.fit(own) for own in self.scores))

    def p_values(self, scores: NDArray[np.floating], c: int = 0) -> NDArray[np.float64]:
        """Return p-values of `scores` (...) under the class at place `c`."""
        own = self.scores[c]
        if len(own) == 0:
            raise ValueError(f"{self._named(c)} has no held-out scores; {_MORE}")
        at_least = len(own) - np.searchsorted(own, scores, side="left")
        p = (1 + at_least) / (len(own) + 1)
        if self.tails is not None:
            beyond = np.asarray(scores) > self.tails[c].start
            p = np.where(beyond, self.tails[c].p_values(scores), p)
        return np.where(np.isnan(scores), np.nan, p)

    def threshold(self, alpha: float, c: int = 0) -> float:
        """Return the score of the class at place `c` above which p-values are at most `alpha`.

        Raises
        ------
        ValueError
            If the class has too few held-out scores for that.
        """
        own = self.scores[c]
        rejected = math.floor(alpha * (len(own) + 1) + _ROUNDING)
        if self.tails is not None and alpha < self.tails[c].share:
            return self.tails[c].threshold(alpha)
        if rejected < 1:
            raise ValueError(
                f"alpha is {alpha:.6g}, but {self._named(c)} has {len(own)} held-out scores, whose "
                f"p-values are not below 1 / {len(own) + 1} = {1 / (len(own) + 1):.4g}; take at "
                f"least that for alpha, or {_MORE}"
            )
        # As many as are rejected among n + 1, one of which is the score itself.
        return -math.inf if rejected > len(own) else float(own[-rejected])

    def own_p_values(self, c: int = 0) -> NDArray[np.float64]:
        """Return p-values (n,) of the held-out rows of the class at place `c` among the others."""
        own = self.scores[c]
        return (len(own) - np.searchsorted(own, own, side="left")) / max(len(own), 1)

    def _named(self, c: int) -> str:
        return "the model" if self.classes is None else f"the class {self.classes[c]!r}"


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
    held_out = fitted.held_out
    if score_type not in held_out.scores:
        raise ValueError(
            f"score_type is {score_type!r}, of which there are no held-out scores; fit with that "
            "score_type, or with more rows"
        )
    row = 0 if layer is None else layer + 1
    scores, classes = held_out.scores[score_type][row], held_out.classes[score_type]
    calibration = Calibration.of(scores, classes, fitted.model.classes)
    return calibration if tail is None else calibration.with_tail(tail)


def thresholds(
    fitted: FittedDFM, score_type: str, alpha: float, tail: str | None = None
) -> NDArray[np.float64]:
    """Return the thresholds (C,) of a score type under each class.

    Raises
    ------
    ValueError
        If `alpha` is out of its range, or a class has too few held-out scores for it.
    """
    check_share("alpha", alpha)
    calibration = calibration_of(fitted, score_type, tail)
    return np.array([calibration.threshold(alpha, c) for c in range(len(calibration.scores))])


def map_threshold(fitted: FittedDFM, alpha: float) -> float:
    """Return the value that a share `alpha` of the maps of normal images exceed anywhere.

    Raises
    ------
    ValueError
        As `thresholds`; and if the model has no maps of held-out images.
    """
    check_share("alpha", alpha)
    maxima = fitted.held_out.map_maxima
    if maxima is None:
        raise ValueError(
            "the model has no maps of held-out images; fit to images, with layers that have "
            "positions and a score type that has maps"
        )
    every = np.zeros(len(maxima), dtype=np.intp)
    return Calibration.of(maxima, every).threshold(alpha)
