"""Checks of parameters: one sentence that names the parameter, what was found and what may be."""

import math
import numbers
from collections.abc import Sequence
from typing import Any


def check_integer(name: str, value: Any, low: int) -> int:
    """Return `value` as an int of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {low}")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value`, one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} is {value!r}; it must be one of {listed}")
    return value


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float from `low` to `high`."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not low <= number <= high:
        most = "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name} is {value!r}; it must be a number of at least {low:g}{most}")
    return number


def check_share(name: str, value: Any) -> float:
    """Return `value` as a float within (0, 1), both excluded."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not 0 < number < 1:
        raise ValueError(f"{name} is {value!r}; it must be a number above 0 and below 1")
    return number
