import matplotlib
import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.heatmaps import Heatmaps, check_folder
from pydfm.images import list_images


@pytest.fixture
def fitted(tiny_network, textures):
    parameters = {"layers": "block", "pool": 4, "image_size": (40, 48), "device": "cpu"}
    return pydfm.DFM(2, backbone=tiny_network, **parameters).fit(textures)


def write(dfm, folder, output):
    paths = list_images(folder)
    features = dfm.extract(paths)
    with Heatmaps(dfm, folder, output) as heatmaps:
        heatmaps.add(paths, features)
        heatmaps.write()
    return [np.asarray(Image.open(path)) for path in sorted(output.iterdir())]


@pytest.mark.parametrize("level", [0.0, 3.0, -7.5])
def test_maps_that_are_constant_leave_the_pictures_as_they_are(
    fitted, textures, picture_folder, tmp_path, monkeypatch, level
):
    monkeypatch.setattr(
        pydfm.DFM, "score_map", lambda self, X, smoothing: np.full((len(X), 40, 48), level)
    )
    for drawn, pixels in zip(write(fitted, picture_folder, tmp_path), textures, strict=True):
        assert np.array_equal(drawn, pixels.transpose(1, 2, 0))


def test_all_pictures_of_a_run_have_one_scale(
    fitted, textures, picture_folder, tmp_path, monkeypatch
):
    levels = np.linspace(-1.0, 4.0, 12)  # each map is constant, at another level
    monkeypatch.setattr(
        pydfm.DFM,
        "score_map",
        lambda self, X, smoothing: np.broadcast_to(levels[:, None, None], (12, 40, 48)),
    )
    drawn = write(fitted, picture_folder, tmp_path)
    for picture, pixels, share in zip(drawn, textures, (levels + 1) / 5, strict=True):
        colour = 255 * np.array(matplotlib.colormaps["inferno"](share)[:3])
        want = (1 - 0.8 * share) * pixels.transpose(1, 2, 0) + 0.8 * share * colour
        np.testing.assert_allclose(picture, want, atol=0.51)


def test_a_folder_that_cannot_take_them_is_told(unprivileged):
    pictures = unprivileged / "pictures"
    check_folder(unprivileged / "a" / "b", pictures)
    assert (unprivileged / "a" / "b").is_dir()
    unprivileged.chmod(0o555)
    with pytest.raises(OSError, match=r"must not be written to|Permission denied"):
        check_folder(unprivileged, pictures)
