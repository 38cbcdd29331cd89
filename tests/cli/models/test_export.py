"""The command ``pydfm export``: exit codes, and what it prints of proofs and of int8."""

import re

import pytest
from command_line import assert_error

import pydfm
from pydfm.io.onnx.session import OnnxModel

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def own(picture_folder, tmp_path_factory):
    """A model of a small network with a name, whose weights are random."""
    path = tmp_path_factory.mktemp("own") / "own.pydfm"
    dfm = pydfm.DFM(3, weights=None, layers="layer1", pool=4, image_size=32, alpha=0.2)
    dfm.fit(picture_folder).save(path)
    return path


def lines(got):
    return [line.partition(" ")[::2] for line in got.out.decode().splitlines()]


def test_an_export_with_its_proof(run, own, picture_folder, tmp_path):
    got = run("export", own, tmp_path / "own.onnx", "--check", picture_folder)
    assert (got.code, got.err) == (0, "")
    heads = [head for head, _ in lines(got)[1:]]
    assert heads == ["images", "scores", "verdicts", "anomalous", "maps", "proof"]
    assert got.out.endswith(b"the export gives the model's answers\n")


def test_an_export_in_int8_is_proven_and_held_beside_its_model(run, own, picture_folder, tmp_path):
    path = tmp_path / "int8.onnx"
    got = run("export", own, path, "--int8", picture_folder, "--check", picture_folder)
    assert (got.code, got.err) == (0, "")
    found = lines(got)
    figures = ["scores", "verdicts", "anomalous", "maps"]
    begin = [str(path) + ":", "network", "features", "fitted", "images"]
    assert [head for head, _ in found if head] == [*begin, *figures, "proof", "beside", *figures]
    said = {head: text.strip() for head, text in found[:5]}
    sizes = re.fullmatch(r"([\d.]+) MB in int8, ([\d.]+) MB in float32", said["network"])
    assert 2.4 < float(sizes[2]) / float(sizes[1]) < 5
    assert re.fullmatch(r"again to \d+ images; alpha 0.2: anomalous above .*", said["fitted"])
    assert b"the export gives the model's answers\nbeside " in got.out


def test_the_proof_and_what_is_beside_it_score_the_images_once(
    run, own, picture_folder, tmp_path, monkeypatch
):
    given = ("export", own, tmp_path / "int8.onnx", "--int8", picture_folder)
    n_images, inner, called = len(list(picture_folder.iterdir())), OnnxModel.run, []

    def run_and_count(self, *arguments):
        called.append(arguments)
        return inner(self, *arguments)

    monkeypatch.setattr(OnnxModel, "run", run_and_count)
    assert run(*given, "--check", picture_folder).code == 0
    assert len(called) == n_images


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_images_of_the_proof_that_cannot_be_read(run, own, pictures, tmp_path):
    folder = tmp_path / "torn"
    folder.mkdir()
    for i in range(2):
        pictures[i].save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no image")
    given = ("export", own, tmp_path / "own.onnx", "--check", folder)
    got = run(*given)
    assert got.code == 2
    assert re.fullmatch(r"pydfm: cannot read image '.*2\.png': it is not an image\n", got.err)
    got = run(*given, "--skip-unreadable")
    assert got.code == 0
    assert got.err.startswith("pydfm: warning: 1 of 3 images were skipped; the first: cannot read")
    assert lines(got)[1] == ("images", "     2")
    for i in range(2):
        (folder / f"{i}.png").write_bytes(b"no image")
    got = run(*given, "--skip-unreadable")
    assert got.code == 2
    assert "none of the 3 images can be read; the first: cannot read image" in got.err


def test_a_proof_without_verdicts_speaks_of_none(run, picture_folder, tmp_path):
    dfm = pydfm.DFM(3, weights=None, layers="layer1", pool=4, image_size=32, calibration=None)
    dfm.fit(picture_folder).save(tmp_path / "plain.pydfm")
    given = ("export", tmp_path / "plain.pydfm", tmp_path / "plain.onnx")
    got = run(*given, "--check", picture_folder)
    assert [head for head, _ in lines(got)[1:]] == ["images", "scores", "proof"]
    assert b" of the mean score (" in got.out
    assert_error(run(*given, "--alpha", "0.1"), "--alpha is given, and .* does not decide; leave")


def test_options_of_int8_need_it(run, own, tmp_path):
    got = run("export", own, tmp_path / "own.onnx", "--classes")
    assert_error(got, "--classes and --groups are of --int8, which is not given; leave them out")
    got = run("export", own, tmp_path / "own.onnx", "--int8", tmp_path / "none")
    assert_error(got, "none'")
    assert list(tmp_path.iterdir()) == []
