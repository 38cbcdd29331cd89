import pytest

from benchmarks import eigensolver
from pydfm.runtime.threads import available_cores


@pytest.mark.parametrize("name", eigensolver.NAMES)
@pytest.mark.parametrize("leading", [False, True], ids=["all", "leading"])
@pytest.mark.parametrize("n", eigensolver.QUICK)
def test_eigensolver(timed, n, leading, name):
    timed(eigensolver.comparison(n, available_cores(), leading=leading), name)
