"""What pydfm runs on, for bug reports."""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydfm import __version__, _core
from pydfm.runtime.threads import available_cores

_PACKAGES = (
    "numpy",
    "scikit-learn",
    "torch",
    "torchvision",
    "onnxruntime",
    "safetensors",
    "pillow",
)


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Print what pydfm runs on, or return it.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default="stdout"
        Print as JSON, or return a dict.

    Returns
    -------
    dict or None
        Versions of pydfm, Python and the packages it needs; the instruction set that the core was
        loaded for and those this processor runs; the threads that ``n_threads=None`` stands for;
        the GPU, where there is one; and what ``runtime="auto"`` takes for networks with names.

    Examples
    --------
    >>> import pydfm
    >>> pydfm.show_config("dicts")["core"]["supported"][0]
    'baseline'
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode is {mode!r}; it must be 'stdout' or 'dicts'")
    gpu = _gpu()
    config = {
        "pydfm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "core": {
            "instruction_set": _core.instruction_set,
            "supported": _core.supported_instruction_sets(),
            "eigen": _core.eigen_version,
            "compiler": _core.compiler,
        },
        "n_threads": available_cores(),
        "gpu": gpu,
        "runtime": "onnx" if gpu is None and version_of("onnxruntime") else "torch",
        "packages": {name: version_of(name) for name in _PACKAGES},
    }
    if mode == "dicts":
        return config
    json.dump(config, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return None


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
