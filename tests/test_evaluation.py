import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from pydfm import evaluate

NAMES = {"auroc", "aupr", "aupr_in", "f1_max", "threshold", "fpr95"}


def f1_at(threshold, scores, labels):
    flagged = scores >= threshold
    return 2 * (flagged & labels).sum() / (flagged.sum() + labels.sum())


def fpr95(scores, labels):
    """The least share of normal samples flagged where 95 % of the others are."""
    shares = [
        (scores[~labels] >= t).mean()
        for t in np.unique(scores)
        if (scores[labels] >= t).mean() >= 0.95
    ]
    return min(shares)


@given(
    st.integers(2, 60), st.sampled_from([2, 5, 1000]), st.integers(0, 2**31), st.floats(-0.5, 0.5)
)
def test_metrics_are_those_of_their_definitions(n, n_values, seed, shift):
    # With few values there are ties.
    rng = np.random.default_rng(seed)
    labels = np.arange(n) < rng.integers(1, n)
    rng.shuffle(labels)
    scores = np.round(n_values * (rng.random(n) + shift * labels)) / n_values
    got = evaluate(scores, labels)
    f1 = {t: f1_at(t, scores, labels) for t in np.unique(scores)}
    wins = scores[labels][:, np.newaxis] - scores[~labels]
    assert set(got) == NAMES
    assert all(type(value) is float for value in got.values())
    assert got["auroc"] == pytest.approx(((wins > 0) + (wins == 0) / 2).mean())
    assert got["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert got["aupr"] == pytest.approx(average_precision_score(labels, scores))
    assert got["aupr_in"] == pytest.approx(average_precision_score(~labels, -scores))
    assert got["f1_max"] == pytest.approx(max(f1.values()))
    assert f1[got["threshold"]] == pytest.approx(got["f1_max"])
    assert got["fpr95"] == pytest.approx(fpr95(scores, labels))


@pytest.mark.parametrize(
    ("scores", "labels", "want"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], (1, 1, 1, 1, 3, 0)),  # told apart
        ([3, 4, 1, 2], [0, 0, 1, 1], (0, 5 / 12, 5 / 12, 2 / 3, 1, 1)),  # the wrong way round
        ([7, 7, 7, 7], [0, 0, 0, 1], (0.5, 0.25, 0.75, 0.4, 7, 1)),  # all the same
        ([1, 3, 2, 4], [0, 0, 1, 1], (0.75, 5 / 6, 5 / 6, 0.8, 2, 0.5)),
    ],
)
def test_small_cases_by_hand(scores, labels, want):
    assert tuple(evaluate(scores, labels).values()) == pytest.approx(want)


@pytest.mark.parametrize(("above", "want"), [(19, 0.0), (18, 1.0)])
def test_95_percent_are_19_of_20(above, want):
    # One anomalous sample lies below the normal one.
    scores = np.r_[1.0, 1.5, np.full(above, 2.0)]
    assert evaluate(scores, scores != 1.5)["fpr95"] == want


def test_scores_and_labels_may_come_in_any_form():
    scores, labels = np.array([1.0, 3.0, 2.0, 4.0], np.float32), np.array([0, 0, 1, 1])
    want = evaluate(scores, labels)
    for s, y in (
        (scores.tolist(), labels.astype(bool).tolist()),
        (torch.from_numpy(scores), torch.from_numpy(labels)),
        (scores.astype(np.float16), 3 * labels),
        (scores.astype(int), labels.astype(float)),
    ):
        assert evaluate(s, y) == want


def test_what_is_given_stays_as_it_is():
    scores, labels = np.array([1.0, 3.0, 2.0]), np.array([0, 2, 0])
    evaluate(scores, labels)
    assert scores.tolist() == [1, 3, 2]
    assert labels.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        ([1, 2], [1, 1], "labels are all anomalous; normal and"),
        ([1, 2], [0, 0], "labels are all normal; normal and"),
        ([], [], "scores is empty"),
        ([1, 2, 3], [0, 1], r"shape \(3,\) and labels \(2,\)"),
        ([[1, 2]], [[0, 1]], r"shape \(1, 2\) .* must be \(N,\)"),
        (1.0, True, r"shape \(\) "),
        ([1, 2, np.nan], [0, 1, 1], "scores has nan at 2"),
        ([1, -np.inf, 2], [0, 1, 1], "scores has -inf at 1"),
        ([1, 2, 3], [0, 1, np.nan], "labels has nan at 2"),
    ],
)
def test_values_that_cannot_be_measured_are_told(scores, labels, says):
    with pytest.raises(ValueError, match=says):
        evaluate(scores, labels)


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        ([1, 2], ["good", "bad"], "labels is of the type <U4"),
        ([1, 2], [None, 1], "labels is of the type object"),
        (["1", "2"], [0, 1], "scores is of the type <U1"),
        ([1j, 2], [0, 1], "scores is of the type complex128"),
    ],
)
def test_texts_are_not_taken_for_numbers(scores, labels, says):
    with pytest.raises(TypeError, match=says):
        evaluate(scores, labels)
