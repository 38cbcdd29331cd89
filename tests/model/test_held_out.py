"""Held-out scores: those of rows under models that have not seen them."""

import warnings

import numpy as np
import pytest
from fits import trained
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    SCORE_TYPES,
    Reference,
    falling_rows,
    fit_reference,
    named_rows,
    references,
    tied_references,
)

from pydfm.features.grid import Grid
from pydfm.model import settings as settings_module
from pydfm.model.anomaly_map import pool_positions
from pydfm.model.fitting import freeze
from pydfm.model.held_out import FoldModel, are_finite
from pydfm.model.settings import N_FOLDS, N_PARTS
from pydfm.model.units import draw_folds

GRID = Grid(4, 2, 3)


def fitted(rows, labels=None, **options):
    state = trained(rows, labels, **{"image_score": "sum", **options})
    return freeze(state, n_threads=2)


def held_out(rows, labels=None, **options):
    """The held-out scores of all layers."""
    return fitted(rows, labels, **options).pending.fit.held_out()


def folds_of(labels, units=None, n_folds=N_FOLDS):
    """The fold of each row, which is that of its unit: by default its number in its class."""
    if units is None:
        units = np.array([np.sum(labels[:i] == own) for i, own in enumerate(labels)])
    return draw_folds(units, n_folds, 0)


def folded_reference(rows, labels=None, k=3):
    """Score types -> scores of each row by the other folds, under its class."""
    labels = np.zeros(len(rows), int) if labels is None else labels
    scores = {kind: np.empty(len(rows)) for kind in SCORE_TYPES}
    folds = folds_of(labels)
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


def scores_of(density, c, rows):
    """Score types -> scores (n,) of rows under a class of a density, in float64.

    NaN where there is no variance.
    """
    own = density.subspaces[c]
    of = [own] if density.background is None else [own, density.background]
    found = [
        Reference(s.mean, s.components, s.explained_variance, s.noise_variance).scores(rows)
        for s in of
    ]
    scores = found[0]
    if len(own.components) == 0:
        scores |= dict.fromkeys(SCORE_TYPES[1:], np.full(len(rows), np.nan))
    if density.background is not None:
        scores["relative_mahalanobis"] = scores["mahalanobis"] - found[1]["mahalanobis"]
    return scores


def refitted(rows, labels, groups, **options):
    """Score types -> scores (n,) of rows, each under the model of all rows of other units.

    Groups belong together within a class.
    """
    options = {"image_score": "sum", **options, "calibration": None}
    numbers = (
        np.zeros(len(rows), int) if labels is None else np.unique(labels, return_inverse=True)[1]
    )
    found = {}
    for c, group in sorted(set(zip(numbers.tolist(), groups.tolist(), strict=True))):
        own = (numbers == c) & (groups == group)
        state = trained(rows[~own], None if labels is None else labels[~own], **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of components that there are not
            layer = freeze(state, n_threads=1).model.layers[0]
        each = rows[own]
        if layer.patch:
            each = layer.grid.patches(each)
        for kind, values in scores_of(layer.density, c, each).items():
            values = values.reshape(own.sum(), -1)
            pooled = layer.pool(values) if layer.patch else values[:, 0]
            found.setdefault(kind, np.empty(len(rows)))[own] = pooled
    return found


@st.composite
def grouped_problems(draw):
    """Rows, labels or None, groups, and how they are fitted."""
    n_features = draw(st.sampled_from([3, 6, 24]))
    n_classes = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    labels, groups = [], []
    for c in range(n_classes):
        sizes = rng.integers(1, draw(st.sampled_from([2, 5])), draw(st.integers(4, 7)))
        labels += [c] * sizes.sum()
        groups += np.repeat(np.arange(len(sizes)), sizes).tolist()
    order = rng.permutation(len(labels))
    labels, groups = np.array(labels)[order], np.array(groups)[order]
    n = len(labels)
    rows = rng.normal(size=(n, n_features)) / np.sqrt(np.arange(1, n_features + 1))
    rows += rng.normal(size=(n_classes, n_features))[labels] + 0.5 * rows[groups]
    options = {
        "n_components": draw(st.sampled_from([1, 2, 0.9])),
        "regularization": draw(st.sampled_from([None, "shrinkage", 0.2])),
        "covariance": draw(st.sampled_from(["class", "tied"])),
        "batches": draw(st.sampled_from([1, 3])),
    }
    if n_features == 24 and draw(st.booleans()):
        options |= {"layers": (("a", GRID),), "spatial": "patch", "image_score": "mean"}
    return rows, labels if n_classes > 1 else None, groups, options


@given(grouped_problems())
@settings(max_examples=80)
def test_units_are_left_out_as_by_a_fit_without_them(problem):
    rows, labels, groups, options = problem
    state = trained(rows, labels, groups, **{"image_score": "sum", **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = freeze(state, n_threads=2).pending.fit.held_out(background=True)
    want = refitted(rows, labels, groups, **options)
    assert np.array_equal(found.places, np.arange(len(rows)))
    assert set(found.scores) == set(want)
    scale = {kind: np.abs(own[np.isfinite(own)]).max(initial=1) for kind, own in want.items()}
    for kind, own in want.items():
        got = found.scores[kind][0]
        known = np.isfinite(own)
        assert np.array_equal(np.isfinite(got), known)
        np.testing.assert_allclose(got[known], own[known], rtol=1e-7, atol=1e-9 * scale[kind])


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
    monkeypatch.setattr(settings_module, "_SAMPLE", 25)
    monkeypatch.setattr(settings_module, "_CLASS_SAMPLE", 9)
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
    want = folded_reference(rows.astype(np.float64), labels)
    assert np.array_equal(found.places, np.arange(60))
    assert np.array_equal(found.classes, np.searchsorted(["a", "b", "c"], labels))
    assert np.array_equal(found.folds, folds_of(labels))
    for kind in SCORE_TYPES:
        np.testing.assert_allclose(found.scores[kind][0], want[kind], rtol=1e-3)
    assert np.isfinite(found.scores["relative_mahalanobis"]).all()


@pytest.mark.parametrize("rule", ["top", "sum"])
@pytest.mark.parametrize("calibration", ["loo", "kfold"])
def test_images_of_patches_are_held_out_whole(rule, calibration):
    rows = falling_rows(30 * 6, 4, decay=1.5).reshape(30, 6, 4).transpose(0, 2, 1)
    rows = rows.reshape(30, 24).astype(np.float32)
    found = fitted(
        rows,
        layers=[("a", GRID)],
        spatial="patch",
        n_components=2,
        image_score=rule,
        top_share=0.5,
        calibration=calibration,
    )
    assert found.calibration == calibration
    assert found.model.layers[0].patch
    assert found.model.layers[0].density.n_features == 4
    got = found.pending.fit.held_out()
    folds = folds_of(np.zeros(30)) if calibration == "kfold" else np.arange(30)
    want, maps = np.empty(30), np.empty((30, 2, 3))
    for i in range(30):
        own = fit_reference(GRID.patches(rows[folds != folds[i]]), 2)
        positions = own.scores(GRID.patches(rows[[i]]))["fre"]
        want[i], maps[i] = pool_positions(positions, rule, 0.5), positions.reshape(2, 3)
    assert np.array_equal(got.places, np.arange(30))
    np.testing.assert_allclose(got.scores["fre"][0], want, rtol=1e-3)
    np.testing.assert_allclose(got.maps[0], maps, rtol=1e-3)
    assert set(got.scores) == set(SCORE_TYPES)  # of one class


def test_a_fold_may_lack_a_class_or_all_others():
    rows, labels = named_rows(12)
    labels[:] = "a"
    labels[5] = "b"  # no other fold knows this class
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fitted(rows, labels, calibration="kfold", n_components=2)
    one = found.held_out.samples["fre"]
    assert (one.classes == 0).all()
    assert np.array_equal(one.places, np.delete(np.arange(12), 5))
    for fold, own in enumerate(found.held_out.folds):
        alone = fold == folds_of(labels)[5]
        assert own.model.classes == (["a"] if alone else ["a", "b"])
        assert own.classes.tolist() == ([0] if alone else [0, 1])
    two = fitted(rows[:2], calibration="kfold", n_components=1).held_out
    assert two.samples == {}
    drawn = folds_of(np.zeros(2))
    assert [f is None for f in two.folds] == [k in drawn for k in range(N_FOLDS)]


@pytest.mark.parametrize("covariance", ["class", "tied"])
def test_the_models_of_folds_are_those_of_the_rows_of_others(covariance):
    rows, labels = named_rows(60, 12)
    options = {"covariance": covariance, "layers": (("a", Grid(6, 1, 1)), ("b", Grid(6, 1, 1)))}
    found = fitted(rows, labels, calibration="kfold", **options)
    folds = folds_of(labels)
    assert len(found.held_out.folds) == N_FOLDS
    for k, fold in enumerate(found.held_out.folds):
        assert isinstance(fold, FoldModel)
        assert fold.classes.tolist() == [0, 1, 2]
        assert fold.model.classes == ["a", "b", "c"]
        alone = fitted(rows[folds != k], labels[folds != k], **options)
        for one, other in zip(fold.model.layers, alone.model.layers, strict=True):
            got = one.score(rows, SCORE_TYPES, 2)[0]
            np.testing.assert_allclose(got, other.score(rows, SCORE_TYPES, 2)[0], rtol=1e-5)
        # How layers are combined is that of the whole model.
        assert fold.model.combinations is found.model.combinations


def test_samples_are_bounded_by_their_bytes(monkeypatch):
    monkeypatch.setattr(settings_module, "_HELD_BYTES", 24 * 4 * 2 * N_FOLDS)
    rows, _ = named_rows(100)
    assert held_out(rows, calibration="kfold").scores["fre"].shape == (1, 2 * N_FOLDS)


# Not fitted at all


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_split_is_scored_by_the_model_itself(with_labels):
    rows, labels = named_rows()
    labels = labels if with_labels else None
    found = fitted(rows, labels, calibration="split", batches=4)
    own = np.zeros(60, int) if labels is None else np.searchsorted(["a", "b", "c"], labels)
    held = np.flatnonzero(folds_of(own, n_folds=N_PARTS) == N_PARTS - 1)
    assert found.model.n_samples == 60 - len(held)
    got = found.pending.fit.held_rows()
    assert np.array_equal(got.rows, rows[held])
    assert np.array_equal(got.classes, own[held])
    assert np.array_equal(got.places, held)
    scores = found.held_out
    theirs = None if labels is None else own[held]
    for kind in SCORE_TYPES:
        sample = scores.samples[kind]
        assert np.array_equal(sample.classes, own[held])
        assert np.array_equal(sample.places, held)
        want = found.score(rows[held], 2, theirs).scores([kind])
        assert np.array_equal(sample.scores, np.repeat(want, 2, axis=0))
    assert scores.folds == ()
    assert scores.map_maxima is None


def test_a_split_of_few_rows_holds_none():
    assert (folds_of(np.zeros(3)) != 4).all()
    found = fitted(falling_rows(3, 5), calibration="split", n_components=1)
    assert found.pending.fit.held_rows() is None
    assert found.held_out.samples == {}
