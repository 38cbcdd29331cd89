"""What `pydfm export` refuses: one sentence each, before anything is written."""

import sys

import numpy as np
import pytest
import torch

import pydfm


@pytest.fixture
def good(tmp_path, pictures):
    folder = tmp_path / "good"
    folder.mkdir()
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    return folder


def refused(done, *words):
    assert (done.code, done.out) == (2, b"")
    assert done.err.startswith("pydfm: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.pt", "name it as *.onnx"),
        ("model", "name it as *.onnx"),
        ("folder.onnx", "is a folder; name a file to write"),
        ("none/model.onnx", "there is no folder"),
    ],
)
def test_where_it_cannot_be_written(run, model, script, tmp_path, name, says):
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    refused(run("export", model, tmp_path / name, "--backbone", script), says)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_model_itself_is_not_replaced(run, model, script, tmp_path):
    own = tmp_path / "model.onnx"
    own.write_bytes(model.read_bytes())
    done = run("export", own, tmp_path / "." / "model.onnx", "--backbone", script)
    refused(done, "is the model itself; name another file to write")
    assert own.read_bytes() == model.read_bytes()


def test_folders_without_images(run, model, script, tmp_path):
    for name, says in (("empty", "holds no images"), ("none", "there is no file or folder")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        given = ("--backbone", script, "--check", tmp_path / name)
        refused(run("export", model, tmp_path / "out.onnx", *given), says)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("package", "option", "name"),
    [("onnx", False, "'pydfm[onnx]'"), ("onnxruntime", True, "onnxruntime")],
)
def test_without_the_packages(
    run, model, script, good, tmp_path, monkeypatch, package, option, name
):
    monkeypatch.setitem(sys.modules, package, None)
    given = ("--check", good) if option else ()
    done = run("export", model, tmp_path / "out.onnx", "--backbone", script, *given)
    refused(done, package, f"pip install {name}`")
    assert not (tmp_path / "out.onnx").exists()


def test_networks_that_the_file_has_not(run, model, tmp_path, good):
    refused(run("export", model, tmp_path / "out.onnx"), "if you trust it, pass it as backbone")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AvgPool2d(8))
    own = {"backbone": network, "layers": "1", "image_size": 40, "device": "cpu"}
    pydfm.DFM(2, **own, runtime="torch", alpha=0.2).fit(good).save(tmp_path / "own.pydfm")
    done = run("export", tmp_path / "own.pydfm", tmp_path / "out.onnx")
    refused(done, "a module of the class Sequential, which is not in the file; pass it")


def test_models_of_features(run, tmp_path):
    features = np.random.default_rng(0).normal(size=(30, 8))
    pydfm.DFM(2).fit(features).save(tmp_path / "features.pydfm")
    done = run("export", tmp_path / "features.pydfm", tmp_path / "out.onnx")
    refused(done, "was fitted on features, not on images")


def test_a_torchscript_file_and_a_mixture_are_exported(run, script, good, tmp_path):
    """What could be refused, and is not; the proof says that it gives the model's answers."""
    own = {"backbone": script, "image_size": 40, "device": "cpu", "alpha": 0.2}
    dfm = pydfm.DFM(2, density="gmm", image_score="sum", calibration=None, **own).fit(good)
    dfm.save(tmp_path / "model.pydfm")
    given = ("--backbone", script, "--check", good)
    done = run("export", tmp_path / "model.pydfm", tmp_path / "out.onnx", *given)
    assert done.code == 0, done.err
    assert "the export gives the model's answers" in done.out.decode()
