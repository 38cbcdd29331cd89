"""Scores, p-values and margins from one pass: against numpy, and what is refused."""

import numpy as np
import pytest

from pydfm import _core

ROWS = np.random.default_rng(0).normal(size=(20, 6))
COUNT, MEAN, SCATTER = _core.moments(ROWS, n_threads=1)
VALUES, VECTORS = _core.eigh(SCATTER, count=2, n_threads=1)
SCORER = _core.Scorer(MEAN, VECTORS, VALUES[:2], noise_variance=1.0)
CLASSES = _core.Classes([SCORER], n_threads=1)
GIVEN = {
    "scores": np.array([1.0, 2.0, 4.0], dtype=np.float32),
    "weights": np.array([3.0, 2.0, 1.0, 0.0]),
    "starts": np.array([0, 3], dtype=np.int64),
    "n_units": np.array([3.0]),
    "thresholds": np.array([3.0]),
}


def held_out(**changes):
    return _core.HeldOutScores(**{**GIVEN, **changes})


def judge(rows, classes=CLASSES, scores=None, **options):
    found = {"score_type": "fre", "n_threads": 1, **options}
    return _core.judge(rows, classes, held_out() if scores is None else scores, **found)


def test_p_values_and_margins_are_those_of_the_definition():
    rows = ROWS * np.linspace(0.1, 3, len(ROWS))[:, None]
    scores, nearest, p_values, margins = judge(rows)
    own = _core.score(rows, SCORER, score_types=["fre"], n_threads=1)[0]
    assert np.array_equal(scores[0], own)
    assert np.array_equal(nearest[0], np.zeros(len(rows)))
    higher = (GIVEN["scores"] >= own[:, None]).sum(axis=1)
    assert set(higher) == {0, 1, 2, 3}
    assert np.array_equal(p_values, (1 + higher) / 4)
    assert np.array_equal(margins, 3.0 - own.astype(np.float64))


def test_rows_that_are_not_finite_and_classes_without_scores_get_nan():
    rows = ROWS.copy()
    rows[3, 2] = np.nan
    _, nearest, p_values, margins = judge(rows)
    assert nearest[0, 3] == -1
    assert np.flatnonzero(np.isnan(p_values)).tolist() == [3]
    assert np.flatnonzero(np.isnan(margins)).tolist() == [3]
    nothing = held_out(
        scores=np.zeros(0, dtype=np.float32),
        weights=np.zeros(1),
        starts=np.zeros(2, dtype=np.int64),
        n_units=np.zeros(1),
        thresholds=np.array([np.nan]),
    )
    scores, _, p_values, margins = judge(ROWS, scores=nothing)
    assert np.isfinite(scores).all()
    assert np.isnan(p_values).all()
    assert np.isnan(margins).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("starts", np.array([0, 2], dtype=np.int64)),
        ("starts", np.array([1, 3], dtype=np.int64)),
        ("starts", np.array([0, 3, 3], dtype=np.int64)),
        ("starts", np.array([0, -1], dtype=np.int64)),
        ("scores", np.ones((3, 1), dtype=np.float32)),
        ("scores", np.ones(2, dtype=np.float32)),
        ("weights", np.ones(3)),
        ("n_units", np.ones(2)),
        ("thresholds", np.ones(2)),
    ],
)
def test_held_out_scores_that_do_not_fit_together_are_refused(name, value):
    with pytest.raises(ValueError, match=r"scores|starts|weights|thresholds"):
        held_out(**{name: value})


def test_rows_classes_and_types_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="as many columns"):
        judge(ROWS[:, :5].copy())
    with pytest.raises(ValueError, match="as many classes"):
        judge(ROWS, _core.Classes([SCORER, SCORER], n_threads=1))
    with pytest.raises(ValueError, match="score_types has 'far'"):
        judge(ROWS, score_type="far")
    with pytest.raises(TypeError):
        judge(ROWS, scores=GIVEN["scores"])
