from functools import lru_cache

import pytest

from benchmarks import fit
from pydfm.runtime.threads import available_cores

comparison = lru_cache(maxsize=1)(fit.comparison)


@pytest.mark.parametrize("name", fit.NAMES)
@pytest.mark.parametrize("shape", fit.QUICK, ids=str)
def test_fit(timed, shape, name):
    timed(comparison(shape, available_cores()), name)
