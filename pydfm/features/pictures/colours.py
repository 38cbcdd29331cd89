"""Colours of more than 8 bits, of which Pillow has the upper 8 only: read, or refused by name."""

import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features.pictures.headers import declared_bits
from pydfm.features.pictures.orientation import upright

# Pillow's raw modes of two bytes take the upper; of the other order, the lower.
_OTHER: Final = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_READ: Final = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an image, opened and not yet loaded, has more bits per colour than Pillow reads."""
    codec, raw, most = _raw_mode(image)
    if image.mode.startswith("I"):
        return False
    if ";16" in raw or codec == "SGI16" or (codec.startswith("ppm") and most > 255):
        return True
    return (codec == "bcn" and _is_half_float(image)) or declared_bits(image) > 8


def read_colours(image: Image.Image, again: Callable[[], Image.Image]) -> NDArray[np.uint16]:
    """Return the levels (H, W, 3) of an image with deep colours, upright; alpha is dropped.

    Parameters
    ----------
    image : Image
        Opened, and not yet loaded.
    again : callable
        Opens the same once more.

    Raises
    ------
    ValueError
        If it is of another kind than those that can be read.
    """
    codec, raw, most = _raw_mode(image)
    if codec == "ppm":
        return _read_ppm(image, most)
    animated = image.format == "PNG" and getattr(image, "n_frames", 1) > 1
    if animated or not raw.startswith(_READ):
        bits = declared_bits(image)
        kind = f"{image.format} of {bits} bits" if bits else f"of the kind {raw or codec}"
        kind = "an animation" if animated else kind
        raise ValueError(
            f"it has colours of more than 8 bits and is {kind}, of which only 8 bits can be read; "
            "save it as PNG or TIFF of 16 bits"
        )
    upper = np.asarray(upright(image))
    with again() as other:
        if raw.startswith("LA"):  # both bytes of grey, and both of alpha
            own = np.asarray(upright(_with_raw_mode(other, "RGBA"))).astype(np.uint16)
            return np.repeat((own[..., :1] << 8) | own[..., 1:2], 3, axis=2)
        lower = np.asarray(upright(_with_raw_mode(other, raw[:-1] + _OTHER[raw[-1]])))
    levels: NDArray[np.uint16] = (upper[..., :3].astype(np.uint16) << 8) | lower[..., :3]
    return levels


def _raw_mode(image: Image.Image) -> tuple[str, str, int]:
    """Return the decoder, the raw mode and, of a PPM, the value of white."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles:
        return "", "", 0
    codec, arguments = tiles[0][0], tiles[0][3]
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    raw = parts[0] if parts and isinstance(parts[0], str) else ""
    most = parts[1] if codec.startswith("ppm") and len(parts) > 1 else 0
    return codec, raw, most if isinstance(most, int) else 0


def _is_half_float(image: Any) -> bool:
    """Whether the blocks of a DDS hold floats (BC6H)."""
    arguments = image.tile[0][3]
    return isinstance(arguments, tuple) and len(arguments) > 0 and arguments[0] == 6


def _with_raw_mode(image: Any, raw: str) -> Any:
    """Return `image` such that it is unpacked by another raw mode."""
    tiles = []
    for tile in image.tile:
        arguments = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
        named = hasattr(tile, "_replace")  # before Pillow 11.1 they are plain tuples
        tiles.append(tile._replace(args=arguments) if named else (*tile[:3], arguments))
    image.tile = tiles
    return image


def _read_ppm(image: Any, most: int) -> NDArray[np.uint16]:
    """Return the levels of a binary PPM, from 0 to 65535 as Pillow gives those of a PGM."""
    width, height = image.size
    image.fp.seek(image.tile[0][2])
    data = image.fp.read(width * height * 6)
    if len(data) < width * height * 6:
        raise ValueError("image file is truncated")
    levels = np.frombuffer(data, ">u2").reshape(height, width, 3)
    whole: NDArray[np.uint16] = np.rint(np.minimum(levels, most) * (65535 / most)).astype(np.uint16)
    return whole
