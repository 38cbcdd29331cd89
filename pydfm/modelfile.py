"""One file for a fitted model: safetensors with a JSON header, never pickle.

Tensors: those of `pydfm.modeltensors`. Metadata: one entry, ``pydfm``, a JSON object with
``format_version``, ``pydfm_version``, ``parameters`` (those of the estimator that can be written),
``model`` (what describes the tensors), ``calibration`` (how rows were left out) and ``left_out``
(what describes the tensors of their scores; both null without), ``features`` (a FeatureSpec, or
null for a model of features) and ``sha256`` of all the others and of the tensors, since a flipped
bit would otherwise change scores without a word.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import safetensors
import safetensors.numpy

from pydfm._version import __version__
from pydfm.dfm import DFM
from pydfm.extraction import Extractor, FeatureSpec
from pydfm.files import write_file
from pydfm.modeltensors import (
    Tensors,
    calibration_from_tensors,
    calibration_to_tensors,
    from_tensors,
    grid_of,
    to_tensors,
)
from pydfm.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

FORMAT_VERSION: Final = 1

# What belongs to the machine and not to the model.
_NOT_SAVED = frozenset({"device", "n_threads", "verbose"})
# What names of tensors of a calibration begin with.
_LEFT_OUT = "calibration."


def save(dfm: DFM, path: "str | os.PathLike[str]") -> None:
    """Write the fitted `dfm` to `path`; see `DFM.save`."""
    described, tensors = to_tensors(dfm.model_)
    left_out = None
    if dfm.calibration_ is not None:
        left_out, scores = calibration_to_tensors(dfm._ready_calibrations(), dfm.model_)
        tensors |= scores
    header = {
        "format_version": FORMAT_VERSION,
        "pydfm_version": __version__,
        "parameters": _parameters(dfm),
        "model": described,
        "calibration": dfm.calibration_,
        "left_out": left_out,
        "features": None if dfm.feature_spec_ is None else asdict(dfm.feature_spec_),
    }
    if hasattr(dfm, "feature_names_in_"):
        header["feature_names_in"] = list(dfm.feature_names_in_)
    header["sha256"] = _digest(header, tensors)
    # One entry only: safetensors writes several in any order.
    metadata = {"pydfm": json.dumps(header, default=_plain)}
    write_file(path, safetensors.numpy.save(tensors, metadata))


def load(
    path: "str | os.PathLike[str]",
    *,
    backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
    weights: "str | os.PathLike[str] | None" = "as saved",
    device: "str | torch.device | None" = None,
    n_threads: int | None = None,
) -> DFM:
    """Read a model that `DFM.save` wrote; its scores are the same to the bit.

    Parameters
    ----------
    path : path
    backbone : path or torch.nn.Module, optional
        Needed where the model was fitted with a module of your own, or where a TorchScript file
        has moved.
    weights : path, str or None, optional
        Where the weights lie now, if elsewhere than when the model was fitted.
    device, n_threads : optional
        As for `DFM`.

    Returns
    -------
    DFM
        Fitted; a model of images has its network loaded and checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a whole model file of a known version, or the network's weights are not those
        it was fitted with.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file '{os.fspath(path)}'")
    try:
        header, tensors = _read(path)
        left_out = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_LEFT_OUT)}
        model = from_tensors(header["model"], tensors)
        described = header["left_out"]
        scores = None
        if described is not None:
            scores = calibration_from_tensors(described, left_out, model)
        spec = None if header["features"] is None else _feature_spec(header["features"])
        if spec is not None and model.n_features != spec.n_features:
            raise ValueError("its mean and its layers have different sizes")
        calibration = header["calibration"]
        dfm = DFM(**header["parameters"])
        dfm._check_parameters()
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"'{os.fspath(path)}' is not a model file of pydfm, or not a whole one ({error})"
        ) from error
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"cannot read the model file '{os.fspath(path)}': {reason}") from error
    dfm.set_params(device=device, n_threads=n_threads)
    if "feature_names_in" in header:
        dfm.feature_names_in_ = np.asarray(header["feature_names_in"], dtype=object)
    extractor = None
    if spec is not None:
        _check_files(spec, path, backbone, weights)
        extractor = Extractor.rebuild(spec, backbone=backbone, weights=weights, device=device)
        if backbone is not None:
            dfm.set_params(backbone=backbone)
        if weights != "as saved":
            dfm.set_params(weights=weights)
    dfm._set_fitted(model, calibration, extractor)
    dfm._loaded_calibration = scores
    return dfm


def _parameters(dfm: DFM) -> dict[str, Any]:
    """Those of the parameters that can be written, which a module or a device cannot."""
    parameters = {}
    for name, value in dfm.get_params(deep=False).items():
        if name in _NOT_SAVED:
            continue
        with contextlib.suppress(TypeError):
            parameters[name] = json.loads(json.dumps(value, default=_plain))
    return parameters


def _plain(value: Any) -> Any:
    """Return what JSON can hold of a value it does not know."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return os.fspath(value)


def _digest(header: dict[str, Any], tensors: Tensors) -> str:
    digest = hashlib.sha256(json.dumps(header, default=_plain).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _read(
    path: "str | os.PathLike[str]",
) -> tuple[dict[str, Any], Tensors]:
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if "pydfm" not in metadata:
            raise ValueError("it has no pydfm header")
        header = json.loads(metadata["pydfm"])
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"its format version is {version}, and pydfm {__version__} reads "
                f"{FORMAT_VERSION}; update pydfm"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header.pop("sha256") != _digest(header, tensors):
        raise ValueError("its checksum is wrong; copy it again, or fit again")
    return header, tensors


def _check_files(
    spec: FeatureSpec,
    path: "str | os.PathLike[str]",
    backbone: Any,
    weights: "str | os.PathLike[str] | None",
) -> None:
    """Tell of a file that `spec` needs and that is not where it was at the fit."""
    from pydfm.networks import TORCHVISION_NETWORKS

    needed = {}
    scripted = not spec.backbone.startswith("module:") and spec.backbone not in TORCHVISION_NETWORKS
    if scripted and backbone is None:
        needed["backbone"] = spec.backbone
    # torchvision's names of weights have neither.
    told = None if scripted or weights != "as saved" else spec.weights
    if told is not None and ("." in told or os.sep in told):
        needed["weights"] = told
    for name, file in needed.items():
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"'{os.fspath(path)}' needs the file '{file}', which is not there; pass as {name} "
                "where it is now"
            )


def _feature_spec(fields: dict[str, Any]) -> FeatureSpec:
    preprocessing = dict(fields["preprocessing"])
    for name, value in preprocessing.items():
        if isinstance(value, list):
            preprocessing[name] = tuple(value)
    return FeatureSpec(
        **{
            **fields,
            "layers": tuple(fields["layers"]),
            "grids": tuple(grid_of(grid) for grid in fields["grids"]),
            "pool": tuple(fields["pool"]) if isinstance(fields["pool"], list) else fields["pool"],
            "preprocessing": Preprocessing(**preprocessing),
        }
    )
