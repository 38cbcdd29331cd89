import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.features.images import ImageError, read_image

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
    with pytest.raises(pydfm.ImageError, match=r"image 0 of X: .* beyond the model's intensity="):
        dfm.score(scenes(1, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert new(intensity="16bit").fit(scenes(8, 12)).score(scenes(1, 16)).shape == (1,)


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
        want = (values >> 8).transpose(1, 2, 0)
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
