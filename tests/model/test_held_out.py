"""Held-out scores: those of rows under models that have not seen them."""

import warnings

import numpy as np
import pytest
from fits import trained
from reference import (
    SCORE_TYPES,
    falling_rows,
    fit_reference,
    named_rows,
    references,
    tied_references,
)

from pydfm.features.grid import Grid
from pydfm.model import settings as settings_module
from pydfm.model import training as training_module
from pydfm.model.anomaly_map import pool_positions
from pydfm.model.fitting import freeze
from pydfm.model.held_out import are_finite

GRID = Grid(4, 2, 3)


def fitted(rows, labels=None, **options):
    state = trained(rows, labels, **{"image_score": "sum", **options})
    return freeze(state, n_threads=2)


def held_out(rows, labels=None, **options):
    """The held-out scores of all layers."""
    return fitted(rows, labels, **options).pending.fit.held_out()


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


# One by one


@pytest.mark.parametrize(
    ("covariance", "reference"), [("class", references), ("tied", tied_references)]
)
@pytest.mark.parametrize("n", [80, 24])
@pytest.mark.parametrize("batches", [1, 5])
def test_rows_are_scored_without_themselves(covariance, reference, n, batches):
    rows, labels = named_rows(n, 20)
    numbers = np.searchsorted(["a", "b", "c"], labels)
    found = held_out(rows, labels, covariance=covariance, batches=batches)
    assert len(found.classes) == n
    # In the order of the classes by their numbers, and of rows within them, or of all rows.
    first = dict.fromkeys(labels.tolist())
    order = np.arange(n)
    if covariance == "class":
        order = np.concatenate([np.flatnonzero(labels == c) for c in sorted(first)])
    assert np.array_equal(np.sort(found.classes), np.sort(numbers))
    want = {kind: np.empty(n) for kind in SCORE_TYPES}
    for i, row in enumerate(order):
        rest = np.delete(np.arange(n), row)
        scores = reference(rows[rest], numbers[rest], 3)[numbers[row]].scores(rows[[row]])
        for kind in SCORE_TYPES:
            want[kind][i] = scores[kind][0]
    for kind in SCORE_TYPES:
        for c in range(3):
            got = np.sort(found.scores[kind][0][found.classes == c])
            own = np.sort(want[kind][numbers[order] == c])
            np.testing.assert_allclose(got, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("calibration", ["loo", "kfold"])
def test_rows_are_told_by_their_class(calibration):
    rows, labels = named_rows()
    found = held_out(rows, labels, calibration=calibration)
    counts = np.bincount(found.classes, minlength=3)
    assert counts.tolist() == [(labels == c).sum() for c in ("a", "b", "c")]
    assert all(values.shape == (1, 60) for values in found.scores.values())


@pytest.mark.parametrize("calibration", ["loo", "kfold"])
@pytest.mark.parametrize("with_labels", [False, True])
def test_the_same_rows_of_all_layers_are_held_out(monkeypatch, calibration, with_labels):
    monkeypatch.setattr(training_module, "_SAMPLE", 25)
    monkeypatch.setattr(training_module, "_CLASS_SAMPLE", 9)
    # Twice the same features, beside others of another width: scores must go together.
    rows, labels = named_rows(90, 6)
    labels = labels if with_labels else None
    wide = np.concatenate([rows, falling_rows(90, 14, 3).astype(np.float32), rows], axis=1)
    layers = [("a", Grid(6, 1, 1)), ("b", Grid(14, 1, 1)), ("c", Grid(6, 1, 1))]
    scores = held_out(wide, labels, layers=layers, calibration=calibration).scores
    assert scores["fre"].shape[1] >= 20
    np.testing.assert_array_equal(scores["fre"][0], scores["fre"][2])


def test_eigenpairs_are_forgotten_and_made_again():
    rows = falling_rows(40, 48).astype(np.float32)
    found = fitted(rows, layers=(("a", GRID), ("b", GRID)))
    fit = found.pending.fit
    assert all(one._pairs is None for each in fit.fits for one in each.fits.values())
    again, want = fit.held_out(), found.pending.found
    for kind, own in want.scores.items():
        assert np.array_equal(again.scores[kind], own)


def test_maps_are_the_shares_of_positions_in_the_fre():
    rows = falling_rows(30, 24).astype(np.float32)
    found = held_out(rows, layers=(("a", GRID),))
    (maps,) = found.maps
    assert (maps.shape, maps.dtype) == ((30, 2, 3), np.float32)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), found.scores["fre"][0], rtol=1e-4)
    i = 7
    own = fit_reference(np.delete(rows, i, axis=0), 3)
    d = rows[i] - own.mean
    residual = d - own.components.T @ (own.components @ d)
    np.testing.assert_allclose(maps[i], GRID.energies(residual[None])[0], rtol=1e-4)
    assert are_finite(np.array([[[1.0]], [[np.nan]], [[np.inf]]], np.float32)).tolist() == [
        True,
        False,
        False,
    ]


# In folds


@pytest.mark.parametrize("batches", [1, 4])
def test_folds_are_scored_by_the_others(batches):
    rows, labels = named_rows()
    found = held_out(rows, labels, calibration="kfold", batches=batches)
    classes, scores = found.classes, found.scores
    want = folded_reference(rows.astype(np.float64), labels)
    order = np.argsort(classes, kind="stable")
    by_class = np.concatenate([np.flatnonzero(labels == c) for c in ("a", "b", "c")])
    for kind in SCORE_TYPES:
        np.testing.assert_allclose(scores[kind][0][order], want[kind][by_class], rtol=1e-3)
    assert np.isfinite(scores["relative_mahalanobis"]).all()


@pytest.mark.parametrize("rule", ["top", "sum"])
def test_images_of_patches_are_held_out_whole(rule):
    rows = falling_rows(30 * 6, 4, decay=1.5).reshape(30, 6, 4).transpose(0, 2, 1)
    rows = rows.reshape(30, 24).astype(np.float32)
    found = fitted(
        rows,
        layers=[("a", GRID)],
        spatial="patch",
        n_components=2,
        image_score=rule,
        top_share=0.5,
    )
    assert found.calibration == "kfold"
    assert found.model.layers[0].patch
    assert found.model.layers[0].density.n_features == 4
    got = found.pending.fit.held_out()
    folds = np.arange(30) % 5
    want, maps = np.empty(30), np.empty((30, 2, 3))
    for i in range(30):
        own = fit_reference(GRID.patches(rows[folds != folds[i]]), 2)
        positions = own.scores(GRID.patches(rows[[i]]))["fre"]
        want[i], maps[i] = pool_positions(positions, rule, 0.5), positions.reshape(2, 3)
    np.testing.assert_allclose(got.scores["fre"][0], want, rtol=1e-3)
    np.testing.assert_allclose(got.maps[0], maps, rtol=1e-3)
    assert np.isnan(got.scores["relative_mahalanobis"]).all()


def test_a_fold_may_lack_a_class_or_all_others():
    rows, labels = named_rows(12)
    labels[:] = "a"
    labels[[0, 5, 10]] = "b"  # all of one fold: no other fold knows this class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = held_out(rows, labels, calibration="kfold", n_components=2)
    assert np.isnan(found.scores["fre"][0][found.classes == 1]).all()
    assert np.isfinite(found.scores["fre"][0][found.classes == 0]).all()
    two = held_out(rows[:2], calibration="kfold", n_components=1)
    assert np.isnan(two.scores["fre"]).all()


def test_samples_are_bounded_by_their_bytes(monkeypatch):
    monkeypatch.setattr(settings_module, "_FOLD_BYTES", 24 * 4 * 15)
    rows, _ = named_rows(100)
    assert held_out(rows, calibration="kfold").scores["fre"].shape == (1, 15)


# Not fitted at all


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_split_is_scored_by_the_model_itself(with_labels):
    rows, labels = named_rows()
    labels = labels if with_labels else None
    found = fitted(rows, labels, calibration="split", batches=4)
    own = np.zeros(60, int) if labels is None else np.searchsorted(["a", "b", "c"], labels)
    number = np.array([np.sum(own[:i] == own[i]) for i in range(60)])
    held = np.flatnonzero(number % 5 == 4)
    assert found.model.n_samples == 60 - len(held)
    got, classes = found.pending.fit.held_rows()
    assert np.array_equal(got, rows[held])
    assert np.array_equal(classes, own[held])
    scores = found.held_out
    theirs = None if labels is None else own[held]
    for kind in SCORE_TYPES:
        assert np.array_equal(scores.classes[kind], own[held])
        want = found.score(rows[held], 2, theirs).scores([kind])
        assert np.array_equal(scores.scores[kind], np.repeat(want, 2, axis=0))
    assert scores.map_maxima is None


def test_a_split_of_few_rows_holds_none():
    found = fitted(falling_rows(4, 5), calibration="split", n_components=1)
    assert found.pending.fit.held_rows() is None
    assert found.held_out.scores == {}
