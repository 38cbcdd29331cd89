"""The graph of a fitted model written to a file of ONNX, with what is known of it."""

import itertools
import json
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from pydfm import __version__
from pydfm.features.onnx.export import ExportError, exported
from pydfm.io.onnx.graph import PixelModel
from pydfm.io.onnx.int8 import Int8Network, put_network
from pydfm.runtime.files import check_output, write_file

# Protobuf's bound, less room for the graph itself.
_MOST_BYTES: Final = (1 << 31) - (1 << 24)


def write_onnx(
    path: "str | os.PathLike[str]",
    module: PixelModel,
    alpha: float,
    about: dict[str, str],
    network: Int8Network | None = None,
) -> None:
    """Write a fitted model as one graph of ONNX, atomically.

    Its inputs are ``images`` (N, H, W, 3), uint8, RGB, of any size, and ``alpha``, float64, which
    may be left out: the model's then. Its outputs are those of `PixelModel`.

    Parameters
    ----------
    path : path
    module : PixelModel
    alpha : float
        Default of the input.
    about : dict of str to str
        Written as metadata, beside ``pydfm`` (a JSON object with version, outputs, score type,
        precision, alpha, the smallest one, and thresholds).
    network : Int8Network, optional
        In place of the module's own, whose features the model was fitted to.

    Raises
    ------
    ImportError
        If onnx is not installed.
    ValueError
        If the network cannot be exported, or a graph cannot hold all of the model.
    OSError
        If the file cannot be written.
    """
    onnx = check_export(path)
    proto = graph_of(module, alpha)
    if network is not None:
        put_network(proto, network)
    if module.decide is not None:
        # An initial value makes an input one that may be left out.
        level = np.array(alpha, dtype=np.float64)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(level, "alpha"))
    proto.producer_name, proto.producer_version = "pydfm", __version__
    own: dict[str, Any] = {
        "version": __version__,
        "score_type": module.score_type,
        "outputs": list(module.outputs),
        "precision": "float32" if network is None else "int8",
    }
    if module.decide is not None:
        calibration = module.decide.calibration
        own |= {
            "alpha": alpha,
            "smallest_alpha": calibration.smallest_alpha,
            "thresholds": calibration.thresholds_to_show(alpha),
        }
    if network is not None:
        own["network"] = {
            "bytes": network.n_bytes,
            "bytes_in_float32": network.n_bytes_before,
            "error": round(network.error, 4),
        }
    for key, value in {"pydfm": json.dumps(own), **about}.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(proto)
    write_file(path, proto.SerializeToString())


def graph_of(module: PixelModel, alpha: float) -> Any:
    """Return the graph of a module as onnx has it.

    Raises
    ------
    ValueError
        If the network cannot be exported.
    """
    import onnx

    _check_size(module)
    height, width = module.size
    example = torch.zeros((2, height + 3, width + 5, 3), dtype=torch.uint8)
    level = torch.tensor(alpha, dtype=torch.float64)
    try:
        data = exported(
            module,
            (example, level),
            inputs={"images": {0: "n", 1: "height", 2: "width"}, "alpha": {}},
            outputs={name: {0: "n"} for name in module.outputs},
        )
    except ExportError as error:
        raise ValueError(
            f"the network cannot be exported to ONNX ({error}); fit with another backbone"
        ) from error
    return onnx.load_from_string(data)


def check_export(path: "str | os.PathLike[str]") -> Any:
    """Check, before any work is done, that `write_onnx` can write to `path`; return onnx.

    Raises
    ------
    ImportError
        If onnx is not installed.
    OSError
        If the file cannot be written.
    ValueError
        If the file has another ending than .onnx.
    """
    check_output(path)
    if Path(path).suffix.lower() != ".onnx":
        raise ValueError(
            f"the file to write is '{os.fspath(path)}', and `pydfm score` knows an export by its "
            "ending: name it as *.onnx"
        )
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "an export needs onnx and onnxruntime; install them with `pip install 'pydfm[onnx]'`"
        ) from error
    return onnx


def _check_size(module: PixelModel) -> None:
    """Raise ValueError where a model takes more bytes than a graph can."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    size = sum(own.numel() * own.element_size() for own in tensors)
    if size > _MOST_BYTES:
        raise ValueError(
            f"the export would take {size / 1e9:.1f} GB, and a graph of ONNX holds at most "
            f"{_MOST_BYTES / 1e9:.1f}; fit with a smaller n_components, a larger pool, or "
            "calibration='loo' in place of 'kfold'"
        )
