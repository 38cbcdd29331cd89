"""Grey levels of images of more than 8 bits: what is black and white, the same for all images."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features.pictures.limits import check_size, pillow_without_bound
from pydfm.features.pictures.pages import seek_page, split_page
from pydfm.features.pictures.tiff import is_misread, read_tiff

DEPTHS: Final = {f"{bits}bit": float((1 << bits) - 1) for bits in (8, 10, 12, 14, 16)}
_LOOKED_AT: Final = 64
_EIGHT_BITS: Final = (".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp")


def check_intensity(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is "auto", a depth such as "12bit", or (low, high)."""
    if isinstance(value, str) and value in ("auto", *DEPTHS):
        return
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        try:
            low, high = map(float, value)
        except (TypeError, ValueError):
            low, high = math.nan, math.nan
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return
    raise ValueError(
        f"{name} is {value!r}; it must be 'auto', {', '.join(map(repr, DEPTHS))}, or two numbers, "
        "those of black and white"
    )


def is_deep(image: Image.Image) -> bool:
    """Whether an image is grey with more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def as_shares(image: Image.Image, intensity: Any) -> Image.Image:
    """Return a deep image as floats in [0, 1], from black to white.

    Raises
    ------
    ValueError
        If it has values beyond, or NaN.
    """
    values = np.asarray(image, dtype=np.float64)
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        raise ValueError(f"it contains NaN, first at row {row}, column {column}")
    if isinstance(intensity, str):
        black, white = 0.0, 1.0 if image.mode == "F" else DEPTHS[intensity]
    else:
        black, white = intensity
    low, high = float(values.min()), float(values.max())
    if low < black or high > white:
        raise ValueError(
            f"its values go from {low:.6g} to {high:.6g}, beyond the model's intensity="
            f"{intensity!r}; fit with intensity='16bit', or with (low, high)"
        )
    return Image.fromarray(np.float32((values - black) / (white - black)))


def resolve_intensity(
    intensity: Any, images: Sequence[Any], max_pixels: int | None = None
) -> str | tuple[float, float] | None:
    """Return what "auto" is for `images`, paths or PIL images, and anything else as it is.

    Of files all headers are read, and the pixels of at most 64 of the deep ones, evenly spread.
    None where no image is deep: such a model reads later deep images by their own full range.
    `max_pixels` bounds the size of files that are looked at; None is Pillow's bound.
    """
    if intensity != "auto":
        return (
            intensity if isinstance(intensity, str) else (float(intensity[0]), float(intensity[1]))
        )
    deep, bits = [], 0
    for image in images:
        depth = _declared(image, max_pixels)
        if depth:
            deep.append(image)
            bits = max(bits, depth)
    if not deep:
        return None
    if bits == 16:
        step = max(1, math.ceil(len(deep) / _LOOKED_AT))
        largest = max((_largest(image, max_pixels) for image in deep[::step]), default=0.0)
        bits = next((int(n[:-3]) for n, most in DEPTHS.items() if largest <= most), 16)
    if bits < 16:
        warnings.warn(
            f"intensity='{bits}bit' was chosen, since no image that was looked at goes beyond it; "
            "later images that do are refused, unless you fit with intensity='16bit'",
            stacklevel=2,
        )
    return f"{bits}bit"


def _opened(source: str, max_pixels: int | None) -> tuple[Image.Image, int | None, str]:
    file, page = split_page(source)
    image = Image.open(file)
    try:
        check_size(image, file, max_pixels)
        if page is not None:
            seek_page(image, page)
            check_size(image, file, max_pixels)
    except BaseException:
        image.close()
        raise
    return image, page, file


def _declared(source: Any, max_pixels: int | None) -> int:
    """Return the bits that a deep image of integers declares, up to 16; 0 for any other."""
    if isinstance(source, Image.Image):
        return 16 if is_deep(source) and source.mode != "F" else 0
    if str(source).lower().endswith(_EIGHT_BITS):
        return 0
    try:
        with pillow_without_bound() as bound:
            image, _, file = _opened(source, bound if max_pixels is None else max_pixels)
            with image:
                if not is_deep(image) or image.mode == "F":
                    return 0
                if image.format == "PNG":
                    return _significant_bits(file)
                tags: Any = getattr(image, "tag_v2", {})
                declared = tags.get(258, (16,))
                bits = declared[0] if isinstance(declared, tuple) else declared
                return bits if bits in (10, 12, 14) else 16
    except Exception:  # told when it is read
        return 0


def _significant_bits(file: str) -> int:
    """Return the bits of a PNG's sBIT chunk, rounded up to a depth; 16 where there is none."""
    with Path(file).open("rb") as opened:
        head = opened.read(4096).partition(b"IDAT")[0]
    _, found, after = head.partition(b"sBIT")
    bits = after[0] if found and after else 16
    return next((int(name[:-3]) for name in DEPTHS if bits <= int(name[:-3])), 16)


def _largest(source: Any, max_pixels: int | None) -> float:
    if isinstance(source, Image.Image):
        return float(np.asarray(source).max())
    try:
        with pillow_without_bound() as bound:
            most = bound if max_pixels is None else max_pixels
            image, page, file = _opened(source, most)
            with image:
                pixels: NDArray[Any] = np.asarray(
                    read_tiff(file, page, most) if is_misread(image) else image
                )
                return float(pixels.max())
    except Exception:  # told when it is read
        return 0.0
