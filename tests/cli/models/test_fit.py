import inspect
import re
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
from command_line import OPTIONS, assert_error, names
from model_files import parts
from PIL import Image
from safetensors.torch import save_file as save_weights

import pydfm
from pydfm.cli.models.fit import COMMAND
from pydfm.features.backbones import load_network
from pydfm.parameters import (
    CALIBRATIONS,
    COVARIANCES,
    DEFAULTS,
    DENSITIES,
    PARAMETERS,
    PATCH_RULES,
    PRECISIONS,
    SPATIAL_FORMS,
)
from pydfm.stats.scores import SCORE_TYPES


def test_fit_writes_the_model_of_the_library(run, script, picture_folder, tmp_path):
    got = run("fit", picture_folder, "-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    assert (got.code, got.err) == (0, "")
    assert re.fullmatch(
        rf"{script}, output, 40 x 40 pixels \(preset defects\)\n"
        rf"{tmp_path}/m: 12 images, \d+ of 54 components; next: pydfm score {tmp_path}/m FOLDER "
        rf"--backbone {script}\n",
        got.out.decode(),
    )
    loaded = pydfm.load(tmp_path / "m", backbone=script, device="cpu")
    want = pydfm.DFM(backbone=script, image_size=40, device="cpu").fit(picture_folder)
    assert np.array_equal(loaded.score(picture_folder), want.score(picture_folder))
    assert names(tmp_path) == ["m"]


def test_every_option_of_fit_reaches_the_model(run, picture_folder, tiny_network, tmp_path):
    state = load_network("resnet18", None, "layer1", random_state=5)
    save_weights(state.module.state_dict(), tmp_path / "w.safetensors")
    options = {
        "--n-components": "2",
        "--score-type": "ppca",
        "--backbone": "resnet18",
        "--weights": tmp_path / "w.safetensors",
        "--layer": "layer1.0.conv1",
        "--pool": "3",
        "--image-size": "24",
        "--precision": "bfloat16",
        "--combine": "max",
        "--preset": "anomalib",
        "--regularization": "1e-3",
        "--calibration": "kfold",
        "--top-share": "0.3",
        "--image-score": "sum",
        "--alpha": "0.2",
        "--random-state": "3",
        "--batch-size": "5",
        "--threads": "2",
        "--device": "cpu",
    }
    flat = [part for option in options.items() for part in option]
    model = tmp_path / "m"
    got = run("fit", picture_folder, "--output", model, *flat, "--layer", "layer1")
    assert got.code == 0, got.err
    assert b"12 images, layer1.0.conv1: 2 of 256 components, layer1: 2 of 256 comp" in got.out
    dfm = pydfm.load(model, device="cpu")
    spec = dfm.feature_spec_
    assert (dfm.n_components, dfm.score_type, dfm.batch_size) == (2, "ppca", 5)
    assert (dfm.combine, dfm.regularization, dfm.calibration) == ("max", 1e-3, "kfold")
    assert (dfm.top_share, dfm.image_score, dfm.spatial) == (0.3, "sum", "flatten")
    assert (dfm.alpha, dfm.preset) == (0.2, "anomalib")
    assert (spec.backbone, spec.weights) == ("resnet18", str(tmp_path / "w.safetensors"))
    assert spec.layers == ("layer1.0.conv1", "layer1")
    assert (spec.pool, spec.precision, spec.random_state) == (3, "bfloat16", 3)
    assert spec.preprocessing.size == (24, 24)

    (tmp_path / "w.safetensors").rename(tmp_path / "moved.safetensors")
    assert_error(run("score", model, picture_folder), "needs the file '.*w.safet.* pass as weights")
    moved = ("--weights", tmp_path / "moved.safetensors")
    assert run("score", model, picture_folder, *moved).code == 0
    state = load_network("resnet18", None, "layer1", random_state=6)
    save_weights(state.module.state_dict(), tmp_path / "w.safetensors")
    assert_error(
        run("score", model, picture_folder), "weights: .* are not the ones the model was fitted"
    )
    save_weights(tiny_network.state_dict(), tmp_path / "w.safetensors")
    assert_error(
        run("score", model, picture_folder),
        "is not for resnet18: it has 'block.0.bias' in place of 'bn1.bias'",
    )


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("7", 7), ("all", None), ("ALL", None), ("1e-2", 0.01)]
)
def test_components_are_a_share_a_number_or_all(run, script, picture_folder, tmp_path, text, value):
    output = ("-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    assert run("fit", picture_folder, "--n-components", text, *output).code == 0
    assert pydfm.load(tmp_path / "m", backbone=script).n_components == value


@pytest.mark.filterwarnings("default:alpha is 0.01")
def test_several_layers_and_patches(run, picture_folder, tmp_path):
    layers = ("--layer", "layer1.0.conv1", "--layer", "layer1", "--pool", "3", "--pool", "2")
    base = ("--weights", "none", "--image-size", "24", "--device", "cpu", "--threads", "2")
    got = run("fit", picture_folder, "-o", tmp_path / "m", *layers, *base, "--spatial", "patch")
    assert (got.code, got.err) == (0, "")
    dfm = pydfm.load(tmp_path / "m", device="cpu")
    assert dfm.feature_spec_.pool == (3, 2)
    assert dfm.spatial == "patch"
    assert run("score", tmp_path / "m", picture_folder, "--score-type", "ppca").code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--n-components", "0"), "n_components is 0"),
        (("--n-components", "-2"), "n_components is -2"),
        (("--n-components", "1.0"), r"n_components is 1\.0"),
        (("--n-components", "nan"), "n_components is nan"),
        (("--n-components", "many"), "--n-components is 'many'; it must be a share of variance"),
        (("--n-components", "13"), r"n_components is 13; .* at most min\(N, D\) = 12"),
        (("--batch-size", "0"), "batch_size is 0"),
        (("--threads", "0"), "n_threads is 0"),
        (("--pool", "0"), "pool is 0"),
        (("--pool", "99"), "pool is 99; layer 'output' gives 6 x 3 x 3"),
        (("--image-size", "0"), "image_size is 0"),
        (("--layer", "layer9"), "layers has 'layer9', which this backbone does not have"),
        (("--backbone", "resnet19"), r"backbone is 'resnet19' \(did you mean resnet18"),
        (("--backbone", "resnet18", "--layer", "layer9"), "layers has 'layer9'"),
        (("--backbone", "resnet18", "--weights", "gone.pth"), "weights is 'gone.pth', which is no"),
        (("--backbone", "resnet18", "--weights", "none", "--random-state", "-1"), "random_state"),
        (("--regularization", "ridge"), "--regularization is 'ridge'; it must be none, shrinkage,"),
        (("--regularization", "-1"), "regularization is -1"),
        (("--top-share", "2"), r"top_share is 2\.0"),
        (("--density", "gmm", "--covariance", "tied"), "a mixture is of one class"),
        (("--classes",), "lies in no subfolder of"),
        (("--pool", "1", "--pool", "2"), "pool has 2 kernels for 1 layers"),
        (("--device", "cuda:99"), "device is 'cuda:99', which cannot be used here"),
        (("--device", "gpu"), "device is 'gpu', which cannot be used here"),
    ],
)
def test_wrong_values_are_one_line(run, script, picture_folder, tmp_path, options, says):
    base = ("--backbone", script, *OPTIONS)
    assert_error(run("fit", picture_folder, "-o", tmp_path / "m", *base, *options), says)
    assert names(tmp_path) == []


@pytest.mark.parametrize("classes", [(), ("--classes",)])
def test_ray_gets_paths_and_labels(run, script, pictures, tmp_path, monkeypatch, classes):
    """What the workers compute is computed here."""
    for i, picture in enumerate(pictures):
        (tmp_path / "in" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "in" / "ab"[i % 2] / f"{i:02}.png")

    def fit(data, dfm, *, label, group, batch_size, n_workers):
        assert (batch_size, n_workers) == (4, 2)
        labels = None if label is None else [row[label] for row in data]
        groups = None if group is None else [row[group] for row in data]
        return dfm.fit([row["path"] for row in data], labels=labels, groups=groups)

    monkeypatch.setattr("pydfm.cli.models.fit.ray_data_set", lambda items, n_workers: items)
    monkeypatch.setattr("pydfm.parallel.ray.fit", fit)
    base = ("--backbone", script, *OPTIONS, "--batch-size", "4", *classes)
    for name, options in {"ray": ("--ray", "2"), "here": ()}.items():
        got = run("fit", tmp_path / "in", "-o", tmp_path / name, *base, *options)
        assert (got.code, got.err) == (0, "")
    (mine, header), (other, its) = (parts(tmp_path / name) for name in ("ray", "here"))
    assert all(np.array_equal(mine[name], other[name]) for name in mine.keys() | other.keys())
    del header["journal"], its["journal"]  # which have the times
    assert header == its
    both = ("--ray", "2", "--checkpoint", tmp_path / "kept")
    got = run("fit", tmp_path / "in", "-o", tmp_path / "m", *base, *both)
    assert_error(got, "--checkpoint and --ray are both given; .* leave out --checkpoint")


def test_a_fit_needs_more_than_one_picture(run, script, picture_folder, tmp_path):
    output = ("-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    assert_error(run("fit", picture_folder / "00.png", *output), "at least two rows")


def test_a_category_is_no_folder_to_fit_on(run, category, tmp_path):
    got = run("fit", category, "-o", tmp_path / "m")
    assert_error(got, "normal and defective images together; .* normal ones: .*/train/good")


def test_an_output_that_must_not_be_written_is_reported(run, script, pictures, tmp_path, request):
    run("fit", tmp_path / "none", "-o", tmp_path / "m", "--backbone", script)  # import, while root
    unprivileged = request.getfixturevalue("unprivileged")
    for i in range(2):
        pictures[i].save(unprivileged / f"{i}.png")
    unprivileged.chmod(0o555)
    got = run("fit", unprivileged, "-o", unprivileged / "m", "--backbone", script)
    assert_error(got, "the folder '.*' is not writable; name another")
    assert names(unprivileged) == ["0.png", "1.png"]


def fit_options():
    """Annotations of the options of ``pydfm fit``, by the names of the parameters of DFM."""
    parameters = inspect.signature(COMMAND.function()).parameters.values()
    return {own.name: get_args(own.annotation)[0] for own in parameters}


def test_every_parameter_that_has_an_option_is_one():
    made = fit_options()
    for name, parameter in PARAMETERS.items():
        assert (name in made) == (parameter.option is not None)
    assert set(made) - set(PARAMETERS) == {
        "folder",
        "output",
        "classes",
        "groups",
        "checkpoint",
        "clean",
        "dry_run",
        "fdr",
        "keep",
        "use_ray",
    }


def test_a_fit_without_options_has_the_defaults(run, picture_folder, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    def stop(self, *_, **__):
        given.update(self.get_params())
        raise StopError

    given = {}
    monkeypatch.setattr(pydfm.DFM, "fit", stop)
    assert run("fit", picture_folder, "-o", tmp_path / "m").code == 2
    assert given == {**DEFAULTS, "verbose": True}


def test_choices_are_those_of_the_library():
    def choices(name):
        kind = fit_options()[name]
        return get_args(kind if get_origin(kind) is Literal else get_args(kind)[0])

    assert choices("score_type") == SCORE_TYPES
    assert choices("covariance") == COVARIANCES
    assert choices("density") == DENSITIES
    assert choices("spatial") == SPATIAL_FORMS
    assert set(choices("image_score")) == {"calibrated", *PATCH_RULES}
    assert choices("precision") == PRECISIONS
    assert choices("calibration") == (*CALIBRATIONS, "none")


def test_the_intensity_of_the_command_line_counts_for_all_deep_images(run, tmp_path):
    levels = np.random.default_rng(0).integers(600, 4096, (8, 32, 32), dtype=np.uint16)
    (tmp_path / "in").mkdir()
    for i, own in enumerate(levels):
        Image.fromarray(own).save(tmp_path / "in" / f"{i}.png")
    options = ("--weights", "none", "--layer", "layer1", "--pool", "4", "--image-size", "32")
    for text, value in {"12bit": "12bit", "600,4095": (600.0, 4095.0)}.items():
        got = run("fit", tmp_path / "in", "-o", tmp_path / "m", "--intensity", text, *options)
        assert got.code == 0
        loaded = pydfm.load(tmp_path / "m")
        assert loaded.feature_spec_.preprocessing.intensity == value
        want = pydfm.DFM(weights=None, layers="layer1", pool=4, image_size=32, intensity=value)
        want.fit(tmp_path / "in")
        assert np.array_equal(loaded.score(tmp_path / "in"), want.score(tmp_path / "in"))
    Image.fromarray(levels[0] // 2).save(tmp_path / "dark.png")
    got = run("score", tmp_path / "m", tmp_path / "dark.png", "--alpha", "0.2")
    assert_error(got, "dark.png': its values go from 300 to")
    got = run("fit", tmp_path / "in", "-o", tmp_path / "m2", *options)
    assert "intensity='12bit' was chosen" in got.err
    got = run("fit", tmp_path / "in", "-o", tmp_path / "m2", "--intensity", "13bit", *options)
    assert_error(got, "13bit")
