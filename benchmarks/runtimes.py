"""Images per second on a CPU: pydfm in torch and onnxruntime, exports in onnxruntime and OpenVINO.

All do the same work: from uint8 pixels in memory, about twice as wide as the network takes them, to
scores. What an export gives beside, p-values, verdicts and maps, comes on top. OpenVINO is taken
where it is installed (`pip install openvino`).
"""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import pydfm
from benchmarks.jpegs import write_jpegs
from benchmarks.measure import Case, Comparison
from pydfm.io.onnx.session import OnnxModel

TITLE: Final = "Runtimes on a CPU (uint8 pixels to scores)"
NOTES: Final = ("off by",)

NETWORKS: Final = ("resnet18", "efficientnet_lite0")
NAMES: Final = (
    "pydfm, torch",
    "pydfm, onnxruntime",
    "pydfm, onnxruntime, int8",
    "export, onnxruntime, float32",
    "export, OpenVINO, float32",
    "export, onnxruntime, int8",
    "export, OpenVINO, int8",
)

_SIDE: Final = 500
_BATCH: Final = 16
_N_GOOD: Final = 40
# Largest difference of a score, as a share of the deviation of the held-out scores. OpenVINO
# computes float64 in float32, so that some resized pixels are one of 255 levels off, and has
# another arithmetic of int8.
_EQUAL: Final = 1e-3
_NEAR: Final = {"float32": 0.05, "int8": 0.5}


@dataclass(frozen=True)
class _Models:
    """A model, its exports, and what is scored."""

    folder: Any  # the TemporaryDirectory, removed with this object
    dfm: pydfm.DFM
    in_int8: pydfm.DFM
    images: NDArray[np.uint8]  # (N, H, W, 3)

    def path(self, name: str) -> str:
        return str(Path(self.folder.name, name))


@lru_cache(maxsize=1)
def _models(network: str, n_threads: int) -> _Models:
    folder = tempfile.TemporaryDirectory()
    paths = write_jpegs(Path(folder.name, "pictures"), _N_GOOD, _SIDE)
    # Times do not depend on weights, but some random ones have features that hardly differ.
    dfm = pydfm.DFM(
        backbone=network,
        weights="auto" if network.startswith("efficientnet_lite") else None,
        random_state=0,
        alpha=0.1,
        batch_size=_BATCH,
        n_threads=n_threads,
        device="cpu",
        runtime="torch",
    )
    dfm.fit(paths).save(Path(folder.name, "model.pydfm"))
    dfm.to_onnx(Path(folder.name, "float32.onnx"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # random weights suffer more than others
        in_int8 = dfm.to_onnx(Path(folder.name, "int8.onnx"), int8=paths)
    images = np.stack([np.asarray(Image.open(path)) for path in paths[:_BATCH]])
    return _Models(folder, dfm, in_int8, images)


@dataclass(frozen=True)
class _Answer:
    """Scores, and how far they are from those of pydfm, as a share of the deviation."""

    scores: NDArray[Any]
    off: float
    most: float


@lru_cache(maxsize=1)
def comparison(network: str, n_threads: int) -> Comparison:
    """Return the cases for a network on so many threads."""
    models = _models(network, n_threads)
    planes = np.ascontiguousarray(models.images.transpose(0, 3, 1, 2))

    truths = {
        precision: (dfm.score(planes), dfm.held_out_scores_.std())
        for precision, dfm in (("float32", models.dfm), ("int8", models.in_int8))
    }

    def case(name: str, run: Callable[[], Any], precision: str, most: float = _EQUAL) -> Case:
        want, scale = truths[precision]

        def answer() -> _Answer:
            scores = run()
            return _Answer(scores, float(np.abs(scores - want).max() / scale), most)

        return Case(name, answer)

    cases = []
    for name, runtime in (("torch", "torch"), ("onnxruntime", "onnx")):
        own = pydfm.load(
            models.path("model.pydfm"), runtime=runtime, n_threads=n_threads, device="cpu"
        )
        cases.append(case(f"pydfm, {name}", partial(own.score, planes), "float32"))
    in_int8 = partial(models.in_int8.score, planes)
    cases.append(case("pydfm, onnxruntime, int8", in_int8, "int8"))
    for precision in truths:
        path = models.path(f"{precision}.onnx")
        run = _onnxruntime(path, models.images, n_threads)
        cases.append(case(f"export, onnxruntime, {precision}", run, precision))
        if importlib.util.find_spec("openvino") is not None:
            run = _openvino(path, models.images, n_threads)
            cases.append(case(f"export, OpenVINO, {precision}", run, precision, _NEAR[precision]))

    def check(answer: _Answer) -> None:
        assert answer.off < answer.most, answer.off

    return Comparison(
        f"{network}, {_BATCH} images of {_SIDE} x {_SIDE}",
        n_threads,
        cases,
        check,
        lambda answer: (f"{answer.off:.1g}",),
        items=_BATCH,
    )


def _onnxruntime(
    path: str, images: NDArray[np.uint8], n_threads: int
) -> Callable[[], NDArray[Any]]:
    model = OnnxModel(path, n_threads)
    return lambda: model.run(images)["score"]


def _openvino(path: str, images: NDArray[np.uint8], n_threads: int) -> Callable[[], NDArray[Any]]:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": n_threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",  # or bfloat16 where there are instructions for it
    }
    model = openvino.compile_model(path, "CPU", settings)
    return lambda: np.array(model({"images": images})["score"])


def comparisons(quick: bool, threads: Sequence[int]) -> Iterator[Comparison]:
    """Yield comparisons by network and number of threads."""
    for network in NETWORKS[1:] if quick else NETWORKS:
        for n_threads in threads:
            yield comparison(network, n_threads)
