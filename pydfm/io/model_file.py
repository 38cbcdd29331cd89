"""One file for a fitted model: safetensors with a JSON header, never pickle. Format 1, frozen.

Tensors: those of `pydfm.io.tensors`. Metadata: one entry, ``pydfm``, a JSON object with

- ``format``: 1;
- ``pydfm``: the version that wrote the file;
- ``parameters``: those of the estimator that can be written;
- ``model``: the description of the model's tensors;
- ``calibration``: how held-out scores were made, or null;
- ``held_out``: the description of their tensors, or null;
- ``features``: the feature specification, or null for a model of features;
- ``feature_names``: only of a model fitted on a data frame with names;
- ``sha256``: the hash of all of the above and of the tensors, since a flipped bit would otherwise
  change scores without an error.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pydfm import __version__
from pydfm.features.extractor import FeatureSpec
from pydfm.features.transforms import Preprocessing
from pydfm.io.tensors import (
    FOLD,
    HELD_OUT,
    LAYER,
    Tensors,
    grid_from,
    held_out_from_tensors,
    held_out_to_tensors,
    model_from_tensors,
    model_to_tensors,
)
from pydfm.model.fitting import RECALIBRATED, FittedDFM
from pydfm.parameters import CALIBRATIONS, DEFAULTS, LAYOUTS, PARAMETERS, check_parameters
from pydfm.runtime.checks import check_choice
from pydfm.runtime.files import write_file

FORMAT: Final = 1


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes
    ----------
    fitted : FittedDFM
    parameters : dict
        Parameters of the estimator; those that cannot be written are missing after a read.
    feature_names : ndarray of shape (D,) or None
    """

    fitted: FittedDFM
    parameters: dict[str, Any]
    feature_names: NDArray[Any] | None = None


def write_model(path: "str | os.PathLike[str]", content: ModelFile) -> None:
    """Write a fitted model to `path`, atomically.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    fitted = content.fitted
    described, tensors = model_to_tensors(fitted.model)
    held_out = None
    if fitted.calibration is not None:
        held_out, scores = held_out_to_tensors(fitted.held_out, fitted.model)
        tensors |= scores
    header = {
        "format": FORMAT,
        "pydfm": __version__,
        "parameters": _writable(content.parameters),
        "model": described,
        "calibration": fitted.calibration,
        "held_out": held_out,
        "features": None if fitted.spec is None else asdict(fitted.spec),
    }
    if content.feature_names is not None:
        header["feature_names"] = list(content.feature_names)
    header["sha256"] = _digest(header, tensors)
    # One entry only: safetensors writes several in any order.
    metadata = {"pydfm": json.dumps(header, default=_plain)}
    write_file(path, safetensors.numpy.save(tensors, metadata))


def read_model(path: "str | os.PathLike[str]") -> ModelFile:
    """Read what `write_model` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a whole model file of a known format.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file '{os.fspath(path)}'")
    try:
        header, tensors = _read(path)
        model = model_from_tensors(header["model"], _under(tensors, LAYER))
        described = header["held_out"]
        held_out = None
        if described is not None:
            own = _under(tensors, HELD_OUT) | _under(tensors, FOLD)
            held_out = held_out_from_tensors(described, own, model)
        spec = None if header["features"] is None else _feature_spec(header["features"])
        names = header.get("feature_names")
        if names is not None and not (isinstance(names, list) and len(names) == model.n_features):
            raise ValueError(f"its feature_names are {names!r}, not one for each feature")
        calibration = header["calibration"]
        if calibration not in (None, RECALIBRATED, *CALIBRATIONS):
            raise ValueError(f"its calibration is {calibration!r}")
        if spec is not None and model.n_features != spec.n_features:
            raise ValueError("its mean and its layers have different sizes")
        fitted = FittedDFM(spec, model, header["calibration"], held_out)
        parameters = dict(header["parameters"])
        unknown = sorted(set(parameters) - set(PARAMETERS))
        if unknown:
            raise ValueError(f"it has the unknown parameter {unknown[0]!r}; update pydfm")
        check_parameters({**DEFAULTS, **parameters})
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"'{os.fspath(path)}' is not a model file of pydfm, or not a whole one ({error})"
        ) from error
    except (
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"cannot read the model file '{os.fspath(path)}': {reason}") from error
    return ModelFile(
        fitted,
        parameters,
        None if names is None else np.asarray(names, dtype=object),
    )


def _writable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are saved and can be written, which a module cannot."""
    written = {}
    for name, value in parameters.items():
        if PARAMETERS[name].saved:
            with contextlib.suppress(TypeError):
                written[name] = json.loads(json.dumps(value, default=_plain))
    return written


def _plain(value: Any) -> Any:
    """Return what JSON can hold in place of a value that it does not know."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return os.fspath(value)


def _digest(header: Mapping[str, Any], tensors: Tensors) -> str:
    digest = hashlib.sha256(json.dumps(header, default=_plain).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _read(path: "str | os.PathLike[str]") -> tuple[dict[str, Any], Tensors]:
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if "pydfm" not in metadata:
            raise ValueError("it has no pydfm header")
        header = json.loads(metadata["pydfm"])
        if "format_version" in header:
            raise ValueError(
                "it was written before pydfm had a fixed format; fit again, or use the version "
                f"that wrote it, {header.get('pydfm_version', 'an older one')}"
            )
        found = header["format"]
        if found != FORMAT:
            raise ValueError(
                f"its format is {found}, and pydfm {__version__} reads {FORMAT}; update pydfm"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header.pop("sha256") != _digest(header, tensors):
        raise ValueError("its checksum is wrong; copy it again, or fit again")
    return header, tensors


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _feature_spec(fields: dict[str, Any]) -> FeatureSpec:
    preprocessing = dict(fields["preprocessing"])
    for name in ("backbone", "weights", "spatial", "precision", "sha256"):
        optional = name == "weights" and fields[name] is None
        if not optional and not isinstance(fields[name], str):
            raise ValueError(f"the {name} of its features is {fields[name]!r}, and no text")
    check_choice("the layout of its features", fields.get("layout", "auto"), LAYOUTS)
    for name, value in preprocessing.items():
        if isinstance(value, list):
            preprocessing[name] = tuple(value)
    return FeatureSpec(
        **{
            **fields,
            "layers": tuple(fields["layers"]),
            "grids": tuple(grid_from(grid) for grid in fields["grids"]),
            "pool": tuple(fields["pool"]) if isinstance(fields["pool"], list) else fields["pool"],
            "preprocessing": Preprocessing(**preprocessing),
        }
    )
