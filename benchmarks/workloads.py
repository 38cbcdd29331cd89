"""Seeded features whose covariance is known, with a spectrum that falls like real ones."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import scipy.fft
import scipy.optimize
from numpy.typing import NDArray

# Answers must agree with the float64 reference to this, relative, before they are timed.
TOLERANCE: Final = 1e-3


@dataclass(frozen=True)
class Model:
    """Mean (D,), components (k, D), variances (k,) and noise variance; any float type."""

    mean: NDArray[Any]
    components: NDArray[Any]
    variances: NDArray[Any]
    noise_variance: float = 0.0

    @cached_property
    def as_float32(self) -> "Model":
        return Model(
            np.asarray(self.mean, dtype=np.float32),
            np.asarray(self.components, dtype=np.float32, order="C"),
            np.asarray(self.variances, dtype=np.float32),
            self.noise_variance,
        )


@dataclass(frozen=True)
class Population:
    """A distribution of features: `n_components` of D variances have `share` of their sum.

    The variances fall as a power of their rank, as those of real features do. 97 % is what
    `pydfm.DFM` keeps by default; from 99 % on, many rows have residuals so small that it has to
    score them again in float64.
    """

    n_features: int
    n_components: int
    share: float = 0.97

    @cached_property
    def variances(self) -> NDArray[np.float64]:
        """Return the eigenvalues (D,) of the covariance, descending from 1."""
        ranks = np.arange(1, self.n_features + 1, dtype=np.float64)

        def missing(decay: float) -> float:
            values = ranks**-decay
            return self.share - float(values[: self.n_components].sum() / values.sum())

        return ranks ** -scipy.optimize.brentq(missing, 0.0, 20.0)

    @cached_property
    def model(self) -> Model:
        """Return the model that a fit of very many rows would give."""
        k = self.n_components
        components = mix(np.eye(k, self.n_features))
        rest = float(self.variances[k:].mean())
        return Model(self._mean, components, self.variances[:k], rest)

    @property
    def _mean(self) -> NDArray[np.float64]:
        return np.random.default_rng(self.n_features + 1).uniform(0, 1, self.n_features)

    def rows(self, n_rows: int, seed: int = 0) -> NDArray[np.float32]:
        """Draw features (n_rows, D)."""
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((n_rows, self.n_features), dtype=np.float32)
        rows *= np.sqrt(self.variances).astype(np.float32)
        rows = mix(rows)
        rows += self._mean.astype(np.float32)
        return rows

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Return an exactly symmetric matrix (D, D)."""
        root = mix(np.diag(np.sqrt(self.variances)))
        matrix = root.T @ root
        return (matrix + matrix.T) / 2


@dataclass(frozen=True)
class ClassPopulation:
    """Classes with one spectrum, each in its own subspace.

    Their means are drawn with variances that fall as 1 / rank, in directions common to all, and
    differ by as much as rows of one class do (`spread` times that, in the mean square).
    """

    n_classes: int
    n_features: int
    n_components: int
    spread: float = 1.0

    @cached_property
    def _within(self) -> Population:
        return Population(self.n_features, self.n_components)

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        rng = np.random.default_rng(self.n_classes)
        shares = 1 / np.arange(1, self.n_features + 1)
        shares *= self.spread * self._within.variances.sum() / 2 / shares.sum()
        return mix(rng.normal(size=(self.n_classes, self.n_features)) * np.sqrt(shares))

    def _turn(self, rows: NDArray[Any], c: int) -> NDArray[Any]:
        """Return the features at coordinates along the axes of class c."""
        order = np.random.default_rng(c).permutation(self.n_features)
        return mix(mix(rows)[:, order])

    @cached_property
    def models(self) -> list[Model]:
        """Return the models of the classes."""
        k, variances = self.n_components, self._within.variances
        axes, rest = np.eye(k, self.n_features), float(variances[k:].mean())
        return [
            Model(self._means[c], self._turn(axes, c), variances[:k], rest)
            for c in range(self.n_classes)
        ]

    def rows(self, n_rows: int, seed: int = 0) -> NDArray[np.float32]:
        """Draw features (n_rows, D) of the classes in turn."""
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((n_rows, self.n_features)) * np.sqrt(self._within.variances)
        for c in range(self.n_classes):
            own = slice(c, None, self.n_classes)
            rows[own] = self._turn(rows[own], c) + self._means[c]
        return rows.astype(np.float32)


def mix(rows: NDArray[Any]) -> NDArray[Any]:
    """Multiply rows (N, D) by an orthogonal (D, D) matrix without structure along the axes."""
    rng = np.random.default_rng(rows.shape[1])
    order = rng.permutation(rows.shape[1])
    signs = rng.choice(np.array([-1, 1], dtype=rows.dtype), rows.shape[1])
    # Taking columns gives Fortran order, which nothing that is timed shall have to mend.
    mixed = np.ascontiguousarray(rows[:, order]) * signs
    return scipy.fft.dct(mixed, norm="ortho", axis=1, overwrite_x=True)


def reference_scores(model: Model, rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return fre, nll and mahalanobis (3, N) in float64, from the definitions."""
    variances = model.variances.astype(np.float64)
    components = model.components.astype(np.float64)
    d = rows.astype(np.float64) - model.mean
    z = d @ components.T
    fre = np.square(d - z @ components).sum(axis=1)
    mahalanobis = (np.square(z) / variances).sum(axis=1)
    constant = np.log(variances).sum() + len(variances) * np.log(2 * np.pi)
    return np.stack([fre, (mahalanobis + constant) / 2, mahalanobis])


def relative_error(answer: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest error, relative to the reference (to 1 where that is below 1e-6)."""
    scale = np.abs(reference)
    return float(np.max(np.abs(answer - reference) / np.where(scale > 1e-6, scale, 1.0)))
