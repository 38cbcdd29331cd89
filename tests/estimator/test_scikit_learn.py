import numpy as np
import pandas as pd
import pytest
import torch
from reference import falling_rows
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import pydfm

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(120, 4)) @ RNG.normal(size=(4, 16)) + 0.1 * RNG.normal(size=(120, 16))
STRANGE = 0.5 * RNG.normal(size=(30, 16)) + 1
X = np.concatenate([NORMAL, STRANGE])
Y = np.repeat([1, -1], [120, 30])
FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)
ROWS = falling_rows(60, 8)


_TWO_FEATURES = (
    "its rows have two features of nearly one variance: 97 % of it needs both directions, so no "
    "row has a residual"
)
# Checks that are not passed, by score type, and why.
UNMET = {
    ("fre", "check_outliers_train"): _TWO_FEATURES,
    ("fre", "check_outliers_fit_predict"): _TWO_FEATURES,
    ("mahalanobis", "check_outliers_fit_predict"): "fit_predict judges each row by a model without "
    "it, as LocalOutlierFactor does, and predict by the model of all",
}

# The versions of scikit-learn that Python 3.10 has give pytest an iterator, which its newest one
# warns of.
_CHECKS = parametrize_with_checks([pydfm.DFM(), pydfm.DFM(score_type="mahalanobis")]).mark


def dfm(**parameters):
    return pydfm.DFM(4, alpha=0.2, **parameters)


# Some of its data sets are too small for a level of 1 %, and some y are numbers of many values.
# Mahalanobis distances need no residual.
@pytest.mark.filterwarnings("ignore:y looks like classes and is ignored", "ignore:alpha is 0.01")
@pytest.mark.filterwarnings("ignore:X holds rows that are not")  # two rows of iris are the same
@pytest.mark.parametrize(_CHECKS.args[0], list(_CHECKS.args[1]), **_CHECKS.kwargs)
@pytest.mark.filterwarnings("ignore:.*no row has a residual")
def test_it_is_an_estimator_by_the_rules_of_scikit_learn(estimator, check, request):
    reason = UNMET.get((estimator.score_type, check.func.__name__))
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    check(estimator)


def test_it_stands_at_the_end_of_a_pipeline():
    pipeline = make_pipeline(StandardScaler(), pydfm.DFM(3)).fit(ROWS)
    scaled = StandardScaler().fit(ROWS)
    want = pydfm.DFM(3).fit(scaled.transform(ROWS)).score(scaled.transform(ROWS))
    assert np.array_equal(pipeline.score(ROWS), want)


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
@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
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
@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
def test_a_y_that_looks_like_classes_is_ignored_with_a_warning(y):
    estimator = pydfm.DFM(3).fit(ROWS)
    for method in (estimator.fit, estimator.score, estimator.partial_fit):
        with pytest.warns(UserWarning, match="y looks like classes and is ignored") as told:
            method(ROWS, y)
        assert [warning.filename for warning in told] == [__file__]
    assert not hasattr(estimator, "classes_")


@pytest.mark.parametrize("kind", [np.random.RandomState, np.random.default_rng])
def test_seeds_are_drawn_from_a_generator_as_in_scikit_learn(kind):
    parameters = {"density": "gmm", "weights": None, "calibration": "kfold"}
    first = pydfm.DFM(3, random_state=kind(5), **parameters)
    seeds = [first.fit(ROWS).training_.settings.random_state for _ in range(2)]
    assert seeds[0] != seeds[1]
    again = pydfm.DFM(3, random_state=kind(5), **parameters).fit(ROWS)
    assert again.training_.settings.random_state == seeds[0]
    assert np.array_equal(
        again.score(ROWS), pydfm.DFM(3, random_state=seeds[0], **parameters).fit(ROWS).score(ROWS)
    )


def test_without_a_seed_each_fit_draws_one_of_numpy():
    np.random.seed(3)  # noqa: NPY002 (what scikit-learn's users do)
    some = pydfm.DFM(3, random_state=None).fit(ROWS[:30])
    other = pydfm.DFM(3, random_state=None).fit(ROWS[30:])
    with pytest.raises(ValueError, match=r"random_state is \d+ in one model and \d+ in the other"):
        some.merge(other)
    # Rows that are added keep the seed of the model.
    seed = some.training_.settings.random_state
    assert some.partial_fit(ROWS[30:]).training_.settings.random_state == seed
    np.random.seed(3)  # noqa: NPY002
    assert pydfm.DFM(random_state=None).fit(ROWS).training_.settings.random_state == seed


def test_random_weights_come_from_the_seed_that_was_drawn():
    images = RNG.random((4, 3, 32, 32), dtype=np.float32)
    options = {"weights": None, "layers": "layer1", "image_size": 32, "calibration": None}
    some = pydfm.DFM(random_state=np.random.RandomState(0), **options).fit(images)
    spec = some.feature_spec_
    assert spec.random_state == some.training_.settings.random_state
    assert pydfm.DFM(random_state=spec.random_state, **options).fit(images).feature_spec_ == spec
    assert pydfm.DFM(random_state=None, **options).fit(images).feature_spec_ != spec


@pytest.mark.parametrize("wrong", [-1, 2**32, 0.5, "0", True])
def test_what_is_no_seed_is_told(wrong):
    for X in (ROWS, np.zeros((3, 3, 32, 32))):
        with pytest.raises(ValueError, match=r"random_state is .* must be an integer"):
            pydfm.DFM(random_state=wrong, weights=None).fit(X)
