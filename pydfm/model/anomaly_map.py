r"""Scores of positions made maps and scores of images.

**Standardised maps** make scores of images. A position where normal images differ much, an edge for
example, has large residuals without any defect. With m and d the mean and the standard deviation
that the energy e of a position has over n normal images, each under the model of the others, its
standardised energy is

    (e - m) / max(d, f),  where f is the median of d over the positions that vary.

A deviation of few images is itself uncertain, and where normal images hardly vary any noise would
be many deviations: f limits the divisor from below. A position varies where d exceeds a millionth
of the largest d; where none does, f is 1. Each class has its own m and d. The score of an image is
the mean of the largest of its standardised energies, by one share of the positions or by several:
each mean is then standardised by those of the n images, and they are added up. A small share sees
small defects, a large share weak ones.

**Maps that are shown** keep energies in proportion: e / m, with m the mean over all positions and
held-out images of a class, one number for each layer. Means and deviations of single positions
would hide defects where normal parts differ. Scores that may be negative are (e - m) / d, with the
deviation d over the same.

For one of the n images itself, all means and deviations are those of the images that are not of its
unit (the image, or its group). With a the difference from the mean of all n, and sums over the m
images of the unit,

    a' = a + sum a / (n - m),  d'^2 = (n d^2 - sum a^2) / (n - m) - (sum a / (n - m))^2,

and f is that of all. This removes the image from its own standardisation. A small influence is
left: the energies of the other images come from models that have seen it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.grid import Grid
from pydfm.features.inputs.labels import by_class

LEAST_ROWS: Final = 3
"""Least number of images of a class for a deviation without one of them."""

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

    def of_classes(self, places: NDArray[np.intp]) -> "PositionScale":
        """Return the scale of some of the classes."""
        return replace(self, mean=self.mean[places], deviation=self.deviation[places])


def standardise_held_out(
    maps: NDArray[np.floating], classes: NDArray[np.intp], units: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Standardise held-out `maps` (n, height, width), each by those of other units of its class.

    Parameters
    ----------
    maps : ndarray of shape (n, height, width)
    classes, units : ndarray of shape (n,)
        Images of a class that share a unit were held out together.
    """
    result = np.empty(maps.shape)
    for _, places in by_class(classes):
        own = maps[places].astype(np.float64)
        away, deviation = _from_others(own, units[places])
        result[places] = away / np.maximum(deviation, _floor(own.std(axis=0)))
    return result


@dataclass(frozen=True)
class TopShares:
    """Scores of images from standardised maps: means of the largest values, by share.

    Of one share, the score is that mean. Of several, each is standardised, and they are added up.

    Attributes
    ----------
    shares : tuple of float
        Shares of the positions, S of them; at least one position is taken.
    mean, deviation : ndarray of shape (C, S), float64
        Of the means of held-out normal images of each class; 0 and 1 for one share.
    """

    shares: tuple[float, ...]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @classmethod
    def plain(cls, share: float, n_classes: int) -> "TopShares":
        """Return the mean of one share, as it is."""
        return cls((share,), np.zeros((n_classes, 1)), np.ones((n_classes, 1)))

    @classmethod
    def fit(
        cls,
        shares: tuple[float, ...],
        maps: NDArray[np.floating],
        classes: NDArray[np.intp],
        n_classes: int,
    ) -> "TopShares":
        """Fit it to standardised held-out `maps` (n, height, width); every class has some."""
        if len(shares) == 1:
            return cls.plain(shares[0], n_classes)
        tops = _tops(maps, shares)
        mean, deviation = np.empty((2, n_classes, len(shares)))
        for c, places in by_class(classes):
            mean[c], deviation[c] = tops[places].mean(axis=0), tops[places].std(axis=0)
        return cls(shares, mean, _positive(deviation))

    def score(
        self, maps: NDArray[np.floating], classes: NDArray[np.intp] | None
    ) -> NDArray[np.float32]:
        """Return scores (N,) of new images by their `maps` (N, height, width).

        Parameters
        ----------
        maps : ndarray of shape (N, height, width)
            Standardised, of all layers.
        classes : ndarray of shape (N,) or None
            Of the images; None for class 0.
        """
        own = 0 if classes is None else classes
        t = (_tops(maps, self.shares) - self.mean[own]) / self.deviation[own]
        return np.asarray(t.sum(axis=1), dtype=np.float32)

    def score_held_out(
        self,
        maps: NDArray[np.floating],
        classes: NDArray[np.intp],
        units: NDArray[np.intp],
    ) -> NDArray[np.float64]:
        """Return scores (n,) of the images it was fitted to, each by other units of its class."""
        tops = _tops(maps, self.shares)
        if len(self.shares) > 1:
            for _, places in by_class(classes):
                away, deviation = _from_others(tops[places], units[places])
                tops[places] = away / _positive(deviation)
        return np.asarray(tops.sum(axis=1))

    def of_classes(self, places: NDArray[np.intp]) -> "TopShares":
        """Return this of some of the classes."""
        return replace(self, mean=self.mean[places], deviation=self.deviation[places])


@dataclass(frozen=True)
class MapScale:
    """What the values of a layer's maps are measured in: (value - offset) / divisor.

    Attributes
    ----------
    offset, divisor : ndarray of shape (C,), float64
        For each class; the divisor is positive. The offset is 0, and the divisor the mean over
        positions and held-out normal images; or, for scores that may be negative, mean and
        deviation.
    """

    offset: NDArray[np.float64]
    divisor: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        moments: NDArray[np.float64],
        classes: NDArray[np.intp],
        n_classes: int,
        *,
        signed: bool,
    ) -> "MapScale":
        """Fit it to held-out images.

        Parameters
        ----------
        moments : ndarray of shape (n, 2)
            Mean and mean square of each image's scores, over its positions; finite, of at least one
            image. Mean squares are used for signed scores only.
        classes : ndarray of shape (n,)
            A class without images has the scale of all.
        n_classes : int
        signed : bool
            Whether scores may be negative.
        """
        average = np.tile(moments.mean(axis=0), (n_classes, 1))
        for c, places in by_class(classes):
            average[c] = moments[places].mean(axis=0)
        return cls(*_offset_and_divisor(average, signed))

    def scale(
        self, maps: NDArray[np.floating], classes: NDArray[np.intp] | None
    ) -> NDArray[np.float64]:
        """Return `maps` (N, height, width) of new images of `classes` (N,), or of class 0."""
        own = np.zeros(len(maps), dtype=np.intp) if classes is None else classes
        offset, divisor = self.offset[own, None, None], self.divisor[own, None, None]
        return np.asarray((maps - offset) / divisor)

    def of_classes(self, places: NDArray[np.intp]) -> "MapScale":
        """Return the scale of some of the classes."""
        return MapScale(self.offset[places], self.divisor[places])


def scale_held_out(
    maps: NDArray[np.floating],
    moments: NDArray[np.float64],
    classes: NDArray[np.intp],
    units: NDArray[np.intp],
    *,
    signed: bool,
) -> NDArray[np.float64]:
    """Scale held-out `maps` (n, height, width), each by those of other units of its class.

    Parameters
    ----------
    maps : ndarray of shape (n, height, width)
    moments : ndarray of shape (n, 2)
        As in `MapScale.fit`.
    classes, units : ndarray of shape (n,)
    signed : bool
    """
    average = np.empty_like(moments)
    for _, places in by_class(classes):
        average[places] = moments[places] - _from_others(moments[places], units[places])[0]
    offset, divisor = _offset_and_divisor(average, signed)
    return np.asarray((maps - offset[:, None, None]) / divisor[:, None, None])


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


def _tops(maps: NDArray[np.floating], shares: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the means (N, S) of the largest values of `maps` (N, height, width)."""
    flat = maps.reshape(len(maps), -1)
    return np.stack([pool_positions(flat, "top", share) for share in shares], axis=1)


def _offset_and_divisor(
    average: NDArray[np.float64], signed: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return offset and divisor (...) from mean and mean square (..., 2) of scores."""
    mean, square = average[..., 0], average[..., 1]
    if not signed:
        return np.zeros_like(mean), _positive(mean)
    return mean, _positive(np.sqrt(np.maximum(square - mean**2, 0)))


def _from_others(
    values: NDArray[np.float64], units: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far `values` (n, ...) are from the mean of other units, and their deviation."""
    _, place, sizes = np.unique(units, return_inverse=True, return_counts=True)
    place = place.reshape(-1)
    shape = (-1,) + (1,) * (values.ndim - 1)
    left = np.maximum(len(values) - sizes[place], 1).reshape(shape)
    away = values - values.mean(axis=0)
    squares = np.square(away)
    total = squares.sum(axis=0)
    own, own_squares = away, squares
    if len(sizes) < len(values):
        own, own_squares = (np.zeros((len(sizes), *values.shape[1:])) for _ in range(2))
        np.add.at(own, place, away)
        np.add.at(own_squares, place, squares)
        own, own_squares = own[place], own_squares[place]
    variance = (total - own_squares) / left - np.square(own / left)
    return away + own / left, np.sqrt(np.maximum(variance, 0))


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `values`, with 1 in place of what cannot divide."""
    return np.where(values > 0, values, 1.0)


def _floor(spread: NDArray[np.float64]) -> float:
    varying = spread[spread > _VARIES * spread.max()]
    return float(np.median(varying)) if len(varying) else 1.0
