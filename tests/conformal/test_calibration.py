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
    np.testing.assert_allclose(held_out_of(dfm)[0], np.sort(np.concatenate(naive)), rtol=1e-5)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("cut", [60, 7])  # in one batch, and in two
def test_a_split_is_not_fitted_on(labels, cut):
    own = np.zeros(len(ROWS), dtype=int) if labels is None else (labels == "b").astype(int)
    batches = [part for part in (ROWS[:cut], ROWS[cut:]) if len(part)]
    dfm = pydfm.DFM(3, calibration="split").fit(iter(batches), labels=labels)
    number = np.array([np.sum(own[:i] == own[i]) for i in range(len(ROWS))])
    held = number % 5 == 4
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
        Calibration.of(own, np.zeros(len(own), dtype=int)).with_tail("gpd").p_values(fresh)
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
    assert calibration.p_values(np.nextafter(start, np.float32(np.inf))) == pytest.approx(11 / 61)
    x = np.linspace(start, 5 * start, 500, dtype=np.float32)[1:]
    p = calibration.p_values(x)
    assert (np.diff(p) < 0).all()
    assert (p > 0).all()
    for alpha in (0.1, 0.01, 1e-4):
        threshold = calibration.threshold(alpha)
        assert calibration.p_values(np.array([threshold]))[0] == pytest.approx(alpha)
    assert calibration.threshold(0.3) == calibration_of(dfm.fitted_, "fre").threshold(0.3)
    below = x[x < dfm.set_params(alpha=0.05).threshold_]
    plain = calibration_of(dfm.fitted_, "fre")
    inside = below[below <= start]
    assert np.array_equal(calibration.p_values(inside), plain.p_values(inside))
    verdicts = dfm.predict(FRESH, alpha=1e-3, tail="gpd")
    assert np.array_equal(verdicts == -1, dfm.p_value(FRESH, tail="gpd") <= 1e-3)
    with pytest.raises(ValueError, match=r"alpha is 0.001, but the model has 60 held-out scores"):
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
    says = r"alpha is 0.01, but the model has 60 held-out scores.* below 1 / 61 = 0.01639; take at "
    for use in (dfm.predict, dfm.decision_function):
        with pytest.raises(ValueError, match=says):
            use(FRESH)
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
    with pytest.raises(ValueError, match="the class 'b' has no held-out scores; fit"):
        dfm.p_value(FRESH)
    with pytest.raises(ValueError, match=r"alpha is 0.05, but the class 'b' has 0 held-out scores"):
        dfm.predict(FRESH)
    split = pydfm.DFM(3, alpha=0.1, calibration="split").fit(TWO, labels=LABELS)
    with pytest.raises(ValueError, match=r"alpha is 0.1, but the class 'a' has 7 held-out scores"):
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
    for own, want in zip(alone.scores, calibration.scores, strict=True):
        assert np.array_equal(own, want)
    with pytest.raises(ValueError, match="score_type is 'mse', of which there are no held-out"):
        calibration_of(dfm.fitted_, "mse")


def test_the_threshold_of_maps_is_that_of_their_maxima(noise):
    dfm = maps_dfm().fit(noise)
    maxima = np.sort(dfm.fitted_.held_out.map_maxima)
    for alpha in (0.05, 0.1, 0.5):
        rejected = int(alpha * 41 + 1e-9)
        assert map_threshold(dfm.fitted_, alpha) == maxima[-rejected]
