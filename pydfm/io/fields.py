"""Values of a model file: of the right type and in their range, or a ValueError that names them.

Nothing in a file is trusted: the core and numpy take what passes here.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MOST: Final = 2**53
"""Counts up to here are exact as floats too."""

_LARGEST: Final = 1e150
"""Squares of larger numbers may overflow."""

LARGEST_SCORE: Final = 3e38
"""Scores are float32, and so is what they are compared with."""

# Components are orthonormal but for rounding, which is large where variances nearly vanish.
_ROUNDING: Final = 1e-3


def text(name: str, value: Any) -> str:
    """Return `value`, a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, and no text")
    return value


def flag(name: str, value: Any) -> bool:
    """Return `value`, true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be true or false")
    return value


def integer(name: str, value: Any, low: int = 0, high: int = _MOST) -> int:
    """Return `value`, an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be an integer from {low} to {high}")
    return value


def number(
    name: str, value: Any, low: float = -LARGEST_SCORE, high: float = LARGEST_SCORE
) -> float:
    """Return `value`, a number from `low` to `high`, as a float."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
    return float(value)


def items(name: str, value: Any, length: int | None = None) -> list[Any]:
    """Return `value`, a list, of `length` where that is given."""
    if not isinstance(value, list) or (length is not None and len(value) != length):
        wanted = "a list" if length is None else f"a list of {length}"
        raise ValueError(f"{name} is {value!r}; it must be {wanted}")
    return value


def numbers(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return `value`, nested lists of finite numbers, as an array of this shape."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.array(np.nan)
    if array.shape != shape or not (np.abs(array) <= LARGEST_SCORE).all():
        raise ValueError(f"{name} is {value!r}; it must be finite numbers of the shape {shape}")
    return array


def fields(name: str, value: Any) -> dict[str, Any]:
    """Return `value`, an object of JSON."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}; it must be an object")
    return value


def class_labels(value: Any) -> list[Any] | None:
    """Return `value`, the sorted labels of classes, all integers or all texts, or None."""
    if value is None:
        return None
    labels = items("its classes", value)
    alike = all(isinstance(one, str) for one in labels) or all(
        isinstance(one, int) and not isinstance(one, bool) and abs(one) < 2**63 for one in labels
    )
    if not labels or not alike or any(a >= b for a, b in pairwise(labels)):
        raise ValueError(f"its classes are {labels!r}; they must be sorted integers or texts")
    return labels


def check_subspace(
    prefix: str,
    mean: NDArray[np.float64],
    components: NDArray[np.float64],
    variances: NDArray[np.float64],
) -> None:
    """Raise ValueError unless components (k, D) and variances (k,) are those of a subspace."""
    k, n_features = components.shape
    if k > n_features:
        raise ValueError(f"{prefix} has {k} components of {n_features} features")
    if not (np.abs(mean) <= _LARGEST).all():
        raise ValueError(f"{prefix}.mean has {np.abs(mean).max():g}, whose square overflows")
    tiny = float(np.finfo(np.float64).tiny)
    if not ((variances >= tiny) & (variances <= _LARGEST)).all():
        raise ValueError(f"{prefix}: its variances are not positive and finite")
    if (np.diff(variances) > 1e-6 * np.abs(variances[:-1])).any():
        raise ValueError(f"{prefix}.explained_variance does not descend")
    # A mixture of all components has its own length if they are orthonormal; it costs as little
    # as one score.
    weights = 1 + 0.5 * np.cos(np.arange(k) ** 2)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.append(
            np.square(components).sum(axis=1), np.square(weights @ components).sum()
        )
    wanted = np.append(np.ones(k), np.square(weights).sum())
    if not (np.abs(lengths - wanted) <= _ROUNDING * wanted).all():
        raise ValueError(f"{prefix}.components are not orthonormal")


def check_shares(prefix: str, weights: NDArray[np.float64], count: int) -> None:
    """Raise ValueError unless `weights` (count,) are positive and their sum is 1."""
    known = weights.shape == (count,) and (weights > 0).all()
    if not known or abs(weights.sum() - 1) > 1e-6:
        raise ValueError(f"{prefix}.weights are not {count} positive shares, of sum 1")


def pair(name: str, value: Sequence[Any], low: int, high: int) -> tuple[int, int]:
    """Return `value`, a list of two integers from `low` to `high`."""
    first, second = items(name, value, 2)
    return integer(name, first, low, high), integer(name, second, low, high)
