"""Images per second on a GPU: the bare network, whole scores of tensors, and of JPEG files."""

import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

import pydfm
from benchmarks.jpegs import write_jpegs
from benchmarks.report import Table, verdict
from pydfm.features.backbones import load_network

_TARGET: Final = 0.9  # of the bare network, from tensors
_ROUNDS: Final = 5
_SIDE: Final = 224
_FILE_SIDE: Final = 1024
_N_FITTED: Final = 128


@dataclass(frozen=True)
class Work:
    """A network, and the features that are scored."""

    backbone: str
    layers: tuple[str, ...] | None = None
    pool: int | None = None

    @property
    def name(self) -> str:
        layers = "" if self.layers is None else f", {' + '.join(self.layers)}"
        return f"{self.backbone}{layers}" + (f", pool {self.pool}" if self.pool else "")


WORKS: Final = (
    Work("resnet18"),
    Work("resnet18", ("layer2", "layer3"), 2),
    Work("efficientnet_lite0"),
    Work("wide_resnet50_2"),
    Work("timm:vit_small_patch16_224"),
)
PRECISIONS: Final = ("float32", "bfloat16")


def table(quick: bool) -> Table:
    """Return images per second of every network and precision on the GPU."""
    return measure(WORKS, "cuda", 512 if quick else 4096, 128 if quick else 512, 256)


def measure(
    works: Sequence[Work], device: str, n_tensors: int, n_files: int, batch_size: int
) -> Table:
    """Return images per second of `works` on `device`."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n_tensors, 3, _SIDE, _SIDE), dtype=np.uint8)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(Path(folder), n_files, _FILE_SIDE)
        for work in works:
            for precision in PRECISIONS:
                rows.append(_row(work, precision, device, pixels, files, batch_size))
                print(rows[-1], flush=True)
    header = ("network", "precision", "features", "bare", "tensors", "of bare", "target", "files")
    return Table(header, rows)


def _row(
    work: Work,
    precision: str,
    device: str,
    pixels: NDArray[np.uint8],
    files: list[str],
    batch_size: int,
) -> list[str]:
    dfm = pydfm.DFM(
        backbone=work.backbone,
        preset="paper",
        weights=None,
        layers=work.layers,
        pool=work.pool,
        image_size=_SIDE,
        device=device,
        batch_size=batch_size,
        precision=precision,
        calibration=None,
        image_score="sum",
        combine="sum",
    ).fit(pixels[:_N_FITTED])
    n = len(pixels)
    bare, tensors, read = _rates(
        [
            (_bare(work, precision, device, n, batch_size), n),
            (lambda: dfm.score(pixels), n),
            (lambda: dfm.score(files), len(files)),
        ]
    )
    share = tensors / bare
    return [
        work.name,
        precision,
        f"{dfm.feature_spec_.n_features:,}",
        f"{bare:,.0f}",
        f"{tensors:,.0f}",
        f"{share:.2f}",
        verdict(share >= _TARGET, f">= {_TARGET:g}"),
        f"{read:,.0f}",
    ]


def _rates(runs: Sequence[tuple[Callable[[], Any], int]]) -> list[float]:
    """Return images per second of runs, each timed in turn after one untimed."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(_ROUNDS + 1):
        for (run, _), taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return [n / median(taken[1:]) for (_, n), taken in zip(runs, times, strict=True)]


def _bare(
    work: Work, precision: str, device: str, n_images: int, batch_size: int
) -> Callable[[], None]:
    """Run the traced network on pixels that are normalised and on the device already."""
    dtype: torch.dtype = getattr(torch, precision)
    network = load_network(work.backbone, None, work.layers)
    module = network.module.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = torch.rand(batch_size, 3, _SIDE, _SIDE, device=device, dtype=dtype)
    batch = batch.contiguous(memory_format=torch.channels_last)
    jit: Any = torch.jit
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        traced = jit.freeze(jit.trace(module.eval(), batch, check_trace=False))

    def run() -> None:
        with torch.inference_mode():
            for _ in range(-(-n_images // batch_size)):
                traced(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    return run
