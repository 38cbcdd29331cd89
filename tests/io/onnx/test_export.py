"""Exports give the scores, verdicts and maps of their models, for every kind of model."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pydfm
from pydfm.features.transforms import Preprocessing
from pydfm.io.onnx.graph import Pixels
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


@pytest.mark.parametrize(
    ("resize", "crop"), [((32, 32), None), ((48, 20), None), (40, (32, 32)), (20, (32, 24))]
)
def test_pixels_are_those_of_pillow(resize, crop):
    preprocessing = Preprocessing(resize, crop, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), None)
    module, rng = Pixels(preprocessing), np.random.default_rng(0)
    for height, width in ((32, 32), (31, 64), (100, 97), (320, 320), (16, 19)):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        want = preprocessing.from_pil(Image.fromarray(image))
        got = (255 * module(torch.from_numpy(image)[None])[0]).round().numpy()
        assert np.array_equal(got, want), (height, width)


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


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"calibration": "kfold", "layers": "2"}, "calibration is 'kfold', .* calibrate the model"),
        ({"layers": "2", "image_score": "sum", "density": "gmm", "calibration": None}, "'gmm'"),
    ],
)
def test_what_cannot_be_exported_is_told(images, tmp_path, parameters, says):
    with pytest.raises(ValueError, match=says):
        fit(images, **parameters).to_onnx(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


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
    dfm = fit(images, calibration="kfold", layers="2")
    monkeypatch.setattr("pydfm.estimator.tapped_of", None)  # a call would raise TypeError
    with pytest.raises(ValueError, match="calibration is 'kfold'"):
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
for name in ("torch", "torchvision", "sklearn"):
    sys.modules[name] = None
from pydfm.cli.main import main
sys.exit(main(["score", *sys.argv[1:]]))
"""


def test_an_export_is_scored_without_torch(images, tmp_path):
    dfm = fit(images, **KINDS["calibrated"])
    dfm.to_onnx(tmp_path / "model.onnx")
    command = [sys.executable, "-c", BLOCKED, tmp_path / "model.onnx", Path(images[0]).parent]
    got = subprocess.run(command, capture_output=True, text=True, check=True)
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
