from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.features.transforms import Preprocessing
from pydfm.features.views import FactsTaker, Views, image_names


def test_a_view_has_the_upright_size_and_a_small_picture():
    image = Image.new("RGB", (300, 100), "red")
    image.getexif()[0x0112] = 6
    views = Views(Preprocessing(), 60)
    views(3, image)
    (view,) = views.take([3])
    assert view.size == (300, 100)
    assert view.picture.size == (20, 60)
    assert image.size == (300, 100)
    with pytest.raises(KeyError):
        views.take([3])


def test_without_a_side_only_sizes_are_kept():
    views = Views(Preprocessing())
    views(0, Image.new("L", (30, 10)))
    (view,) = views.take([0])
    assert (view.size, view.picture) == ((10, 30), None)


def test_deep_images_are_shown_with_the_levels_that_the_network_sees():
    deep = Image.fromarray(np.full((8, 8), 2047, dtype=np.uint16))
    shown = Preprocessing(intensity="12bit").picture(deep)
    assert shown.mode == "L"
    assert np.unique(np.asarray(shown)).tolist() == [127]


@pytest.mark.parametrize(
    ("preprocessing", "want"),
    [
        (Preprocessing(resize=(64, 64), crop=None), (0, 0, 300, 100)),
        (Preprocessing(resize=50, crop=(50, 50)), (100, 0, 200, 100)),
        (Preprocessing(resize=50, crop=(40, 30)), (120, 10, 180, 90)),
        (Preprocessing(resize=50, crop=(60, 150)), (0, -10, 300, 110)),
    ],
)
def test_the_window_is_what_the_network_sees(preprocessing, want):
    assert preprocessing.window(100, 300) == pytest.approx(want)


def test_the_window_of_a_crop_shows_its_pixels():
    """A bright square at the borders of the window is at the borders of what the network sees."""
    preprocessing = Preprocessing(resize=50, crop=(40, 30))
    left, top, right, bottom = (round(v) for v in preprocessing.window(100, 300))
    pixels = np.zeros((100, 300, 3), dtype=np.uint8)
    pixels[top:bottom, left:right] = 255
    seen = preprocessing.from_pil(Image.fromarray(pixels))
    assert seen[:, 1:-1, 1:-1].min() == 255
    pixels[top + 4 : bottom - 4, left + 4 : right - 4] = 0
    assert preprocessing.from_pil(Image.fromarray(pixels))[:, 3:-3, 3:-3].max() == 0


def test_images_are_looked_at_while_they_are_decoded(tiny_network, textures, pictures):
    dfm = pydfm.DFM(2, backbone=tiny_network, image_size=16, device="cpu").fit(textures)
    for images in (textures, textures.astype(np.float32) / 255, pictures, iter(pictures)):
        found = {}
        taker = FactsTaker(dfm.feature_spec_.preprocessing, found)
        places = [i for own, _, _ in dfm.batches(images, look=taker) for i in own]
        assert sorted(found) == places == list(range(12))
        assert {facts.size for facts in found.values()} == {(40, 48)}
        first = Image.fromarray(textures[0].transpose(1, 2, 0)).convert("L")
        assert found[0].brightness * 255 == pytest.approx(np.asarray(first).mean())
    # Arrays that need no resize take another way.
    found = {}
    same = np.ascontiguousarray(textures[:, :, :16, :16])
    taker = FactsTaker(dfm.feature_spec_.preprocessing, found)
    assert [i for own, _, _ in dfm.batches(same, look=taker) for i in own] == sorted(found)


def test_names_of_images(picture_folder, pictures):
    paths = sorted(str(path) for path in picture_folder.iterdir())
    assert image_names(picture_folder) == image_names([Path(p) for p in paths]) == paths
    assert image_names(paths[0]) == paths[:1]
    assert image_names(pictures) is None
    assert image_names(np.zeros((2, 3))) is None
