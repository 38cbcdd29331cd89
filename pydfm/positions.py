r"""Maps of residual energy in units of what normal pictures have at each position.

A position where normal pictures differ much, an edge say, has large residuals without anything
being wrong. With m and d the mean and the standard deviation that the energy e of a position has
over n normal pictures, each under the model of the others, its standardised energy is

    (e - m) / max(d, f),  f a tenth of the median of d over the positions that vary:

where pictures never vary, d is rounding or zero, and f bounds what it is divided by. A position
varies where d exceeds a millionth of the largest d; where none does, f is 1. Each class has its own
m and d.

For one of the n pictures itself, m and d are those of the other n - 1:

    e - m_i = n / (n - 1) (e - m),  (n - 1) d_i^2 = n d^2 - n / (n - 1) (e - m)^2,

and f is that of all. What remains of the picture in its own score is in the energies of the others,
whose models have seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pydfm.labels import by_class
from pydfm.maps import Grid

LEAST_ROWS: Final = 3
"""Pictures of a class that a deviation without one of them needs."""

_FLOOR = 0.1
_VARIES = 1e-6


@dataclass(frozen=True)
class PositionScale:
    """Mean and deviation of a layer's energies over normal pictures.

    Attributes
    ----------
    mean, deviation : ndarray of shape (C, height, width), float64
        Of each class; the deviation is above zero.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def fit(
        cls, maps: NDArray[np.floating], classes: NDArray[np.intp], n_classes: int
    ) -> "PositionScale":
        """Learn it from `maps` (n, height, width) of `classes` (n,), of which each is there."""
        mean = np.empty((n_classes, *maps.shape[1:]))
        deviation = np.empty_like(mean)
        for c, places in by_class(classes):
            own = maps[places].astype(np.float64)
            mean[c], spread = own.mean(axis=0), own.std(axis=0)
            deviation[c] = np.maximum(spread, _floor(spread))
        return cls(mean, deviation)

    def standardise(
        self, maps: NDArray[np.floating], classes: NDArray[np.intp] | None
    ) -> NDArray[np.float64]:
        """Standardised `maps` (N, height, width) of pictures of `classes` (N,), the first if None.

        None of them is among those that this was learnt from.
        """
        own = 0 if classes is None else classes
        return np.asarray((maps - self.mean[own]) / self.deviation[own])


def standardise_left_out(
    maps: NDArray[np.floating], classes: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Standardised `maps` (n, height, width) of `classes` (n,), each by the others of its class."""
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
    """Sum of layers' `maps` (N, height, width) at the positions of the finest of their `grids`."""
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


def _floor(spread: NDArray[np.float64]) -> float:
    varying = spread[spread > _VARIES * spread.max()]
    return _FLOOR * float(np.median(varying)) if len(varying) else 1.0
