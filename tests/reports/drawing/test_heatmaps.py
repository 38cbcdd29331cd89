import numpy as np
import pytest
from PIL import Image

from pydfm.reports.drawing.heatmaps import MapFiles, check_folder
from pydfm.reports.drawing.scale import ColourScale, colours

PATHS = [f"in/{i:02}.png" for i in range(12)]
SCALE = ColourScale(1.0, 3.0)


def overlays(output, maps, pixels):
    files = MapFiles("in", output, SCALE)
    files.write_maps(PATHS, maps, pixels)
    assert sorted(path.name for path in output.iterdir()) == [f"{i:02}.png.png" for i in range(12)]
    return [np.asarray(Image.open(path)) for path in sorted(output.iterdir())]


@pytest.mark.parametrize("level", [0.0, 1.0, -7.5])
def test_maps_of_good_images_leave_them_unchanged(textures, tmp_path, level):
    maps = np.full((12, 40, 48), level, dtype=np.float32)
    for drawn, pixels in zip(overlays(tmp_path, maps, textures), textures, strict=True):
        assert np.array_equal(drawn, pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_threshold_is_the_middle_of_the_scale(textures, tmp_path, dtype):
    levels = np.linspace(0.0, 6.0, 12)  # each map is constant, at another level
    maps = np.broadcast_to(levels[:, None, None], (12, 40, 48)).astype(dtype)
    drawn = overlays(tmp_path, maps, textures)
    for image, pixels, level in zip(drawn, textures, levels, strict=True):
        share = min(max((level - 1) / 4, 0), 1)
        assert (level > 3) == (share > 0.5)
        want = (1 - 0.8 * share) * pixels.transpose(1, 2, 0) + 0.8 * share * colours(share)
        np.testing.assert_allclose(image, want, atol=0.51)


def test_raw_maps_are_as_they_are(textures, tmp_path):
    maps = np.random.default_rng(0).normal(size=(12, 40, 48)).astype(np.float32)
    MapFiles("in", tmp_path, formats=("npy", "tiff")).write_maps(PATHS, maps, textures)
    assert len(list(tmp_path.iterdir())) == 24
    for path, own in zip(PATHS, maps, strict=True):
        assert np.array_equal(np.load(tmp_path / f"{path[3:]}.npy"), own)
        with Image.open(tmp_path / f"{path[3:]}.tiff") as image:
            assert image.mode == "F"
            assert np.array_equal(np.asarray(image), own)
    with pytest.raises(ValueError, match="--map-format is 'gif'; it must be one of 'png', 'npy'"):
        MapFiles("in", tmp_path, formats=("gif",))


def test_a_folder_that_cannot_be_written_to_is_reported(unprivileged):
    images = unprivileged / "images"
    check_folder("--maps", unprivileged / "a" / "b", images)
    assert (unprivileged / "a" / "b").is_dir()
    unprivileged.chmod(0o555)
    with pytest.raises(OSError, match=r"is not writable|Permission denied"):
        check_folder("--maps", unprivileged, images)
