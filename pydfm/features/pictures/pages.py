"""Pages of a file (TIFF, GIF, APNG, WebP, ...), each an image of its own, named FILE#NUMBER."""

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from PIL import Image

from pydfm.features.pictures.limits import check_claim, pillow_without_bound
from pydfm.runtime.text import printable

# Told by their endings: others of these bytes are photographs with a preview behind them (JPEG).
_BY_ENDING: Final = frozenset({".mpo", ".dcx", ".fli", ".flc"})
_OF_ONE_SIZE: Final = ("GIF", "PNG", "WEBP", "AVIF", "FLI")

_PAGE: Final = re.compile(r"(.+)#([1-9][0-9]*)", re.DOTALL)


def split_page(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Return the file and the number of the page that `path` names; None where it is a file."""
    text = os.fspath(path)
    found = _PAGE.fullmatch(text)
    if found is None or Path(text).exists() or not Path(found[1]).is_file():
        return text, None
    return found[1], int(found[2])


def seek_page(image: Image.Image, number: int) -> None:
    """Move the file `image` to a page, counted from 1.

    Raises
    ------
    ValueError
        If there is no such page.
    """
    count = getattr(image, "n_frames", 1)
    if number > count:
        raise ValueError(f"there is no page {number}: the file has {count}")
    image.seek(number - 1)


def with_pages(paths: Iterable[str]) -> list[str]:
    """Return `paths` with each file of several pages replaced by the names of its shots.

    Shots are the pages of the same size as the largest. Others are previews or the levels of a
    pyramid: they are left out, with one warning. A file that cannot be opened stays as it is.
    """
    names: list[str] = []
    others: list[str] = []
    for path in paths:
        sizes = _page_sizes(path)
        if len(sizes) < 2:
            names.append(path)
            continue
        largest = max(sizes, key=lambda size: size[0] * size[1])
        shots = [i for i, size in enumerate(sizes, 1) if size == largest]
        names += [path] if shots == [1] else [f"{path}#{i}" for i in shots]
        others += [f"{path}#{i}" for i, size in enumerate(sizes, 1) if size != largest]
    if others:
        warnings.warn(
            f"{len(others)} pages are smaller than the largest of their files, as previews and the "
            f"levels of a pyramid are, and are left out; the first: '{printable(others[0])}'",
            stacklevel=2,
        )
    return names


def _page_sizes(path: str) -> list[tuple[int, int]]:
    """Return the sizes of the pages of a file; none if it cannot be opened, or is a page itself."""
    if not Path(path).is_file():  # a page, a pipe, or nothing
        return []
    try:
        if not _may_have_pages(path):
            return []
        with pillow_without_bound(), Image.open(path) as image:
            check_claim(image, path)
            count = getattr(image, "n_frames", 1)
            if count < 2:
                return []
            if image.format in _OF_ONE_SIZE:  # frames of an animation
                return [image.size] * count
            sizes = []
            for i in range(count):
                image.seek(i)
                sizes.append(image.size)
            return sizes
    except Exception:  # told when it is read
        return []


def _may_have_pages(path: str) -> bool:
    """Whether a file is of a format with pages, by its first bytes; most are not opened then."""
    if Path(path).suffix.lower() in _BY_ENDING:
        return True
    with Path(path).open("rb") as file:
        head = file.read(12)
        if head[:8] != b"\x89PNG\r\n\x1a\n":
            return (
                head[:2] in (b"II", b"MM")
                or head[:4] in (b"GIF8", b"RIFF")
                or (head[4:8] == b"ftyp")
            )
        file.seek(8)
        while len(chunk := file.read(8)) == 8 and chunk[4:] != b"IDAT":
            if chunk[4:] == b"acTL":  # an animation
                return True
            file.seek(int.from_bytes(chunk[:4], "big") + 4, os.SEEK_CUR)
    return False
