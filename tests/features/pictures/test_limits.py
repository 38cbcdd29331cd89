import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.pictures.limits import check_claim
from pydfm.features.pictures.pages import with_pages

tifffile = pytest.importorskip("tifffile")

GREY = np.arange(100, dtype=np.uint16).reshape(10, 10) * 600


def png_of(width, height):
    """A PNG that claims a size, whose checksum is right, and which has two bytes of pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"ab")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp_of(width, height):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="BMP")
    data = bytearray(file.getvalue())
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def ppm_of(width, height):
    return f"P6 {width} {height} 255 ab".encode()


@pytest.mark.parametrize("made", [png_of, bmp_of, ppm_of])
def test_what_no_file_of_its_length_can_hold_is_not_read(tmp_path, monkeypatch, made):
    def read(*_arguments):
        raise AssertionError("memory would be taken")

    file = tmp_path / "picture"
    file.write_bytes(made(13_000, 13_000))  # below the bound on pixels: 700 MB in memory
    monkeypatch.setattr(Image.core, "new", read)
    for source in (file, io.BytesIO(file.read_bytes())):
        with pytest.raises(
            ImageError, match=r"its header claims 13000 x 13000 pixels, more than \d"
        ):
            read_image(source, Image.Image.copy)
    file.write_bytes(made(20_000, 20_000))
    with pytest.raises(ImageError, match="more than max_pixels"):
        read_image(file, Image.Image.copy)


def test_what_is_packed_as_densely_as_can_be_is_read(tmp_path):
    for mode, ending in (("1", "png"), ("RGB", "png"), ("1", "bmp"), ("1", "pbm"), ("1", "tif")):
        file = tmp_path / f"picture.{ending}"
        Image.new(mode, (3000, 3000)).save(file)
        assert read_image(file, lambda image: np.asarray(image).shape)[:2] == (3000, 3000)


@pytest.mark.parametrize("number", [1, 3])
def test_a_page_of_an_animation_that_claims_too_much_is_not_looked_for(
    tmp_path, monkeypatch, number
):
    file = tmp_path / "picture.png"
    own = Image.new("RGB", (9, 9))
    pages = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    own.save(file, save_all=True, append_images=pages)
    data = bytearray(file.read_bytes())
    data[16:24] = struct.pack(">II", 13_000, 13_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    file.write_bytes(data)
    monkeypatch.setattr(Image.core, "new", None)
    with pytest.raises(ImageError, match="its header claims 13000 x 13000 pixels, more than"):
        read_image(f"{file}#{number}", Image.Image.copy)


def test_an_animation_that_claims_pages_without_end_is_told(tmp_path):
    file = tmp_path / "picture.png"
    own = Image.new("RGB", (9, 9))
    own.save(file, save_all=True, append_images=[Image.new("RGB", (9, 9), "red")])
    data = bytearray(file.read_bytes())
    at = data.index(b"acTL")
    data[at + 4 : at + 8] = struct.pack(">I", 2**31)
    data[at + 12 : at + 16] = struct.pack(">I", zlib.crc32(data[at : at + 12]))
    file.write_bytes(data)
    assert with_pages([str(file)]) == [str(file)]
    with pytest.raises(ImageError, match="its header claims 2147483648 pages, more than"):
        read_image(file, Image.Image.copy)


def test_the_place_in_an_open_file_stays():
    file = io.BytesIO(png_of(10, 10))
    with Image.open(file) as image:
        place = file.tell()
        check_claim(image, file)
        assert file.tell() == place


@pytest.mark.parametrize(
    ("width", "says"),
    [
        (13_000, r"its header claims \d+ bytes of pixels, and the file has \d+"),
        (60_000_000, "more than max_pixels"),
    ],
)
def test_a_tiff_that_pillow_cannot_read_is_not_read_beyond_its_length(tmp_path, width, says):
    file = tmp_path / "picture.tif"
    # Pillow does not know floats of 64 bits.
    tifffile.imwrite(file, GREY.astype(np.float64), photometric="minisblack")
    with tifffile.TiffFile(file) as opened:
        places = [opened.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
        kinds = [opened.pages[0].tags[name].dtype.name for name in ("ImageWidth", "ImageLength")]
    data = bytearray(file.read_bytes())
    for place, kind in zip(places, kinds, strict=True):
        size = struct.pack("<I", width) if kind == "LONG" else struct.pack("<H", width % 2**16)
        data[place : place + len(size)] = size
    file.write_bytes(data)
    with pytest.raises(ImageError, match=says):
        read_image(file, Image.Image.copy)


@pytest.mark.filterwarnings("ignore:intensity=")
def test_a_fit_does_not_look_at_what_a_file_cannot_hold(tmp_path, monkeypatch):
    class Read(BaseException):
        pass

    def read(*_arguments):
        raise Read

    for i in range(3):
        data = bytearray(png_of(13_000, 13_000))
        data[24:26] = b"\x10\x00"  # grey, of 16 bits
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        (tmp_path / f"{i}.png").write_bytes(data)
    monkeypatch.setattr(Image.core, "new", read)
    with pytest.raises(ImageError, match="its header claims 13000 x 13000 pixels"):
        pydfm.DFM(2, weights=None, image_size=32).fit(tmp_path)
