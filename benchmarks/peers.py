"""What pydfm is compared with, each as its users write it: numpy, scikit-learn, torch.

Each function prepares its operands and returns what is timed. X is float32 unless said otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from benchmarks.workloads import Model

Scores: TypeAlias = Callable[[], tuple[Any, Any]]
Fit: TypeAlias = Callable[[], Model]


def _constant(model: Model) -> float:
    """Return the constant that nll adds to half of mahalanobis."""
    k = len(model.variances)
    return float((np.log(model.variances).sum() + k * np.log(2 * np.pi)) / 2)


def matmul(model: Model, X: NDArray[Any]) -> Callable[[], None]:
    """Compute X @ W alone, the limit for every method that projects."""
    W = np.ascontiguousarray(model.as_float32.components.T)
    Z = np.empty((len(X), W.shape[1]), dtype=np.float32)

    def run() -> None:
        np.matmul(X, W, out=Z)

    return run


def numpy_two_products(model: Model, X: NDArray[Any]) -> Scores:
    """Project, reconstruct and subtract: two products."""
    single, constant = model.as_float32, _constant(model)
    mean, W, variances = single.mean, np.ascontiguousarray(single.components.T), single.variances

    def run() -> tuple[Any, Any]:
        d = X - mean
        z = d @ W
        residual = d - z @ W.T
        return (residual**2).sum(axis=1), (z**2 / variances).sum(axis=1) / 2 + constant

    return run


def numpy_one_product(model: Model, X: NDArray[Any]) -> Scores:
    """Compute ||d||^2 - ||z||^2 in four lines; it loses digits where the residual is small."""
    single, constant = model.as_float32, _constant(model)
    mean, W = single.mean, np.ascontiguousarray(single.components.T)
    precisions = 1 / single.variances

    def run() -> tuple[Any, Any]:
        d = X - mean
        z = d @ W
        zz = z * z
        return (d * d).sum(axis=1) - zz.sum(axis=1), zz @ precisions / 2 + constant

    return run


def numpy_nearest(models: Sequence[Model], X: NDArray[Any], kind: str) -> Scores:
    """Keep the lowest score (fre or mahalanobis) so far, with one product per class."""
    singles = [model.as_float32 for model in models]
    operands = [(m.mean, np.ascontiguousarray(m.components.T), 1 / m.variances) for m in singles]

    def run() -> tuple[Any, Any]:
        least = np.full(len(X), np.inf, dtype=np.float32)
        nearest = np.zeros(len(X), dtype=np.int32)
        for c, (mean, W, precisions) in enumerate(operands):
            d = X - mean
            z = d @ W
            if kind == "fre":
                scores = np.einsum("ij,ij->i", d, d) - np.einsum("ij,ij->i", z, z)
            else:
                scores = (z * z) @ precisions
            nearer = scores < least
            least[nearer], nearest[nearer] = scores[nearer], c
        return least, nearest

    return run


def _fitted_pca(model: Model) -> PCA:
    pca = PCA(n_components=len(model.variances))
    pca.mean_, pca.components_ = model.mean, model.components
    pca.explained_variance_, pca.noise_variance_ = model.variances, model.noise_variance
    pca.n_components_, pca.n_features_in_ = model.components.shape
    return pca


def sklearn_transform(model: Model, X: NDArray[Any]) -> Scores:
    """Use PCA.transform and inverse_transform."""
    pca, constant = _fitted_pca(model.as_float32), _constant(model)

    def run() -> tuple[Any, Any]:
        z = pca.transform(X)
        residual = X - pca.inverse_transform(z)
        nll = (z**2 / pca.explained_variance_).sum(axis=1) / 2 + constant
        return (residual**2).sum(axis=1), nll

    return run


def sklearn_ppca(model: Model, X: NDArray[Any]) -> Callable[[], Any]:
    """Use PCA.score_samples of a model fitted in float64."""
    pca = _fitted_pca(model)
    return lambda: -pca.score_samples(X)


def torch_scores(model: Model, X: NDArray[Any]) -> Scores:
    """Score as anomalib does: project, reconstruct, squared norm; Gaussian likelihood of z."""
    single, constant = model.as_float32, _constant(model)
    rows, mean, variances = map(torch.from_numpy, (X, single.mean, single.variances))
    W = torch.from_numpy(single.components).T.contiguous()

    def run() -> tuple[Any, Any]:
        with torch.inference_mode():
            z = torch.matmul(rows - mean, W)
            reconstructed = torch.matmul(z, W.T) + mean
            fre = torch.sum(torch.square(rows - reconstructed), dim=1)
            nll = torch.sum(torch.square(z) / variances, dim=1) / 2 + constant
            return fre.numpy(), nll.numpy()

    return run


def numpy_fit(X: NDArray[Any], k: int) -> Fit:
    """Compute eigenpairs of the float64 Gram or covariance matrix, whichever is smaller."""

    def run() -> Model:
        mean = X.mean(axis=0, dtype=np.float64)
        d = X - mean
        few = len(d) <= d.shape[1]
        values, vectors = np.linalg.eigh(d @ d.T if few else d.T @ d)
        values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
        components = (d.T @ vectors / np.sqrt(values)).T if few else vectors.T
        return Model(mean, components, values / (len(d) - 1))

    return run


def torch_svd(X: NDArray[Any], k: int) -> Fit:
    """Fit as anomalib does: torch.linalg.svd of the centred rows in float64."""
    rows = torch.from_numpy(X)

    def run() -> Model:
        double = rows.double()
        mean = double.mean(dim=0)
        _, sigma, vh = torch.linalg.svd(double - mean, full_matrices=False)
        variances = sigma[:k] ** 2 / (len(rows) - 1)
        return Model(mean.numpy(), vh[:k].numpy(), variances.numpy())

    return run


def sklearn_fit(X: NDArray[Any], k: int, solver: str) -> Fit:
    """Use PCA.fit with the given svd_solver, in the type of X."""

    def run() -> Model:
        pca = PCA(n_components=k, svd_solver=solver).fit(X)
        return Model(pca.mean_, pca.components_, pca.explained_variance_)

    return run
