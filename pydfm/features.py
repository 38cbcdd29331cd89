"""Arrays of features from users: checked, and turned block by block into what the core takes."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

# Arrays that need another type or layout are converted in blocks of about this many bytes.
_BLOCK_BYTES = 32 << 20


class FeatureSource:
    """Arrays of features (B, D), read one after the other.

    Attributes
    ----------
    count : int
        Rows read so far.
    """

    def __init__(self, arrays: Iterable[Any]) -> None:
        self.count = 0
        self._arrays = arrays

    def batches(self, n_features: int | None = None) -> Iterator[NDArray[Any]]:
        """Yield the arrays, checked by `as_features`; one D holds for all of them."""
        for X in self._arrays:
            features = as_features(X, n_features)
            n_features = features.shape[1]
            self.count += len(features)
            # A loader may write its next batch where this one lies.
            yield features if isinstance(self._arrays, list) else features.copy()


def is_array(value: Any) -> bool:
    """Whether `value` is a numpy array or a torch tensor."""
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "ndim"))


def as_features(X: Any, n_features: int | None = None) -> NDArray[Any]:
    """Return `X` as a numeric array (N, D), without a copy where numpy or torch hold it already.

    Parameters
    ----------
    X : array-like or torch.Tensor of shape (N, D)
        Real numbers of any type and layout; a tensor may be on any device.
    n_features : int, optional
        The D that a fitted model needs.

    Raises
    ------
    ValueError
        If X is not two-dimensional, is empty or has another D than `n_features`.
    TypeError
        If X is sparse or does not hold numbers.
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
    """Yield (first row, rows) with rows in C order and float32 or float64, covering `features`.

    float32 and float64 stay as they are, uncopied where the layout allows it; float16 and integers
    of at most 16 bits become float32, which holds them exactly, the others float64.
    """
    dtype = _row_type(features.dtype)
    if features.dtype == dtype and features.flags.c_contiguous:
        yield 0, features
        return
    step = max(1, _BLOCK_BYTES // (features.shape[1] * dtype.itemsize))
    for first in range(0, features.shape[0], step):
        yield first, np.ascontiguousarray(features[first : first + step], dtype=dtype)


def check_finite(rows: Rows, first: int = 0) -> None:
    """Raise ValueError that names the first row holding NaN or infinity, counted from `first`."""
    for i, row in enumerate(rows):
        finite = np.isfinite(row)
        if not finite.all():
            column = int(np.argmin(finite))
            found = "NaN" if np.isnan(row[column]) else "infinity"
            raise ValueError(
                f"X contains {found} in row {first + i}, column {column}; "
                "features must be finite, so remove such rows or mend what made them"
            )


def _row_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype in (np.float32, np.float64):
        return np.dtype(dtype.type)
    small = dtype.kind in "fiub" and np.can_cast(dtype, np.float32)
    return np.dtype(np.float32 if small else np.float64)


def as_array(X: Any) -> NDArray[Any]:
    """Return what numpy makes of `X`, an array-like or a tensor on any device.

    Raises
    ------
    ValueError, TypeError
        If it is ragged or sparse.
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
