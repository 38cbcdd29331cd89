"""Scores of a batch: what they are, and that each is computed once."""

from collections import Counter

import numpy as np
import pytest
import torch
from fits import model_of, rule_of
from reference import SCORE_TYPES, falling_rows
from scipy.ndimage import gaussian_filter

import pydfm
from pydfm.model import row_scores as row_scores_module
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.model.row_scores import RowScores

KINDS = list(SCORE_TYPES)
ROWS = falling_rows(50, 96, decay=1.5)
LABELS = np.arange(50) % 3
CLASSED = ROWS + 3.0 * LABELS[:, None]
OTHERS = falling_rows(11, 96, seed=1, decay=1.0)
GIVEN = np.arange(11) % 3


def of(model, rows=OTHERS, classes=None, n_threads=2):
    return RowScores(model, rows, n_threads, classes)


def first_layer(model):
    return Model(model.layers[:1], model.classes, {}, model.n_samples)


# Scores


@pytest.mark.parametrize("name", ["sum", "max"])
def test_scores_are_those_of_the_layers_combined(name):
    model = model_of(ROWS, combination=rule_of(name))
    scored = of(model)
    each = scored.layer_scores(KINDS)
    assert each.shape == (2, 4, 11)
    for i, layer in enumerate(model.layers):
        assert np.array_equal(each[i], layer.score(OTHERS, KINDS, 1)[0])
    t = (each - np.array([2.0, 30.0])[:, None, None]) / np.array([0.5, 7.0])[:, None, None]
    want = t.sum(axis=0) if name == "sum" else t.max(axis=0)
    got = scored.scores(KINDS)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_one_layer_is_scored_as_it_is():
    model = first_layer(model_of(ROWS))
    want = model.layers[0].score(OTHERS[:, :64], KINDS, 1)[0]
    assert np.array_equal(of(model, OTHERS[:, :64]).scores(KINDS), want)


@pytest.mark.parametrize("patch", [False, True])
def test_the_nearest_class_has_the_least_combined_score(patch):
    model = model_of(CLASSED, LABELS, patch=patch)
    for kind in KINDS:
        under = [of(model, OTHERS, np.full(11, c)).scores([kind])[0] for c in range(3)]
        assert np.array_equal(of(model).nearest(kind), np.argmin(under, axis=0))
        np.testing.assert_allclose(of(model).class_scores(kind), under, rtol=1e-6)
        given = np.stack(under)[GIVEN, np.arange(11)]
        assert np.array_equal(of(model, OTHERS, GIVEN).class_scores(kind)[0], given)
    assert (of(model, CLASSED).nearest("fre") == LABELS).mean() > 0.9
    one, own = first_layer(model), OTHERS[:, :64]
    want = model.layers[0].class_scores(own, "fre", 1)
    assert np.array_equal(of(one, own).nearest("fre"), want.argmin(axis=0))
    assert np.array_equal(of(one, own).class_scores("fre"), want)


def test_layers_under_each_class_are_those_under_given_classes():
    model = model_of(CLASSED, LABELS)
    each = of(model).layer_class_scores("ppca")
    assert each.shape == (2, 3, 11)
    for c in range(3):
        given = of(model, OTHERS, np.full(11, c)).layer_scores(["ppca"])[:, 0]
        assert np.array_equal(each[:, c], given)
    assert of(model, OTHERS, GIVEN).layer_class_scores("ppca").shape == (2, 1, 11)
    assert of(model_of(ROWS)).layer_class_scores("ppca").shape == (2, 1, 11)


def test_maps_are_those_of_the_layers_joined():
    model = model_of(ROWS)
    maps = [layer.maps(OTHERS, "fre", 1) for layer in model.layers]
    want = model.join_maps(maps, "fre", (20, 24))
    got = of(model).maps("fre", (20, 24))
    assert (got.shape, got.dtype) == ((11, 20, 24), np.float32)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    smoothed = of(model).maps("fre", (20, 24), 1.5)
    for i in range(11):
        blurred = gaussian_filter(want[i], 1.5, mode="nearest")
        np.testing.assert_allclose(smoothed[i], blurred, rtol=1e-4)


def test_maps_of_one_layer_are_in_the_units_of_its_scores():
    model = first_layer(model_of(ROWS))
    maps = of(model, OTHERS[:, :64]).maps("fre", (4, 4))
    np.testing.assert_allclose(maps, model.layers[0].maps(OTHERS[:, :64], "fre", 1), rtol=1e-6)


def test_maps_have_the_same_bits_in_any_batch():
    model = model_of(ROWS, patch=True)
    want = of(model).maps("ppca", (20, 24), 1.0)
    parts = [of(model, OTHERS[i : i + 4]).maps("ppca", (20, 24), 1.0) for i in range(0, 11, 4)]
    assert np.array_equal(np.concatenate(parts), want)


# Once


@pytest.fixture
def asked(monkeypatch):
    """How often each layer was asked for scores and for maps."""
    calls = Counter()
    for name in ("score", "maps"):
        actual = getattr(LayerModel, name)

        def counted(self, *arguments, name=name, actual=actual):
            calls[name, self.name] += 1
            return actual(self, *arguments)

        monkeypatch.setattr(LayerModel, name, counted)
    return calls


def everything(scored, kind):
    return [
        scored.scores([kind]),
        scored.class_scores(kind),
        scored.nearest(kind),
        scored.layer_scores([kind]),
        scored.layer_class_scores(kind),
    ]


@pytest.mark.parametrize("kind", ["fre", "ppca"])
def test_every_score_is_computed_once(asked, kind):
    model = model_of(CLASSED, LABELS)
    scored = of(model)
    scored.class_scores(kind)
    want = {("score", "a"): 3, ("score", "b"): 3}  # once for each class
    assert dict(asked) == want
    for _ in range(2):
        everything(scored, kind)
        assert dict(asked) == want


def test_scores_of_one_class_and_of_given_classes_are_computed_once(asked):
    for scored in (of(model_of(ROWS)), of(model_of(CLASSED, LABELS), OTHERS, GIVEN)):
        asked.clear()
        for _ in range(2):
            everything(scored, "nll")
        assert dict(asked) == {("score", "a"): 1, ("score", "b"): 1}


def test_one_layer_is_asked_once_for_the_nearest(asked):
    scored = of(first_layer(model_of(CLASSED, LABELS)), OTHERS[:, :64])
    for _ in range(2):
        scored.nearest("fre")
    assert dict(asked) == {("score", "a"): 1}
    # What is known under each class is not computed again.
    scored.class_scores("fre")
    asked.clear()
    everything(scored, "fre")
    assert not asked


@pytest.mark.parametrize("first", range(4))
def test_the_order_of_questions_changes_no_bit(first):
    model = model_of(CLASSED, LABELS)
    questions = [
        lambda scored: scored.scores(["fre"]),
        lambda scored: scored.class_scores("fre"),
        lambda scored: scored.nearest("fre"),
        lambda scored: scored.layer_scores(["fre"]),
    ]
    scored = of(model)
    questions[first](scored)
    for question in questions:
        assert np.array_equal(question(scored), question(of(model)))


# As the estimator gives them


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "classes"])
def maps_model(request, images):
    """An estimator whose standardised maps score images."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(6, 8, 3, 2, padding=1),
    )
    options = {"layers": ("0", "2"), "alpha": 0.1, "image_size": 16, "device": "cpu"}
    labels = np.array(["a", "b"] * 20) if request.param else None
    return pydfm.DFM(5, backbone=network, **options).fit(images, labels=labels)


def test_they_are_what_the_estimator_gives(maps_model, images):
    dfm = maps_model
    features = dfm.extract(images)
    scored = of(dfm.model_, features)
    assert dfm.image_score_ == "calibrated"
    for kind in ("fre", "nll"):
        assert np.array_equal(scored.scores([kind])[0], dfm.score(features, score_type=kind))
        each = dfm.layer_scores(features, score_type=kind)
        for own, want in zip(scored.layer_scores([kind])[:, 0], each.values(), strict=True):
            assert np.array_equal(own, want)
    size = dfm.feature_spec_.preprocessing.size
    assert np.array_equal(scored.maps("fre", size), dfm.score_map(features))
    if dfm.model_.classes is not None:
        nearest = dfm.classes_[scored.nearest("fre")]
        assert np.array_equal(nearest, dfm.predict_class(features))
        for c, label in enumerate(dfm.classes_):
            own = dfm.score(features, labels=np.full(40, label))
            assert np.array_equal(scored.class_scores("fre")[c], own)


def test_standardised_maps_are_made_once(maps_model, images, asked, monkeypatch):
    dfm = maps_model
    features = dfm.extract(images)
    n_classes = dfm.model_.n_classes
    scored = of(dfm.model_, features)
    decided = dfm.decider().measure(scored)
    maps = scored.maps("fre", (16, 16))
    # One map of each layer under each class serves scores, verdicts, and the map that is shown.
    assert asked["maps", "0"] == asked["maps", "2"] == n_classes
    monkeypatch.setattr(row_scores_module, "_MOST_KEPT", 0)  # as where there are too many classes
    again = of(dfm.model_, features)
    assert np.array_equal(dfm.decider().measure(again), decided)
    assert np.array_equal(again.maps("fre", (16, 16)), maps)
