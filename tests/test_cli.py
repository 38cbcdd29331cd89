import csv
import inspect
import io
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace
from typing import Literal, get_args, get_origin

import matplotlib
import numpy as np
import pytest
import safetensors
import torch
import tqdm
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_weights

import pydfm
from pydfm import __main__, cli, cli_fit, networks
from pydfm.backbone import PRECISIONS
from pydfm.datasets import load_category, load_masks
from pydfm.density import COVARIANCES, DENSITIES, SCORE_TYPES
from pydfm.evaluation import aupro, pixel_auroc
from pydfm.extraction import Extractor
from pydfm.images import list_images
from pydfm.layer import PATCH_RULES, SPATIAL_FORMS
from pydfm.layer_fitter import CALIBRATIONS

OPTIONS = ("--image-size", "40", "--device", "cpu")


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """A small network in a TorchScript file."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.AvgPool2d(6)
    )
    path = tmp_path_factory.mktemp("network") / "network.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(network.eval()).save(path)
    return path


@pytest.fixture(scope="session")
def model(script, picture_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pydfm"
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", n_threads=2, alpha=0.1)
    dfm.fit(picture_folder).save(path)
    return path


@pytest.fixture
def run(capfdbinary):
    """Run the command line here: its exit code, and the bytes on both of its outputs."""

    def run(*arguments):
        code = cli.main([os.fspath(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return SimpleNamespace(code=code, out=out, err=err.decode())

    return run


@pytest.fixture
def category(pictures, tmp_path):
    for name, own in {
        "train/good": pictures[:4],
        "test/good": pictures[4:7],
        "test/cut": pictures[7:9],
        "test/hole": pictures[9:],
    }.items():
        folder = tmp_path / "carpet" / name
        folder.mkdir(parents=True)
        for i, picture in enumerate(own):
            picture.save(folder / f"{i}.png")
    return tmp_path / "carpet"


def assert_told(result, says):
    assert result.code == 2
    assert result.out == b""
    assert re.fullmatch(r"pydfm: [^\n]+\n", result.err)
    assert re.search(says, result.err), result.err


def rows(out):
    header, *lines = csv.reader(io.StringIO(out.decode("utf-8", "surrogateescape"), newline=""))
    assert header == ["path", "score", "p_value", "verdict"]
    return [(path, float(score)) for path, score, _, _ in lines]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What it does


def test_fit_writes_the_model_of_the_library(run, script, picture_folder, tmp_path):
    got = run("fit", picture_folder, "-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    assert (got.code, got.err) == (0, "")
    assert re.fullmatch(
        rf"{tmp_path}/m: 12 images, \d+ of 54 components; next: pydfm score {tmp_path}/m FOLDER\n",
        got.out.decode(),
    )
    loaded = pydfm.load(tmp_path / "m", device="cpu")
    want = pydfm.DFM(backbone=script, image_size=40, device="cpu").fit(picture_folder)
    assert np.array_equal(loaded.score(picture_folder), want.score(picture_folder))
    assert names(tmp_path) == ["m"]


def test_every_option_of_fit_reaches_the_model(run, picture_folder, tiny_network, tmp_path):
    state = networks.load_network("resnet18", None, "layer1", random_state=5)
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
    assert dfm.alpha == 0.2
    assert (spec.backbone, spec.weights) == ("resnet18", str(tmp_path / "w.safetensors"))
    assert spec.layers == ("layer1.0.conv1", "layer1")
    assert (spec.pool, spec.precision, spec.random_state) == (3, "bfloat16", 3)
    assert spec.preprocessing.size == (24, 24)

    (tmp_path / "w.safetensors").rename(tmp_path / "moved.safetensors")
    assert_told(run("score", model, picture_folder), "needs the file '.*w.safet.* pass as weights")
    moved = ("--weights", tmp_path / "moved.safetensors")
    assert run("score", model, picture_folder, *moved).code == 0
    state = networks.load_network("resnet18", None, "layer1", random_state=6)
    save_weights(state.module.state_dict(), tmp_path / "w.safetensors")
    assert_told(
        run("score", model, picture_folder), "weights: .* are not the ones the model was fitted"
    )
    save_weights(tiny_network.state_dict(), tmp_path / "w.safetensors")
    assert_told(run("score", model, picture_folder), "is not for resnet18: it lacks 'bn1.bias'")


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), ("7", 7), ("all", None), ("ALL", None), ("1e-2", 0.01)]
)
def test_components_are_a_share_a_number_or_all(run, script, picture_folder, tmp_path, text, value):
    output = ("-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    assert run("fit", picture_folder, "--n-components", text, *output).code == 0
    assert pydfm.load(tmp_path / "m").n_components == value


def test_score_writes_paths_and_scores_and_nothing_else(run, model, picture_folder, tmp_path):
    got = run("score", model, picture_folder)
    assert (got.code, got.err) == (0, "")
    want = pydfm.load(model).score(picture_folder)
    assert rows(got.out) == [
        (str(picture_folder / f"{i:02}.png"), float(f"{score:.9g}")) for i, score in enumerate(want)
    ]
    assert np.array_equal(np.float32([score for _, score in rows(got.out)]), want)

    file = run("score", model, picture_folder, "-o", tmp_path / "scores.csv")
    assert (file.code, file.out, file.err) == (0, b"", "")
    assert (tmp_path / "scores.csv").read_bytes() == got.out
    assert names(tmp_path) == ["scores.csv"]


def test_score_takes_one_picture_and_options(run, model, script, picture_folder, tmp_path):
    picture = picture_folder / "03.png"
    want = float(pydfm.load(model).score(picture)[0])
    moved = tmp_path / "moved.pt"
    moved.write_bytes(script.read_bytes())
    options = ("--batch-size", "1", "--threads", "1", "--device", "cpu", "--backbone", moved)
    for extra in ((), options):
        ((path, score),) = rows(run("score", model, picture, *extra).out)
        assert path == str(picture)
        assert score == pytest.approx(want)


def test_eval_measures_as_the_library_does(run, model, category):
    got = run("eval", model, category)
    assert (got.code, got.err) == (0, "")
    pictures = [f"cut/{i}" for i in range(2)] + [f"good/{i}" for i in range(3)]
    pictures += [f"hole/{i}" for i in range(3)]
    scores = pydfm.load(model).score([category / f"test/{name}.png" for name in pictures])
    want = pydfm.evaluate(scores, [1, 1, 0, 0, 0, 1, 1, 1])
    assert got.out.decode().splitlines() == [
        "category     carpet (2 cut, 3 good, 3 hole)",
        f"image AUROC  {want['auroc']:.4f}",
        f"AUPR         {want['aupr']:.4f}",
        f"F1-max       {want['f1_max']:.4f} at score >= {want['threshold']:.6g}",
        f"FPR95        {want['fpr95']:.4f}",
        "pixels       not measured: no defective picture has a mask in ground_truth",
    ]


@pytest.fixture
def mask(category):
    """Gives the first picture of a hole a mask, the second one not."""
    folder = category / "ground_truth" / "hole"
    folder.mkdir(parents=True)
    pixels = np.zeros((40, 48), dtype=np.uint8)
    pixels[8:20, 10:30] = 255
    Image.fromarray(pixels).save(folder / "0_mask.png")


@pytest.mark.usefixtures("mask")
def test_eval_measures_pixels_where_there_are_masks(run, model, category):
    got = run("eval", model, category)
    assert (got.code, got.err) == (0, "")
    dfm = pydfm.load(model)
    test = load_category(category)
    known = test.select(
        bool(m) or d == "good" for m, d in zip(test.masks, test.defects, strict=True)
    )
    maps, masks = dfm.score_map(known.test), load_masks(known, dfm.feature_spec_.preprocessing)
    assert got.out.decode().splitlines()[5:] == [
        f"pixel AUROC  {pixel_auroc(maps, masks):.4f} (without 4 defective pictures that have no "
        "mask)",
        f"AUPRO        {aupro(maps, masks):.4f}",
    ]
    got = run("eval", model, category, "--score-type", "nll")
    assert (got.code, got.err) == (0, "")
    assert (
        got.out.decode()
        .splitlines()[5]
        .startswith(
            "pixels       not measured: score_type is 'nll', of which a whole picture has no map"
        )
    )


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_classes_are_the_subfolders_and_a_column(run, script, pictures, tmp_path):
    for i, picture in enumerate(pictures):
        folder = tmp_path / "in" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i:02}.png")
    options = ("--backbone", script, *OPTIONS, "--classes", "--spatial", "mean", "--n-components")
    tied = ("2", "--covariance", "tied", "--score-type", "relative_mahalanobis")
    got = run("fit", tmp_path / "in", "-o", tmp_path / "m", *options, *tied)
    assert (got.code, got.err) == (0, "")
    assert b"12 images, 2 classes, 2 of 6 components" in got.out
    dfm = pydfm.load(tmp_path / "m", device="cpu")
    assert (dfm.covariance, dfm.spatial) == ("tied", "mean")
    scores, predicted = dfm.score(tmp_path / "in"), dfm.predict_class(tmp_path / "in")
    header, *lines = csv.reader(
        io.StringIO(run("score", tmp_path / "m", tmp_path / "in").out.decode())
    )
    assert header == ["path", "score", "p_value", "verdict", "class"]
    assert [line[4] for line in lines] == predicted.tolist()
    assert {line[3] for line in lines} <= {"ok", "anomalous"}
    assert np.array_equal(np.float32([line[1] for line in lines]), scores)
    (tmp_path / "in" / "a" / "00.png").write_bytes(b"text")
    got = run("score", tmp_path / "m", tmp_path / "in", "--skip-unreadable")
    assert "warning: 1 of 12 images were skipped" in got.err
    first, second = got.out.decode().splitlines()[1:3]
    assert first.endswith("00.png,nan,nan,unreadable,")
    assert second == ",".join(lines[1])


def test_several_score_types_are_columns(run, model, picture_folder):
    types = ("--score-type", "fre", "--score-type", "ppca")
    got = run("score", model, picture_folder, *types, "--alpha", "0.1")
    assert (got.code, got.err) == (0, "")
    header, *lines = csv.reader(io.StringIO(got.out.decode()))
    assert header == ["path", "fre", "ppca", "p_value", "verdict"]
    lines = [line[:3] for line in lines]
    want = pydfm.load(model).score(picture_folder, score_type=("fre", "ppca"))
    assert np.array_equal(np.float32([line[1:] for line in lines]).T, want)
    assert_told(
        run("score", model, picture_folder, "--score-type", "mse"), "score_type is 'mse'; it must"
    )


def test_several_layers_and_patches(run, picture_folder, tmp_path):
    layers = ("--layer", "layer1.0.conv1", "--layer", "layer1", "--pool", "3", "--pool", "2")
    base = ("--weights", "none", "--image-size", "24", "--device", "cpu", "--threads", "2")
    got = run("fit", picture_folder, "-o", tmp_path / "m", *layers, *base, "--spatial", "patch")
    assert (got.code, got.err) == (0, "")
    dfm = pydfm.load(tmp_path / "m", device="cpu")
    assert dfm.feature_spec_.pool == (3, 2)
    assert dfm.spatial == "patch"
    assert run("score", tmp_path / "m", picture_folder, "--score-type", "ppca").code == 0


def test_choices_are_those_of_the_library():
    def choices(function, name):
        annotation = get_args(inspect.signature(function).parameters[name].annotation)[0]
        literal = annotation if get_origin(annotation) is Literal else get_args(annotation)[0]
        return get_args(literal)

    assert choices(cli_fit.fit, "score_type") == SCORE_TYPES
    assert choices(cli_fit.fit, "covariance") == COVARIANCES
    assert choices(cli_fit.fit, "density") == DENSITIES
    assert choices(cli_fit.fit, "spatial") == SPATIAL_FORMS
    assert set(choices(cli_fit.fit, "image_score")) == {"calibrated", *PATCH_RULES}
    assert choices(cli_fit.fit, "precision") == PRECISIONS
    assert choices(cli_fit.fit, "calibration") == (*CALIBRATIONS, "none")


# Heatmaps


def png(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def test_maps_are_drawn_over_the_pictures(run, model, pictures, tmp_path):
    pictures_of = tmp_path / "in"
    (pictures_of / "deep").mkdir(parents=True)
    pictures[0].save(pictures_of / "0.png")
    pictures[1].save(pictures_of / "0.jpg")
    pictures[2].save(pictures_of / "deep" / "0.png")
    got = run("score", model, pictures_of, "--maps", tmp_path / "new" / "maps")
    assert (got.code, got.err) == (0, "")
    assert [score for _, score in rows(got.out)] == pytest.approx(
        pydfm.load(model).score(pictures_of), rel=1e-6
    )
    files = sorted(p for p in (tmp_path / "new" / "maps").rglob("*") if p.is_file())
    assert [str(p.relative_to(tmp_path / "new" / "maps")) for p in files] == [
        "0.jpg.png",
        "0.png.png",
        "deep/0.png.png",
    ]
    dfm = pydfm.load(model)
    paths = list_images(pictures_of)
    maps = dfm.score_map(paths).astype(np.float64)
    shares = (maps - maps.min()) / (maps.max() - maps.min())
    colours = matplotlib.colormaps["inferno"](shares)[..., :3] * 255
    for path, share, coloured, file in zip(paths, shares, colours, files, strict=True):
        with Image.open(path) as image:
            seen = np.asarray(image.convert("RGB").resize((40, 40), Image.Resampling.BILINEAR))
        want = seen + 0.8 * share[:, :, None] * (coloured - seen)
        np.testing.assert_allclose(png(file), want, atol=1.01)


def test_maps_of_one_picture_and_smoothed(run, model, picture_folder, tmp_path):
    picture = picture_folder / "03.png"
    for folder, options in (("a", ()), ("b", ("--smoothing", "3"))):
        got = run("score", model, picture, "--maps", tmp_path / folder, *options)
        assert (got.code, got.err) == (0, "")
        assert names(tmp_path / folder) == ["03.png.png"]
    rough, smoothed = (png(tmp_path / folder / "03.png.png") for folder in "ab")
    assert not np.array_equal(rough, smoothed)
    assert_told(
        run("score", model, picture, "--maps", tmp_path / "c", "--smoothing", "-1"),
        "smoothing is -1.0; it must be a number of at least 0",
    )


@pytest.mark.parametrize("options", [(), ("--score-type", "fre", "--score-type", "ppca"), "maps"])
def test_features_of_a_batch_or_two_are_in_memory(
    run, script, pictures, tmp_path, monkeypatch, options
):
    """Of classes, several score types and maps too."""
    for i, picture in enumerate(pictures):
        (tmp_path / "in" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "in" / "ab"[i % 2] / f"{i}.png")
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", alpha=0.2)
    dfm.fit(tmp_path / "in", labels="folders").save(tmp_path / "m")
    whole = run("score", tmp_path / "m", tmp_path / "in", "--batch-size", "64")
    made, alive, actual = [], [], Extractor.batches

    def batches(*arguments):
        for places, features in actual(*arguments):
            made.append(weakref.ref(features))
            alive.append(sum(one() is not None for one in made))
            yield places, features

    monkeypatch.setattr(Extractor, "batches", batches)
    options = ("--maps", tmp_path / "maps") if options == "maps" else options
    got = run("score", tmp_path / "m", tmp_path / "in", "--batch-size", "2", *options)
    assert (got.code, len(made)) == (0, 6)
    assert max(alive) <= 2
    if len(options) < 4:
        assert got.out == whole.out
    assert got.out.count(b"\n") == 13


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_pictures_that_were_skipped_have_no_map(run, model, pictures, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        pictures[i].save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "1.png").write_bytes(b"text")
    got = run("score", model, tmp_path / "in", "--maps", tmp_path / "maps", "--skip-unreadable")
    assert got.code == 0
    assert "1 of 3 images were skipped" in got.err
    assert [np.isnan(score) for _, score in rows(got.out)] == [False, True, False]
    assert names(tmp_path / "maps") == ["0.png.png", "2.png.png"]
    for i in (0, 2):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"text")
    got = run("score", model, tmp_path / "in", "--maps", tmp_path / "none", "--skip-unreadable")
    assert (got.code, names(tmp_path / "none")) == (0, [])


def test_maps_that_cannot_be_drawn_are_told(
    run, model, script, picture_folder, tmp_path, monkeypatch
):
    maps = ("--maps", tmp_path / "maps")
    told = run("score", model, picture_folder, *maps, "--score-type", "nll")
    assert_told(told, "score_type is 'nll', of which a whole picture has no map")
    both = ("--score-type", "fre", "--score-type", "ppca")
    told = run("score", model, picture_folder, *maps, *both)
    assert_told(told, "--maps are of one type, and there are fre, ppca; name one with --score-type")
    inside = ("--maps", picture_folder / "maps")
    assert_told(run("score", model, picture_folder, *inside), "would be scored next time; name a")
    assert_told(run("score", model, picture_folder, "--maps", model), "is a file; name a folder")
    mean = ("--backbone", script, *OPTIONS, "--spatial", "mean")
    assert run("fit", picture_folder, "-o", tmp_path / "m", *mean).code == 0
    told = run("score", tmp_path / "m", picture_folder, *maps)
    assert_told(told, "features of 'output' have one position in a picture")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = run("score", model, picture_folder, *maps)
    assert_told(told, r"heatmaps need matplotlib; install it with `pip install .*'\.\[plot\]'`")


def test_config_help_and_version_are_printed(run):
    assert run("config").out.startswith(b"{")
    assert run("--version").out == f"pydfm {pydfm.__version__}\n".encode()
    for command in ((), ("fit",), ("score",), ("eval",), ("demo",), ("config",)):
        got = run(*command, "--help")
        assert (got.code, got.err) == (0, "")
        assert got.out.startswith(f"Usage: {' '.join(('pydfm', *command))} ".encode())


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_progress_is_shown_at_a_terminal_only(
    run, model, picture_folder, monkeypatch, at_a_terminal
):
    actual = tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda **options: actual(**{**options, "delay": 0}))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: at_a_terminal)
    got = run("score", model, picture_folder)
    assert (got.code, len(rows(got.out))) == (0, 12)
    assert ("score: 100%" in got.err) == at_a_terminal
    assert (got.err != "") == at_a_terminal


# Names of files


ODD = [b"a,b.png", b"new\nline.png", b'quo"te.png', "größe 中.png".encode(), b"\xff\xfe.png"]


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a file system that takes any bytes")
def test_paths_of_any_bytes_come_out_as_they_are(run, model, script, pictures, tmp_path):
    folder = tmp_path / os.fsdecode(b"in\xff")
    folder.mkdir()
    for picture, name in zip(pictures, ODD, strict=False):
        picture.save(folder / os.fsdecode(name))
    got = run("score", model, folder)
    assert (got.code, got.err) == (0, "")
    found = {os.fsencode(path).rpartition(b"/")[2] for path, _ in rows(got.out)}
    assert found == set(ODD)
    assert {os.fsencode(path).rpartition(b"/")[0] for path, _ in rows(got.out)} == {
        os.fsencode(folder)
    }
    assert run("score", model, folder, "-o", folder / "s.csv").code == 0
    assert (folder / "s.csv").read_bytes() == got.out
    # The model's own name as well, in what is printed of it.
    fitted = run("fit", folder, "-o", folder / "m", "--backbone", script, *OPTIONS)
    assert fitted.code == 0
    assert os.fsencode(folder / "m") in fitted.out
    assert run("score", folder / "m", folder).code == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a file system that takes any bytes")
def test_errors_about_paths_of_any_bytes_are_one_line(run, model, tmp_path):
    for name in ODD:
        (tmp_path / os.fsdecode(name)).write_bytes(b"text")
        assert_told(run("score", model, tmp_path / os.fsdecode(name)), "it is not an image")
        assert_told(run("score", model, tmp_path / os.fsdecode(b"gone" + name)), "there is no file")


# What it tells


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), r"a command is needed: fit, score, eval, benchmark, demo or config \(see pydfm"),
        (("fits",), r"No such command 'fits'.* \(see pydfm --help\)"),
        (("--colour",), r"No such option: --colour \(see pydfm --help\)"),
        (("fit",), r"Missing argument 'FOLDER' \(see pydfm fit --help\)"),
        (("fit", "."), r"Missing option '--output' / '-o' \(see pydfm fit --help\)"),
        (("fit", ".", "-o"), r"'-o' requires an argument"),
        (("score",), "Missing argument 'MODEL'"),
        (("score", "m"), "Missing argument 'FOLDER'"),
        (("score", "m", "a", "b"), "unexpected extra argument"),
        (("eval", "m", "a", "--pool", "2"), "No such option: --pool"),
        (("fit", ".", "-o", "m", "--score-type", "mse"), "'mse' is not one of 'fre', 'mahal"),
        (("fit", ".", "-o", "m", "--covariance", "all"), "'all' is not one of 'class', 'tied'"),
        (("fit", ".", "-o", "m", "--combine", "logistic"), "'logistic' is not one of 'sum', 'max'"),
        (("fit", ".", "-o", "m", "--precision", "half"), "'half' is not one of 'float32'"),
        (("fit", ".", "-o", "m", "--pool", "two"), "Invalid value for '--pool': .* integer"),
        (("demo", "extra"), "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, says):
    assert_told(run(*arguments), says)


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
        (("--backbone", "resnet19"), "backbone is 'resnet19'; it must be one of resnet18"),
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
    assert_told(run("fit", picture_folder, "-o", tmp_path / "m", *base, *options), says)
    assert names(tmp_path) == []


def test_pictures_that_are_not_there_are_told(run, model, script, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"text")
    for command in (
        ("score", model),
        ("fit", "-o", tmp_path / "m", "--backbone", script, *OPTIONS),
    ):
        assert_told(run(*command, tmp_path / "gone"), "there is no file or folder '.*gone'")
        assert_told(run(*command, tmp_path / "empty"), "the folder '.*empty' holds no images")
        assert_told(run(*command, tmp_path), r"cannot read image '.*bad\.png': it is not an image")
    assert names(tmp_path) == ["bad.png", "empty"]


def test_a_fit_needs_more_than_one_picture(run, script, picture_folder, tmp_path):
    output = ("-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    assert_told(run("fit", picture_folder / "00.png", *output), "at least two rows")


def test_a_category_is_no_folder_to_fit_on(run, category, tmp_path):
    got = run("fit", category, "-o", tmp_path / "m")
    assert_told(got, "normal and defective pictures together; .* normal ones: .*/train/good")


def test_what_a_category_lacks_is_told(run, model, category, tmp_path):
    assert_told(run("eval", model, tmp_path / "gone"), "there is no folder '.*gone'")
    assert_told(run("eval", model, category / "test"), "has no folder 'test'")
    (category / "test" / "good").rename(category / "good")
    assert_told(run("eval", model, category), "has no normal pictures in 'good'")


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_an_eval_needs_pictures_that_can_be_read(run, model, category):
    for path in (category / "test" / "good").iterdir():
        path.write_bytes(b"text")
    assert_told(run("eval", model, category), "cannot read image '.*good/0.png'")
    got = run("eval", model, category, "--skip-unreadable")
    assert got.code == 2
    assert "warning: 3 of 8 images were skipped" in got.err
    assert "labels are all anomalous; normal and anomalous samples are needed" in got.err


def damaged(path, kind):
    data = path.read_bytes()
    if kind == "version":
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata()["pydfm"].replace('"format_version": 1', '"format_version": 9')
        return save_file({"mean": np.zeros(1)}, path, {"pydfm": header})
    return path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "random": np.random.default_rng(0).bytes(1000),
            "empty": b"",
            "flipped": data[:-9] + bytes([data[-9] ^ 64]) + data[-8:],
        }[kind]
    )


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "is not a model file of pydfm, or not a whole one"),
        ("random", "is not a model file of pydfm, or not a whole one"),
        ("empty", "is not a model file of pydfm, or not a whole one"),
        ("flipped", "its checksum is wrong"),
        ("version", "its format version is 9, .* update pydfm"),
    ],
)
def test_a_model_file_that_is_damaged_is_told(
    run, model, category, picture_folder, tmp_path, kind, says
):
    path = tmp_path / "m"
    path.write_bytes(model.read_bytes())
    damaged(path, kind)
    assert_told(run("score", path, picture_folder), says)
    assert_told(run("eval", path, category), says)


def test_what_is_no_model_is_told(run, picture_folder, tiny_network, textures, tmp_path):
    picture = picture_folder / "00.png"
    assert_told(run("score", picture, picture), "'.*00.png' is not a model file of pydfm")
    assert_told(run("score", tmp_path / "gone", picture), "there is no model file '.*gone'")
    assert_told(run("score", tmp_path, picture), "there is no model file")
    path = tmp_path / "m"
    pydfm.DFM(2).fit(np.random.default_rng(0).normal(size=(9, 4))).save(path)
    assert_told(run("score", path, picture), "was fitted on features, not on images; use it from")
    pydfm.DFM(2, backbone=tiny_network, image_size=16, device="cpu").fit(textures).save(path)
    assert_told(run("score", path, picture), "backbone is needed: .* module of the class Sequentia")


def test_an_output_that_cannot_be_written_is_told_before_any_work(
    run, model, script, picture_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(pydfm.DFM, "fit", None)
    monkeypatch.setattr(pydfm.DFM, "score", None)
    monkeypatch.setattr("pydfm.demo.load_demo", None)
    for command in (
        ("fit", picture_folder, "--backbone", script, *OPTIONS),
        ("score", model, picture_folder),
        ("demo",),
    ):
        assert_told(run(*command, "-o", tmp_path / "gone" / "x"), "there is no folder '.*gone'")
        assert_told(run(*command, "-o", tmp_path), "is a folder; name a file to write")


def test_an_output_that_must_not_be_written_is_told(run, script, pictures, unprivileged):
    for i in range(2):
        pictures[i].save(unprivileged / f"{i}.png")
    unprivileged.chmod(0o555)
    got = run("fit", unprivileged, "-o", unprivileged / "m", "--backbone", script)
    assert_told(got, "the folder '.*' must not be written to; name another")
    assert names(unprivileged) == ["0.png", "1.png"]


def test_an_error_leaves_the_old_files(run, model, script, picture_folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.png").write_bytes(b"text")
    (tmp_path / "x").write_bytes(b"old")
    output = ("-o", tmp_path / "x")
    assert run("score", model, tmp_path / "in", *output).code == 2
    assert run("fit", tmp_path / "in", *output, "--backbone", script, *OPTIONS).code == 2
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["in", "x"]


def test_the_traceback_is_shown_to_who_asks_for_it(run, model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYDFM_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("score", model, tmp_path / "gone")


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_pictures_that_cannot_be_read_are_skipped_and_reported(
    run, model, script, pictures, tmp_path
):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        pictures[i].save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"text")
    got = run("score", model, folder, "--skip-unreadable")
    assert got.code == 0
    assert re.fullmatch(
        r"pydfm: warning: 1 of 4 images were skipped; the first: .*1\.png': it is not an image\n",
        got.err,
    )
    assert [np.isnan(score) for _, score in rows(got.out)] == [False, True, False, False]

    output = ("-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    got = run("fit", folder, *output, "--skip-unreadable")
    assert got.code == 0
    assert b": 3 images, " in got.out
    assert "warning: 1 of 4 images were skipped" in got.err


@pytest.mark.filterwarnings("default:first")
def test_a_warning_is_one_line(run, monkeypatch):
    def warn():
        import warnings

        warnings.warn("first\n  and second", stacklevel=1)

    monkeypatch.setattr("pydfm.config.show_config", warn)
    got = run("config")
    assert (got.code, got.out) == (0, b"")
    assert got.err == "pydfm: warning: first and second\n"


# Pictures of all kinds


def test_odd_pictures_score(run, model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.crop((0, 0, 1, 1)).save(tmp_path / "one.png")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(tmp_path / "16bit.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)))
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    Image.new("L", (2, 20000)).save(tmp_path / "strip.png")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    picture.save(tmp_path / "deep" / "er" / "x.PNG")
    (tmp_path / "folder.png").mkdir()
    got = run("score", model, tmp_path)
    assert (got.code, got.err) == (0, "")
    assert len(rows(got.out)) == 7
    assert all(np.isfinite(score) for _, score in rows(got.out))


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_what_is_no_picture_is_skipped(run, model, picture_folder, tmp_path):
    whole = (picture_folder / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"text")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    count = len(names(tmp_path))
    for path in tmp_path.iterdir():
        assert_told(run("score", model, path), "cannot read image|there is no file or folder")
    (tmp_path / "whole.png").write_bytes(whole)
    got = run("score", model, tmp_path, "--skip-unreadable")
    assert got.code == 0
    assert f"{count} of {count + 1} images were skipped" in got.err
    assert [np.isfinite(score) for _, score in rows(got.out)] == [False] * count + [True]


# The program itself


def start(*arguments, cwd, **options):
    """Run the program away from the source tree, which has no core."""
    return subprocess.Popen(
        [sys.executable, "-m", "pydfm", *arguments],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        cwd=cwd,
        **options,
    )


def test_a_terminal_shows_progress_and_ctrl_c_stops_at_once(model, tmp_path):
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    for i in range(1, 500):  # half a minute's work
        (tmp_path / f"{i}.png").hardlink_to(tmp_path / "0.png")
    output = tmp_path / "out"
    output.mkdir()
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    program = start(
        "score", model, tmp_path, "-o", output / "x", "--threads", "2", cwd=output, stderr=follower
    )
    os.close(follower)
    shown = b""
    stopped = None
    try:
        while True:
            ready, _, _ = select.select([leader], [], [], 60)
            assert ready, shown
            try:
                part = os.read(leader, 9999)
            except OSError:  # the other end is closed
                break
            shown += part
            if stopped is None and re.search(rb"score: +\d+%.*\d/500 ", shown):
                stopped = time.monotonic()
                program.send_signal(signal.SIGINT)
        assert program.wait(60) == 130
    finally:
        program.kill()
        os.close(leader)
    assert stopped is not None, shown
    # A second on an idle machine; the work would take ten times as long.
    assert time.monotonic() - stopped < 5
    assert shown.replace(b"\r\n", b"\n").endswith(b"\npydfm: stopped\n")
    assert b"Traceback" not in shown
    assert names(output) == []


def test_stopped_stands_on_a_line_of_its_own_at_a_terminal(monkeypatch, capsys):
    def half_a_bar(*_, **__):
        sys.stderr.write("\rscore:  26%|###")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", half_a_bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert __main__.main() == 130
    assert capsys.readouterr().err == "\rscore:  26%|###\npydfm: stopped\n"


@pytest.mark.parametrize("module", ["pydfm.cli", "typer", "numpy"])
def test_ctrl_c_stops_its_imports(module, run_python):
    code = """
import sys

class Pressed:
    def find_spec(self, name, *_):
        if name == module: raise KeyboardInterrupt

module = sys.argv[1]
sys.argv[1:] = ["config"]
sys.meta_path.insert(0, Pressed())
from pydfm.__main__ import main
sys.exit(main())
"""
    got = run_python(code, module, check=False)
    assert (got.returncode, got.stdout, got.stderr) == (130, "", "pydfm: stopped\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes of POSIX")
def test_the_reader_of_the_output_may_leave(model, picture_folder, tmp_path):
    read, write = os.pipe()
    with start(
        "score", model, picture_folder, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE
    ) as program:
        os.close(write)
        os.close(read)
        assert program.communicate(timeout=120)[1] == b""
    assert program.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_is_told(model, pictures, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    pictures[0].save(path)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        program = start("score", model, path, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
        assert program.communicate(timeout=120)[1] == (
            b"pydfm: [Errno 28] No space left on device\n"
        )
    assert program.returncode == 2


def test_the_output_may_be_closed(run, model, picture_folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert_told(run("score", model, picture_folder), "standard output is closed; name a file with")
    monkeypatch.setattr(sys, "stderr", None)
    assert run("score", model, picture_folder).code == 2
