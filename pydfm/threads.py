"""How many threads this process may use."""

import math
import os
from functools import lru_cache
from pathlib import Path

from pydfm._checks import check_integer


def resolve_threads(n_threads: int | None) -> int:
    """Return ``n_threads``, or the number of cores this process may use where it is None.

    That number respects CPU affinity (``taskset``, a DataLoader worker pinned to a core) and the
    CPU quota of a container's control group.

    Raises
    ------
    ValueError
        If `n_threads` is neither None nor a positive integer.
    """
    if n_threads is None:
        return available_cores()
    return check_integer("n_threads", n_threads, 1)


def available_cores() -> int:
    """Cores of this process's affinity mask, at most what its control group's quota allows."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cgroup_quota())))


@lru_cache(maxsize=1)
def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """CPU quota in cores; infinity where there is none."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()  # version 1
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    try:
        cores = int(quota) / int(period)
    except ValueError:  # "max"
        return math.inf
    return cores if cores > 0 else math.inf
