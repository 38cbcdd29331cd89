"""Exports give the scores, verdicts and maps of their models, for every kind of model."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fits import scripted
from PIL import Image

import pydfm
from pydfm.io.onnx.proof import prove
from pydfm.io.onnx.session import OnnxModel, read_pixels
from pydfm.stats.scores import SCORES, Score

onnx = pytest.importorskip("onnx")

ROOT = Path(__file__).parents[3]
MIXTURE = {"density": "gmm", "calibration": "split", "layers": "2", "image_score": "sum"}
RELATIVE = {"score_type": "relative_mahalanobis", "layers": "2", "image_score": "sum"}
KINDS = {
    "calibrated": {"layers": ("0", "2")},
    "fre": {"image_score": "sum", "layers": "0"},
    "mahalanobis": {"image_score": "sum", "score_type": "mahalanobis", "layers": "2"},
    "nll": {"image_score": "sum", "score_type": "nll", "layers": "2"},
    "ppca": {"image_score": "sum", "score_type": "ppca", "layers": "2"},
    "mean": {"spatial": "mean", "layers": "2"},
    "patch": {"spatial": "patch", "layers": "2", "score_type": "nll"},
    "patch, calibrated": {"spatial": "patch", "layers": "0", "image_score": "calibrated"},
    "layers, sum": {"layers": ("0", "2"), "image_score": "sum"},
    "layers, max": {"layers": ("0", "2"), "combine": "max"},
    "no calibration": {"calibration": None, "layers": "2"},
    "split": {"calibration": "split", "layers": "0"},
    "folds": {"calibration": "kfold", "layers": "2", "image_score": "sum", "score_type": "ppca"},
    "folds, patch": {"calibration": "kfold", "layers": "2", "spatial": "patch"},
    "folds, calibrated": {"calibration": "kfold", "layers": ("0", "2")},
    "mixture, nll": {**MIXTURE, "score_type": "nll"},
    "mixture, ppca": {**MIXTURE, "score_type": "ppca"},
    "mixture, mahalanobis": {**MIXTURE, "score_type": "mahalanobis"},
    "mixture, patch": {**MIXTURE, "spatial": "patch", "score_type": "nll"},
    "mixture, fre": MIXTURE,
    "shrinkage": {"regularization": "shrinkage", "layers": "2", "score_type": "nll"},
}
OF_CLASSES = {
    "relative": RELATIVE,
    "relative, layers": {**RELATIVE, "layers": ("0", "2")},
    "relative, patch": {**RELATIVE, "spatial": "patch"},
    "relative, tied": {**RELATIVE, "covariance": "tied"},
    "relative, folds": {**RELATIVE, "calibration": "kfold"},
    "tied": {"covariance": "tied", "layers": ("0", "2")},
}
STRAY = torch.zeros((1, 3, 32, 32))
LABELS = [str(i % 2) for i in range(10)]
CASES = [
    *(
        (kind, parameters, labels)
        for kind, parameters in KINDS.items()
        for labels in (None, LABELS)
    ),
    *((kind, own, LABELS) for kind, own in OF_CLASSES.items()),
    ("a class of one image", {"layers": "2", "image_score": "sum"}, [*LABELS[:9], "2"]),
]


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 8, 3, stride=2, padding=1),
    ).eval()


def fit(images, labels=None, **parameters):
    given = {"image_size": 32, "device": "cpu", "alpha": 0.2, "runtime": "torch", **parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few images
        return pydfm.DFM(3, backbone=network(), **given).fit(images[:10], labels=labels)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("parameters", "labels"),
    [case[1:] for case in CASES],
    ids=[f"{kind}, {'classes' if labels else 'one'}" for kind, _, labels in CASES],
)
def test_an_export_gives_the_answers_of_its_model(parameters, labels, images, tmp_path):
    dfm = fit(images, labels, **parameters)
    dfm.to_onnx(tmp_path / "model.onnx")
    proof = prove(dfm, tmp_path / "model.onnx", images)
    assert proof.holds
    assert proof.difference < 1e-4
    assert proof.changed == ()
    assert (proof.map_share is None) or proof.map_share < 1e-3
    model = OnnxModel(tmp_path / "model.onnx")
    if "p_value" in model.outputs:
        fresh = images[10:]  # a held-out image has its own score, but for rounding
        for alpha in (0.2, 0.6):
            runs = [model.run(read_pixels(image)[None], alpha) for image in fresh]
            p = np.concatenate([run["p_value"] for run in runs])
            np.testing.assert_allclose(p, dfm.p_value(fresh), rtol=1e-9)
            verdicts = np.concatenate([run["verdict"] for run in runs])
            assert np.array_equal(verdicts, dfm.predict(fresh, alpha=alpha))
    if "map" in model.outputs:
        maps = np.concatenate([model.run(read_pixels(image)[None])["map"] for image in images])
        np.testing.assert_allclose(maps, dfm.score_map(images), rtol=1e-3, atol=1e-4)


def test_batches_are_their_images(images, tmp_path):
    dfm = fit(images, **KINDS["calibrated"])
    dfm.to_onnx(tmp_path / "model.onnx")
    model = OnnxModel(tmp_path / "model.onnx", 1)
    rng = np.random.default_rng(1)
    batch = rng.integers(0, 256, (8, 41, 57, 3), dtype=np.uint8)
    together = model.run(batch)
    for i, image in enumerate(batch):
        np.testing.assert_allclose(model.run(image[None])["score"][0], together["score"][i], 1e-4)
    module = dfm.to_torch()
    with torch.no_grad():
        scores = module(torch.from_numpy(batch), torch.tensor(0.2, dtype=torch.float64))[0]
    np.testing.assert_allclose(scores.numpy(), together["score"], rtol=1e-4)


def test_a_file_says_what_it_holds(images, tmp_path):
    dfm = fit(images, **KINDS["fre"])
    dfm.to_onnx(tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert (proto.producer_name, proto.producer_version) == ("pydfm", pydfm.__version__)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["pydfm"])["outputs"] == ["score", "p_value", "verdict", "map"]
    assert about["sha256"] == dfm.feature_spec_.sha256
    assert json.loads(about["parameters"])["alpha"] == "0.2"


def test_a_proof_tells_of_another_model(images, tmp_path):
    fit(images, **KINDS["fre"]).to_onnx(tmp_path / "model.onnx")
    other = fit(images[4:], **KINDS["fre"])
    proof = prove(other, tmp_path / "model.onnx", images)
    assert not proof.holds
    assert "the export is not equal" in proof.lines()[-1]


def test_what_a_graph_cannot_compute_is_refused(images, tmp_path):
    dfm = fit(images, layers="2", precision="bfloat16")
    with pytest.raises(ValueError, match=r"precision is 'bfloat16', .*; fit with precision"):
        dfm.to_onnx(tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"to write is '.*model.pt', .* name it as \*\.onnx"):
        dfm.to_onnx(tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_a_graph_is_refused(images, tmp_path, monkeypatch):
    dfm = fit(images, layers="2", calibration="kfold")
    monkeypatch.setattr("pydfm.io.onnx.export._MOST_BYTES", 30_000)
    with pytest.raises(ValueError, match=r"would take 0.0 GB, .* fit with a smaller n_components"):
        dfm.to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_maps_of_files_of_before_are_left_out_with_a_warning(images, tmp_path):
    """They add up layers' maps in another way."""
    dfm = fit(images, layers=("0", "2"), image_score="sum")
    layers = tuple(replace(layer, map_scales={}) for layer in dfm.model_.layers)
    dfm._fitted = replace(dfm.fitted_, model=replace(dfm.model_, layers=layers))
    with pytest.warns(UserWarning, match="the export has scores and no maps; fit again"):
        dfm.to_onnx(tmp_path / "model.onnx")
    assert OnnxModel(tmp_path / "model.onnx").outputs == ("score", "p_value", "verdict")
    assert prove(dfm, tmp_path / "model.onnx", images).holds


def test_a_network_that_looks_at_values_is_refused(images, tmp_path):
    """A graph would hold one of its ways."""

    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, pixels):
            found = self.inner(pixels)
            return 2 * found if float(found.mean()) > 1 else found

    given = {"image_size": 32, "device": "cpu", "runtime": "torch", "calibration": None}
    with pytest.warns(UserWarning, match="could not be traced"):
        dfm = pydfm.DFM(3, backbone=Bright(), layers="output", **given).fit(images)
    with pytest.raises(
        ValueError, match=r"cannot be exported to ONNX .*; fit with another backbone"
    ):
        dfm.to_onnx(tmp_path / "model.onnx")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of few images
def test_openvino_gives_their_scores(images, tmp_path):
    openvino = pytest.importorskip("openvino")
    batch = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    dfm = pydfm.DFM(
        3, backbone=network(), image_size=32, spatial="mean", device="cpu", alpha=0.2
    ).fit(images[:10])
    dfm.to_onnx(tmp_path / "model.onnx")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.compile_model(tmp_path / "model.onnx", "CPU", settings)
    for n in (6, 1, 4):
        got = np.array(compiled({"images": batch[:n]})["score"])
        want = dfm.score(batch[:n].transpose(0, 3, 1, 2))
        np.testing.assert_allclose(got, want, atol=0.05 * dfm.held_out_scores_.std())


def test_openvino_takes_a_class_of_one_image(images, tmp_path):
    """It has no constants without elements, such as the axes of such a class."""
    openvino = pytest.importorskip("openvino")
    dfm = fit(images, [*LABELS[:9], "2"], spatial="mean", layers="2", image_score="sum")
    dfm.to_onnx(tmp_path / "model.onnx")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.compile_model(tmp_path / "model.onnx", "CPU", settings)
    batch = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    want = dfm.score(batch.transpose(0, 3, 1, 2))
    got = np.array(compiled({"images": batch})["score"])
    np.testing.assert_allclose(got, want, atol=0.05 * dfm.held_out_scores_.std())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of TorchScript
@pytest.mark.filterwarnings("ignore::UserWarning")  # of few images
@pytest.mark.parametrize("kind", ["scripted", "traced"])
def test_torchscript_files_are_exported(images, tmp_path, kind):
    module = scripted(network()) if kind == "scripted" else torch.jit.trace(network(), STRAY)
    module.save(tmp_path / "network.pt")
    given = {"image_size": 32, "device": "cpu", "runtime": "torch", "alpha": 0.2}
    dfm = pydfm.DFM(3, backbone=tmp_path / "network.pt", **given).fit(images[:10])
    dfm.to_onnx(tmp_path / "model.onnx")
    assert prove(dfm, tmp_path / "model.onnx", images).holds
    batch = np.zeros((5, 40, 90, 3), dtype=np.uint8)
    assert OnnxModel(tmp_path / "model.onnx").run(batch)["score"].shape == (5,)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of few images
@pytest.mark.parametrize("combine", ["max", "logistic"])
def test_layers_are_combined_by_every_rule(images, tmp_path, combine):
    given = {"image_size": 32, "device": "cpu", "alpha": 0.2, "runtime": "torch"}
    own = {"layers": ("0", "2"), "image_score": "sum", "combine": combine}
    outliers = images[10:] if combine == "logistic" else None
    dfm = pydfm.DFM(3, backbone=network(), **own, **given).fit(images[:10], outliers=outliers)
    dfm.to_onnx(tmp_path / "model.onnx")
    assert prove(dfm, tmp_path / "model.onnx", images).holds


def test_a_score_of_ones_own_is_refused(images, tmp_path, monkeypatch):
    """The graph has the formulas of the core's scores alone."""
    own = Score("distance", "the square root of fre", ("fre",), np.sqrt, needs_variance=False)
    monkeypatch.setitem(SCORES, "distance", own)
    dfm = fit(images, layers="2", image_score="sum", score_type="distance")
    with pytest.raises(ValueError, match="score_type is 'distance', which cannot be exported"):
        dfm.to_onnx(tmp_path / "model.onnx")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of few images
def test_the_first_of_several_score_types_is_exported(images, tmp_path):
    dfm = fit(images, layers="2", image_score="sum", score_type=("nll", "fre"))
    dfm.to_onnx(tmp_path / "model.onnx")
    assert prove(dfm, tmp_path / "model.onnx", images).holds


def test_what_cannot_be_exported_is_told_before_the_network_is_loaded(
    images, tmp_path, monkeypatch
):
    dfm = fit(images, layers="2", precision="bfloat16")
    monkeypatch.setattr("pydfm.estimator.tapped_of", None)  # a call would raise TypeError
    with pytest.raises(ValueError, match="precision is 'bfloat16'"):
        dfm.to_torch()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        dfm.to_onnx(tmp_path / "none" / "model.onnx")


def test_features_have_no_pixels(tmp_path):
    dfm = pydfm.DFM(2).fit(np.random.default_rng(0).normal(size=(30, 8)))
    with pytest.raises(ValueError, match="fitted on features"):
        dfm.to_onnx(tmp_path / "model.onnx")


def test_other_files_are_refused(tmp_path, images):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ValueError, match=r"is no graph of ONNX"):
        OnnxModel(tmp_path / "text.onnx")


BLOCKED = """
import sys
for name in ("torch", "torchvision", "sklearn", "scipy", "safetensors", "tqdm", "threadpoolctl"):
    sys.modules[name] = None
from pydfm.cli.main import main
sys.exit(main(["score", *sys.argv[1:]]))
"""


def test_an_export_is_scored_without_torch(images, tmp_path):
    dfm = fit(images, **KINDS["calibrated"])
    dfm.to_onnx(tmp_path / "model.onnx")
    command = [sys.executable, "-c", BLOCKED, tmp_path / "model.onnx", Path(images[0]).parent]
    # Not in the folder of the sources, where Python would find the package without its core.
    got = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert got.returncode == 0, got.stderr
    rows = [line.split(",") for line in got.stdout.splitlines()]
    assert rows[0] == ["path", "score", "p_value", "verdict"]
    assert [row[0] for row in rows[1:]] == images
    np.testing.assert_allclose([float(row[1]) for row in rows[1:]], dfm.score(images), rtol=1e-3)
    words = {1: "ok", -1: "anomalous"}
    assert [row[3] for row in rows[1:]] == [words[int(v)] for v in dfm.predict(images)]
    script = ROOT / "examples" / "onnx_score.py"
    plain = [sys.executable, script, tmp_path / "model.onnx", images[3]]
    got = subprocess.run(plain, capture_output=True, text=True, check=True)
    assert got.stdout.startswith(f"{images[3]} score={dfm.score(images[3])[0]:.4g}"[:-2])
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((40, 40), 30_000, np.uint16)).save(deep)
    got = subprocess.run([*plain[:-1], deep], capture_output=True, text=True, check=False)
    assert (got.returncode, got.stdout) == (1, "")
    assert got.stderr == f"'{deep}' has more than 8 bits, and an export takes 8\n"
