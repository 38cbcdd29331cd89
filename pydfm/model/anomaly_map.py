r"""Scores of positions made maps and scores of images.

A position where normal images differ much, an edge for example, has large residuals without any
defect. With m and d the mean and the standard deviation that the energy e of a position has over n
normal images, each under the model of the others, its standardised energy is

    (e - m) / max(d, f),  where f is a tenth of the median of d over the positions that vary.

Where images never vary, d is rounding or zero, and f limits the divisor from below. A position
varies where d exceeds a millionth of the largest d; where none does, f is 1. Each class has its own
m and d.

For one of the n images itself, m and d are those of the other n - 1:

    e - m_i = n / (n - 1) (e - m),  (n - 1) d_i^2 = n d^2 - n / (n - 1) (e - m)^2,

and f is that of all. This removes the image from its own standardisation. A small influence is
left: the energies of the other images come from models that have seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.grid import Grid
from pydfm.features.labels import by_class

LEAST_ROWS: Final = 3
"""Least number of images of a class for a deviation without one of them."""

_FLOOR = 0.1
_VARIES = 1e-6


@dataclass(frozen=True)
class PositionScale:
    """Mean and standard deviation of a layer's residual energies over held-out normal images.

    Attributes
    ----------
    mean, deviation : ndarray of shape (C, height, width), float64
        For each class and position; the deviation is positive.
    score_type : str
        What the maps are of: "fre", the residual energies, or, with patches, any.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    score_type: str = "fre"

    @classmethod
    def fit(
        cls,
        maps: NDArray[np.floating],
        classes: NDArray[np.intp],
        n_classes: int,
        score_type: str = "fre",
    ) -> "PositionScale":
        """Fit it to held-out `maps` (n, height, width) of `classes` (n,); every class has some."""
        mean = np.empty((n_classes, *maps.shape[1:]))
        deviation = np.empty_like(mean)
        for c, places in by_class(classes):
            own = maps[places].astype(np.float64)
            mean[c], spread = own.mean(axis=0), own.std(axis=0)
            deviation[c] = np.maximum(spread, _floor(spread))
        return cls(mean, deviation, score_type)

    def standardise(
        self, maps: NDArray[np.floating], classes: NDArray[np.intp] | None
    ) -> NDArray[np.float64]:
        """Standardise `maps` (N, height, width) of new images of `classes` (N,), or of class 0."""
        own = 0 if classes is None else classes
        return np.asarray((maps - self.mean[own]) / self.deviation[own])


def standardise_held_out(
    maps: NDArray[np.floating], classes: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Standardise held-out `maps` (n, height, width), each by the others of its class (n,)."""
    result = np.empty(maps.shape)
    for _, places in by_class(classes):
        own = maps[places].astype(np.float64)
        n = len(own)
        spread = own.std(axis=0)
        away = own - own.mean(axis=0)
        variance = (n * spread**2 - n / (n - 1) * away**2) / (n - 1)
        deviation = np.sqrt(np.maximum(variance, 0))
        result[places] = n / (n - 1) * away / np.maximum(deviation, _floor(spread))
    return result


def sum_of_layers(
    maps: Sequence[NDArray[np.float64]], grids: Sequence[Grid]
) -> NDArray[np.float64]:
    """Return the sum of the layers' `maps` (N, height, width) at the positions of the finest."""
    finest = finest_of(grids)
    return sum(
        (
            own if grid == finest else grid.resample(own, finest)
            for own, grid in zip(maps, grids, strict=True)
        ),
        np.zeros((len(maps[0]), finest.height, finest.width)),
    )


def finest_of(grids: Sequence[Grid]) -> Grid:
    """Return the grid with the most positions, the first of them."""
    return max(grids, key=lambda grid: grid.positions)


def pool_positions(
    scores: NDArray[np.floating], rule: str, top_share: float
) -> NDArray[np.float64]:
    """Make scores of images from `scores` (..., positions) of their positions.

    Parameters
    ----------
    scores : ndarray of shape (..., positions)
    rule : {"max", "top", "mean", "sum"}
        The largest, the mean of the largest, the mean, or the sum.
    top_share : float in [0, 1]
        Share of the positions that "top" averages; at least one is taken.
    """
    if rule == "max":
        return np.asarray(scores.max(axis=-1), dtype=np.float64)
    if rule == "top":
        count = max(round(top_share * scores.shape[-1]), 1)
        largest = np.partition(scores, -count, axis=-1)[..., -count:]
        return np.asarray(largest.mean(axis=-1, dtype=np.float64))
    if rule == "mean":
        return np.asarray(scores.mean(axis=-1, dtype=np.float64))
    return np.asarray(scores.sum(axis=-1, dtype=np.float64))


def smooth(maps: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Smooth maps (N, H, W) by a Gaussian with a standard deviation of `sigma` pixels."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(maps, (0, sigma, sigma), mode="nearest"))


def _floor(spread: NDArray[np.float64]) -> float:
    varying = spread[spread > _VARIES * spread.max()]
    return _FLOOR * float(np.median(varying)) if len(varying) else 1.0
