"""Rows in batches, compared with one fit to all of them and with IncrementalPCA."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA

import pydfm
from benchmarks.report import Table, seconds, verdict
from benchmarks.workloads import Population

_N_FEATURES: Final = 512
_POPULATION: Final = Population(_N_FEATURES, 120)
_BATCH: Final = 10_000
_COMPONENTS: Final = 120


def table(quick: bool) -> Table:
    """Return a table of times, targets, and errors of the leading variances."""
    n_rows = 100_000 if quick else 1_000_000
    lines = _streamed(n_rows)
    lines.append(_one_row())
    lines.append(_merge())
    return Table(("work", "time", "held against", "error of variances", "target"), lines)


def _streamed(n_rows: int) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        out = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, _N_FEATURES))
        block = _POPULATION.rows(50_000)
        for first in range(0, n_rows, len(block)):
            part = out[first : first + len(block)]
            part[:] = block[: len(part)] + np.float32(1e-6 * first)
        out.flush()
        rows = np.load(path)  # in memory
        mapped = np.load(path, mmap_mode="r")
        times: dict[str, list[float]] = {"whole": [], "batches": []}
        for _ in range(3):  # interleaved
            took, whole = _timed(lambda: pydfm.DFM(_COMPONENTS).fit(rows))
            times["whole"].append(took)
            took, grown = _timed(lambda: _in_batches(pydfm.DFM(_COMPONENTS), mapped))
            times["batches"].append(took)
        start = time.perf_counter()
        incremental = IncrementalPCA(_COMPONENTS, batch_size=_BATCH)
        for first in range(0, n_rows, _BATCH):
            incremental.partial_fit(mapped[first : first + _BATCH])
        theirs = time.perf_counter() - start
    want = whole.explained_variance_
    whole_time, batch_time = median(times["whole"]), median(times["batches"])
    ratio = batch_time / whole_time

    def error(variances: NDArray[Any]) -> str:
        return f"{np.abs(variances / want - 1).max():.1e}"

    shape = f"{n_rows:,} x {_N_FEATURES}"
    return [
        [f"`fit`, {shape} in memory", seconds(whole_time), "", "", ""],
        [
            f"`partial_fit`, {_BATCH:,} rows at a time from a memory map",
            seconds(batch_time),
            f"{ratio:.2f} of `fit`",
            error(grown.explained_variance_),
            verdict(ratio <= 1.15, "<= 1.15"),
        ],
        [
            "scikit-learn IncrementalPCA, the same batches",
            seconds(theirs),
            f"{theirs / whole_time:.1f} of `fit`",
            error(incremental.explained_variance_),
            "",
        ],
    ]


def _in_batches(dfm: pydfm.DFM, rows: NDArray[Any]) -> pydfm.DFM:
    for first in range(0, len(rows), _BATCH):
        dfm.partial_fit(rows[first : first + _BATCH])
    dfm.subspace_  # noqa: B018 (the model is computed when it is first used)
    return dfm


def _one_row() -> list[str]:
    rows = _POPULATION.rows(5000)
    dfm = pydfm.DFM(_COMPONENTS).partial_fit(rows)
    times = [_timed(lambda i=i: dfm.partial_fit(rows[i : i + 1]))[0] for i in range(3000)]
    typical = median(times)
    return [
        f"`partial_fit` of one row, D = {_N_FEATURES}",
        f"{seconds(typical)} (mean {seconds(float(np.mean(times)))})",
        "",
        "",
        verdict(typical < 1e-4, "< 100 us"),
    ]


def _merge() -> list[str]:
    rows = Population(2048, 300).rows(6000)
    a, b = (pydfm.DFM(300).partial_fit(part) for part in np.array_split(rows, 2))
    typical = median(_timed(lambda: a + b)[0] for _ in range(9))
    return [
        "merge of two models, D = 2,048",
        seconds(typical),
        "",
        "",
        verdict(typical < 0.05, "< 50 ms"),
    ]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
