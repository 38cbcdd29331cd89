"""The targets of docs/results.md, if the data is there (with fewer attacked images)."""

import importlib.util
import os
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif("PYDFM_TEST_DATA" not in os.environ, reason="PYDFM_TEST_DATA is not set"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

DATA = Path(os.environ.get("PYDFM_TEST_DATA", ""))


def check(tables):
    assert tables
    for _, table in tables.values():
        assert "miss" not in str(table)


def test_glassfiber():
    from benchmarks.results import glassfiber

    check(glassfiber.tables(DATA))


def test_outliers():
    from benchmarks.results import outliers

    check(outliers.tables(DATA))


@pytest.mark.skipif(importlib.util.find_spec("foolbox") is None, reason="foolbox is not installed")
def test_adversarial():
    from benchmarks.results import adversarial

    check(adversarial.measure(DATA, 60))
