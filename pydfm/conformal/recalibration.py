"""Recalibration: later normal images take the place of held-out scores, or come beside them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import Calibration
from pydfm.conformal.certificate import held_out_as_new
from pydfm.conformal.checks.independence import check_not_fitted
from pydfm.conformal.decisions import Decider, under_folds
from pydfm.features.inputs.labels import ClassCodes
from pydfm.model.fitting import RECALIBRATED, FittedDFM
from pydfm.model.held_out import HeldOutSample, HeldOutScores, joined_scores, score_new_rows
from pydfm.model.row_scores import RowScores
from pydfm.model.training import TrainingState
from pydfm.stats.accumulator import KeptRows

# Lower scores than this probability allows are told.
_LOWER: Final = 1e-5


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
    ) -> None:
        self._fitted = fitted
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
        self._compared: list[NDArray[np.float32]] = []
        self._n_rows = 0

    def add(
        self,
        features: NDArray[np.floating],
        classes: NDArray[np.intp] | None,
        groups: NDArray[np.generic] | None,
        hashes: NDArray[np.uint64],
    ) -> None:
        """Add rows (N, D) of classes (N,), by their places among those of the model.

        `hashes` (N,) are those of their images, or of themselves.
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
        self._parts.append(replace(scores, hashes=hashes))
        scored = RowScores(fitted.model, features, self._n_threads, classes)
        self._verdicts.append(self._decider.judge(self._decider.measure(scored)).verdicts)
        if self._decider.folds:
            self._compared.append(under_folds(scored, self._score_type, self._decider.folds)[:, 0])
        else:
            self._compared.append(scores.samples[self._score_type].scores[:1])
        self._n_rows += n

    def conclude(
        self, state: TrainingState | None, names: Sequence[str] | None
    ) -> tuple[FittedDFM, Recalibration]:
        """Return the recalibrated model, and what was found.

        Parameters
        ----------
        state : TrainingState or None
            Of the model, where it was kept.
        names : sequence of str, optional
            How messages call images; rows are called by their numbers.

        Raises
        ------
        ValueError
            Without rows, or if the model was fitted on some, as far as that is known.
        """
        if not self._parts:
            raise ValueError("X holds no image that can be read; give normal images")
        later = joined_scores(self._parts)
        if state is not None and names is not None:
            check_not_fitted(state, later.hashes, names)
        held_out = joined_scores([*self._kept, later])
        fitted = replace(self._fitted, calibration=RECALIBRATED, pending=held_out)
        sample = later.samples[self._score_type]
        anomalous = np.concatenate(self._verdicts) == -1
        keys = np.stack([sample.classes, sample.units], axis=1)
        _, unit = np.unique(keys, axis=0, return_inverse=True)
        share = np.bincount(unit.reshape(-1), anomalous) / np.bincount(unit.reshape(-1))
        alpha = self._decider.alpha
        self._warn_of_repeats(later, sample.places - self._first_place, names)
        compared = np.concatenate(self._compared, axis=1)
        if _is_lower(sample, compared, self._fitted.held_out.samples[self._score_type]):
            warnings.warn(
                "the scores of X are lower than the held-out ones, as are those of rows that the "
                "model was fitted on; see that X has none of these, or thresholds are too low",
                stacklevel=3,
            )
        return fitted, Recalibration(
            alpha, float(share.mean()), _chance(share, alpha, self._decider.calibration), len(share)
        )

    def _warn_of_repeats(
        self, later: HeldOutScores, places: NDArray[np.intp], names: Sequence[str] | None
    ) -> None:
        """Warn of rows that came earlier, outside their group, or are in the kept sample."""
        sample = later.samples[self._score_type]
        hashes = later.hashes[places]
        keys = np.stack([hashes, sample.classes.astype(np.uint64)], axis=1)  # a sample each
        _, first, same = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        repeated = np.asarray(sample.units[first[same.reshape(-1)]] != sample.units)
        kept = np.zeros_like(repeated)
        for scores in self._kept:
            kept |= np.isin(hashes, scores.hashes)
        repeated |= kept
        if repeated.any():
            first_place = int(places[repeated].min())
            one = f"row {first_place} of X" if names is None else f"image {names[first_place]}"
            cure = "leave them out"
            if not kept.any():
                cure += ", or pass groups= (--groups), which says what belongs together"
            warnings.warn(
                f"X has {repeated.sum()} of {len(repeated)} rows or images that are in the "
                f"calibration sample already, such as {one}; each counts again, so that rates of "
                f"false alarms do not hold: {cure}",
                stacklevel=4,
            )


def _is_lower(later: HeldOutSample, compared: NDArray[np.float32], held_out: HeldOutSample) -> bool:
    """Return whether the later scores of a class are lower than chance would have it.

    By the ranks of the scores (Mann and Whitney 1947), of one row of each unit. `compared` (K, n)
    has the later scores under the model of each fold, beside whose held-out rows they are ranked;
    (1, n) without folds.
    """
    from scipy.stats import mannwhitneyu, norm

    classes, lower = np.unique(later.classes), False
    for c in classes:
        new, old = (_one_of_each_unit(sample, c) for sample in (later, held_out))
        m, n = len(new), len(old)
        if n == 0:
            continue
        tests = []
        for k, own in enumerate(compared):
            beside = held_out.scores[0, old[held_out.folds[old] == k]]
            if len(beside):
                with np.errstate(invalid="ignore"):  # all scores the same, without a probability
                    tests.append(mannwhitneyu(own[new], beside, alternative="less"))
        p = tests[0].pvalue
        if len(compared) > 1:
            excess = sum(test.statistic for test in tests) - m * n / 2
            p = norm.cdf(excess / np.sqrt(m * n * (m + n + 1) / 12))
        lower |= bool(p < _LOWER / len(classes))
    return lower


def _one_of_each_unit(sample: HeldOutSample, c: int) -> NDArray[np.intp]:
    """Return the place of one row of each unit of a class."""
    own = np.flatnonzero(sample.classes == c)
    return np.asarray(own[np.unique(sample.units[own], return_index=True)[1]])


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
