import warnings

import numpy as np
import pytest
from reference import SCORE_TYPES, falling_rows, fit_reference

from pydfm import density_fitter as density_module
from pydfm import layer_fitter
from pydfm.fitting import ModelFitter
from pydfm.layer import pool_positions
from pydfm.layer_fitter import LayerFitter, LayerSettings
from pydfm.maps import Grid

GRID = Grid(4, 2, 3)


def settings(**changes):
    fields = {
        "n_components": 3,
        "covariance": "class",
        "density": "gaussian",
        "regularization": None,
        "spatial": "flatten",
        "image_score": "top",
        "top_share": 0.5,
        "random_state": 0,
        "calibration": "loo",
    }
    return LayerSettings(**{**fields, **changes})


def fitted(
    rows,
    labels=None,
    *,
    layers=(("a", None),),
    combine="sum",
    batches=1,
    outliers=None,
    **changes,
):
    fitter = ModelFitter(layers, rows.shape[1], settings(**changes), combine, n_threads=2)
    for part in np.array_split(np.arange(len(rows)), batches):
        fitter.add(rows[part], None if labels is None else labels[part])
    return fitter, fitter.fit(outliers)


def labelled(n=60, n_features=24):
    rng = np.random.default_rng(0)
    labels = np.array(["b", "c", "a"])[rng.integers(0, 3, n)]
    shift = {"a": 0.0, "b": 4.0, "c": -4.0}
    rows = falling_rows(n, n_features) + np.array([[shift[label]] for label in labels])
    return rows.astype(np.float32), labels


def folded_reference(rows, labels=None, k=3):
    """Score types -> scores of each row by the other fifths, under its class."""
    labels = np.zeros(len(rows), int) if labels is None else labels
    scores = {kind: np.empty(len(rows)) for kind in SCORE_TYPES}
    folds = np.arange(len(rows)) % 5
    for i in range(len(rows)):
        others = rows[(folds != folds[i]) & (labels == labels[i])]
        for kind, value in fit_reference(others, k).scores(rows[[i]]).items():
            scores[kind][i] = value[0]
    return scores


def test_layers_take_their_columns_in_order():
    rows = falling_rows(40, 24 + 24).astype(np.float32)
    _, model = fitted(rows, layers=[("a", GRID), ("b", GRID)])
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
    rows, labels = labelled()
    _, model = fitted(rows, labels, calibration=calibration, batches=7)
    assert model.classes == ["a", "b", "c"]
    for c, subspace in zip(model.classes, model.layers[0].density.subspaces, strict=True):
        np.testing.assert_allclose(subspace.mean, rows[labels == c].mean(axis=0), atol=1e-6)


def test_left_out_rows_are_told_by_their_class():
    rows, labels = labelled()
    for calibration in ("loo", "kfold"):
        fitter, model = fitted(rows, labels, calibration=calibration)
        found = fitter.left_out()
        classes, scores = found.classes, found.scores
        counts = np.bincount(classes, minlength=3)
        assert counts.tolist() == [(labels == c).sum() for c in model.classes]
        assert all(values.shape == (1, 60) for values in scores.values())


def test_tied_folds_of_more_rows_than_features_are_merged():
    rows, labels = labelled(200, 8)
    _, model = fitted(rows, labels, covariance="tied", calibration="kfold", batches=3)
    _, want = fitted(rows, labels, covariance="tied")
    (got,), (want,) = (m.layers[0].density.subspaces[:1] for m in (model, want))
    np.testing.assert_allclose(got.explained_variance, want.explained_variance, rtol=1e-6)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-6)


@pytest.mark.parametrize("batches", [1, 4])
def test_folds_are_scored_by_the_others(batches):
    rows, labels = labelled()
    fitter, _ = fitted(rows, labels, calibration="kfold", batches=batches)
    found = fitter.left_out()
    classes, scores = found.classes, found.scores
    want = folded_reference(rows.astype(np.float64), labels)
    order = np.argsort(classes, kind="stable")
    by_class = np.concatenate([np.flatnonzero(labels == c) for c in ("a", "b", "c")])
    for kind in SCORE_TYPES:
        np.testing.assert_allclose(scores[kind][0][order], want[kind][by_class], rtol=1e-3)
    assert np.isfinite(scores["relative_mahalanobis"]).all()


@pytest.mark.parametrize("rule", ["top", "sum"])
def test_pictures_of_patches_are_left_out_whole(rule):
    rows = falling_rows(30 * 6, 4, decay=1.5).reshape(30, 6, 4).transpose(0, 2, 1)
    rows = rows.reshape(30, 24).astype(np.float32)
    fitter, model = fitted(
        rows,
        layers=[("a", GRID)],
        spatial="patch",
        n_components=2,
        calibration="kfold",
        image_score=rule,
    )
    assert model.layers[0].patch
    assert model.layers[0].density.n_features == 4
    scores = fitter.left_out().scores
    folds = np.arange(30) % 5
    want = np.empty(30)
    for i in range(30):
        own = fit_reference(GRID.patches(rows[folds != folds[i]]), 2)
        want[i] = pool_positions(own.scores(GRID.patches(rows[[i]]))["fre"], rule, 0.5)
    np.testing.assert_allclose(scores["fre"][0], want, rtol=1e-3)
    assert np.isnan(scores["relative_mahalanobis"]).all()


def test_a_fold_may_lack_a_class_or_all_others():
    rows, labels = labelled(12)
    labels[:] = "a"
    labels[[0, 5, 10]] = "b"  # all of one fold: no other fold knows this class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitter, _ = fitted(rows, labels, calibration="kfold", n_components=2)
    found = fitter.left_out()
    classes, scores = found.classes, found.scores
    assert np.isnan(scores["fre"][0][classes == 1]).all()
    assert np.isfinite(scores["fre"][0][classes == 0]).all()
    fitter, _ = fitted(rows[:2], calibration="kfold", n_components=1)
    assert np.isnan(fitter.left_out().scores["fre"]).all()


@pytest.mark.parametrize("calibration", ["loo", "kfold"])
@pytest.mark.parametrize("with_labels", [False, True])
def test_the_same_rows_of_all_layers_are_left_out(monkeypatch, calibration, with_labels):
    monkeypatch.setattr(density_module, "_SAMPLE", 25)
    monkeypatch.setattr(density_module, "_CLASS_SAMPLE", 9)
    # Twice the same features, beside others of another width: scores must go together.
    rows, labels = labelled(90, 6)
    labels = labels if with_labels else None
    wide = np.concatenate([rows, falling_rows(90, 14, 3).astype(np.float32), rows], axis=1)
    layers = [("a", Grid(6, 1, 1)), ("b", Grid(14, 1, 1)), ("c", Grid(6, 1, 1))]
    fitter, _ = fitted(wide, labels, layers=layers, calibration=calibration)
    scores = fitter.left_out().scores
    assert scores["fre"].shape[1] >= 20
    np.testing.assert_array_equal(scores["fre"][0], scores["fre"][2])


def test_layers_are_combined_by_left_out_rows():
    rows = falling_rows(40, 24 + 24).astype(np.float32)
    _, combined = fitted(rows, layers=[("a", GRID), ("b", GRID)], combine="max")
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
    rows, labels = labelled(40, 24)
    labels = labels.astype("U9")
    labels[7] = "alone"
    with pytest.warns(UserWarning, match="keeps 0"):
        _, model = fitted(
            np.concatenate([rows, rows], axis=1), labels, layers=[("a", GRID), ("b", GRID)]
        )
    rule = model.combinations["fre"]
    assert np.isfinite(rule.mean).all()
    assert np.isfinite(rule.scale).all()


def test_known_outliers_are_scored_for_the_logistic_rule():
    rows = falling_rows(60, 48).astype(np.float32)
    far = falling_rows(20, 48, 5, decay=0.0).astype(np.float32)
    _, combined = fitted(rows, layers=[("a", GRID), ("b", GRID)], combine="logistic", outliers=far)
    assert set(combined.combinations) == set(SCORE_TYPES)
    assert (
        combined.score(far, ["fre"], 1)[0].min() > 0 > np.median(combined.score(rows, ["fre"], 1))
    )


class _Counted:
    """Counts how many rows fitters are given at once, and how many they keep."""

    def __init__(self, monkeypatch):
        self.most_at_once = self.most_kept = self.rows = 0
        actual = density_module.SubspaceFitter.add

        def add(fitter, features, classes=None, **options):
            actual(fitter, features, classes, **options)
            self.rows += len(features)
            self.most_at_once = max(self.most_at_once, len(features))
            self.most_kept = max(self.most_kept, fitter._n_kept)

        monkeypatch.setattr(density_module.SubspaceFitter, "add", add)


@pytest.mark.parametrize("calibration", ["kfold", None])
def test_patches_are_never_held_all_at_once(monkeypatch, calibration):
    counted = _Counted(monkeypatch)
    grid = Grid(4, 8, 8)
    rng = np.random.default_rng(0)
    fitter = LayerFitter(
        "a", slice(0, grid.size), grid, settings(spatial="patch", calibration=calibration), 1
    )
    for _ in range(50):
        fitter.add(rng.normal(size=(10, grid.size)).astype(np.float32), None)
    fitter.fit()
    assert counted.rows == 500 * 64
    assert counted.most_at_once <= 10 * 64
    assert counted.most_kept <= 4  # rows that are not folded into moments yet: at most D


def test_samples_are_bounded_by_their_bytes(monkeypatch):
    monkeypatch.setattr(layer_fitter, "SAMPLE_BYTES", 24 * 4 * 15)
    rows, _ = labelled(100)
    fitter, _ = fitted(rows, calibration="kfold")
    assert fitter.left_out().scores["fre"].shape == (1, 15)
