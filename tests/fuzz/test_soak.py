"""The quick form of the soak of ``pydfm watch``; `nox -s soak` runs all of it."""

import sys

import pytest

from fuzz.soak import soak

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_each_file_is_scored_once_though_the_process_is_killed(tmp_path):
    found = soak(150, 1, tmp_path)
    assert (found.files, found.kills) == (150, 1)
    assert (found.lost, found.twice, found.strange) == (0, 0, 0)
    assert len(found.latencies) == 150
    assert "150 files in" in str(found)
