r"""Scores of training rows under the model of all the other rows, without fitting it again.

Rows that a model was fitted on score lower than new ones, the more so the closer N is to D: what a
threshold needs is the score that each row has without itself. With v = x - mu, leaving a row of a
class of n rows out turns

    v into rho v,  and the scatter S into S - rho v v',  rho = n / (n - 1),

a change of rank one: the spectrum of S - rho v v' follows from that of S and the coordinates V'v
of the row in the eigenvectors V of S (docs/method.md, "Leave one out"). So one eigendecomposition
serves all rows, and the scores are those of `pydfm.density.Subspace` fitted again, within 1e-8.

The coordinates come from either route of the fit: with N <= D rows, from the eigenvectors of the
Gram matrix alone (`gram_coordinates`); with N > D, as a product of the rows and all eigenvectors of
the scatter, block by block (`left_out_scores`). Functions here take plain float64 arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import Rows

_Float64 = NDArray[np.float64]

# Coordinates of rows are held in blocks of about this many bytes.
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class LeftOut:
    """What does not depend on the row that is left out.

    Attributes
    ----------
    eigenvalues : ndarray of shape (r,)
        Those of the scatter (not the covariance) that are above `resolution`, descending.
    resolution : float
        Eigenvalues of a scatter up to this count as zero.
    n_components : int
        k, from 1 to r; 0 where r is. A row that alone fills a direction counts without it.
    n_features : int
        D.
    degrees_of_freedom : float
        What the scatter of the remaining rows is divided by: N - 2, or N - C - 1 where C classes
        share a scatter.
    n_variances : int
        The variances of the remaining rows, zeros among them, of which the noise variance is the
        mean of all but k: min(N - 1, D).
    """

    eigenvalues: _Float64
    resolution: float
    n_components: int
    n_features: int
    degrees_of_freedom: float
    n_variances: int

    @classmethod
    def of_one_class(
        cls,
        eigenvalues: _Float64,
        resolution: float,
        n_components: int,
        n_features: int,
        n_samples: int,
    ) -> "LeftOut":
        """Make the usual case: `n_samples` rows with one mean and one scatter."""
        kept = eigenvalues[eigenvalues > resolution]
        return cls(
            eigenvalues=np.ascontiguousarray(kept, dtype=np.float64),
            resolution=float(resolution),
            n_components=min(n_components, len(kept)),
            n_features=n_features,
            degrees_of_freedom=float(n_samples - 2),
            n_variances=min(n_samples - 1, n_features),
        )

    def scores(
        self,
        coordinates: _Float64,
        class_sizes: int | NDArray[np.integer[Any]],
        score_types: Sequence[str],
        n_threads: int,
    ) -> _Float64:
        """Scores (len(score_types), N) of rows, each under the model without it.

        Parameters
        ----------
        coordinates : ndarray of shape (N, r)
            V'(x - mu), mu the mean of the row's class.
        class_sizes : int or ndarray of shape (N,)
            Number of rows of each row's class, at least two.
        score_types : sequence of str
            Of "fre", "mahalanobis", "nll" and "ppca"; all but fre need a scatter of the remaining
            rows, so at least one degree of freedom.

        Raises
        ------
        ValueError
            Where the remaining rows do not make a model.
        """
        if self.degrees_of_freedom < 1 and set(score_types) != {"fre"}:
            raise ValueError(
                "X leaves one row where one is left out, which has no variance: of its scores only "
                "'fre' can be told; add rows"
            )
        return _core.leave_one_out(
            coordinates,
            self.eigenvalues,
            _rho(class_sizes, len(coordinates)),
            n_components=self.n_components,
            degrees_of_freedom=self.degrees_of_freedom,
            n_variances=self.n_variances,
            n_features=self.n_features,
            resolution=self.resolution,
            score_types=list(score_types),
            n_threads=n_threads,
        )

    def residuals(
        self, coordinates: _Float64, class_sizes: int | NDArray[np.integer[Any]], n_threads: int
    ) -> _Float64:
        """Residuals (N, r) of rows under the models without them, in the coordinates V.

        Their product with V' (r, D) is x - mu less its projection on the subspace, with mean and
        subspace of the other rows; their squared lengths are the fre.
        """
        return _core.leave_one_out_residuals(
            coordinates,
            self.eigenvalues,
            _rho(class_sizes, len(coordinates)),
            n_components=self.n_components,
            resolution=self.resolution,
            n_threads=n_threads,
        )


def gram_coordinates(values: _Float64, vectors: _Float64) -> _Float64:
    """Coordinates (N, r) of rows from eigenpairs of their centred Gram matrix.

    Parameters
    ----------
    values : ndarray of shape (r,)
        Positive eigenvalues, which are those of the scatter.
    vectors : ndarray of shape (r, N)
        Row j belongs to values[j]. The coordinate of row i along component j is
        sqrt(values[j]) vectors[j, i]: the singular vectors of the two sides.
    """
    return np.ascontiguousarray((np.sqrt(values)[:, None] * vectors).T)


def left_out_scores(
    model: LeftOut,
    rows: Rows,
    mean: _Float64,
    vectors: _Float64,
    score_types: Sequence[str],
    n_threads: int,
) -> _Float64:
    """Scores (len(score_types), N) of all `rows` (N, D) of one class, each without itself.

    Parameters
    ----------
    model : LeftOut
    rows : ndarray of shape (N, D), float32 or float64
        In C order; all the rows that `mean` and `vectors` are of.
    mean : ndarray of shape (D,)
    vectors : ndarray of shape (r, D)
        All eigenvectors of the scatter that belong to ``model.eigenvalues``, one to a row.

    Notes
    -----
    The product of rows and eigenvectors takes twice the multiplications of the scatter itself, and
    is the larger part of the time. Memory: a block of coordinates.
    """
    step = max(64, _BLOCK_BYTES // (8 * max(len(vectors), 1)) // 64 * 64)
    parts = []
    for first in range(0, len(rows), step):
        coordinates = _core.coordinates(
            rows[first : first + step], mean, vectors, n_threads=n_threads
        )
        parts.append(model.scores(coordinates, len(rows), score_types, n_threads))
    return np.concatenate(parts, axis=1)


def left_out_components(
    model: LeftOut,
    coordinates: _Float64,
    class_sizes: int | NDArray[np.integer[Any]],
    share: float,
    n_threads: int,
) -> NDArray[np.intp]:
    """How many components (N,) the fit without each row keeps by the rule of `share`.

    The fewest whose variances exceed that share of their sum, at most as many as have variance. It
    is seldom more than one from `model.n_components`, from where the search goes: each step asks
    for the shares of the rows that are not settled.
    """
    rho = _rho(class_sizes, len(coordinates))
    rank = len(model.eigenvalues)
    counts = np.full(len(coordinates), model.n_components)
    if rank == 0:
        return counts

    def exceed(which: NDArray[np.intp], k: int) -> NDArray[np.bool_]:
        shares = _core.leave_one_out_shares(
            coordinates[which],
            model.eigenvalues,
            rho[which],
            n_components=k,
            resolution=model.resolution,
            n_threads=n_threads,
        )
        return shares > share

    everyone = np.arange(len(coordinates))
    enough = exceed(everyone, model.n_components)
    rising = everyone[~enough]
    for k in range(model.n_components + 1, rank + 1):
        if len(rising) == 0:
            break
        counts[rising] = k
        rising = rising[~exceed(rising, k)]
    falling = everyone[enough]
    for k in range(model.n_components - 1, 0, -1):
        if len(falling) == 0:
            break
        falling = falling[exceed(falling, k)]
        counts[falling] = k
    return counts


def _rho(class_sizes: int | NDArray[np.integer[Any]], n_rows: int) -> _Float64:
    sizes = np.broadcast_to(np.asarray(class_sizes, dtype=np.float64), (n_rows,))
    if n_rows and sizes.min() < 2:
        raise ValueError(
            f"X has a class of n_samples={int(sizes.min())}; leaving a row out needs at least two "
            "rows of its class"
        )
    return np.ascontiguousarray(sizes / (sizes - 1))
