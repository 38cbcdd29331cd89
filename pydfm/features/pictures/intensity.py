"""Images of more than 8 bits: what is black and white, the same for all images."""

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features.pictures.colours import is_deep_colour
from pydfm.features.pictures.limits import check_size, pillow_without_bound
from pydfm.features.pictures.pages import seek_page, split_page
from pydfm.features.pictures.reading import read
from pydfm.features.pictures.tiff import is_misread

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


def is_deep(image: Image.Image | NDArray[Any]) -> bool:
    """Whether what was read is of more than 8 bits: grey of such a mode, or levels (H, W, 3)."""
    if isinstance(image, np.ndarray):
        return True
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def as_shares(
    image: Image.Image | NDArray[Any], intensity: str | tuple[float, float] | None
) -> NDArray[np.float32]:
    """Return a deep image as floats in [0, 1], from black to white; (H, W) or (H, W, 3).

    Raises
    ------
    ValueError
        If it has values beyond, or NaN; or if it has integers, and the model was fitted without any
        (None).
    """
    values = np.asarray(image)
    floats = values.dtype.kind == "f"
    if floats and np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0][:2]
        raise ValueError(f"it contains NaN, first at row {row}, column {column}")
    if intensity is None and not floats:
        raise ValueError(
            "it has more than 8 bits, and the model was fitted on images of 8 bits only; fit with "
            "intensity='12bit' or another depth, or with (low, high)"
        )
    if intensity is None or isinstance(intensity, str):
        black, white = 0.0, 1.0 if floats or intensity is None else DEPTHS[intensity]
    else:
        black, white = intensity
    low, high = float(values.min()), float(values.max())
    if low < black or high > white:
        other = "" if floats or intensity == "16bit" else "intensity='16bit', or with "
        raise ValueError(
            f"its values go from {low:.6g} to {high:.6g}, beyond [{black:.6g}, {white:.6g}], the "
            + ("range of floats" if intensity is None else f"model's intensity={intensity!r}")
            + f"; fit with {other}intensity=(low, high)"
        )
    return ((values.astype(np.float64) - black) / (white - black)).astype(np.float32)


def resolve_intensity(
    intensity: Any, images: Sequence[Any], max_pixels: int | None = None
) -> str | tuple[float, float] | None:
    """Return what "auto" is for `images`, and anything else as it is.

    Parameters
    ----------
    intensity : str or (float, float)
    images : sequence of paths, PIL images, arrays and tensors
        Of files all headers are read, and the pixels of at most 64 of the deep ones, evenly spread;
        of PIL images and arrays all.
    max_pixels : int, optional
        Bound on the size of files that are looked at; None is Pillow's bound.

    Returns
    -------
    str, (float, float) or None
        None where no image is deep: such a model refuses deep images of integers.

    Raises
    ------
    ValueError
        If arrays or PIL images have values that no depth holds.
    """
    if intensity != "auto":
        return (
            intensity if isinstance(intensity, str) else (float(intensity[0]), float(intensity[1]))
        )
    return chosen_depth(look_at(images, max_pixels))


@dataclass(frozen=True)
class Seen:
    """What was seen of the deep images of a source.

    Attributes
    ----------
    bits : int
        The most that a header declares; 0 for none.
    largest : float
        The largest value of the pixels that were read.
    deep, read : int
        Number of deep images, and of those whose pixels were read.
    """

    bits: int = 0
    largest: float = 0.0
    deep: int = 0
    read: int = 0

    def __add__(self, other: "Seen") -> "Seen":
        """Return what was seen of both."""
        bits, largest = max(self.bits, other.bits), max(self.largest, other.largest)
        return Seen(bits, largest, self.deep + other.deep, self.read + other.read)


def look_at(images: Iterable[Any], max_pixels: int | None = None) -> Seen:
    """Look at the headers of all `images`, and at the pixels of the deep ones.

    Of files at most 64, evenly spread, are read. Those that cannot be read do not count.
    """
    files: list[tuple[str, int]] = []
    seen = Seen()
    for image in images:
        bits = _declared(image, max_pixels)
        if bits and isinstance(image, str | os.PathLike):
            files.append((os.fspath(image), bits))
        elif bits:
            largest = _largest_held(image)
            count = len(image) if getattr(image, "ndim", 0) == 4 else 1
            seen += Seen() if largest is None else Seen(bits, largest, count, count)
    step = max(1, math.ceil(len(files) / _LOOKED_AT))
    for i, (file, bits) in enumerate(files):
        if i % step:
            seen += Seen(bits, deep=1)
        elif (largest := _largest(file, max_pixels)) is not None:
            seen += Seen(bits, largest, 1, 1)
    return seen if seen.read else Seen()


def chosen_depth(seen: Seen) -> str | None:
    """Return the depth for what was seen, and warn of one below 16 bits."""
    if not seen.bits:
        return None
    needed = next((int(name[:-3]) for name, most in DEPTHS.items() if seen.largest <= most), 16)
    bits = needed if seen.bits == 16 else max(seen.bits, needed)
    if bits < 16:
        warnings.warn(
            f"intensity='{bits}bit' was chosen: the pixels of {seen.read} of {seen.deep} images of "
            "more than 8 bits were looked at, and none goes beyond it; other images that do are "
            "refused, unless you fit with intensity='16bit'",
            stacklevel=3,
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
        deep = is_deep(source) or is_misread(source) or is_deep_colour(source)
        return 16 if deep and source.mode != "F" else 0
    if not isinstance(source, str | os.PathLike):
        return 16 if is_integer(source) else 0
    if str(source).lower().endswith(_EIGHT_BITS):
        return 0
    try:
        with pillow_without_bound() as bound:
            image, _, file = _opened(os.fspath(source), bound if max_pixels is None else max_pixels)
            with image:
                if image.mode == "F" or not (is_deep(image) or is_deep_colour(image)):
                    return 16 if is_misread(image) else 0
                if image.format == "PNG":
                    return _significant_bits(file)
                tags: Any = getattr(image, "tag_v2", {})
                declared = tags.get(258, (16,))
                bits = max(declared) if isinstance(declared, tuple) else declared
                return bits if bits in (10, 12, 14) else 16
    except Exception:  # told when it is read
        return 0


def is_integer(array: Any) -> bool:
    """Whether an array or a tensor holds integers of more than 8 bits."""
    name = str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")
    return "int" in name and not name.endswith("int8")


def _significant_bits(file: str) -> int:
    """Return the bits of a PNG's sBIT chunk, rounded up to a depth; 16 where there is none."""
    with Path(file).open("rb") as opened:
        head = opened.read(4096).partition(b"IDAT")[0]
    _, found, after = head.partition(b"sBIT")
    bits = after[0] if found and after else 16
    return next((int(name[:-3]) for name in DEPTHS if bits <= int(name[:-3])), 16)


def _largest_held(image: Any) -> float | None:
    """Return the largest value of an array, a tensor or a PIL image; None if it cannot be read."""
    if isinstance(image, Image.Image):
        try:
            values = read(image, np.asarray)
        except Exception:  # told when it is read
            return None
    else:
        values = image if isinstance(image, np.ndarray) else image.detach().cpu().numpy()
    if values.size == 0:  # told when it is read
        return None
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > DEPTHS["16bit"]:
        raise ValueError(
            f"intensity is 'auto', but X has images with values from {low:.6g} to {high:.6g}, "
            "which is no depth up to 16 bits; pass intensity=(low, high), those of black and white"
        )
    return high


def _largest(file: str, max_pixels: int | None) -> float | None:
    try:
        return float(read(file, np.asarray, max_pixels).max())
    except Exception:  # told when it is read
        return None
