"""Score maps in colours over their pictures, one PNG file for each.

A map's values s turn into shares t = (s - least) / (largest - least) of the range that all maps of
a run have, so that a colour means the same in all of its pictures: where t is 0 the picture, as the
network sees it, shows as it is; the higher t, the more it is covered by the colour of t.
"""

import io
import os
import tempfile
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


class Heatmaps:
    """Takes the features of pictures, batch by batch, and then writes their heatmaps.

    Until the range of all maps is known they lie in a file without a name in the folder `output`.

    Parameters
    ----------
    dfm : DFM
        Fitted on images, with maps of its score type.
    pictures, output : path
        The heatmap of ``pictures/a/b.jpg`` is ``output/a/b.jpg.png``: every picture has a file of
        its own.
    smoothing : float
        As in `DFM.score_map`.
    """

    def __init__(self, dfm: DFM, pictures: Path, output: Path, smoothing: float = 0.0) -> None:
        self._dfm = dfm
        self._root = pictures if pictures.is_dir() else pictures.parent
        self._output = output
        self._smoothing = smoothing
        self._paths: list[str] = []
        self._least, self._largest = np.inf, -np.inf
        self._file = tempfile.TemporaryFile(dir=output)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "Heatmaps":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, paths: Sequence[str], features: NDArray[np.float32]) -> None:
        """Take the features (N, D) of pictures, as `DFM.extract` gives them."""
        for first in range(0, len(paths), _MAPS_AT_ONCE):
            part = features[first : first + _MAPS_AT_ONCE]
            maps = self._dfm.score_map(part, smoothing=self._smoothing).astype(np.float32)
            self._least = min(self._least, float(maps.min()))
            self._largest = max(self._largest, float(maps.max()))
            self._file.write(maps.data)
        self._paths += paths

    def write(self) -> None:
        """Write the heatmaps of all pictures that were added."""
        colours = _colours()
        assert self._dfm.feature_spec_ is not None
        preprocessing = self._dfm.feature_spec_.preprocessing
        height, width = preprocessing.size
        self._file.seek(0)
        for path in self._paths:
            values = np.frombuffer(self._file.read(4 * height * width), np.float32)
            share = (values - self._least) / ((self._largest - self._least) or 1.0)
            pixels = read_image(path, preprocessing.from_pil)
            drawn = io.BytesIO()
            picture = _blend(pixels, share.reshape(height, width), colours)
            Image.fromarray(picture).save(drawn, format="PNG")
            target = self._output / f"{os.path.relpath(path, self._root)}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_file(target, drawn.getvalue())


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
