"""Recalibration: later normal images take the place of held-out scores, or come beside them."""

import warnings
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import Calibration
from pydfm.conformal.certificate import held_out_as_new
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
    extend : bool
        Whether the held-out scores that there are stay.
    fitted_hashes : ndarray of shape (n,), optional
        Those of the fitted images, where they are known.

    Raises
    ------
    ValueError
        If they are to stay, and are not those of images that the model never saw.
    """

    def __init__(
        self,
        fitted: FittedDFM,
        score_type: str,
        alpha: float,
        n_threads: int,
        *,
        extend: bool = False,
        fitted_hashes: NDArray[np.uint64] | None = None,
    ) -> None:
        self._fitted = fitted
        self._fitted_hashes = np.zeros(0, np.uint64) if fitted_hashes is None else fitted_hashes
        self._grouped = False
        self._kept: list[HeldOutScores] = []
        self._first_place = self._first_unit = 0
        if extend:
            _check_extendable(fitted, score_type)
            self._kept = [fitted.held_out]
            sample = fitted.held_out.samples[score_type]
            self._first_place = int(sample.places.max()) + 1
            self._first_unit = int(sample.units.max()) + 1
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
        hashes: NDArray[np.uint64] | None = None,
    ) -> None:
        """Add rows (N, D) of classes (N,), by their places among those of the model.

        `hashes` (N,) are those of images, by which one that came before is known.
        """
        fitted, n = self._fitted, len(features)
        rows = np.arange(self._n_rows, self._n_rows + n)
        places = self._first_place + rows
        units = self._first_unit + (rows if groups is None else self._groups.encode(groups))
        own = np.zeros(n, dtype=np.intp) if classes is None else classes
        spec = fitted.spec
        scores = score_new_rows(
            fitted.model,
            KeptRows(features, own, places, units),
            fitted.model.map_type(self._score_type),
            None if spec is None else spec.preprocessing.size,
            self._n_threads,
        )
        self._parts.append(scores if hashes is None else replace(scores, hashes=hashes))
        scored = RowScores(fitted.model, features, self._n_threads, classes)
        self._verdicts.append(self._decider.judge(self._decider.measure(scored)).verdicts)
        self._n_rows += n
        self._grouped = groups is not None

    def conclude(self) -> tuple[FittedDFM, Recalibration]:
        """Return the recalibrated model, and what was found.

        Raises
        ------
        ValueError
            Without rows.
        """
        if not self._parts:
            raise ValueError("X holds no image that can be read; give normal images")
        later = joined_scores(self._parts)
        held_out = joined_scores([*self._kept, later])
        self._warn_of_copies(later.hashes)
        fitted = replace(self._fitted, calibration=RECALIBRATED, pending=held_out)
        sample = later.samples[self._score_type]
        anomalous = np.concatenate(self._verdicts) == -1
        keys = np.stack([sample.classes, sample.units], axis=1)
        _, unit = np.unique(keys, axis=0, return_inverse=True)
        share = np.bincount(unit.reshape(-1), anomalous) / np.bincount(unit.reshape(-1))
        alpha = self._decider.alpha
        return fitted, Recalibration(
            alpha, float(share.mean()), _chance(share, alpha, self._decider.calibration), len(share)
        )

    def _warn_of_copies(self, hashes: NDArray[np.uint64]) -> None:
        """Warn where later images are copies of fitted ones, of one another, or of those before."""
        n = len(hashes)
        fitted = int(np.isin(hashes, self._fitted_hashes).sum())
        if fitted:
            warnings.warn(
                f"X holds later images, and the model was fitted on {fitted} of {n}, which score "
                "too low: rates of false alarms do not hold; leave them out",
                stacklevel=4,
            )
        before = [kept.hashes for kept in self._kept]
        again = int(np.isin(hashes, np.concatenate(before)).sum()) if before else 0
        if again:
            warnings.warn(
                f"extend is True, and {again} of {n} images of X are in the calibration sample "
                "already, where they count twice now: rates of false alarms do not hold; leave "
                "them out",
                stacklevel=4,
            )
        copies = n - len(np.unique(hashes))
        if copies and not self._grouped:
            warnings.warn(
                f"X holds {copies} of {n} images that are copies of others, each of which counts: "
                "rates of false alarms do not hold; leave them out, or pass groups=",
                stacklevel=4,
            )


def _check_extendable(fitted: FittedDFM, score_type: str) -> None:
    """Raise ValueError unless later images are to the model as those that are held out."""
    as_new, reason = held_out_as_new(fitted)
    if not as_new:
        raise ValueError(
            f"extend is True, but {reason}, and later images are not as these; "
            "replace them (extend=False, no --extend), or teach the model the later images by "
            "partial_fit (pydfm add)"
        )
    held_out, map_type = fitted.held_out, fitted.model.map_type(score_type)
    if held_out.map_maxima is not None and held_out.map_type not in (None, map_type):
        raise ValueError(
            f"extend is True, and the maps of held-out images are of {held_out.map_type!r}, while "
            f"score_type is {score_type!r}; set that score_type, or replace them (extend=False)"
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
