"""The bound on the number of pixels of an image, in place of Pillow's own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

_lock = threading.Lock()
_readers = 0
_own: int | None = None


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
