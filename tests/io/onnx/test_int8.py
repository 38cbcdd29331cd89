"""Exports whose network computes in integers of 8 bits."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pydfm
from pydfm.features.inputs.images import ImageError
from pydfm.features.transforms import Preprocessing
from pydfm.io.onnx.int8 import N_IMAGES, sample_pixels
from pydfm.io.onnx.proof import prove
from pydfm.io.onnx.session import OnnxModel, read_pixels

onnx = pytest.importorskip("onnx")

SIDE = 32
KINDS = {
    "calibrated": {"layers": ("1", "3")},
    "nll": {"layers": "3", "image_score": "sum", "score_type": "nll"},
    "mean": {"layers": "3", "spatial": "mean"},
    "patch": {"layers": "1", "spatial": "patch"},
    "no calibration": {"layers": "3", "calibration": None},
}
PREPROCESSING = Preprocessing((SIDE, SIDE), None, (0.0,) * 3, (1.0,) * 3, None)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.ReLU6(),
        torch.nn.Conv2d(8, 12, 3, stride=2, padding=1),
        torch.nn.ReLU(),
    ).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Good images, in two folders, alike within each."""
    place, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("a", "b"):
        (place / name).mkdir()
        base = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for i in range(20):
            pixels = np.asarray(base.resize((40, 36 + i % 3), Image.Resampling.BICUBIC))
            pixels = (pixels + rng.integers(-40, 40, pixels.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / name / f"{i:02}.png")
    return place


def fit(images, labels=None, backbone=None, **parameters):
    given = {"image_size": SIDE, "device": "cpu", "alpha": 0.2, "runtime": "torch", **parameters}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few images
        dfm = pydfm.DFM(5, backbone=backbone or network(), **given)
        return dfm.fit(images, labels=labels)


def paths(folder):
    return [str(path) for path in sorted(Path(folder).rglob("*.png"))]


def operations(path):
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    return {node.name: node.op_type for node in proto.graph.node}


@pytest.mark.filterwarnings("ignore:score_type is 'nll':UserWarning")  # of few images
@pytest.mark.parametrize("labels", [None, "folders"], ids=["one", "classes"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_the_model_fitted_to_features_in_int8(kind, labels, folder, tmp_path):
    dfm = fit(folder, labels, **KINDS[kind])
    held = dfm.to_onnx(tmp_path / "int8.onnx", int8=folder, labels=labels)
    proof = prove(held, tmp_path / "int8.onnx", paths(folder))
    assert proof.holds
    assert proof.difference < 1e-4
    # The model itself is another, and is as it was.
    own = dfm.score(folder)
    assert 0 < np.abs(own - held.score(folder)).max() < 0.5 * np.abs(own).max()
    assert np.corrcoef(own, held.score(folder))[0, 1] > 0.9
    assert held.n_samples_ == dfm.n_samples_ == 40
    if held.calibration_ is not None:
        p = held.held_out_p_values_
        assert (p <= 0.2).mean() <= 0.25  # exact, of each among all others
        assert not np.array_equal(held.held_out_scores_, dfm.held_out_scores_)
        image = read_pixels(paths(folder)[3])[None]
        found = OnnxModel(tmp_path / "int8.onnx").run(image, 0.7)
        assert found["verdict"] == held.predict(paths(folder)[3:4], alpha=0.7)


def test_only_the_network_is_in_int8_and_the_file_says_so(folder, tmp_path):
    dfm = fit(folder, **KINDS["calibrated"])
    dfm.to_onnx(tmp_path / "float32.onnx")
    dfm.to_onnx(tmp_path / "int8.onnx", int8=folder)
    before, after = operations(tmp_path / "float32.onnx"), operations(tmp_path / "int8.onnx")
    # All that was there, but the limits of activations, which scales hold too; the rest is new.
    assert set(before) - set(after) <= {n for n in before if "/network/" in n}
    added = {kind for name, kind in after.items() if name not in before}
    assert added == {"QuantizeLinear", "DequantizeLinear"}
    weights = [one.data_type for one in onnx.load(tmp_path / "int8.onnx").graph.initializer]
    assert onnx.TensorProto.INT8 in weights
    each = [
        json.loads(OnnxModel(tmp_path / f"{name}.onnx").metadata["pydfm"])
        for name in ("float32", "int8")
    ]
    assert [own["precision"] for own in each] == ["float32", "int8"]
    assert "network" not in each[0]
    assert 0 < each[1]["network"]["error"] < 0.2
    assert each[1]["network"]["bytes"] > 0


def test_weights_have_seven_bits(folder, tmp_path):
    """Of 8, x86-64 without VNNI adds up products that overflow."""
    fit(folder, **KINDS["nll"]).to_onnx(tmp_path / "int8.onnx", int8=folder)
    tensors = [
        onnx.numpy_helper.to_array(one)
        for one in onnx.load(tmp_path / "int8.onnx").graph.initializer
        if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4
    ]
    assert len(tensors) == 2
    assert all(np.abs(own.astype(int)).max() <= 64 for own in tensors)


def test_weights_that_are_equal_are_quantised_each(folder, tmp_path):
    """The exporter keeps one of several equal tensors, such as biases of zeros."""
    convolutions = [torch.nn.Conv2d(n, 8, 3, stride=2, padding=1) for n in (3, 8, 8)]
    for own in convolutions:
        torch.nn.init.zeros_(own.bias)
    backbone = torch.nn.Sequential(*convolutions).eval()
    dfm = fit(folder, backbone=backbone, layers=("0", "2"))
    dfm.to_onnx(tmp_path / "float32.onnx")
    assert "Identity" in operations(tmp_path / "float32.onnx").values()
    held = dfm.to_onnx(tmp_path / "int8.onnx", int8=folder)
    assert "DequantizeLinear" in operations(tmp_path / "int8.onnx").values()
    assert prove(held, tmp_path / "int8.onnx", paths(folder)).holds
    assert np.corrcoef(dfm.score(folder), held.score(folder))[0, 1] > 0.9


def test_groups_are_held_out_together(folder, tmp_path):
    dfm = fit(folder, **KINDS["nll"])
    held = dfm.to_onnx(tmp_path / "int8.onnx", int8=folder, groups=lambda path: path[-6:-4])
    assert held.smallest_alpha_ == pytest.approx(1 / 21)


def test_images_of_any_form_that_can_be_read_twice(folder, tmp_path):
    dfm, own = fit(folder, **KINDS["nll"]), paths(folder)
    pictures = [Image.open(path).convert("RGB") for path in own]
    scores = [
        dfm.to_onnx(tmp_path / "int8.onnx", int8=X).score(folder) for X in (folder, own, pictures)
    ]
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])
    with pytest.raises(ValueError, match="int8 is an iterable, which can be read once"):
        dfm.to_onnx(tmp_path / "int8.onnx", int8=iter(own))
    with pytest.raises(ValueError, match="int8 holds features, and a network is quantised by"):
        dfm.to_onnx(tmp_path / "int8.onnx", int8=np.zeros((4, 8)))


def test_ranges_come_from_images_evenly_spread():
    images = np.zeros((100, 3, SIDE, SIDE), dtype=np.uint8)
    images += np.arange(100, dtype=np.uint8)[:, None, None, None]
    found = (255 * sample_pixels(images, PREPROCESSING, "raise", None, 1)[:, 0, 0, 0]).round()
    assert len(found) == N_IMAGES
    assert (found[0], found[-1]) == (0, 99)
    assert set(np.diff(found)) == {3, 4}
    assert len(sample_pixels(images[:5], PREPROCESSING, "raise", None, 1)) == 5


def test_images_that_cannot_be_read_are_skipped_where_asked(folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    given, path = [*paths(folder), str(tmp_path / "broken.png")], tmp_path / "int8.onnx"
    dfm = fit(folder, **KINDS["nll"])
    with pytest.raises(ImageError, match="broken"):
        dfm.to_onnx(path, int8=given)
    dfm.set_params(on_error="skip")
    with pytest.warns(UserWarning, match="1 of 41 images were skipped"):
        assert dfm.to_onnx(path, int8=given).n_samples_ == 40
    with pytest.raises(ValueError, match=r"^int8 holds no image that can be read; .*broken"):
        dfm.to_onnx(path, int8=given[-1:])


def test_onnxruntime_gives_no_advice(folder, tmp_path, caplog):
    fit(folder, **KINDS["nll"]).to_onnx(tmp_path / "int8.onnx", int8=folder)
    assert caplog.records == []


def test_what_cannot_be_is_told(folder, tmp_path):
    path = tmp_path / "int8.onnx"
    with pytest.raises(ValueError, match=r"^labels and groups are those of int8, which is None"):
        fit(folder, **KINDS["nll"]).to_onnx(path, labels="folders")
    with pytest.raises(ValueError, match=r"^labels is None, but the model has classes"):
        fit(folder, "folders", **KINDS["nll"]).to_onnx(path, int8=folder)
    with pytest.raises(ValueError, match=r"^labels is given, but the model has no classes, and"):
        fit(folder, **KINDS["nll"]).to_onnx(path, int8=folder, labels="folders")
    for one in (folder / "a" / "00.png", [paths(folder)[0]]):
        with pytest.raises(
            ValueError, match=r"^int8 holds one image, and a fit needs at least two"
        ):
            fit(folder, **KINDS["nll"]).to_onnx(path, int8=one)
    plain = torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Identity()).eval()
    with pytest.raises(ValueError, match="has no operations that onnxruntime can quantise; export"):
        fit(folder, backbone=plain).to_onnx(path, int8=folder)
    assert not path.exists()


def test_fewer_images_than_the_fit_are_warned_of(folder, tmp_path):
    dfm = fit(folder, **KINDS["nll"])
    with pytest.warns(UserWarning, match="fitted to 40 images, and int8 has 20: the exported one"):
        dfm.to_onnx(tmp_path / "int8.onnx", int8=folder / "a")


def test_what_the_export_does_not_take_over_is_warned_of(folder, tmp_path):
    dfm = fit(folder, **KINDS["nll"])
    dfm.recalibrate(np.random.default_rng(5).integers(0, 256, (12, 3, 40, 40), dtype=np.uint8))
    with pytest.warns(UserWarning, match="the model was recalibrated, and the held-out scores of"):
        dfm.to_onnx(tmp_path / "int8.onnx", int8=folder)
    dfm._fitted = replace(dfm.fitted_, calibration="loo", left_out=("odd.png",))
    with pytest.warns(UserWarning, match=r"the fit left out 1 images, such as 'odd.png', and the"):
        dfm.to_onnx(tmp_path / "int8.onnx", int8=folder)


def test_features_that_suffer_are_warned_of(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("pydfm.io.onnx.int8.LARGEST", 1e-6)
    with pytest.warns(UserWarning, match="features of the network in int8 differ by .* compare it"):
        fit(folder, **KINDS["nll"]).to_onnx(tmp_path / "int8.onnx", int8=folder)


def test_the_fitted_model_scores_in_int8_or_not_at_all(folder, tmp_path):
    held = fit(folder, **KINDS["nll"]).to_onnx(tmp_path / "int8.onnx", int8=folder)
    with pytest.raises(ValueError, match=r"is that of an export in int8, .* save the model that"):
        held.save(tmp_path / "model.pydfm")
    with pytest.raises(ValueError, match="precision is 'int8'"):
        held.set_params(runtime="torch").score(folder)
