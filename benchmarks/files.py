"""From JPEG files to verdicts on a CPU, and a cold ``pydfm score`` of one file, by network."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from PIL import Image

import pydfm
from benchmarks.report import Table, verdict

_NETWORKS: Final = {"efficientnet_lite0": 100.0, "resnet18": 40.0}  # images a second
_COLD: Final = 5.0  # seconds
_THREADS: Final = 2
_SIZE: Final = 1024


def table(quick: bool) -> Table:
    """Return images a second from files, and seconds of a process that scores one, with targets.

    Weights are random, since times do not depend on them. Networks alternate, round by round.
    """
    n_images, rounds = (16, 3) if quick else (64, 5)
    rates: dict[str, list[float]] = {name: [] for name in _NETWORKS}
    colds: dict[str, list[float]] = {name: [] for name in _NETWORKS}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "pictures")
        _write(folder, n_images)
        models = {}
        for name in _NETWORKS:
            dfm = pydfm.DFM(backbone=name, weights=None, n_threads=_THREADS)
            models[name] = dfm.fit(folder)
            dfm.save(Path(place, f"{name}.pydfm"))
        for _ in range(rounds):
            for name, dfm in models.items():
                start = time.perf_counter()
                dfm.predict(folder, alpha=0.1)
                rates[name].append(n_images / (time.perf_counter() - start))
                model, picture = Path(place, f"{name}.pydfm"), folder / "0000.jpg"
                colds[name].append(_cold(model, picture))
    rows = []
    for name, least in _NETWORKS.items():
        rate, cold = median(rates[name]), median(colds[name])
        met = verdict(rate >= least, f">= {least:.0f} images/s")
        rows.append([name, "files to verdicts", f"{rate:.1f} images/s", met])
        met = verdict(cold < _COLD, f"< {_COLD:.0f} s")
        rows.append([name, "cold score of one file", f"{cold:.2f} s", met])
    return Table(("network", "work", "median", "target"), rows)


def _cold(model: Path, picture: Path) -> float:
    """Return the seconds that a process of its own takes to score `picture`."""
    command = [sys.executable, "-m", "pydfm", "score", str(model), str(picture)]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def _write(folder: Path, n_images: int) -> None:
    """Write JPEG files of smooth shapes with a little grain, so that they decode as photos do."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n_images):
        shapes = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        pixels = np.asarray(shapes.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC), np.float32)
        pixels = pixels + rng.normal(0, 4, pixels.shape)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{i:04}.jpg", quality=90)
