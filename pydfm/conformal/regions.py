r"""Regions: the connected parts of an image whose map is above the threshold of maps.

Hysteresis keeps weak borders and drops weak islands: a region is a connected part (by sides and
corners) above the lower of two levels that has a pixel above the upper one. The upper level is the
model's threshold; the lower one lies between it and what maps of good images typically reach.

Maps have the size of the network's input. Boxes, polygons and areas are in pixels of the upright
image in its file: resize and crop are undone.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pydfm.runtime.checks import check_number

SPREAD: Final = 0.5
"""Where the lower level lies on the way from the threshold to what good images typically reach."""

LEAST_AREA: Final = 1e-4
"""Share of the map's pixels that a region has at least."""


@dataclass(frozen=True, eq=False)
class Region:
    """A part of an image that is anomalous.

    Attributes
    ----------
    box : (float, float, float, float)
        Left, top, width and height in pixels of the upright image.
    polygon : ndarray of shape (m, 2), float64
        Its outline: corners x, y in pixels of the upright image; holes are filled.
    area : float
        In pixels of the upright image, without holes.
    peak : float
        The largest value of the map in it.
    peak_at : (float, float)
        Where that is: x, y.
    mean : float
        The mean of the map in it.
    """

    box: tuple[float, float, float, float]
    polygon: NDArray[np.float64]
    area: float
    peak: float
    peak_at: tuple[float, float]
    mean: float


@dataclass(frozen=True)
class RegionFinder:
    """Finds regions of maps.

    Attributes
    ----------
    upper : float
        A region has a value above it.
    lower : float
        All values of a region are above it; at most `upper`.
    least_area : float
        Smaller regions are dropped: share of the map's pixels.
    """

    upper: float
    lower: float
    least_area: float = 0.0

    @classmethod
    def between(
        cls, low: float, threshold: float, *, spread: float = SPREAD, least_area: float = LEAST_AREA
    ) -> "RegionFinder":
        """Find regions above `threshold`.

        Parameters
        ----------
        low : float
            What the maps of good images typically reach.
        threshold : float
        spread : float in [0, 1]
            Where the lower level is on the way from the threshold to `low`; 0 for one level.
        least_area : float in [0, 1]
            Share of the map's pixels that a region has at least.

        Raises
        ------
        ValueError
            If one of them is out of its range.
        """
        check_number("spread", spread, 0, 1)
        check_number("least_area", least_area, 0, 1)
        return cls(threshold, threshold - spread * max(threshold - low, 0.0), least_area)

    def labels(self, values: NDArray[np.floating]) -> NDArray[np.int32]:
        """Return the number of the region of each pixel of a map (H, W), from 1; 0 for none."""
        from scipy import ndimage

        wide = values > self.upper if self.lower >= self.upper else values > self.lower
        parts, count = ndimage.label(wide, structure=np.ones((3, 3)))
        if count == 0:
            return np.zeros(values.shape, dtype=np.int32)
        keep = np.zeros(count + 1, dtype=bool)
        keep[np.unique(parts[values > self.upper])] = True
        keep &= np.bincount(parts.ravel(), minlength=count + 1) >= self.least_area * parts.size
        keep[0] = False
        number = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
        found: NDArray[np.int32] = number[parts]
        return found

    def find(
        self,
        values: NDArray[np.floating],
        window: tuple[float, float, float, float],
        size: tuple[int, int],
    ) -> list[Region]:
        """Return the regions of a map, those with the highest values first.

        Parameters
        ----------
        values : ndarray of shape (H, W)
        window : (float, float, float, float)
            Left, top, right and bottom of the map in the image, from `Preprocessing.window`.
        size : (int, int)
            Height and width of the image.
        """
        labels = self.labels(values)
        regions = [
            _measured(values, labels == k, window, size) for k in range(1, int(labels.max()) + 1)
        ]
        return sorted(regions, key=lambda region: -region.peak)

    def mask(
        self,
        values: NDArray[np.floating],
        window: tuple[float, float, float, float],
        size: tuple[int, int],
    ) -> NDArray[np.bool_]:
        """Return which pixels (height, width) of the image are in a region; see `find`."""
        inside = self.labels(values) > 0
        left, top, right, bottom = window
        rows = _cells(size[0], top, bottom, values.shape[0])
        columns = _cells(size[1], left, right, values.shape[1])
        found = inside[np.ix_(rows.clip(0, len(inside) - 1), columns.clip(0, inside.shape[1] - 1))]
        seen_down = (rows >= 0) & (rows < values.shape[0])
        seen_across = (columns >= 0) & (columns < values.shape[1])
        return np.asarray(found & seen_down[:, None] & seen_across)


def brightest(
    values: NDArray[np.floating],
    low: float,
    window: tuple[float, float, float, float],
    size: tuple[int, int],
) -> Region:
    """Return the part around the largest value of a map, whatever the threshold.

    It reaches down to the half of the way from that value to `low`, or to the map's mean where the
    value is below `low`.
    """
    peak = float(values.max())
    base = low if peak > low else float(values.mean())
    finder = RegionFinder(float(np.nextafter(np.float32(peak), -np.inf)), (peak + base) / 2)
    found = finder.find(values, window, size)
    if found:
        return found[0]
    return _measured(values, values == values.max(), window, size)


def _cells(length: int, first: float, last: float, count: int) -> NDArray[np.intp]:
    """Return in which of `count` cells between `first` and `last` each pixel's centre lies."""
    places = (np.arange(length) + 0.5 - first) / (last - first) * count
    return np.asarray(np.floor(places), dtype=np.intp)


def _measured(
    values: NDArray[np.floating],
    inside: NDArray[np.bool_],
    window: tuple[float, float, float, float],
    size: tuple[int, int],
) -> Region:
    """Return the region of the pixels `inside` (H, W), which are connected."""
    left, top, right, bottom = window
    across, down = (right - left) / values.shape[1], (bottom - top) / values.shape[0]
    corners = outline(inside) * (across, down) + (left, top)
    corners = corners.clip(0, (size[1], size[0]))
    start, end = corners.min(axis=0), corners.max(axis=0)
    box = (float(start[0]), float(start[1]), float(end[0] - start[0]), float(end[1] - start[1]))
    own = values[inside].astype(np.float64)
    rows, columns = np.nonzero(inside)
    place = int(own.argmax())
    peak_at = (
        float(np.clip(left + (columns[place] + 0.5) * across, 0, size[1])),
        float(np.clip(top + (rows[place] + 0.5) * down, 0, size[0])),
    )
    area = float(inside.sum() * across * down)
    return Region(box, corners, area, float(own.max()), peak_at, float(own.mean()))


def outline(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the corners (m, 2), x and y, of the outer border of connected pixels (H, W).

    The border runs along the sides of pixels, clockwise as an image is shown. Where it touches
    itself at a corner it goes on around the outside.
    """
    padded = np.pad(inside, 1)
    # The border starts at the upper left corner of the first pixel and keeps pixels on its right.
    row, column = (int(own[0]) for own in np.nonzero(padded))
    y, x, dy, dx = row, column, 0, 1
    first, corners = (y, x, dy, dx), []
    while True:
        y, x = y + dy, x + dx
        # The two pixels ahead of the corner (y, x), left and right of the way.
        ahead_left = padded[y + min(dy - dx, 0), x + min(dx + dy, 0)]
        ahead_right = padded[y + min(dy + dx, 0), x + min(dx - dy, 0)]
        if ahead_left:
            turn = (-dx, dy)
        elif ahead_right:
            turn = (dy, dx)
        else:
            turn = (dx, -dy)
        if turn != (dy, dx):
            corners.append((x - 1, y - 1))
        dy, dx = turn
        if (y, x, dy, dx) == first:
            return np.array(corners, dtype=np.float64)
