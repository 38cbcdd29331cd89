"""Score maps in colours over their pictures, one PNG file for each.

A map's values s turn into shares t = (s - least) / (largest - least) of the range that all maps of
a run have, so that a colour means the same in all of its pictures: where t is 0 the picture, as the
network sees it, shows as it is; the higher t, the more it is covered by the colour of t.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.dfm import DFM
from pydfm.files import check_output, write_file
from pydfm.images import read_image

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_COLOURS: Final = "inferno"
_COVER: Final = 0.8  # of the picture, by the largest value
_MAPS_AT_ONCE: Final = 32


def check_folder(output: Path, pictures: Path) -> None:
    """Tell before any work is done whether heatmaps of `pictures` cannot be written to `output`.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If `output` is no folder, or must not be written to.
    ValueError
        If it lies in the folder of the pictures, where it would be taken for more of them.
    """
    _colours()
    if pictures.is_dir() and output.resolve().is_relative_to(pictures.resolve()):
        raise ValueError(
            f"--maps is '{output}', which lies in '{pictures}', where the heatmaps would be scored "
            "next time; name a folder elsewhere"
        )
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--maps is '{output}', which is a file; name a folder")
    output.mkdir(parents=True, exist_ok=True)
    check_output(output / "0.png")


def write_heatmaps(
    dfm: DFM,
    paths: Sequence[str],
    features: NDArray[np.float32],
    read: NDArray[np.bool_],
    pictures: Path,
    output: Path,
    smoothing: float = 0.0,
) -> None:
    """Write the heatmap of each picture that could be read.

    Parameters
    ----------
    dfm : DFM
        Fitted on images, with maps of its score type.
    paths : sequence of str
        Of N pictures below `pictures`, or that one.
    features : ndarray of shape (N, D)
        Their features, as `DFM.extract` gives them.
    read : ndarray of shape (N,), bool
    pictures, output : path
        The heatmap of ``pictures/a/b.jpg`` is ``output/a/b.jpg.png``: every picture has a file of
        its own.
    smoothing : float
        As in `DFM.score_map`.
    """
    colours = _colours()
    assert dfm.feature_spec_ is not None
    preprocessing = dfm.feature_spec_.preprocessing
    places = np.flatnonzero(read)
    parts = [places[i : i + _MAPS_AT_ONCE] for i in range(0, len(places), _MAPS_AT_ONCE)]
    # Made twice rather than kept: they are small work beside the network's.
    least, largest = np.inf, -np.inf
    for part in parts:
        maps = dfm.score_map(features[part], smoothing=smoothing)
        least, largest = min(least, float(maps.min())), max(largest, float(maps.max()))
    root = pictures if pictures.is_dir() else pictures.parent
    for part in parts:
        maps = dfm.score_map(features[part], smoothing=smoothing)
        shares = (maps - least) / ((largest - least) or 1.0)
        for place, share in zip(part, shares, strict=True):
            pixels = read_image(paths[place], preprocessing.from_pil)
            file = output / f"{os.path.relpath(paths[place], root)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            drawn = io.BytesIO()
            Image.fromarray(_blend(pixels, share, colours)).save(drawn, format="PNG")
            write_file(file, drawn.getvalue())


def _blend(
    pixels: NDArray[np.uint8], share: NDArray[np.floating], colours: "Colormap"
) -> NDArray[np.uint8]:
    """Picture (H, W, 3) of `pixels` (3, H, W) under the colours of `share` (H, W) in [0, 1]."""
    cover = _COVER * share[:, :, np.newaxis]
    coloured = 255 * np.asarray(colours(share))[:, :, :3]
    blended = (1 - cover) * pixels.transpose(1, 2, 0) + cover * coloured
    return np.asarray(np.rint(blended), dtype=np.uint8)


def _colours() -> "Colormap":
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "heatmaps need matplotlib; install it with `pip install -c constraints.txt '.[plot]'`"
        ) from error
    return matplotlib.colormaps[_COLOURS]
