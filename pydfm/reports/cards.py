"""Cards: what a page shows of an image, its picture, overlay, regions and a reason in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.regions import Region, RegionFinder, brightest
from pydfm.features.grid import Grid
from pydfm.features.transforms import Preprocessing
from pydfm.features.views import View
from pydfm.model.fitting import FittedDFM
from pydfm.model.row_scores import RowScores
from pydfm.reports.drawing.scale import ColourScale
from pydfm.reports.page import number, overlay_data, picture_data, shown, within_budget

# How far drawn outlines may be from those of regions: share of the longer side.
_TOLERANCE = 0.006
_REGIONS = 9


@dataclass(frozen=True)
class Mark:
    """A region as a page shows it.

    Attributes
    ----------
    box : (float, float, float, float)
        Left, top, width and height in pixels of the upright image.
    outline : str
        Points of an SVG polygon.
    text : str
        Size, place and value in words.
    above : bool
        Whether its map is above the threshold; else it is only the brightest part.
    """

    box: tuple[float, float, float, float]
    outline: str
    text: str
    above: bool


@dataclass(frozen=True)
class Card:
    """What a page shows of an image.

    Attributes
    ----------
    index : int
        Its place in the batch.
    path : str
        Its path, or its number.
    size : (int, int)
        Height and width of the upright image.
    picture : bytes
        JPEG; empty where there is no room.
    overlay : bytes
        PNG of the map's colours; empty without maps.
    window : tuple of 4 float
        Left, top, width and height of the overlay, as shares of the picture.
    marks : tuple of Mark
    reason : str
        One sentence.
    score, p_value : float
    anomalous : bool
    link : str
        Address of the full picture, or "".
    kind : str
        What the image shows, in an evaluation; or a note.
    """

    index: int
    path: str
    size: tuple[int, int]
    picture: bytes
    overlay: bytes = b""
    window: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    marks: tuple[Mark, ...] = field(default=())
    reason: str = ""
    score: float = float("nan")
    p_value: float = float("nan")
    anomalous: bool = False
    link: str = ""
    kind: str = ""

    @property
    def name(self) -> str:
        """The path as text."""
        return shown(self.path)


@dataclass(frozen=True)
class CardMaker:
    """Makes cards of a batch of images.

    Attributes
    ----------
    fitted : FittedDFM
    kind : str
        Score type of maps.
    alpha : float
    scale : ColourScale or None
        None where there are no maps to show.
    """

    fitted: FittedDFM
    kind: str
    alpha: float
    scale: ColourScale | None

    def make(
        self, places: Sequence[int], names: Sequence[str], scored: RowScores, views: Sequence[View]
    ) -> list[Card]:
        """Return the cards of images, without decisions.

        Parameters
        ----------
        places : sequence of N int
        names : sequence of N str
        scored : RowScores
            Their scores, from which maps are made.
        views : sequence of N View
        """
        cards = []
        for place, name, view in zip(places, names, views, strict=True):
            assert view.picture is not None
            cards.append(Card(place, name, view.size, picture_data(view.picture)))
        if self.scale is None:
            return cards
        assert self.fitted.spec is not None
        geometry = self.fitted.spec.preprocessing
        maps = scored.maps(self.kind, geometry.size)
        away = scored.deviations() if scored.model.by_maps(self.kind) else None
        return [
            self._with_map(card, own, geometry, [] if away is None else [a[i] for a in away])
            for i, (card, own) in enumerate(zip(cards, maps, strict=True))
        ]

    def _with_map(
        self,
        card: Card,
        values: NDArray[np.float32],
        geometry: Preprocessing,
        away: Sequence[NDArray[np.float64]],
    ) -> Card:
        assert self.scale is not None
        height, width = card.size
        window = geometry.window(height, width)
        finder = RegionFinder.between(self.scale.low, self.scale.middle)
        regions = finder.find(values, window, card.size)
        above = bool(regions)
        if not regions:
            regions = [brightest(values, self.scale.low, window, card.size)]
        left, top, right, bottom = window
        return replace(
            card,
            overlay=overlay_data(values, self.scale),
            window=(left / width, top / height, (right - left) / width, (bottom - top) / height),
            marks=tuple(self._mark(r, card.size, above) for r in regions[:_REGIONS]),
            reason=self._reason(regions, card.size, above, window, away),
        )

    def _mark(self, region: Region, size: tuple[int, int], above: bool) -> Mark:
        assert self.scale is not None
        corners = _simple(region.polygon, _TOLERANCE * max(size))
        outline = " ".join(f"{x:.0f},{y:.0f}" for x, y in corners)
        text = (
            f"{_extent(region)}, {_place(region, size)}; area "
            f"{number(region.area)} px; map {number(region.peak)}"
        )
        return Mark(region.box, outline, text, above)

    def _reason(
        self,
        regions: Sequence[Region],
        size: tuple[int, int],
        above: bool,
        window: tuple[float, float, float, float],
        away: Sequence[NDArray[np.float64]],
    ) -> str:
        """Say in a sentence where the image is most unlike good ones, and by how much."""
        assert self.scale is not None
        region = regions[0]
        parts = [
            f"Brightest region {_extent(region)}, {_place(region, size)}",
        ]
        if away:
            layers = self.fitted.model.layers
            values = [
                _highest_near(own, layer.grid, region, window)
                for own, layer in zip(away, layers, strict=True)
            ]
            most = int(np.argmax(values))
            if values[most] > 0:
                parts.append(
                    f"residual {values[most]:.0f} deviations above what good images have there "
                    f"({layers[most].name})"
                )
            else:
                parts.append("nothing there that good images do not have")
        if not above:
            parts.append("below the threshold of maps")
        elif len(regions) > 1:
            others = len(regions) - 1
            parts.append(f"{others} more region{'s' if others > 1 else ''} above the threshold")
        return "; ".join(parts) + "."


def fit_on_page(cards: Sequence[Card]) -> list[Card]:
    """Return the cards with pictures small enough for a page."""
    pictures = within_budget([c.picture for c in cards], sum(len(c.overlay) for c in cards))
    return [replace(c, picture=picture) for c, picture in zip(cards, pictures, strict=True)]


def place_in_words(point: tuple[float, float], size: tuple[int, int]) -> str:
    """Return where a point x, y is in an image of height and width `size`."""
    across = min(int(3 * point[0] / size[1]), 2)
    down = min(int(3 * point[1] / size[0]), 2)
    if (down, across) == (1, 1):
        return "near the centre"
    if across == 1:
        return ("near the top", "", "near the bottom")[down]
    side = "left" if across == 0 else "right"
    return (f"near the upper {side}", f"near the {side}", f"near the lower {side}")[down]


def _place(region: Region, size: tuple[int, int]) -> str:
    left, top, width, height = region.box
    return place_in_words((left + width / 2, top + height / 2), size)


def _extent(region: Region) -> str:
    return f"{region.box[2]:.0f} x {region.box[3]:.0f} px"


def _highest_near(
    values: NDArray[np.float64],
    grid: Grid | None,
    region: Region,
    window: tuple[float, float, float, float],
) -> float:
    """Return the largest of `values` (height, width) in the cells of a grid that a region meets."""
    assert grid is not None
    left, top, right, bottom = window
    x0, y0, width, height = region.box
    reach_down, reach_across = grid.reach

    def cells(first: float, last: float, start: float, end: float, reach: float, n: int) -> slice:
        unit = n / ((end - start) * reach)
        a = int(np.clip((first - start) * unit, 0, n - 1))
        b = int(np.clip(np.ceil((last - start) * unit), a + 1, n))
        return slice(a, b)

    rows = cells(y0, y0 + height, top, bottom, reach_down, grid.height)
    columns = cells(x0, x0 + width, left, right, reach_across, grid.width)
    return float(values[rows, columns].max())


def _simple(polygon: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Return a polygon with fewer corners, none further than `tolerance` from its line.

    By Douglas and Peucker: between two corners that stay, the one that is furthest from their line
    stays, too, if it is further than the tolerance.
    """
    points = np.concatenate([polygon, polygon[:1]])
    keep = np.zeros(len(points), dtype=bool)
    far = int(np.square(polygon - polygon[0]).sum(axis=1).argmax())
    keep[[0, far]] = True
    open_ends = [(0, far), (far, len(polygon))]
    while open_ends:
        first, last = open_ends.pop()
        if last - first < 2:
            continue
        x, y = (points[last] - points[first]).tolist()
        away = points[first + 1 : last] - points[first]
        distance = np.abs(x * away[:, 1] - y * away[:, 0]) / max(float(np.hypot(x, y)), 1e-9)
        most = int(distance.argmax())
        if distance[most] > tolerance:
            middle = first + 1 + most
            keep[middle] = True
            open_ends += [(first, middle), (middle, last)]
    return np.asarray(polygon[keep[:-1]])
