import math

import numpy as np
import pytest
from fits import maps_dfm
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import falling_rows
from scipy.stats import binom, binomtest

import pydfm
from pydfm.conformal.calibration import Calibration
from pydfm.conformal.certificate import least_units, rate_bound, rate_bound_of_all


@settings(deadline=None)
@given(st.integers(1, 2000), st.floats(0.001, 0.999), st.floats(0.001, 0.5))
def test_the_bound_is_that_of_clopper_and_pearson(n, alpha, risk):
    found = rate_bound(n, alpha, risk)
    above = math.floor(max(alpha * (n + 1), 1) + 1e-9) - 1
    if above >= n:
        assert found == 1
        return
    test = binomtest(above, n, alternative="less")
    assert math.isclose(found, test.proportion_ci(1 - risk).high, rel_tol=1e-6)


@settings(deadline=None)
@given(st.integers(1, 1000), st.floats(0.001, 0.999), st.floats(0.001, 0.5))
def test_weaker_statements_have_larger_bounds(n, alpha, risk):
    one = rate_bound(n, alpha, risk)
    grouped = rate_bound(n, alpha, risk, grouped=True)
    # That of groups holds for groups of one image, too.
    assert min(alpha, n / (n + 1)) * 0.3 < one <= 1
    assert grouped >= one - 1e-6
    of_all = rate_bound_of_all(n, alpha, risk)
    assert of_all <= rate_bound_of_all(n, alpha, risk, grouped=True) + 1e-9
    above = math.floor(max(alpha * (n + 1), 1) + 1e-9) - 1
    massart = above / n + math.sqrt(-math.log(risk) / (2 * n))
    assert above / n <= of_all <= min(1, massart) + 1e-9


@pytest.mark.parametrize(("n", "alpha"), [(50, 0.1), (200, 0.05)])
def test_the_bounds_hold_as_often_as_they_say(n, alpha):
    rng = np.random.default_rng(n)
    one, of_all, levels = [], [], (0.02, 0.05, 0.1, 0.2, 0.5)
    bound = rate_bound(n, alpha, 0.1)
    bounds = [rate_bound_of_all(n, level, 0.1) for level in levels]
    for _ in range(2000):
        scores = rng.uniform(size=n)
        calibration = Calibration.of(scores, np.zeros(n, dtype=int))
        rates = [1 - calibration.threshold(level) for level in levels]
        one.append(1 - calibration.threshold(alpha) <= bound)
        of_all.append(all(own <= most for own, most in zip(rates, bounds, strict=True)))
    assert abs(np.mean(one) - 0.9) < 0.025  # exact
    assert np.mean(of_all) >= 0.88


@pytest.mark.parametrize("together", [0.0, 0.9])
def test_the_bounds_of_groups_hold(together):
    rng, n, m = np.random.default_rng(3), 60, 3
    one, of_all = [], []
    units = np.repeat(np.arange(n), m)
    bounds = [function(n, 0.1, 0.1, grouped=True) for function in (rate_bound, rate_bound_of_all)]
    for _ in range(1000):
        own = rng.normal(size=(n, 1)) * math.sqrt(together)
        scores = (own + rng.normal(size=(n, m)) * math.sqrt(1 - together)).ravel()
        calibration = Calibration.of(scores, np.zeros(n * m, dtype=int), units=units)
        rate = 0.5 * math.erfc(calibration.threshold(0.1) / math.sqrt(2))
        one.append(rate <= bounds[0])
        of_all.append(rate <= bounds[1])
    assert np.mean(one) >= 0.88
    assert np.mean(of_all) >= 0.88


@settings(deadline=None)
@given(st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_so_many_units_are_needed(alpha, risk):
    n = least_units(alpha, risk)
    assert rate_bound(n, 1e-9, risk) <= alpha * (1 + 1e-6)
    assert n == 1 or rate_bound(n - 1, 1e-9, risk) > alpha
    assert math.isclose(binom.pmf(0, n, rate_bound(n, 1e-9, risk)), risk, rel_tol=1e-6)


def test_three_hundred_images_certify_one_percent():
    assert least_units(0.01, 0.05) == 299
    rows = falling_rows(400, 12)
    dfm = pydfm.DFM(4, alpha=0.1).fit(rows[:100])
    dfm.recalibrate(rows[100:398])
    found = dfm.certify(0.01)
    assert found.n_units == 298
    assert (found.missing, found.ask) == (1, None)
    dfm.recalibrate(rows[100:399])
    found = dfm.certify(0.01)
    assert found.missing == 0
    assert math.isclose(found.ask, 1 / 300)
    assert dfm.certify(found.ask).bound <= 0.01
    assert found.proven
    assert str(found).splitlines()[2].startswith("Proven: the held-out scores are those of later")
    assert str(found).endswith("For at most 1 % with 95 % confidence, ask for alpha 0.003333.")


def test_the_level_to_ask_for_is_the_largest():
    rows = falling_rows(700, 12)
    dfm = pydfm.DFM(4).fit(rows[:100])
    dfm.recalibrate(rows[100:])
    found = dfm.certify(0.05, confidence=0.9)
    assert found.ask < 0.05
    assert dfm.certify(found.ask, confidence=0.9).bound <= 0.05
    assert dfm.certify(found.ask + 1 / 601, confidence=0.9).bound > 0.05
    assert dfm.certify(0.01) == dfm.certify()
    assert found.bound < found.bound_of_all


def test_a_level_that_cannot_be_kept_is_named():
    found = pydfm.DFM(4).fit(falling_rows(49, 12)).certify(0.01)
    assert found.level == 1 / 50
    first, _, third, last = found.sentences()
    assert "alpha 0.01 (in fact 0.02, the smallest level of 49 held-out images)" in first
    assert third.startswith("Not proven, an estimate: held-out scores are those of leave-one-out")
    assert last == (
        "For at most 1 % with 95 % confidence, 250 more good images are missing (299 in all)."
    )


def test_groups_and_classes():
    rows = falling_rows(120, 12)
    grouped = pydfm.DFM(4).fit(rows, groups=np.arange(120) // 3).certify(0.1)
    assert (grouped.n_units, grouped.unit) == (40, "group")
    assert "by 40 held-out groups" in str(grouped)
    labels = np.repeat(["a", "b"], [80, 40])
    classes = pydfm.DFM(4).fit(rows, labels=labels).certify(0.1)
    assert set(classes.classes) == {"a", "b"}
    assert classes.n_units == 40
    assert classes.bound == max(classes.classes.values()) == classes.classes["b"]
    assert classes.bound == rate_bound(40, 0.1, 0.05 / 2)
    assert "of the smallest class" in str(classes)


def test_what_is_proven(noise):
    rows = falling_rows(100, 12)
    split = pydfm.DFM(4, calibration="split").fit(rows)
    assert split.certify(0.1).proven
    assert "(not for another product, lamp or day)" in split.certify(0.1).reason
    folds = pydfm.DFM(4, calibration="kfold").fit(rows).certify(0.1)
    assert not folds.proven
    assert "of ten folds" in folds.reason
    standardised = maps_dfm(calibration="split").fit(noise)
    assert not standardised.certify(0.5).proven
    assert "standardise scores" in standardised.certify(0.5).reason


def test_bad_arguments():
    dfm = pydfm.DFM(4).fit(falling_rows(30, 12))
    for name in ("alpha", "confidence"):
        with pytest.raises(ValueError, match=f"{name} is 1.0; it must be a number above 0 and bel"):
            dfm.certify(**{name: 1.0})
    with pytest.raises(ValueError, match="was fitted with calibration=None"):
        pydfm.DFM(4, calibration=None).fit(falling_rows(30, 12)).certify()
