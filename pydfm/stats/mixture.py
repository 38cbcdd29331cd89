r"""A mixture of Gaussians in a principal subspace (Ahuja et al. 2019, section 2).

With z = W'(x - mu), weights pi_m, means a_m and covariances B_m,

    nll(x) = -ln sum_m pi_m N(z; a_m, B_m),

in nats. It is fitted by scikit-learn's GaussianMixture, to coordinates divided by their standard
deviations, so that its floor under variances is one millionth of each. The number of Gaussians, and
whether their covariances are full or diagonal, are those of the lowest Bayesian information
criterion; a full covariance is tried only where a Gaussian has more rows than coordinates.
The core scores every Gaussian as its own subspace; ``mahalanobis`` is the lowest of them.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.inputs.arrays import blocks
from pydfm.stats.subspace import Subspace

# Orders that are tried, from 1.
_MOST_GAUSSIANS = 5


@dataclass(frozen=True)
class Mixture:
    """Gaussians in the coordinates of a `Subspace`, and their weights.

    Attributes
    ----------
    weights : ndarray of shape (M,), float64
        Positive, of sum 1.
    gaussians : tuple of Subspace
        Each of k features and k components: mean and principal axes of one Gaussian.
    n_samples : int
        Rows it was fitted on: fewer than the class has where `max_memory` has no room for them.
    """

    weights: NDArray[np.float64]
    gaussians: tuple[Subspace, ...]
    n_samples: int

    def score(
        self, subspace: Subspace, features: NDArray[Any], n_threads: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distances (N,) to the nearest Gaussian, and negative log-likelihoods (N,)."""
        distances, likelihoods = [], []
        for _, rows in blocks(features):
            z = _core.coordinates(rows, subspace.mean, subspace.components, n_threads=n_threads)
            scores = [g.score(z, ["mahalanobis", "nll"], n_threads) for g in self.gaussians]
            both = np.stack(scores).astype(np.float64)
            distances.append(both[:, 0].min(axis=0))
            likelihoods.append(
                -np.logaddexp.reduce(np.log(self.weights)[:, None] - both[:, 1], axis=0)
            )
        return np.concatenate(distances), np.concatenate(likelihoods)


def fit_mixture(
    subspace: Subspace, features: NDArray[Any], random_state: int, n_threads: int
) -> Mixture:
    """Fit a mixture to rows `features` (N, D), all or some of those `subspace` was fitted on.

    Parameters
    ----------
    random_state : int
        Seed of the first assignment of rows to Gaussians (k-means).
    """
    from threadpoolctl import threadpool_limits

    more = ", and a larger max_memory more rows" if len(features) < subspace.n_samples else ""
    z = np.concatenate(
        [
            _core.coordinates(rows, subspace.mean, subspace.components, n_threads=n_threads)
            for _, rows in blocks(features)
        ]
    )
    n_rows, k = z.shape
    sizes = np.sqrt(subspace.explained_variance)
    z /= sizes
    # scikit-learn's products are numpy's, which would take all processors.
    with threadpool_limits(n_threads):
        best = _best_mixture(z, random_state)
    if best is None:
        raise ValueError(
            f"density is 'gmm', and a class has n_samples={n_rows}, too few for a mixture; "
            f"density='gaussian' takes classes of any size{more}"
        )
    gaussians = []
    for m in range(best.n_components):
        covariance = best.covariances_[m]
        covariance = np.diag(covariance) if covariance.ndim == 1 else covariance
        covariance = covariance * np.outer(sizes, sizes)
        values, vectors = _core.eigh(np.ascontiguousarray(covariance), n_threads=n_threads)
        values = np.maximum(values, values[0] * k * np.finfo(np.float64).eps)
        gaussians.append(
            Subspace(
                mean=best.means_[m] * sizes,
                components=vectors.copy(),
                explained_variance=values,
                noise_variance=float(values[-1]),
                total_variance=float(values.sum()),
                n_samples=max(round(float(best.weights_[m]) * n_rows), 1),
            )
        )
    return Mixture(best.weights_ / best.weights_.sum(), tuple(gaussians), n_rows)


def _best_mixture(z: NDArray[np.float64], random_state: int) -> Any:
    """Return the mixture (scikit-learn's) of the least BIC, or None where rows are too few."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    n_rows, k = z.shape
    best, least = None, np.inf
    for order in range(1, _MOST_GAUSSIANS + 1):
        for kind in ("full", "diag"):
            if n_rows < order * (k + 1 if kind == "full" else 2):
                continue
            model = GaussianMixture(order, covariance_type=kind, random_state=random_state)
            with warnings.catch_warnings():
                # An order that does not settle has a worse criterion, or is good enough.
                warnings.simplefilter("ignore", ConvergenceWarning)
                try:
                    criterion = model.fit(z).bic(z)
                except ValueError:  # a covariance that has collapsed
                    continue
            if criterion < least:
                best, least = model, criterion
    return best
