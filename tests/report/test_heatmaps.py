import matplotlib
import numpy as np
import pytest
from PIL import Image

from pydfm.report.heatmaps import Heatmaps, check_folder

PATHS = [f"in/{i:02}.png" for i in range(12)]


def write(output, maps, pixels, batch=5):
    with Heatmaps("in", output) as heatmaps:
        for first in range(0, len(maps), batch):
            at = slice(first, first + batch)
            heatmaps.add(PATHS[at], maps[at], pixels[at])
        assert list(output.iterdir()) == []
        heatmaps.write()
    assert sorted(path.name for path in output.iterdir()) == [f"{i:02}.png.png" for i in range(12)]
    return [np.asarray(Image.open(path)) for path in sorted(output.iterdir())]


@pytest.mark.parametrize("level", [0.0, 3.0, -7.5])
def test_maps_that_are_constant_leave_the_images_unchanged(textures, tmp_path, level):
    maps = np.full((12, 40, 48), level, dtype=np.float32)
    for drawn, pixels in zip(write(tmp_path, maps, textures), textures, strict=True):
        assert np.array_equal(drawn, pixels.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_images_of_a_run_have_one_scale(textures, tmp_path, dtype):
    levels = np.linspace(-1.0, 4.0, 12)  # each map is constant, at another level
    maps = np.broadcast_to(levels[:, None, None], (12, 40, 48)).astype(dtype)
    drawn = write(tmp_path, maps, textures)
    for image, pixels, share in zip(drawn, textures, (levels + 1) / 5, strict=True):
        colour = 255 * np.array(matplotlib.colormaps["inferno"](share)[:3])
        want = (1 - 0.8 * share) * pixels.transpose(1, 2, 0) + 0.8 * share * colour
        np.testing.assert_allclose(image, want, atol=0.51)


def test_a_folder_that_cannot_be_written_to_is_reported(unprivileged):
    images = unprivileged / "images"
    check_folder(unprivileged / "a" / "b", images)
    assert (unprivileged / "a" / "b").is_dir()
    unprivileged.chmod(0o555)
    with pytest.raises(OSError, match=r"is not writable|Permission denied"):
        check_folder(unprivileged, images)
