"""Drift: tests whether images that come in now still score as the normal ones at the fit."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import Calibration, calibration_of
from pydfm.conformal.decisions import best_over_classes, under_folds
from pydfm.model.fitting import FittedDFM
from pydfm.model.row_scores import RowScores


@dataclass(frozen=True)
class Drift:
    """Whether new rows score as the held-out normal rows do.

    Each p-value is that of a two-sample Kolmogorov-Smirnov test between the p-values of the rows
    and those of the held-out rows; a small one means that they moved.

    Attributes
    ----------
    p_value : float
        For all rows, by the score of all layers together.
    classes : dict
        By class, where the model has any and the batch has rows of it.
    layers : dict of str to float
        By layer.
    n_samples : int
        Number of rows that were tested.
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


class DriftTest:
    """The tests of a batch: measure rows in any number of batches, then conclude.

    Parameters
    ----------
    fitted : FittedDFM
    score_type : str
    labelled : bool
        Whether rows come with their classes. Without them, each row counts for the nearest class,
        with the largest of its p-values; since these run high, only smaller ones count as a drift.
    """

    def __init__(self, fitted: FittedDFM, score_type: str, *, labelled: bool) -> None:
        self._model = fitted.model
        self._score_type = score_type
        self._labelled = labelled
        places = (None, *range(len(fitted.model.layers)))
        self._places = places
        self._calibrations: list[Calibration] = [
            calibration_of(fitted, score_type, None, layer) for layer in places
        ]
        self._folds = fitted.held_out.folds
        self.n_values = len(places) + 1

    def measure(self, scored: RowScores) -> NDArray[np.float64]:
        """Return p-values of all layers and of each, and the class (n_values, N), of rows."""
        together = scored.class_scores(self._score_type)
        each = [
            best_over_classes(
                calibration.p_values,
                under_folds(scored, self._score_type, self._folds, layer),
                scored.classes,
            )
            for calibration, layer in zip(self._calibrations, self._places, strict=True)
        ]
        nearest = together.argmin(axis=0) if scored.classes is None else scored.classes
        return np.stack([*each, nearest])

    def conclude(self, measured: NDArray[np.float64]) -> Drift:
        """Return the tests of all that `measure` gave; NaN stands for skipped images.

        Raises
        ------
        ValueError
            If every image was skipped.
        """
        measured = measured[:, np.isfinite(measured).all(axis=0)]
        if measured.shape[1] == 0:
            raise ValueError("X holds no image that can be read; drift needs at least one")
        p, nearest = measured[:-1], measured[-1].astype(np.intp)
        names = self._model.classes or []
        n_classes = max(len(names), 1)
        one_sided = n_classes > 1 and not self._labelled
        own = [[c.own_p_values(k) for k in range(n_classes)] for c in self._calibrations]
        tests = [
            uniformity(row, np.concatenate(theirs), one_sided=one_sided)
            for row, theirs in zip(p, own, strict=True)
        ]
        classes = {
            names[c]: uniformity(p[0, nearest == c], own[0][c], one_sided=one_sided)
            for c in (np.unique(nearest).tolist() if names else ())
        }
        named = (layer.name for layer in self._model.layers)
        layers = dict(zip(named, tests[1:], strict=True))
        return Drift(tests[0], classes, layers, measured.shape[1])


def uniformity(p: NDArray[np.float64], own: NDArray[np.float64], *, one_sided: bool) -> float:
    """Return the p-value of a test whether `p` (m,) are distributed as `own` (n,).

    `own` are the p-values of held-out rows. Since p-values of one model share its n held-out rows,
    a test against the uniform distribution itself would call their chance a drift; a test between
    two samples accounts for it.

    Parameters
    ----------
    p, own : ndarray
    one_sided : bool
        Whether only smaller `p` count.
    """
    from scipy.stats import ks_2samp

    alternative = "greater" if one_sided else "two-sided"
    return float(ks_2samp(p, own, alternative=alternative).pvalue)
