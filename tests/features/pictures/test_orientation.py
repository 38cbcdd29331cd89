import io

import numpy as np
import pytest
from PIL import Image

from pydfm.features.inputs.images import read_image
from pydfm.features.pictures.orientation import turned_levels, upright

tifffile = pytest.importorskip("tifffile")


def pixels(image):
    return np.asarray(image if isinstance(image, np.ndarray) else upright(image))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "?", "colours", "deep colours"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_of_any_kind_is_turned_as_its_tag_says(tmp_path, orientation, kind, compression):
    # Pillow lays uncompressed lines of the stored width into the width that is shown.
    levels = np.arange(12 * 9 * 3).reshape(12, 9, 3)
    if kind in ("colours", "deep colours"):
        levels = levels.astype("u1" if kind == "colours" else "u2")
    else:
        levels = levels[..., 0] % 2 == 1 if kind == "?" else levels[..., 0].astype(kind)
    options = {"photometric": "rgb" if levels.ndim == 3 else "minisblack"}
    tag = [(274, "H", 1, orientation, True)]
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, levels, extratags=tag, compression=compression, **options)
    want = turned_levels(levels, orientation)
    with Image.open(path) as opened, Image.open(path) as loaded:
        loaded.load()
        for form in (path, io.BytesIO(path.read_bytes()), opened, loaded):
            assert np.array_equal(read_image(form, pixels), want)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_page_is_turned_as_its_own_tag_says(tmp_path, orientation):
    levels = np.arange(2 * 12 * 9, dtype=np.uint8).reshape(2, 12, 9)
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        for page, own in zip(levels, (1, orientation), strict=True):
            file.write(page, extratags=[(274, "H", 1, own, True)], metadata=None)
    assert np.array_equal(read_image(f"{path}#1", pixels), levels[0])
    assert np.array_equal(read_image(f"{path}#2", pixels), turned_levels(levels[1], orientation))
    with Image.open(path) as opened:
        opened.seek(1)
        assert np.array_equal(read_image(opened, pixels), turned_levels(levels[1], orientation))
