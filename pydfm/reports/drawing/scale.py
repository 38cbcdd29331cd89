"""The colour scale of overlays: that of the model, the same in every run.

A value v of a map has the place t = (v - low) / (high - low) on the scale, from 0 to 1. `low` is
what the map of a good image typically reaches at most, so that good images stay clear. The middle
is the model's threshold of maps. The higher t is, the more its colour covers the image.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# From yellow to purple: the lightness falls, so that the order can be seen without colours.
_ANCHORS: Final = np.array([[255, 226, 84], [251, 140, 28], [214, 42, 62], [122, 12, 100]])
# Share of the image that the colour of the highest value covers.
_COVER: Final = 0.8


@dataclass(frozen=True)
class ColourScale:
    """Values of maps as places on the scale.

    Attributes
    ----------
    low : float
        The value at which the scale begins.
    middle : float
        The value in its middle, not below `low`.
    """

    low: float
    middle: float

    @property
    def high(self) -> float:
        """The value at which the scale ends."""
        return 2 * self.middle - self.low

    def places(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return places (...) of `values` on the scale, from 0 to 1; NaN has 0."""
        found = np.asarray(values, dtype=np.float64)
        span = self.high - self.low
        if span > 0:
            return np.nan_to_num((found - self.low) / span).clip(0, 1)
        return np.where(found > self.middle, 1.0, 0.0)  # where all good images have one value


def colours(places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the colours (..., 3) of places on the scale, from 0 to 255."""
    at = np.linspace(0, 1, len(_ANCHORS))
    return np.stack([np.interp(places, at, channel) for channel in _ANCHORS.T], axis=-1)


def cover(places: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how much of the image the colours of `places` cover (...), from 0 to 1."""
    return np.asarray(_COVER * np.asarray(places, dtype=np.float64))


def overlay(pixels: NDArray[np.uint8], places: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) under the colours of `places` (H, W) on the scale."""
    share = cover(places)[..., np.newaxis]
    return np.asarray(np.rint((1 - share) * pixels + share * colours(places)), dtype=np.uint8)
