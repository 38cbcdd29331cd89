r"""Scores of training rows under the model of all the other rows, without fitting it again.

Rows that a model was fitted on score lower than new ones, the more so the closer N is to D: what a
threshold needs is the score that each row has without itself. With v = x - mu, leaving a row of a
class of n rows out turns

    v into rho v,  and the scatter S into S - rho v v',  rho = n / (n - 1),

a change of rank one: the spectrum of S - rho v v' follows from that of S and the coordinates V'v
of the row in the eigenvectors V of S (docs/method.md, "Leave one out"). So one eigendecomposition
serves all rows, and the scores are those of `pydfm.subspace.Subspace` fitted again, within 1e-8.

The coordinates come from either route of the fit: with N <= D rows, from the eigenvectors of the
Gram matrix alone (`gram_coordinates`); with N > D, as a product of the rows and all eigenvectors of
the scatter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm import _core

_Float64 = NDArray[np.float64]


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
        mean of all but k: min(N - C, D).
    """

    eigenvalues: _Float64
    resolution: float
    n_components: int
    n_features: int
    degrees_of_freedom: float
    n_variances: int

    @classmethod
    def of_scatter(
        cls,
        eigenvalues: _Float64,
        resolution: float,
        n_components: int,
        n_features: int,
        n_samples: int,
        n_classes: int = 1,
    ) -> "LeftOut":
        """Make it of all `eigenvalues` of the scatter of `n_samples` rows of `n_classes`."""
        kept = eigenvalues[eigenvalues > resolution]
        return cls(
            eigenvalues=kept,
            resolution=float(resolution),
            n_components=min(n_components, len(kept)),
            n_features=n_features,
            degrees_of_freedom=float(n_samples - n_classes - 1),
            n_variances=min(n_samples - n_classes, n_features),
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


def _rho(class_sizes: int | NDArray[np.integer[Any]], n_rows: int) -> _Float64:
    sizes = np.broadcast_to(np.asarray(class_sizes, dtype=np.float64), (n_rows,))
    if n_rows and sizes.min() < 2:
        raise ValueError(
            f"X has a class of n_samples={int(sizes.min())}; leaving a row out needs at least two "
            "rows of its class"
        )
    return np.ascontiguousarray(sizes / (sizes - 1))
