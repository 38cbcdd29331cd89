import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SCORE_TYPES, Reference, assert_scores_close, falling_rows, fit_reference
from scipy.stats import multivariate_normal
from sklearn.covariance import oas
from sklearn.mixture import GaussianMixture

from pydfm import density_fitter as density_module
from pydfm.density_fitter import DensityFitter

KINDS = list(SCORE_TYPES)


def fit(rows, classes=None, n_components=4, *, batches=1, covariance="class", **settings):
    fitter = DensityFitter(
        n_components,
        covariance=covariance,
        density=settings.pop("density", "gaussian"),
        regularization=settings.pop("regularization", None),
        random_state=0,
        n_threads=2,
        **settings,
    )
    for part in np.array_split(np.arange(len(rows)), batches):
        fitter.add(rows[part], None if classes is None else classes[part])
    order = None if classes is None else range(int(classes.max()) + 1)
    return fitter.fit(order)


def labelled_rows(sizes, n_features=20, seed=0, spread=1.0):
    """Rows of classes of these `sizes`, each with a mean and a rotation of its own, shuffled."""
    rng = np.random.default_rng(seed)
    parts = [
        falling_rows(size, n_features, seed + c) * 3 + spread * rng.normal(size=n_features)
        for c, size in enumerate(sizes)
    ]
    classes = np.repeat(np.arange(len(sizes)), sizes)
    order = rng.permutation(len(classes))
    return np.concatenate(parts)[order], classes[order]


def references(rows, classes, k):
    """The model of each class from its rows alone."""
    return [fit_reference(rows[classes == c], k) for c in range(classes.max() + 1)]


def tied_references(rows, classes, k):
    """Means of the classes, and one PCA of the deviations from them."""
    means = np.stack([rows[classes == c].mean(axis=0) for c in range(classes.max() + 1)])
    _, singular, vectors = np.linalg.svd(rows - means[classes], full_matrices=False)
    variances = singular**2 / (len(rows) - len(means))
    most = min(len(rows) - len(means) + 1, rows.shape[1])
    noise = variances[k:most].mean() if k < most else 0.0
    return [Reference(m, vectors[:k], variances[:k], noise) for m in means]


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


# Left out


def left_out_fitter(covariance):
    settings = {"density": "gaussian", "regularization": None, "random_state": 0, "n_threads": 1}
    return DensityFitter(3, covariance=covariance, left_out=True, **settings)


@pytest.mark.parametrize(
    ("covariance", "reference"), [("class", references), ("tied", tied_references)]
)
@pytest.mark.parametrize("sizes", [(25, 30), (8, 7)])
def test_rows_are_scored_without_themselves(covariance, reference, sizes):
    rows, classes = labelled_rows(sizes)
    fitter = left_out_fitter(covariance)
    fitter.add(rows, classes)
    fitter.fit([0, 1])
    found = fitter.left_out()
    assert len(found.classes) == len(rows)
    for i in range(len(rows)):
        c, place = found.classes[i], found.places[i]
        row = np.flatnonzero(classes == c)[place] if covariance == "class" else place
        rest = np.delete(np.arange(len(rows)), row)
        want = reference(rows[rest], classes[rest], 3)[c].scores(rows[[row]])
        for kind in KINDS:
            np.testing.assert_allclose(found.scores[kind][i], want[kind][0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("covariance", ["class", "tied"])
def test_a_sample_of_many_rows_is_scored_without_themselves(monkeypatch, covariance):
    monkeypatch.setattr(density_module, "_SAMPLE", 40)
    monkeypatch.setattr(density_module, "_CLASS_SAMPLE", 40)
    rows, classes = labelled_rows((150, 90))
    fitters = []
    for _ in range(2):
        fitters.append(left_out_fitter(covariance))
        for part in np.array_split(np.arange(240), 1 if len(fitters) == 1 else 11):
            fitters[-1].add(rows[part], classes[part])
        fitters[-1].fit([0, 1])
    one, other = (fitter.left_out() for fitter in fitters)
    assert len(one.places) == (80 if covariance == "class" else 40)
    assert np.array_equal(one.places, other.places)
    for kind in KINDS:
        np.testing.assert_allclose(one.scores[kind], other.scores[kind], rtol=1e-8)


# Regularization


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (400, 25)])
def test_shrinkage_is_that_of_scikit_learn(shape):
    rows = falling_rows(*shape, offset=1.0)
    plain, shrunk = fit(rows), fit(rows, regularization="shrinkage")
    covariance, alpha = oas(rows)
    assert 0 < alpha < 1
    n = shape[0]
    values = np.linalg.eigvalsh(covariance)[::-1][:4] * n / (n - 1)
    np.testing.assert_allclose(shrunk.subspaces[0].explained_variance, values, rtol=1e-9)
    assert np.array_equal(shrunk.subspaces[0].components, plain.subspaces[0].components)
    assert shrunk.subspaces[0].noise_variance > plain.subspaces[0].noise_variance


def test_a_floor_is_a_share_of_the_largest_variance():
    rows = falling_rows(300, 12, decay=4.0)
    plain, floored = (fit(rows, None, 8, regularization=r).subspaces[0] for r in (None, 0.05))
    least = 0.05 * plain.explained_variance[0]
    np.testing.assert_allclose(
        floored.explained_variance, np.maximum(plain.explained_variance, least), rtol=1e-12
    )
    assert floored.noise_variance == least


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


# Mixtures


def two_blobs(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = falling_rows(n, 12, seed, decay=2.0)
    rows[: n // 2, :2] += 4.0
    return rows[rng.permutation(n)]


def test_a_mixture_finds_the_gaussians_that_are_there():
    rows = two_blobs(600)
    mixture = fit(rows, density="gmm").mixtures[0]
    assert len(mixture.weights) == 2
    np.testing.assert_allclose(mixture.weights, 0.5, atol=0.05)
    assert len(fit(falling_rows(600, 12), density="gmm").mixtures[0].weights) == 1


def test_scores_of_a_mixture_are_those_of_its_density():
    rows, others = two_blobs(400), two_blobs(50, 1)
    model = fit(rows, density="gmm")
    subspace, mixture = model.subspaces[0], model.mixtures[0]
    z = (others - subspace.mean) @ subspace.components.T
    likelihood = np.zeros(len(others))
    distances = []
    for weight, gaussian in zip(mixture.weights, mixture.gaussians, strict=True):
        covariance = gaussian.components.T * gaussian.explained_variance @ gaussian.components
        likelihood += weight * multivariate_normal(gaussian.mean, covariance).pdf(z)
        d = z - gaussian.mean
        distances.append((d @ np.linalg.inv(covariance) * d).sum(axis=1))
    fre, maha, nll, ppca = model.score(others, KINDS, 2)[0]
    plain = fit(rows).score(others, KINDS, 2)[0]
    assert np.array_equal(fre, plain[0])
    assert_scores_close(nll, -np.log(likelihood))
    assert_scores_close(maha, np.min(distances, axis=0))
    np.testing.assert_allclose(ppca - nll, plain[3] - plain[2], rtol=1e-3, atol=1e-3)
    # scikit-learn's own mixture of as many Gaussians is as likely.
    theirs = GaussianMixture(2, random_state=0).fit((rows - subspace.mean) @ subspace.components.T)
    assert abs(theirs.score_samples(z).mean() + nll.mean()) < 0.05


def test_mixtures_of_classes():
    rows, classes = labelled_rows((80, 90), spread=8.0)
    model = fit(rows, classes, density="gmm")
    scores, nearest = model.score(rows, KINDS, 2)
    assert (nearest[2] == classes).mean() > 0.9
    given = model.score(rows, KINDS, 2, classes)[0]
    assert (given >= scores).all()
    with (
        pytest.warns(UserWarning, match="class 1, of 1 row"),
        pytest.raises(ValueError, match="'gmm', and a class has n_samples=1, too few"),
    ):
        fit(rows[:80], np.repeat([0, 1], [79, 1]), 0.9, density="gmm")


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
