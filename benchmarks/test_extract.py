from functools import lru_cache

import pytest

from benchmarks import extract
from pydfm.runtime.threads import available_cores

comparison = lru_cache(maxsize=1)(extract.comparison)


@pytest.mark.parametrize("name", extract.NAMES)
@pytest.mark.parametrize("device", extract.devices())
def test_extract(timed, device, name):
    timed(comparison(device, 16, available_cores()), name)
