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
            features = as_features(X, n_features, self.count)
            n_features = features.shape[1]
            self.count += len(features)
            # A loader may write its next batch into the same memory.
            yield features if isinstance(self._arrays, list) else features.copy()


def is_array(value: Any) -> bool:
    """Whether `value` is a numpy array or a torch tensor."""
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "ndim"))


def plain(value: Any, *, frames: bool = False) -> Any:
    """Return `value`, or an array in place of what only has the interface of one.

    Parameters
    ----------
    value : object
        Anything. What has ``__array__`` or ``__dlpack__`` is made an array, except sparse matrices.
    frames : bool
        Make arrays of data frames too, which loses the names of their columns.
    """
    if is_array(value) or isinstance(value, str | bytes | type):
        return value
    if (hasattr(value, "columns") and not frames) or hasattr(value, "toarray"):
        return value
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return as_array(value)
    return value


def check_unmasked(values: Any, name: str = "X", first: int = 0) -> None:
    """Raise ValueError if `values`, called `name`, are a masked array with a masked value.

    Parameters
    ----------
    first : int
        Index of the first row or image, for the message.
    """
    if not isinstance(values, np.ma.MaskedArray) or values.mask is np.ma.nomask:
        return
    mask = np.ma.getmaskarray(values)
    if not mask.any():
        return
    place = [int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape)]
    row = first + (place[0] if place else 0)
    where = f"row {row}, column {place[1]}" if mask.ndim == 2 else f"row {row}"
    if mask.ndim > 2:
        where = f"image {row}"
    raise ValueError(
        f"{name} is masked in {where}; missing values cannot be taken, so remove what has them or "
        "fill them in"
    )


def as_features(X: Any, n_features: int | None = None, first: int = 0) -> NDArray[Any]:
    """Return `X` as a numeric array (N, D), without a copy of arrays and CPU tensors.

    Parameters
    ----------
    X : array-like or torch.Tensor of shape (N, D)
        Real numbers of any type and layout; a tensor may be on any device.
    n_features : int, optional
        Number of features per row that a fitted model expects.
    first : int
        Index of the first row, for messages.

    Raises
    ------
    ValueError
        If X has missing values, is not two-dimensional, is empty, or does not have `n_features`
        columns.
    TypeError
        If X is sparse or does not contain numbers.
    """
    array = as_array(X, first=first)
    if array.dtype.kind == "O":
        _check_not_missing(array, first)
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


def _check_not_missing(array: NDArray[Any], first: int) -> None:
    """Raise ValueError if a value of `array` (N, D) of objects is NA; it names the first."""
    for place, value in np.ndenumerate(array):
        if type(value).__name__ in ("NAType", "NaTType"):
            column = f", column {place[1]}" if len(place) > 1 else ""
            raise ValueError(
                f"X contains NA in row {first + place[0]}{column}; "
                "features must be finite, so remove such rows or correct what made them"
            )


def as_array(X: Any, name: str = "X", first: int = 0) -> NDArray[Any]:
    """Return `X`, an array-like or a tensor on any device, as a numpy array.

    Parameters
    ----------
    X : array-like
        Also what has ``__dlpack__``, and a list of tensors.
    name : str
        Its name, for messages.
    first : int
        Index of the first row, for messages.

    Raises
    ------
    ValueError
        If it is ragged, or has masked values.
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
    check_unmasked(X, name, first)
    if isinstance(X, list | tuple):
        for i, row in enumerate(X):
            check_unmasked(row[None] if hasattr(row, "mask") else row, name, first + i)
        if torch is not None and any(isinstance(row, torch.Tensor) for row in X):
            X = [as_array(row) if isinstance(row, torch.Tensor) else row for row in X]
    if not hasattr(X, "__array__") and hasattr(X, "__dlpack__"):
        X = _from_dlpack(X)
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise ValueError(f"X cannot be made an array of features: {error}") from None
    return array


def _from_dlpack(value: Any) -> NDArray[Any]:
    """Return what has ``__dlpack__``, on any device, as an array."""
    try:
        return np.asarray(np.from_dlpack(value))
    except (BufferError, RuntimeError):  # it is on a GPU, or of a type that numpy lacks
        import torch

        return as_array(torch.from_dlpack(value))  # type: ignore[attr-defined]
