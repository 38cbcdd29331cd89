r"""Images of a good folder that are unlike the others, and may not belong there.

A held-out score says how far an image is from a model of the others. Its p-value among the n
held-out scores is a rank, uniform by construction: the worst image has 1 / n whatever the folder
holds, and no false discovery rate can be kept by ranks alone. What can be compared are the scores
themselves with what the bulk of them would lead to expect.

The score of an image is made of its largest residuals, so that scores of good images have the long
upper tail of extremes: a Gumbel distribution, P(S <= s) = exp(-exp(-(s - a) / b)). Its two numbers
come from the quartile q and the median m of the scores alone,

    b = (m - q) / ln 2,    a = m + b ln ln 2,

so that bad images, which are in the upper half, hardly move them. The chance of an image is
1 - P(S <= s); images are called outliers by the procedure of Benjamini and Hochberg, which bounds
the share of good images among them (the false discovery rate) where the distribution holds. It is a
model, not a count: docs/results.md measures how well it does.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.inputs.labels import by_class
from pydfm.model.held_out import HeldOutSample
from pydfm.runtime.checks import check_share

FDR: Final = 0.05
"""Share of good images among those that are called outliers, by default."""

LEAST: Final = 20
"""With fewer images of a class, none is called an outlier."""


def chances(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how likely a good image scores as high as each of `scores` (n,)."""
    own = np.asarray(scores, dtype=np.float64)
    quartile, median = np.quantile(own, [0.25, 0.5])
    scale = (median - quartile) / math.log(2)
    if not scale > 0:
        return np.where(own > median, 0.0, 1.0)
    start = median + scale * math.log(math.log(2))
    return np.asarray(-np.expm1(-np.exp(-(own - start) / scale)))


def discovery_rates(sample: HeldOutSample) -> NDArray[np.float64]:
    """Return, of each held-out row (n,), the false discovery rate at which it is an outlier.

    Of all classes together, each with its own distribution; 1 in classes of fewer than `LEAST`.
    """
    from scipy.stats import false_discovery_control

    p = np.ones(len(sample.classes))
    for _, places in by_class(sample.classes):
        if len(places) >= LEAST:
            p[places] = chances(sample.scores[0][places])
    return np.asarray(false_discovery_control(p)) if len(p) else p


def outliers(sample: HeldOutSample, fdr: float) -> NDArray[np.bool_]:
    """Return which held-out rows (n,) are outliers at a false discovery rate."""
    check_share("fdr", fdr)
    return np.asarray(discovery_rates(sample) <= fdr)
