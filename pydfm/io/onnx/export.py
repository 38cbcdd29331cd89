"""The graph of a fitted model written to a file of ONNX, with what is known of it."""

import inspect
import io
import json
import warnings
from typing import TYPE_CHECKING, Any, Final

import torch

from pydfm import __version__
from pydfm.io.onnx.graph import PixelModel, check_exportable
from pydfm.runtime.files import check_output, write_file

if TYPE_CHECKING:
    import os

    from pydfm.features.taps import Tapped
    from pydfm.model.fitting import FittedDFM

OPSET: Final = 17


def pixel_model(fitted: "FittedDFM", tapped: "Tapped", score_type: str) -> PixelModel:
    """Return a fitted model as a module of torch, from uint8 pixels on.

    Raises
    ------
    ValueError
        If it cannot be one; the message says what to do.
    """
    check_exportable(fitted, score_type)
    return PixelModel(fitted, tapped, score_type).eval()


def write_onnx(
    path: "str | os.PathLike[str]",
    fitted: "FittedDFM",
    tapped: "Tapped",
    score_type: str,
    alpha: float,
    about: dict[str, str],
) -> None:
    """Write a fitted model as one graph of ONNX, atomically.

    Its inputs are ``images`` (N, H, W, 3), uint8, RGB, of any size, and ``alpha``, float64, which
    may be left out: the model's then. Its outputs are those of `PixelModel`.

    Parameters
    ----------
    path : path
    fitted, tapped, score_type
        As for `pixel_model`.
    alpha : float
        Default of the input.
    about : dict of str to str
        Written as metadata, beside ``pydfm`` (a JSON object with version, outputs and score type).

    Raises
    ------
    ImportError
        If onnx is not installed.
    ValueError
        If the model cannot be exported.
    OSError
        If the file cannot be written.
    """
    check_output(path)
    onnx = _import_onnx()
    module = pixel_model(fitted, tapped, score_type)
    height, width = tapped.preprocessing.size
    example = torch.zeros((2, height + 3, width + 5, 3), dtype=torch.uint8)
    level = torch.tensor(alpha, dtype=torch.float64)
    data, exporter = io.BytesIO(), torch.onnx.export
    decides = module.decide is not None
    axes: dict[str, dict[int, str]] = {"images": {0: "n", 1: "height", 2: "width"}}
    axes |= {name: {0: "n"} for name in module.outputs}
    options: dict[str, Any] = {
        "opset_version": OPSET,
        "input_names": ["images", "alpha"],
        "output_names": list(module.outputs),
        "dynamic_axes": axes,
    }
    if "dynamo" in inspect.signature(exporter).parameters:
        options["dynamo"] = False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # The exporter of torch.export needs more packages, and this one is told to go.
            warnings.simplefilter("ignore")
            exporter(module, (example, level), data, **options)  # type: ignore[arg-type]
    except Exception as error:  # of a network's own code, torch's or its exporter's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the network cannot be exported to ONNX ({reason}); fit with another backbone"
        ) from error
    proto = onnx.load_from_string(data.getvalue())
    if decides:
        # An initial value makes an input one that may be left out.
        proto.graph.initializer.append(onnx.numpy_helper.from_array(level.numpy(), "alpha"))
    proto.producer_name, proto.producer_version = "pydfm", __version__
    own = {"version": __version__, "score_type": score_type, "outputs": list(module.outputs)}
    for key, value in {"pydfm": json.dumps(own), **about}.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(proto)
    write_file(path, proto.SerializeToString())


def _import_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            "an export needs onnx and onnxruntime; install them with `pip install 'pydfm[onnx]'`"
        ) from error
    return onnx
