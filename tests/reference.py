"""What pydfm promises, from the definitions in float64 numpy, and data to hold it against."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

SCORE_TYPES = ("fre", "mahalanobis", "nll", "ppca")


@dataclass
class Reference:
    """Mean (D,), orthonormal components (k, D), their variances (k,), and the noise variance."""

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    noise_variance: float

    def scores(self, rows):
        """Score type -> scores (N,)."""
        d = np.asarray(rows, dtype=np.float64) - self.mean
        z = d @ self.components.T
        k, n_features = self.components.shape
        fre = np.square(d - z @ self.components).sum(axis=1)
        mahalanobis = (np.square(z) / self.variances).sum(axis=1)
        nll = (mahalanobis + np.log(self.variances).sum() + k * np.log(2 * np.pi)) / 2
        ppca = nll.copy()
        if k < n_features:
            s = self.noise_variance
            ppca += (fre / s + (n_features - k) * np.log(2 * np.pi * s)) / 2
        return dict(zip(SCORE_TYPES, (fre, mahalanobis, nll, ppca), strict=True))


def fit_reference(rows, n_components):
    """The PCA of `rows` by singular values of the centred rows."""
    X = np.asarray(rows, dtype=np.float64)
    mean = X.mean(axis=0)
    mean += (X - mean).mean(axis=0)
    _, singular, vectors = np.linalg.svd(X - mean, full_matrices=False)
    variances = singular**2 / (len(X) - 1)
    k = n_components
    rest = variances[k:].mean() if k < len(variances) else 0.0
    floor = X.shape[1] * np.finfo(np.float64).eps * variances[0]
    return Reference(mean, vectors[:k], variances[:k], max(rest, floor))


def assert_scores_close(got, want, rtol=1e-4, atol=0.0):
    """The promise: every score within 1e-4 relative of float64."""
    got = np.asarray(got, dtype=np.float64)
    error = np.abs(got - want) - atol
    worst = int(np.argmax(error / np.maximum(np.abs(want), np.finfo(float).tiny)))
    assert (error <= rtol * np.abs(want)).all(), (worst, got[worst], want[worst])


def falling_rows(n_rows, n_features, seed=0, decay=1.0, offset=0.0, rank=None):
    """Rows whose variances fall as a power of their rank, as those of real features do."""
    rng = np.random.default_rng(seed)
    rank = min(n_rows, n_features) if rank is None else rank
    directions = rng.normal(size=(rank, n_features)) / np.sqrt(n_features)
    sizes = np.arange(1, rank + 1) ** (-decay / 2)
    return (rng.normal(size=(n_rows, rank)) * sizes) @ directions + offset


def disturbed(draw, rng, rows, n_fitted):
    """Rows with some of what fits meet: noise, constant columns, duplicates among `n_fitted`."""
    if draw(st.booleans()):  # noise in every direction, else rows of their rank
        rows = rows + 0.03 * rng.normal(size=rows.shape)
    if draw(st.booleans()):
        rows[:, rng.random(rows.shape[1]) < 0.3] = 7.0
    if draw(st.booleans()):
        rows[: n_fitted // 3] = rows[n_fitted - n_fitted // 3 : n_fitted]
    return rows


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


def two_blobs(n, seed=0, n_features=12):
    """Rows about two centres, of half of them each, shuffled."""
    rng = np.random.default_rng(seed)
    rows = falling_rows(n, n_features, seed, decay=2.0)
    rows[: n // 2, :2] += 4.0
    return rows[rng.permutation(n)]


def named_rows(n=60, n_features=24):
    """Rows float32 of the classes "a", "b" and "c", in any order, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.array(["b", "c", "a"])[rng.integers(0, 3, n)]
    shift = {"a": 0.0, "b": 4.0, "c": -4.0}
    rows = falling_rows(n, n_features) + np.array([[shift[label]] for label in labels])
    return rows.astype(np.float32), labels
