import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pydfm.model.fusion import Combination
from pydfm.parameters import COMBINATIONS

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(3, 200)) * [[1.0], [50.0], [1e-6]] + [[0.0], [1e4], [1.0]]
OUTLIERS = NORMAL[:, :40] + [[3.0], [20.0], [0.0]]
SCORES = RNG.normal(size=(3, 30)) * [[1.0], [50.0], [1e-6]] + [[0.0], [1e4], [1.0]]


def standardised(scores):
    mean = NORMAL.mean(axis=1, keepdims=True)
    return (scores - mean) / np.sqrt(np.square(NORMAL - mean).mean(axis=1, keepdims=True))


def test_sum_and_max_are_of_standardised_scores():
    t = standardised(SCORES)
    got = Combination.fit("sum", NORMAL).combine(SCORES)
    np.testing.assert_allclose(got, t[0] + t[1] + t[2], rtol=1e-9)
    got = Combination.fit("max", NORMAL).combine(SCORES)
    np.testing.assert_allclose(got, [max(column) for column in t.T], rtol=1e-9)


def test_the_units_of_a_layer_do_not_matter():
    scale = np.array([[1e3], [1e-3], [7.0]])
    for rule in ("sum", "max"):
        want = Combination.fit(rule, NORMAL).combine(SCORES)
        got = Combination.fit(rule, NORMAL * scale + 5.0).combine(SCORES * scale + 5.0)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_logistic_is_the_log_odds_of_an_outlier():
    got = Combination.fit("logistic", NORMAL, OUTLIERS)
    samples = np.concatenate([standardised(NORMAL).T, standardised(OUTLIERS).T])
    labels = np.repeat([0, 1], [200, 40])
    model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(samples, labels)
    want = model.decision_function(standardised(SCORES).T)
    np.testing.assert_allclose(got.combine(SCORES), want, rtol=1e-6)
    # What tells outliers apart counts.
    assert got.weights[0] > 1
    assert got.weights[0] > 3 * abs(got.weights[2])
    assert got.combine(OUTLIERS).mean() > 0 > got.combine(NORMAL).mean()


@pytest.mark.parametrize("rule", COMBINATIONS)
def test_scores_of_any_shape_are_combined_as_rows_are(rule):
    rule = Combination.fit(rule, NORMAL, OUTLIERS)
    want = rule.combine(SCORES)
    assert rule.combine(SCORES.reshape(3, 5, 6)) == pytest.approx(want.reshape(5, 6))
    assert rule.combine(SCORES[:, 4]) == pytest.approx(want[4])
    assert rule.combine(SCORES.astype(np.float32)).dtype == np.float64


def test_a_layer_whose_scores_are_all_equal_is_not_divided_by_zero():
    rule = Combination.fit("sum", np.stack([NORMAL[0], np.full(200, 2.0)]))
    got = rule.combine(np.array([[0.0], [5.0]]))
    assert got == pytest.approx((0 - NORMAL[0].mean()) / NORMAL[0].std() + 3.0)


@pytest.mark.parametrize("rule", ["sum", "max"])
def test_fitted_rows_are_standardised_by_the_others(rule):
    scores = np.random.default_rng(0).gamma(1, size=(3, 10))
    found = Combination.fit(rule, scores).combine_held_out(scores)
    want = [
        Combination.fit(rule, np.delete(scores, i, 1)).combine(scores[:, i : i + 1])[0]
        for i in range(10)
    ]
    np.testing.assert_allclose(found, want)


def test_the_weights_of_fitted_rows_are_those_of_all():
    rule = Combination.fit("logistic", NORMAL, OUTLIERS)
    got, plain = rule.combine_held_out(NORMAL), Combination.fit("sum", NORMAL)
    np.testing.assert_allclose(got, rule.combine(NORMAL), rtol=0.1, atol=0.2)
    each = [Combination.fit("sum", NORMAL[[i]]).combine_held_out(NORMAL[[i]]) for i in range(3)]
    np.testing.assert_allclose(got, rule.weights @ np.stack(each) + rule.offset, rtol=1e-9)
    np.testing.assert_allclose(plain.combine_held_out(NORMAL), np.sum(each, axis=0), rtol=1e-9)


def test_one_row_and_equal_rows_give_no_infinity():
    for scores in (np.array([[2.0], [3.0]]), np.full((2, 5), 7.0)):
        for rule in ("sum", "max"):
            found = Combination.fit(rule, scores).combine_held_out(scores)
            assert np.array_equal(found, np.zeros(scores.shape[1]))
