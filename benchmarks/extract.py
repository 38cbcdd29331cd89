"""Images per second: the bare network, and whole scores from tensors and from files."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import pydfm
from benchmarks.jpegs import write_jpegs
from benchmarks.measure import Case, Comparison
from benchmarks.workloads import TOLERANCE
from pydfm.features.backbones import load_network
from pydfm.features.transforms import IMAGENET_MEAN, IMAGENET_STD

TITLE: Final = "Extraction and whole score (ResNet-18, 224 x 224 pixels, float32)"
NOTES: Final = ()
NAMES: Final = (
    "pydfm, score of tensors",
    "pydfm, score of JPEG files",
    "pydfm, extract from tensors",
    "bare traced network (the roof)",
    "torch, eager network",
)

_SIDE: Final = 224
_BATCH: Final = 16


@dataclass(frozen=True)
class _Images:
    """Return the same images as JPEG files and as pixels (N, 3, 224, 224)."""

    folder: Any  # the TemporaryDirectory, removed with this object
    paths: list[str]
    pixels: NDArray[np.uint8]


@lru_cache(maxsize=2)
def _images(count: int) -> _Images:
    folder = tempfile.TemporaryDirectory()
    paths = write_jpegs(Path(folder.name), count, _SIDE)
    pixels = [np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths]
    return _Images(folder, paths, np.stack(pixels))


def _network(device: str, *, traced: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Compute features from normalised pixels, as a torch user writes it."""
    module = load_network("resnet18", None).module.to(device)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not traced:
        return module
    example = torch.zeros(_BATCH, 3, _SIDE, _SIDE, device=device)
    example = example.contiguous(memory_format=torch.channels_last)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        jit: Any = torch.jit
        traced_module: Any = jit.freeze(jit.trace(module, example))
        return jit.optimize_for_inference(traced_module) if device == "cpu" else traced_module


def _bare(device: str, pixels: NDArray[np.uint8], *, traced: bool) -> Callable[[], Any]:
    network = _network(device, traced=traced)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = ((torch.from_numpy(pixels).float() / 255 - mean) / std).to(device)
    batches = [
        batch.contiguous(memory_format=torch.channels_last) for batch in normalised.split(_BATCH)
    ]

    def run() -> Any:
        with torch.inference_mode():
            return torch.cat([network(batch).flatten(1) for batch in batches]).cpu().numpy()

    return run


def comparison(device: str, count: int, n_threads: int) -> Comparison:
    """Return the cases for `count` images on `device`."""
    images = _images(count)
    dfm = pydfm.DFM(
        preset="paper",
        weights=None,
        image_size=_SIDE,
        device=device,
        runtime="torch",  # what it is compared with
        batch_size=_BATCH,
        n_threads=n_threads,
    ).fit(images.pixels)
    bare = _bare(device, images.pixels, traced=True)
    runs = (
        lambda: dfm.score(images.pixels),
        lambda: dfm.score(images.paths),
        lambda: dfm.extract(images.pixels),
        bare,
        _bare(device, images.pixels, traced=False),
    )
    features = bare()
    reference = dfm.score(features)

    def check(answer: NDArray[Any]) -> None:
        # Both of a kind: features (N, D), or scores (N,) of images that the model was fitted on.
        want = features if answer.ndim == 2 else reference
        assert np.abs(answer - want).max() < TOLERANCE * np.abs(want).max()

    cases = [Case(name, run) for name, run in zip(NAMES, runs, strict=True)]
    return Comparison(f"{device}, {count} images", n_threads, cases, check, items=count)


def devices() -> list[str]:
    """Return the CPU, and a GPU if there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def comparisons(quick: bool, threads: Sequence[int]) -> Iterator[Comparison]:
    """Yield comparisons by device and number of threads."""
    for device in devices():
        count = _BATCH * (2 if device == "cpu" else 32) // (2 if quick else 1)
        for n_threads in threads:
            yield comparison(device, count, n_threads)
