import pytest

from benchmarks import runtimes
from pydfm.runtime.threads import available_cores


@pytest.mark.parametrize("name", runtimes.NAMES)
@pytest.mark.parametrize("network", runtimes.NETWORKS)
def test_runtimes(timed, network, name):
    timed(runtimes.comparison(network, available_cores()), name)
