r"""The noise variance of ppca, which moves with every row that is left out.

With k of r positive variances kept, the noise variance is the sum of the r - k others over D - k
features. Where few rows are fitted, that of the model without a row is not that of the model of all
rows, and all scores of the one lie above those of the other: a residual is divided by it, and its
logarithm is counted D - k times. Held-out scores are exact, and still not comparable. How far they
are off can be seen: each held-out row is scored with its own residual and nll, which are held out,
and the noise variance of the model of all rows,

    s_i' = nll_i + 1/2 (fre_i / noise + (D - k) (ln noise + ln 2 pi)),

as a new row will be. The share of these that the threshold calls anomalous is what new normal rows
have to expect.
"""

import math

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


def uncertain_noise(fitted: FittedDFM, score_type: str, alpha: float) -> list[str]:
    """Return what to warn of where ppca's noise variance keeps false alarms far from `alpha`."""
    if not SCORES[score_type].noise or fitted.calibration != "loo":
        return []
    layers = fitted.model.layers
    for i, layer in enumerate(layers):
        if layer.patch or layer.density.mixtures is not None:
            continue
        calibration = calibration_of(fitted, score_type, layer=i)
        expected, level = _expected_rate(fitted, i, calibration, alpha)
        if not _LOWEST <= expected / level <= _HIGHEST:
            named = f" of the layer '{layer.name}'" if len(layers) > 1 else ""
            return [
                f"score_type is {score_type!r}, whose noise variance{named} changes so much with "
                f"each image that about {100 * expected:.1f} % of normal images, not "
                f"{100 * level:.1f} %, will be called anomalous at that level; take 'fre' or "
                "'nll', or more images"
            ]
    return []


def _expected_rate(
    fitted: FittedDFM, i: int, calibration: Calibration, alpha: float
) -> tuple[float, float]:
    """Return the rate to expect with the layer at place `i` alone, and the level that it is of."""
    samples, density = fitted.held_out.samples, fitted.model.layers[i].density
    sample = samples["ppca"]
    nll, fre = (_scores_of(samples[kind], sample.places, i) for kind in ("nll", "fre"))
    fewest = calibration.n_units[calibration.usable].min()
    level = min(max(alpha, _LEAST_REJECTED / (fewest + 1)), 0.5)
    rejected = []
    for c, subspace in enumerate(density.subspaces):
        own, noise = sample.classes == c, subspace.noise_variance
        rest = len(subspace.mean) - len(subspace.components)
        logarithms = rest * (math.log(noise) + math.log(2 * math.pi))
        scores = nll[own] + 0.5 * (fre[own] / noise + logarithms)
        rejected.append(calibration.p_values(scores.astype(np.float32)[None], c) <= level)
    return float(np.concatenate(rejected).mean()), level


def _scores_of(sample: HeldOutSample, places: NDArray[np.intp], i: int) -> NDArray[np.float64]:
    """Return the scores of the rows at `places` by the layer at place `i`."""
    order = np.argsort(sample.places)
    found = order[np.searchsorted(sample.places[order], places)]
    return np.asarray(sample.scores[i + 1][found], dtype=np.float64)
