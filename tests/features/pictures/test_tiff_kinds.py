import itertools

import numpy as np
import pytest

from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.transforms import Preprocessing

tifffile = pytest.importorskip("tifffile")

HEIGHT, WIDTH = 24, 40
SEEN = Preprocessing(resize=(HEIGHT, WIDTH), crop=None, intensity="16bit")
KINDS = [
    *(("u1", "minisblack", False), ("u1", "minisblack", True), ("u1", "miniswhite", False)),
    *(("u2", "minisblack", False), ("u2", "minisblack", True), ("u2", "miniswhite", False)),
    *(("u1", "rgb", False), ("u1", "rgb", True), ("u2", "rgb", False), ("u2", "rgb", True)),
]
STORAGE = list(
    itertools.product(("contig", "separate"), (None, "zlib"), (None, (16, 16)), "<>", (1, 6))
)


def written(path, values, photometric, alpha, storage):
    """Write values (H, W, C) as they are seen; return whether there is such a kind."""
    planes, compression, tile, order, turn = storage
    most = np.iinfo(values.dtype).max
    values = np.rot90(values) if turn == 6 else values
    values = most - values if photometric == "miniswhite" else values
    if alpha:
        values = np.concatenate([values, np.full_like(values[..., :1], most)], axis=2)
    options = {"planarconfig": planes, "extrasamples": ["unassalpha"]} if alpha else {}
    if photometric == "rgb":
        options["planarconfig"] = planes
    elif planes == "separate":
        return False
    values = values[..., 0] if values.shape[2] == 1 else values
    values = values.transpose(2, 0, 1) if planes == "separate" else values
    if turn != 1:
        options["extratags"] = [(274, "H", 1, turn, True)]
    tifffile.imwrite(
        path,
        np.ascontiguousarray(values),
        photometric=photometric,
        compression=compression,
        tile=tile,
        byteorder=order,
        metadata=None,
        **options,
    )
    return True


@pytest.mark.parametrize(("dtype", "photometric", "alpha"), KINDS)
def test_a_tiff_however_stored_gives_its_pixels_or_is_refused(tmp_path, dtype, photometric, alpha):
    rng = np.random.default_rng(0)
    most, colours = np.iinfo(dtype).max, 3 if photometric == "rgb" else 1
    read = 0
    for i, storage in enumerate(STORAGE):
        values = rng.integers(0, most + 1, (HEIGHT, WIDTH, colours)).astype(dtype)
        path = tmp_path / f"{i}.tif"
        if not written(path, values, photometric, alpha, storage):
            continue
        try:
            pixels = read_image(path, SEEN.from_pil)
        except ImageError as error:
            assert "channels, which is no grey or RGB image here" in str(error)  # noqa: PT017
            continue
        read += 1
        found = pixels / 255 if pixels.dtype == np.uint8 else pixels
        want = np.repeat((values / most).transpose(2, 0, 1), 3 // colours, axis=0)
        np.testing.assert_allclose(found, want, atol=1e-6, err_msg=str(storage))
    assert read or (dtype, alpha, photometric) == ("u2", True, "minisblack")
