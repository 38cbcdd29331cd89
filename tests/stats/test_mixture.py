import numpy as np
import pytest
from fits import fit_classes
from reference import SCORE_TYPES, assert_scores_close, falling_rows, labelled_rows, two_blobs
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_info

from pydfm.stats.mixture import fit_mixture

KINDS = list(SCORE_TYPES)


def fit(*arguments, **options):
    return fit_classes(*arguments, **options).density


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


def test_a_mixture_is_fitted_in_the_threads_that_were_asked_for(monkeypatch):
    seen, fit_of = set(), GaussianMixture.fit
    before = [pool["num_threads"] for pool in threadpool_info()]

    def watched(self, z):
        seen.update(pool["num_threads"] for pool in threadpool_info())
        return fit_of(self, z)

    monkeypatch.setattr(GaussianMixture, "fit", watched)
    rows = two_blobs(200)
    fit_mixture(fit(rows).subspaces[0], rows, random_state=0, n_threads=1)
    assert seen == {1}
    assert [pool["num_threads"] for pool in threadpool_info()] == before
