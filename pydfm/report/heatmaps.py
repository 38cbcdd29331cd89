"""Heatmaps: score maps in colours over their images, one PNG file each.

The values s of a map become shares t = (s - lowest) / (highest - lowest) of the range of all maps
of a run, so that a colour means the same in all of them. Where t is 0, the image shows as the
network sees it; the higher t is, the more the colour of t covers it.
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

from pydfm.runtime.files import check_output, make_folder, write_file

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

_COLOURS: Final = "inferno"
# Share of the image that the colour of the highest value covers.
_COVER: Final = 0.8


def check_folder(output: Path, images: Path) -> None:
    """Check, before any work is done, that heatmaps of `images` can be written to `output`.

    Parameters
    ----------
    output : Path
        Folder of the heatmaps; created where it is missing.
    images : Path
        Folder of the images, or one image.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If `output` is a file, or cannot be written to.
    ValueError
        If it is inside the folder of the images, where the next run would score the heatmaps.
    """
    _colours()
    if images.is_dir() and output.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"--maps is '{output}', which is inside '{images}', where the next run would score the "
            "heatmaps too; name a folder elsewhere"
        )
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--maps is '{output}', which is a file; name a folder")
    make_folder(output)
    check_output(output / "0.png")


class Heatmaps:
    """Heatmaps of a run: takes maps and images batch by batch, then writes all files.

    Until the range of all maps is known, they wait in a temporary file in the folder `output`.

    Parameters
    ----------
    root : Path
        Folder of the images.
    output : Path
        The heatmap of ``root/a/b.jpg`` is ``output/a/b.jpg.png``, so that no two images share a
        file.
    """

    def __init__(self, root: Path, output: Path) -> None:
        self._root = root
        self._output = output
        self._entries: list[tuple[str, tuple[int, int]]] = []
        self._lowest, self._highest = np.inf, -np.inf
        self._file = tempfile.TemporaryFile(dir=output)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "Heatmaps":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(
        self, paths: Sequence[str], maps: NDArray[np.float32], pixels: NDArray[np.uint8]
    ) -> None:
        """Take a batch of images.

        Parameters
        ----------
        paths : sequence of N str
        maps : ndarray of shape (N, H, W)
        pixels : ndarray of shape (N, 3, H, W), uint8
            The images as the network sees them.
        """
        self._lowest = min(self._lowest, float(maps.min()))
        self._highest = max(self._highest, float(maps.max()))
        for path, own, image in zip(paths, maps, pixels, strict=True):
            self._file.write(own.astype(np.float32).tobytes())
            drawn = image if image.dtype == np.uint8 else np.rint(255 * image).astype(np.uint8)
            self._file.write(drawn.tobytes())
            self._entries.append((path, own.shape))

    def write(self) -> None:
        """Write the heatmaps of all images that were added."""
        colours = _colours()
        self._file.seek(0)
        for path, (height, width) in self._entries:
            values = np.frombuffer(self._file.read(4 * height * width), np.float32)
            pixels = np.frombuffer(self._file.read(3 * height * width), np.uint8)
            share = (values - self._lowest) / ((self._highest - self._lowest) or 1.0)
            drawn = io.BytesIO()
            blended = _blend(
                pixels.reshape(3, height, width), share.reshape(height, width), colours
            )
            Image.fromarray(blended).save(drawn, format="PNG")
            target = self._output / f"{os.path.relpath(path, self._root)}.png"
            make_folder(target.parent)
            write_file(target, drawn.getvalue())


def _blend(
    pixels: NDArray[np.uint8], share: NDArray[np.floating], colours: "Colormap"
) -> NDArray[np.uint8]:
    """Return `pixels` (3, H, W) under the colours of `share` (H, W) in [0, 1], as (H, W, 3)."""
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
