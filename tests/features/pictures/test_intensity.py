import io
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.pictures import orientation

tifffile = pytest.importorskip("tifffile")


def scenes(n, bits, seed=0):
    """Grey pictures of the same scenes, at the upper grey levels of a camera of `bits`."""
    shares = np.random.default_rng(seed).integers(120, 250, (n, 32, 32)) / 255
    shares[0, 0, 0] = 1
    kind = np.uint8 if bits == 8 else np.uint16
    return [Image.fromarray(np.rint(s * (2**bits - 1)).astype(kind)) for s in shares]


def new(**how):
    return pydfm.DFM(2, weights=None, layers="layer1", pool=2, image_size=32, **how)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("form", ["png", "tif", "pictures"])
@pytest.mark.filterwarnings("ignore:intensity=")
def test_every_depth_scores_as_8_bits_do(tmp_path, bits, form):
    def put(pictures, name):
        if form == "pictures":
            return pictures
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures):
            picture.save(tmp_path / name / f"{i:02}.{form}")
        return tmp_path / name

    want = new().fit(scenes(8, 8)).score(scenes(3, 8, 1))
    dfm = new().fit(put(scenes(8, bits), "fit"))
    assert dfm.feature_spec_.preprocessing.intensity == f"{bits}bit"
    np.testing.assert_allclose(
        dfm.score(put(scenes(3, bits, 1), "score")), want, rtol=0.02, atol=0.02
    )
    dfm.save(tmp_path / "m")
    loaded = pydfm.load(tmp_path / "m")
    assert np.array_equal(loaded.score(scenes(3, bits, 1)), dfm.score(scenes(3, bits, 1)))


def test_the_choice_is_said_and_what_is_beyond_it_refused():
    with pytest.warns(UserWarning, match="intensity='12bit' was chosen"):
        dfm = new().fit(scenes(8, 12))
    with pytest.raises(pydfm.ImageError, match=r"image 0 of X: .* beyond \[0, 4095\], the model's"):
        dfm.score(scenes(1, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert new(intensity="16bit").fit(scenes(8, 12)).score(scenes(1, 16)).shape == (1,)


def test_an_image_beyond_the_choice_that_was_not_looked_at_is_refused_in_the_fit(tmp_path):
    for i, scene in enumerate(scenes(72, 12)):
        scene.save(tmp_path / f"{i:02}.png")
    whole = (
        r"the pixels of 36 of 72 images of more than 8 bits were looked at, and none goes beyond"
    )
    with pytest.warns(UserWarning, match=f"intensity='12bit' was chosen: {whole}"):
        assert new().fit(tmp_path).n_samples_ == 72
    scenes(1, 16)[0].save(tmp_path / "01.png")  # every second one is looked at
    with (
        pytest.warns(UserWarning, match="intensity='12bit' was chosen"),
        pytest.raises(ImageError, match=r"01\.png': .* fit with intensity='16bit'"),
    ):
        new().fit(tmp_path)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_copies_of_open_images_have_the_bits_of_their_mode(tmp_path, ending):
    for i, scene in enumerate(scenes(8, 16)):
        scene.save(tmp_path / f"{i}.{ending}")
    paths = sorted(tmp_path.iterdir())
    copies = []
    for path in paths:
        with Image.open(path) as image:
            copies.append(image.copy())
    dfm = new().fit(copies)
    assert dfm.feature_spec_.preprocessing.intensity == "16bit"
    assert np.array_equal(dfm.score(copies), dfm.score(paths))
    with pytest.raises(ImageError, match="it has more than 8 bits, and the model was fitted on"):
        new().fit(scenes(8, 8)).score(copies)


def test_float_tiffs_have_the_range_that_is_given(tmp_path):
    heights = np.random.default_rng(0).uniform(-1, 2, (6, 32, 32))
    for i, one in enumerate(heights):
        tifffile.imwrite(tmp_path / f"{i}.tif", one.astype([np.float32, np.float64][i % 2]))
    dfm = new(intensity=(-1, 2)).fit(tmp_path)
    want = new().fit(np.float32((heights + 1) / 3)[:, None].repeat(3, 1)).held_out_scores_
    np.testing.assert_allclose(dfm.held_out_scores_, want, rtol=1e-3)
    heights[0, 3, 5] = np.nan
    tifffile.imwrite(tmp_path / "0.tif", heights[0])
    with pytest.raises(ImageError, match="contains NaN, first at row 3, column 5"):
        dfm.score(tmp_path / "0.tif")


@pytest.mark.parametrize("how", ["white", "planes"])
def test_a_tiff_that_pillow_misreads_is_read_rightly_or_refused(tmp_path, monkeypatch, how):
    shape = (16, 16) if how == "white" else (3, 16, 16)
    values = np.random.default_rng(0).integers(0, 65535, shape, dtype=np.uint16)
    path, want = tmp_path / "x.tif", values
    if how == "white":
        tifffile.imwrite(path, 65535 - values, photometric="miniswhite")
    else:
        tifffile.imwrite(path, values, photometric="rgb", planarconfig="separate")
        want = values.transpose(1, 2, 0)
    assert np.array_equal(read_image(path, np.asarray), want)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match="install tifffile"):
        read_image(path, np.asarray)


def test_a_tiff_of_other_channels_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((8, 8, 5), np.uint8), planarconfig="contig")
    with pytest.raises(ImageError, match="TIFF of uint8 with 5 channels"):
        read_image(tmp_path / "x.tif", np.asarray)


@pytest.mark.parametrize("value", ["11bit", (1, 1), (0, np.inf), (1,), 12, None])
def test_an_intensity_that_is_none_is_named(value):
    with pytest.raises(ValueError, match=r"^intensity is "):
        new(intensity=value).fit(scenes(4, 8))


COLOURS = np.random.default_rng(3).integers(0, 65536, (12, 18, 3), dtype=np.uint16)
FILTERS = 5


def write_png(path, levels, significant=None, orientation=None):
    """Write levels (H, W, C) of 16 bits, C the number of colours, with all five filters in turn."""

    def chunk(name, data):
        sum_ = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", sum_)

    height, width, count = levels.shape
    rows = levels.astype(">u2").tobytes()
    rows = np.frombuffer(rows, np.uint8).reshape(height, -1).astype(int)
    step, lines = 2 * count, []
    for y in range(height):
        up = rows[y - 1] if y else np.zeros_like(rows[0])
        left, corner = np.r_[[0] * step, rows[y][:-step]], np.r_[[0] * step, up[:-step]]
        guess = left + up - corner
        far = np.abs(np.stack([guess - left, guess - up, guess - corner]))
        paeth = np.choose(far.argmin(0), [left, up, corner])
        kind = y % FILTERS
        line = rows[y] - [0 * up, left, up, (left + up) // 2, paeth][kind]
        lines.append(bytes([kind]) + (line % 256).astype(np.uint8).tobytes())
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    if significant:
        data += chunk(b"sBIT", bytes([significant] * count))
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        data += chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(data + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b""))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_levels_of_a_colour_png_are_read(tmp_path, count):
    alpha = np.full((12, 18, 1), 7, np.uint16)
    own = COLOURS if count > 2 else COLOURS[..., :1]
    write_png(tmp_path / "x.png", own if count == 3 else np.dstack([own, alpha]))
    want = np.broadcast_to(own, (12, 18, 3))
    assert np.array_equal(read_image(tmp_path / "x.png", np.asarray), want)
    assert np.array_equal(read_image(io.BytesIO((tmp_path / "x.png").read_bytes()), np.copy), want)
    for loaded in (False, True):  # an open PIL image, of which Pillow keeps 8 bits
        with Image.open(tmp_path / "x.png") as image:
            if loaded:
                image.load()
            assert np.array_equal(read_image(image, np.asarray), want)
    with Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())) as image:
        assert np.array_equal(read_image(image, np.asarray), want)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"byteorder": ">"},
        {"compression": "zlib"},
        {"compression": "zlib", "byteorder": ">"},
        {"rowsperstrip": 5},
        {"tile": (16, 16)},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "zlib"},
        {"extrasamples": ["unassalpha"]},
    ],
)
@pytest.mark.parametrize("turn", [1, 6])
def test_all_levels_of_a_colour_tiff_are_read(tmp_path, how, turn):
    values = np.dstack([COLOURS, COLOURS[..., :1]]) if "extrasamples" in how else COLOURS
    values = values.transpose(2, 0, 1) if "planarconfig" in how else values
    tags = [(274, "H", 1, turn, True)]
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb", extratags=tags, **how)
    want = COLOURS if turn == 1 else np.rot90(COLOURS, -1)
    assert np.array_equal(read_image(tmp_path / "x.tif", np.asarray), want)


@pytest.mark.parametrize("turn", range(1, 9))
def test_levels_are_turned_as_pictures_are(tmp_path, turn):
    write_png(tmp_path / "x.png", COLOURS, orientation=turn)
    eight = Image.fromarray((COLOURS >> 8).astype(np.uint8))
    want = np.asarray(orientation.turned(eight, turn))
    assert np.array_equal(read_image(tmp_path / "x.png", np.asarray) >> 8, want)
    assert np.array_equal(orientation.turned_levels(COLOURS, turn) >> 8, want)


def test_all_levels_of_a_ppm_are_read(tmp_path):
    levels = COLOURS >> 4
    (tmp_path / "x.ppm").write_bytes(b"P6 18 12 4095\n" + levels.astype(">u2").tobytes())
    want = np.rint(levels * (65535 / 4095))  # of the full range, as Pillow gives those of a PGM
    assert np.array_equal(read_image(tmp_path / "x.ppm", np.asarray), want)
    (tmp_path / "x.ppm").write_bytes(b"P6 18 12 4095\n" + levels.astype(">u2").tobytes()[:-1])
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "x.ppm", np.asarray)


def test_deep_colours_that_cannot_be_read_are_refused(tmp_path):
    values = np.dstack([COLOURS, COLOURS[..., :1]])
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="separated")
    with pytest.raises(ImageError, match="more than 8 bits and is of the kind CMYK"):
        read_image(tmp_path / "x.tif", np.asarray)


def coloured(n, bits, seed=0):
    """Levels (n, 3, 32, 32) of the same scenes, for a camera of `bits`."""
    shares = np.random.default_rng(seed).integers(120, 250, (n, 3, 32, 32)) / 255
    shares[0, 0, 0, 0] = 1
    return np.rint(shares * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize(
    "form", ["png", "tif", "array", ">u2", "i8", "tensor", "list", "generator"]
)
@pytest.mark.filterwarnings("ignore:intensity=")
def test_deep_colours_score_as_8_bits_do(tmp_path, bits, form):
    def put(levels, name):
        if form in ("png", "tif"):
            (tmp_path / name).mkdir()
            for i, own in enumerate(levels.transpose(0, 2, 3, 1)):
                path = tmp_path / name / f"{i:02}.{form}"
                if form == "png":
                    write_png(path, own)
                else:
                    tifffile.imwrite(path, own, photometric="rgb")
            return tmp_path / name
        if form in (">u2", "i8"):
            return levels.astype(form)
        if form == "tensor":
            return pytest.importorskip("torch").from_numpy(levels)
        if form == "list":
            return [levels[:2], levels[2:]]
        return (own for own in levels) if form == "generator" else levels

    want = new().fit(coloured(8, 8)).score(coloured(3, 8, 1))
    dfm = new().fit(put(coloured(8, bits), "fit"))
    assert dfm.feature_spec_.preprocessing.intensity == f"{bits}bit"
    got = dfm.score(put(coloured(3, bits, 1), "score"))
    np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02)
    assert np.array_equal(dfm.score(coloured(3, bits, 1)), got)


def test_levels_between_those_of_8_bits_reach_the_network():
    base = coloured(8, 16)
    dfm = new(intensity="16bit").fit(base)
    finer = base.copy()
    finer[:, :, ::2] += 100  # below one level of 8 bits
    assert (np.abs(dfm.extract(finer) - dfm.extract(base)).max(axis=1) > 1e-4).all()


def test_a_model_of_8_bits_refuses_deeper_images(tmp_path):
    dfm = new().fit(coloured(8, 8))
    write_png(tmp_path / "x.png", coloured(1, 16)[0].transpose(1, 2, 0))
    for deep in (coloured(1, 16), scenes(1, 16), tmp_path / "x.png"):
        with pytest.raises(ImageError, match="more than 8 bits, and the model was fitted on"):
            dfm.score(deep)
    with pytest.raises(ImageError, match="more than 8 bits"):
        dfm.partial_fit(scenes(4, 12))
    both = new(intensity="12bit").fit(coloured(8, 8))
    np.testing.assert_allclose(
        both.score(coloured(3, 12, 1)), both.score(coloured(3, 8, 1)), rtol=0.02, atol=0.02
    )


def test_auto_looks_at_all_that_is_known_before_the_fit():
    dark = scenes(8, 10)
    with pytest.warns(UserWarning, match="intensity='12bit' was chosen"):
        dfm = new().fit([*dark, *scenes(1, 12)])
    assert dfm.feature_spec_.preprocessing.intensity == "12bit"
    with pytest.warns(UserWarning, match="intensity='12bit' was chosen"):
        new().fit([(picture, 0) for picture in [*dark, *scenes(1, 12)]], labels=None)
    with pytest.warns(UserWarning, match="10bit"), pytest.raises(ImageError, match="image 8 of X"):
        new().fit(picture for picture in [*dark, *scenes(1, 12)])


def test_a_stream_that_begins_with_8_bits_refuses_deeper_images():
    with pytest.raises(ImageError, match="image 8 of X: it has more than 8 bits"):
        new().fit(picture for picture in [*scenes(8, 8), *scenes(1, 12)])


@pytest.mark.parametrize("values", [(0, 70000), (-5, 100)])
def test_values_that_no_depth_holds_ask_for_two_numbers(values):
    low, high = values
    levels = np.random.default_rng(0).integers(low, high, (6, 3, 32, 32), dtype=np.int32)
    levels[0, 0, 0, :2] = values
    with pytest.raises(ValueError, match=r"intensity is 'auto', .* pass intensity=\(low, high\)"):
        new().fit(levels)
    shares = np.float32((levels - low) / (high - low))
    got = new(intensity=values).fit(levels).held_out_scores_
    np.testing.assert_allclose(got, new().fit(shares).held_out_scores_, rtol=1e-3)


def test_a_png_says_its_significant_bits(tmp_path):
    levels = (coloured(6, 16) >> 6).transpose(0, 2, 3, 1)  # 10 bits
    for i, own in enumerate(levels):
        write_png(tmp_path / f"{i}.png", own, significant=12)
    with pytest.warns(UserWarning, match="intensity='12bit' was chosen"):
        new().fit(tmp_path)
    for i, own in enumerate(levels):  # stretched to 16 bits, as the standard has it
        write_png(tmp_path / f"{i}.png", own << 6, significant=12)
    dfm = new().fit(tmp_path)
    assert dfm.feature_spec_.preprocessing.intensity == "16bit"


def test_a_tiff_says_its_bits(tmp_path):
    for i, own in enumerate(scenes(6, 10)):
        values = np.asarray(own)
        packed = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(32, 32, 2), axis=2)
        data = np.packbits(packed[:, :, 4:].reshape(32, -1), axis=1)  # 12 bits each
        own.save(tmp_path / f"{i}.tif")
        with tifffile.TiffFile(tmp_path / f"{i}.tif", mode="r+b") as file:
            tags = file.pages[0].tags
            place = tags["StripOffsets"].value[0]
            tags["BitsPerSample"].overwrite(12)
            tags["StripByteCounts"].overwrite(data.nbytes)
            file.filehandle.seek(place)
            file.filehandle.write(data.tobytes())
        assert np.array_equal(read_image(tmp_path / f"{i}.tif", np.asarray), values)
    with pytest.warns(UserWarning, match="intensity='12bit' was chosen"):
        new().fit(tmp_path)


def test_models_of_other_intensity_are_not_merged():
    one, other = (new(intensity=own).fit(scenes(8, 12)) for own in ("12bit", "16bit"))
    with pytest.raises(ValueError, match="differ, in their intensity, '12bit' and '16bit'"):
        one.merge(other)
    with pytest.raises(ValueError, match="differ, in their intensity, '12bit' and None"):
        one.merge(new().fit(scenes(8, 8)))


@pytest.mark.parametrize("loaded", [False, True])
def test_an_open_tiff_with_white_as_zero_is_read_rightly(tmp_path, loaded):
    values = COLOURS[..., 0]
    tifffile.imwrite(tmp_path / "x.tif", 65535 - values, photometric="miniswhite")
    with Image.open(tmp_path / "x.tif") as image:
        if loaded:
            image.load()
        assert np.array_equal(read_image(image, np.asarray), values)


def test_8_bits_in_files_of_more_score_as_8_bits_do():
    """Other scores come from levels that 8 bits round away, and from nothing else."""
    eight = scenes(8, 8)
    wide = [Image.fromarray(np.asarray(one).astype(np.uint16) * 257) for one in eight]
    want = new().fit(eight).score(scenes(3, 8, 1))
    new_ones = [Image.fromarray(np.asarray(o).astype(np.uint16) * 257) for o in scenes(3, 8, 1)]
    got = new(intensity="16bit").fit(wide).score(new_ones)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
