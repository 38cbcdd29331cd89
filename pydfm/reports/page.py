"""One self-contained page: templates with their style, script and pictures in one file."""

import base64
import hashlib
import io
import os
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm import __version__
from pydfm.features.pictures.pages import split_page
from pydfm.reports.drawing.scale import ColourScale, colours, cover
from pydfm.runtime.files import check_output, write_file

if TYPE_CHECKING:
    from jinja2 import Environment

PICTURE_SIDE: Final = 400
"""Longest side of the pictures in a page, in pixels, where there is room."""

# How much of a file says whether it is a page.
_BEGIN_BYTES: Final = 256
_OVERLAY_SIDE: Final = 128
_LEVELS: Final = 48
# Bytes of all pictures of a page. In base64 they take a third more.
_BUDGET: Final = 9 << 20
_SMALLER: Final = ((400, 82), (400, 60), (320, 60), (240, 55), (160, 50), (96, 45), (64, 40))


def check_page(path: "str | os.PathLike[str]") -> None:
    """Check, before any work is done, that a page can be written to `path`.

    Raises
    ------
    ImportError
        If Jinja2 is not installed.
    OSError
        If the file cannot be written.
    ValueError
        If it is there and is no page: a model, perhaps, or an image.
    """
    _environment()
    check_output(path)
    if Path(path).is_file():
        with Path(path).open("rb") as file:
            begin = file.read(_BEGIN_BYTES).lstrip().lower()
        if begin and not begin.startswith((b"<!doctype html", b"<html")):
            raise ValueError(f"'{path}' is there and is no HTML page; name another file for it")


def write_page(path: "str | os.PathLike[str]", template: str, **values: Any) -> None:
    """Fill in a template and write the page, atomically.

    Values are escaped, and the page's own script is the only one that it may run: its policy names
    the script's hash.
    """
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        _environment()
        .get_template(template)
        .render(
            style=style,
            script=script,
            script_hash=f"sha256-{digest}",
            version=__version__,
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            **values,
        )
    )
    write_file(path, page.encode("utf-8", "backslashreplace"))


def shown(name: str) -> str:
    """Return a file's name as text for a page: what cannot be shown is escaped as in Python."""
    return "".join(
        c if c.isprintable() and not "\ud800" <= c <= "\udfff" else ascii(c)[1:-1] for c in name
    )


def link_to(path: str, page: "str | os.PathLike[str]") -> str:
    """Return a relative address of the file `path` for a page."""
    target, folder = Path(split_page(path)[0]).resolve(), Path(page).resolve().parent
    try:
        return quote(os.fsencode(Path(os.path.relpath(target, folder)).as_posix()))
    except ValueError:  # another drive
        return target.as_uri()


def picture_data(picture: Image.Image) -> bytes:
    """Return a picture as JPEG."""
    return _jpeg(picture, _SMALLER[0][1])


def overlay_data(values: NDArray[np.floating], scale: ColourScale) -> bytes:
    """Return a map (H, W) as a PNG of few colours, clear where the image is as good ones are."""
    image = Image.fromarray(np.asarray(values, dtype=np.float32))
    image.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE), Image.Resampling.BOX)
    steps = np.rint(scale.places(np.asarray(image)) * (_LEVELS - 1)).astype(np.uint8)
    places = np.arange(_LEVELS) / (_LEVELS - 1)
    drawn = Image.fromarray(steps)
    drawn.putpalette(np.rint(colours(places)).astype(np.uint8).tobytes())
    data = io.BytesIO()
    opacity = np.rint(255 * cover(places)).astype(np.uint8).tobytes()
    drawn.save(data, format="PNG", transparency=opacity, optimize=True)
    return data.getvalue()


def within_budget(pictures: list[bytes], others: int) -> list[bytes]:
    """Return JPEG pictures that are small enough for a page, scaled down where they are not.

    Parameters
    ----------
    pictures : list of bytes
    others : int
        Bytes of what else is in the page.
    """
    left = max(_BUDGET - others, _BUDGET // 4)
    for side, quality in _SMALLER:
        if sum(map(len, pictures)) <= left:
            break
        pictures = [_smaller(picture, side, quality) for picture in pictures]
    return pictures


def data_address(data: bytes, kind: str) -> str:
    """Return `data` as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _smaller(picture: bytes, side: int, quality: int) -> bytes:
    image = Image.open(io.BytesIO(picture))
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    return _jpeg(image, quality)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=quality, optimize=True)
    return data.getvalue()


def _asset(name: str) -> Any:
    from markupsafe import Markup

    return Markup((resources.files("pydfm.reports") / "assets" / name).read_text("utf-8"))


def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(
            "pages need Jinja2; install it with `pip install -c constraints.txt '.[report]'`"
        ) from error
    environment = Environment(
        loader=PackageLoader("pydfm.reports", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = share
    environment.filters["number"] = number
    environment.filters["picture"] = data_address
    return environment


def share(value: float) -> str:
    """Return a share as a percentage with two digits: 0.012 is "1.2 %"."""
    return f"{100 * value:.2g} %" if abs(value) < 0.995 else f"{100 * value:.0f} %"


def number(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", " ")
