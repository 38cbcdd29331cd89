"""EXIF orientation, applied to pixels only: no other tag is read or written."""

from typing import Any, Final

from numpy.typing import NDArray
from PIL import Image

_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION: Final = 0x0112


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of `image`, from 1 to 8; 1 where it has none that is valid."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) and value in _TURNS else 1
    except Exception:  # odd tags raise nearly everything
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Return `image` turned as its EXIF orientation says."""
    image.load()  # Pillow turns a TIFF here, and PNG may have its tags after the pixels
    return turned(image, orientation(image))


def turned(image: Image.Image, value: int) -> Image.Image:
    """Return `image` turned as the EXIF orientation `value` says."""
    turn = _TURNS.get(value)
    return image if turn is None else image.transpose(turn)


def turned_levels(levels: NDArray[Any], value: int) -> NDArray[Any]:
    """Return levels (H, W, 3) turned as the EXIF orientation `value` says."""
    if value >= 5:
        levels = levels.swapaxes(0, 1)
    across, down = value in (2, 3, 6, 7), value in (3, 4, 7, 8)
    return levels[:: -1 if down else 1, :: -1 if across else 1]
