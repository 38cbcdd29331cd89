import sys

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

import pydfm

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def no_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def dfm(tiny_network, textures):
    network = tiny_network[:3]
    return pydfm.DFM(3, backbone=network, image_size=24, device="cpu", alpha=0.2).fit(textures)


def test_scores_are_drawn_beside_held_out_ones(dfm, textures):
    figure, ax = pyplot.subplots()
    assert dfm.plot_scores(textures[:5], ax=ax) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "held-out (12)",
        "these images (5)",
        f"threshold {dfm.threshold_:.3g}",
    ]
    (line,) = ax.lines
    assert line.get_xdata() == pytest.approx([dfm.threshold_] * 2)
    figure.canvas.draw()
    assert dfm.plot_scores(textures) is not ax


def test_without_one_threshold_there_is_no_line(textures, tiny_network):
    dfm = pydfm.DFM(3, backbone=tiny_network[:3], image_size=24, device="cpu", alpha=0.2)
    dfm.fit(textures, labels=np.arange(12) % 2)
    assert len(dfm.plot_scores(textures).lines) == 0


def test_maps_are_drawn_in_the_geometry_of_the_image(dfm, textures):
    _, axes = pyplot.subplots(1, 2)
    drawn = dfm.plot_maps(textures[:2], axes=axes)
    assert drawn.tolist() == axes.tolist()
    for k, ax in enumerate(axes):
        picture, overlay = ax.images
        assert picture.get_extent() == [0, 48, 40, 0]
        assert overlay.get_extent() == pytest.approx((0, 48, 40, 0))
        assert ax.get_xlim() == (0, 48)
        assert ax.get_ylim() == (40, 0)
        assert ax.get_title() == f"{k}: score {dfm.score(textures[:2])[k]:.3g}"
    low, high = dfm.map_range_
    places = ((dfm.score_map(textures[:1])[0] - low) / (high - low)).clip(0, 1)
    opacity = np.asarray(axes[0].images[1].get_array())[..., 3]
    np.testing.assert_allclose(opacity, 0.8 * places, atol=1e-5)


def test_the_highest_scores_are_drawn_by_default(dfm, textures):
    axes = dfm.plot_maps(textures, most=5)
    scores = dfm.score(textures)
    order = np.argsort(-scores, kind="stable")[:5]
    assert [int(ax.get_title().split(":")[0]) for ax in axes] == order.tolist()
    axes[0].figure.canvas.draw()
    assert len(axes[0].figure.axes) == 5


def test_what_cannot_be_drawn_is_one_sentence(dfm, textures, tiny_network, monkeypatch):
    _, axes = pyplot.subplots(1, 3)
    with pytest.raises(ValueError, match="axes has 3 axes, and X 2 images that can be read"):
        dfm.plot_maps([Image.fromarray(t.transpose(1, 2, 0)) for t in textures[:2]], axes=axes)
    flat = pydfm.DFM(3, backbone=tiny_network[:3], spatial="mean", image_size=24, device="cpu")
    with pytest.raises(ValueError, match="one position in an image, so that there is no map"):
        flat.fit(textures).plot_maps(textures)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plots need matplotlib; install it with .*\[plot\]"):
        dfm.plot_scores(textures)
