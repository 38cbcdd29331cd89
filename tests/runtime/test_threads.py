import copy
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pydfm.runtime import threads
from pydfm.runtime.threads import Lock, PerThread, available_cores, resolve_threads

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture
def quota(tmp_path):
    """The quota that control groups with these files give to a process of the groups `own`."""

    def write(files, own=None):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        if own is not None:
            (tmp_path / "own").write_text(own)
        return threads._cgroup_quota.__wrapped__(tmp_path / "cgroup", tmp_path / "own")

    return write


# The number of threads


@pytest.mark.parametrize("n", [1, 7, np.int64(3), np.uint8(2)])
def test_a_number_is_taken_as_it_is(n):
    assert resolve_threads(n) == n
    assert type(resolve_threads(n)) is int


@pytest.mark.parametrize("n", [0, -1, 1.0, 2.5, "2", True, np.nan, [2]])
def test_a_number_that_is_none_is_told(n):
    with pytest.raises(ValueError, match=r"^n_threads is .* integer of at least 1"):
        resolve_threads(n)


def test_none_stands_for_the_cores_there_are(monkeypatch):
    assert 1 <= available_cores() <= os.cpu_count()
    assert resolve_threads(None) == available_cores()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


@pytest.mark.parametrize(
    ("cores", "quota", "want"),
    [(4, np.inf, 4), (4, 2.0, 2), (4, 1.5, 2), (4, 0.1, 1), (4, 64.0, 4), (1, np.inf, 1)],
)
def test_the_quota_bounds_the_cores(monkeypatch, cores, quota, want):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    monkeypatch.setattr(threads, "_cgroup_quota", lambda: quota)
    assert available_cores() == want


@linux
def test_the_affinity_of_the_process_is_respected(run_python):
    code = """
import os
from pydfm.runtime.threads import resolve_threads
before = resolve_threads(None)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(resolve_threads(None), before)
"""
    after, before = map(int, run_python(code).stdout.split())
    assert after == 1
    assert before == available_cores()


# The quota of a control group


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({}, np.inf),
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, np.inf),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, np.inf),
        # Version 1 with what it has of version 2.
        (
            {
                "cpu.max": "max 100000",
                "cpu/cpu.cfs_quota_us": "100000",
                "cpu/cpu.cfs_period_us": "100000",
            },
            1.0,
        ),
    ],
)
def test_the_quota_is_that_of_the_files(quota, files, want):
    assert quota(files) == want
    assert quota(files, own="0::/\n1:cpu:/\n") == want


@pytest.mark.parametrize(
    "text", ["", "\n", "1 2 3", "a b", "9 0", "0 9", "-5 9", b"\xff\xfe 1", "1e5 9", "0", "nan"]
)
def test_malformed_files_are_no_quota(quota, text):
    assert quota({"cpu.max": text}) == np.inf
    assert quota({"cpu/cpu.cfs_quota_us": text, "cpu/cpu.cfs_period_us": text}) == np.inf
    assert quota({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": text}) == np.inf


@pytest.mark.parametrize("own", ["", "nonsense", "0::", "::", "x:cpu", "0::/../..", "\n\n"])
def test_malformed_places_are_the_root(quota, own):
    assert quota({"cpu.max": "200000 100000"}, own) == 2.0


def test_the_quota_is_the_least_of_the_group_and_those_above_it(quota):
    files = {
        "cpu.max": "max 100000",
        "a/cpu.max": "300000 100000",
        "a/b/cpu.max": "400000 100000",
        "a/b/c/cpu.max": "100000 100000",
        "other/cpu.max": "50000 100000",
    }
    assert quota(files, "0::/\n") == np.inf
    assert quota(files, "0::/a\n") == 3.0
    assert quota(files, "0::/a/b\n") == 3.0
    assert quota(files, "0::/a/b/c\n") == 1.0
    assert quota(files, "0::/a/b/gone/x:y\n") == 3.0


def test_a_group_of_version_1_is_found_by_its_controller(quota):
    files = {
        "cpu/docker/x/cpu.cfs_quota_us": "250000",
        "cpu/docker/x/cpu.cfs_period_us": "100000",
        "cpu/other/cpu.cfs_quota_us": "100000",
        "cpu/other/cpu.cfs_period_us": "100000",
    }
    assert quota(files, "12:cpuset:/other\n4:cpu,cpuacct:/docker/x\n0::/other\n") == 2.5
    # Where the group is mounted as the root, its place among all groups is not there.
    files = {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}
    assert quota(files, "4:cpuacct,cpu:/docker/x\n") == 1.5


@linux
def test_the_real_files_are_read():
    assert threads._cgroup_quota() > 0


# Scoring beside forks and other threads


_SCORED = """
import os, signal, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np, torch, pydfm
rng = np.random.default_rng(0)
rows = rng.normal(size=(3000, 60)).astype(np.float32)
images = rng.integers(0, 256, (6, 3, 48, 48), dtype=np.uint8)
of_rows = pydfm.DFM(9, n_threads=4).fit(rows)
of_images = pydfm.DFM(
    2, backbone=torch.nn.Conv2d(3, 16, 5), pool=4, image_size=48, n_threads=4, device="cpu"
).fit(images)
torch.set_num_threads(4)
want_rows, want_images = of_rows.score(rows), of_images.score(images)

def same():
    return np.array_equal(of_rows.score(rows), want_rows) and np.array_equal(
        of_images.score(images), want_images
    )

assert same()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_scores_are_the_same_in_forks_and_threads(run_python):
    code = """
def fork(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # it must not wait for threads that are its parent's
        os._exit(0 if work() else 1)
    assert os.waitpid(child, 0)[1] == 0

def fits_again():
    again = pydfm.DFM(**of_images.get_params()).fit(images)
    return np.array_equal(again.score(images), want_images)

fork(same)
fork(fits_again)

class Scored(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return of_images.score(images)

loader = torch.utils.data.DataLoader(
    Scored(), batch_size=None, num_workers=2, multiprocessing_context="fork"
)
assert all(np.array_equal(scores.numpy(), want_images) for scores in loader)

stop = threading.Event()
def busy():
    a, b = np.ones((300, 300)), torch.ones(300, 300)
    while not stop.is_set():
        a @ a
        b @ b
others = [threading.Thread(target=busy) for _ in range(2)]
for thread in others:
    thread.start()
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: same(), range(16)))
stop.set()
for thread in others:
    thread.join()
assert all(found)
"""
    run_python(_SCORED + code)


# What threads share


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_value_is_that_of_the_thread_or_the_last():
    value = PerThread(1)
    in_another_thread(lambda: value.set(2))
    assert value.get() == 2
    value.set(3)
    assert in_another_thread(lambda: (value.set(4), value.get())[1]) == 4
    assert value.get() == 3
    other = pickle.loads(pickle.dumps(value))
    assert other.get() == 4
    other.set(5)
    assert value.get() == 3


def test_a_copy_of_a_lock_is_another_lock():
    lock = Lock()

    def take(other):
        with other:
            return True

    with lock, lock:
        for other in (copy.copy(lock), pickle.loads(pickle.dumps(lock))):
            assert in_another_thread(lambda other=other: take(other))
