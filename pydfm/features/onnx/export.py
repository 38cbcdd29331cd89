"""A network with taps as a graph of ONNX, checked against torch."""

import inspect
import io
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from pydfm.features.onnx.network import as_shares, open_session
from pydfm.features.onnx.store import Graph
from pydfm.features.taps import Tapped, Taps

TOLERANCE: Final = 1e-4
"""Largest difference of a feature from torch's, as a share of the layer's largest."""

_OPSET: Final = 17

_jit: Any = torch.jit  # most of it has no types

# The exporter has state of its own for the whole process.
_exporting = threading.RLock()


class ExportError(Exception):
    """A network that cannot be exported, and why, in a few words."""


def export(tapped: Tapped) -> Graph:
    """Return the graph of a network with taps, which takes batches of any size.

    Raises
    ------
    ExportError
        If it cannot be exported, or its features are not those of torch.
    """
    own = tapped.preprocessing
    whole = _Normalised(tapped.taps, own.mean, own.std).eval()
    example = tapped.example.clone()
    data = exported(whole, (example,), inputs={"pixels": {0: "n"}}, outputs={"features": {0: "n"}})
    graph = Graph(data, tapped.grids)
    _check(graph, tapped, whole)
    return graph


def exported(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    inputs: Mapping[str, dict[int, str]],
    outputs: Mapping[str, dict[int, str]],
) -> bytes:
    """Return the graph of a module of torch.

    TorchScript's exporter is deprecated, but works in every torch from 2.4 on, and writes its graph
    without another package. The option that chooses it came with torch 2.5.

    Parameters
    ----------
    module : torch.nn.Module
    example : tuple of torch.Tensor
        What it is called with.
    inputs, outputs : mapping of str to dict of int to str
        Their names, and the names of their sides that may have any length.

    Raises
    ------
    ExportError
        If it cannot be exported.
    """
    exporter: Any = torch.onnx.export
    data = io.BytesIO()
    options: dict[str, Any] = {
        "opset_version": _OPSET,
        "input_names": list(inputs),
        "output_names": list(outputs),
        "dynamic_axes": {name: axes for name, axes in {**inputs, **outputs}.items() if axes},
    }
    if "dynamo" in inspect.signature(exporter).parameters:
        options["dynamo"] = False
    traced = _traced(module, example)
    # The exporter traces once more, but not around scripts; it takes sizes for values.
    scripted = any(isinstance(own, _jit.ScriptModule) for own in module.modules())
    try:
        with (
            _exporting,
            _quiet(),
            _without_fast_path(),
            torch.no_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            exporter(traced if scripted else module, example, data, **options)
    except Exception as error:  # of a network's own code, torch's or its exporter's
        raise ExportError(_first_line(error)) from error
    return data.getvalue()


def _traced(module: nn.Module, example: tuple[torch.Tensor, ...]) -> Any:
    """Return a trace of a module; ExportError where it depends on values."""
    try:
        with _exporting, torch.no_grad(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", _jit.TracerWarning)
            traced = _jit.trace(module, example, check_trace=False)
    except Exception as error:  # of a network's own code, or torch's
        raise ExportError(_first_line(error)) from error
    if caught:  # Python code that looks at values is traced along one of its branches only
        raise ExportError(str(caught[0].message).split(". ")[0])
    return traced


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing a graph that it cannot export, thousands of lines, to stdout."""
    core: Any = torch._C
    log = getattr(core, "_jit_onnx_log", None)
    if log is not None:
        core._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        if log is not None:
            core._jit_onnx_log = log


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let transformers run as separate operations: torch's fused one is not in ONNX."""
    heads: Any = torch.backends.mha
    before = heads.get_fastpath_enabled()
    heads.set_fastpath_enabled(False)
    try:
        yield
    finally:
        heads.set_fastpath_enabled(before)


class _Normalised(nn.Module):
    """Taps for pixels in [0, 1]."""

    def __init__(self, taps: Taps, mean: Any, std: Any) -> None:
        super().__init__()
        self.taps = taps
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.taps((pixels - self.mean) / self.std)
        return features


def _check(graph: Graph, tapped: Tapped, whole: nn.Module) -> None:
    """Raise ExportError unless a graph gives torch's features, for batches of one and of three."""
    rng = np.random.default_rng(0)
    shape = (3, 3, *tapped.preprocessing.size)
    pixels = as_shares(rng.integers(0, 256, shape, dtype=np.uint8))
    with torch.inference_mode():
        want = whole(torch.from_numpy(pixels)).numpy()
    try:
        session = open_session(graph.data, 1)
        found = [session.run(None, {"pixels": own})[0] for own in (pixels, pixels[:1])]
    except Exception as error:  # of onnxruntime, whose exceptions have no common class
        raise ExportError(_first_line(error)) from error
    for n_images, own in zip((3, 1), found, strict=True):
        if own.shape != (n_images, want.shape[1]):
            raise ExportError(f"its features have the shape {own.shape} in onnxruntime")
        first = 0
        for grid in tapped.grids:
            columns = slice(first, first + grid.size)
            first += grid.size
            largest = float(np.abs(want[:, columns]).max())
            off = float(np.abs(own[:, columns] - want[:n_images, columns]).max())
            if not off <= TOLERANCE * largest:
                raise ExportError(
                    f"its features differ from torch's by {off:.2g}, of at most {largest:.2g}"
                )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".").split(". ")[0]
