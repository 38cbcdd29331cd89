"""What the reference of the site says: every public name, with examples that run."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import pydfm

REFERENCE = (Path(__file__).parent.parent / "docs" / "api.rst").read_text()
NAMES = re.findall(r"^   ((?:\w+\.)*\w+)$", REFERENCE, re.MULTILINE)


def find(name):
    """Return the object, and its module, of a name below pydfm."""
    room, _, last = name.rpartition(".")
    module = importlib.import_module(f"pydfm.{room}" if room else "pydfm")
    value = getattr(module, last)
    return value, importlib.import_module(value.__module__)


def test_the_reference_has_every_public_name_once():
    assert len(NAMES) == len(set(NAMES))
    assert set(pydfm.__all__) - {"__version__"} <= set(NAMES)
    for name in NAMES:
        assert find(name)[0].__doc__, name


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name):
    value, module = find(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    finder = doctest.DocTestFinder(exclude_empty=True)
    for case in finder.find(value, name, module, globs={}):
        report = []
        result = runner.run(case, out=report.append)
        assert result.failed == 0, "".join(report)


def test_what_most_begin_with_has_examples():
    for name in ("DFM", "evaluate", "show_config", "metrics.aupro", "metrics.pixel_auroc"):
        assert ">>> " in find(name)[0].__doc__, name
