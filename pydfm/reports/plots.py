"""Images under the colours of their maps, on matplotlib's axes."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import map_range
from pydfm.conformal.regions import RegionFinder
from pydfm.features.views import View, Views
from pydfm.reports.drawing.axes import draw_map, new_axes
from pydfm.reports.drawing.scale import ColourScale
from pydfm.runtime.threads import resolve_threads

if TYPE_CHECKING:
    from pydfm.estimator import DFM

_SIDE = 600  # of the pictures, in pixels


def plot_maps(
    dfm: "DFM", X: Any, kind: str, axes: Any, smoothing: float, most: int
) -> NDArray[Any]:
    """Draw images with the outlines of their regions; see `DFM.plot_maps`.

    Parameters
    ----------
    dfm : DFM
    X
        Images in any of the forms of `DFM.fit`.
    kind : str
        Score type, which has maps.
    axes : sequence of matplotlib Axes or None
    smoothing : float
        Pixels.
    most : int

    Returns
    -------
    ndarray of Axes

    Raises
    ------
    ValueError
        If the model has no held-out maps, X has no image that can be read, or there are more or
        fewer axes than images.
    """
    fitted, n_threads = dfm.fitted_, resolve_threads(dfm.n_threads)
    assert fitted.spec is not None
    preprocessing = fitted.spec.preprocessing
    low, middle = map_range(fitted, dfm.alpha, kind)
    finder, scale = RegionFinder.between(low, middle), ColourScale(low, middle)
    views = Views(preprocessing, _SIDE)
    found: list[tuple[float, int, View, NDArray[np.float32]]] = []
    for places, features, _ in dfm.batches(X, task="maps", look=views):
        if not isinstance(places, list):
            raise ValueError("X holds features; plots show images, so pass these")
        scored = fitted.score(features, n_threads)
        maps = scored.maps(kind, preprocessing.size, smoothing)
        scores = scored.scores([kind])[0].tolist()
        found += zip(scores, places, views.take(places), maps, strict=True)
        if axes is None:
            found = sorted(found, key=lambda one: (-one[0], one[1]))[:most]
    if axes is None:
        if not found:
            raise ValueError("X holds no image that can be read")
        drawn = new_axes(len(found))
    else:
        drawn = np.asarray(axes, dtype=object).ravel()
        if len(drawn) != len(found):
            raise ValueError(
                f"axes has {len(drawn)} axes, and X {len(found)} images that can be read; give one "
                "for each"
            )
    for ax, (score, place, view, values) in zip(drawn, found, strict=True):
        window = preprocessing.window(*view.size)
        outlines = [region.polygon for region in finder.find(values, window, view.size)]
        draw_map(
            *(ax, view.picture, view.size, values, window, scale, outlines),
            f"{place}: score {score:.3g}",
        )
    return drawn
