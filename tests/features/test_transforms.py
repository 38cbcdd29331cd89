import io
import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pydfm.features.backbones.torchvision import torchvision_models
from pydfm.features.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SMALL = Preprocessing(resize=(32, 32), crop=None)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture(scope="module")
def transforms():
    torchvision_models()  # mends the import of torchvision
    from torchvision.transforms import v2

    return v2


def noise(height, width, seed=0):
    shape = (height, width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@settings(max_examples=60)
@given(
    height=st.integers(1, 90), width=st.integers(1, 90), resize=st.integers(8, 60), data=st.data()
)
def test_pictures_become_the_pixels_that_torchvision_gives(transforms, height, width, resize, data):
    crop = (data.draw(st.integers(1, resize)), data.draw(st.integers(1, resize)))
    picture = noise(height, width)
    resized = transforms.Resize(resize, antialias=True)(picture)
    want = np.asarray(transforms.CenterCrop(crop)(resized)).transpose(2, 0, 1)
    assert np.array_equal(Preprocessing(resize, crop).from_pil(picture), want)


@settings(max_examples=30)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_an_exact_size_is_reached_as_in_torchvision(transforms, height, width):
    picture = noise(height, width)
    want = np.asarray(transforms.Resize((24, 37), antialias=True)(picture)).transpose(2, 0, 1)
    assert np.array_equal(Preprocessing((24, 37), None).from_pil(picture), want)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("preprocessing", [Preprocessing(), Preprocessing((90, 130), None)])
def test_a_strip_is_cut_as_it_is_resized(monkeypatch, side, preprocessing):
    picture = noise(*((2, 170) if side else (170, 2)))
    want = preprocessing.from_pil(picture)
    monkeypatch.setattr("pydfm.features.transforms._LONGEST", 1)
    difference = np.abs(preprocessing.from_pil(picture).astype(int) - want)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("crop", [(64, 80), (41, 31)])
@pytest.mark.parametrize("side", [0, 1])
def test_a_strip_has_black_beside_it_where_its_crop_is_larger(monkeypatch, side, crop):
    own = Preprocessing(40, crop[::-1] if side else crop)
    picture = noise(*((170, 2) if side else (2, 170)))
    want = own.from_pil(picture)
    assert (want == 0).all(axis=(0, 2 - side)).any()
    monkeypatch.setattr("pydfm.features.transforms._LONGEST", 1)
    difference = np.abs(own.from_pil(picture).astype(int) - want)
    assert difference.max() <= 1


def test_a_long_strip_does_not_fill_the_memory(monkeypatch):
    sizes = []
    actual = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *args: sizes.append(args[1]) or actual(*args))
    pixels = Preprocessing().from_pil(noise(20000, 2))
    assert pixels.shape == (3, 224, 224)
    assert sizes == [(224, 224)]
    # The middle of it is seen, as in any other picture.
    middle = Preprocessing().from_pil(noise(20000, 2).crop((0, 9950, 2, 10050)))
    assert np.abs(pixels.astype(int) - middle).max() <= 1


def test_defaults_are_those_of_the_imagenet_weights(transforms):
    weights = torchvision_models().ResNet18_Weights.IMAGENET1K_V1
    picture = noise(300, 401)
    pixels = Preprocessing().from_pil(picture).astype(np.float32) / 255
    mean, std = (np.reshape(value, (3, 1, 1)) for value in (IMAGENET_MEAN, IMAGENET_STD))
    want = weights.transforms()(picture).numpy()
    np.testing.assert_allclose((pixels - mean) / std, want, atol=1e-5)


@pytest.mark.parametrize(
    ("picture", "rgb"),
    [
        (Image.fromarray(RAMP), RAMP),
        (Image.fromarray(RAMP).convert("LA"), RAMP),
        (Image.fromarray(RAMP).convert("RGBA"), RAMP),
        (Image.fromarray(RAMP).convert("P"), RAMP),
        (Image.fromarray(RAMP > 99), np.where(RAMP > 99, 255, 0)),
        (Image.merge("CMYK", [Image.fromarray(RAMP)] * 3 + [Image.new("L", (16, 16))]), 255 - RAMP),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_every_mode_becomes_rgb(picture, rgb):
    pixels = Preprocessing((16, 16), None).from_pil(picture)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.broadcast_to(rgb, (3, 16, 16)))


@pytest.mark.parametrize("encoding", ["I;16", "I;16B", "I", "F"])
def test_all_levels_of_deep_pictures_arrive_in_either_byte_order(encoding):
    values = RAMP.astype(np.float32) * 256 + np.arange(16)
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "i4", "F": "f4"}[encoding]
    given = values / 65535 if encoding == "F" else values
    picture = Image.frombytes(encoding, (16, 16), given.astype(kind).tobytes())
    pixels = Preprocessing((16, 16), None, intensity="16bit").from_pil(picture)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels * 65535, np.broadcast_to(values, (3, 16, 16)), rtol=1e-6)
    if encoding == "F":  # which has a range of its own
        assert np.array_equal(Preprocessing((16, 16), None).from_pil(picture), pixels)
    else:
        with pytest.raises(ValueError, match="more than 8 bits, and the model was fitted on"):
            Preprocessing((16, 16), None).from_pil(picture)


def test_alpha_is_dropped_and_not_blended():
    picture = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
    assert (SMALL.from_pil(picture) == np.reshape((200, 100, 50), (3, 1, 1))).all()


def test_a_palette_with_transparency_is_read_without_a_warning():
    stream = io.BytesIO()
    picture = noise(8, 8).convert("P")
    picture.save(stream, "png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = SMALL.from_pil(Image.open(stream))
    assert np.array_equal(pixels, SMALL.from_pil(picture))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.full((4, 4), 70000, dtype=np.int32), r"70000, beyond \[0, 65535\]"),
        (np.full((4, 4), -1, dtype=np.int32), "-1 to -1, beyond"),
        (np.full((4, 4), 255, dtype=np.float32), r"255, beyond \[0, 1\]"),
        (np.full((4, 4), np.nan, dtype=np.float32), "contains NaN, first at row 0, column 0"),
    ],
)
def test_values_beyond_the_range_are_refused(values, says):
    with pytest.raises(ValueError, match=says):
        replace(SMALL, intensity="16bit").from_pil(Image.fromarray(values))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_pictures_are_turned_as_their_exif_says(orientation, turned):
    pixels = np.asarray(noise(20, 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png", exif=exif)
    want = Image.fromarray(np.ascontiguousarray(turned(pixels)))
    assert np.array_equal(SMALL.from_pil(Image.open(stream)), SMALL.from_pil(want))


@pytest.mark.parametrize("size", [(32, 32), (31, 64), (90, 47), (7, 5)])
@pytest.mark.parametrize("preprocessing", [SMALL, Preprocessing(40, (32, 30))])
def test_floats_come_close_to_the_pixels_of_pictures(size, preprocessing):
    pixels = np.asarray(noise(*size)).transpose(2, 0, 1)
    floats = preprocessing.from_floats(pixels[np.newaxis].astype(np.float32) / 255)
    assert floats.shape == (1, 3, *preprocessing.size)
    picture = preprocessing.from_pil(noise(*size))
    assert np.abs(255 * floats[0] - picture).max() < 2  # PIL rounds after each of two passes


def test_floats_of_the_right_size_stay_as_they_are():
    pixels = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    assert np.array_equal(SMALL.from_floats(pixels), pixels)


@pytest.mark.parametrize(
    ("preprocessing", "height", "width", "kept"),
    [
        (SMALL, 32, 32, True),
        (SMALL, 32, 33, False),
        (Preprocessing(40, (40, 40)), 40, 40, True),
        (Preprocessing(40, (40, 40)), 40, 44, False),
        (Preprocessing(40, (32, 32)), 40, 40, False),
        (Preprocessing(40, (32, 32)), 32, 32, False),
    ],
)
def test_pixels_of_the_right_size_are_kept(preprocessing, height, width, kept):
    assert preprocessing.keeps(height, width) == kept
    picture = noise(height, width)
    pixels = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(preprocessing.from_pil(picture), pixels) == kept


def test_changes_replace_what_is_given_only():
    base = Preprocessing()
    assert base.with_changes(None, None, None) == base
    assert base.with_changes(64, None, None) == Preprocessing((64, 64), None)
    assert base.with_changes([48, 64], None, None).size == (48, 64)
    changed = base.with_changes(None, 0.5, np.array([1, 2, 3]))
    assert changed == Preprocessing(mean=(0.5, 0.5, 0.5), std=(1.0, 2.0, 3.0))
    assert changed.size == (224, 224)


@pytest.mark.parametrize("image_size", [0, -8, 2.5, True, "32", (32,), (32, 32, 3), (32, 0)])
def test_a_size_that_is_none_is_refused(image_size):
    with pytest.raises(ValueError, match=r"^image_size is "):
        Preprocessing().with_changes(image_size, None, None)


@pytest.mark.parametrize("value", ["grey", (0.5, 0.5), np.nan, (1, 1, np.inf), [[1], [1, 2]]])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_normalisation_that_is_none_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is .* one .*number or three"):
        Preprocessing().with_changes(None, **{"mean": None, "std": None, name: value})


@pytest.mark.parametrize("std", [0, (1, 1, 0), -1])
def test_a_deviation_must_be_positive(std):
    with pytest.raises(ValueError, match=r"^std is .* positive"):
        Preprocessing().with_changes(None, None, std)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_odd_exif_tags_do_not_make_a_picture_unreadable(kind):
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)
    block += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    # The resolution is the signed rational -1/0, which cannot be written again.
    block += struct.pack("<HHII", 0x011A, 10, 1, 38) + struct.pack("<Iii", 0, -1, 0)
    stream, plain = io.BytesIO(), io.BytesIO()
    noise(20, 30).save(stream, kind, exif=block)
    noise(20, 30).save(plain, kind)
    want = Image.open(plain).convert("RGB").transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(SMALL.from_pil(Image.open(stream)), SMALL.from_pil(want))


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_that_are_multiplied_by_alpha_are_divided_again(mode):
    picture = Image.new("RGBA", (8, 8), (200, 200, 200, 128))
    own = picture.convert("RGBa") if mode == "RGBa" else picture.convert("LA").convert("La")
    assert np.abs(SMALL.from_pil(own).astype(int) - 200).max() <= 1


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(ValueError, match="it has no pixels: its size is"):
        SMALL.from_pil(Image.new("RGB", size))
