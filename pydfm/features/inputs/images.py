"""One image: files found by folder, opened and decoded."""

import functools
import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pydfm.features.pictures.pages import split_page
from pydfm.features.pictures.reading import read
from pydfm.runtime.text import printable

# Pillow names these formats, but does not read their pixels by itself.
_NOT_READ: Final = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_NO_WORD_NEEDED: Final = frozenset({"thumbs.db", "desktop.ini"})


@functools.cache
def extensions() -> frozenset[str]:
    """Return the endings of the files that Pillow can read, in lower case."""
    known = Image.registered_extensions()
    read = ({*Image.OPEN} - _NOT_READ) | {"MPO"}  # which the reader of JPEG opens
    return frozenset(ending for ending, kind in known.items() if kind in read)


def is_image_name(name: str) -> bool:
    """Whether a file with this name is taken for an image: by its ending, unless it is hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in extensions()


class ImageError(ValueError):
    """An image that cannot be read; the message names it and gives the reason.

    Names may come from elsewhere: what could steer a terminal in them is escaped.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


def list_images(path: str | os.PathLike[str]) -> list[str]:
    """Return the paths of the images in the folder `path`, or `path` alone if it is a file.

    Subfolders are searched too, and the paths are sorted. Hidden files and folders are left out,
    links are followed, and an image is recognised by its extension. A warning counts other files.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If the folder has no images.
    """
    root = Path(path)
    if root.is_file() or split_page(path)[1] is not None:
        return [str(root)]
    if not root.is_dir():
        raise FileNotFoundError(f"there is no file or folder '{root}'")
    found: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=_warn_of, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if is_image_name(name):
                found.append(str(Path(folder) / name))
            elif not name.startswith(".") and name.lower() not in _NO_WORD_NEEDED:
                others.append(str(Path(folder) / name))
    if not found:
        beside = f" (only {len(others)} other files)" if others else ""
        raise ValueError(
            f"the folder '{root}' holds no images{beside}; it must hold files that end in "
            f".png, .jpg, .tif, .bmp or another of {len(extensions())} endings that Pillow reads"
        )
    if others:
        warnings.warn(
            f"{len(others)} files in '{root}' are no images by their endings and are left out; the "
            f"first: '{printable(min(others))}'",
            stacklevel=2,
        )
    return sorted(found)


def read_image(source: Any, convert: Callable[[Any], Any], max_pixels: int | None = None) -> Any:
    """Open `source` and return what `convert` makes of it.

    It is a path, a page FILE#NUMBER, an open file, a PIL image or levels (H, W, 3). `convert` is
    given a PIL image, or levels (H, W, 3) where these are colours of more than 8 bits.
    `max_pixels` bounds the size of files; None is Pillow's bound.

    Raises
    ------
    ImageError
        If it cannot be opened or decoded.
    """
    try:
        return read(source, convert, max_pixels)
    except UnidentifiedImageError as error:
        raise ImageError("it is not an image") from error
    except Exception as error:  # PIL raises nearly everything for one broken file or another
        reason = "it is not an image" if "cannot identify" in str(error) else str(error)
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else reason
        raise ImageError(reason or type(error).__name__) from error


def _warn_of(error: OSError) -> None:
    warnings.warn(f"a folder cannot be read and is skipped: {printable(str(error))}", stacklevel=3)


def image_hashes(pixels: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a hash (B,) of each image of `pixels` (B, 3, h, w), the same in every batch."""
    digests = [hashlib.blake2b(np.ascontiguousarray(one).data, digest_size=8) for one in pixels]
    return np.array([int.from_bytes(own.digest(), "little") for own in digests], dtype=np.uint64)
