"""Verdicts of several classes from one pass: those of the scores under every class, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pydfm
from pydfm.conformal.decisions import Decider, best_over_classes, under_folds
from pydfm.model.row_scores import RowScores

KINDS = ("fre", "mahalanobis", "nll", "ppca")


def classes_of(n_classes, n_features, spread, seed, n_rows=9):
    """Rows of classes, their labels, and new rows: some of a class, some of none."""
    rng = np.random.default_rng(seed)
    means = spread * rng.normal(size=(n_classes, n_features))
    labels = np.arange(n_classes * n_rows) % n_classes
    shared = rng.normal(size=(3, n_features))

    def rows(n, own):
        noise = 0.2 * rng.normal(size=(n, n_features))
        return (means[own] + rng.normal(size=(n, 3)) @ shared + noise).astype(np.float32)

    fresh = rows(60, np.arange(60) % n_classes)
    fresh[::7] *= 4
    fresh[5] = fresh[6]
    return rows(len(labels), labels), labels, fresh


def brute_force(decider, dfm, fresh):
    """Scores, p-values and margins (3, N) from the scores under every class."""
    scored = RowScores(dfm.model_, fresh, 2)
    each = under_folds(scored, decider.score_type, ())
    p = best_over_classes(decider.calibration.p_values, each, None)
    margins = best_over_classes(
        lambda own, c: decider.calibration.margins(own, decider.alpha, c), each, None
    )
    return np.stack([each[0].min(axis=0), p, margins])


@pytest.mark.filterwarnings(
    "ignore:alpha is", "ignore:.*no held-out scores", "ignore:.*fitted variances"
)
@pytest.mark.filterwarnings("ignore:.*directions")
@settings(max_examples=25)
@given(
    st.sampled_from([1, 2, 3, 12]),
    st.sampled_from([4, 40]),
    st.sampled_from([0.0, 1.0, 5.0]),
    st.sampled_from(["class", "tied"]),
    st.booleans(),
    st.sampled_from([0.05, 0.2, 0.5]),
    st.integers(0, 99),
)
def test_one_pass_is_all_classes(n_classes, n_features, spread, covariance, grouped, alpha, seed):
    rows, labels, fresh = classes_of(n_classes, n_features, spread, seed)
    groups = np.arange(len(rows)) // (2 * n_classes) if grouped else None
    dfm = pydfm.DFM(2, covariance=covariance, score_type=KINDS, alpha=alpha, n_threads=2)
    dfm.fit(rows, labels=labels, groups=groups)
    for kind in KINDS:
        decider = Decider.of(dfm.fitted_, kind, alpha=alpha)
        want = brute_force(decider, dfm, fresh)
        got = decider.measure(RowScores(dfm.model_, fresh, 2))
        assert np.array_equal(got, want)
        assert np.array_equal(decider.p_values(RowScores(dfm.model_, fresh, 1)), want[1])
        assert np.array_equal(decider.margins(RowScores(dfm.model_, fresh, 1)), want[2])
        assert np.array_equal(dfm.p_value(fresh, score_type=kind), want[1])
    want = brute_force(Decider.of(dfm.fitted_, "fre", alpha=alpha), dfm, fresh)
    assert np.array_equal(dfm.predict(fresh), np.where(want[2] < 0, -1, 1))


def test_a_class_that_cannot_be_held_out_does_not_judge():
    rows, labels, fresh = classes_of(4, 20, 3.0, 0)
    keep = (labels != 2) | (np.arange(len(labels)) == 2)  # the class 2 has one row
    with pytest.warns(UserWarning, match="variance|directions|equal"):
        dfm = pydfm.DFM(2, alpha=0.2, score_type="fre").fit(rows[keep], labels=labels[keep])
    with pytest.warns(UserWarning, match="the class 2 has no held-out scores"):
        decider = Decider.of(dfm.fitted_, "fre", alpha=0.2)
    got = decider.measure(RowScores(dfm.model_, fresh, 2))
    assert np.array_equal(got, brute_force(decider, dfm, fresh))


def test_one_pass_is_taken_only_where_there_is_one(monkeypatch):
    rows, labels, fresh = classes_of(3, 20, 3.0, 0, n_rows=40)
    dfm = pydfm.DFM(2, alpha=0.2, score_type=("fre", "relative_mahalanobis"))
    dfm.fit(rows, labels=labels)
    taken = []
    judge = RowScores.judge
    monkeypatch.setattr(RowScores, "judge", lambda *given: taken.append(judge(*given)) or taken[-1])
    dfm.predict(fresh)
    assert taken.pop() is not None
    assert not taken
    dfm.predict(fresh, labels=np.zeros(len(fresh), dtype=int))
    dfm.p_value(fresh, score_type="relative_mahalanobis")
    assert [taken.pop() for _ in range(len(taken))] == [None] * 4
    dfm.p_value(fresh, score_type="fre", tail="gpd")
    assert not taken  # a modelled tail is not the core's
    dfm.p_value(fresh, score_type="fre")
    assert taken.pop() is not None


def test_a_decider_is_made_once_for_a_model():
    rows, labels, _ = classes_of(3, 20, 3.0, 0)
    dfm = pydfm.DFM(2, alpha=0.2).fit(rows, labels=labels)
    assert dfm.decider() is dfm.decider()
    assert dfm.decider() is not dfm.decider(alpha=0.3)
    before = dfm.decider()
    dfm.partial_fit(rows[:3], labels=labels[:3])
    assert dfm.decider() is not before
    with pytest.raises(ValueError, match="NaN"):
        dfm.predict(np.full((2, 20), np.nan))
