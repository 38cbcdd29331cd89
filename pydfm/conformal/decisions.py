"""Decisions: p-values, margins and verdicts of rows, as functions of a fitted model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import Calibration, calibration_of, thresholds
from pydfm.features.labels import by_class
from pydfm.model.fitting import FittedDFM
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
    thresholds : ndarray of shape (C,)
        NaN where a false discovery rate decides.
    fdr : float or None
    """

    score_type: str
    calibration: Calibration
    thresholds: NDArray[np.float64]
    fdr: float | None = None

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
        score_type : str
        alpha : float in (0, 1)
            Share of normal images that may be called anomalous.
        fdr : float in (0, 1), optional
            In place of alpha, the share that normal images may have among those that are called
            anomalous.
        tail : {"gpd"}, optional

        Raises
        ------
        ValueError
            If a level is out of its range, or there are too few held-out scores for it.
        """
        calibration = calibration_of(fitted, score_type, tail)
        if fdr is None:
            levels = thresholds(fitted, score_type, alpha, tail)
        else:
            check_share("fdr", fdr)
            levels = np.full(len(calibration.scores), np.nan)
        return cls(score_type, calibration, levels, fdr)

    def p_values(self, scored: RowScores) -> NDArray[np.float64]:
        """Return the p-values (N,) of rows, the largest over the classes."""
        return _best(self.calibration.p_values, scored, self.score_type)

    def margins(self, scored: RowScores) -> NDArray[np.float64]:
        """Return threshold less score (N,), the largest over the classes."""
        return _best(lambda own, c: self.thresholds[c] - own, scored, self.score_type)

    def measure(self, scored: RowScores) -> NDArray[np.float64]:
        """Return scores, p-values and margins (3, N) of rows, for `judge`."""
        p, margin = self.p_values(scored), self.margins(scored)
        return np.stack([scored.scores([self.score_type])[0].astype(np.float64), p, margin])

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
    calibrations = {kind: calibration_of(fitted, kind, tail) for kind in score_types}

    def compute(scored: RowScores) -> NDArray[np.float64]:
        return np.stack([_best(calibrations[kind].p_values, scored, kind) for kind in score_types])

    return compute


def best_over_classes(
    function: Callable[[NDArray[np.float32], int], NDArray[np.float64]],
    scores: NDArray[np.float32],
    classes: NDArray[np.intp] | None,
) -> NDArray[np.float64]:
    """Return the largest values (N,) over the classes of a function of scores and class.

    Parameters
    ----------
    function : callable
        Takes scores under a class, and the place of that class.
    scores : ndarray of shape (C, N), or (1, N) under given classes
    classes : ndarray of shape (N,) or None
        The given classes of the rows.
    """
    if classes is None:
        return np.asarray(np.max([function(own, c) for c, own in enumerate(scores)], axis=0))
    values = np.empty(len(classes))
    for c, places in by_class(classes):
        values[places] = function(scores[0, places], c)
    return values


def _best(
    function: Callable[[NDArray[np.float32], int], NDArray[np.float64]],
    scored: RowScores,
    score_type: str,
) -> NDArray[np.float64]:
    return best_over_classes(function, scored.class_scores(score_type), scored.classes)
