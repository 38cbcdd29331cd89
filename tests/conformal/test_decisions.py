import numpy as np
import pytest
from fits import conformal_p_values, held_out_of, maps_dfm
from reference import falling_rows
from scipy import stats

import pydfm
from pydfm.conformal.decisions import Decider, best_over_classes, p_values

ROWS = falling_rows(60, 12, offset=1.0)
FRESH = falling_rows(300, 12, seed=1, offset=1.0)
LABELS = np.repeat(["a", "b"], [35, 25])
TWO = ROWS + (LABELS == "b")[:, None] * np.float32(3)


def test_several_classes_give_the_largest_over_them():
    dfm = pydfm.DFM(3).fit(TWO, labels=LABELS)
    under = {
        c: dfm.p_value(TWO, labels=np.full(len(TWO), c))  # every row under the one class
        for c in ("a", "b")
    }
    for c, own in zip(("a", "b"), held_out_of(dfm), strict=True):
        scores = dfm.score(TWO, labels=np.full(len(TWO), c))
        assert np.array_equal(under[c], conformal_p_values(scores, own))
    p = dfm.p_value(TWO)
    assert np.array_equal(p, np.maximum(under["a"], under["b"]))
    assert not np.array_equal(p, under["a"])
    assert np.array_equal(dfm.p_value(TWO, labels=LABELS), np.where(LABELS == "a", *under.values()))


def test_several_types_of_scores_come_in_rows():
    dfm = pydfm.DFM(3).fit(ROWS)
    both = dfm.p_value(FRESH, score_type=("ppca", "fre"))
    assert np.array_equal(both, [dfm.p_value(FRESH, score_type=kind) for kind in ("ppca", "fre")])


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
    # Fitted rows are judged by the model without them.
    verdicts = dfm.fit_predict(ROWS)
    assert np.array_equal(verdicts == -1, dfm.held_out_p_values_ <= 0.05)


def test_a_row_is_anomalous_where_it_is_under_every_class():
    dfm = pydfm.DFM(3, alpha=0.1).fit(TWO, labels=LABELS)
    mixed = np.concatenate([TWO, TWO[:9] - 9])
    assert dfm.threshold_.shape == (2,)
    under = np.stack([dfm.score(mixed, labels=np.full(len(mixed), c)) for c in ("a", "b")])
    anomalous = (under > dfm.threshold_[:, None]).all(axis=0)
    assert np.array_equal(dfm.predict(mixed) == -1, anomalous)
    assert np.array_equal(dfm.p_value(mixed) <= 0.1, anomalous)
    assert np.array_equal(dfm.decision_function(mixed) < 0, anomalous)
    labels = np.append(LABELS, ["a"] * 9)
    own = np.where(labels == "a", *(under > dfm.threshold_[:, None]))
    assert np.array_equal(dfm.predict(mixed, labels=labels) == -1, own)
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


def test_the_best_class_counts_or_the_given_one():
    scores = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], dtype=np.float32)
    scores = np.stack([scores, scores / 2])  # under two folds

    def value(own, c):
        return own.sum(axis=0) * 10**c

    assert best_over_classes(value, scores, None).tolist() == [45, 30, 15]
    given = np.array([1, 0, 1])
    assert best_over_classes(value, scores[:, :1], given).tolist() == [15, 3, 45]

    def known(own, c):
        return value(own, c) if c == 0 else np.full(own.shape[1], np.nan)

    # A class without held-out scores decides nothing, and cannot be asked for.
    assert best_over_classes(known, scores, None).tolist() == [1.5, 3, 4.5]
    with pytest.raises(ValueError, match="labels names a class that has no held-out scores"):
        best_over_classes(known, scores[:, :1], given)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_measures_may_come_in_batches(labels):
    dfm = pydfm.DFM(3, alpha=0.1).fit(TWO, labels=labels)
    fitted = dfm.fitted_
    decider = Decider.of(fitted, "fre", alpha=0.1)
    whole = decider.measure(fitted.score(FRESH, 2))
    assert whole.shape == (3, 300)
    parts = [decider.measure(fitted.score(FRESH[i : i + 70], 2)) for i in range(0, 300, 70)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    found, want = decider.judge(whole), dfm.assess(FRESH)
    assert np.array_equal(found.verdicts, want.verdicts)
    assert np.array_equal(found.p_values, whole[1])
    assert np.array_equal(whole[2], dfm.decision_function(FRESH))
    compute = p_values(fitted, ["fre", "ppca"], None)
    both = compute(fitted.score(FRESH, 2))
    assert np.array_equal(both, dfm.p_value(FRESH, score_type=("fre", "ppca")))


def test_skipped_images_have_no_verdict():
    decider = Decider.of(pydfm.DFM(3).fit(ROWS).fitted_, "fre", alpha=0.1)
    measured = np.array([[1.0, np.nan, 9.0], [0.5, np.nan, 0.01], [2.0, np.nan, -2.0]])
    found = decider.judge(measured)
    assert found.verdicts.tolist() == [1, 0, -1]
    assert np.isnan(found.p_values[1])
    discovered = Decider.of(pydfm.DFM(3).fit(ROWS).fitted_, "fre", alpha=0.1, fdr=0.2)
    assert discovered.judge(measured).verdicts.tolist() == [1, 0, -1]
    nothing = np.full((3, 2), np.nan)
    assert discovered.judge(nothing).verdicts.tolist() == [0, 0]


def test_maps_and_verdicts_come_from_one_computation(noise):
    dfm = maps_dfm().fit(noise)
    features = dfm.extract(noise)
    scored = dfm.fitted_.score(features, 2)
    found = dfm.decider().judge(dfm.decider().measure(scored))
    assert np.array_equal(found.scores, dfm.score(features))
    assert np.array_equal(found.verdicts, dfm.predict(features))
