"""The targets of docs/calibration.md, on synthetic rows."""

import pytest

from benchmarks.calibration.populations import synthetic
from benchmarks.calibration.rates import measure, of_features, rate


@pytest.mark.parametrize("heavy", [False, True])
def test_leave_one_out_keeps_the_rate(heavy):
    found = measure(synthetic(100, 64, 30, heavy=heavy), of_features, ("loo", "in sample"))
    for level in (0.05, 0.1):
        assert 0.5 <= rate(found["loo"], level) / level <= 1.5
    assert rate(found["in sample"], 0.05) > 0.2
