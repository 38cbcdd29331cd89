"""Decisions: p-values, margins and verdicts of rows, as functions of a fitted model."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.conformal.calibration import Calibration, calibration_of, few_held_out
from pydfm.conformal.checks.likelihoods import unsteady_likelihood
from pydfm.features.inputs.labels import by_class
from pydfm.model.fitting import FittedDFM
from pydfm.model.held_out import FoldModel
from pydfm.model.row_scores import RowScores
from pydfm.runtime.checks import check_share


@dataclass(frozen=True)
class Assessment:
    """Scores, p-values and verdicts of N images.

    Attributes
    ----------
    scores : ndarray of shape (N,), float32
        NaN for images that were skipped.
    p_values : ndarray of shape (N,), float64
        NaN for images that were skipped.
    verdicts : ndarray of shape (N,)
        +1 for normal, -1 for anomalous, 0 for skipped.
    """

    scores: NDArray[np.float32]
    p_values: NDArray[np.float64]
    verdicts: NDArray[np.intp]


@dataclass(frozen=True)
class Decider:
    """What turns scores of one type into decisions.

    Attributes
    ----------
    score_type : str
    calibration : Calibration
    folds : tuple of FoldModel or None
        The models that rows are scored under to be compared; empty where that is the model itself.
    alpha : float
    fdr : float or None
        The level that decides in place of alpha.
    held_out : _core.HeldOutScores or None
        What the core judges rows by in one pass; None where it cannot.
    warned_of : tuple of str
        What there is to say of decisions at this level.
    """

    score_type: str
    calibration: Calibration
    folds: tuple[FoldModel | None, ...]
    alpha: float
    fdr: float | None = None
    held_out: _core.HeldOutScores | None = None
    warned_of: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        fitted: FittedDFM,
        score_type: str,
        *,
        alpha: float,
        fdr: float | None = None,
        tail: str | None = None,
    ) -> "Decider":
        """Prepare decisions at a level.

        Parameters
        ----------
        fitted : FittedDFM
            With held-out scores.
        score_type : str
            The type of the scores that decide.
        alpha : float in (0, 1)
            Share of normal images that may be called anomalous.
        fdr : float in (0, 1), optional
            In place of alpha, the share that normal images may have among those that are called
            anomalous.
        tail : {"gpd"}, optional

        Raises
        ------
        ValueError
            If a level is out of its range, or there are no held-out scores.
        """
        if fdr is None:
            check_share("alpha", alpha)
        else:
            check_share("fdr", fdr)
        # Every part of a frozen model's decisions is frozen, too.
        decider: Decider = fitted.once(
            ("decider", score_type, alpha, fdr, tail),
            lambda: cls._make(fitted, score_type, alpha, fdr, tail),
        )
        for message in decider.warned_of:
            warnings.warn(message, stacklevel=3)
        return decider

    @classmethod
    def _make(
        cls,
        fitted: FittedDFM,
        score_type: str,
        alpha: float,
        fdr: float | None,
        tail: str | None,
    ) -> "Decider":
        calibration = calibration_of(fitted, score_type, tail)
        warned_of = []
        if fdr is None:
            warned_of = few_held_out(calibration, alpha)
            if calibration.tails is None:
                warned_of += unsteady_likelihood(fitted, score_type, alpha)
        held_out = calibration.for_core(alpha)
        folds = fitted.held_out.folds
        return cls(score_type, calibration, folds, alpha, fdr, held_out, tuple(warned_of))

    def p_values(self, scored: RowScores) -> NDArray[np.float64]:
        """Return the p-values (N,) of rows, the largest over the classes."""
        judged = self._in_one_pass(scored)
        if judged is not None:
            return np.asarray(judged[1])
        each = under_folds(scored, self.score_type, self.folds)
        return best_over_classes(self.calibration.p_values, each, scored.classes)

    def margins(self, scored: RowScores) -> NDArray[np.float64]:
        """Return threshold less score (N,), the largest over the classes."""
        judged = self._in_one_pass(scored)
        if judged is not None:
            return np.asarray(judged[2])
        each = under_folds(scored, self.score_type, self.folds)

        def of_class(own: NDArray[np.float32], c: int) -> NDArray[np.float64]:
            return self.calibration.margins(own, self.alpha, c)

        return best_over_classes(of_class, each, scored.classes)

    def measure(self, scored: RowScores) -> NDArray[np.float64]:
        """Return scores, p-values and margins (3, N) of rows, for `judge`."""
        judged = self._in_one_pass(scored)
        if judged is not None:
            return judged
        p, margin = self.p_values(scored), self.margins(scored)
        return np.stack([scored.scores([self.score_type])[0].astype(np.float64), p, margin])

    def _in_one_pass(self, scored: RowScores) -> NDArray[np.float64] | None:
        """Return scores, p-values and margins (3, N) as the core gives them, or None."""
        found = None if self.held_out is None else scored.judge(self.score_type, self.held_out)
        return None if found is None else np.concatenate([found[0][None], found[1]])

    def judge(self, measured: NDArray[np.float64]) -> Assessment:
        """Return verdicts for all that `measure` gave (3, N); NaN stands for skipped images."""
        score, p, margin = measured
        read = ~np.isnan(p)
        anomalous = margin < 0
        if self.fdr is not None and read.any():
            from scipy.stats import false_discovery_control

            anomalous[read] = false_discovery_control(p[read]) <= self.fdr
        verdicts = np.where(read, np.where(anomalous, -1, 1), 0)
        return Assessment(score.astype(np.float32), p, verdicts)


def p_values(
    fitted: FittedDFM, score_types: Sequence[str], tail: str | None
) -> Callable[[RowScores], NDArray[np.float64]]:
    """Return a function that gives the p-values (T, N) of rows for T `score_types`."""

    def decider(kind: str) -> Decider:
        calibration = calibration_of(fitted, kind, tail)
        held_out = calibration.for_core(None)
        return Decider(kind, calibration, fitted.held_out.folds, math.nan, held_out=held_out)

    deciders = [
        fitted.once(("p_values", kind, tail), functools.partial(decider, kind))
        for kind in score_types
    ]

    def compute(scored: RowScores) -> NDArray[np.float64]:
        return np.stack([decider.p_values(scored) for decider in deciders])

    return compute


def under_folds(
    scored: RowScores,
    score_type: str,
    folds: Sequence[FoldModel | None],
    layer: int | None = None,
) -> NDArray[np.float32]:
    """Return scores (K, C, N) of rows under the classes of K folds, or (1, C, N) without folds.

    Under given classes they are (K, 1, N). Infinity stands for a class that a fold lacks, none of
    whose held-out rows are of that fold.

    Parameters
    ----------
    scored : RowScores
    score_type : str
    folds : sequence of FoldModel or None
    layer : int, optional
        The place of one layer; default all layers together.
    """

    def scores(of: RowScores) -> NDArray[np.float32]:
        if layer is None:
            return of.class_scores(score_type)
        one: NDArray[np.float32] = of.layer_class_scores(score_type)[layer]
        return one

    if not folds:
        return scores(scored)[None]
    n_classes = 1 if scored.classes is not None else scored.model.n_classes
    found = np.full((len(folds), n_classes, scored.n_rows), np.inf, dtype=np.float32)
    for own, fold in zip(found, folds, strict=True):
        if fold is None:
            continue
        if scored.classes is None:
            own[fold.classes] = scores(scored.under(fold.model, None))
            continue
        order = np.argsort(fold.classes)
        at = np.searchsorted(fold.classes[order], scored.classes).clip(max=len(order) - 1)
        known = fold.classes[order][at] == scored.classes
        theirs = scores(scored.under(fold.model, order[at]))
        own[0, known] = theirs[0, known]
    return found


def best_over_classes(
    function: Callable[[NDArray[np.float32], int], NDArray[np.float64]],
    scores: NDArray[np.float32],
    classes: NDArray[np.intp] | None,
) -> NDArray[np.float64]:
    """Return the largest values (N,) over the classes of a function of scores and class.

    Parameters
    ----------
    function : callable
        Takes scores (K, n) of rows under a class, and the place of that class; NaN where it has no
        held-out scores.
    scores : ndarray of shape (K, C, N), or (K, 1, N) under given classes
    classes : ndarray of shape (N,) or None
        The given classes of the rows.

    Raises
    ------
    ValueError
        If a given class has no held-out scores.
    """
    if classes is None:
        each = [function(scores[:, c], c) for c in range(scores.shape[1])]
        return np.asarray(np.fmax.reduce(each))
    values = np.empty(len(classes))
    for c, places in by_class(classes):
        values[places] = function(scores[:, 0, places], c)
        if np.isnan(values[places]).any() and not np.isnan(scores[:, 0, places]).any():
            raise ValueError(
                "labels names a class that has no held-out scores, and so no verdict: fit with "
                "more of it, or leave labels out"
            )
    return values
