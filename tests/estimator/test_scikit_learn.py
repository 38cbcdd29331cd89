import numpy as np
import pandas as pd
import pytest
import torch
from reference import falling_rows
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import pydfm

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(120, 4)) @ RNG.normal(size=(4, 16)) + 0.1 * RNG.normal(size=(120, 16))
STRANGE = 0.5 * RNG.normal(size=(30, 16)) + 1
X = np.concatenate([NORMAL, STRANGE])
Y = np.repeat([1, -1], [120, 30])
FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)
ROWS = falling_rows(60, 8)


def dfm(**parameters):
    return pydfm.DFM(4, alpha=0.2, **parameters)


@pytest.mark.parametrize("y", [Y, (Y == 1).astype(int), Y == 1])
def test_cross_validation_ranks_normal_above_strange(y):
    found = cross_val_score(dfm(), X, y, scoring="roc_auc", cv=FOLDS)
    assert (found > 0.95).all()


def test_cross_validation_in_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), dfm())
    assert (cross_val_score(pipeline, X, Y, scoring="roc_auc", cv=FOLDS) > 0.95).all()


def test_a_grid_is_searched_by_the_rank():
    search = GridSearchCV(dfm(), {"n_components": [1, 4]}, scoring="roc_auc", cv=FOLDS).fit(X, Y)
    assert search.best_params_ == {"n_components": 4}
    plain, ranks = dfm().fit(X), search.decision_function(STRANGE)
    assert np.array_equal(ranks, plain.decision_function(STRANGE))


@pytest.mark.parametrize(
    "y", [None, np.resize([1, -1], 60), np.resize([0, 1], 60), ROWS[:, 0] > 0, ROWS[:, 0], [1] * 60]
)
def test_y_is_ignored(y):
    got = pydfm.DFM(3).fit(ROWS, y).partial_fit(ROWS, y)
    want = pydfm.DFM(3).fit(ROWS).partial_fit(ROWS)
    assert np.array_equal(got.score(ROWS, y), want.score(ROWS))
    assert not hasattr(got, "classes_")


@pytest.mark.parametrize(
    "y",
    [
        "folders",
        ["good", "bad"] * 30,
        np.array(["good", "bad"] * 30, dtype=object),
        np.arange(60) % 3,
        torch.arange(60),
        pd.Series([4, 5] * 30),
    ],
)
def test_a_y_that_looks_like_classes_is_ignored_with_a_warning(y):
    estimator = pydfm.DFM(3).fit(ROWS)
    for method in (estimator.fit, estimator.partial_fit, estimator.score):
        with pytest.warns(UserWarning, match="y looks like classes and is ignored") as told:
            method(ROWS, y)
        assert [warning.filename for warning in told] == [__file__]
    assert not hasattr(estimator, "classes_")
