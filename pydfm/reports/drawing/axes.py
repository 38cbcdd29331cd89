"""Scores and maps on matplotlib's axes: arrays and axes in, axes out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pydfm.reports.drawing.scale import ColourScale, colours, cover

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_scores(
    scores: NDArray[np.floating],
    held_out: NDArray[np.floating],
    threshold: float | None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draw histograms of scores and of held-out scores over each other, as densities.

    Parameters
    ----------
    scores, held_out : ndarray of shape (N,) and (n,)
    threshold : float or None
        Where a line is drawn.
    ax : Axes, optional
        Default: those of a new figure.
    """
    if ax is None:
        _, ax = _pyplot().subplots()
    both = np.concatenate([scores, held_out])
    bins = min(max(int(np.sqrt(len(both))) * 2, 10), 60)
    edges = np.histogram_bin_edges(both, bins).tolist()
    n, m = len(held_out), len(scores)
    ax.hist(held_out, edges, density=True, histtype="step", color="0.35", label=f"held-out ({n})")
    ax.hist(scores, edges, density=True, alpha=0.6, color="C0", label=f"these images ({m})")
    if threshold is not None:
        ax.axvline(threshold, color="C3", linestyle="--", label=f"threshold {threshold:.3g}")
    ax.set_xlabel("score (larger = more anomalous)")
    ax.set_ylabel("density")
    ax.legend()
    return ax


def new_axes(count: int) -> NDArray[Any]:
    """Return `count` axes of a new figure, at most four in a row."""
    columns = min(count, 4)
    rows = -(-count // columns)
    _, axes = _pyplot().subplots(
        rows, columns, figsize=(3 * columns, 3.3 * rows), squeeze=False, layout="constrained"
    )
    flat: NDArray[Any] = axes.ravel()
    for ax in flat[count:]:
        ax.remove()
    return flat[:count]


def draw_map(
    ax: "Axes",
    picture: Any,
    size: tuple[int, int],
    values: NDArray[np.floating],
    window: tuple[float, float, float, float],
    scale: ColourScale,
    outlines: Sequence[NDArray[np.float64]] = (),
    title: str = "",
) -> "Axes":
    """Draw a picture under the colours of its map, in pixels of the whole image.

    Parameters
    ----------
    ax : Axes
    picture : PIL image or array
        The whole image, at any scale.
    size : (int, int)
        Height and width of the whole image.
    values : ndarray of shape (H, W)
        The map.
    window : (float, float, float, float)
        Left, top, right and bottom of the map in the image.
    scale : ColourScale
    outlines : sequence of ndarray of shape (m, 2)
        Of regions.
    title : str
    """
    height, width = size
    left, top, right, bottom = window
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    places = scale.places(values)
    drawn = np.concatenate([colours(places) / 255, cover(places)[..., None]], axis=-1)
    ax.imshow(drawn, extent=(left, right, bottom, top), interpolation="bilinear")
    for corners in outlines:
        ax.fill(*corners.T, fill=False, edgecolor="white", linewidth=1.5)
        ax.fill(*corners.T, fill=False, edgecolor="black", linewidth=0.7)
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.set_title(title, fontsize="medium", parse_math=False)
    ax.set_axis_off()
    return ax


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib; install it with `pip install -c constraints.txt '.[plot]'`"
        ) from error
    return pyplot
