"""Files and PIL images, read with all their bits: by Pillow, and by tifffile where it misreads."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, UnidentifiedImageError

from pydfm.features.pictures.colours import is_deep_colour, read_colours
from pydfm.features.pictures.headers import FORMATS
from pydfm.features.pictures.limits import check_size, pillow_without_bound
from pydfm.features.pictures.orientation import orientation
from pydfm.features.pictures.pages import seek_page, split_page
from pydfm.features.pictures.tiff import (
    is_misread,
    is_tiff,
    is_turned_unpacked,
    mend_size,
    read_tiff,
    tiff_orientation,
)

_MAY_BE_DEEP: Final = ("PNG", "TIFF", "PPM", "SGI", "DDS", *FORMATS)


def read(source: Any, convert: Callable[[Any], Any], max_pixels: int | None = None) -> Any:
    """Open `source` and return what `convert` makes of it, as `read_image` does.

    Raises
    ------
    Exception
        Of nearly any type, if it cannot be opened or decoded.
    """
    if isinstance(source, np.ndarray):
        return convert(source)
    if isinstance(source, Image.Image):
        mend_size(source)
        if not (is_misread(source) or _is_more_in_its_file(source)):
            return convert(source)
        return _read_again(source, convert, max_pixels)
    is_path = isinstance(source, str | os.PathLike)
    if is_path and Path(source).exists() and not Path(source).is_file():
        raise ValueError("it is not a file")  # a pipe may wait for ever
    file, page = split_page(source) if is_path else (source, None)
    try:
        return _read_file(file, page, convert, max_pixels)
    except UnidentifiedImageError:
        if not is_tiff(file):
            raise
    with pillow_without_bound() as bound:
        most = bound if max_pixels is None else max_pixels
    return convert(read_tiff(file, page, most))


def stored_orientation(path: str) -> int:
    """Return the EXIF orientation, from 1 to 8, of a file or page that can be read."""
    file, page = split_page(path)
    try:
        with pillow_without_bound(), Image.open(file) as image:
            if page is not None:
                seek_page(image, page)
            return orientation(image)
    except UnidentifiedImageError:
        return tiff_orientation(file, page)


def _read_file(
    file: Any, page: int | None, convert: Callable[[Any], Any], max_pixels: int | None
) -> Any:
    with pillow_without_bound() as bound, Image.open(file) as image:
        most = bound if max_pixels is None else max_pixels
        check_size(image, file, most)  # to seek a page may load those before it
        if page is not None:
            seek_page(image, page)
            check_size(image, file, most)
        mend_size(image)
        if is_misread(image):
            return convert(read_tiff(file, page, most))
        if not is_deep_colour(image):
            return convert(image)

        def again() -> Image.Image:
            other = Image.open(file)
            if page is not None:
                seek_page(other, page)
            mend_size(other)
            return other

        return convert(read_colours(image, again))


def _read_again(image: Any, convert: Callable[[Any], Any], max_pixels: int | None) -> Any:
    """Read the file of a PIL image of which Pillow has not all bits, or has them wrongly."""
    page = image.tell() + 1
    if image.filename and Path(image.filename).is_file():
        return _read_file(image.filename, page, convert, max_pixels)
    try:
        place = image.fp.tell()
        image.fp.seek(0)
        copy = io.BytesIO(image.fp.read())
        image.fp.seek(place)
    except (AttributeError, ValueError):  # no file any more
        raise ValueError(
            "it has more than 8 bits, which Pillow does not read rightly, and its file is closed; "
            "pass its path"
        ) from None
    return _read_file(copy, page, convert, max_pixels)


def _is_more_in_its_file(image: Any) -> bool:
    """Whether Pillow has not read, or has misread, what the open file of a PIL image holds."""
    if is_deep_colour(image):
        return True
    if image.format not in _MAY_BE_DEEP or image.tile:
        return False
    if not Path(image.filename or "").is_file():
        return False
    try:
        with Image.open(image.filename) as unread:  # what was loaded does not tell
            seek_page(unread, image.tell() + 1)
            if is_turned_unpacked(unread) and image.size != unread.size:
                return True
            return is_deep_colour(unread)
    except Exception:  # another file is there now
        return False
