import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pydfm.datasets import load_category, load_masks
from pydfm.features.inputs.images import ImageError
from pydfm.features.pictures.orientation import turned_levels
from pydfm.features.transforms import Preprocessing

HEIGHT, WIDTH = 8, 12


def put(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.full((HEIGHT, WIDTH), 100, dtype=np.uint8)
    Image.fromarray(grey if pixels is None else pixels).save(path)


def spot(*pixels, value=255, dtype=np.uint8):
    """A mask with `value` at some (row, column)."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=dtype)
    for pixel in pixels:
        mask[pixel] = value
    return mask


@pytest.fixture
def category(tmp_path):
    """A category with `good` normal pictures; takes defective pictures and masks by their paths."""

    def make(pictures, masks, good="good", name="thing"):
        root = tmp_path / name
        put(root / "train" / good / "0.png")
        put(root / "test" / good / "0.png")
        for picture in pictures:
            put(root / "test" / picture)
        for path, mask in masks.items():
            put(root / "ground_truth" / path, mask)
        return root

    return make


def masked_pixels(root):
    found = load_category(root)
    masks = load_masks(found, (HEIGHT, WIDTH))
    return {
        f"{defect}/{Path(path).name}": [(int(r), int(c)) for r, c in np.argwhere(mask)]
        for path, defect, mask in zip(found.test, found.defects, masks, strict=True)
    }


@pytest.mark.parametrize(
    ("good", "picture", "mask"),
    [
        ("good", "cut/001.png", "cut/001_mask.png"),  # MVTec AD
        ("ok", "ko/0001.bmp", "ko/0001.png"),  # BTAD
        ("good", "bad/027.jpg", "bad/027.png"),  # VisA
        ("normal", "defective/a.tif", "defective/a_gt.bmp"),
    ],
)
def test_masks_are_found_by_the_names_that_are_in_use(category, good, picture, mask):
    root = category([picture], {mask: spot((2, 3))}, good)
    assert masked_pixels(root) == {"good/0.png": [], picture: [(2, 3)]}
    assert load_category(root).without_mask == []
    assert [Path(path).name for path in load_category(root).train] == ["0.png"]


def test_the_masks_of_a_folder_are_joined(category):
    # MVTec LOCO, whose values say which defect a region is
    root = category(
        ["logical/000.png", "logical/001.png"],
        {
            "logical/000/000.png": spot((1, 1), value=239),
            "logical/000/001.png": spot((1, 1), (7, 11), value=1),
            "logical/001/000.png": spot((0, 4), value=7),
        },
    )
    put(root / "validation" / "good" / "5.png")
    found = masked_pixels(root)
    assert found["logical/000.png"] == [(1, 1), (7, 11)]
    assert found["logical/001.png"] == [(0, 4)]
    assert [Path(path).name for path in load_category(root).validation] == ["5.png"]


def test_names_that_begin_alike_are_kept_apart(category):
    root = category(
        ["cut/1.png", "cut/1_2.png", "cut/10.png"],
        {"cut/1_2_mask.png": spot((0, 2)), "cut/10_mask.png": spot((1, 0))},
    )
    found = masked_pixels(root)
    assert (found["cut/1.png"], found["cut/1_2.png"], found["cut/10.png"]) == (
        [],
        [(0, 2)],
        [(1, 0)],
    )


def test_pictures_without_a_mask_are_reported_and_do_not_matter(category):
    root = category(["cut/1.png", "cut/2.png", "dent/1.png"], {"cut/1_mask.png": spot((0, 0))})
    found = load_category(root)
    tests = root / "test"
    assert found.without_mask == [str(tests / "cut" / "2.png"), str(tests / "dent" / "1.png")]
    assert len(found.masks) == len(found.test)
    assert load_masks(found, (HEIGHT, WIDTH)).sum() == 1
    kept = found.select(path not in found.without_mask for path in found.test)
    assert kept.defects == ["cut", "good"]
    assert kept.without_mask == []
    assert load_masks(kept, (HEIGHT, WIDTH)).sum(axis=(1, 2)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "mask",
    [
        spot((2, 3), value=1),
        spot((2, 3), value=1, dtype=np.uint16),
        spot((2, 3), value=True, dtype=bool),
        np.stack([spot(), spot((2, 3)), spot()], axis=2),
        np.stack([spot((2, 3))] * 3 + [np.full((HEIGHT, WIDTH), 255, np.uint8)], axis=2),
        np.stack([spot((2, 3)), np.full((HEIGHT, WIDTH), 255, np.uint8)], axis=2),
    ],
    ids=["one", "16 bit", "1 bit", "colour", "alpha", "grey alpha"],
)
def test_what_is_above_zero_is_anomalous(category, mask):
    root = category(["cut/1.png"], {"cut/1.png": mask})
    assert masked_pixels(root)["cut/1.png"] == [(2, 3)]


def test_masks_take_the_size_of_the_maps(category):
    large = spot()
    large[4:, 6:] = 255
    found = load_category(category(["cut/1.png"], {"cut/1.png": large}))
    for size in ((4, 6), (16, 24), (HEIGHT, WIDTH)):
        masks = load_masks(found, size)
        assert (masks.shape, masks.dtype) == ((2, *size), bool)
        mask = masks[found.labels.index(True)]
        assert mask[size[0] // 2 :, size[1] // 2 :].all()
        assert mask.sum() == size[0] * size[1] / 4


def test_masks_follow_the_crop_of_the_pictures(category):
    found = load_category(category(["cut/1.png"], {"cut/1.png": spot((4, 6))}))
    preprocessing = Preprocessing(resize=16, crop=(8, 10))
    mask = load_masks(found, preprocessing)[found.labels.index(True)]
    # The picture turns 16 x 24; the pixel covers rows 8 and 9 and columns 12 and 13 of that.
    assert [(int(r), int(c)) for r, c in np.argwhere(mask)] == [(4, 5), (4, 6), (5, 5), (5, 6)]
    pixels = preprocessing.from_pil(Image.fromarray(spot((4, 6))))
    assert mask.shape == pixels.shape[1:]
    assert mask[np.unravel_index(pixels[0].argmax(), mask.shape)]


def test_a_mask_of_another_size_than_its_picture_is_reported(category):
    root = category(["cut/1.png"], {"cut/1.png": spot()[:, :5]})
    with pytest.raises(ValueError, match=r"cut.1.png' has 5 x 8 pixels and its image .* 12 x 8;"):
        load_masks(load_category(root), (8, 8))


def test_a_picture_on_its_side_has_the_size_that_is_seen(category):
    root = category(["cut/1.jpg"], {"cut/1.png": spot((2, 3))})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(spot().T.copy()).save(root / "test" / "cut" / "1.jpg", exif=exif)
    assert masked_pixels(root)["cut/1.jpg"] == [(2, 3)]


def put_turned(path, orientation, kind):
    """Write an image of 12 x 8, or of 9 x 9, that is shown turned."""
    tifffile = pytest.importorskip("tifffile")
    tag = [(274, "H", 1, orientation, True)]
    shape = (WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH)
    if kind == "square":
        shape = (9, 9)
    levels = np.arange(shape[0] * shape[1]).reshape(shape)
    if kind in ("jpg", "square"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(levels.astype(np.uint8)).save(path.with_suffix(".jpg"), exif=exif)
    elif kind == "deep colours":
        three = np.stack([levels.astype(np.uint16)] * 3, axis=2)
        tifffile.imwrite(path.with_suffix(".tif"), three, photometric="rgb", extratags=tag)
    else:
        tifffile.imwrite(path.with_suffix(".tif"), levels.astype(kind), extratags=tag)


@pytest.mark.parametrize("kind", ["jpg", "u2", "deep colours", "f8", "square"])
@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_the_mask_of_a_turned_picture_is_turned_as_it_is_or_refused(category, orientation, kind):
    root = category([], {"cut/1.png": spot((2, 3))})
    (root / "test" / "cut").mkdir()
    put_turned(root / "test" / "cut" / "1", orientation, kind)
    side = (9, 9) if kind == "square" else (HEIGHT, WIDTH)
    shown = np.zeros(side, dtype=np.uint8)
    shown[2, 3] = 255
    known = orientation >= 5 and kind != "square"

    def check():
        mask = load_masks(load_category(root), side).any(axis=0)
        assert [(int(r), int(c)) for r, c in np.argwhere(mask)] == [(2, 3)]

    # A mask of the image as it is shown, and of the image as it is stored
    back = {6: 8, 8: 6}.get(orientation, orientation)
    for own in (shown, turned_levels(shown, back)):
        put(root / "ground_truth" / "cut" / "1.png", np.ascontiguousarray(own))
        if known:
            check()
        else:
            with pytest.raises(ValueError, match="save the image upright"):
                check()
    # One that says so itself
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turned_levels(shown, back)))
    stored.save(root / "ground_truth" / "cut" / "1.png", exif=exif)
    check()


def test_the_mask_of_a_turned_picture_may_have_no_side(category):
    root = category([], {"cut/1.png": np.full((9, 9), 255, np.uint8)})
    (root / "test" / "cut").mkdir()
    put_turned(root / "test" / "cut" / "1", 6, "square")
    assert load_masks(load_category(root), (9, 9)).any(axis=0).all()


def test_a_broken_mask_is_named(category):
    root = category(["cut/1.png"], {"cut/1_mask.png": spot()})
    (root / "ground_truth" / "cut" / "1_mask.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"cannot read image '.*1_mask.png': it is not an image"):
        load_masks(load_category(root), (8, 8))


@pytest.mark.skipif("PYDFM_TEST_DATA" not in os.environ, reason="PYDFM_TEST_DATA is not set")
def test_glassfiber_has_a_mask_for_every_defect():
    category = load_category(Path(os.environ["PYDFM_TEST_DATA"]) / "glassfiber")
    masks = load_masks(category, (256, 256))
    assert category.without_mask == []
    assert masks.any(axis=(1, 2)).tolist() == category.labels
    assert 0.05 < masks.mean() < 0.2
