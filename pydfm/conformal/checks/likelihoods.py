r"""The constants of likelihoods, which move with every row that is left out.

A negative log-likelihood has two parts: distances of the row, and logarithms of the fitted
variances, which are the same for all rows. With k of r positive variances kept, D features, and the
noise variance (the sum of the r - k other variances, over D - k),

    nll  = 1/2 (mahalanobis + sum ln lambda_i + k ln 2 pi)
    ppca = nll + 1/2 (fre / noise + (D - k) (ln noise + ln 2 pi)).

Where few rows are fitted, the model without a row has other variances than the model of all rows,
and often one component less. All scores of the one then lie above those of the other. Held-out
scores are exact, and still not comparable. How far they are off can be seen: each held-out row is
scored with its own distances, which are held out, and the variances of the model of all rows, as a
new row will be. The share of these scores that the threshold calls anomalous is what new normal
rows have to expect.
"""

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import Calibration, calibration_of
from pydfm.model.fitting import FittedDFM
from pydfm.model.held_out import HeldOutSample
from pydfm.stats.scores import SCORES

# Rates that are this far from the level are warned of.
_LOWEST, _HIGHEST = 0.6, 2.0
# Fewer rows above a threshold say nothing of a rate.
_LEAST_REJECTED = 3


def unsteady_likelihood(fitted: FittedDFM, score_type: str, alpha: float) -> list[str]:
    """Return what to warn of where the constants of a likelihood keep false alarms from `alpha`.

    Parameters
    ----------
    fitted : FittedDFM
    score_type : str
    alpha : float
        The false-alarm rate that was asked for.
    """
    if not SCORES[score_type].constants or fitted.calibration != "loo":
        return []
    layers = fitted.model.layers
    for i, layer in enumerate(layers):
        if layer.patch or layer.density.mixtures is not None:
            continue
        calibration = calibration_of(fitted, score_type, layer=i)
        expected, level = _expected_rate(fitted, score_type, i, calibration, alpha)
        if not _LOWEST <= expected / level <= _HIGHEST:
            named = f" of the layer '{layer.name}'" if len(layers) > 1 else ""
            others = " or ".join(repr(name) for name in _STEADY)
            return [
                f"score_type is {score_type!r}, and the fitted variances{named} change so much "
                f"with each image that about {100 * expected:.1f} % of normal images, not "
                f"{100 * level:.1f} %, will be called anomalous at that level; take {others}, or "
                "more images"
            ]
    return []


_STEADY = ("fre", "mahalanobis")


def _expected_rate(
    fitted: FittedDFM, score_type: str, i: int, calibration: Calibration, alpha: float
) -> tuple[float, float]:
    """Return the rate to expect with the layer at place `i` alone, and the level that it is of."""
    samples, density = fitted.held_out.samples, fitted.model.layers[i].density
    sample = samples[score_type]
    fre, mahalanobis = (_scores_of(samples[kind], sample.places, i) for kind in _STEADY)
    fewest = calibration.n_units[calibration.usable].min()
    level = min(max(alpha, _LEAST_REJECTED / (fewest + 1)), 0.5)
    rejected = []
    for c, subspace in enumerate(density.subspaces):
        own = sample.classes == c
        scores = 0.5 * mahalanobis[own] + subspace.log_constant(score_type)
        if score_type == "ppca":
            scores += 0.5 * fre[own] / subspace.noise_variance
        rejected.append(calibration.p_values(scores.astype(np.float32)[None], c) <= level)
    return float(np.concatenate(rejected).mean()), level


def _scores_of(sample: HeldOutSample, places: NDArray[np.intp], i: int) -> NDArray[np.float64]:
    """Return the scores of the rows at `places` by the layer at place `i`."""
    order = np.argsort(sample.places)
    found = order[np.searchsorted(sample.places[order], places)]
    return np.asarray(sample.scores[i + 1][found], dtype=np.float64)
