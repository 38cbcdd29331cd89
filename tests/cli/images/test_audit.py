import numpy as np
import pytest
from command_line import OPTIONS, assert_error

import pydfm


@pytest.fixture
def folder(tmp_path):
    """Thirty dull pictures, two that are not, and one that is no picture."""
    from PIL import Image

    root = tmp_path / "good"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(32):
        levels = rng.integers(118, 138, (40, 40, 3), dtype=np.uint8)
        if i >= 30:
            levels[5:25, 5 + 10 * (i - 30) : 20 + 10 * (i - 30)] = (255, 0, 0)
        Image.fromarray(levels).save(root / f"{i:02}.png")
    (root / "33.png").write_bytes(b"text")
    return root


def test_an_audit_before_a_fit(run, script, folder, tmp_path):
    page = tmp_path / "x.html"
    got = run("audit", folder, "--backbone", script, *OPTIONS, "-o", page)
    assert (got.code, got.err) == (0, "")
    text = got.out.decode()
    assert "images      32 read, 1 not" in text
    assert f"{folder}/30.png  score" in text
    assert f"{folder}/31.png  score" in text
    assert text.endswith(f"page        {page}\n")
    assert "<h1>good</h1>" in page.read_text()


@pytest.mark.filterwarnings("default:.*images were skipped", "ignore:alpha is")
def test_an_audit_after_a_fit(run, script, folder, tmp_path):
    fitted = run(
        "fit", folder, "-o", tmp_path / "m", "--backbone", script, *OPTIONS, "--skip-unreadable"
    )
    assert fitted.code == 0
    got = run("audit", tmp_path / "m", "--fdr", "0.01", "-o", tmp_path / "x.html")
    assert (got.code, got.err) == (0, "")
    assert f"{folder}/30.png  score" in got.out.decode()
    assert "at a false discovery rate of 1 %" in got.out.decode()
    assert "Hash of the weights" in (tmp_path / "x.html").read_text()


def test_an_audit_that_cannot_be_made_is_one_sentence(run, script, folder, tmp_path):
    options = ("--backbone", script, *OPTIONS)
    (tmp_path / "empty").mkdir()
    assert_error(run("audit", tmp_path / "empty", *options), "holds no images")
    told = run("audit", folder, *options, "-o", tmp_path / "no" / "x.html")
    assert_error(told, "there is no folder")
    assert_error(run("audit", folder, *options, "--fdr", "2"), "fdr is 2.0; it must be a number")
    (tmp_path / "m").write_bytes(b"text")
    assert_error(run("audit", tmp_path / "m"), "is not a model file of pydfm")


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_fit_clean_lists_what_it_leaves_out(run, script, folder, tmp_path):
    options = ("--backbone", script, *OPTIONS, "--skip-unreadable", "--clean", "--fdr", "1e-6")
    got = run("fit", folder, *options, "--dry-run")
    assert got.code == 0
    assert got.out.decode() == "2 of 32 images would be left out; nothing is written\n"
    listed = [line for line in got.err.splitlines() if "left out:" in line]
    assert listed == [f"pydfm: would be left out: {folder}/{i}.png" for i in (30, 31)]
    got = run("fit", folder, *options, "-o", tmp_path / "m")
    assert got.code == 0
    assert got.err.count("pydfm: left out: ") == 2
    assert b": 30 images, " in got.out
    assert pydfm.load(tmp_path / "m", backbone=script).left_out_ == [
        f"{folder}/30.png",
        f"{folder}/31.png",
    ]


def test_clean_options_that_do_not_fit_are_refused(run, script, folder, tmp_path):
    options = ("--backbone", script, *OPTIONS)
    output = ("-o", tmp_path / "m")
    for extra in (("--dry-run",), ("--fdr", "0.1")):
        told = run("fit", folder, *output, *options, *extra)
        assert_error(told, "--fdr and --dry-run are for --clean; pass it, or leave them out")
    told = run("fit", folder, *options, "--clean")
    assert_error(told, "--output is missing; name the model file to write")
    told = run("fit", folder, *output, *options, "--clean", "--ray", "1")
    assert_error(told, "--clean and --ray are both given")
