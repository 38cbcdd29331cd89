r"""Scores made p-values, thresholds and verdicts by those of normal rows the model has not seen.

Let s_1, ..., s_n be scores that normal rows of a class have under a model without them. The p-value
of a score s is

    p = (1 + #{i: s_i >= s}) / (n + 1),

the share of normal rows that score as high, itself included. Where the n rows and a fresh one are
exchangeable, and the model depends on none of them (calibration="split"), p <= alpha has a
probability of at most alpha for every alpha (Vovk, Gammerman and Shafer 2005). Under leave-one-out
each row has a model of its own, which is that of all but for one row of n; docs/calibration.md has
what is left of the bound.

A row is as normal as it is under the class it suits best, so that of several classes its p-value is
the largest over the classes. The least score would favour classes whose scores run low.

The smallest p-value is 1 / (n + 1), and no level alpha below it can be asked for. A finer tail is a
model: the excesses of the largest tenth of the scores, at least ten, over the next score follow a
generalised Pareto distribution (Pickands 1975), fitted by maximum likelihood. A shape below zero,
which would end the tail at some score, is taken for zero, an exponential.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TAILS: Final = ("gpd",)

_LEAST_TAIL = 10
# (n + 1) alpha is meant to be an integer where it is one but for rounding.
_ROUNDING = 1e-9
_MORE = "fit with more normal rows"


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto distribution of what scores exceed `start` by.

    Attributes
    ----------
    start : float
        A score.
    share : float
        Of normal rows that score above it.
    shape, scale : float
        Not negative; positive.
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
            Where there are too few, or the largest are equal.
        """
        from scipy.stats import genpareto

        n = len(scores)
        count = max(n // 10, _LEAST_TAIL)
        if n < 3 * _LEAST_TAIL:
            raise ValueError(
                f"tail is 'gpd', which is fitted to the largest of at least {3 * _LEAST_TAIL} "
                f"scores of normal rows that were left out, and there are {n}; fit with more rows, "
                "or leave tail out"
            )
        start = float(scores[-count - 1])
        excesses = scores[-count:].astype(np.float64) - start
        excesses = excesses[excesses > 0]
        if len(excesses) < 2:
            raise ValueError(
                "tail is 'gpd', but the largest scores of normal rows that were left out are "
                "equal, which has no tail; leave tail out"
            )
        unit = float(excesses.mean())  # so that the search starts near its end
        shape, _, scale = genpareto.fit(excesses / unit, floc=0)
        if not (shape > 0 and math.isfinite(shape) and scale > 0):
            shape, scale = 0.0, 1.0
        return cls(start, (count + 1) / (n + 1), float(shape), float(scale) * unit)

    def p_values(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """P-values of `scores` above `start`."""
        from scipy.stats import genpareto

        excesses = np.asarray(scores, dtype=np.float64) - self.start
        return np.asarray(self.share * genpareto.sf(excesses, self.shape, scale=self.scale))

    def threshold(self, alpha: float) -> float:
        """Return the score above which p-values are below `alpha`."""
        from scipy.stats import genpareto

        return self.start + float(genpareto.isf(alpha / self.share, self.shape, scale=self.scale))


@dataclass(frozen=True)
class Calibration:
    """Scores, of one type, of normal rows under the model without them.

    Attributes
    ----------
    scores : tuple of ndarray, float32
        Of each class, ascending.
    classes : sequence or None
        What the classes are called; None where there are none.
    tails : tuple of Tail or None
        Of each class; only where a modelled tail was asked for, and p-values below 1 / (n + 1) are
        then those of the model.
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
        """The smallest level that every class has a threshold at, without a modelled tail."""
        return max(1 / (len(own) + 1) for own in self.scores)

    def with_tail(self, tail: str) -> "Calibration":
        """Return this with a modelled `tail`, "gpd", of each class."""
        if tail not in TAILS:
            raise ValueError(f"tail is {tail!r}; it must be None or 'gpd'")
        return replace(self, tails=tuple(Tail.fit(own) for own in self.scores))

    def p_values(self, scores: NDArray[np.floating], c: int = 0) -> NDArray[np.float64]:
        """P-values of `scores` (...) under the class numbered `c`."""
        own = self.scores[c]
        if len(own) == 0:
            raise ValueError(f"{self._named(c)} has no row that could be left out; {_MORE}")
        at_least = len(own) - np.searchsorted(own, scores, side="left")
        p = (1 + at_least) / (len(own) + 1)
        if self.tails is not None:
            beyond = np.asarray(scores) > self.tails[c].start
            p = np.where(beyond, self.tails[c].p_values(scores), p)
        return np.where(np.isnan(scores), np.nan, p)

    def threshold(self, alpha: float, c: int = 0) -> float:
        """Score of the class numbered `c`, above which alone p-values are at most `alpha`.

        Raises
        ------
        ValueError
            Where the class has too few rows for that.
        """
        own = self.scores[c]
        rejected = math.floor(alpha * (len(own) + 1) + _ROUNDING)
        if self.tails is not None and alpha < self.tails[c].share:
            return self.tails[c].threshold(alpha)
        if rejected < 1:
            raise ValueError(
                f"alpha is {alpha:.6g}, but {self._named(c)} has {len(own)} scores of normal rows "
                f"that were left out, whose p-values are not below 1 / {len(own) + 1} = "
                f"{1 / (len(own) + 1):.4g}; take at least that for alpha, or {_MORE}"
            )
        # As many as are rejected among n + 1, one of which is the score itself.
        return -math.inf if rejected > len(own) else float(own[-rejected])

    def own_p_values(self, c: int = 0) -> NDArray[np.float64]:
        """P-values (n,) of the rows of the class numbered `c`, each among the others."""
        own = self.scores[c]
        return (len(own) - np.searchsorted(own, own, side="left")) / max(len(own), 1)

    def _named(self, c: int) -> str:
        return "the model" if self.classes is None else f"the class {self.classes[c]!r}"


@dataclass(frozen=True)
class ModelCalibration:
    """Scores of normal rows under a model without them, of all types that it has.

    Attributes
    ----------
    classes : dict of str to ndarray of shape (n,)
        By score type, numbers of the rows' classes.
    scores : dict of str to ndarray of shape (1 + L, n), float32
        What `DFM.score` gives, and what each of L layers gives by itself.
    map_maxima : ndarray of shape (m,), float32, or None
        Of the maps of pictures.
    """

    classes: dict[str, NDArray[np.intp]]
    scores: dict[str, NDArray[np.float32]]
    map_maxima: NDArray[np.float32] | None

    def of(
        self, score_type: str, names: Sequence[Any] | None, layer: int | None = None
    ) -> Calibration:
        """Return the calibration of a score type, of all layers together or of one.

        Raises
        ------
        ValueError
            If rows that are left out do not have it.
        """
        if score_type not in self.scores:
            raise ValueError(
                f"score_type is {score_type!r}, which the rows that were left out do not have; fit "
                "with that score_type, or with more rows"
            )
        row = 0 if layer is None else layer + 1
        return Calibration.of(self.scores[score_type][row], self.classes[score_type], names)


@dataclass(frozen=True)
class Assessment:
    """What a model makes of N images.

    Attributes
    ----------
    scores : ndarray of shape (N,), float32
    p_values : ndarray of shape (N,), float64
        Both NaN for pictures that were skipped.
    verdicts : ndarray of shape (N,)
        +1 for normal, -1 for anomalous, 0 for skipped.
    """

    scores: NDArray[np.float32]
    p_values: NDArray[np.float64]
    verdicts: NDArray[np.intp]


@dataclass(frozen=True)
class Drift:
    """Whether rows that come still score as the normal rows do that were left out.

    Each p-value is that of a two-sample Kolmogorov-Smirnov test between the rows' p-values and
    those of the left-out rows; a small one says that they moved.

    Attributes
    ----------
    p_value : float
        Of all rows, by the score of all layers together.
    classes : dict
        By class, where the model has any and the batch has rows of it.
    layers : dict of str to float
        By layer.
    n_samples : int
        Rows that were tested.
    """

    p_value: float
    classes: dict[Any, float]
    layers: dict[str, float]
    n_samples: int

    def moved(self, alpha: float = 0.01) -> list[Any]:
        """Return the classes and layers that moved.

        Their p-values are at most alpha, divided by the number of tests (Bonferroni).
        """
        tests = [*self.classes.items(), *self.layers.items()]
        return [name for name, p in tests if p * len(tests) <= alpha]


def uniformity(p: NDArray[np.float64], own: NDArray[np.float64], *, one_sided: bool) -> float:
    """P-value of a test whether `p` (m,) are distributed as `own` (n,), those of left-out rows.

    Since p-values of one model share its n left-out rows, a test against the uniform distribution
    itself would call that chance a drift; between two samples it is counted in.

    Parameters
    ----------
    one_sided : bool
        Ask only whether `p` are smaller.
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(p, own, alternative="greater" if one_sided else "two-sided").pvalue)
