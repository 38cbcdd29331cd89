import io
import warnings

import numpy as np
import pytest
from PIL import Image, features

import pydfm
from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.pictures.headers import declared_bits

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))


def jpeg_2000(ending, bits, picture=PICTURE):
    """A file of 8 bits whose header declares other `bits`."""
    file = io.BytesIO()
    picture.save(file, format="JPEG2000", no_jp2=ending == "j2k")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\x4f\xff\x51") + 42
    for i in range(len(picture.getbands())):
        assert data[at + 3 * i] == 7
        data[at + 3 * i] = bits - 1
    return bytes(data)


def avif(bits):
    """A file of 8 bits whose header declares other `bits`."""
    if not features.check("avif"):
        pytest.skip("Pillow has no AVIF")
    file = io.BytesIO()
    PICTURE.save(file, format="AVIF")
    data = bytearray(file.getvalue())
    data[data.index(b"av1C") + 6] |= {8: 0, 10: 0x40, 12: 0x60}[bits]
    pixi = data.index(b"pixi") + 9  # the bits of each channel once more, which must agree
    data[pixi : pixi + 3] = bytes([bits] * 3)
    return bytes(data)


@pytest.mark.parametrize(
    ("ending", "bits"),
    [(ending, bits) for ending in ("j2k", "jp2", "avif") for bits in (8, 10, 12)]
    + [("j2k", 16), ("jp2", 16)],
)
def test_colours_of_which_pillow_keeps_8_bits_are_refused_by_name(tmp_path, ending, bits):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(avif(bits) if ending == "avif" else jpeg_2000(ending, bits))
    with Image.open(path) as image:
        assert declared_bits(image) == bits
        forms = [path, image, io.BytesIO(path.read_bytes())]
        if bits == 8:
            image.load()
        for form in forms:
            if bits == 8:
                assert read_image(form, np.asarray).shape == (32, 40, 3)
                continue
            with pytest.raises(ImageError, match=f"colours of more than 8 bits .* of {bits} bits"):
                read_image(form, np.asarray)


def test_loaded_images_are_recognised_by_their_files(tmp_path):
    path = tmp_path / "x.jp2"
    path.write_bytes(jpeg_2000("jp2", 8))
    with Image.open(path) as image:
        image.load()
        assert read_image(image, np.asarray).dtype == np.uint8
        path.write_bytes(jpeg_2000("jp2", 12))
        with pytest.raises(ImageError, match="JPEG2000 of 12 bits"):
            read_image(image, np.asarray)


def test_grey_of_jpeg_2000_has_all_bits(tmp_path):
    levels = np.random.default_rng(1).integers(0, 65536, (32, 40), dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.jp2")
    assert np.array_equal(read_image(tmp_path / "x.jp2", np.asarray), levels)


@pytest.mark.parametrize("length", [4, 20, 60, 90, 130])
@pytest.mark.parametrize("ending", ["j2k", "jp2", "avif"])
def test_cut_headers_declare_nothing_or_what_is_there(ending, length):
    data = avif(10) if ending == "avif" else jpeg_2000(ending, 10)

    class Cut:
        format = "AVIF" if ending == "avif" else "JPEG2000"
        fp = io.BytesIO(data[:length])

    assert declared_bits(Cut) in (0, 10)


def test_blocks_of_floats_are_refused_by_name(tmp_path):
    # DDS with the extended header, BC6H: floats of 16 bits, which Pillow cuts at white
    head = np.zeros(32, "<u4")
    head[[0, 1, 2, 3, 4, 19, 20, 21]] = (0x20534444, 124, 0x1007, 8, 8, 32, 4, 0x30315844)
    extended = np.array([95, 3, 0, 1, 0], "<u4")
    (tmp_path / "x.dds").write_bytes(head.tobytes() + extended.tobytes() + bytes(4 * 16))
    with pytest.raises(ImageError, match="colours of more than 8 bits and is of the kind bcn"):
        read_image(tmp_path / "x.dds", np.asarray)


def test_what_cannot_be_read_chooses_no_depth(tmp_path):
    for i in range(4):
        picture = PICTURE.rotate(90 * i).resize((32, 32))
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "5.jp2").write_bytes(jpeg_2000("jp2", 12))
    dfm = pydfm.DFM(2, weights=None, layers="layer1", pool=2, image_size=32, on_error="skip")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        dfm.fit(tmp_path)
    assert dfm.feature_spec_.preprocessing.intensity is None
    assert [str(own.message) for own in told if "intensity" in str(own.message)] == []
    assert any("1 of 5 images were skipped" in str(own.message) for own in told)
