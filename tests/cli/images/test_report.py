import re

import numpy as np
import pytest
from command_line import OPTIONS, assert_error, read_rows

import pydfm


def test_a_page_is_written_and_the_answer_said(run, model, script, picture_folder, tmp_path):
    got = run("report", model, picture_folder, "-o", tmp_path / "x.html")
    assert (got.code, got.err) == (0, "")
    count = (pydfm.load(model, backbone=script).predict(picture_folder) == -1).sum()
    said = f"{tmp_path / 'x.html'}: {count} of 12 images are anomalous; open it\n"
    assert got.out.decode() == said
    page = (tmp_path / "x.html").read_text()
    assert f"<h1>{picture_folder.name}</h1>" in page
    assert f"pydfm score {model} {picture_folder} --alpha 0.1<" in page


def test_the_command_in_the_page_gives_the_verdicts_of_the_page(
    run, model, picture_folder, tmp_path
):
    options = ("--alpha", "0.3", "--title", "Line 7", "--link")
    got = run("report", model, picture_folder, "-o", tmp_path / "x.html", *options)
    assert got.code == 0
    page = (tmp_path / "x.html").read_text()
    assert "<h1>Line 7</h1>" in page
    assert page.count('target="_blank"') == 12
    (command,) = re.findall(r'<code id="command">pydfm (.*?)</code>', page)
    lines = run(*command.split()).out.decode().splitlines()
    assert sum(line.endswith(",anomalous") for line in lines) == page.count("▲ anomalous</span>")
    assert len(read_rows("\n".join(lines).encode())) == 12


def test_one_image_is_a_batch(run, model, picture_folder, tmp_path):
    got = run("report", model, picture_folder / "03.png", "-o", tmp_path / "x.html")
    assert (got.code, got.err) == (0, "")
    assert b"of 1 images" in got.out
    assert "Too few images to tell" in (tmp_path / "x.html").read_text()


def test_what_cannot_be_done_is_one_sentence(run, model, script, picture_folder, tmp_path):
    page = ("-o", tmp_path / "x.html")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert_error(run("report", model, empty, *page), "holds no images")
    assert_error(run("report", model, tmp_path / "gone", *page), "there is no file or folder")
    told = run("report", model, picture_folder, "-o", tmp_path / "no" / "x.html")
    assert_error(told, "there is no folder '.*no' to write 'x.html' to")
    none = ("--backbone", script, *OPTIONS, "--calibration", "none")
    assert run("fit", picture_folder, "-o", tmp_path / "m", *none).code == 0
    assert_error(
        run("report", tmp_path / "m", picture_folder, *page),
        "the model was fitted with calibration=None, and has no held-out scores; fit it with",
    )
    features = np.random.default_rng(0).normal(size=(20, 4))
    pydfm.DFM(2).fit(features).save(tmp_path / "f")
    assert_error(run("report", tmp_path / "f", picture_folder, *page), "was fitted on features")
    assert not (tmp_path / "x.html").exists()


@pytest.mark.filterwarnings("ignore:alpha is 0.001", "default:alpha is 0.001")
def test_few_held_out_images_are_said_once(run, model, picture_folder, tmp_path):
    got = run("report", model, picture_folder, "-o", tmp_path / "x.html", "--alpha", "0.001")
    assert got.code == 0
    assert got.err.count("warning: alpha is 0.001") == 1
    assert got.err.count("\n") == 1
    assert (
        'false-alarm rate (alpha) of <span class="alpha">7.7 %</span>'
        in (tmp_path / "x.html").read_text()
    )
