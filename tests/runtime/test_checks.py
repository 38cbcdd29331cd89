import math

import numpy as np
import pytest

from pydfm.runtime.checks import (
    check_choice,
    check_integer,
    check_number,
    check_share,
    parse_bytes,
)


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(255)])
def test_integers(value):
    found = check_integer("n", value, 1)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", True, None, np.nan])
def test_what_is_no_integer_of_the_range_is_told(value):
    with pytest.raises(ValueError, match=r"^n is .*; it must be an integer of at least 1$"):
        check_integer("n", value, 1)


def test_choices():
    assert check_choice("x", "a", ("a", "b")) == "a"
    for value in ("c", "A", None, 3, ["a"], ("a",)):
        with pytest.raises(ValueError, match=r"^x is .*; it must be one of 'a', 'b'$"):
            check_choice("x", value, ("a", "b"))


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(0.25), np.int8(1)])
def test_numbers(value):
    found = check_number("x", value, 0, 1)
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, math.inf, "0.5", None, 1j])
def test_what_is_no_number_of_the_range_is_told(value):
    with pytest.raises(ValueError, match=r"^x is .*; it must be a number of at least 0 and at mos"):
        check_number("x", value, 0, 1)
    if value != 1.5:
        with pytest.raises(ValueError, match=r"^x is .*; it must be a number of at least 2$"):
            check_number("x", value if value != math.inf else 1, 2, math.inf)


@pytest.mark.parametrize("value", [0.5, 1e-9, np.float32(0.25)])
def test_shares(value):
    assert check_share("alpha", value) == value


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan, "0.1", None])
def test_what_is_no_share_is_told(value):
    with pytest.raises(ValueError, match=r"^alpha is .*; it must be a number above 0 and below 1$"):
        check_share("alpha", value)


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (None, None),
        (1000, 1000),
        (1.5e9, 1_500_000_000),
        (np.int64(5), 5),
        ("7", 7),
        ("7B", 7),
        ("2kB", 2000),
        ("2 GB", 2_000_000_000),
        ("1.5MiB", 1_572_864),
        (" 3TB ", 3_000_000_000_000),
        ("1e6", 1_000_000),
    ],
)
def test_bytes(value, want):
    assert parse_bytes("most", value) == want


@pytest.mark.parametrize(
    "value", ["2 bananas", "", 0, -5, True, [3], "0", "1.2.3GB", math.inf, math.nan, "-1GB", {}]
)
def test_what_is_no_number_of_bytes_is_told(value):
    with pytest.raises(ValueError, match=r"^most is .*; it must be a number of bytes, or a text"):
        parse_bytes("most", value)
