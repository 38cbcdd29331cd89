"""Measurements that need a fresh process: the time of the import, and the peak of memory."""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from benchmarks.report import Table, verdict
from benchmarks.workloads import Population

_IMPORTS: Final = (
    ("import pydfm", 0.15),
    ("import pydfm; pydfm.DFM", None),
    ("import numpy", None),
    ("import torch", None),
)
_SHAPE: Final = (1_000_000, 512)
_POPULATION: Final = Population(_SHAPE[1], 120)
_MEMORY_LIMIT: Final = 200.0  # MB


def _python(*arguments: str, cwd: str | None = None) -> list[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, check=True, capture_output=True, text=True
    ).stdout.split()


def imports(quick: bool) -> Table:
    """Return seconds of imports, each in its own process, without the first of each."""
    rows = []
    seconds: dict[str, list[float]] = {code: [] for code, _ in _IMPORTS}
    torch_loaded = {}
    with tempfile.TemporaryDirectory() as folder:  # away from the sources
        for i in range(3 if quick else 8):
            for code, _ in _IMPORTS:
                timed = f"import sys, time; t = time.perf_counter(); {code}; "
                shown = "print(time.perf_counter() - t, 'torch' in sys.modules)"
                took, torch_loaded[code] = _python("-c", timed + shown, cwd=folder)
                if i:
                    seconds[code].append(float(took))
    for code, most in _IMPORTS:
        typical = median(seconds[code])
        target = (
            verdict(typical < most and torch_loaded[code] == "False", f"< {most} s, no torch")
            if most
            else ""
        )
        loaded = "yes" if torch_loaded[code] == "True" else "no"
        rows.append(
            [f"`{code}`", f"{typical:.3f} s", f"{min(seconds[code]):.3f} s", loaded, target]
        )
    return Table(("statement", "median", "best", "torch loaded", "target"), rows)


def memory(quick: bool) -> Table:
    """Measure peaks of memory on a memory map of 2 GB in a temporary folder."""
    rows = []
    n_rows = _SHAPE[0] // (4 if quick else 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        _write(path, n_rows)
        for work in _WORKS:
            extra, seconds = map(
                float,
                _python(
                    "-m",
                    "benchmarks.processes",
                    work,
                    str(path),
                    cwd=str(Path(__file__).parent.parent),
                ),
            )
            target = verdict(extra < _MEMORY_LIMIT, f"< {_MEMORY_LIMIT:.0f} MB")
            shape = f"{n_rows:,} x {_SHAPE[1]}"
            rows.append([f"{work}, {shape}", f"{extra:.0f} MB", f"{seconds:.1f} s", target])
    return Table(("work", "peak extra memory", "time", "target"), rows)


def _write(path: Path, n_rows: int) -> None:
    out = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, _SHAPE[1]))
    block = _POPULATION.rows(50_000)
    for first in range(0, n_rows, len(block)):
        part = out[first : first + len(block)]
        part[:] = block[: len(part)] + np.float32(1e-6 * first)


def _anonymous_mb() -> float:
    """Return the memory of this process without mapped files, whose pages can be dropped."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise OSError("this system does not tell anonymous memory apart")


def _score(path: str) -> Callable[[], object]:
    import pydfm

    dfm = pydfm.DFM(_POPULATION.n_components).fit(_POPULATION.rows(2000))
    rows = np.load(path, mmap_mode="r")
    dfm.score(rows[:1000])  # what is loaded at first use is not counted
    return lambda: dfm.score(rows)


def _fit(path: str) -> Callable[[], object]:
    import pydfm

    rows = np.load(path, mmap_mode="r")
    dfm = pydfm.DFM(_POPULATION.n_components).fit(rows[:1000])
    return lambda: dfm.fit(rows)


def _partial_fit(path: str) -> Callable[[], object]:
    import pydfm

    rows = np.load(path, mmap_mode="r")
    dfm = pydfm.DFM(_POPULATION.n_components).partial_fit(rows[:1000])

    def run() -> None:
        for first in range(1000, len(rows), 10_000):
            dfm.partial_fit(rows[first : first + 10_000])
        dfm.subspace_  # noqa: B018 (the model is computed when it is first used)

    return run


_WORKS: Final = {"score": _score, "fit": _fit, "partial_fit": _partial_fit}


def _main(work: str, path: str) -> None:
    """Print how far memory rose above its level before the work, in MB, and the seconds."""
    run = _WORKS[work](path)
    done = threading.Event()
    before = _anonymous_mb()
    peak = [before]

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(peak[0] - before, seconds)


if __name__ == "__main__":
    _main(*sys.argv[1:])
