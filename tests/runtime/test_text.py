import pytest

from pydfm.runtime.text import cell, printable


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("plain.png", "plain.png"),
        ("größe 1, ±.png", "größe 1, ±.png"),
        ("a\nb.png", "a\\nb.png"),
        ("\x1b[31mred.png", "\\x1b[31mred.png"),
        ("\x9b31m.png", "\\x9b31m.png"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028.png", "\\u2028.png"),
        ("\udcff.png", "\udcff.png"),  # a byte that is no text, which stays
    ],
)
def test_a_name_steers_no_terminal(name, want):
    assert printable(name) == want
    assert cell(name) == want


@pytest.mark.parametrize("begin", "=+-@")
def test_a_cell_is_no_formula(begin):
    assert cell(f"{begin}1\n") == f"'{begin}1\\n"
    assert cell(f"1{begin}1") == f"1{begin}1"
