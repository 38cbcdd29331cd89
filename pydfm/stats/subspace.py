r"""The principal subspace of some rows and the Gaussian in it: fitted, scored, held-out scores.

For rows x of D features with mean mu, let S be the scatter matrix, lambda_1 >= lambda_2 >= ... the
eigenvalues of the covariance S / (N - 1) and W (D, k) its k leading eigenvectors (Ahuja et al.
2019, section 2). With d = x - mu and z = W'd the scores are

- ``fre``: ||d||^2 - ||z||^2, the squared feature reconstruction error (Ndiour et al. 2020);
- ``mahalanobis``: sum z_i^2 / lambda_i;
- ``nll``: (mahalanobis + sum ln lambda_i + k ln 2 pi) / 2, the negative log-likelihood of z;
- ``ppca``: the negative log-likelihood of x under probabilistic PCA (Tipping and Bishop 1999),
  nll + (fre / s + (D - k) ln s + (D - k) ln 2 pi) / 2, where s is the noise variance.

Units: fre has those of the features squared, mahalanobis none, nll and ppca are in nats.

Where rows belong to classes that share a covariance, S is the scatter within the classes, the sum
over the classes of their scatters about their own means, and the covariance S / (N - C) for C
classes (Lee et al. 2018, equation 1, with the unbiased divisor).

Variances may be regularised (`regularised`): "shrinkage" turns the covariance C into
(1 - a) C + a tr(C) / D I, where a is the oracle approximating shrinkage of Chen et al. 2010
(equation 23), which takes only N, D, tr C and tr C^2, so that it is the same for rows, moments and
merged moments; a floor f raises every variance below f lambda_1 to it. Components stay as they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.inputs.arrays import Rows, blocks, check_finite
from pydfm.stats.accumulator import Accumulator, KeptRows
from pydfm.stats.leave_one_out import Held, Reduction, score_held_out
from pydfm.stats.scatter import check_sums, class_means, resolution_of
from pydfm.stats.sketch import FrequentDirections

_EPS = float(np.finfo(np.float64).eps)
_LOG_2_PI = math.log(2 * math.pi)

# Rows less the means of their classes are copied by so many bytes at once, but by no fewer columns.
_COPY_BYTES = 32 << 20
_LEAST_COLUMNS = 256

_Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Subspace:
    """A class: its mean, principal subspace and variances.

    Attributes
    ----------
    mean : ndarray of shape (D,), float64
    components : ndarray of shape (k, D), float64
        Orthonormal rows, by descending variance. k = 0 where all rows were equal.
    explained_variance : ndarray of shape (k,), float64
        Variances along the components, regularised where that was asked for; all positive.
    noise_variance : float
        Mean of the discarded min(N, D) - k variances, scikit-learn's rule, kept above the rounding
        error of the largest variance so that it can be divided by; 0 only where all rows were
        equal.
    total_variance : float
        Trace of the covariance matrix.
    n_samples : int
        Rows of the class.
    variance_error : float
        What variances along any direction may be too low by, where rows were sketched to save
        memory; 0 where they are exact.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    explained_variance: NDArray[np.float64]
    noise_variance: float
    total_variance: float
    n_samples: int
    variance_error: float = 0.0

    @cached_property
    def scorer(self) -> _core.Scorer:
        """The core's preparation of the subspace, which is made once."""
        return _core.Scorer(
            self.mean,
            self.components,
            self.explained_variance,
            noise_variance=self.noise_variance,
        )

    def __getstate__(self) -> dict[str, Any]:
        # What the core made of the subspace is for this processor, and made again when needed.
        return {name: value for name, value in vars(self).items() if name != "scorer"}

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
            scores = _core.score(rows, self.scorer, score_types=score_types, n_threads=n_threads)
            if np.isnan(scores).any():
                check_finite(rows, first)
            parts.append(scores)
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def log_constant(self, score_type: str) -> float:
        """Return the part of nll, or of ppca, that is the same for every row."""
        k = len(self.components)
        constant = float(np.log(self.explained_variance).sum()) + k * _LOG_2_PI
        if score_type == "ppca":
            constant += (len(self.mean) - k) * (math.log(self.noise_variance) + _LOG_2_PI)
        return 0.5 * constant

    def mahalanobis(self, features: NDArray[Any], n_threads: int) -> NDArray[np.float64]:
        """Mahalanobis scores (N,) of `features` (N, D) in float64, for differences of them."""
        parts = []
        for _, rows in blocks(features):
            step = max(1, _COPY_BYTES // (8 * max(len(self.components), 1)))
            for first in range(0, len(rows), step):
                some = rows[first : first + step]
                z = _core.coordinates(some, self.mean, self.components, n_threads=n_threads)
                parts.append((np.square(z) / self.explained_variance).sum(axis=1))
        return np.concatenate(parts) if parts else np.zeros(0)


@dataclass(frozen=True)
class Spectrum:
    """Rows of one class, or of several that share a scatter, with the matrix to decompose.

    Attributes
    ----------
    rows : Accumulator
        Folded, or with all rows kept, in one array.
    counts : ndarray of shape (C,)
        Number of rows of each class.
    means : ndarray of shape (C, D), float64
    products : ndarray of shape (N, N) or (D, D), float64, or FrequentDirections
        The Gram matrix of the centred rows where all are kept, else their scatter.
    """

    rows: Accumulator
    counts: NDArray[np.intp]
    means: NDArray[np.float64]
    products: NDArray[np.float64] | FrequentDirections

    @classmethod
    def of(cls, rows: Accumulator, n_threads: int) -> "Spectrum":
        """Prepare accumulated rows.

        Raises
        ------
        ValueError
            If rows are not finite, or too large to be squared.
        """
        if rows.scatter is not None:
            rows = rows.folded(n_threads)
            scatter = rows.scatter
            assert scatter is not None
            return cls(rows, scatter.counts, scatter.means, scatter.products)
        rows = rows if len(rows.kept) == 1 else rows.compact()
        kept, classes = rows.kept[0][:2]
        counts = np.bincount(classes)
        if len(counts) > 1:
            means = class_means(kept, classes)
            products = _class_gram(kept, classes, means, n_threads)
        else:
            mean, products = _core.gram(kept, n_threads=n_threads)
            means = mean[None]
        check_sums(kept, means, products, 0)
        return cls(rows, counts, means, products)

    @property
    def of_gram(self) -> bool:
        """Whether the eigenpairs are those of the Gram matrix."""
        return self.rows.scatter is None

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean (D,) of all rows."""
        mean: NDArray[np.float64]
        mean = self.means[0] if len(self.means) == 1 else np.average(self.means, 0, self.counts)
        return mean

    def fit(
        self,
        n_components: float | int | None,
        regularization: str | float | None,
        n_threads: int,
        *,
        whole: bool = False,
    ) -> "SubspaceFit":
        """Return the subspaces of the classes.

        Parameters
        ----------
        n_components, regularization
            As in `fit_subspace`.
        n_threads : int
        whole : bool
            Whether held-out scores will be asked for next, which take all eigenpairs: they are
            computed once then.
        """
        rows: Rows | None = None
        energy, error = None, 0.0
        mean = np.zeros(self.means.shape[1])
        if isinstance(self.products, FrequentDirections):
            rows, energy, error = self.products.rows, self.products.energy, self.products.error
            products = _core.product(rows, rows, transposed=True, n_threads=n_threads)
        else:
            products = self.products
            if self.of_gram:
                rows = self.rows.kept[0].rows
            if self.of_gram or len(self.means) == 1:
                mean = self.mean
        wanted = None if whole or energy is not None else n_components
        pairs = leading_eigenpairs(products, wanted, n_threads)
        shared = fit_subspace(
            mean,
            *pairs,
            rows,
            n_samples=self.rows.n_samples,
            n_classes=int(np.count_nonzero(self.counts)),
            n_components=n_components,
            regularization=regularization,
            n_threads=n_threads,
            energy=energy,
            error=error,
        )
        subspaces = tuple(
            replace(shared, mean=own.copy(), n_samples=int(count))
            for count, own in zip(self.counts, self.means, strict=True)
        )
        return SubspaceFit(self, subspaces, n_components, regularization, pairs if whole else None)


class LeftOut(NamedTuple):
    """Rows scored without their units.

    Attributes
    ----------
    rows : ndarray of shape (n, D)
    places, classes, units : ndarray of shape (n,)
        Which rows they are.
    scores : ndarray of shape (4, n), float64
        One row for each of `CORE_SCORES`; NaN where the other rows cannot give it: all but fre of
        two rows, every score of a class that is one unit.
    reduced : ndarray of shape (n, ...), float32, or None
        What was made of the residuals; NaN where there are none.
    """

    rows: Rows
    places: NDArray[np.intp]
    classes: NDArray[np.intp]
    units: NDArray[np.intp]
    scores: NDArray[np.float64]
    reduced: NDArray[np.float32] | None


@dataclass(frozen=True)
class SubspaceFit:
    """The subspaces of a spectrum's classes, which share all but their means.

    Attributes
    ----------
    spectrum : Spectrum
    subspaces : tuple of Subspace
        One for each class; that of a class without rows has a count of zero.
    n_components, regularization
        As they were asked for; see `fit_subspace`.
    """

    spectrum: Spectrum
    subspaces: tuple[Subspace, ...]
    n_components: float | int | None = None
    regularization: str | float | None = None
    _pairs: _Pairs | None = field(default=None, repr=False)

    def forget_pairs(self) -> "SubspaceFit":
        """Return this fit without all eigenpairs, which take as much memory as all else."""
        return replace(self, _pairs=None)

    def held_out(
        self,
        n_threads: int,
        complete: Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.bool_]] | None = None,
        reduce: Reduction | None = None,
    ) -> LeftOut:
        """Return scores of rows, each under the subspace that the rows of other units have.

        Parameters
        ----------
        n_threads : int
        complete : callable, optional
            Says of rows of some classes (n,) and units (n,) which belong to units that are there as
            a whole; others are left out. Default all.
        reduce : callable, optional
            Maps residuals (b, D) of some rows, x less its mean and less its projection, both of
            the other rows, to numbers (b, ...).

        Returns
        -------
        LeftOut
            All rows, or those of the sample where rows were folded.
        """
        spectrum, accumulated = self.spectrum, self.spectrum.rows
        if spectrum.of_gram:
            kept = accumulated.kept[0]
        else:
            assert accumulated.sample is not None
            places, rows, classes, units = accumulated.sample.take()
            kept = KeptRows(rows, classes, places, units)
            whole = None if complete is None else complete(classes, units)
            if whole is not None and not whole.all():
                kept = kept.pick(whole)
        products: Any = spectrum.products
        pairs = self._pairs or _core.eigh(products, n_threads=n_threads)
        scores, reduced = self._score_held_out(pairs, kept, spectrum.of_gram, n_threads, reduce)
        return LeftOut(kept.rows, kept.places, kept.classes, kept.units, scores, reduced)

    def scores_without(self, rows: KeptRows, n_threads: int) -> NDArray[np.float64]:
        """Return scores (4, n) of some of the rows, each without its class's unit.

        Parameters
        ----------
        rows : KeptRows
            With their classes and units elsewhere; all of them are of the one class here.
        n_threads : int
        """
        spectrum = self.spectrum
        values, vectors = self._pairs or _core.eigh(
            cast(Any, spectrum.products), n_threads=n_threads
        )
        if spectrum.of_gram:
            own = spectrum.rows.kept[0]
            positive = values > 0
            values = values[positive]
            vectors = _core.components_from_gram(
                own.rows, spectrum.mean, values, vectors[positive], n_threads=n_threads
            )
        return self._score_held_out((values, vectors), rows, False, n_threads, None)[0]

    def _score_held_out(
        self,
        pairs: _Pairs,
        kept: KeptRows,
        of_gram: bool,
        n_threads: int,
        reduce: Reduction | None,
    ) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
        spectrum = self.spectrum
        held = Held(
            rows=kept.rows,
            means=spectrum.means,
            mean=spectrum.mean,
            classes=kept.classes,
            units=kept.units,
            class_sizes=spectrum.counts,
        )
        return score_held_out(
            *pairs,
            held,
            of_gram=of_gram,
            n_components=self.n_components,
            n_kept=len(self.subspaces[0].components),
            regularization=self.regularization,
            n_threads=n_threads,
            reduce=reduce,
        )


def _class_gram(
    rows: Rows, classes: NDArray[np.intp], means: NDArray[np.float64], n_threads: int
) -> NDArray[np.float64]:
    """Return the Gram matrix (N, N) of rows less the means of their classes.

    The sum over blocks of features, so that no copy of all rows is made.
    """
    n, n_features = rows.shape
    gram = np.zeros((n, n))
    step = max(_LEAST_COLUMNS, _COPY_BYTES // (8 * n))
    for first in range(0, n_features, step):
        own = slice(first, first + step)
        centred = rows[:, own] - means[classes, own]
        gram += _core.gram(centred, n_threads=n_threads)[1]
    return gram


def fit_subspace(
    mean: NDArray[np.float64],
    values: NDArray[np.float64],
    vectors: NDArray[np.float64],
    rows: Rows | None,
    *,
    n_samples: int,
    n_classes: int = 1,
    n_components: float | int | None,
    regularization: str | float | None,
    n_threads: int,
    energy: float | None = None,
    error: float = 0.0,
) -> Subspace:
    """Return the subspace of a scatter, or of the Gram matrix of `rows`, by its eigenpairs.

    Parameters
    ----------
    mean : ndarray of shape (D,)
    values, vectors : ndarray of shape (r,) and (k, D) or (k, N)
        What `leading_eigenpairs` gives.
    rows : ndarray of shape (N, D) or None
        Those of the Gram matrix.
    n_samples, n_classes : int
        Of all rows, about the means of so many classes.
    n_components : float in (0, 1), int or None
        A share of the total variance (the fewest components that exceed it), a number of
        components, or all; never more than have variance.
    regularization : {"shrinkage"}, float or None
        See the head of this module.
    energy, error : float
        Where they are those of a sketch: the trace of the scatter, and what is missing in any
        direction, at most.
    """
    n_features = len(mean)
    degrees = max(n_samples - n_classes, 1)
    most = min(n_samples - n_classes + 1, n_features)
    resolution = resolution_of(values, mean, n_samples, n_features)
    rank = int(np.count_nonzero(values > resolution))
    values = values[:most] / degrees
    values[rank:] = 0.0
    total = float(values.sum()) if energy is None else energy / degrees
    k = _count_components(n_components, values, rank, total)
    if rows is not None:
        components = _core.components_from_gram(
            rows, mean, values[:k] * degrees, vectors[:k], n_threads=n_threads
        )
    else:
        components = vectors[:k].copy()
    # The mean of the others; a sketch does not know them one by one.
    rest = float(values[k:].sum()) if energy is None else max(total - float(values[:k].sum()), 0.0)
    floor = n_features * _EPS * float(values[0])
    subspace = Subspace(
        mean=mean,
        components=components,
        explained_variance=values[:k].copy(),
        noise_variance=max(rest / (most - k) if most > k else 0.0, floor),
        total_variance=total,
        n_samples=n_samples,
        variance_error=error / degrees,
    )
    return _regularised(subspace, values, degrees, regularization)


def _regularised(
    subspace: Subspace,
    values: NDArray[np.float64],
    degrees: int,
    regularization: str | float | None,
) -> Subspace:
    """`subspace` with its variances regularised; `values` are all of its covariance's."""
    if regularization is None or len(subspace.components) == 0:
        return subspace
    variances, noise = subspace.explained_variance, subspace.noise_variance
    if regularization == "shrinkage":
        n_features = len(subspace.mean)
        average = subspace.total_variance / n_features
        square = np.square(values).sum() / n_features
        spread = square - average**2  # tr(C^2) / D - (tr C / D)^2, zero for a multiple of I
        alpha = 1.0
        if spread > 0:
            alpha = min(
                (square / n_features + average**2) / ((degrees + 2) * spread / n_features), 1.0
            )
        variances = (1 - alpha) * variances + alpha * average
        noise = (1 - alpha) * noise + alpha * average
    else:
        least = float(regularization) * values[0]
        variances, noise = np.maximum(variances, least), max(noise, least)
    return replace(subspace, explained_variance=variances, noise_variance=noise)


def leading_eigenpairs(
    products: NDArray[np.float64], n_components: float | int | None, n_threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return all eigenvalues of `products`, and what eigenvectors `n_components` may ask for."""
    # As many vectors as _count_components may ask for: it takes what rounding left of zero
    # eigenvalues for none, which leaves a share to fewer of the others, never to more.
    if n_components is None:
        return _core.eigh(products, n_threads=n_threads)
    if n_components < 1:
        return _core.eigh(products, share=float(n_components), n_threads=n_threads)
    return _core.eigh(products, count=int(n_components), n_threads=n_threads)


def _count_components(
    n_components: float | int | None, values: NDArray[np.float64], rank: int, total: float
) -> int:
    """Components to keep of the eigenvalues `values` (descending, zero from `rank` on)."""
    if n_components is None or rank == 0:
        return rank
    if n_components < 1:
        shares = np.cumsum(values) / total
        return min(int(np.searchsorted(shares, n_components, side="right")) + 1, rank)
    return min(int(n_components), rank)
