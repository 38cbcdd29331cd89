"""Checks of parameters: one sentence that names the parameter, what was found and what may be."""

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any


def check_integer(name: str, value: Any, low: int) -> int:
    """Return `value` as an int of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {low}")
    return int(value)


def check_choice(name: str, value: Any, choices: Sequence[str], *, optional: bool = False) -> str:
    """Return `value`, one of `choices`; an error names None too where that is `optional`."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        rest = ", or None" if optional else ""
        raise ValueError(f"{name} is {value!r}; it must be one of {listed}{rest}")
    return value


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float from `low` to `high`."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not low <= number <= high:
        most = "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(f"{name} is {value!r}; it must be a number of at least {low:g}{most}")
    return number


def parse_bytes(name: str, value: Any) -> int | None:
    """Return the bytes that `value` stands for: an int, a text such as "2GB", or None."""
    if value is None:
        return None
    found = (
        re.fullmatch(r"\s*([0-9.]+)\s*([kMGT]?)(i?)B?\s*", value)
        if isinstance(value, str)
        else None
    )
    try:
        number = (
            float(found[1]) * (1024 if found[3] else 1000) ** " kMGT".index(found[2] or " ")
            if found
            else float(value)
        )
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not 1 <= number < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a number of bytes, or a text like '2GB'")
    return int(number)


def check_share(name: str, value: Any) -> float:
    """Return `value` as a float within (0, 1), both excluded."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not 0 < number < 1:
        raise ValueError(f"{name} is {value!r}; it must be a number above 0 and below 1")
    return number
