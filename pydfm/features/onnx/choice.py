"""Which runtime a network gets: torch or onnxruntime. Importing this imports neither."""

import functools
import importlib.util
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pydfm.runtime.checks import check_choice

RUNTIMES: Final = ("auto", "torch", "onnx")

# What drivers of GPUs put into /dev: NVIDIA's, on Jetson too, AMD's, and that of WSL.
_GPU_FILES: Final = ("nvidia*", "nvhost*", "nvgpu*", "kfd", "dxg")


def takes_onnx(runtime: str, device: Any, precision: str, *, named: bool) -> bool:
    """Return whether a network is to run in onnxruntime.

    Parameters
    ----------
    runtime : {"auto", "torch", "onnx"}
        "auto" takes onnxruntime where it is installed, the device is a CPU, the precision float32
        and the network has a name.
    device : str, torch.device or None
        As the parameter of `DFM`.
    precision : str
        As the parameter of `DFM`.
    named : bool
        Whether the network has a name, so that its graph can be kept: to export one takes a second
        or more, at each fit and each load.

    Raises
    ------
    ImportError
        If `runtime` is "onnx", and onnxruntime is not installed.
    ValueError
        If `runtime` is "onnx", and the device is not a CPU or the precision not float32.
    """
    check_choice("runtime", runtime, RUNTIMES)
    if runtime == "torch":
        return False
    if runtime == "auto":
        return named and precision == "float32" and is_installed() and on_cpu(device)
    if device is not None and _kind(device) != "cpu":
        raise ValueError(
            f"runtime is 'onnx', which runs on CPUs, and device is {str(device)!r}; pass "
            "device='cpu', or runtime='torch'"
        )
    if precision != "float32":
        raise ValueError(
            f"runtime is 'onnx', which computes in float32, and precision is {precision!r}; pass "
            "precision='float32', or runtime='torch'"
        )
    if not is_installed():
        raise ImportError(
            "runtime is 'onnx', which needs onnxruntime; install it with `pip install "
            "'pydfm[onnx]'`, or pass runtime='auto'"
        )
    return True


def is_installed() -> bool:
    """Whether onnxruntime is installed; it is not imported."""
    return importlib.util.find_spec("onnxruntime") is not None


def on_cpu(device: Any) -> bool:
    """Whether `device`, a parameter of `DFM`, is a CPU; None is one where there is no GPU."""
    return not _has_gpu() if device is None else _kind(device) == "cpu"


def _kind(device: Any) -> str:
    return str(device).partition(":")[0]


def _has_gpu() -> bool:
    """Whether torch would take a GPU; it is imported, if it is not yet, only where one may be."""
    if "torch" not in sys.modules and not _may_have_gpu():
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def _may_have_gpu() -> bool:
    with suppress(PackageNotFoundError):
        if version("torch").endswith("+cpu"):
            return False
    if platform.system() == "Linux":
        return any(any(Path("/dev").glob(name)) for name in _GPU_FILES)
    return platform.system() != "Darwin"  # which has no CUDA
