"""Positions of a layer's features on the image, and interpolation of maps between them.

A layer has `channels` features at each of height x width positions. Its cells tile the image from
the upper left corner. Where a pooling kernel did not fit, they end before the image does: `reach`
is the share of the image's height and width that they cover. Values are interpolated bilinearly
between the centres of cells. Beyond the outermost centres, at the borders and where the cells do
not reach, they are those of the nearest cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Grid:
    """Shape of a layer's features, which are stored in a row as (channels, height, width).

    Attributes
    ----------
    channels : int
        Number of features per position.
    height, width : int
        Number of positions down and across.
    reach : (float, float)
        Share of the image's height and width that the cells cover, at most 1.
    """

    channels: int
    height: int
    width: int
    reach: tuple[float, float] = (1.0, 1.0)

    @property
    def size(self) -> int:
        """Number of features per image."""
        return self.channels * self.height * self.width

    @property
    def positions(self) -> int:
        """Number of positions per image."""
        return self.height * self.width

    def patches(self, features: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return `features` (N, size) as rows (N * positions, channels), one for each position."""
        shape = (len(features), self.channels, self.positions)
        rows = np.ascontiguousarray(features.reshape(shape).transpose(0, 2, 1))
        return rows.reshape(-1, self.channels)

    def energies(self, residuals: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the sums over channels (N, height, width) of the squared `residuals` (N, size)."""
        shape = (len(residuals), self.channels, self.height, self.width)
        return np.asarray(np.square(residuals.reshape(shape)).sum(axis=1, dtype=np.float64))

    def enlarge(self, maps: NDArray[np.floating], size: Sequence[int]) -> NDArray[np.float64]:
        """Return `maps` (N, height, width) interpolated to `size` pixels, (N, *size)."""
        down = _interpolation(size[0], self.height, self.reach[0])
        across = _interpolation(size[1], self.width, self.reach[1])
        return _interpolated(maps, down, across)

    def matrices(
        self, size: Sequence[int], reach: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return matrices that interpolate: down (size[0], height) and across (size[1], width).

        ``down @ map @ across.T`` is what `enlarge` returns; with the `reach` of another grid and
        its height and width as size, what `resample` does.
        """
        found = []
        for length, cells, own, theirs in zip(
            size, (self.height, self.width), self.reach, reach, strict=True
        ):
            before, after, share = _interpolation(length, cells, own / theirs)
            matrix, places = np.zeros((length, cells)), np.arange(length)
            np.add.at(matrix, (places, before), 1 - share)
            np.add.at(matrix, (places, after), share)
            found.append(matrix)
        return found[0], found[1]

    def resample(self, maps: NDArray[np.floating], other: "Grid") -> NDArray[np.float64]:
        """Return `maps` (N, height, width) interpolated at the positions of `other`."""
        down = _interpolation(other.height, self.height, self.reach[0] / other.reach[0])
        across = _interpolation(other.width, self.width, self.reach[1] / other.reach[1])
        return _interpolated(maps, down, across)


def _interpolation(
    length: int, cells: int, reach: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Return the cells (length,) before and after each pixel's centre, and the second's share."""
    places = (np.arange(length) + 0.5) / length * cells / reach - 0.5
    places = np.clip(places, 0, cells - 1)
    before = np.minimum(places.astype(np.intp), max(cells - 2, 0))
    return before, np.minimum(before + 1, cells - 1), places - before


def _interpolated(maps: NDArray[np.floating], down: Any, across: Any) -> NDArray[np.float64]:
    """Return `maps` (N, height, width) at the places that `_interpolation` gives for both axes."""
    before, after, share = down
    found = np.asarray(maps, dtype=np.float64)
    found = found[:, before] * (1 - share)[:, None] + found[:, after] * share[:, None]
    before, after, share = across
    return np.asarray(found[:, :, before] * (1 - share) + found[:, :, after] * share)
