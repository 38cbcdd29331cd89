"""One image: files found by folder, opened and decoded."""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EXTENSIONS: Final = frozenset(
    {".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm"}
    | {".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


class ImageError(ValueError):
    """An image that cannot be read; the message names it and gives the reason."""


def list_images(path: str | os.PathLike[str]) -> list[str]:
    """Return the paths of the images in the folder `path`, or `path` alone if it is a file.

    Subfolders are searched too, and the paths are sorted. Hidden files and folders are left out,
    links are followed, and an image is recognised by its extension.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If the folder has no images.
    """
    root = Path(path)
    if root.is_file():
        return [str(root)]
    if not root.is_dir():
        raise FileNotFoundError(f"there is no file or folder '{root}'")
    found: list[str] = []
    others = 0
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=_warn_of, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in EXTENSIONS:
                found.append(str(Path(folder) / name))
            else:
                others += 1
    if not found:
        beside = f" (only {others} other files)" if others else ""
        raise ValueError(
            f"the folder '{root}' holds no images{beside}; it must hold files that end in "
            + ", ".join(sorted(EXTENSIONS))
        )
    return sorted(found)


def read_image(source: Any, convert: Callable[[Image.Image], Any]) -> Any:
    """Open `source` (a path or a PIL image) and return what `convert` makes of it.

    Raises
    ------
    ImageError
        If it cannot be opened or decoded.
    """
    try:
        if isinstance(source, Image.Image):
            return convert(source)
        if Path(source).exists() and not Path(source).is_file():  # a pipe may wait for ever
            raise ImageError("it is not a file")
        with Image.open(source) as image:
            return convert(image)
    except Exception as error:  # PIL raises nearly everything for one broken file or another
        reason = "it is not an image" if "cannot identify" in str(error) else str(error)
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else reason
        raise ImageError(reason or type(error).__name__) from error


def _warn_of(error: OSError) -> None:
    warnings.warn(f"a folder cannot be read and is skipped: {error}", stacklevel=3)


def image_hashes(pixels: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a hash (B,) of each image of `pixels` (B, 3, h, w), the same in every batch."""
    digests = [hashlib.blake2b(np.ascontiguousarray(one).data, digest_size=8) for one in pixels]
    return np.array([int.from_bytes(own.digest(), "little") for own in digests], dtype=np.uint64)
