import sys

import numpy as np
import pytest
from command_line import assert_error
from PIL import Image

import pydfm
from pydfm.datasets import load_category, load_masks
from pydfm.metrics import aupro, pixel_auroc


def test_eval_measures_as_the_library_does(run, model, category, script):
    got = run("eval", model, category)
    assert (got.code, got.err) == (0, "")
    pictures = [f"cut/{i}" for i in range(2)] + [f"good/{i}" for i in range(3)]
    pictures += [f"hole/{i}" for i in range(3)]
    scores = pydfm.load(model, backbone=script).score(
        [category / f"test/{name}.png" for name in pictures]
    )
    want = pydfm.evaluate(scores, [1, 1, 0, 0, 0, 1, 1, 1])
    assert got.out.decode().splitlines() == [
        "category     carpet (2 cut, 3 good, 3 hole)",
        f"image AUROC  {want['auroc']:.4f}",
        f"AUPR         {want['aupr']:.4f}",
        f"F1-max       {want['f1_max']:.4f} at score >= {want['threshold']:.6g}",
        f"FPR95        {want['fpr95']:.4f}",
        "pixels       not measured: no defective image has a mask in ground_truth",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="such names are not allowed there")
@pytest.mark.parametrize("name", ["cut\nimage AUROC  1.0000", "\x1b[31mcut", "\x9b31m"])
def test_names_of_defects_forge_no_line_and_no_colour(run, model, category, name):
    (category / "test" / "cut").rename(category / "test" / name)
    lines = run("eval", model, category).out.decode().splitlines()
    assert len(lines) == 6
    assert lines[0].startswith("category     carpet (")
    assert all(map(str.isprintable, lines))


@pytest.fixture
def mask(category):
    """Gives the first picture of a hole a mask, the second one not."""
    folder = category / "ground_truth" / "hole"
    folder.mkdir(parents=True)
    pixels = np.zeros((40, 48), dtype=np.uint8)
    pixels[8:20, 10:30] = 255
    Image.fromarray(pixels).save(folder / "0_mask.png")


@pytest.mark.usefixtures("mask")
def test_eval_measures_pixels_where_there_are_masks(run, model, category, script):
    got = run("eval", model, category)
    assert (got.code, got.err) == (0, "")
    dfm = pydfm.load(model, backbone=script)
    test = load_category(category)
    known = test.select(
        bool(m) or d == "good" for m, d in zip(test.masks, test.defects, strict=True)
    )
    maps, masks = dfm.score_map(known.test), load_masks(known, dfm.feature_spec_.preprocessing)
    assert got.out.decode().splitlines()[5:] == [
        f"pixel AUROC  {pixel_auroc(maps, masks):.4f} (without 4 defective images that have no "
        "mask)",
        f"AUPRO        {aupro(maps, masks):.4f}",
    ]
    got = run("eval", model, category, "--score-type", "nll")
    assert (got.code, got.err) == (0, "")
    assert (
        got.out.decode()
        .splitlines()[5]
        .startswith(
            "pixels       not measured: score_type is 'nll', of which a whole image has no map"
        )
    )


def test_what_a_category_lacks_is_reported(run, model, category, tmp_path):
    assert_error(run("eval", model, tmp_path / "gone"), "there is no folder '.*gone'")
    assert_error(run("eval", model, category / "test"), "has no folder 'test'")
    (category / "test" / "good").rename(category / "good")
    assert_error(run("eval", model, category), "has no normal images in 'good'")


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_an_eval_needs_pictures_that_can_be_read(run, model, category):
    for path in (category / "test" / "good").iterdir():
        path.write_bytes(b"text")
    assert_error(run("eval", model, category), "cannot read image '.*good/0.png'")
    got = run("eval", model, category, "--skip-unreadable")
    assert got.code == 2
    assert "warning: 3 of 8 images were skipped" in got.err
    assert "labels are all anomalous; normal and anomalous samples are needed" in got.err


@pytest.mark.filterwarnings("ignore:alpha is")
def test_a_page_beside_the_text(run, model, category, tmp_path):
    plain = run("eval", model, category)
    got = run("eval", model, category, "--report", tmp_path / "x.html")
    assert (got.code, got.err) == (0, "")
    assert got.out == plain.out + f"page         {tmp_path / 'x.html'}\n".encode()
    assert "<h1>carpet</h1>" in (tmp_path / "x.html").read_text()
    told = run("eval", model, category, "--report", tmp_path / "no" / "x.html")
    assert_error(told, "there is no folder")
