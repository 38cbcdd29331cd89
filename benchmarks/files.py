"""From JPEG files to verdicts on a CPU, and a cold ``pydfm score`` of one file, by network."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import pydfm
from benchmarks.jpegs import write_jpegs
from benchmarks.report import Table, verdict

_NETWORKS: Final = {"efficientnet_lite0": 100.0, "resnet18": 40.0}  # images a second, of the best
_RUNTIMES: Final = {"torch": 5.0, "onnx": 2.5}  # seconds of a cold score
_THREADS: Final = 2
_SIZE: Final = 1024


def table(quick: bool) -> Table:
    """Return images a second from files, and seconds of a process that scores one, with targets.

    Weights are random, since times do not depend on them. Networks and runtimes alternate, round by
    round. A process in onnxruntime finds the network's graph, as every one does but the first.
    """
    n_images, rounds = (16, 3) if quick else (64, 5)
    pairs = [(network, runtime) for network in _NETWORKS for runtime in _RUNTIMES]
    rates: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    colds: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "pictures")
        picture = write_jpegs(folder, n_images, _SIZE)[0]
        models = {}
        for network, runtime in pairs:
            dfm = pydfm.DFM(backbone=network, weights=None, n_threads=_THREADS, runtime=runtime)
            models[network, runtime] = dfm.fit(folder)
            dfm.save(_model(place, network, runtime))
        for _ in range(rounds):
            for pair, dfm in models.items():
                start = time.perf_counter()
                dfm.predict(folder, alpha=0.1)
                rates[pair].append(n_images / (time.perf_counter() - start))
                colds[pair].append(_cold(_model(place, *pair), picture))
    rows = []
    for network, least in _NETWORKS.items():
        own = {runtime: median(rates[network, runtime]) for runtime in _RUNTIMES}
        met = verdict(max(own.values()) >= least, f">= {least:.0f} images/s in the faster")
        values = [f"{rate:.1f} images/s" for rate in own.values()]
        rows.append([network, "files to verdicts", *values, met])
        own = {runtime: median(colds[network, runtime]) for runtime in _RUNTIMES}
        met = ", ".join(
            verdict(own[runtime] < most, f"{runtime} < {most:g} s")
            for runtime, most in _RUNTIMES.items()
        )
        rows.append([network, "cold score of one file", *(f"{s:.2f} s" for s in own.values()), met])
    return Table(("network", "work", *_RUNTIMES, "target"), rows)


def _model(place: str, network: str, runtime: str) -> Path:
    return Path(place, f"{network}-{runtime}.pydfm")


def _cold(model: Path, picture: str) -> float:
    """Return the seconds that a process of its own takes to score `picture`."""
    command = [sys.executable, "-m", "pydfm", "score", os.fspath(model), picture]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start
