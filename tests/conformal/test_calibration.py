import numpy as np
import pytest
from fits import conformal_p_values, held_out_of, maps_dfm
from hypothesis import given
from hypothesis import strategies as st
from reference import falling_rows

import pydfm
from pydfm.conformal.calibration import (
    Calibration,
    Tail,
    calibration_of,
    map_threshold,
    thresholds,
)
from pydfm.model.held_out import HeldOutSample
from pydfm.model.settings import N_FOLDS, N_PARTS
from pydfm.model.units import draw_folds

KINDS = ("fre", "mahalanobis", "nll", "ppca")
ROWS = falling_rows(60, 12, offset=1.0)
FRESH = falling_rows(300, 12, seed=1, offset=1.0)
LABELS = np.repeat(["a", "b"], [35, 25])
TWO = ROWS + (LABELS == "b")[:, None] * np.float32(3)


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
    np.testing.assert_allclose(held_out_of(dfm, kind)[0], np.sort(naive), rtol=1e-5)
    p = dfm.p_value(fresh)
    assert p.dtype == np.float64
    assert np.array_equal(p, conformal_p_values(dfm.score(fresh), held_out_of(dfm, kind)[0]))


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


def test_equal_scores_count_as_large():
    scores = np.array([1, 2, 2, 2, 5], dtype=np.float32)
    calibration = Calibration.of(scores, np.zeros(5, dtype=int))
    p = calibration.p_values(np.array([[0.5, 1, 2, 3, 5, 6, np.nan]], dtype=np.float32))
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
    p = calibration.p_values(np.array([fresh], dtype=np.float32))
    # Below the smallest p-value, that is the level.
    below = p <= max(alpha, calibration.smallest_alpha) * (1 + 1e-9)
    assert np.array_equal(np.array(fresh) > calibration.threshold(alpha), below)
    margins = calibration.margins(np.array([fresh], dtype=np.float32), alpha)
    assert np.array_equal(margins < 0, below)


def test_k_folds_are_scored_by_the_model_of_the_others():
    dfm = pydfm.DFM(3, calibration="kfold").fit(ROWS)
    fold = draw_folds(np.arange(len(ROWS)), N_FOLDS, 0)
    naive = np.empty(60)
    for f in range(N_FOLDS):
        naive[fold == f] = pydfm.DFM(3).fit(ROWS[fold != f]).score(ROWS[fold == f])
    np.testing.assert_allclose(dfm.held_out_scores_, naive, rtol=1e-5)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("cut", [60, 7])  # in one batch, and in two
def test_a_split_is_not_fitted_on(labels, cut):
    own = np.zeros(len(ROWS), dtype=int) if labels is None else (labels == "b").astype(int)
    batches = [part for part in (ROWS[:cut], ROWS[cut:]) if len(part)]
    dfm = pydfm.DFM(3, calibration="split").fit(iter(batches), labels=labels)
    number = np.array([np.sum(own[:i] == own[i]) for i in range(len(ROWS))])
    held = draw_folds(number, N_PARTS, 0) == N_PARTS - 1
    plain = pydfm.DFM(3).fit(ROWS[~held], labels=None if labels is None else labels[~held])
    assert (dfm.n_samples_, dfm.calibration_) == ((~held).sum(), "split")
    assert np.array_equal(dfm.score(FRESH), plain.score(FRESH))
    for c, scores in enumerate(held_out_of(dfm)):
        rows = ROWS[held & (own == c)]
        want = plain.score(rows, labels=None if labels is None else np.full(len(rows), "ab"[c]))
        assert np.array_equal(scores, np.sort(want))


@pytest.mark.parametrize("covariance", ["class", "tied"])
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
@pytest.mark.parametrize("kind", [*KINDS, "relative_mahalanobis"])
def test_every_model_gives_them(covariance, calibration, kind):
    dfm = pydfm.DFM(3, kind, covariance=covariance, calibration=calibration).fit(TWO, labels=LABELS)
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
        Calibration.of(own, np.zeros(len(own), dtype=int)).with_tail("gpd").p_values([fresh])
        for own in scores[:40]
    ]
    # In the median over samples, within a small factor of the truth.
    ratio = np.median(found, axis=0) / np.exp(-fresh)
    assert ((ratio > 0.5) & (ratio < 3)).all()
    assert np.min(found) < 1 / 2001


def test_a_tail_is_continuous_falling_and_has_thresholds():
    dfm = pydfm.DFM(3).fit(ROWS)
    calibration = calibration_of(dfm.fitted_, "fre", "gpd")
    (tail,) = calibration.tails
    start = np.float32(tail.start)
    assert calibration.p_values([np.nextafter(start, np.float32(np.inf))]) == pytest.approx(11 / 61)
    x = np.linspace(start, 5 * start, 500, dtype=np.float32)[1:]
    p = calibration.p_values([x])
    assert (np.diff(p) < 0).all()
    assert (p > 0).all()
    for alpha in (0.1, 0.01, 1e-4):
        threshold = calibration.threshold(alpha)
        assert calibration.p_values(np.array([[threshold]]))[0] == pytest.approx(alpha)
    assert calibration.threshold(0.3) == calibration_of(dfm.fitted_, "fre").threshold(0.3)
    below = x[x < dfm.set_params(alpha=0.05).threshold_]
    plain = calibration_of(dfm.fitted_, "fre")
    inside = below[below <= start]
    assert np.array_equal(calibration.p_values([inside]), plain.p_values([inside]))
    verdicts = dfm.predict(FRESH, alpha=1e-3, tail="gpd")
    assert np.array_equal(verdicts == -1, dfm.p_value(FRESH, tail="gpd") <= 1e-3)
    with pytest.warns(UserWarning, match=r"alpha is 0.001, and 60 held-out images or groups give"):
        dfm.predict(FRESH, alpha=1e-3)


def test_a_tail_never_ends():
    tail = Tail.fit(np.sort(np.random.default_rng(0).random(100)))  # whose true tail ends at 1
    assert tail.shape == 0
    assert tail.p_values(np.array([5.0]))[0] > 0


def test_a_second_fit_takes_the_place_of_the_first():
    dfm = pydfm.DFM(3).fit(ROWS)
    first = dfm.p_value(FRESH)
    assert not np.array_equal(dfm.fit(FRESH[:60]).p_value(FRESH), first)
    assert np.array_equal(dfm.fit(ROWS).p_value(FRESH), first)


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


def test_bad_levels_and_models_are_told_in_a_sentence(noise):
    dfm = pydfm.DFM(3).fit(ROWS)
    says = r"^alpha is 0.01, and 60 held-out .* 1 / 61 = 0.0164: that level is used; 39 more are "
    for use in (dfm.predict, dfm.decision_function):
        with pytest.warns(UserWarning, match=says):
            found = use(FRESH)
        assert np.array_equal(found < 0, dfm.p_value(FRESH) <= 1 / 61)
    with pytest.raises(ValueError, match="alpha and fdr are both given"):
        dfm.predict(FRESH, alpha=0.1, fdr=0.1)
    with pytest.raises(ValueError, match="tail is 'gev'; it must be None or 'gpd'"):
        dfm.p_value(FRESH, tail="gev")
    with pytest.raises(ValueError, match="has no maps of held-out images"):
        _ = dfm.set_params(alpha=0.1).map_threshold_
    plain = pydfm.DFM(3, calibration=None).fit(ROWS)
    for use in (plain.predict, plain.p_value, plain.drift):
        with pytest.raises(ValueError, match=r"was fitted with calibration=None, .*='loo'"):
            use(FRESH)
    with pytest.raises(ValueError, match="calibration is 'jackknife'; it must be one of 'loo', 'k"):
        pydfm.DFM(calibration="jackknife").fit(ROWS)
    few = pydfm.DFM(2, alpha=0.2).fit(ROWS[:20])
    with pytest.raises(ValueError, match="at least 30 held-out scores of normal rows, "):
        few.p_value(FRESH, tail="gpd")
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        same = pydfm.DFM().fit(np.ones((5, 3)))
    with pytest.raises(ValueError, match="score_type is 'nll', which needs variance"):
        same.p_value(np.ones((2, 3)), score_type="nll")


@pytest.mark.filterwarnings("ignore:n_components is 3")
def test_a_class_that_is_too_small_is_named():
    labels = np.array(["a"] * 59 + ["b"])
    dfm = pydfm.DFM(3, alpha=0.05).fit(ROWS, labels=labels)
    says = "the class 'b' has no held-out scores, since nothing is left .*: other classes decide"
    with pytest.warns(UserWarning, match=says):
        verdicts = dfm.predict(FRESH)
    under = dfm.p_value(FRESH, labels=["a"] * len(FRESH))
    assert np.array_equal(dfm.p_value(FRESH), under)
    assert np.array_equal(verdicts == -1, under <= 0.05)
    with pytest.warns(UserWarning, match=says):
        assert np.isnan(dfm.threshold_).tolist() == [False, True]
    assert dfm.smallest_alpha_ == 1 / 60
    with pytest.raises(ValueError, match="labels names a class that has no held-out scores"):
        dfm.p_value(FRESH, labels=["b"] * len(FRESH))
    split = pydfm.DFM(3, alpha=0.1, calibration="split").fit(TWO, labels=LABELS)
    says = r"alpha is 0.1, and \d held-out images or groups of the class 'b' give no p-value below"
    with pytest.warns(UserWarning, match=says):
        split.predict(FRESH)


# Functions of a fitted model


def test_thresholds_of_classes_and_of_a_layer():
    dfm = pydfm.DFM(3, alpha=0.1).fit(TWO, labels=LABELS)
    found = thresholds(dfm.fitted_, "nll", 0.1)
    assert found.shape == (2,)
    assert np.array_equal(dfm.set_params(score_type="nll").threshold_, found)
    calibration = calibration_of(dfm.fitted_, "nll")
    assert np.array_equal(found, [calibration.threshold(0.1, c) for c in (0, 1)])
    assert list(calibration.classes) == ["a", "b"]
    # With one layer, the layer's are those of all.
    alone = calibration_of(dfm.fitted_, "nll", layer=0)
    for (own,), (want,) in zip(alone.ranks, calibration.ranks, strict=True):
        assert np.array_equal(own.scores, want.scores)
    alone = pydfm.DFM(3).fit(ROWS).fitted_  # of one class
    with pytest.raises(ValueError, match="'relative_mahalanobis', of which there are no held-out"):
        calibration_of(alone, "relative_mahalanobis")


def test_the_threshold_of_maps_is_that_of_their_maxima(noise):
    dfm = maps_dfm().fit(noise)
    maxima = np.sort(dfm.fitted_.held_out.map_maxima)
    for alpha in (0.05, 0.1, 0.5):
        rejected = int(alpha * 41 + 1e-9)
        assert map_threshold(dfm.fitted_, alpha, "fre") == maxima[-rejected]


def test_a_modelled_tail_has_no_smallest_level():
    dfm = pydfm.DFM(3).fit(ROWS)
    dfm.predict(FRESH, alpha=1e-4, tail="gpd")  # without a warning
    with pytest.warns(UserWarning, match="that level is used"):
        dfm.predict(FRESH, alpha=1e-4)
    folds = pydfm.DFM(3, calibration="kfold").fit(ROWS)
    with pytest.raises(ValueError, match=r"tail is 'gpd', which needs held-out scores under one"):
        folds.p_value(FRESH, tail="gpd")


# Groups count as one


def weighed(scores, own, units):
    """P-values from their definition: the mean over groups of the share that scores as high."""
    groups = np.unique(units)
    shares = [[np.mean(own[units == g] >= score) for g in groups] for score in np.asarray(scores)]
    return (1 + np.sum(shares, axis=1)) / (len(groups) + 1)


@st.composite
def groups_of_scores(draw):
    """Held-out scores (n,) of groups (n,), with ties, and new scores."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    own = rng.integers(0, draw(st.sampled_from([3, 1000])), n).astype(np.float32)
    units = rng.integers(0, draw(st.integers(1, 12)), n)
    return own, units, np.append(rng.integers(-1, 1000, 9), own[:3]).astype(np.float32)


@given(groups_of_scores(), st.floats(0.001, 0.999) | st.integers(1, 12).map(lambda i: i / 13))
def test_a_group_counts_as_one(problem, alpha):
    own, units, fresh = problem
    calibration = Calibration.of(own, np.zeros(len(own), int), None, units)
    p = calibration.p_values(fresh[None])
    np.testing.assert_allclose(p, weighed(fresh, own, units), rtol=1e-12)
    assert calibration.n_units.tolist() == [len(np.unique(units))]
    assert calibration.smallest_alpha == 1 / (len(np.unique(units)) + 1)
    # The threshold is where p-values pass the level, or the smallest one.
    below = p <= max(alpha, calibration.smallest_alpha) + 1e-9
    assert np.array_equal(fresh > calibration.threshold(alpha), below)
    assert np.array_equal(calibration.margins(fresh[None], alpha) < 0, below)


@given(groups_of_scores(), st.integers(2, 4))
def test_folds_are_ranked_each_under_its_model(problem, n_folds):
    own, units, fresh = problem
    folds = units % n_folds
    calibration = Calibration.of(own, np.zeros(len(own), int), None, units, folds, n_folds)
    assert calibration.in_folds
    rng = np.random.default_rng(0)
    under = np.stack([rng.permutation(fresh) for _ in range(n_folds)])
    above = np.zeros(len(fresh))
    for k in range(n_folds):
        for g in np.unique(units[folds == k]):
            above += np.mean(own[units == g] >= under[k][:, None], axis=1)
    p = calibration.p_values(under)
    np.testing.assert_allclose(p, (1 + above) / (len(np.unique(units)) + 1), rtol=1e-12)
    for alpha in (0.01, 0.2, 0.5, 0.9):
        below = p <= max(alpha, calibration.smallest_alpha) + 1e-9
        margins = calibration.margins(under, alpha)
        assert np.array_equal(margins < 0, below)
        # They say how much may be added to every score before the verdict turns.
        finite = np.isfinite(margins)
        moved = under[:, finite] + margins[finite]
        assert (calibration.p_values(moved) > alpha).all()
        assert (
            calibration.p_values(moved + 0.5) <= max(alpha, calibration.smallest_alpha) + 1e-9
        ).all()
    with pytest.raises(
        AttributeError, match="calibration is 'kfold': a score is compared under the"
    ):
        calibration.threshold(0.1)


def sample_of(scores, classes, units, folds):
    places = np.arange(len(scores))
    return HeldOutSample(np.asarray(scores, np.float32)[None], classes, units, places, folds)


@given(groups_of_scores(), st.integers(1, 3), st.integers(1, 2))
def test_held_out_rows_are_ranked_among_the_units_of_their_class_and_fold(
    problem, n_folds, n_classes
):
    own, units, _ = problem
    classes, folds = units % n_classes, units // n_classes % n_folds
    names = None if n_classes == 1 else ["a", "b"]
    calibration = Calibration.of(own, classes, names, units, folds, n_folds)
    sample = sample_of(own, classes, units, folds)
    want = np.empty(len(own))
    for i in range(len(own)):
        alike = (classes == classes[i]) & (folds == folds[i])
        others = [
            np.mean(own[alike & (units == g)] >= own[i])
            for g in np.unique(units[alike])
            if g != units[i]
        ]
        want[i] = (1 + np.sum(others)) / (len(others) + 1)
    p = calibration.p_values_of(sample)
    np.testing.assert_allclose(p, want, rtol=1e-12)
    for alpha in (0.01, 0.3):
        n = np.array(
            [np.sum((classes == c) & (folds == k)) for c, k in zip(classes, folds, strict=True)]
        )
        groups = np.array(
            [
                len(np.unique(units[(classes == c) & (folds == k)]))
                for c, k in zip(classes, folds, strict=True)
            ]
        )
        assert (groups <= n).all()
        assert np.array_equal(
            calibration.reject(sample, alpha), p <= np.maximum(alpha, 1 / groups) + 1e-9
        )


@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
@pytest.mark.parametrize("labelled", [False, True])
def test_decisions_follow_from_p_values_under_every_calibration(calibration, labelled):
    labels = LABELS if labelled else None
    groups = np.arange(60) // 2
    dfm = pydfm.DFM(3, alpha=0.3, calibration=calibration).fit(TWO, labels=labels, groups=groups)
    mixed = np.concatenate([TWO, FRESH[:60], 3 * FRESH[:30]])
    p = dfm.p_value(mixed)
    assert 0 < np.mean(p <= 0.3) < 1
    assert np.array_equal(dfm.predict(mixed), np.where(p <= 0.3, -1, 1))
    assert np.array_equal(dfm.decision_function(mixed) < 0, p <= 0.3)
    own = dfm.held_out_p_values_
    assert len(own) == len(dfm.held_out_scores_) == len(dfm.held_out_names_)
    assert ((own > 0) & (own <= 1)).all()
    if labelled:
        given_labels = np.resize(LABELS, len(mixed))
        p = dfm.p_value(mixed, labels=given_labels)
        found = dfm.decision_function(mixed, labels=given_labels)
        assert np.array_equal(found < 0, p <= 0.3)


# Cross-conformal, against fitting the folds again


def refitted_folds(rows, labels, groups, folds, kind, fresh, **parameters):
    """P-values (C, N) of fresh rows under each class, by their definition."""
    found = []
    for c in np.unique(labels):
        above, n_units = np.ones(len(fresh)), 0
        for k in range(N_FOLDS):
            others = folds != k
            dfm = pydfm.DFM(3, kind, calibration=None, **parameters)
            dfm.fit(rows[others], labels=labels[others])
            own = ~others & (labels == c)
            held = dfm.score(rows[own], labels=labels[own])
            new = dfm.score(fresh, labels=np.full(len(fresh), c))
            for g in np.unique(groups[own]):
                above += np.mean(held[groups[own] == g] >= new[:, None], axis=1)
                n_units += 1
        found.append(above / (n_units + 1))
    return np.array(found)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("fre", {}),
        ("relative_mahalanobis", {}),
        ("relative_mahalanobis", {"covariance": "tied"}),
        ("ppca", {"regularization": "shrinkage"}),
        ("nll", {"density": "gmm"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("grouped", [False, True])
def test_cross_conformal_p_values_are_those_of_refitted_folds(kind, parameters, grouped):
    number = np.array([np.sum(LABELS[:i] == LABELS[i]) for i in range(60)])
    units = number // 2 if grouped else number
    groups = np.char.add(LABELS, units.astype(str)) if grouped else None
    dfm = pydfm.DFM(3, kind, calibration="kfold", **parameters)
    dfm.fit(TWO, labels=LABELS, groups=groups)
    fresh = np.concatenate([FRESH[:40], TWO[::3] + 1])
    keys = np.char.add(LABELS, units.astype(str))
    folds = draw_folds(units, N_FOLDS, 0)
    want = refitted_folds(TWO, LABELS, keys, folds, kind, fresh, **parameters)
    np.testing.assert_allclose(dfm.p_value(fresh), want.max(axis=0), rtol=1e-12)
    given_labels = np.resize(LABELS, len(fresh))
    own = want[(given_labels == "b").astype(int), np.arange(len(fresh))]
    np.testing.assert_allclose(dfm.p_value(fresh, labels=given_labels), own, rtol=1e-12)


def test_a_level_that_no_number_of_images_gives_is_told():
    dfm = pydfm.DFM(2).fit(ROWS[:20])
    with pytest.warns(UserWarning, match=r"about 1e\+300 more are needed for 1e-300$"):
        dfm.predict(FRESH, alpha=1e-300)
    with pytest.warns(UserWarning, match=r"about inf more are needed"):
        dfm.predict(FRESH, alpha=1e-320)
