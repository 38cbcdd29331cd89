import pickle

import numpy as np
import pytest
from fits import fit_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    SCORE_TYPES,
    assert_scores_close,
    falling_rows,
    fit_reference,
    labelled_rows,
    references,
    tied_references,
)

from pydfm.stats import density as density_module

KINDS = list(SCORE_TYPES)


def fit(*arguments, **options):
    return fit_classes(*arguments, **options).density


# Classes


@pytest.mark.parametrize("sizes", [(60, 80), (12, 15, 9), (40, 9, 100, 7)])
@pytest.mark.parametrize(
    ("covariance", "reference"), [("class", references), ("tied", tied_references)]
)
@pytest.mark.parametrize("batches", [1, 6])
def test_scores_are_the_least_over_the_classes(sizes, covariance, reference, batches):
    rows, classes = labelled_rows(sizes)
    others = labelled_rows((30,) * len(sizes), seed=50)[0]
    model = fit(rows, classes, covariance=covariance, batches=batches)
    want = [r.scores(others) for r in reference(rows, classes, 4)]
    scores, nearest = model.score(others, KINDS, 2)
    assert scores.shape == nearest.shape == (4, len(others))
    for t, kind in enumerate(KINDS):
        each = np.stack([w[kind] for w in want])
        assert_scores_close(scores[t], each.min(axis=0))
        assert np.array_equal(nearest[t], each.argmin(axis=0))
    given = np.arange(len(others)) % len(sizes)
    scores, whose = model.score(others, KINDS, 2, given)
    assert np.array_equal(whose, np.broadcast_to(given, whose.shape))
    for t, kind in enumerate(KINDS):
        each = np.stack([w[kind] for w in want])
        assert_scores_close(scores[t], each[given, np.arange(len(others))])


@given(
    st.lists(st.integers(2, 40), min_size=2, max_size=6),
    st.integers(2, 60),
    st.integers(1, 9),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_tied_subspaces_are_those_of_the_deviations(sizes, n_features, batches, seed):
    rows, classes = labelled_rows(sizes, n_features, seed % 10_000, spread=5.0)
    k = min(3, n_features, len(rows) - len(sizes))
    want = tied_references(rows, classes, k)
    model = fit(rows, classes, k, covariance="tied", batches=batches)
    for subspace, reference in zip(model.subspaces, want, strict=True):
        np.testing.assert_allclose(subspace.mean, reference.mean, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(subspace.explained_variance, reference.variances, rtol=1e-8)
        np.testing.assert_allclose(
            np.abs(subspace.components @ reference.components.T).max(axis=1), 1, atol=1e-5
        )


@pytest.mark.parametrize("covariance", ["class", "tied"])
@pytest.mark.parametrize("sizes", [(60, 80), (7, 6)])
def test_relative_mahalanobis_is_less_that_of_all_rows(covariance, sizes):
    rows, classes = labelled_rows(sizes)
    model = fit(rows, classes, covariance=covariance)
    every = fit_reference(rows, 4).scores(rows)["mahalanobis"]
    maha, relative = model.score(rows, ["mahalanobis", "relative_mahalanobis"], 1)[0]
    np.testing.assert_allclose(relative, maha - every, rtol=1e-4, atol=1e-3)
    alone = model.score(rows, ["relative_mahalanobis"], 1)[0][0]
    assert np.array_equal(alone, relative)


def test_many_small_and_unbalanced_classes():
    sizes = (2000, 2, *(3,) * 998)
    rows, classes = labelled_rows(sizes, n_features=16, spread=20.0)
    model = fit(rows, classes, 0.9)
    scores, nearest = model.score(rows, ["fre"], 2)
    assert (nearest[0] == classes).mean() > 0.95
    assert np.isfinite(scores).all()
    tied = fit(rows, classes, 4, covariance="tied")
    assert np.isfinite(tied.score(rows, KINDS, 2)[0]).all()


def test_a_class_of_one_row_scores_squared_distances():
    rows, classes = labelled_rows((30, 1))
    with pytest.warns(UserWarning, match=r"1 of 2 classes have .* class 1, of 1 row\(s\), keeps 0"):
        model = fit(rows, classes)
    far = rows + 5.0
    scores = model.score(far, ["fre"], 1, np.ones(len(far), dtype=np.intp))[0][0]
    want = np.square(far - rows[classes == 1]).sum(axis=1)
    assert_scores_close(scores, want)
    with pytest.raises(ValueError, match=r"the 1 row\(s\) of the class 'b' have none"):
        model.check_scores(["nll"], ["a", "b"])
    tied = fit(rows, classes, covariance="tied")
    tied.check_scores(KINDS, ["a", "b"])
    assert np.isfinite(tied.score(far, KINDS, 1)[0]).all()


def test_classes_keep_what_components_they_have():
    rows, classes = labelled_rows((40, 5, 6))
    with pytest.warns(UserWarning, match=r"n_components is 8, but 2 of 3 classes have variance in"):
        model = fit(rows, classes, 8)
    assert [len(s.components) for s in model.subspaces] == [8, 4, 5]
    with pytest.raises(ValueError, match=r"n_components is 21; .* at most min\(N, D\) = 20"):
        fit(rows, None, 21)


# Regularization


@pytest.mark.parametrize("regularization", [None, "shrinkage", 1e-3])
@pytest.mark.parametrize("covariance", ["class", "tied"])
def test_singular_covariances_give_no_infinities(regularization, covariance):
    rows, classes = labelled_rows((40, 30))
    rows[:, 3] = rows[:, 4]
    rows[:, 5] = 7.0
    rows[classes == 1] = np.repeat(rows[classes == 1][:3], 10, axis=0)
    model = fit(rows, classes, None, covariance=covariance, regularization=regularization)
    scores = model.score(rows + 100.0, [*KINDS, "relative_mahalanobis"], 1)[0]
    assert np.isfinite(scores).all()


# Bad input


def test_the_row_that_is_not_finite_is_named():
    rows, classes = labelled_rows((50, 60))
    for covariance in ("class", "tied"):
        model = fit(rows, classes, covariance=covariance)
        bad = rows.copy()
        bad[31, 7] = np.nan
        with pytest.raises(ValueError, match="X contains NaN in row 31, column 7"):
            model.score(bad, ["fre", "relative_mahalanobis"], 2)
        with pytest.raises(ValueError, match=r"X contains NaN in row .*, column 7"):
            fit(bad, classes, covariance=covariance)


def test_relative_scores_need_classes():
    model = fit(falling_rows(30, 6))
    with pytest.raises(ValueError, match="fit with the labels of at least two classes"):
        model.check_scores(["relative_mahalanobis"], None)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_are_told(n):
    with pytest.raises(ValueError, match=f"n_samples={n}; fit needs at least two"):
        fit(np.ones((n, 4)))


def test_equal_rows_and_missing_directions_are_told():
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        fit(np.ones((5, 3)), None, 0.9)
    with pytest.warns(UserWarning, match="all rows of each class are equal"):
        fit(np.repeat(np.eye(3), 4, axis=0), np.repeat(np.arange(3), 4), 0.9, covariance="tied")
    with pytest.warns(UserWarning, match="variance in 4 directions only: 4 components are kept"):
        fit(falling_rows(50, 20, rank=4), None, 9)


def test_the_subspace_of_all_rows_is_fitted_once_and_only_when_it_is_read(monkeypatch):
    rows, labels = labelled_rows((20, 20, 20))
    fitted, fit_all = [], density_module.fit_background
    monkeypatch.setattr(
        density_module,
        "fit_background",
        lambda *given, **options: fitted.append(1) or fit_all(*given, **options),
    )
    density = fit_classes(rows, labels).density
    density.score(rows, ["fre", "mahalanobis", "nll", "ppca"], 2)
    assert fitted == []
    density.score(rows, ["relative_mahalanobis"], 2)
    together = density.background
    assert fitted == [1]
    assert together.n_samples == len(rows)
    assert pickle.loads(pickle.dumps(density)).background.n_samples == len(rows)
    assert fitted == [1]
