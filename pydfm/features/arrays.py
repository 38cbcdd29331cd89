"""Arrays of features: checked, and converted block by block to the types the core takes."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

# Arrays that need another type or layout are converted in blocks of about this many bytes.
_BLOCK_BYTES = 32 << 20


class FeatureSource:
    """Arrays of features, read one after the other.

    Parameters
    ----------
    arrays : iterable of array-like of shape (B, D)
        Batches of B rows; all have the same D.

    Attributes
    ----------
    count : int
        Number of rows read so far.
    """

    def __init__(self, arrays: Iterable[Any]) -> None:
        self.count = 0
        self._arrays = arrays

    def batches(self, n_features: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield the arrays (B, D), checked by `as_features`.

        Parameters
        ----------
        n_features : int, optional
            Number of features per row. Default that of the first array.
        """
        for X in self._arrays:
            features = as_features(X, n_features)
            n_features = features.shape[1]
            self.count += len(features)
            # A loader may write its next batch into the same memory.
            yield features if isinstance(self._arrays, list) else features.copy()


def is_array(value: Any) -> bool:
    """Whether `value` is a numpy array or a torch tensor."""
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "ndim"))


def as_features(X: Any, n_features: int | None = None) -> NDArray[Any]:
    """Return `X` as a numeric array (N, D), without a copy of arrays and CPU tensors.

    Parameters
    ----------
    X : array-like or torch.Tensor of shape (N, D)
        Real numbers of any type and layout; a tensor may be on any device.
    n_features : int, optional
        Number of features per row that a fitted model expects.

    Raises
    ------
    ValueError
        If X is not two-dimensional, is empty, or does not have `n_features` columns.
    TypeError
        If X is sparse or does not contain numbers.
    """
    array = as_array(X)
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise type(error)(f"X does not hold numbers only: {error}") from None
    if array.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {array.ndim}D array instead: X has the shape {array.shape}. "
            "Features are (N, D). Reshape your data, with X.reshape(1, -1) if it is one sample or "
            "X.reshape(-1, 1) if it is one feature; images are (N, 3, H, W)"
        )
    if array.dtype.kind == "c":
        raise ValueError("Complex data not supported: X must hold real numbers")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"X has the type {array.dtype}; features must be real numbers")
    if array.shape[0] == 0:
        raise ValueError(
            f"Found array with 0 sample(s) (shape={array.shape}) while a minimum of 1 is required."
        )
    if array.shape[1] == 0:
        raise ValueError(
            f"Found array with 0 feature(s) (shape={array.shape}) while a minimum of 1 is required."
        )
    if n_features is not None and array.shape[1] != n_features:
        raise ValueError(
            f"X has {array.shape[1]} features, but DFM is expecting {n_features} features as input"
        )
    return array


def blocks(features: NDArray[Any]) -> Iterator[tuple[int, Rows]]:
    """Yield the index of a first row, and rows from there on in C order, until all are covered.

    Rows are float32 or float64. Arrays of these types are not copied where they are in C order.
    float16 and integers of at most 16 bits become float32, which is exact; other types become
    float64.

    Parameters
    ----------
    features : array of shape (N, D)

    Yields
    ------
    first : int
        Index of the first row of the block.
    rows : array of shape (n, D)
        At most 32 MiB, unless it is `features` itself.
    """
    dtype = _row_type(features.dtype)
    flags = features.flags
    if features.dtype == dtype and flags.c_contiguous and flags.aligned:
        yield 0, features
        return
    step = max(1, _BLOCK_BYTES // (features.shape[1] * dtype.itemsize))
    for first in range(0, features.shape[0], step):
        rows: Any = np.require(features[first : first + step], dtype, ("C", "ALIGNED"))
        yield first, rows


def check_finite(rows: Rows, first: int = 0) -> None:
    """Raise ValueError if `rows` (N, D) contain NaN or infinity; it names the first such row.

    Parameters
    ----------
    first : int
        Index of the first row, for the message.
    """
    for i, row in enumerate(rows):
        finite = np.isfinite(row)
        if not finite.all():
            column = int(np.argmin(finite))
            found = "NaN" if np.isnan(row[column]) else "infinity"
            raise ValueError(
                f"X contains {found} in row {first + i}, column {column}; "
                "features must be finite, so remove such rows or correct what made them"
            )


def _row_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype in (np.float32, np.float64):
        return np.dtype(dtype.type)
    small = dtype.kind in "fiub" and np.can_cast(dtype, np.float32)
    return np.dtype(np.float32 if small else np.float64)


def as_array(X: Any) -> NDArray[Any]:
    """Return `X`, an array-like or a tensor on any device, as a numpy array.

    Raises
    ------
    ValueError
        If it is ragged.
    TypeError
        If it is sparse.
    """
    torch = sys.modules.get("torch")  # a tensor cannot exist before torch is imported
    if torch is not None and isinstance(X, torch.Tensor):
        if X.is_sparse:
            raise TypeError("Sparse data was passed for X, but dense data is required")
        tensor = X.detach().cpu()
        return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    if hasattr(X, "toarray") and hasattr(X, "nnz"):
        raise TypeError("Sparse data was passed for X, but dense data is required: use X.toarray()")
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X cannot be made an array of features: {error}") from None
    return array
