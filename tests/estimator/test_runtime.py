"""The parameter `runtime`: what a network runs in."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from fits import scripted
from torch import nn

import pydfm
from pydfm.features import extractor as module
from pydfm.features.extractor import Extractor
from pydfm.features.onnx.export import ExportError

OPTIONS = {"weights": None, "image_size": 64, "alpha": 0.2, "device": "cpu"}


@pytest.fixture(scope="module")
def both(textures):
    """Models of one network in torch and in onnxruntime."""
    return {
        runtime: pydfm.DFM(runtime=runtime, **OPTIONS).fit(textures[:8])
        for runtime in ("torch", "onnx")
    }


class Brightness(nn.Module):
    """Takes another way for dark images than for bright ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images):
        return self.stem(images) if images.mean() > -9 else self.stem(-images)


# The choice


def test_auto_takes_onnxruntime_for_a_network_with_a_name(textures, both):
    dfm = pydfm.DFM(**OPTIONS).fit(textures[:8])
    assert dfm.runtime == "auto"
    assert dfm.feature_spec_.runtime == "onnx"
    assert np.array_equal(dfm.score(textures), both["onnx"].score(textures))
    assert both["torch"].feature_spec_.runtime == "torch"


def test_auto_leaves_your_own_module_to_torch(textures, tiny_network):
    own = {**OPTIONS, "backbone": tiny_network, "layers": "block"}
    dfm = pydfm.DFM(**own).fit(textures)
    assert dfm.feature_spec_.runtime == "torch"
    asked = pydfm.DFM(**own, runtime="onnx").fit(textures)
    assert asked.feature_spec_.runtime == "onnx"
    np.testing.assert_allclose(asked.extract(textures), dfm.extract(textures), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_file_runs_in_it_where_that_is_asked_for(textures, tiny_network, tmp_path):
    scripted(tiny_network.eval()).save(tmp_path / "network.pt")
    own = {**OPTIONS, "backbone": tmp_path / "network.pt"}
    dfm = pydfm.DFM(**own).fit(textures)
    assert dfm.feature_spec_.runtime == "torch"
    asked = pydfm.DFM(**own, runtime="onnx").fit(textures)
    assert asked.feature_spec_.runtime == "onnx"
    np.testing.assert_allclose(asked.extract(textures), dfm.extract(textures), atol=1e-5)


def test_without_the_package_auto_is_torch(textures, monkeypatch, both):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    dfm = pydfm.DFM(**OPTIONS).fit(textures[:8])
    assert dfm.feature_spec_.runtime == "torch"
    assert np.array_equal(dfm.score(textures), both["torch"].score(textures))
    with pytest.raises(ImportError, match=r"runtime is 'onnx', which needs .*pydfm\[onnx\]"):
        pydfm.DFM(runtime="onnx", **OPTIONS).fit(textures)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"device": "cuda"}, "^runtime is 'onnx', which runs on CPUs, and device is 'cuda'; pass"),
        ({"precision": "bfloat16"}, "^runtime is 'onnx', which computes in float32, and precision"),
        (
            {"backbone": Brightness(), "layers": "stem"},
            r"^runtime is 'onnx', and .* cannot be exported to ONNX \(Converting a tensor",
        ),
    ],
)
def test_what_it_cannot_run_is_one_sentence(textures, parameters, says):
    with pytest.raises(ValueError, match=says) as caught:
        pydfm.DFM(**{**OPTIONS, **parameters}, runtime="onnx").fit(textures)
    assert "\n" not in str(caught.value)


def test_what_auto_cannot_export_runs_in_torch_with_a_warning(textures, monkeypatch, both):
    def fails(tapped):
        raise ExportError("an operation is missing")

    monkeypatch.setattr("pydfm.features.onnx.export.export", fails)
    monkeypatch.setattr(module, "read_graph", lambda key: None)
    with pytest.warns(UserWarning, match=r"resnet18 could not be exported to ONNX \(an operation"):
        dfm = pydfm.DFM(**OPTIONS).fit(textures[:8])
    assert dfm.feature_spec_.runtime == "torch"
    # It is not tried again with each call.
    assert np.array_equal(dfm.score(textures), both["torch"].score(textures))


# The same results


def test_scores_of_one_are_those_of_the_other(textures, both):
    kinds = ("fre", "mahalanobis", "nll", "ppca")
    for spatial in ("flatten", "mean", "patch"):
        options = {**OPTIONS, "spatial": spatial, "n_components": 3, "score_type": kinds}
        fits = [
            pydfm.DFM(
                **options, image_score="sum" if spatial != "patch" else "top", runtime=own
            ).fit(textures[:8])
            for own in ("torch", "onnx")
        ]
        scores = [dfm.score(textures) for dfm in fits]
        scale = np.abs(scores[0]).max(axis=-1, keepdims=True)
        assert (np.abs(scores[1] - scores[0]) <= 1e-4 * scale).all()


def test_calibrated_scores_maps_and_decisions_agree(textures, both):
    torchs, onnxs = both["torch"], both["onnx"]
    for one in (torchs, onnxs):  # a model of either, scored in either
        scores, maps, verdicts = [], [], []
        for runtime in ("torch", "onnx"):
            other = pydfm.DFM(**OPTIONS, runtime=runtime).with_state(fitted=one.fitted_)
            scores.append(other.score(textures))
            maps.append(other.score_map(textures[8:]))
            verdicts.append(other.predict(textures))
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(maps[1], maps[0], rtol=1e-4, atol=1e-4 * np.abs(maps[0]).max())
        assert np.array_equal(*verdicts)


def test_models_of_both_can_be_merged(textures):
    halves = [
        pydfm.DFM(**OPTIONS, runtime=runtime).fit(own)
        for runtime, own in (("torch", textures[:6]), ("onnx", textures[6:]))
    ]
    merged = halves[0].merge(halves[1])
    whole = pydfm.DFM(**OPTIONS).fit(textures)
    np.testing.assert_allclose(merged.score(textures), whole.score(textures), rtol=1e-3, atol=1e-3)


def test_a_checkpoint_of_one_is_continued_by_the_other(picture_folder, tmp_path):
    for runtime in ("torch", "onnx"):
        dfm = pydfm.DFM(**OPTIONS, runtime=runtime, batch_size=5)
        dfm.fit(picture_folder, checkpoint=tmp_path / "c")
        assert dfm.n_samples_ == 12
    assert dfm.feature_spec_.runtime == "onnx"


# Changes after the fit, files, copies


def test_it_counts_at_once(textures, both, monkeypatch):
    dfm = pydfm.DFM(**OPTIONS, runtime="torch").fit(textures)
    want = both["onnx"].extract(textures)
    built = []
    rebuild = Extractor.rebuild
    monkeypatch.setattr(Extractor, "rebuild", lambda *a, **k: built.append(k) or rebuild(*a, **k))
    for runtime, n_threads, n_built in (
        ("onnx", None, 1),
        ("onnx", None, 1),
        ("auto", None, 2),
        ("auto", 1, 3),
        ("torch", 1, 4),
        ("torch", 2, 4),  # torch has threads of its own
        ("auto", 2, 5),
        ("onnx", 2, 5),
    ):
        dfm.set_params(runtime=runtime, n_threads=n_threads)
        got = dfm.extract(textures)
        assert len(built) == n_built, (runtime, n_threads)
        assert np.array_equal(got, want) is (runtime != "torch")


@pytest.mark.parametrize("runtime", ["torch", "onnx", "auto"])
def test_the_file_has_the_choice(textures, runtime, tmp_path):
    dfm = pydfm.DFM(**OPTIONS, runtime=runtime).fit(textures)
    dfm.save(tmp_path / "m.pydfm")
    again = pydfm.load(tmp_path / "m.pydfm", device="cpu")
    assert again.runtime == runtime
    assert again.feature_spec_.runtime == dfm.feature_spec_.runtime
    assert np.array_equal(again.score(textures), dfm.score(textures))
    other = pydfm.load(tmp_path / "m.pydfm", device="cpu", runtime="torch")
    assert other.runtime == "torch"
    np.testing.assert_allclose(other.score(textures), dfm.score(textures), rtol=1e-4, atol=1e-4)


def test_the_weights_of_a_file_that_are_named_are_checked(textures, tmp_path):
    """A graph that is kept does not hide that other weights are given."""
    dfm = pydfm.DFM(**OPTIONS).fit(textures)
    dfm.save(tmp_path / "m.pydfm")
    state = pydfm.features.backbones.load_network("resnet18", None, random_state=1).module
    torch.save(state.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights"):
        pydfm.load(tmp_path / "m.pydfm", weights=tmp_path / "other.pth")


def test_a_kept_graph_needs_neither_torch_nor_weights(textures, tmp_path, run_python):
    dfm = pydfm.DFM(**OPTIONS).fit(textures)
    dfm.save(tmp_path / "m.pydfm")
    np.save(tmp_path / "x.npy", textures[:2])
    code = """
import sys
import numpy as np
from PIL import Image
import pydfm
dfm = pydfm.load("m.pydfm", device="cpu")
pictures = [Image.fromarray(x.transpose(1, 2, 0)) for x in np.load("x.npy")]
np.save("scores.npy", dfm.score(pictures))
assert not {"torch", "torchvision"} & set(sys.modules)
"""
    run_python(code)
    pictures = np.load(tmp_path / "scores.npy")
    again = pydfm.load(tmp_path / "m.pydfm", device="cpu")
    from PIL import Image

    want = again.score([Image.fromarray(x.transpose(1, 2, 0)) for x in textures[:2]])
    assert np.array_equal(pictures, want)


def test_config_says_what_auto_takes(monkeypatch):
    config = pydfm.show_config("dicts")
    assert config["packages"]["onnxruntime"]
    gpu = torch.cuda.is_available()
    assert config["runtime"] == ("torch" if gpu else "onnx")
    assert "onnxruntime" in sys.modules or importlib.util.find_spec("onnxruntime")
