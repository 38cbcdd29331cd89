r"""A certificate: an upper bound of a threshold's false-alarm rate, with a given confidence.

A threshold from n held-out scores keeps a false-alarm rate of alpha on average over such samples of
n. The rate of one sample's threshold is random, and this page bounds it, with probability c =
confidence over the sample. Let the scores be independent draws of one distribution.

**One level.** Scores are anomalous above the l-th largest of n, l = floor(alpha (n + 1)). The rate
R of that threshold has the distribution Beta(l, n + 1 - l) where the distribution is continuous,
and is smaller where it is not, so R <= the quantile c of Beta(l, n + 1 - l): the exact binomial
bound of Clopper and Pearson, of l - 1 false alarms among n.

**All levels.** The largest excess, over all thresholds, of the rate over the share of the sample
has the distribution of the one-sided statistic D+ of Kolmogorov and Smirnov, which is exact, and
below the bound sqrt(ln(1 / (1 - c)) / (2 n)) of Dvoretzky, Kiefer, Wolfowitz and Massart. So R <=
(l - 1) / n + D+_c holds for every level together, and the level may be chosen afterwards.

**Groups** count as one each: what is averaged over is the share of a group's images above the
threshold. With L = alpha (n + 1) - 1, the bound of one level is the least x with

    min(e P(Binomial(n, x) <= ceil(L)), exp(-n KL(L / n, x))) <= 1 - c,

by Bentkus (2004) and Hoeffding (1963), and of all levels L / n + sqrt((1 + ln(1 / (1 - c))) / (2
n)): the mean over draws of one image of each group has the tail of one draw, but for a factor of e.

**Classes.** A normal image of a class is a false alarm at most as often as by its own class's
threshold. The bound is the largest over C classes, each with confidence 1 - (1 - c) / C.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pydfm.conformal.calibration import ROUNDING, calibration_of, most_rejected
from pydfm.model.fitting import RECALIBRATED, FittedDFM
from pydfm.runtime.checks import check_share

CONFIDENCE: Final = 0.95
FOR_A_PROOF: Final = "recalibrate with later images for a proof"


@dataclass(frozen=True)
class Certificate:
    """A bound of a false-alarm rate.

    Attributes
    ----------
    alpha : float
        The level that was asked for.
    level : float
        The level that is kept on average: `alpha`, or the smallest that n images allow.
    confidence : float
    bound : float
        The false-alarm rate is at most this, with that confidence.
    bound_of_all : float
        The same where the level was chosen by looking at several: it holds for all together.
    n_units : int
        Held-out images, or groups, of the smallest class.
    unit : {"image", "group"}
    ask : float or None
        The largest level whose bound is at most `alpha`; None where none is.
    missing : int
        Good images (or groups; of each class) that are missing for any threshold whose bound is at
        most `alpha`.
    proven : bool
        Whether the bound is proven, for images that are independent draws as those of the sample.
    reason : str
        Why, or why not.
    classes : dict
        The bound of each class, where the model has any.
    """

    alpha: float
    level: float
    confidence: float
    bound: float
    bound_of_all: float
    n_units: int
    unit: str
    ask: float | None
    missing: int
    proven: bool
    reason: str
    classes: dict[Any, float] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """Return in words what holds, whether it is proven, and what is missing."""
        sure = f"{100 * self.confidence:.4g} %"
        each = " of each class" if self.classes else ""
        units = f"held-out {self.unit}s" + (" of the smallest class" if self.classes else "")
        kept = f"alpha {self.alpha:.4g}"
        if self.level != self.alpha:
            kept += f" (in fact {self.level:.3g}, the smallest level of {self.n_units} {units})"
        word = "Proven" if self.proven else "Not proven, an estimate"
        found = [
            f"With {sure} confidence, the threshold of {kept} gives false alarms on at most "
            f"{_percent(self.bound)} of good images, by {self.n_units} {units}.",
            f"If the level was chosen by looking at several: at most "
            f"{_percent(self.bound_of_all)}, for all levels together.",
            f"{word}: {self.reason}.",
        ]
        goal = f"at most {_percent(self.alpha)} with {sure} confidence"
        if self.missing:
            found.append(
                f"For {goal}, {self.missing:,} more good {self.unit}s{each} are missing "
                f"({self.n_units + self.missing:,} in all)."
            )
        else:
            assert self.ask is not None
            found.append(f"For {goal}, ask for alpha {self.ask:.4g}.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, with the sentences, as JSON can hold it."""
        classes = {str(name): own for name, own in self.classes.items()}
        return {**vars(self), "classes": classes, "sentences": self.sentences()}

    def __str__(self) -> str:
        return "\n".join(self.sentences())


def certify(
    fitted: FittedDFM, score_type: str, alpha: float, confidence: float = CONFIDENCE
) -> Certificate:
    """Return the certificate of a level; see `pydfm.DFM.certify`.

    Raises
    ------
    ValueError
        If a number is out of its range, or there are no held-out scores.
    """
    check_share("alpha", alpha)
    check_share("confidence", confidence)
    calibration = calibration_of(fitted, score_type)
    grouped = fitted.held_out_of(score_type).samples[score_type].grouped
    usable = np.flatnonzero(calibration.usable)
    counts = [int(n) for n in calibration.n_units[usable]]
    names = calibration.classes
    # All classes hold together.
    risk = (1 - confidence) / len(counts)
    bounds = [rate_bound(n, alpha, risk, grouped=grouped) for n in counts]
    of_all = [rate_bound_of_all(n, alpha, risk, grouped=grouped) for n in counts]
    fewest = min(counts)
    needed = least_units(alpha, risk)
    asked = None
    if fewest >= needed:
        asked = min(_level_to_ask(n, alpha, risk, grouped=grouped) for n in counts)
    proven, reason = _proof(fitted)
    return Certificate(
        alpha,
        max(alpha, 1 / (fewest + 1)),
        confidence,
        max(bounds),
        max(of_all),
        fewest,
        "group" if grouped else "image",
        asked,
        max(needed - fewest, 0),
        proven,
        reason,
        {}
        if names is None
        else {names[int(c)]: own for c, own in zip(usable, bounds, strict=True)},
    )


def rate_bound(n: int, alpha: float, risk: float, *, grouped: bool = False) -> float:
    """Return what the rate of the threshold of one level exceeds with a probability of `risk`.

    Parameters
    ----------
    n : int
        Number of units.
    alpha, risk : float in (0, 1)
    grouped : bool
        Whether units may have several images.
    """
    from scipy.optimize import brentq
    from scipy.stats import beta, binom

    rejected = most_rejected(n, alpha)
    if not grouped:
        largest = math.floor(rejected)
        return 1.0 if largest > n else float(beta.ppf(1 - risk, largest, n + 1 - largest))
    above = rejected - 1
    if above >= n:
        return 1.0

    def excess(x: float) -> float:
        bentkus = 1 + binom.logcdf(math.ceil(above - 2 * ROUNDING), n, x)
        return float(min(bentkus, -n * _divergence(above / n, x)) - math.log(risk))

    least = max(above / n, 1e-12)
    most = 1 - 1e-12
    return 1.0 if excess(most) > 0 else float(brentq(excess, least, most))


def rate_bound_of_all(n: int, alpha: float, risk: float, *, grouped: bool = False) -> float:
    """Return what the rate of any level's threshold exceeds with a probability of `risk`.

    Parameters
    ----------
    n, alpha, risk, grouped
        As in `rate_bound`.
    """
    from scipy.stats import ksone

    rejected = most_rejected(n, alpha)
    if grouped:
        return min(1.0, (rejected - 1) / n + math.sqrt((1 - math.log(risk)) / (2 * n)))
    return min(1.0, (math.floor(rejected) - 1) / n + float(ksone.ppf(1 - risk, n)))


def least_units(alpha: float, risk: float) -> int:
    """Return how many units the threshold above all of them needs for a bound of `alpha`."""
    return math.ceil(math.log(risk) / math.log1p(-alpha) - ROUNDING)


def _level_to_ask(n: int, alpha: float, risk: float, *, grouped: bool) -> float:
    """Return the largest level l / (n + 1) whose bound is at most `alpha`; n suffices for one."""
    low, high = 1, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        if rate_bound(n, middle / (n + 1), risk, grouped=grouped) <= alpha:
            low = middle
        else:
            high = middle
    return low / (n + 1)


def _divergence(a: float, b: float) -> float:
    """Return the Kullback-Leibler divergence of Bernoulli distributions."""
    left = 0.0 if a == 0 else a * math.log(a / b)
    return left + (0.0 if a == 1 else (1 - a) * math.log((1 - a) / (1 - b)))


def _proof(fitted: FittedDFM) -> tuple[bool, str]:
    """Return whether the held-out scores are as those of new images, and why."""
    proven, reason = held_out_as_new(fitted)
    if proven:
        return True, (
            f"{reason}; it holds for images that are independent draws as these were (not for "
            "another product, lamp or day)"
        )
    return False, f"{reason}; {FOR_A_PROOF}; docs/calibration.md measures how good the levels are"


def held_out_as_new(fitted: FittedDFM) -> tuple[bool, str]:
    """Return whether held-out scores and those of new images are exchangeable, and why."""
    if fitted.calibration == RECALIBRATED:
        return True, "the held-out scores are those of later images, which the model never saw"
    if fitted.calibration == "split":
        if fitted.model.calibrated or len(fitted.model.layers) > 1:
            return False, (
                "the model was not fitted to the images that are held out, but the means and "
                "deviations that standardise scores come from them, each without its own image"
            )
        return True, "the model was not fitted to the images that are held out"
    if fitted.calibration == "kfold":
        return False, "held-out scores are under the models of ten folds, whose p-values run high"
    return False, "held-out scores are those of leave-one-out, each under a model of its own"


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"
