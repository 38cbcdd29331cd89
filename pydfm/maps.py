"""Where on a picture: the positions of a layer, and maps of scores at the picture's size.

A layer gives `channels` numbers at each of height x width positions. Its cells tile the picture
from the upper left corner on; where a pooling kernel did not fit, they end before the picture does,
at the share `reach` of its sides. Values between cells are bilinear between the cells' centres;
beyond the outermost centres, at the borders and where the kernel did not reach, they are those of
the nearest cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """Positions of a layer's features, which stand in a row as (channels, height, width).

    Attributes
    ----------
    channels, height, width : int
    reach : (float, float)
        Share of the picture's height and width that the cells cover, at most 1.
    """

    channels: int
    height: int
    width: int
    reach: tuple[float, float] = (1.0, 1.0)

    @property
    def size(self) -> int:
        """Features of a picture."""
        return self.channels * self.height * self.width

    @property
    def positions(self) -> int:
        """Positions of a picture."""
        return self.height * self.width

    def patches(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return rows (N * positions, channels) of `features` (N, size): one for each position."""
        shape = (len(features), self.channels, self.positions)
        rows = np.ascontiguousarray(features.reshape(shape).transpose(0, 2, 1))
        return rows.reshape(-1, self.channels)

    def energies(self, residuals: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return sums (N, height, width) over channels of the squares of `residuals` (N, size)."""
        shape = (len(residuals), self.channels, self.height, self.width)
        return np.asarray(np.square(residuals.reshape(shape)).sum(axis=1, dtype=np.float64))

    def enlarge(self, maps: NDArray[np.floating], size: Sequence[int]) -> NDArray[np.float64]:
        """Return maps (N, *size) of `maps` (N, height, width), bilinear."""
        down = _interpolation(size[0], self.height, self.reach[0])
        across = _interpolation(size[1], self.width, self.reach[1])
        return down @ np.asarray(maps, dtype=np.float64) @ across.T

    def resample(self, maps: NDArray[np.floating], other: "Grid") -> NDArray[np.float64]:
        """Return `maps` (N, height, width) at the positions of `other`, bilinear."""
        down = _interpolation(other.height, self.height, self.reach[0] / other.reach[0])
        across = _interpolation(other.width, self.width, self.reach[1] / other.reach[1])
        return down @ np.asarray(maps, dtype=np.float64) @ across.T


def smooth(maps: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Smooth maps (N, H, W) by a Gaussian with a standard deviation of `sigma` pixels."""
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(maps, (0, sigma, sigma), mode="nearest"))


def _interpolation(length: int, cells: int, reach: float) -> NDArray[np.float64]:
    """Weights (length, cells) of the cells at each pixel's centre."""
    places = (np.arange(length) + 0.5) / length * cells / reach - 0.5
    places = np.clip(places, 0, cells - 1)
    left = np.minimum(places.astype(np.intp), max(cells - 2, 0))
    weights = np.zeros((length, cells))
    pixels = np.arange(length)
    weights[pixels, left] = 1 - (places - left)
    weights[pixels, np.minimum(left + 1, cells - 1)] += places - left
    return weights
