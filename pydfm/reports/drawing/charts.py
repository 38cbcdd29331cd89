"""Charts as numbers for inline SVG: histograms, curves, ticks. Templates draw them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

WIDTH: Final = 900.0
"""Width of a chart in SVG's units."""

_BINS: Final = 45


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram: its place, its height from 0 to 1, and what it counts, in words."""

    x: float
    width: float
    share: float
    title: str


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from `low` to `high`, WIDTH units long.

    Attributes
    ----------
    low, high : float
    ticks : tuple of (float, str)
        Place and label.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return where `values` are, those beyond the ends at the ends."""
        share = (np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low)
        return np.asarray(WIDTH * share.clip(0, 1))


@dataclass(frozen=True)
class TwoHistograms:
    """Two samples over one axis: one above it, the other mirrored below.

    Attributes
    ----------
    axis : Axis
    above, below : tuple of Bar
        Heights are shares of the highest bar of each sample.
    beyond : int
        How many of the sample above are beyond the axis, and counted in its last bar.
    """

    axis: Axis
    above: tuple[Bar, ...]
    below: tuple[Bar, ...]
    beyond: int = 0

    @classmethod
    def of_scores(
        cls, above: NDArray[np.floating], below: NDArray[np.floating], threshold: float
    ) -> "TwoHistograms":
        """Bin scores of new images above and held-out scores below.

        What is far above the threshold is counted in the last bin.
        """
        both = np.concatenate([above, below]).astype(np.float64)
        low = float(both.min())
        reach = max(float(below.max()), threshold) - low
        high = min(float(both.max()), low + 3 * reach) if reach > 0 else float(both.max())
        if high <= low:
            low, high = low - 0.5, high + 0.5
        margin = (high - low) / (_BINS - 2)
        low, high = low - margin, high + margin
        axis = Axis(low, high, _ticks(low, high))
        beyond = int((above > high).sum())
        return cls(axis, _bars(above, axis, _number), _bars(below, axis, _number), beyond)

    @classmethod
    def of_p_values(
        cls, above: NDArray[np.floating], below: NDArray[np.floating]
    ) -> "TwoHistograms":
        """Bin p-values by their logarithm, small ones on the right."""
        smallest = float(np.concatenate([above, below]).min())
        high = max(-math.log10(smallest), 1.0) * 1.02
        powers = range(int(high) + 1)
        axis = Axis(0.0, high, tuple((WIDTH * k / high, f"{10.0**-k:g}") for k in powers))

        def p_of(value: float) -> str:
            return f"{10**-value:.2g}"

        return cls(axis, _bars(-np.log10(above), axis, p_of), _bars(-np.log10(below), axis, p_of))


def curve(x: NDArray[np.floating], y: NDArray[np.floating], side: float) -> str:
    """Return the points of an SVG polyline for a curve from (0, 0) to (1, 1) in a square."""
    points = np.stack([np.asarray(x) * side, (1 - np.asarray(y)) * side], axis=1)
    moved = np.abs(np.diff(points, axis=0)).sum(axis=1) > 0.05
    points = points[np.concatenate([[True], moved])]
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _bars(
    values: NDArray[np.floating], axis: Axis, text: Callable[[float], str]
) -> tuple[Bar, ...]:
    edges = np.linspace(axis.low, axis.high, _BINS + 1)
    inside = np.asarray(values, dtype=np.float64).clip(axis.low, axis.high)
    counts, _ = np.histogram(inside, edges)
    beyond = int((values > axis.high).sum())
    most = max(int(counts.max()), 1)
    bars = []
    for k in np.flatnonzero(counts).tolist():
        count = int(counts[k])
        what = "1 image" if count == 1 else f"{count} images"
        end = "and more" if k == _BINS - 1 and beyond else f"to {text(edges[k + 1])}"
        title = f"{what}: {text(edges[k])} {end}"
        step = WIDTH / _BINS
        bars.append(Bar(k * step, step, count / most, title))
    return tuple(bars)


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Return about eight round numbers between `low` and `high`, with their places."""
    rough = (high - low) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    values = [k * step for k in range(first, math.floor(high / step) + 1)]
    return tuple((WIDTH * (value - low) / (high - low), f"{value:.6g}") for value in values)


def _number(value: float) -> str:
    return f"{value:.3g}"


def shortest_between(low: float, high: float) -> str:
    """Return the decimal number with the fewest digits that is at least `low` and below `high`."""
    for digits in range(2, 15):
        scale = 10**digits
        value = math.ceil(low * scale - 1e-9) / scale
        if low - 1e-12 <= value < high:
            return f"{value:.{digits}f}".rstrip("0")
    return repr(low)


def thinned(count: int, most: int) -> Sequence[int]:
    """Return some of the numbers below `count`: all of the first ones, then ever fewer."""
    if count <= most:
        return range(count)
    spaced = np.geomspace(1, count, most).round().astype(int) - 1
    chosen: list[int] = np.unique(np.concatenate([np.arange(most // 2), spaced])).tolist()
    return chosen
