"""Bits per colour that headers declare where Pillow keeps 8 of them: JPEG 2000, AVIF, HEIF."""

from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from PIL import Image

_CODESTREAM: Final = b"\xff\x4f\xff\x51"
_COMPONENTS: Final = 42
"""Where the components begin in a codestream: three bytes each, of which the first has the bits."""

_META: Final = 1 << 20
"""The longest box of properties that is looked through; ours of photographs have 1 kB."""

FORMATS: Final = ("JPEG2000", "AVIF", "HEIF")


def declared_bits(image: Image.Image) -> int:
    """Return the most bits per colour that the file of `image` declares; 0 where it cannot be said.

    Parameters
    ----------
    image : Image
        Opened, and not yet loaded.
    """
    file: Any = getattr(image, "fp", None)
    if image.format not in FORMATS or file is None:
        return 0
    try:
        place = file.tell()
        try:
            file.seek(0)
            return _of_codestream(file) if image.format == "JPEG2000" else _of_properties(file)
        finally:
            file.seek(place)
    except (OSError, ValueError):  # closed, or cut
        return 0


def _of_codestream(file: BinaryIO) -> int:
    if file.read(4) != _CODESTREAM:
        file.seek(0)
        if not any(name == b"jp2c" for name, _ in _boxes(file)) or file.read(4) != _CODESTREAM:
            return 0
    head = file.read(_COMPONENTS - 4)
    count = int.from_bytes(head[-2:], "big")
    bits = file.read(3 * count)[::3]
    return max(((own & 0x7F) + 1 for own in bits), default=0)


def _of_properties(file: BinaryIO) -> int:
    """Return the most bits of the images in a file, of their alpha and of their previews."""
    bits = 0
    for name, size in _boxes(file):
        if name in (b"meta", b"moov"):  # of images, and of sequences
            found = file.read(min(size, _META))
            bits = max(bits, _of_av1(found), _of_hevc(found))
    return bits


def _of_av1(meta: bytes) -> int:
    bits, at = 0, -1
    while (at := meta.find(b"av1C", at + 1)) >= 0:
        flags = meta[at + 6 : at + 7]  # one byte of version, one of profile
        if flags:
            deep, twelve = flags[0] & 0x40, flags[0] & 0x20
            bits = max(bits, 8 if not deep else 12 if twelve else 10)
    return bits


def _of_hevc(meta: bytes) -> int:
    bits, at = 0, -1
    while (at := meta.find(b"hvcC", at + 1)) >= 0:
        for depth in meta[at + 21 : at + 23]:  # of luma and of chroma
            bits = max(bits, 8 + (depth & 7))
    return bits


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the name and the length of each box, with the file at the first byte of its content."""
    begin = file.tell()
    while len(head := file.read(8)) == 8:
        size, name, own = int.from_bytes(head[:4], "big"), head[4:], 8
        if size == 1:
            size, own = int.from_bytes(file.read(8), "big"), 16
        if size == 0:  # to the end
            size = own + (1 << 62)
        if size < own:
            return
        yield name, size - own
        begin += size
        file.seek(begin)
