r"""Features in, scores out: the principal subspace of a class and the Gaussian in it.

For rows x of D features with mean mu, let S be the scatter matrix, lambda_1 >= lambda_2 >= ... the
eigenvalues of the covariance S / (N - 1) and W (D, k) its k leading eigenvectors (Ahuja et al.
2019, section 2). With d = x - mu and z = W'd the scores are

- ``fre``: ||d||^2 - ||z||^2, the squared feature reconstruction error (Ndiour et al. 2020);
- ``mahalanobis``: sum z_i^2 / lambda_i;
- ``nll``: (mahalanobis + sum ln lambda_i + k ln 2 pi) / 2, the negative log-likelihood of z;
- ``ppca``: the negative log-likelihood of x under probabilistic PCA (Tipping and Bishop 1999),
  nll + (fre / s + (D - k) ln s + (D - k) ln 2 pi) / 2, where s is the noise variance.

Units: fre has those of the features squared, mahalanobis none, nll and ppca are in nats.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows, blocks, check_finite

SCORE_TYPES: Final = ("fre", "mahalanobis", "nll", "ppca")

_Moments: TypeAlias = tuple[int, NDArray[np.float64], NDArray[np.float64]]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Subspace:
    """A class: its mean, principal subspace and variances.

    Attributes
    ----------
    mean : ndarray of shape (D,), float64
    components : ndarray of shape (k, D), float64
        Orthonormal rows, by descending variance. k = 0 where all rows were equal.
    explained_variance : ndarray of shape (k,), float64
        Variances along the components, all positive.
    noise_variance : float
        Mean of the discarded min(N, D) - k variances, scikit-learn's rule, kept above the rounding
        error of the largest variance so that it can be divided by; 0 only where all rows were
        equal.
    total_variance : float
        Trace of the covariance matrix.
    n_samples : int
        Rows it was fitted on.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    explained_variance: NDArray[np.float64]
    noise_variance: float
    total_variance: float
    n_samples: int

    @cached_property
    def _scorer(self) -> _core.Scorer:
        return _core.Scorer(
            self.mean,
            self.components,
            self.explained_variance,
            noise_variance=self.noise_variance,
        )

    def __getstate__(self) -> dict[str, Any]:
        # What the core made of the subspace is for this processor, and made again when needed.
        return {name: value for name, value in vars(self).items() if name != "_scorer"}

    def score(
        self, features: NDArray[Any], score_types: list[str], n_threads: int
    ) -> NDArray[np.float32]:
        """Scores (len(score_types), N) of `features` (N, D), larger = farther.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity.
        """
        parts = []
        for first, rows in blocks(features):
            scores = _core.score(rows, self._scorer, score_types=score_types, n_threads=n_threads)
            if np.isnan(scores).any():
                check_finite(rows, first)
            parts.append(scores)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class SubspaceFitter:
    """Takes rows in any number of batches and gives the subspace of all of them.

    Rows are kept until there are more of them than features; then they are folded into their
    moments. So the cheaper of the N x N Gram matrix and the D x D covariance is decomposed, and
    memory is bounded by that of 2 D rows however many come.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_samples = 0
        self._n_threads = n_threads
        self._kept: list[Rows] = []
        self._n_kept = 0
        self._moments: _Moments | None = None

    def add(self, features: NDArray[Any]) -> None:
        """Add `features` (N, D), which must stay as they are until the fit."""
        for _, rows in blocks(features):
            self._kept.append(rows)
            self._n_kept += len(rows)
            self.n_samples += len(rows)
            if self._n_kept > features.shape[1]:
                self._fold()

    def _fold(self) -> None:
        rows = self._take_kept()
        moments = _core.moments(rows, n_threads=self._n_threads)
        _check_sums(rows, moments[1], moments[2], self.n_samples - len(rows))
        if self._moments is not None:
            moments = _core.merge_moments(self._moments, moments)
        self._moments = moments

    def _take_kept(self) -> Rows:
        # Batches may differ in type: the widest holds them all.
        rows = self._kept[0] if len(self._kept) == 1 else cast(Rows, np.concatenate(self._kept))
        self._kept, self._n_kept = [], 0
        return rows

    def fit(self, n_components: float | int | None) -> Subspace:
        """Return the subspace of all rows added.

        Parameters
        ----------
        n_components : float in (0, 1), int or None
            A share of the total variance (the fewest components that exceed it), a number of
            components up to min(N, D), or all.

        Raises
        ------
        ValueError
            With fewer than two rows, non-finite rows, or more components than min(N, D).
        """
        if self.n_samples < 2:
            raise ValueError(
                f"X has n_samples={self.n_samples}; fit needs at least two rows (images)"
            )
        if self._moments is not None:
            if self._kept:
                self._fold()
            _, mean, products = self._moments
        else:
            rows = self._take_kept()
            mean, products = _core.gram(rows, n_threads=self._n_threads)
            _check_sums(rows, mean, products, 0)
        values, vectors = _leading_eigenpairs(products, n_components, self._n_threads)

        n_features = len(mean)
        most = min(self.n_samples, n_features)
        # The mean is exact to eps |mean|: what is below that, or eps of the largest, is rounding.
        resolution = max(self.n_samples, n_features) * _EPS * max(values[0], 0.0)
        resolution = max(resolution, self.n_samples * (2 * _EPS * np.linalg.norm(mean)) ** 2)
        rank = int(np.count_nonzero(values > resolution))
        values = values[:most] / (self.n_samples - 1)
        values[rank:] = 0.0
        k = _count_components(n_components, values, rank)
        if self._moments is None:
            components = _core.components_from_gram(
                rows,
                mean,
                values[:k] * (self.n_samples - 1),
                vectors[:k],
                n_threads=self._n_threads,
            )
        else:
            components = vectors[:k].copy()
        rest = values[k:]
        floor = n_features * _EPS * values[0]
        return Subspace(
            mean=mean,
            components=components,
            explained_variance=values[:k].copy(),
            noise_variance=max(float(rest.mean()) if len(rest) else 0.0, floor),
            total_variance=float(values.sum()),
            n_samples=self.n_samples,
        )


def _leading_eigenpairs(
    products: NDArray[np.float64], n_components: float | int | None, n_threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # As many vectors as _count_components may ask for: it takes what rounding left of zero
    # eigenvalues for none, which leaves a share to fewer of the others, never to more.
    if n_components is None:
        return _core.eigh(products, n_threads=n_threads)
    if n_components < 1:
        return _core.eigh(products, share=float(n_components), n_threads=n_threads)
    return _core.eigh(products, count=int(n_components), n_threads=n_threads)


def _check_sums(
    rows: Rows, mean: NDArray[np.float64], products: NDArray[np.float64], first: int
) -> None:
    if not np.isfinite(mean).all():
        check_finite(rows, first)
    if not np.isfinite(np.trace(products)):
        raise ValueError(
            f"X contains values up to {np.abs(rows).max():.1e}, whose squares are beyond float64; "
            "divide the features by a constant"
        )


def check_n_components(n_components: Any) -> None:
    """Raise ValueError unless `n_components` is a share in (0, 1), a positive int or None."""
    if n_components is None:
        return
    is_integer = isinstance(n_components, int | np.integer) and not isinstance(n_components, bool)
    if is_integer and n_components >= 1:
        return
    if isinstance(n_components, float | np.floating) and 0 < n_components < 1:
        return
    raise ValueError(
        f"n_components is {n_components!r}; it must be a share of variance between 0 and 1, a "
        "number of components of at least 1, or None for all of them"
    )


def _count_components(
    n_components: float | int | None, values: NDArray[np.float64], rank: int
) -> int:
    """Components to keep of the eigenvalues `values` (descending, zero from `rank` on)."""
    most = len(values)
    if n_components is not None and n_components >= 1 and n_components > most:
        raise ValueError(
            f"n_components is {n_components}; with the rows and features given it may be at most "
            f"min(N, D) = {most}"
        )
    if rank == 0:
        warnings.warn(
            "all rows of X are equal: there is no variance to model, and fre becomes the squared "
            "distance from that row",
            stacklevel=4,
        )
        return 0
    if n_components is None:
        return rank
    if n_components < 1:
        shares = np.cumsum(values) / values.sum()
        return min(int(np.searchsorted(shares, n_components, side="right")) + 1, rank)
    if n_components > rank:
        warnings.warn(
            f"n_components is {n_components}, but X has variance in {rank} directions only: "
            f"{rank} components are kept",
            stacklevel=4,
        )
    return min(int(n_components), rank)
