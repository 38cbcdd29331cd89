"""TIFFs that Pillow reads wrongly, or not at all, read through tifffile (the extra `tiff`)."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features.pictures.limits import check_pixels
from pydfm.features.pictures.orientation import turned, turned_levels

_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANES = 258, 262, 274, 284
_HEADS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_misread(image: Image.Image) -> bool:
    """Whether Pillow misreads the pixels of `image`: 16 bits, white as zero or in planes."""
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None:
        return False
    bits = tags.get(_BITS, (1,))
    if max(bits if isinstance(bits, tuple) else (bits,)) <= 8:
        return False
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    planes = tags.get(_PLANES) == 2 and isinstance(bits, tuple) and len(bits) > 1
    return bool(white_is_zero or planes)


def is_turned_unpacked(image: Any) -> bool:
    """Whether `image`, not yet loaded, is a TIFF on its side that Pillow would unpack by its width.

    Pillow gives the size that is shown before it has turned the pixels (since 11.0), and lays
    uncompressed lines of the stored width into it.
    """
    if image.format != "TIFF" or not getattr(image, "tile", None) or image.tile[0][0] != "raw":
        return False
    right = max(tile[1][2] for tile in image.tile)
    bottom = max(tile[1][3] for tile in image.tile)
    return bool(image.size != (right, bottom) and image.size == (bottom, right))


def mend_size(image: Any) -> None:
    """Give a TIFF on its side the size that is stored, which loading turns with the pixels."""
    if is_turned_unpacked(image):
        image._size = image.size[::-1]


def is_tiff(file: Any) -> bool:
    """Whether the path or open file `file` begins as a TIFF does."""
    if hasattr(file, "read"):
        file.seek(0)
        head = file.read(4)
        file.seek(0)
        return head in _HEADS
    with open(file, "rb") as opened:  # noqa: PTH123
        return opened.read(4) in _HEADS


def read_tiff(
    file: Any, page: int | None, max_pixels: int | None
) -> Image.Image | NDArray[np.uint16]:
    """Return a page of a TIFF, counted from 1, upright; default the first.

    Colours of 16 bits are levels (H, W, 3).

    Parameters
    ----------
    file : path or open file
    page : int or None
    max_pixels : int or None
        Largest number of its pixels; None for no bound.

    Raises
    ------
    ValueError
        If tifffile is not installed, or the page has too many pixels or no form that an image can
        have here.
    """
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            "Pillow cannot read this kind of TIFF; install tifffile (the extra 'tiff')"
        ) from None
    with tifffile.TiffFile(file) as opened:
        own = opened.pages[(page or 1) - 1]
        tags: Any = own.tags  # type: ignore[union-attr]
        planes = tags.valueof(_PLANES, 1) == 2
        _check_size(own, max_pixels)
        values = own.asarray()
        if tags.valueof(_PHOTOMETRIC) == 0:
            if values.dtype.kind != "u":
                raise ValueError(
                    f"it is a TIFF of {values.dtype} in which white is zero, which has no range; "
                    "save it with black as zero"
                )
            bits = tags.valueof(_BITS, 1)
            values = np.asarray((1 << bits) - 1 - values, dtype=values.dtype)
        orientation = tags.valueof(_ORIENTATION, 1)
    if planes and values.ndim == 3:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint16:
        return turned_levels(values, orientation)
    return turned(_as_image(values), orientation)


def tiff_orientation(file: Any, page: int | None) -> int:
    """Return the orientation, from 1 to 8, of a page of a TIFF that `read_tiff` can read."""
    import tifffile

    with tifffile.TiffFile(file) as opened:
        value = opened.pages[(page or 1) - 1].tags.valueof(_ORIENTATION, 1)  # type: ignore[union-attr]
    return int(value) if value in range(1, 9) else 1


def _check_size(page: Any, max_pixels: int | None) -> None:
    """Raise ValueError if the array of a page, which is made before its data is read, is large."""
    size = (page.imagewidth, page.imagelength)
    check_pixels(size, max_pixels)
    claimed, here = page.nbytes, page.parent.filehandle.size
    if page.compression == 1:
        if claimed > here:
            raise ValueError(
                f"its header claims {claimed} bytes of pixels, and the file has {here}"
            )
    elif claimed > 4 * page.dtype.itemsize * size[0] * size[1]:
        raise ValueError(f"it is a TIFF of the shape {page.shape}, which is no grey or RGB image")


def _as_image(values: Any) -> Image.Image:
    kind = values.dtype.kind
    if values.ndim == 2 and kind == "f":
        return Image.fromarray(values.astype(np.float32))
    if values.ndim == 2 and values.dtype == np.uint16:
        return Image.fromarray(values)
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(values))
    channels = values.shape[2] if values.ndim == 3 else 1
    raise ValueError(
        f"it is a TIFF of {values.dtype} with {channels} channels, which is no grey or RGB image "
        "here; convert it, or pass arrays (N, 3, H, W) in [0, 1]"
    )
