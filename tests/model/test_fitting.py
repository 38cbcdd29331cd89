"""From training states to fitted models."""

import dataclasses
import pickle
import warnings

import numpy as np
import pytest
from fits import trained
from reference import SCORE_TYPES, falling_rows, fit_reference, named_rows

from pydfm.features.grid import Grid
from pydfm.model.fitting import freeze
from pydfm.model.held_out import HeldOutScores

GRID = Grid(4, 2, 3)
TWO_LAYERS = (("a", GRID), ("b", GRID))


def fitted(rows, labels=None, *, outliers=None, **options):
    state = trained(rows, labels, **{"image_score": "sum", **options})
    return freeze(state, n_threads=2, outliers=outliers)


def test_layers_take_their_columns_in_order():
    rows = falling_rows(40, 24 + 24).astype(np.float32)
    model = fitted(rows, layers=TWO_LAYERS).model
    assert [(layer.name, layer.columns) for layer in model.layers] == [
        ("a", slice(0, 24)),
        ("b", slice(24, 48)),
    ]
    for layer in model.layers:
        want = fit_reference(rows[:, layer.columns], 3)
        np.testing.assert_allclose(layer.density.subspaces[0].mean, want.mean, atol=1e-9)
        np.testing.assert_allclose(
            layer.density.subspaces[0].explained_variance, want.variances, rtol=1e-8
        )
    assert (model.n_samples, model.classes, model.n_features) == (40, None, 48)


@pytest.mark.parametrize("calibration", ["loo", "kfold"])
def test_classes_are_sorted_whatever_the_order_they_come_in(calibration):
    rows, labels = named_rows()
    model = fitted(rows, labels, calibration=calibration, batches=7).model
    assert model.classes == ["a", "b", "c"]
    for c, subspace in zip(model.classes, model.layers[0].density.subspaces, strict=True):
        np.testing.assert_allclose(subspace.mean, rows[labels == c].mean(axis=0), atol=1e-6)


def test_tied_folds_of_more_rows_than_features_are_merged():
    rows, labels = named_rows(200, 8)
    got = fitted(rows, labels, covariance="tied", calibration="kfold", batches=3)
    want = fitted(rows, labels, covariance="tied")
    (got,), (want,) = (f.model.layers[0].density.subspaces[:1] for f in (got, want))
    np.testing.assert_allclose(got.explained_variance, want.explained_variance, rtol=1e-6)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-6)


def test_layers_are_combined_by_held_out_rows():
    rows = falling_rows(40, 24 + 24).astype(np.float32)
    combined = fitted(rows, layers=TWO_LAYERS, combine="max").model
    assert set(combined.combinations) == set(SCORE_TYPES)
    for i_layer, columns in enumerate((slice(0, 24), slice(24, 48))):
        alone = [
            fit_reference(np.delete(rows, i, axis=0)[:, columns], 3).scores(rows[[i], columns])
            for i in range(40)
        ]
        for kind in SCORE_TYPES:
            values = np.array([scores[kind][0] for scores in alone])
            rule = combined.combinations[kind]
            assert rule.rule == "max"
            assert rule.mean[i_layer] == pytest.approx(values.mean(), rel=1e-6)
            assert rule.scale[i_layer] == pytest.approx(values.std(), rel=1e-6)


def test_rows_without_finite_scores_do_not_count():
    rows, labels = named_rows(40, 24)
    labels = labels.astype("U9")
    labels[7] = "alone"
    with pytest.warns(UserWarning, match="keeps 0"):
        model = fitted(np.concatenate([rows, rows], axis=1), labels, layers=TWO_LAYERS).model
    rule = model.combinations["fre"]
    assert np.isfinite(rule.mean).all()
    assert np.isfinite(rule.scale).all()


def test_known_outliers_are_scored_for_the_logistic_rule():
    rows = falling_rows(60, 48).astype(np.float32)
    far = falling_rows(20, 48, 5, decay=0.0).astype(np.float32)
    found = fitted(rows, layers=TWO_LAYERS, combine="logistic", outliers=far)
    assert set(found.model.combinations) == set(SCORE_TYPES)
    scores = [found.score(own, 1).scores(["fre"])[0] for own in (far, rows)]
    assert scores[0].min() > 0 > np.median(scores[1])


@pytest.mark.parametrize(
    ("n", "image_score", "want"),
    [
        (3, None, "calibrated"),
        (3, "calibrated", "calibrated"),
        (40, "sum", "sum"),
    ],
)
def test_maps_are_standardised_where_there_are_images_enough(n, image_score, want):
    rows = falling_rows(n, 48).astype(np.float32)
    found = fitted(rows, layers=TWO_LAYERS, image_score=image_score, n_components=1)
    assert found.model.image_score == want
    for layer in found.model.layers:
        assert (layer.scale is not None) == (want == "calibrated")
    if want == "calibrated":
        maps = found.pending.found.maps[0]
        scale = found.model.layers[0].scale
        np.testing.assert_allclose(scale.mean[0], maps.mean(axis=0, dtype=np.float64))


def test_two_images_have_no_standardised_maps_but_a_warning():
    rows = falling_rows(2, 24).astype(np.float32)
    says = "image_score is None, for 'calibrated', which needs 3 images .* and the model has 2: it"
    with pytest.warns(UserWarning, match=says):
        found = fitted(rows, layers=(("a", GRID),), image_score=None, n_components=1)
    assert found.model.image_score == "sum"
    assert found.model.layers[0].scale is None


def test_too_few_images_for_standardised_maps_are_told():
    rows = falling_rows(12, 24)
    labels = np.where(np.arange(12) < 2, "a", "b")
    state = trained(rows, labels, layers=(("a", GRID),), image_score="calibrated")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class of two rows keeps one component
        says = "needs 3 images that can be held out, and the class 'a' has 2; give it more"
        with pytest.raises(ValueError, match=says):
            freeze(state, n_threads=2)


def test_a_fit_is_frozen_and_scores_rows():
    rows, labels = named_rows()
    found = fitted(rows, labels)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.model = None
    assert found.spec is None
    assert found.calibration == "loo"
    scored = found.score(rows, 2)
    assert scored.model is found.model
    given = found.score(rows, 2, np.zeros(60, dtype=np.intp))
    want = fit_reference(rows[labels == "a"], 3).scores(rows)["fre"]
    np.testing.assert_allclose(given.scores(["fre"])[0], want, rtol=1e-3)
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again.score(rows, 1).scores(["fre"]), scored.scores(["fre"]))
    for kind, own in found.held_out.samples.items():
        assert np.array_equal(again.held_out.samples[kind].scores, own.scores)


def test_held_out_scores_are_computed_when_they_are_asked_for():
    rows, _ = named_rows()
    found = fitted(rows)
    assert "held_out" not in vars(found)
    assert isinstance(found.held_out, HeldOutScores)
    assert found.held_out is found.held_out
    known = dataclasses.replace(found, pending=found.held_out)
    assert known.held_out is found.held_out
    none = fitted(rows, calibration=None)
    with pytest.raises(ValueError, match="was fitted with calibration=None, and has no held-out"):
        _ = none.held_out


def test_a_state_is_left_as_it_was():
    rows, labels = named_rows()
    state = trained(rows, labels, calibration="kfold")
    before = pickle.dumps(state)
    freeze(state, n_threads=2).held_out  # noqa: B018
    assert pickle.dumps(state) == before


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_are_told(n):
    state = trained(falling_rows(1, 4))
    state = state.emptied() if n == 0 else state
    with pytest.raises(ValueError, match=f"n_samples={n}; fit needs at least two rows"):
        freeze(state, n_threads=1)
