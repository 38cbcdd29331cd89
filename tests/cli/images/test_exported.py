"""The command ``pydfm score`` of an export: what it prints, and what it refuses."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_error, read_rows

import pydfm

onnx = pytest.importorskip("onnx")

OWN = {"weights": None, "layers": "layer1", "pool": 4, "image_size": 32, "alpha": 0.2}


@pytest.fixture(scope="module")
def dfm(picture_folder):
    return pydfm.DFM(3, **OWN).fit(picture_folder)


@pytest.fixture(scope="module")
def exports(dfm, picture_folder, tmp_path_factory):
    """One that decides, and one that does not."""
    folder = tmp_path_factory.mktemp("exports")
    dfm.to_onnx(folder / "own.onnx")
    plain = pydfm.DFM(3, **OWN, calibration=None).fit(picture_folder)
    plain.to_onnx(folder / "plain.onnx")
    dfm.save(folder / "own.pydfm")
    return folder


@pytest.fixture
def torn(pictures, tmp_path):
    """A folder of two images and a torn one."""
    folder = tmp_path / "torn"
    folder.mkdir()
    for i in range(3):
        pictures[i].save(folder / f"{i}.png")
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])
    return folder


def test_scores_have_the_digits_of_the_model(run, dfm, exports, picture_folder):
    scores = [
        score for _, score, *_ in read_rows(run("score", exports / "own.onnx", picture_folder).out)
    ]
    np.testing.assert_allclose(scores, dfm.score(picture_folder), rtol=2e-6)
    text = run("score", exports / "own.onnx", picture_folder).out.decode().splitlines()[1]
    assert len(text.split(",")[1].replace(".", "").lstrip("-0")) > 6


def test_an_image_that_cannot_be_read_is_named(run, exports, torn):
    got = run("score", exports / "own.onnx", torn)
    assert_error(got, r"cannot read image '.*torn/1\.png': ")
    got = run("score", exports / "own.onnx", torn, "--skip-unreadable")
    assert got.out.decode().splitlines()[2].endswith("1.png,nan,nan,unreadable")


def test_images_of_more_than_8_bits_are_refused(run, exports, tmp_path):
    from PIL import Image

    Image.fromarray(np.full((40, 40), 30_000, np.uint16)).save(tmp_path / "deep.png")
    got = run("score", exports / "own.onnx", tmp_path / "deep.png")
    assert_error(got, r"deep\.png': it has more than 8 bits, .* save it with 8 bits")


@pytest.mark.parametrize("given", [("--fail-on", "anomalous"), ("--alpha", "0.1")])
def test_verdicts_of_an_export_without_them_are_refused(run, exports, picture_folder, given):
    got = run("score", exports / "plain.onnx", picture_folder, *given)
    assert_error(got, f"{given[0]} is given, and .* does not decide; leave it out, or export")


@pytest.mark.filterwarnings("default:alpha is 0.001")
def test_a_level_below_all_p_values_is_warned_of(run, exports, picture_folder, tmp_path):
    got = run("score", exports / "own.onnx", picture_folder, "--alpha", "0.001")
    assert (got.code, got.err.count("\n")) == (0, 1)
    assert "alpha is 0.001, and the model has too few held-out images for p-values" in got.err
    assert run("score", exports / "own.onnx", picture_folder, "--alpha", "0.1").err == ""
    # Files of before do not tell it.
    proto = onnx.load(exports / "own.onnx")
    (entry,) = [one for one in proto.metadata_props if one.key == "pydfm"]
    entry.value = json.dumps({"outputs": json.loads(entry.value)["outputs"]})
    onnx.save(proto, tmp_path / "before.onnx")
    got = run("score", tmp_path / "before.onnx", picture_folder, "--alpha", "0.001")
    assert (got.code, got.err) == (0, "")


def graph(path, about):
    """Write the graph of another program, which says `about` of itself."""
    value = onnx.helper.make_tensor_value_info
    names = ("images", "score")
    node = onnx.helper.make_node("Relu", names[:1], names[1:])
    entry, end = (value(name, onnx.TensorProto.FLOAT, [1]) for name in names)
    made = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [entry], [end]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    if about is not None:
        own = made.metadata_props.add()
        own.key, own.value = "pydfm", about
    onnx.save(made, path)


@pytest.mark.parametrize(
    "about", [None, "{", "[]", "3", "{}", '{"outputs": 3}', '{"outputs": ["score", "verdict"]}']
)
def test_graphs_of_others_are_refused(run, picture_folder, tmp_path, about):
    graph(tmp_path / "other.onnx", about)
    got = run("score", tmp_path / "other.onnx", picture_folder)
    assert_error(got, "is a graph of ONNX, but no export of pydfm; give one that `pydfm export`")


def test_wrong_threads_are_told_as_such(run, exports, picture_folder):
    got = run("score", exports / "own.onnx", picture_folder, "--threads", "0")
    assert_error(got, "^pydfm: n_threads is 0; it must be")


def test_info_describes_an_export(run, exports):
    path = exports / "own.onnx"
    got = run("info", path)
    assert got.code == 0, got.err
    lines = dict(line.split(maxsplit=1) for line in got.out.decode().splitlines())
    assert lines["export"] == f"of pydfm {pydfm.__version__}, float32"
    assert lines["outputs"].startswith("score, p_value, verdict")
    model = json.loads(run("info", exports / "own.pydfm", "--json").out)
    found = json.loads(run("info", path, "--json").out)
    assert found["export"]["thresholds"] == model["thresholds"]
    assert found["export"]["thresholds"]
    assert found["sha256"] == model["network"]["sha256"]
    assert eval(found["parameters"]["score_type"]) == model["score_type"]
    assert_error(run("info", path, "--certify"), "is an export, which has no certificates; give")


@pytest.mark.parametrize("key", ["version", "score_type", "smallest_alpha", "thresholds", "alpha"])
def test_info_describes_an_export_that_tells_less(run, exports, tmp_path, key):
    proto, path = onnx.load(exports / "own.onnx"), tmp_path / "less.onnx"
    (entry,) = [one for one in proto.metadata_props if one.key == "pydfm"]
    about = json.loads(entry.value)
    about.pop(key)
    del proto.metadata_props[:]  # and so it has no model and no hash
    proto.metadata_props.add(key="pydfm", value=json.dumps(about))
    onnx.save(proto, path)
    got = run("info", path)
    assert (got.code, got.err) == (0, "")
    assert "outputs     score, p_value, verdict" in got.out.decode()


@pytest.mark.parametrize("command", ["report", "add", "export", "eval"])
def test_other_commands_say_that_it_is_an_export(
    run, exports, picture_folder, category, tmp_path, command
):
    others = {
        "report": (picture_folder, "-o", tmp_path / "page.html"),
        "add": (picture_folder, "-o", tmp_path / "more.pydfm"),
        "export": (tmp_path / "again.onnx",),
        "eval": (category,),
    }
    got = run(command, exports / "own.onnx", *others[command])
    assert_error(got, "is an export, which `pydfm score` and `info` take; give the model file")


def test_a_model_file_may_have_the_ending_of_exports(run, exports, picture_folder, tmp_path):
    shutil.copy(exports / "own.pydfm", tmp_path / "model.onnx")
    want = run("score", exports / "own.pydfm", picture_folder)
    assert run("score", tmp_path / "model.onnx", picture_folder).out == want.out


def test_what_is_not_installed_beside_exports_is_told(run, exports, monkeypatch, picture_folder):
    """As where pydfm was installed without what it depends on."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.delitem(sys.modules, "pydfm.io.model_file", raising=False)
    got = run("info", exports / "own.pydfm")
    assert_error(got, "^pydfm: this needs safetensors, which is not installed; `pip install pydfm`")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    got = run("score", exports / "own.onnx", picture_folder)
    assert_error(got, "which is not installed; install it with `pip install onnxruntime`")
    assert Path(exports / "own.onnx").is_file()
