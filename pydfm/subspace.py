r"""The principal subspace of some rows and the Gaussian in it: fitted, and scored by the core.

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

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows, blocks, check_finite
from pydfm.labels import by_class
from pydfm.leave_one_out import LeftOut, gram_coordinates
from pydfm.sample import RowSample

GAUSSIAN_SCORES: Final = ("fre", "mahalanobis", "nll", "ppca")
"""The scores that one subspace gives."""

Reduction: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Makes numbers (b, ...) of residuals (b, D)."""

_Moments: TypeAlias = tuple[int, NDArray[np.float64], NDArray[np.float64]]

_EPS = float(np.finfo(np.float64).eps)
# Residuals of rows that are left out are made of about this many bytes at once.
_RESIDUAL_BYTES = 32 << 20


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

    Parameters
    ----------
    n_threads : int
    sample : RowSample, optional
        Of the rows that are folded, to score them without themselves.
    """

    def __init__(self, n_threads: int, sample: RowSample | None = None) -> None:
        self.n_samples = 0
        self._n_threads = n_threads
        self._kept: list[Rows] = []
        self._n_kept = 0
        self._moments: _Moments | None = None
        self._gram: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._sample = sample
        self._n_components = 0  # of the last fit

    def add(self, features: NDArray[Any]) -> None:
        """Add `features` (N, D), which must stay as they are until the fit."""
        for _, rows in blocks(features):
            self._kept.append(rows)
            self._n_kept += len(rows)
            self.n_samples += len(rows)
            if self._n_kept > features.shape[1]:
                self._fold()

    def merge(self, other: "SubspaceFitter") -> None:
        """Add all rows that were added to `other`, which stays as it is."""
        if other._moments is not None:
            if self._moments is None:
                self._moments = other._moments
            else:
                self._moments = _core.merge_moments(self._moments, other._moments)
        self._kept += other._kept
        self._n_kept += other._n_kept
        self.n_samples += other.n_samples
        if self._kept and self._n_kept > self._kept[0].shape[1]:
            self._fold()

    def fit(
        self, n_components: float | int | None, regularization: str | float | None = None
    ) -> Subspace:
        """Return the subspace of all rows added.

        Parameters
        ----------
        n_components : float in (0, 1), int or None
            A share of the total variance (the fewest components that exceed it), a number of
            components, or all; never more than have variance.
        regularization : {"shrinkage"}, float or None
            Of the variances; see the head of this module.

        Raises
        ------
        ValueError
            Without rows, or where they are not finite.
        """
        if self._moments is not None:
            if self._kept:
                self._fold()
            _, mean, products = self._moments
            rows = None
        else:
            rows = self._take_kept()
            self._kept, self._n_kept = [rows], len(rows)
            mean, products = self._gram = _core.gram(rows, n_threads=self._n_threads)
            _check_sums(rows, mean, products, 0)
        subspace = _fit_subspace(
            mean, products, rows, self.n_samples, 1, n_components, regularization, self._n_threads
        )
        self._n_components = len(subspace.components)
        return subspace

    def release(self) -> None:
        """Let go of rows that are kept; what `left_out` needs stays."""
        self._kept, self._n_kept = [], 0

    def left_out(
        self, reduce: Reduction | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float32] | None]:
        """Scores of rows, each under the subspace that the others have, after `fit`.

        Parameters
        ----------
        reduce : callable, optional
            Makes numbers (b, ...) of the residuals (b, D) of some rows, x less its mean and less
            its projection, both of the others. Rows that are kept must not be released then.

        Returns
        -------
        places : ndarray of shape (n,)
            Which rows, as they came: all, or those of the sample where they were folded.
        scores : ndarray of shape (4, n), float64
            Of `GAUSSIAN_SCORES`, without regularization; NaN where the others cannot give it: all
            but fre of two rows, every score of a single one.
        reduced : ndarray of shape (n, ...), float32, or None
            What `reduce` made of the residuals; NaN where there are none.
        """
        kept: Rows | None = None
        if self._gram is not None and self._moments is None:
            mean, products = self._gram
            rows, places = None, np.arange(self.n_samples)
            kept = self._kept[0] if reduce is not None else None
        else:
            assert self._moments is not None
            assert self._sample is not None
            _, mean, products = self._moments
            places, rows, _ = self._sample.take()
        scores, reduced = _left_out(
            products,
            rows,
            mean,
            len(mean),
            self.n_samples,
            self.n_samples,
            1,
            self._n_components,
            self._n_threads,
            reduce,
            kept,
        )
        return places, scores, reduced

    def _fold(self) -> None:
        rows = self._take_kept()
        if self._sample is not None:
            self._sample.add(rows)
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


class PooledFitter:
    """Takes rows of several classes and gives one subspace of their deviations from class means.

    As `SubspaceFitter`, with the rows' deviations from the means of their classes in place of those
    from one mean. Memory: that of 2 D rows in float64, and the means.
    """

    def __init__(self, n_threads: int, sample: RowSample | None = None) -> None:
        self.n_samples = 0
        self._n_threads = n_threads
        self._sample = sample
        self._gram: tuple[NDArray[np.float64], NDArray[np.intp]] | None = None
        self._n_components = 0  # of the last fit
        self._kept: list[tuple[Rows, NDArray[np.intp]]] = []
        self._n_kept = 0
        self._counts = np.zeros(0)
        self._means = np.zeros((0, 0))
        self._scatter: NDArray[np.float64] | None = None

    def add(self, features: NDArray[Any], classes: NDArray[np.intp]) -> None:
        """Add `features` (N, D) of `classes` (N,), numbered from 0; both must stay as they are."""
        for first, rows in blocks(features):
            if not np.isfinite(rows).all():
                check_finite(rows, self.n_samples)
            self._kept.append((rows, classes[first : first + len(rows)]))
            self._n_kept += len(rows)
            self.n_samples += len(rows)
            if self._n_kept > features.shape[1]:
                self._fold()

    def fit(
        self, n_components: float | int | None, regularization: str | float | None = None
    ) -> list[Subspace]:
        """Return the subspaces of the classes: one set of components, with each class's mean.

        Parameters
        ----------
        n_components, regularization
            As in `SubspaceFitter.fit`.
        """
        if self._scatter is None:
            deviations, classes = self._deviations()
            products = _core.gram(deviations, n_threads=self._n_threads)[1]
            self._gram = products, classes
        else:
            self._fold()
            deviations, products = None, self._scatter
        _check_sums(self._means, self._means, products, 0)
        shared = _fit_subspace(
            np.zeros(self._means.shape[1]),
            products,
            deviations,
            self.n_samples,
            int(np.count_nonzero(self._counts)),
            n_components,
            regularization,
            self._n_threads,
        )
        self._n_components = len(shared.components)
        return [
            replace(shared, mean=mean.copy(), n_samples=int(count))
            for count, mean in zip(self._counts, self._means, strict=True)
        ]

    def counts(self) -> NDArray[np.intp]:
        """Return the number of rows (C,) of each class."""
        kept = [classes for _, classes in self._kept]
        n = max([len(self._counts), *(int(c.max()) + 1 for c in kept)])
        counts = np.zeros(n, dtype=np.intp)
        if self._scatter is not None:
            counts[: len(self._counts)] = self._counts
        for classes in kept:
            counts += np.bincount(classes, minlength=n)
        return counts

    def merge(self, other: "PooledFitter") -> None:
        """Add all rows that were added to `other`, which stays as it is."""
        if other._scatter is not None:
            self._fold()
            n = max(len(self._counts), len(other._counts))
            shape = (n, other._means.shape[1])
            counts, means, theirs, deltas = (
                np.zeros(n),
                np.zeros(shape),
                np.zeros(n),
                np.zeros(shape),
            )
            counts[: len(self._counts)] = self._counts
            means[: len(self._counts)] = self._means
            theirs[: len(other._counts)] = other._counts
            deltas[: len(other._counts)] = other._means
            deltas -= means
            shares = theirs / np.maximum(counts + theirs, 1)
            steps = np.sqrt(counts * shares)[:, None] * deltas
            scatter = other._scatter + steps.T @ steps
            self._scatter = scatter if self._scatter is None else self._scatter + scatter
            self._means = means + shares[:, None] * deltas
            self._counts = counts + theirs
        self._kept += other._kept
        self._n_kept += other._n_kept
        self.n_samples += other.n_samples
        if self._kept and self._n_kept > self._kept[0][0].shape[1]:
            self._fold()

    def fit_together(
        self, n_components: float | int | None, regularization: str | float | None = None
    ) -> Subspace:
        """Return the subspace of all rows, whatever their classes."""
        if self._scatter is None:
            everything = SubspaceFitter(self._n_threads)
            for rows, _ in self._kept:
                everything.add(rows)
            return everything.fit(n_components, regularization)
        self._fold()
        mean = self._counts @ self._means / self.n_samples
        between = (self._means - mean) * np.sqrt(self._counts)[:, None]
        scatter = self._scatter + between.T @ between
        return _fit_subspace(
            mean, scatter, None, self.n_samples, 1, n_components, regularization, self._n_threads
        )

    def _fold(self) -> None:
        if not self._kept:
            return
        if self._sample is not None:
            for rows, classes in self._kept:
                self._sample.add(rows, classes)
        deviations, _ = self._deviations()
        self._kept, self._n_kept = [], 0
        count, mean, scatter = _core.moments(deviations, n_threads=self._n_threads)
        scatter += count * np.outer(mean, mean)  # about zero
        self._scatter = scatter if self._scatter is None else self._scatter + scatter

    def release(self) -> None:
        """Let go of rows that are kept; what `left_out` needs stays."""
        self._kept, self._n_kept = [], 0

    def left_out(
        self, reduce: Reduction | None = None
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float32] | None]:
        """Return places, classes, scores and so on; see `SubspaceFitter.left_out`."""
        n_features = self._means.shape[1]
        kept: Rows | None = None
        if self._scatter is None:
            assert self._gram is not None
            products, classes = self._gram
            rows, places = None, np.arange(self.n_samples)
            if reduce is not None:
                kept = np.concatenate([part for part, _ in self._kept]) - self._means[classes]
        else:
            assert self._sample is not None
            products = self._scatter
            places, rows, classes = self._sample.take()
            rows = rows - self._means[classes]
        scores, reduced = _left_out(
            products,
            rows,
            np.zeros(n_features),
            n_features,
            self._counts[classes],
            self.n_samples,
            int(np.count_nonzero(self._counts)),
            self._n_components,
            self._n_threads,
            reduce,
            kept,
        )
        return places, classes, scores, reduced

    def _deviations(self) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Rows whose products make up what the kept rows add to the scatter; counts and means move.

        For n rows of a class that has m with a mean delta away, these are the rows less their own
        mean, and sqrt(n m / (n + m)) delta (Chan, Golub and LeVeque 1979).
        """
        rows = np.concatenate([part for part, _ in self._kept]).astype(np.float64)
        classes = np.concatenate([part for _, part in self._kept])
        if self._scatter is None:  # all rows are here, so that nothing is counted twice
            self._counts, self._means = np.zeros(0), np.zeros((0, rows.shape[1]))
        more = int(classes.max()) + 1 - len(self._counts)
        if more > 0:
            self._counts = np.append(self._counts, np.zeros(more))
            means = np.zeros((len(self._counts), rows.shape[1]))
            if len(self._means):
                means[: len(self._means)] = self._means
            self._means = means
        steps = []
        for c, places in by_class(classes):
            n, m = len(places), self._counts[c]
            own = rows[places]
            mean = own.mean(axis=0)
            mean += (own - mean).mean(axis=0)
            rows[places] = own - mean
            if m == 0:
                self._means[c] = mean
            else:
                delta = mean - self._means[c]
                steps.append(np.sqrt(n * m / (n + m)) * delta)
                self._means[c] += n / (n + m) * delta
            self._counts[c] += n
        return (np.concatenate([rows, np.stack(steps)]) if steps else rows), classes


def _left_out(
    products: NDArray[np.float64],
    rows: Rows | None,
    mean: NDArray[np.float64],
    n_features: int,
    class_sizes: int | NDArray[np.float64],
    n_samples: int,
    n_classes: int,
    n_components: int,
    n_threads: int,
    reduce: Reduction | None = None,
    kept: Rows | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """Left-out scores (4, n) of some `rows`, or of those `kept` whose Gram matrix is `products`.

    And what `reduce` makes of their residuals.
    """
    values, vectors = _core.eigh(products, n_threads=n_threads)
    resolution = _resolution(values, mean, n_samples, n_features)
    model = LeftOut(
        eigenvalues=values[values > resolution],
        resolution=resolution,
        n_components=n_components,
        n_features=n_features,
        degrees_of_freedom=float(n_samples - n_classes - 1),
        n_variances=min(n_samples - n_classes, n_features),
    )
    vectors = vectors[: len(model.eigenvalues)]
    if rows is None:
        coordinates = gram_coordinates(model.eigenvalues, vectors)
    else:
        coordinates = _core.coordinates(rows, mean, vectors, n_threads=n_threads)
    scores = np.full((len(GAUSSIAN_SCORES), len(coordinates)), np.nan)
    sizes = np.broadcast_to(np.asarray(class_sizes), (len(coordinates),))
    known = sizes >= 2
    if known.any():
        kinds = GAUSSIAN_SCORES if model.degrees_of_freedom >= 1 else ("fre",)
        scores[: len(kinds), known] = model.scores(
            coordinates[known], sizes[known].astype(np.intp), kinds, n_threads
        )
    if reduce is None:
        return scores, None
    if rows is None:
        assert kept is not None
        axes = _core.components_from_gram(
            kept, mean, model.eigenvalues, vectors, n_threads=n_threads
        )
    else:
        axes = vectors
    return scores, _reduced(model, coordinates, sizes, axes, n_threads, reduce)


def _reduced(
    model: LeftOut,
    coordinates: NDArray[np.float64],
    class_sizes: NDArray[Any],
    axes: NDArray[np.float64],
    n_threads: int,
    reduce: Reduction,
) -> NDArray[np.float32]:
    """Apply `reduce` to the left-out residuals, which lie in the `axes` (r, D), block by block."""
    parts = []
    step = max(1, _RESIDUAL_BYTES // (8 * axes.shape[1]))
    for first in range(0, len(coordinates), step):
        block = slice(first, first + step)
        known = class_sizes[block] >= 2
        residuals = np.full((len(known), axes.shape[1]), np.nan)
        if known.any():
            inner = model.residuals(
                coordinates[block][known], class_sizes[block][known].astype(np.intp), n_threads
            )
            residuals[known] = inner @ axes
        parts.append(reduce(residuals).astype(np.float32))
    return np.concatenate(parts)


def _resolution(
    values: NDArray[np.float64], mean: NDArray[np.float64], n_samples: int, n_features: int
) -> float:
    """Eigenvalues of a scatter up to this are rounding.

    The mean is exact to eps |mean|: what is below that, or eps of the largest, is rounding.
    """
    resolution = max(n_samples, n_features) * _EPS * max(float(values[0]), 0.0)
    return max(resolution, n_samples * (2 * _EPS * float(np.linalg.norm(mean))) ** 2)


def _fit_subspace(
    mean: NDArray[np.float64],
    products: NDArray[np.float64],
    rows: Rows | None,
    n_samples: int,
    n_classes: int,
    n_components: float | int | None,
    regularization: str | float | None,
    n_threads: int,
) -> Subspace:
    """Subspace from the scatter (D, D), or from the Gram matrix (N, N) of `rows`."""
    values, vectors = _leading_eigenpairs(products, n_components, n_threads)
    n_features = len(mean)
    degrees = max(n_samples - n_classes, 1)
    most = min(n_samples - n_classes + 1, n_features)
    resolution = _resolution(values, mean, n_samples, n_features)
    rank = int(np.count_nonzero(values > resolution))
    values = values[:most] / degrees
    values[rank:] = 0.0
    k = _count_components(n_components, values, rank)
    if rows is not None:
        components = _core.components_from_gram(
            rows, mean, values[:k] * degrees, vectors[:k], n_threads=n_threads
        )
    else:
        components = vectors[:k].copy()
    rest = values[k:]
    floor = n_features * _EPS * values[0]
    subspace = Subspace(
        mean=mean,
        components=components,
        explained_variance=values[:k].copy(),
        noise_variance=max(float(rest.mean()) if len(rest) else 0.0, floor),
        total_variance=float(values.sum()),
        n_samples=n_samples,
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
        average = values.sum() / n_features
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


def check_regularization(regularization: Any) -> None:
    """Raise ValueError unless `regularization` is "shrinkage", a share in (0, 1) or None."""
    if regularization is None or regularization == "shrinkage":
        return
    if isinstance(regularization, float | np.floating) and 0 < regularization < 1:
        return
    raise ValueError(
        f"regularization is {regularization!r}; it must be None, 'shrinkage', or a floor for the "
        "variances as a share of the largest, between 0 and 1"
    )


def _count_components(
    n_components: float | int | None, values: NDArray[np.float64], rank: int
) -> int:
    """Components to keep of the eigenvalues `values` (descending, zero from `rank` on)."""
    if n_components is None or rank == 0:
        return rank
    if n_components < 1:
        shares = np.cumsum(values) / values.sum()
        return min(int(np.searchsorted(shares, n_components, side="right")) + 1, rank)
    return min(int(n_components), rank)
