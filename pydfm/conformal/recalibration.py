"""Recalibration: later normal images take the place of the held-out scores of the fit."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import Calibration
from pydfm.conformal.decisions import Decider
from pydfm.features.inputs.labels import ClassCodes
from pydfm.model.fitting import RECALIBRATED, FittedDFM
from pydfm.model.held_out import HeldOutScores, joined_scores, score_new_rows
from pydfm.model.row_scores import RowScores
from pydfm.stats.accumulator import KeptRows


@dataclass(frozen=True)
class Recalibration:
    """How far a threshold was off for later normal images.

    Attributes
    ----------
    alpha : float
        The share of normal images that may be called anomalous.
    found : float
        The share of the later ones that was; each group counts once.
    p_value : float
        How probable such a share or a larger one is where nothing has changed; small = the
        threshold was off.
    n_units : int
        Number of later images, or of their groups.
    """

    alpha: float
    found: float
    p_value: float
    n_units: int


class RecalibrationTask:
    """Takes later normal rows in batches, then concludes.

    Parameters
    ----------
    fitted : FittedDFM
        With held-out scores.
    score_type : str
        The one that decides.
    alpha : float
    n_threads : int
    """

    def __init__(self, fitted: FittedDFM, score_type: str, alpha: float, n_threads: int) -> None:
        self._fitted = fitted
        self._score_type = score_type
        self._n_threads = n_threads
        self._decider = Decider.of(fitted, score_type, alpha=alpha)
        self._groups = ClassCodes()
        self._parts: list[HeldOutScores] = []
        self._verdicts: list[NDArray[np.intp]] = []
        self._n_rows = 0

    def add(
        self,
        features: NDArray[np.floating],
        classes: NDArray[np.intp] | None,
        groups: NDArray[np.generic] | None,
    ) -> None:
        """Add rows (N, D) of classes (N,), by their places among those of the model."""
        fitted, n = self._fitted, len(features)
        places = np.arange(self._n_rows, self._n_rows + n)
        units = places if groups is None else self._groups.encode(groups)
        own = np.zeros(n, dtype=np.intp) if classes is None else classes
        spec = fitted.spec
        self._parts.append(
            score_new_rows(
                fitted.model,
                KeptRows(features, own, places, units),
                None if spec is None else self._score_type,
                None if spec is None else spec.preprocessing.size,
                self._n_threads,
            )
        )
        scored = RowScores(fitted.model, features, self._n_threads, classes)
        self._verdicts.append(self._decider.judge(self._decider.measure(scored)).verdicts)
        self._n_rows += n

    def conclude(self) -> tuple[FittedDFM, Recalibration]:
        """Return the recalibrated model, and what was found.

        Raises
        ------
        ValueError
            Without rows.
        """
        if not self._parts:
            raise ValueError("X holds no image that can be read; give normal images")
        held_out = joined_scores(self._parts)
        fitted = replace(self._fitted, calibration=RECALIBRATED, pending=held_out)
        sample = held_out.samples[self._score_type]
        anomalous = np.concatenate(self._verdicts) == -1
        keys = np.stack([sample.classes, sample.units], axis=1)
        _, unit = np.unique(keys, axis=0, return_inverse=True)
        share = np.bincount(unit.reshape(-1), anomalous) / np.bincount(unit.reshape(-1))
        alpha = self._decider.alpha
        return fitted, Recalibration(
            alpha, float(share.mean()), _chance(share, alpha, self._decider.calibration), len(share)
        )


def _chance(share: NDArray[np.float64], alpha: float, calibration: Calibration) -> float:
    """Return the probability of so many anomalous units, where nothing has changed.

    Of m new units among n + m exchangeable ones the number above the threshold, which n of them
    give, has a beta-binomial distribution with the parameters l and n + 1 - l, l = floor(alpha (n +
    1)); with several classes, that of all together.
    """
    from scipy.stats import betabinom

    n = int(calibration.n_units.sum())
    least = max(int(alpha * (n + 1)), 1)
    above = np.ceil(share.sum() - 1e-9) - 1
    return float(betabinom(len(share), least, max(n + 1 - least, 1)).sf(above))
