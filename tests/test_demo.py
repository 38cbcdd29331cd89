import re
import socket
import sys

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.datasets import load_demo
from pydfm.demo import run_demo


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The lines of a demo, run without a network, its picture, and its scores."""
    picture = tmp_path_factory.mktemp("demo") / "demo.png"
    lines, scores = [], []

    def evaluate(found, labels):
        scores.extend(found)
        return pydfm.evaluate(found, labels)

    def no_network(*_arguments):
        raise AssertionError("the demo must not need a network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "getaddrinfo", no_network)
        patch.setattr("pydfm.demo.evaluate", evaluate)
        run_demo(picture, None, lines.append)
    return lines, picture, np.array(scores)


def test_it_says_what_it_runs_on_and_what_comes_next(told):
    text = "\n".join(told[0])
    assert text.startswith(
        "backbone  ResNet-18 with random weights (seed 0), features of layer3\n"
        "          enough for textures; for objects pass --weights imagenet, or a file\n"
    )
    assert re.search(
        r"^fit       140 crops of a brick wall in [\d.]+ s: \d+ of 2304 dimensions hold 97%",
        text,
        re.MULTILINE,
    )
    assert re.search(r"^score     112 other crops in [\d.]+ s$", text, re.MULTILINE)
    assert f"picture   {told[1]}" in told[0]
    assert told[0][-1] == "next      pydfm fit FOLDER_OF_GOOD_PICTURES -o model.pydfm"


def test_its_table_has_the_scores_of_each_kind(told):
    start = told[0].index("kind               images    lowest    median   highest")
    table = [
        re.fullmatch(r"(\D+?) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)", line).groups()
        for line in told[0][start + 1 : start + 5]
    ]
    assert [row[0] for row in table] == ["brick", "grass", "gravel", "brick with stone"]
    values = np.array([row[1:] for row in table], dtype=float)
    assert (values[:, 0] == 28).all()
    assert (np.diff(values[:, 1:]) > 0).all()
    assert (values[0, 2] < values[1:, 2]).all()

    kinds = np.array(load_demo().kinds)
    for kind, *_, low, middle, high in zip([row[0] for row in table], *values.T, strict=True):
        own = told[2][kinds == kind]
        assert [low, middle, high] == pytest.approx(
            [own.min(), np.median(own), own.max()], abs=0.051
        )


def test_it_tells_normal_from_foreign_well_above_chance(told):
    (line,) = (line for line in told[0] if line.startswith("AUROC"))
    value = re.fullmatch(r"AUROC     ([\d.]+), brick against all others .*", line).group(1)
    assert 0.9 < float(value) <= 1
    assert float(value) == pytest.approx(
        pydfm.evaluate(told[2], load_demo().labels)["auroc"], abs=0.0006
    )


def test_it_writes_a_picture(told):
    with Image.open(told[1]) as picture:
        assert picture.format == "PNG"
        assert picture.size == (990, 572)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert 10_000 < told[1].stat().st_size < 1_000_000
    assert len(np.unique(pixels, axis=0)) > 100


@pytest.mark.parametrize(
    ("package", "says"), [("matplotlib", "matplotlib"), ("skimage", "scikit-image")]
)
def test_it_names_the_extra_it_needs(monkeypatch, tmp_path, package, says):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the demo needs {says}; .*'\.\[demo\]'"):
        run_demo(tmp_path / "x.png", None, [].append)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick(monkeypatch):
    """A demo of few pictures."""
    demo = load_demo(128)
    small = type(demo)(demo.train[:6], demo.test[::6], demo.kinds[::6])
    monkeypatch.setattr("pydfm.demo.load_demo", lambda: small)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "start"), [("x.PDF", b"%PDF"), ("x.svg", b"<?xml"), ("plain", b"\x89PNG")]
)
def test_the_picture_has_the_format_of_its_name(monkeypatch, tmp_path, name, start):
    monkeypatch.setattr("pydfm.demo.DFM", Quick)
    run_demo(tmp_path / name, "w.pth", [].append)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [name]


class Quick:
    """Scores by the mean of the pixels."""

    n_components_, n_features_in_, explained_variance_ratio_ = 1, 1, np.ones(1)

    def __init__(self, **parameters):
        assert parameters["weights"] == "w.pth"

    def fit(self, pictures):
        return self

    def score(self, pictures):
        return np.float32([1 + np.asarray(picture).mean() for picture in pictures])


def test_a_picture_that_cannot_be_written_is_told_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr("pydfm.demo.load_demo", None)
    with pytest.raises(ValueError, match=r"x\.xyz' cannot be written as xyz; its extension must"):
        run_demo(tmp_path / "x.xyz", None, [].append)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        run_demo(tmp_path / "gone" / "x.png", None, [].append)
