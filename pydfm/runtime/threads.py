"""How many threads this process may use, and what they share."""

import math
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydfm.runtime.checks import check_integer


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
def _cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """CPU quota in cores, the least of this process's control group and those above it.

    Infinity where there is none. `root` is where the groups are mounted and `own` tells the place
    of this process's group in them. A container with a namespace of its own sees its group as the
    root; without one, the group lies below, at the place that `own` tells, or that place is not
    mounted and the group is the root once more.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except (OSError, ValueError):
        lines = []
    quotas = [_quota(root), _quota(root / "cpu")]
    for hierarchy, controllers, place in (line for line in lines if len(line) == 3):
        if hierarchy == "0":
            top = root  # version 2
        elif "cpu" in controllers.split(","):
            top = root / "cpu"  # version 1
        else:
            continue
        group = Path(place.lstrip("/"))
        if ".." not in group.parts:  # outside of this namespace
            quotas += [_quota(top / part) for part in (group, *group.parents)]
    return min(quotas)


def _quota(group: Path) -> float:
    """Quota in cores that the files of one control group give; infinity where they give none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # versions 2 and 1
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            cores = int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):  # ValueError also at "max"
            continue
        if cores > 0:  # -1 is none
            return cores
    return math.inf


class Lock:
    """A lock that its thread may take again; copies and pickles get one of their own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        """Wait until no other thread holds the lock, and take it."""
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes another lock."""
        return Lock, ()


class PerThread:
    """A value that each thread has for itself.

    Parameters
    ----------
    value : object
        What threads have that have set nothing. Copies and pickles start with the value that was
        set last, by any thread.
    """

    def __init__(self, value: Any) -> None:
        self._own = threading.local()
        self._last = value

    def get(self) -> Any:
        """Return what this thread has set last, or else what any thread has."""
        return getattr(self._own, "value", self._last)

    def set(self, value: Any) -> None:
        """Set the value of this thread."""
        self._own.value = self._last = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes another one."""
        return PerThread, (self._last,)
