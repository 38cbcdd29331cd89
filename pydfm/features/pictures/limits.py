"""The bound on the number of pixels of an image, in place of Pillow's own."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from PIL import Image

_lock = threading.Lock()
_readers = 0
_own: int | None = None

_PAGE_BYTES: Final = 38  # of an animated PNG: the chunk that begins one

# By Pillow's decoder, the most pixels that a byte of a file may hold: 8 of one bit, which deflate
# packs 1,032 to 1.
_DENSEST: Final = {"raw": 8, "zip": 8 * 1032}


@contextmanager
def pillow_without_bound() -> Iterator[int | None]:
    """Lift Pillow's bound while images are read, on any thread; yield the bound it had.

    Pillow's is one for the whole process, and warns between one and two times
    ``Image.MAX_IMAGE_PIXELS``; beyond twice it raises.
    """
    global _readers, _own
    with _lock:
        if _readers == 0:
            _own = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
        _readers += 1
        bound = _own
    try:
        yield None if bound is None else 2 * bound
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                Image.MAX_IMAGE_PIXELS = _own


def check_pixels(size: tuple[int, int], max_pixels: Any) -> None:
    """Raise ValueError if an image of `size` has more than `max_pixels`; None for no bound."""
    count = size[0] * size[1]
    if max_pixels is not None and count > max_pixels:
        raise ValueError(
            f"it has {count} pixels, more than max_pixels, {max_pixels}; pass a larger "
            "max_pixels (--max-pixels) if you trust the file"
        )


def check_size(image: Image.Image, file: Any, max_pixels: Any) -> None:
    """Raise ValueError if an image that was opened from `file` is too large to load or to seek."""
    check_pixels(image.size, max_pixels)
    check_claim(image, file)


def check_claim(image: Image.Image, file: Any) -> None:
    """Raise ValueError if the header of `image` claims more pages or pixels than `file` can hold.

    Memory for all pixels is taken before the first is read.

    Parameters
    ----------
    image : Image
        Opened, and not yet loaded.
    file : path or open file
    """
    size = _size_of(file)
    pages = getattr(image, "n_frames", 1) if image.format == "PNG" else 1  # others count them
    if pages > 1 and pages > size // _PAGE_BYTES:
        raise ValueError(f"its header claims {pages} pages, more than {size} bytes can hold")
    codecs = [tile[0] for tile in getattr(image, "tile", ())]
    densest = max((_DENSEST.get(codec, 0) for codec in codecs), default=0)
    if densest == 0 or any(codec not in _DENSEST for codec in codecs):
        return
    if image.size[0] * image.size[1] > densest * size:
        raise ValueError(
            f"its header claims {image.size[0]} x {image.size[1]} pixels, more than {size} bytes "
            "can hold"
        )


def _size_of(file: Any) -> int:
    if not hasattr(file, "seek"):
        return Path(file).stat().st_size
    place = file.tell()
    end: int = file.seek(0, os.SEEK_END)
    file.seek(place)
    return end
