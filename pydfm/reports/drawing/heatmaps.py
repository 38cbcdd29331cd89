"""Files of maps: overlays on the images and raw maps, and masks of regions; one file each."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.reports.drawing.scale import ColourScale, overlay
from pydfm.runtime.checks import check_choice
from pydfm.runtime.files import check_output, make_folder, remove_litter, write_file

MAP_FORMATS: Final = ("png", "npy", "tiff")
"""An overlay on the image; or the map itself in float32, numpy's format or a grey TIFF."""


def check_folder(option: str, output: Path, images: Path) -> None:
    """Check, before any work is done, that files on `images` can be written to a folder.

    Parameters
    ----------
    option : str
        Name of the option, for messages.
    output : Path
        Created where it is missing.
    images : Path
        Folder of the images, or one image.

    Raises
    ------
    OSError
        If `output` is a file, or cannot be written to.
    ValueError
        If it is inside the folder of the images, where the next run would score the files.
    """
    if images.is_dir() and output.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"{option} is '{output}', which is inside '{images}', where the next run would score "
            "its files too; name a folder elsewhere"
        )
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{option} is '{output}', which is a file; name a folder")
    make_folder(output)
    check_output(output / "0.png")
    remove_litter(output)


@dataclass(frozen=True)
class MapFiles:
    """Writes a file for each image, as it comes.

    Attributes
    ----------
    root : Path
        Folder of the images.
    output : Path
        The files of ``root/a/b.jpg`` are ``output/a/b.jpg.*``, so that no two images share one.
    scale : ColourScale or None
        That of overlays, the model's.
    formats : tuple of str
        Of `MAP_FORMATS`.
    """

    root: Path
    output: Path
    scale: ColourScale | None = None
    formats: tuple[str, ...] = ("png",)

    def __post_init__(self) -> None:
        for name in self.formats:
            check_choice("--map-format", name, MAP_FORMATS)

    def write_maps(
        self, paths: Sequence[str], maps: NDArray[np.float32], pixels: NDArray[np.generic]
    ) -> None:
        """Write the maps of a batch.

        Parameters
        ----------
        paths : sequence of N str
        maps : ndarray of shape (N, H, W)
        pixels : ndarray of shape (N, 3, H, W), uint8 or float in [0, 1]
            The images as the network sees them.
        """
        for path, own, image in zip(paths, maps, pixels, strict=True):
            values = own.astype(np.float32)
            if "png" in self.formats:
                assert self.scale is not None
                seen = image if image.dtype == np.uint8 else np.rint(255 * image).astype(np.uint8)
                drawn = overlay(seen.transpose(1, 2, 0), self.scale.places(values))
                self._write(path, "png", Image.fromarray(drawn))
            if "tiff" in self.formats:
                self._write(path, "tiff", Image.fromarray(values))
            if "npy" in self.formats:
                data = io.BytesIO()
                np.save(data, values, allow_pickle=False)
                self._put(path, "npy", data.getvalue())

    def write_mask(self, path: str, mask: NDArray[np.bool_]) -> None:
        """Write a mask (height, width) as a PNG of black and white, 0 and 255."""
        self._write(path, "png", Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)))

    def _write(self, path: str, ending: str, image: Image.Image) -> None:
        data = io.BytesIO()
        image.save(data, format=ending.upper())
        self._put(path, ending, data.getvalue())

    def _put(self, path: str, ending: str, data: bytes) -> None:
        target = self.output / f"{os.path.relpath(path, self.root)}.{ending}"
        make_folder(target.parent)
        write_file(target, data, tidy=False)
