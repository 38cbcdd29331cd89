import csv
import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import falling_rows
from scipy import stats
from sklearn.base import clone
from torch import nn

import pydfm
from pydfm import cli
from pydfm.calibration import Calibration, Tail, uniformity
from pydfm.combination import Combination
from pydfm.maps import Grid
from pydfm.positions import PositionScale, standardise_left_out

KINDS = ("fre", "mahalanobis", "nll", "ppca")
ROWS = falling_rows(60, 12, offset=1.0)
FRESH = falling_rows(300, 12, seed=1, offset=1.0)
LABELS = np.repeat(["a", "b"], [35, 25])
TWO = ROWS + (LABELS == "b")[:, None] * np.float32(3)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)


def maps_model(**parameters):
    """A model of pictures whose two layers have 8 x 8 and 4 x 4 positions."""
    import torch

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, padding=1)
    )
    parameters = {"backbone": network, "layers": ("0", "2"), "alpha": 0.1, **parameters}
    return pydfm.DFM(5, image_size=16, device="cpu", **parameters)


def left_out(dfm, kind="fre"):
    """Scores of left-out rows by class, ascending."""
    return dfm._ready_calibration(kind, None).scores


def count(scores, own):
    return (1 + (np.asarray(own) >= np.asarray(scores)[:, None]).sum(axis=1)) / (1 + len(own))


# P-values


@pytest.mark.parametrize(("n", "d"), [(8, 20), (30, 12)])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_refitting_without_each_row(n, d, kind):
    rows, fresh = falling_rows(n, d), falling_rows(25, d, seed=1)
    dfm = pydfm.DFM(3, kind).fit(rows)
    naive = [
        pydfm.DFM(3, kind, calibration=None).fit(np.delete(rows, i, 0)).score(rows[i : i + 1])[0]
        for i in range(n)
    ]
    np.testing.assert_allclose(left_out(dfm, kind)[0], np.sort(naive), rtol=1e-5)
    p = dfm.p_value(fresh)
    assert p.dtype == np.float64
    assert np.array_equal(p, count(dfm.score(fresh), left_out(dfm, kind)[0]))


@pytest.mark.parametrize("calibration", ["loo", "split"])
def test_they_are_uniform_on_fresh_rows(calibration):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(60):
        x = rng.standard_normal((100, 80)) / np.sqrt(np.arange(1, 81))
        dfm = pydfm.DFM(calibration=calibration).fit(x[:60])
        found.append(dfm.p_value(x[60:]))
    p = np.concatenate(found)
    steps = 61 if calibration == "loo" else 13
    for level in np.arange(2, steps, 5) / steps:
        assert np.mean(p <= level + 1e-9) == pytest.approx(level, abs=0.04)
    # The scores of the fitted rows themselves would call nearly all fresh ones anomalous.
    naive = pydfm.DFM().fit(x[:60])
    assert np.mean(naive.score(x[60:]) > naive.score(x[:60]).max()) > 0.9


def test_several_classes_give_the_largest_over_them():
    dfm = pydfm.DFM(3).fit(TWO, LABELS)
    under = {
        c: dfm.p_value(TWO, np.full(len(TWO), c))  # every row under the one class
        for c in ("a", "b")
    }
    for c, own in zip(("a", "b"), left_out(dfm), strict=True):
        scores = dfm.score(TWO, np.full(len(TWO), c))
        assert np.array_equal(under[c], count(scores, own))
    p = dfm.p_value(TWO)
    assert np.array_equal(p, np.maximum(under["a"], under["b"]))
    assert not np.array_equal(p, under["a"])
    assert np.array_equal(dfm.p_value(TWO, LABELS), np.where(LABELS == "a", *under.values()))


def test_several_types_of_scores_come_in_rows():
    dfm = pydfm.DFM(3).fit(ROWS)
    both = dfm.p_value(FRESH, score_type=("ppca", "fre"))
    assert np.array_equal(both, [dfm.p_value(FRESH, score_type=kind) for kind in ("ppca", "fre")])


def test_equal_scores_count_as_large():
    scores = np.array([1, 2, 2, 2, 5], dtype=np.float32)
    calibration = Calibration.of(scores, np.zeros(5, dtype=int))
    p = calibration.p_values(np.array([0.5, 1, 2, 3, 5, 6, np.nan], dtype=np.float32))
    assert np.array_equal(p, np.array([6, 6, 5, 2, 2, 1, np.nan]) / 6, equal_nan=True)
    assert np.array_equal(calibration.own_p_values(), np.array([5, 4, 4, 4, 1]) / 5)


@given(
    scores=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    fresh=st.lists(st.integers(-1, 10), min_size=1, max_size=9),
    alpha=st.floats(0.001, 0.999) | st.integers(1, 40).map(lambda i: i / 41),
)
def test_the_threshold_is_where_p_values_pass_the_level(scores, fresh, alpha):
    own = np.array(scores, dtype=np.float32)
    calibration = Calibration.of(own, np.zeros(len(own), dtype=int))
    p = calibration.p_values(np.array(fresh, dtype=np.float32))
    if alpha < calibration.smallest_alpha * (1 - 1e-9):
        with pytest.raises(ValueError, match="take at least that for alpha"):
            calibration.threshold(alpha)
    else:
        below = p <= alpha * (1 + 1e-9)
        assert np.array_equal(np.array(fresh) > calibration.threshold(alpha), below)


def test_k_folds_are_scored_by_the_model_of_the_others():
    dfm = pydfm.DFM(3, calibration="kfold").fit(ROWS)
    fold = np.arange(len(ROWS)) % 5
    naive = [pydfm.DFM(3).fit(ROWS[fold != f]).score(ROWS[fold == f]) for f in range(5)]
    np.testing.assert_allclose(left_out(dfm)[0], np.sort(np.concatenate(naive)), rtol=1e-5)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("cut", [60, 7])  # in one batch, and in two
def test_a_split_is_not_fitted_on(labels, cut):
    own = np.zeros(len(ROWS), dtype=int) if labels is None else (labels == "b").astype(int)
    batches = [part for part in (ROWS[:cut], ROWS[cut:]) if len(part)]
    dfm = pydfm.DFM(3, calibration="split").fit(iter(batches), labels)
    number = np.array([np.sum(own[:i] == own[i]) for i in range(len(ROWS))])
    held = number % 5 == 4
    plain = pydfm.DFM(3).fit(ROWS[~held], None if labels is None else labels[~held])
    assert (dfm.n_samples_, dfm.calibration_) == ((~held).sum(), "split")
    assert np.array_equal(dfm.score(FRESH), plain.score(FRESH))
    for c, scores in enumerate(left_out(dfm)):
        rows = ROWS[held & (own == c)]
        want = plain.score(rows, None if labels is None else np.full(len(rows), "ab"[c]))
        assert np.array_equal(scores, np.sort(want))


@pytest.mark.parametrize("covariance", ["class", "tied"])
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
@pytest.mark.parametrize("kind", [*KINDS, "relative_mahalanobis"])
def test_every_model_gives_them(covariance, calibration, kind):
    dfm = pydfm.DFM(3, kind, covariance=covariance, calibration=calibration).fit(TWO, LABELS)
    p = dfm.p_value(TWO[::2] + 1e-3)
    assert ((p > 0) & (p <= 1)).all()
    far = dfm.p_value(TWO[:3] - 100 * np.arange(1, 13, dtype=np.float32))
    if kind != "relative_mahalanobis":  # what all classes share does not count there
        assert np.array_equal(far, np.full(3, dfm.smallest_alpha_))


# Tails


def test_a_tail_goes_on_below_the_smallest_p_value():
    scores = np.random.default_rng(0).exponential(size=(200, 2000)).astype(np.float32)
    fresh = np.array([4.0, 8, 12], dtype=np.float32)
    found = [
        Calibration.of(own, np.zeros(len(own), dtype=int)).with_tail("gpd").p_values(fresh)
        for own in scores[:40]
    ]
    # In the median over samples, within a small factor of the truth.
    ratio = np.median(found, axis=0) / np.exp(-fresh)
    assert ((ratio > 0.5) & (ratio < 3)).all()
    assert np.min(found) < 1 / 2001


def test_a_tail_is_continuous_falling_and_has_thresholds():
    dfm = pydfm.DFM(3).fit(ROWS)
    calibration = dfm._ready_calibration("fre", "gpd")
    (tail,) = calibration.tails
    start = np.float32(tail.start)
    assert calibration.p_values(np.nextafter(start, np.float32(np.inf))) == pytest.approx(11 / 61)
    x = np.linspace(start, 5 * start, 500, dtype=np.float32)[1:]
    p = calibration.p_values(x)
    assert (np.diff(p) < 0).all()
    assert (p > 0).all()
    for alpha in (0.1, 0.01, 1e-4):
        threshold = calibration.threshold(alpha)
        assert calibration.p_values(np.array([threshold]))[0] == pytest.approx(alpha)
    assert calibration.threshold(0.3) == dfm._ready_calibration("fre", None).threshold(0.3)
    below = x[x < dfm.set_params(alpha=0.05).threshold_]
    plain = dfm._ready_calibration("fre", None)
    inside = below[below <= start]
    assert np.array_equal(calibration.p_values(inside), plain.p_values(inside))
    verdicts = dfm.predict(FRESH, alpha=1e-3, tail="gpd")
    assert np.array_equal(verdicts == -1, dfm.p_value(FRESH, tail="gpd") <= 1e-3)
    with pytest.raises(ValueError, match=r"alpha is 0.001, but the model has 60 scores"):
        dfm.predict(FRESH, alpha=1e-3)


def test_a_tail_never_ends():
    tail = Tail.fit(np.sort(np.random.default_rng(0).random(100)))  # whose true tail ends at 1
    assert tail.shape == 0
    assert tail.p_values(np.array([5.0]))[0] > 0


# Verdicts


def test_verdicts_follow_from_p_values():
    dfm = pydfm.DFM(3, alpha=0.05).fit(ROWS)
    mixed = np.concatenate([FRESH, ROWS[:5] + 10 * FRESH[::60]])
    p = dfm.p_value(mixed)
    assert np.array_equal(dfm.predict(mixed), np.where(p <= 0.05, -1, 1))
    assert np.array_equal(dfm.predict(mixed, alpha=0.2), np.where(p <= 0.2, -1, 1))
    found = dfm.assess(mixed)
    assert np.array_equal(found.scores, dfm.score(mixed))
    assert found.scores.dtype == np.float32
    assert np.array_equal(found.p_values, p)
    assert np.array_equal(found.verdicts, dfm.predict(mixed))
    assert np.array_equal(dfm.score(mixed) > dfm.threshold_, p <= 0.05)
    decision = dfm.decision_function(mixed)
    assert np.array_equal(decision < 0, p <= 0.05)
    assert np.array_equal(decision, dfm.score_samples(mixed) - dfm.offset_)
    assert dfm.smallest_alpha_ == 1 / 61
    assert np.array_equal(dfm.fit_predict(ROWS), dfm.predict(ROWS))


def test_a_row_is_anomalous_where_it_is_under_every_class():
    dfm = pydfm.DFM(3, alpha=0.1).fit(TWO, LABELS)
    mixed = np.concatenate([TWO, TWO[:9] - 9])
    assert dfm.threshold_.shape == (2,)
    under = np.stack([dfm.score(mixed, np.full(len(mixed), c)) for c in ("a", "b")])
    anomalous = (under > dfm.threshold_[:, None]).all(axis=0)
    assert np.array_equal(dfm.predict(mixed) == -1, anomalous)
    assert np.array_equal(dfm.p_value(mixed) <= 0.1, anomalous)
    assert np.array_equal(dfm.decision_function(mixed) < 0, anomalous)
    labels = np.append(LABELS, ["a"] * 9)
    own = np.where(labels == "a", *(under > dfm.threshold_[:, None]))
    assert np.array_equal(dfm.predict(mixed, labels) == -1, own)
    assert dfm.smallest_alpha_ == 1 / 26
    with pytest.raises(AttributeError, match="2 classes, each with a threshold of its own"):
        _ = dfm.offset_


def test_false_discoveries_are_controlled_by_benjamini_and_hochberg():
    dfm = pydfm.DFM(3).fit(ROWS)
    mixed = np.concatenate([FRESH[:20], FRESH[:20] + 20])
    p = dfm.p_value(mixed)
    want = stats.false_discovery_control(p) <= 0.1
    assert np.array_equal(dfm.predict(mixed, fdr=0.1) == -1, want)
    assert want[20:].all()
    assert not want.all()


# Maps


def test_a_scale_is_mean_and_deviation_with_a_floor():
    rng = np.random.default_rng(0)
    maps = rng.random((9, 2, 5)) * np.array([1, 2, 3, 1e-9, 0])
    scale = PositionScale.fit(maps, np.zeros(9, dtype=int), 1)
    spread = maps.std(axis=0)
    floor = 0.1 * np.median(spread[:, :3])
    np.testing.assert_allclose(scale.mean[0], maps.mean(axis=0))
    np.testing.assert_allclose(scale.deviation[0], np.maximum(spread, floor))
    still = PositionScale.fit(np.ones((4, 2, 2)), np.zeros(4, dtype=int), 1)
    assert np.array_equal(still.deviation, np.ones((1, 2, 2)))


def test_a_map_is_standardised_by_the_others_of_its_class():
    rng = np.random.default_rng(0)
    maps = rng.gamma(1, size=(14, 3, 4))
    classes = np.array([0, 1] * 7)
    found = standardise_left_out(maps, classes)
    for i, own in enumerate(maps):
        same = classes == classes[i]
        floor = 0.1 * np.median(maps[same].std(axis=0))
        others = maps[same & (np.arange(14) != i)]
        want = (own - others.mean(axis=0)) / np.maximum(others.std(axis=0), floor)
        np.testing.assert_allclose(found[i], want)


@pytest.mark.parametrize("rule", ["sum", "max"])
def test_layers_are_combined_by_the_others(rule):
    scores = np.random.default_rng(0).gamma(1, size=(3, 10))
    found = Combination.fit(rule, scores).combine_left_out(scores)
    want = [
        Combination.fit(rule, np.delete(scores, i, 1)).combine(scores[:, i : i + 1])[0]
        for i in range(10)
    ]
    np.testing.assert_allclose(found, want)


def naive_energies(features, grid, n_components):
    """Energies of each row of a layer under the model of the others."""
    energies = []
    for i, row in enumerate(features):
        others = np.delete(features, i, 0)
        _, _, axes = np.linalg.svd(others - others.mean(axis=0), full_matrices=False)
        axes, away = axes[:n_components], row - others.mean(axis=0)
        energies.append(away - away @ axes.T @ axes)
    return grid.energies(np.array(energies))


@pytest.mark.parametrize("pool", [1, (1, 2)])  # N < D in both layers; N > D in the second
def test_pictures_are_scored_by_standardised_maps(images, pool):
    dfm = maps_model(pool=pool).fit(images)
    assert dfm.image_score_ == "calibrated"
    features = dfm.extract(images).astype(np.float64)
    grids = dfm.feature_spec_.grids
    parts = np.split(features, [grids[0].size], axis=1)
    energies = [naive_energies(*layer, 5) for layer in zip(parts, grids, strict=True)]

    def top(maps):
        joined = maps[0] + grids[1].enlarge(maps[1], (8, 8))
        return np.sort(joined.reshape(len(joined), -1), axis=1)[:, -6:].mean(axis=1)

    # A picture that was not fitted on.
    fresh = 255 - images[:7]
    rows = np.split(dfm.extract(fresh).astype(np.float64), [grids[0].size], axis=1)
    maps = []
    for layer, own, e, grid in zip(dfm.model_.layers, rows, energies, grids, strict=True):
        subspace = layer.density.subspaces[0]
        away = own - subspace.mean
        away -= away @ subspace.components.T @ subspace.components
        maps.append((grid.energies(away) - e.mean(axis=0)) / e.std(axis=0))
    np.testing.assert_allclose(dfm.score(fresh), top(maps), rtol=1e-4)
    joined = maps[0] + grids[1].enlarge(maps[1], (8, 8))
    np.testing.assert_allclose(
        dfm.score_map(fresh), grids[0].enlarge(joined, (16, 16)), rtol=1e-3, atol=1e-3
    )
    # Those that were, without themselves.
    maps = [standardise_left_out(e, np.zeros(40, dtype=int)) for e in energies]
    np.testing.assert_allclose(left_out(dfm)[0], np.sort(top(maps)), rtol=1e-4)
    joined = maps[0] + grids[1].enlarge(maps[1], (8, 8))
    maxima = np.sort(grids[0].enlarge(joined, (16, 16)).max(axis=(1, 2)))
    np.testing.assert_allclose(dfm.map_threshold_, maxima[-4], rtol=1e-4)


@pytest.mark.parametrize("parameters", [{}, {"image_score": "sum"}, {"spatial": "patch"}])
@pytest.mark.parametrize("labelled", [False, True])
def test_maps_of_a_split_have_a_threshold_from_what_is_held_out(images, parameters, labelled):
    labels = np.array(["a", "b"] * 20) if labelled else None
    dfm = maps_model(calibration="split", **parameters).fit(images, labels)
    own = np.zeros(40, dtype=int) if labels is None else (labels == "b").astype(int)
    number = np.array([np.sum(own[:i] == own[i]) for i in range(40)])
    held = images[number % 5 == 4]
    dfm.set_params(alpha=0.25)
    maxima = np.sort(dfm._ready_calibrations().map_maxima)
    assert dfm.map_threshold_ == maxima[-2]
    if not labelled:
        np.testing.assert_allclose(np.sort(dfm.score_map(held).max(axis=(1, 2))), maxima, rtol=1e-6)


def test_maps_of_good_pictures_seldom_pass_their_threshold():
    images = np.random.default_rng(1).integers(0, 256, (400, 3, 16, 16), dtype=np.uint8)
    for parameters in ({}, {"image_score": "sum"}, {"spatial": "patch"}):
        dfm = maps_model(**parameters).fit(images[:60])
        share = np.mean(dfm.score_map(images[60:]).max(axis=(1, 2)) > dfm.map_threshold_)
        assert 0.03 < share < 0.2, parameters
        p = dfm.p_value(images[60:])
        assert 0.03 < np.mean(p <= 0.1) < 0.2, parameters


def test_classes_have_standardised_maps_of_their_own(images):
    labels = np.array(["a", "b"] * 20)
    dfm = maps_model().fit(images, labels)
    under = np.stack([dfm.score(images, np.full(40, c)) for c in ("a", "b")])
    np.testing.assert_allclose(dfm.score(images), under.min(axis=0))
    assert np.array_equal(dfm.predict_class(images), np.array(["a", "b"])[under.argmin(axis=0)])
    p = np.stack([count(s, own) for s, own in zip(under, left_out(dfm), strict=True)])
    assert np.array_equal(dfm.p_value(images), p.max(axis=0))


@pytest.mark.parametrize(
    ("parameters", "n", "want"),
    [
        ({}, 40, "calibrated"),
        ({}, 9, "sum"),
        ({"image_score": "calibrated"}, 3, "calibrated"),
        ({"image_score": "sum"}, 40, "sum"),
        ({"calibration": None}, 40, "sum"),
        ({"calibration": "kfold"}, 40, "calibrated"),
        ({"calibration": "split"}, 40, "calibrated"),
        ({"combine": "max"}, 40, "sum"),
        ({"spatial": "mean"}, 40, "sum"),
        ({"layers": "output", "pool": 4}, 40, "sum"),
        ({"spatial": "patch"}, 40, "top"),
        ({"spatial": "patch", "image_score": "max"}, 40, "max"),
        ({"regularization": "shrinkage"}, 40, "calibrated"),
    ],
)
@pytest.mark.filterwarnings("ignore:n_components is 5")
def test_which_score_a_picture_has(images, parameters, n, want):
    dfm = maps_model(**parameters)
    if n < 5:
        dfm.set_params(n_components=2)
    assert dfm.fit(images[:n]).image_score_ == want


@pytest.mark.parametrize("labels", [None, np.array([0, 1] * 20)])
def test_a_picture_scores_the_same_bits_in_any_batch(images, labels):
    dfm = maps_model().fit(images, labels)
    features = dfm.extract(images)
    scores, maps = dfm.score(features), dfm.score_map(features)
    for places in ([7], [0, 39], np.arange(5, 38)[::-1]):
        assert np.array_equal(dfm.score(features[places]), scores[places])
        assert np.array_equal(dfm.score_map(features[places]), maps[places])
    dfm.set_params(n_threads=1)
    assert np.array_equal(dfm.score(features), scores)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_other_score_types_are_those_of_whole_pictures(images, n):
    kinds = ("ppca", "fre", "nll")[:n]
    both = maps_model().fit(images).score(images, score_type=kinds)
    plain = maps_model(image_score="sum").fit(images).score(images, score_type=kinds)
    for kind, own, want in zip(kinds, both, plain, strict=True):
        assert np.array_equal(own, want) == (kind != "fre")


# Drift


def test_a_drift_is_told_and_a_fresh_batch_is_not():
    rows = falling_rows(900, 40)
    fresh = [pydfm.DFM().fit(rows[s * 100 :][:300]) for s in range(3)]
    tests = [dfm.drift(rows[600:]) for dfm in fresh]
    assert [t.n_samples for t in tests] == [300] * 3
    assert min(t.p_value for t in tests) > 0.01
    moved = fresh[0].drift(rows[600:700] * 1.3)
    assert moved.p_value < 1e-4
    assert moved.moved() == ["features"]
    assert tests[0].moved(1e-3) == []
    # Too good to be new: the same row again and again.
    assert fresh[0].drift(np.tile(rows[:1], (60, 1))).p_value < 1e-6


def test_a_batch_larger_than_the_calibration_does_not_drift_by_itself():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        own = Calibration.of(rng.normal(size=60), np.zeros(60, dtype=int))
        p = own.p_values(rng.normal(size=3000).astype(np.float32))
        found.append(uniformity(p, own.own_p_values(), one_sided=False))
    assert np.mean(np.array(found) <= 0.05) <= 0.12
    assert np.mean(np.array(found) <= 0.5) >= 0.3


@pytest.mark.parametrize("labelled", [False, True])
def test_a_drift_names_the_class(labelled):
    rows = np.concatenate([falling_rows(400, 12), falling_rows(400, 12, seed=2) + 50])
    labels = np.repeat([3, 8], 400)
    dfm = pydfm.DFM(3).fit(rows[::2], labels[::2])
    batch, theirs = rows[1::2].copy(), labels[1::2]
    given_labels = theirs if labelled else None
    assert dfm.drift(batch, given_labels).moved(1e-3) == []
    batch[theirs == 8] += np.random.default_rng(0).normal(size=(200, 12))
    found = dfm.drift(batch, given_labels)
    assert set(found.classes) == {3, 8}
    assert found.moved() == [8, "features"]


def test_a_drift_names_the_layer(images):
    dfm = maps_model().fit(images)
    found = dfm.drift(images[:20] // 2)
    assert list(found.layers) == ["0", "2"]
    assert set(found.moved()) <= {"0", "2"}
    assert found.moved()


# Files, pickles, clones


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split", None])
def test_a_calibration_is_saved(tmp_path, labels, calibration):
    dfm = pydfm.DFM(3, calibration=calibration, alpha=0.2).fit(ROWS, labels)
    dfm.save(tmp_path / "model")
    for other in (pydfm.load(tmp_path / "model"), pickle.loads(pickle.dumps(dfm))):
        assert other.calibration_ == calibration
        if calibration is None:
            with pytest.raises(ValueError, match="was fitted with calibration=None"):
                other.predict(FRESH)
            continue
        for kind in KINDS:
            assert np.array_equal(
                other.p_value(FRESH, score_type=kind), dfm.p_value(FRESH, score_type=kind)
            )
        assert np.array_equal(other.predict(FRESH), dfm.predict(FRESH))
        assert np.array_equal(other.threshold_, dfm.threshold_)
        assert other.drift(FRESH) == dfm.drift(FRESH)
    again = clone(dfm).fit(FRESH, np.resize(labels, 300) if labels is not None else None)
    if calibration is not None:
        assert not np.array_equal(again.p_value(FRESH), dfm.p_value(FRESH))


@pytest.mark.parametrize("labelled", [False, True])
def test_standardised_maps_are_saved(images, tmp_path, labelled):
    dfm = maps_model().fit(images, np.array([0, 1] * 20) if labelled else None)
    dfm.save(tmp_path / "model")
    other = pydfm.load(tmp_path / "model", backbone=dfm.backbone, device="cpu")
    assert other.image_score_ == "calibrated"
    assert np.array_equal(other.score(images), dfm.score(images))
    assert np.array_equal(other.p_value(images), dfm.p_value(images))
    assert np.array_equal(other.score_map(images), dfm.score_map(images))
    assert other.map_threshold_ == dfm.map_threshold_


def test_a_second_fit_takes_the_place_of_the_first():
    dfm = pydfm.DFM(3).fit(ROWS)
    first = dfm.p_value(FRESH)
    assert not np.array_equal(dfm.fit(FRESH[:60]).p_value(FRESH), first)
    assert np.array_equal(dfm.fit(ROWS).p_value(FRESH), first)


# The command line


def table(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(out))), err


@pytest.mark.filterwarnings("ignore:1 of 13 images were skipped")
def test_the_command_line_tells_verdicts(picture_folder, textures, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in picture_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    model = tmp_path / "m"
    dfm = pydfm.DFM(3, weights=None, layers="layer1", pool=4, image_size=32, device="cpu")
    dfm.fit(picture_folder).save(model)
    rows, err = table(capsys, "score", model, folder)
    assert err == (
        "pydfm: warning: verdicts are at alpha = 0.077, the smallest that is possible with 12 "
        "normal pictures\n"
    )
    want = dfm.assess(folder, alpha=0.077)
    assert [float(row["p_value"]) for row in rows] == pytest.approx(want.p_values, rel=1e-5)
    rows, err = table(capsys, "score", model, folder, "--alpha", "0.999")
    assert err == ""
    verdicts = [{1: "ok", -1: "anomalous"}[v] for v in dfm.predict(folder, alpha=0.999)]
    assert [row["verdict"] for row in rows] == verdicts
    rows, _ = table(capsys, "score", model, folder, "--fdr", "0.5")
    assert {row["verdict"] for row in rows} == {"ok"}
    (folder / "99.png").write_bytes(b"no picture")
    rows, _ = table(capsys, "score", model, folder, "--alpha", "0.5", "--skip-unreadable")
    assert rows[-1] == {
        "path": str(folder / "99.png"),
        "score": "nan",
        "p_value": "nan",
        "verdict": "unreadable",
    }
    (folder / "99.png").unlink()
    dfm.set_params(calibration=None).fit(picture_folder).save(model)
    rows, err = table(capsys, "score", model, folder)
    assert {(row["p_value"], row["verdict"]) for row in rows} == {("", "")}
    assert cli.main(["score", str(model), str(folder), "--alpha", "0.1"]) == 2
    assert "was fitted with calibration=None" in capsys.readouterr().err


# What is wrong


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, float("nan"), "0.1", None])
def test_a_level_lies_between_0_and_1(alpha):
    with pytest.raises(ValueError, match=r"^alpha is .*; it must be a number above 0 and below 1$"):
        pydfm.DFM(3, alpha=alpha).fit(ROWS)
    dfm = pydfm.DFM(3).fit(ROWS)
    if alpha is not None:
        with pytest.raises(ValueError, match=r"^alpha is .* above 0 and below 1$"):
            dfm.predict(FRESH, alpha=alpha)
        with pytest.raises(ValueError, match=r"^fdr is .* above 0 and below 1$"):
            dfm.predict(FRESH, fdr=alpha)
    dfm.alpha = alpha
    for name in ("threshold_", "map_threshold_"):
        with pytest.raises(ValueError, match=r"^alpha is .* above 0 and below 1$"):
            getattr(dfm, name)


def test_bad_levels_and_models_are_told_in_a_sentence(images):
    dfm = pydfm.DFM(3).fit(ROWS)
    says = r"alpha is 0.01, but the model has 60 scores .* not below 1 / 61 = 0.01639; take at "
    for use in (dfm.predict, dfm.decision_function):
        with pytest.raises(ValueError, match=says):
            use(FRESH)
    with pytest.raises(ValueError, match="alpha and fdr are both given"):
        dfm.predict(FRESH, alpha=0.1, fdr=0.1)
    with pytest.raises(ValueError, match="tail is 'gev'; it must be None or 'gpd'"):
        dfm.p_value(FRESH, tail="gev")
    with pytest.raises(ValueError, match="has no maps of images that were left out"):
        _ = dfm.set_params(alpha=0.1).map_threshold_
    plain = pydfm.DFM(3, calibration=None).fit(ROWS)
    for use in (plain.predict, plain.p_value, plain.drift):
        with pytest.raises(ValueError, match=r"was fitted with calibration=None, .*='loo'"):
            use(FRESH)
    with pytest.raises(ValueError, match="calibration is 'jackknife'; it must be one of 'loo', 'k"):
        pydfm.DFM(calibration="jackknife").fit(ROWS)
    few = pydfm.DFM(2, alpha=0.2).fit(ROWS[:20])
    with pytest.raises(ValueError, match="at least 30 scores of normal rows that were left out, "):
        few.p_value(FRESH, tail="gpd")
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        same = pydfm.DFM().fit(np.ones((5, 3)))
    with pytest.raises(ValueError, match="score_type is 'nll', which needs variance"):
        same.p_value(np.ones((2, 3)), score_type="nll")


@pytest.mark.filterwarnings("ignore:n_components is 3")
def test_a_class_that_is_too_small_is_named():
    labels = np.array(["a"] * 59 + ["b"])
    dfm = pydfm.DFM(3, alpha=0.05).fit(ROWS, labels)
    with pytest.raises(ValueError, match="the class 'b' has no row that could be left out; fit"):
        dfm.p_value(FRESH)
    with pytest.raises(ValueError, match=r"alpha is 0.05, but the class 'b' has 0 scores"):
        dfm.predict(FRESH)
    split = pydfm.DFM(3, alpha=0.1, calibration="split").fit(TWO, LABELS)
    with pytest.raises(ValueError, match=r"alpha is 0.1, but the class 'a' has 7 scores"):
        split.predict(FRESH)


@pytest.mark.filterwarnings("ignore:n_components is 5, but 6 of 6 classes")
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
def test_classes_of_one_picture_are_scored_and_saved_without(images, tmp_path, calibration):
    dfm = maps_model(calibration=calibration, layers="0").fit(images[:6], np.arange(6))
    dfm.save(tmp_path / "model")
    other = pydfm.load(tmp_path / "model", backbone=dfm.backbone, device="cpu")
    assert np.array_equal(other.score(images), dfm.score(images))
    with pytest.raises(ValueError, match="which the rows that were left out do not have; fit"):
        other.p_value(images)


def test_rules_that_do_not_fit_are_told(images):
    for parameters, says in [
        ({"image_score": "top"}, "image_score is 'top', which spatial='flatten' does not have"),
        ({"image_score": "calibrated", "spatial": "patch"}, "spatial='patch' does not have"),
        ({"image_score": "calibrated", "calibration": None}, "but calibration is None"),
        ({"image_score": "calibrated", "combine": "max"}, "and combine 'max'"),
        ({"image_score": "calibrated", "spatial": "mean"}, "but the features have no positions"),
    ]:
        with pytest.raises(ValueError, match=says):
            maps_model(**parameters).fit(images)
    with pytest.raises(ValueError, match=r"needs 3 pictures .* the class 1 has 2; give it more"):
        maps_model(image_score="calibrated").set_params(n_components=None).fit(
            images[:9], [0] * 7 + [1] * 2
        )
    with pytest.raises(ValueError, match="but the features have no positions"):
        pydfm.DFM(image_score="calibrated").fit(ROWS)


def test_a_map_is_taken_to_the_positions_of_another_layer():
    coarse, fine = Grid(1, 2, 2), Grid(1, 4, 4, (0.8, 1.0))
    ramp = np.array([[[0.0, 0.0], [1.0, 1.0]]])
    found = coarse.resample(ramp, fine)
    centres = (np.arange(4) + 0.5) / 4 * 0.8  # of the finer cells, on the picture
    np.testing.assert_allclose(found[0, :, 0], np.clip(2 * centres - 0.5, 0, 1))
    assert np.array_equal(Grid(1, 4, 4).resample(np.eye(4)[None], Grid(1, 4, 4))[0], np.eye(4))
