import copy
import json
import os
import pickle
import re
import signal
from pathlib import Path

import model_kinds
import numpy as np
import pandas as pd
import pytest
import torch
from fits import maps_dfm, scripted
from model_files import parts, write
from reference import SCORE_TYPES, falling_rows
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_weights
from sklearn.base import clone

import pydfm
from pydfm.io import model_file

ROWS = falling_rows(60, 12, offset=1.0)
OTHERS = falling_rows(30, 12, seed=1, decay=0.0)
FRESH = falling_rows(300, 12, seed=1, offset=1.0)
LABELS = np.repeat(["a", "b"], [35, 25])
FIXTURES = Path(__file__).parent / "fixtures"
SIZE = {"image_size": (40, 48), "device": "cpu"}


@pytest.fixture
def file(tmp_path):
    """A model of features."""
    pydfm.DFM(5).fit(ROWS).save(tmp_path / "model")
    return tmp_path / "model"


# What is saved is loaded


@pytest.mark.filterwarnings("ignore:.*no row has a residual")
@pytest.mark.parametrize("score_type", SCORE_TYPES)
@pytest.mark.parametrize("n_components", [1, 0.9, None])
def test_features_score_the_same_bits(tmp_path, score_type, n_components):
    dfm = pydfm.DFM(n_components, score_type).fit(ROWS)
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model")
    assert np.array_equal(loaded.score(OTHERS), dfm.score(OTHERS))
    for name in ("mean_", "components_", "explained_variance_", "explained_variance_ratio_"):
        assert np.array_equal(getattr(loaded, name), getattr(dfm, name))
    assert loaded.noise_variance_ == dfm.noise_variance_
    assert loaded.n_samples_ == 60
    assert loaded.get_params() == dfm.get_params()
    # Other kinds of scores need no other file.
    for other in SCORE_TYPES:
        loaded.set_params(score_type=other)
        assert np.array_equal(loaded.score(OTHERS), dfm.set_params(score_type=other).score(OTHERS))


def test_equal_rows_are_loaded_too(tmp_path):
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        dfm = pydfm.DFM().fit(np.ones((5, 3)))
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model")
    assert loaded.n_components_ == 0
    assert np.array_equal(loaded.score(np.eye(3)), dfm.score(np.eye(3)))


def test_images_score_the_same_bits(tiny_network, textures, picture_folder, tmp_path):
    options = {"layers": ["block", "stem"], "pool": 2, "mean": 0.5, "std": [0.2, 0.3, 0.4], **SIZE}
    dfm = pydfm.DFM(3, backbone=tiny_network, **options).fit(picture_folder)
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model", backbone=tiny_network, device="cpu")
    assert loaded.feature_spec_ == dfm.feature_spec_
    assert loaded.backbone is tiny_network
    assert np.array_equal(loaded.extract(textures), dfm.extract(textures))
    for score_type in SCORE_TYPES:
        want = dfm.set_params(score_type=score_type).score(textures)
        loaded.set_params(score_type=score_type)
        assert np.array_equal(loaded.score(textures), want)
        assert np.array_equal(loaded.score(picture_folder), want)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_taken_only_from_the_caller(tiny_network, textures, tmp_path):
    script = tmp_path / "network.pt"
    scripted(tiny_network.eval()).save(script)
    dfm = pydfm.DFM(3, backbone=script, **SIZE).fit(textures)
    dfm.save(tmp_path / "model")
    script.rename(tmp_path / "moved.pt")
    loaded = pydfm.load(tmp_path / "model", backbone=tmp_path / "moved.pt", device="cpu")
    assert np.array_equal(loaded.score(textures), dfm.score(textures))

    with torch.no_grad():
        tiny_network.head.bias += 1
    scripted(tiny_network).save(script)
    says = (
        r"^'.*model' names the TorchScript file '.*network.pt', whose code would run; .* backbone$"
    )
    with pytest.raises(ValueError, match=says):
        pydfm.load(tmp_path / "model")
    with pytest.raises(ValueError, match="not the ones the model was fitted with"):
        pydfm.load(tmp_path / "model", backbone=script)


def test_a_model_of_features_names_no_code_for_a_later_fit(file):
    tensors, header = parts(file)
    header["parameters"]["backbone"] = "network.pt"
    write(file, tensors, header)
    with pytest.warns(UserWarning, match=r"has backbone='network.pt', .*; set it again if you tr"):
        loaded = pydfm.load(file)
    assert loaded.backbone == pydfm.DFM().backbone


def test_weights_are_found_and_compared(tiny_network, textures, tmp_path):
    weights, moved = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_weights(tiny_network.state_dict(), weights)
    given = copy.deepcopy(tiny_network)
    with torch.no_grad():
        given.stem.weight.zero_()  # it is the file's that count
    dfm = pydfm.DFM(3, backbone=given, weights=weights, **SIZE).fit(textures)
    dfm.save(tmp_path / "model")
    want = dfm.score(textures)
    assert np.array_equal(pydfm.load(tmp_path / "model", backbone=given).score(textures), want)

    weights.rename(moved)
    with pytest.raises(
        FileNotFoundError, match=r"'.*model' needs the file '.*a.safetensors', .* pass as weights"
    ):
        pydfm.load(tmp_path / "model", backbone=given)
    loaded = pydfm.load(tmp_path / "model", backbone=given, weights=moved)
    assert np.array_equal(loaded.score(textures), want)
    assert loaded.weights == moved

    other = {name: value + 1 for name, value in tiny_network.state_dict().items()}
    save_weights(other, weights)
    with pytest.raises(ValueError, match=r"^weights: .* are not the ones the model was fitted"):
        pydfm.load(tmp_path / "model", backbone=given)


def test_names_of_features_survive(tmp_path):
    frame = pd.DataFrame(ROWS[:, :3], columns=["red", "grün", "b,\n"])
    dfm = pydfm.DFM(2).fit(frame)
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model")
    assert loaded.feature_names_in_.tolist() == ["red", "grün", "b,\n"]
    assert np.array_equal(loaded.score(frame), dfm.score(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.score(frame[["grün", "red", "b,\n"]])


def test_parameters_of_numpy_are_written(tiny_network, textures, tmp_path):
    dfm = pydfm.DFM(
        np.int32(3),
        backbone=tiny_network,
        layers=np.array(["stem", "block"]),
        pool=np.int64(2),
        image_size=(np.int64(40), np.int16(48)),
        mean=[np.float32(0.5)] * 3,
        std=np.array([0.25, 0.5, 1]),
        batch_size=np.int8(4),
        device="cpu",
    ).fit(textures)
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model", backbone=tiny_network, device="cpu")
    assert np.array_equal(loaded.score(textures), dfm.score(textures))
    assert loaded.get_params()["image_size"] == [40, 48]
    assert loaded.batch_size == 4


def test_what_belongs_to_the_machine_is_not_saved(file):
    assert pydfm.load(file).n_threads is None
    assert pydfm.load(file, n_threads=3).n_threads == 3
    pydfm.DFM(5, n_threads=7, device="meta", verbose=True).fit(ROWS).save(file)
    loaded = pydfm.load(file)
    assert (loaded.n_threads, loaded.device, loaded.verbose) == (None, None, False)
    assert not {"n_threads", "device", "verbose"} & set(parts(file)[1]["parameters"])


def test_a_loaded_model_is_saved_to_the_same_bytes(file, tmp_path):
    pydfm.load(file).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_arrays_of_any_layout_are_written_right(tmp_path):
    dfm = pydfm.DFM(5).fit(ROWS)
    want = dfm.score(OTHERS)
    wide = np.zeros((10, 24))
    wide[::2, ::2] = dfm.components_
    for components in (np.asfortranarray(dfm.components_), wide[::2, ::2]):
        object.__setattr__(dfm.subspace_, "components", components)
        dfm.save(tmp_path / "model")
        loaded = pydfm.load(tmp_path / "model")
        assert np.array_equal(loaded.components_, components)
        assert np.array_equal(loaded.score(OTHERS), want)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split", None])
def test_a_calibration_is_saved(tmp_path, labels, calibration):
    dfm = pydfm.DFM(3, calibration=calibration, alpha=0.2).fit(ROWS, labels=labels)
    dfm.save(tmp_path / "model")
    for other in (pydfm.load(tmp_path / "model"), pickle.loads(pickle.dumps(dfm))):
        assert other.calibration_ == calibration
        if calibration is None:
            with pytest.raises(ValueError, match="was fitted with calibration=None"):
                other.predict(FRESH)
            continue
        for kind in SCORE_TYPES:
            assert np.array_equal(
                other.p_value(FRESH, score_type=kind), dfm.p_value(FRESH, score_type=kind)
            )
        assert np.array_equal(other.predict(FRESH), dfm.predict(FRESH))
        if calibration == "kfold":
            with pytest.raises(AttributeError, match="there is no one threshold"):
                _ = other.threshold_
        else:
            assert np.array_equal(other.threshold_, dfm.threshold_)
        for name in ("scores", "p_values", "names"):
            own = getattr(dfm, f"held_out_{name}_")
            assert np.array_equal(getattr(other, f"held_out_{name}_"), own)
        assert other.drift(FRESH) == dfm.drift(FRESH)
    again = clone(dfm).fit(FRESH, labels=np.resize(labels, 300) if labels is not None else None)
    if calibration is not None:
        assert not np.array_equal(again.p_value(FRESH), dfm.p_value(FRESH))


@pytest.mark.parametrize("labelled", [False, True])
def test_standardised_maps_are_saved(noise, tmp_path, labelled):
    dfm = maps_dfm().fit(noise, labels=np.array([0, 1] * 20) if labelled else None)
    dfm.save(tmp_path / "model")
    other = pydfm.load(tmp_path / "model", backbone=dfm.backbone, device="cpu")
    assert other.image_score_ == "calibrated"
    assert np.array_equal(other.score(noise), dfm.score(noise))
    assert np.array_equal(other.p_value(noise), dfm.p_value(noise))
    assert np.array_equal(other.score_map(noise), dfm.score_map(noise))
    assert other.map_threshold_ == dfm.map_threshold_


@pytest.mark.parametrize("kind", model_kinds.KINDS)
def test_every_kind_comes_back_to_the_bit(kind, tmp_path):
    network = model_kinds.network()
    dfm = model_kinds.fitted(kind, network)
    dfm.save(tmp_path / "model")
    own = {"backbone": network} if kind in model_kinds.IMAGE_KINDS else {}
    loaded = pydfm.load(tmp_path / "model", device="cpu" if own else None, **own)
    rows = model_kinds.queries_of(dfm)
    want, found = model_kinds.answers(dfm, rows), model_kinds.answers(loaded, rows)
    assert found.keys() == want.keys()
    for name, value in want.items():
        assert np.array_equal(found[name], value), name
        assert found[name].dtype == value.dtype
    if own:
        assert np.array_equal(loaded.extract(model_kinds.QUERIES), rows)
    for name in ("calibration_", "n_samples_", "n_features_in_", "image_score_", "feature_spec_"):
        assert getattr(loaded, name) == getattr(dfm, name)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()


# The file


def test_nothing_in_the_file_is_pickled(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert set(metadata) == {"pydfm"}
    assert {entry["dtype"] for entry in header.values()} == {"F32", "F64", "I64"}
    # Numbers fill what is behind the header, to the last byte.
    scores = 4 * 2 * len(ROWS)  # held-out ones: four types, of the model and of its one layer
    places = 8 * len(ROWS)
    assert len(data) == 8 + length + 8 * (12 + 5 * 12 + 5 + 5) + 4 * (scores + places)
    assert json.loads(metadata["pydfm"])["format"] == 1


def test_a_path_may_lack_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dfm = pydfm.DFM(5).fit(ROWS)
    for name in ("model", os.fsdecode(b"bad\xff"), "a,b\n"):
        dfm.save(name)
        assert np.array_equal(pydfm.load(name).score(OTHERS), dfm.score(OTHERS))


def test_a_place_that_cannot_be_written_to_is_told(tmp_path):
    dfm = pydfm.DFM(5).fit(ROWS)
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*gone' to write 'model' to"):
        dfm.save(tmp_path / "gone" / "model")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file to write"):
        dfm.save(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_in_the_middle_leaves_the_old_model(file, run_python):
    code = """
import os, signal, sys
import numpy as np, pydfm
def kill(handle):
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = kill
pydfm.DFM(2).fit(np.random.default_rng(0).normal(size=(20, 5))).save(sys.argv[1])
"""
    before = file.read_bytes()
    assert run_python(code, str(file), check=False).returncode == -signal.SIGKILL
    assert file.read_bytes() == before


def test_a_file_that_is_not_there_is_told(tmp_path):
    for path in (tmp_path / "gone", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no model file '.*'"):
            pydfm.load(path)


# Files that are wrong


def load_wrong(path):
    """The one sentence that tells what is wrong with the file."""
    with pytest.raises(ValueError, match=f"^.*{path.name}'") as caught:
        pydfm.load(path)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"text", bytes(range(256)) * 9, b"\xff" * 64, b"PK\x03\x04", b"{}" * 9]
)
def test_a_file_of_another_kind_is_told(tmp_path, content):
    path = tmp_path / "model"
    path.write_bytes(content)
    assert "is not a model file of pydfm, or not a whole one" in load_wrong(path)


def test_a_file_of_tensors_is_told(tmp_path):
    save_file({"x": np.zeros(3)}, tmp_path / "model")
    assert "it has no pydfm header" in load_wrong(tmp_path / "model")


def test_a_file_that_was_cut_is_told(file):
    data = file.read_bytes()
    for length in np.linspace(0, len(data) - 1, 40, dtype=int):
        file.write_bytes(data[:length])
        assert "not a whole one" in load_wrong(file)
    file.write_bytes(data + b"more")
    load_wrong(file)


def test_no_bit_flips_without_notice(file):
    data = file.read_bytes()
    places = np.random.default_rng(0).permutation(8 * len(data))[:600]
    places = np.r_[places, np.arange(64), 8 * len(data) - 1 - np.arange(64)]
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        load_wrong(file)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_file_of_another_format_says_to_update(file, version):
    tensors, header = parts(file)
    assert header["format"] == model_file.FORMAT == 1
    write(file, tensors, {"format": version, "something": "new"})
    assert f"its format is {version}, and pydfm {pydfm.__version__} reads 1" in load_wrong(file)


@pytest.mark.parametrize("told", [{}, {"pydfm_version": "0.1.0"}])
def test_a_file_of_before_the_formats_is_refused(file, told):
    tensors, _ = parts(file)
    write(file, tensors, {"format_version": 1, **told, "parameters": {}})
    says = load_wrong(file)
    assert "it was written before pydfm had a fixed format; fit again" in says
    assert told.get("pydfm_version", "an older one") in says


def test_tensors_that_are_missing_are_named(file):
    tensors, header = parts(file)
    for name in tensors:
        if name.endswith(".places"):
            continue  # which files of before do not have
        write(file, {key: value for key, value in tensors.items() if key != name}, header)
        assert name in load_wrong(file)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"mean": np.zeros((1, 11))},
            r"layer.0.mean \(1, 11\) and layer.0.components \(5, 12\) do not fit",
        ),
        ({"mean": np.zeros(12)}, "do not fit together"),
        ({"components": np.zeros(12)}, "do not fit together"),
        ({"explained_variance": np.ones(4)}, r"0.explained_variance has the shape \(4,\)"),
        ({"n_components": np.array([4])}, "beside 4 components of"),
        ({"n_components": np.array([-5])}, "beside -5 components of"),
        ({"n_components": np.array([5, 0])}, r"n_components has the shape \(2,\)"),
        ({"n_components": np.array([5.0])}, "n_components is not int64"),
        ({"mean": np.full((1, 12), np.nan)}, "mean is not float64, or not finite"),
        ({"components": np.full((5, 12), np.inf)}, "components is not float64, or not finite"),
        ({"mean": np.zeros((1, 12), np.float32)}, "mean is not float64"),
        ({"explained_variance": np.zeros(5)}, "variances are not positive and finite"),
        ({"explained_variance": np.full(5, np.nan)}, "explained_variance is not float64, or not"),
        ({"noise_variance": np.array([-1.0])}, "variances are not positive and finite"),
        ({"noise_variance": np.array([np.nan])}, "noise_variance is not float64, or not finite"),
        ({"total_variance": np.array(1.0)}, r"total_variance has the shape \(\)"),
        ({"mean": np.zeros((2, 12))}, "has the shape"),
    ],
)
def test_tensors_that_are_wrong_are_told(file, changes, says):
    tensors, header = parts(file)
    changes = {f"layer.0.{name}": value for name, value in changes.items()}
    write(file, {**tensors, **changes}, header)
    assert re.search(says, load_wrong(file))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("parameters",), None, ""),
        (("parameters",), [1, 2], ""),
        (("parameters", "n_components"), 1.5, "n_components is 1.5"),
        (("parameters", "score_type"), "mse", "score_type is 'mse'"),
        (("parameters", "colour"), "red", "colour"),
        (("model",), {}, "it lacks 'classes'"),
        (("model",), 7, ""),
        (("model", "classes"), ["a", "b"], "it has 2 classes and 1 subspaces"),
        (("model", "layers"), [], "it has no layers"),
        (("model", "layers"), [{}], "it lacks 'shared_components'"),
        (("model", "n_samples"), float("inf"), "its n_samples is inf; it must be an integer"),
        (("model", "n_samples"), "many", "many"),
        (("model", "combinations"), {"fre": {}}, "it lacks 'mean'"),
        (("features",), {}, "it lacks 'layers'"),
        (("calibration",), "maybe", "its calibration is 'maybe'"),
        (("feature_names",), -1, "its feature_names is -1; it must be a list of 12"),
        (("features",), "resnet18", ""),
        (("features",), {"preprocessing": []}, ""),
    ],
)
def test_a_header_that_is_wrong_is_told(file, place, value, says):
    tensors, header = parts(file)
    *folders, name = place
    inner = header
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    write(file, tensors, header)
    assert says in load_wrong(file)


LAYER = ("model", "layers", 0)
PREPROCESSING = ("features", "preprocessing")


@pytest.mark.parametrize(
    ("kind", "place", "value", "says"),
    [
        ("plain", (*LAYER, "name"), 3, "the name of layer.0 is 3, and no text"),
        ("plain", (*LAYER, "patch"), 0, "patch of layer.0 is 0; it must be true or false"),
        ("plain", (*LAYER, "patch"), True, "patch of layer.0 is true, which it cannot be without"),
        ("plain", (*LAYER, "background"), "", "background of layer.0 is ''"),
        ("plain", (*LAYER, "standardised"), None, "standardised of layer.0 is None"),
        ("plain", (*LAYER, "shared_components"), 1, "shared_components of layer.0 is 1"),
        ("plain", (*LAYER, "mixtures"), None, "the mixtures of layer.0 is None"),
        ("plain", (*LAYER, "columns"), [0.5, 6], "a column of layer.0 is 0.5"),
        ("plain", (*LAYER, "top_share"), float("nan"), "the top_share of layer.0 is nan"),
        ("plain", (*LAYER, "top_share"), -0.1, "it must be a number from 0 to 1"),
        ("plain", (*LAYER, "rule"), "median", "unknown rule 'median'"),
        ("plain", ("model", "n_samples"), 0, "its n_samples is 0; it must be an integer from 1"),
        ("plain", ("held_out", "score_types"), ["fre", "fre"], "of which one is there twice"),
        ("plain", ("held_out", "score_types"), ["mse"], "score_type is 'mse'"),
        ("plain", ("held_out", "map_maxima"), 0, "its map_maxima is 0"),
        ("plain", ("held_out",), None, "its calibration is 'loo', beside held-out scores or none"),
        ("plain", ("calibration",), None, "its calibration is None, beside held-out scores"),
        ("none", ("calibration",), "loo", "its calibration is 'loo', beside held-out scores or no"),
        ("folds", ("calibration",), "loo", "its calibration is 'loo', and it has folds"),
        ("folds", ("held_out", "folds", 0, "classes"), [0, 0], "and its classes do not fit"),
        ("folds", ("held_out", "folds", 0, "classes"), [0.5], "a class of a fold is 0.5"),
        ("names", ("feature_names", 0), 3, "one of its feature_names is 3, and no text"),
        ("classes", ("model", "classes"), ["red", "blue"], "they must be sorted integers or texts"),
        ("classes", ("model", "classes"), ["blue", "blue"], "they must be sorted"),
        ("classes", ("model", "classes"), ["blue", 3], "they must be sorted integers or texts"),
        ("classes", ("model", "classes"), [[], {}], "they must be sorted integers or texts"),
        ("numbers", ("model", "classes"), [-7, 2**70], "they must be sorted integers or texts"),
        ("numbers", ("model", "classes"), [False, True], "they must be sorted integers or texts"),
        ("gmm", (*LAYER, "mixtures"), [0], "the rows of layer.0.mixture.0 is 0"),
        ("max", ("model", "combinations", "fre", "rule"), "min", "unknown rule 'min'"),
        ("max", ("model", "combinations", "fre", "scale"), [1, 0], "is not positive"),
        ("max", ("model", "combinations", "fre", "weights"), [1, -1], "has the weights"),
        ("max", ("model", "combinations", "fre", "offset"), None, "the offset of its combination"),
        ("layers", ("features", "layers"), ["0", "0"], "the layers of its features are"),
        ("layers", ("features", "layers"), ["0", "1"], "have different sizes"),
        ("layers", ("features", "spatial"), "rows", "the spatial of its features is 'rows'"),
        ("layers", ("features", "pool"), 0, "its pool is 0"),
        ("layers", ("features", "sha256"), "x", "the sha256 of its features is 'x'"),
        ("layers", ("features", "backbone"), "timm2:x", "which this version of pydfm does not kno"),
        ("layers", ("features", "random_state"), -1, "its random_state is -1"),
        ("layers", ("features", "grids", 0, "height"), 10**6, "have different sizes"),
        ("layers", ("features", "grids", 0, "reach"), [1, 0], "the reach of a grid is (1.0, 0.0)"),
        ("layers", ("features",), None, "it has the layers of images, and no features of images"),
        ("layers", (*PREPROCESSING, "resize"), [60_000, 60_000], "its resize is 60000; it must be"),
        ("layers", (*PREPROCESSING, "resize"), 16, "its crop is None, of images resized to 16"),
        ("layers", (*PREPROCESSING, "crop"), [32, 32], "its crop is (32, 32), of images resized"),
        ("layers", (*PREPROCESSING, "std"), [1, 0, 1], "its std is (1.0, 0.0, 1.0)"),
        ("layers", (*PREPROCESSING, "mean"), [1, 0], "finite numbers of the shape (3,)"),
        ("layers", (*PREPROCESSING, "intensity"), "auto", "its intensity is 'auto'"),
        ("layers", (*PREPROCESSING, "colour"), 1, "its preprocessing has the unknown 'colour'"),
    ],
)
def test_what_no_fit_writes_is_refused(tmp_path, kind, place, value, says):
    path = tmp_path / "model"
    path.write_bytes((FIXTURES / f"format1-{kind}.pydfm").read_bytes())
    tensors, header = parts(path)
    *folders, name = place
    inner = header
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    write(path, tensors, header)
    assert says in load_wrong(path)


@pytest.mark.parametrize(
    ("kind", "name", "change", "says"),
    [
        ("plain", "layer.0.components", lambda W: 2 * W, "layer.0.components are not orthonormal"),
        ("plain", "layer.0.components", lambda W: W[[0, 0]], "components are not orthonormal"),
        ("plain", "layer.0.components", lambda W: W * 1e200, "components are not orthonormal"),
        ("plain", "layer.0.explained_variance", lambda v: v[::-1], "does not descend"),
        ("plain", "layer.0.explained_variance", lambda v: v * 0 + 1e-310, "not positive and fin"),
        ("plain", "layer.0.mean", lambda m: m * 1e300, "whose square overflows"),
        ("plain", "layer.0.noise_variance", lambda n: 0 * n, "noise_variance is 0, beside comp"),
        ("plain", "layer.0.total_variance", lambda n: -n, "variances are not positive"),
        (
            "plain",
            "layer.0.n_samples",
            lambda n: 0 * n,
            r"n_samples is \[0\]; it must be at least 1",
        ),
        ("plain", "layer.0.n_samples", lambda n: n - 2**62, "n_samples is"),
        ("plain", "layer.0.n_components", lambda n: n - 2**62, "beside"),
        ("classes", "layer.0.n_components", lambda n: n + np.array([2**62, -(2**62)]), "beside"),
        (
            "relative",
            "layer.0.n_components",
            lambda n: n - [0, 1],
            "differ, and its components are",
        ),
        ("folds", "held_out.fre.places", lambda p: 0 * p, "held_out.fre.places has one twice"),
        ("gmm", "layer.0.mixture.0.weights", lambda w: -w, "are not 2 positive shares, of sum 1"),
        ("gmm", "layer.0.mixture.0.weights", lambda w: w[:1], "are not 2 positive shares"),
        ("gmm", "layer.0.mixture.0.weights", lambda w: 2 * w, "are not 2 positive shares"),
        ("layers", "layer.0.position_deviation", lambda d: -d, "is not positive, or not of"),
        ("layers", "layer.0.position_mean", lambda m: m * 0 + 1e300, "is not positive, or not of"),
        ("layers", "layer.0.position_deviation", lambda d: d * 1e-300, "which no fit gives"),
        (
            "layers",
            "layer.0.position_deviation",
            lambda d: np.where(d == d.max(), 1e-7 * d, d),
            "which no fit gives",
        ),
        ("layers", "held_out.map_maxima", lambda m: m[:0], "map_maxima is empty"),
    ],
)
def test_arrays_that_no_fit_writes_are_refused(tmp_path, kind, name, change, says):
    path = tmp_path / "model"
    path.write_bytes((FIXTURES / f"format1-{kind}.pydfm").read_bytes())
    tensors, header = parts(path)
    write(path, {**tensors, name: np.ascontiguousarray(change(tensors[name]))}, header)
    assert re.search(says, load_wrong(path))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "rows",
    [
        ROWS * 1e30,
        ROWS * 1e-30,
        ROWS * 1e-160,
        ROWS.astype(np.float32) * np.float32(1e18),
        np.ones((5, 3)),
        np.vstack([np.ones((5, 3)), np.zeros((1, 3))]),
        ROWS[:2],
        ROWS[:, :1],
        ROWS[:, [0, 0, 1, 1]],
        ROWS * np.logspace(0, -12, 12),
        (ROWS * np.logspace(0, -6, 12)).astype(np.float32) + np.float32(100),
        np.eye(40)[:30],
        ROWS * [1e8] + 1e12,
    ],
)
@pytest.mark.parametrize("n_components", [0.97, None])
def test_what_a_fit_of_odd_rows_writes_is_read(tmp_path, rows, n_components):
    for options in ({}, {"regularization": "shrinkage"}, {"max_memory": 400, "calibration": None}):
        try:
            dfm = pydfm.DFM(n_components, **options).fit(rows)
        except ValueError:
            continue  # rows of which there is no model
        dfm.save(tmp_path / "model")
        assert np.array_equal(pydfm.load(tmp_path / "model").score(rows), dfm.score(rows))


def test_a_header_that_is_nested_too_deep_is_told(file):
    tensors, header = parts(file)
    text = json.dumps({**header, "sha256": ""})[:-1] + ', "x": ' + "[" * 5000 + "]" * 5000 + "}"
    save_file(tensors, file, {"pydfm": text})
    load_wrong(file)


def test_a_file_that_may_not_be_read_is_told(unprivileged):
    path = unprivileged / "model"
    pydfm.DFM(5).fit(ROWS).save(path)
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"^the model file '.*model' may not be read"):
        pydfm.load(path)


@pytest.mark.parametrize(
    "name",
    ["format", "parameters", "model", "calibration", "held_out", "features", "layers", "n_samples"],
)
def test_what_a_header_lacks_is_told(file, name):
    tensors, header = parts(file)
    del (header if name in header else header["model"])[name]
    write(file, tensors, header)
    assert f"it lacks '{name}'" in load_wrong(file)


def test_a_header_that_is_no_object_or_has_no_checksum_is_told(file):
    tensors, header = parts(file)
    for text in ("", "[]", "7", "null", "{", json.dumps(header)):
        save_file(tensors, file, {"pydfm": text})
        load_wrong(file)


def test_layers_and_mean_must_agree(tiny_network, textures, tmp_path):
    path = tmp_path / "model"
    pydfm.DFM(3, backbone=tiny_network, layers="stem", pool=4, **SIZE).fit(textures).save(path)
    tensors, header = parts(path)
    header["features"]["grids"][0]["channels"] = 7
    write(path, tensors, header)
    assert "its mean and its layers have different sizes" in load_wrong(path)
    header["model"]["layers"][0]["columns"] = [0, 7]
    write(path, tensors, header)
    assert "its mean and the columns of layer 'stem' do not fit together" in load_wrong(path)


@pytest.mark.skipif(os.name != "posix", reason="needs sparse files")
def test_a_huge_claim_is_refused_before_it_is_read(file):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    described = json.loads(data[8 : 8 + length])
    name, last = max(
        ((n, own) for n, own in described.items() if n != "__metadata__" and n.endswith("mean")),
        key=lambda pair: pair[1]["data_offsets"],
    )
    more = 8 * 2**40
    for own in described.values():
        if "data_offsets" in own and own["data_offsets"][0] >= last["data_offsets"][1]:
            own["data_offsets"] = [place + more for place in own["data_offsets"]]
    last["data_offsets"][1] += more
    last["shape"][1] += 2**40
    text = json.dumps(described).encode()
    end = max(own["data_offsets"][1] for own in described.values() if "data_offsets" in own)
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    try:
        os.truncate(file, 8 + len(text) + end)  # 8 TB, of which nothing is on the disk
    except OSError:
        pytest.skip("the file system has no files that large")
    assert f"it has no place for its tensor '{name}'" in load_wrong(file)
