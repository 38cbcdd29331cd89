"""One file for a fitted model: safetensors with a JSON header, never pickle. Format 1, frozen.

Tensors: those of `pydfm.io.tensors` and, where rows can be added and removed, `pydfm.io.state`.
Metadata: one entry, ``pydfm``, a JSON object with

- ``format``: 1;
- ``pydfm``: the version that wrote the file;
- ``parameters``: those of the estimator that can be written;
- ``model``: the description of the model's tensors;
- ``calibration``: how held-out scores were made, or null;
- ``held_out``: the description of their tensors, or null;
- ``features``: the feature specification, or null for a model of features;
- ``feature_names``: only of a model fitted on a data frame with names;
- ``left_out``: only of a model that images were left out of, their names;
- ``state``: only where the file keeps the training state, the description of its tensors;
- ``journal``: what the model came from, step by step; files of before have none;
- ``sha256``: the hash of all of the above and of the tensors, since a flipped bit would otherwise
  change scores without an error.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pydfm import __version__
from pydfm.features.backbones import family_saved_as
from pydfm.features.extractor import FeatureSpec
from pydfm.features.onnx.choice import RUNTIMES
from pydfm.features.pictures.intensity import check_intensity
from pydfm.features.transforms import MOST_SIDE, Preprocessing
from pydfm.io.fields import fields, integer, items, numbers, pair, text
from pydfm.io.journal import Entry, entry_from
from pydfm.io.state import state_from_tensors, state_to_tensors
from pydfm.io.tensors import (
    FOLD,
    HELD_OUT,
    LAYER,
    STATE,
    Tensors,
    check_claims,
    grid_from,
    held_out_from_tensors,
    held_out_to_tensors,
    model_from_tensors,
    model_to_tensors,
)
from pydfm.model.fitting import RECALIBRATED, FittedDFM
from pydfm.model.model import Model
from pydfm.model.training import TrainingState
from pydfm.parameters import (
    CALIBRATIONS,
    DEFAULTS,
    LAYOUTS,
    PARAMETERS,
    PRECISIONS,
    SPATIAL_FORMS,
    check_parameters,
)
from pydfm.runtime.checks import check_choice
from pydfm.runtime.files import write_file

FORMAT: Final = 1

# Bytes of a file that is read at once; of a larger one it is asked first whether it may be so.
_SMALL: Final = 64_000_000


@dataclass(frozen=True)
class ModelFile:
    """What a model file holds.

    Attributes
    ----------
    fitted : FittedDFM
    parameters : dict
        Parameters of the estimator; those that cannot be written are missing after a read.
    feature_names : ndarray of shape (D,) or None
    training : TrainingState or None
        What rows can be added to and removed from.
    journal : tuple of Entry
    """

    fitted: FittedDFM
    parameters: dict[str, Any]
    feature_names: NDArray[Any] | None = None
    training: TrainingState | None = None
    journal: tuple[Entry, ...] = ()


def write_model(
    path: "str | os.PathLike[str]", content: ModelFile, keep: bool | None = None
) -> None:
    """Write a fitted model to `path`, atomically.

    Parameters
    ----------
    path : path
    content : ModelFile
    keep : bool, optional
        Whether the file holds the training state; default where it takes no more than the model.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If the state is to be kept, and there is none or a file cannot hold it.
    """
    fitted = content.fitted
    described, tensors = model_to_tensors(fitted.model)
    held_out = None
    if fitted.calibration is not None:
        held_out, scores = held_out_to_tensors(fitted.held_out, fitted.model)
        tensors |= scores
    state, rows = _kept_state(content.training, tensors, keep)
    tensors |= rows
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
    if fitted.left_out:
        header["left_out"] = list(fitted.left_out)
    if state is not None:
        header["state"] = state
    if content.journal:
        header["journal"] = [asdict(entry) for entry in content.journal]
    header["sha256"] = _digest(header, tensors)
    # One entry only: safetensors writes several in any order.
    metadata = {"pydfm": json.dumps(header, default=_plain)}
    write_file(path, safetensors.numpy.save(tensors, metadata))


def _kept_state(
    training: TrainingState | None, tensors: Tensors, keep: bool | None
) -> tuple[dict[str, Any] | None, Tensors]:
    """Return the description and the tensors of the state that a file is to hold, or nothing."""
    if keep is False:
        return None, {}
    if training is None:
        if keep:
            raise ValueError(
                "keep is True, but the model came from a file without its training state; fit again"
            )
        return None, {}
    try:
        state, rows = state_to_tensors(training)
    except TypeError as error:
        if keep:
            raise ValueError(f"the file cannot keep the training state: {error}") from error
        return None, {}
    size, most = (sum(own.nbytes for own in each.values()) for each in (rows, tensors))
    return (state, rows) if keep or size <= most else (None, {})


def part_sizes(path: "str | os.PathLike[str]") -> dict[str, int]:
    """Return the bytes that parts of a model file take: its model, held-out scores and state.

    They are in the file's header; the tensors are not read.
    """
    sizes = {"model": 0, "held-out scores": 0, "training state": 0}
    with Path(path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, tensor in header.items():
        if name != "__metadata__":
            part = "model" if name.startswith(LAYER) else "held-out scores"
            part = "training state" if name.startswith(STATE) else part
            begin, end = tensor["data_offsets"]
            sizes[part] += end - begin
    return {**sizes, "file": Path(path).stat().st_size}


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
        Path(path).open("rb").close()  # safetensors would say that there is no such file
    except PermissionError as error:
        raise PermissionError(f"the model file '{os.fspath(path)}' may not be read") from error
    try:
        header, tensors = _read(path)
        model = model_from_tensors(header["model"], _under(tensors, LAYER))
        described, calibration = header["held_out"], header["calibration"]
        held_out = None
        if calibration not in (None, RECALIBRATED, *CALIBRATIONS):
            raise ValueError(f"its calibration is {calibration!r}")
        if (described is None) != (calibration is None):
            raise ValueError(f"its calibration is {calibration!r}, beside held-out scores or none")
        if described is not None:
            own = _under(tensors, HELD_OUT) | _under(tensors, FOLD)
            held_out = held_out_from_tensors(described, own, model)
        spec = None if header["features"] is None else _feature_spec(header["features"])
        names = header.get("feature_names")
        if names is not None:
            for name in items("its feature_names", names, model.n_features):
                text("one of its feature_names", name)
        _check_together(spec, model)
        if held_out is not None and held_out.folds and calibration != "kfold":
            raise ValueError(f"its calibration is {calibration!r}, and it has folds")
        listed = items("its left_out", header.get("left_out", []))
        left_out = tuple(text("a name it left out", one) for one in listed)
        fitted = FittedDFM(spec, model, calibration, held_out, left_out)
        training = None
        if "state" in header:
            training = state_from_tensors(header["state"], _under(tensors, STATE), spec, model)
        steps = items("its journal", header.get("journal", []))
        journal = tuple(entry_from(step) for step in steps)
        # A file without them was written before there were any, and ran as these say.
        parameters = {
            "preset": "paper",
            "runtime": "torch",
            **fields("its parameters", header["parameters"]),
        }
        unknown = sorted(set(parameters) - set(PARAMETERS))
        if unknown:
            raise ValueError(f"it has the unknown parameter {unknown[0]!r}; update pydfm")
        check_parameters({**DEFAULTS, **parameters})
    except safetensors.SafetensorError as error:
        if Path(path).suffix.lower() == ".onnx":
            raise ValueError(
                f"'{os.fspath(path)}' is an export, which `pydfm score` and `info` take; give the "
                "model file that it was made of"
            ) from error
        raise ValueError(
            f"'{os.fspath(path)}' is not a model file of pydfm, or not a whole one ({error})"
        ) from error
    except (
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"cannot read the model file '{os.fspath(path)}': {reason}") from error
    return ModelFile(
        fitted,
        parameters,
        None if names is None else np.asarray(names, dtype=object),
        training,
        journal,
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
        header = fields("its header", json.loads(metadata["pydfm"]))
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
        names = list(file.keys())
        if Path(path).stat().st_size > _SMALL:
            check_claims(
                header["model"],
                {name: file.get_slice(name).get_shape() for name in names},
                recalibrated=header["calibration"] == RECALIBRATED,
            )
        tensors = {name: file.get_tensor(name) for name in names}
    if header.pop("sha256") != _digest(header, tensors):
        raise ValueError("its checksum is wrong; copy it again, or fit again")
    return header, tensors


def _under(tensors: Tensors, prefix: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_together(spec: FeatureSpec | None, model: Model) -> None:
    """Raise ValueError unless the layers of the model are those of the features."""
    if spec is None:
        if len(model.layers) > 1 or model.layers[0].grid is not None:
            raise ValueError("it has the layers of images, and no features of images")
        return
    found = [(layer.name, layer.grid) for layer in model.layers]
    if model.n_features != spec.n_features or found != list(
        zip(spec.layers, spec.grids, strict=True)
    ):
        raise ValueError("its mean and its layers have different sizes")


def _feature_spec(described: Any) -> FeatureSpec:
    own = fields("its features", described)
    layers = [text("a layer of its features", one) for one in items("its layers", own["layers"])]
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"the layers of its features are {layers!r}")
    pool = own["pool"]
    if isinstance(pool, list):
        pool = tuple(integer("its pool", one, 1) for one in items("its pool", pool, len(layers)))
    elif pool is not None:
        pool = integer("its pool", pool, 1)
    sha256 = text("the sha256 of its features", own["sha256"])
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"the sha256 of its features is {sha256!r}")
    layout, tokens = own.get("layout", "auto"), own.get("tokens")
    if tokens is not None:
        tokens = integer("its tokens", tokens, 0)
    for name, value, choices in (
        ("spatial", own["spatial"], SPATIAL_FORMS),
        ("precision", own["precision"], PRECISIONS),
        ("layout", layout, LAYOUTS),
        ("runtime", own.get("runtime", "torch"), RUNTIMES[1:]),
    ):
        check_choice(f"the {name} of its features", value, choices)
    backbone = text("the backbone of its features", own["backbone"])
    family_saved_as(backbone)
    return FeatureSpec(
        backbone=backbone,
        weights=None if own["weights"] is None else text("its weights", own["weights"]),
        layers=tuple(layers),
        grids=tuple(grid_from(one) for one in items("its grids", own["grids"], len(layers))),
        spatial=own["spatial"],
        pool=pool,
        precision=own["precision"],
        random_state=integer("its random_state", own["random_state"], 0, 2**32 - 1),
        preprocessing=_preprocessing(own["preprocessing"]),
        sha256=sha256,
        layout=layout,
        tokens=tokens,
        runtime=own.get("runtime", "torch"),
    )


def _preprocessing(described: Any) -> Preprocessing:
    own = fields("its preprocessing", described)
    unknown = sorted(set(own) - {field.name for field in dataclass_fields(Preprocessing)})
    if unknown:
        raise ValueError(f"its preprocessing has the unknown {unknown[0]!r}; update pydfm")
    resize = own["resize"]
    if isinstance(resize, list):
        resize = pair("its resize", resize, 1, MOST_SIDE)
    else:
        resize = integer("its resize", resize, 1, MOST_SIDE)
    crop = None if own["crop"] is None else pair("its crop", own["crop"], 1, MOST_SIDE)
    smallest = (resize, resize) if isinstance(resize, int) else resize
    if (crop is None and isinstance(resize, int)) or (
        crop is not None and any(a > b for a, b in zip(crop, smallest, strict=True))
    ):
        raise ValueError(f"its crop is {crop}, of images resized to {resize}")
    mean, std = (tuple(numbers(f"its {k}", own[k], (3,)).tolist()) for k in ("mean", "std"))
    if min(std) <= 0:
        raise ValueError(f"its std is {std}; it must be positive")
    intensity = own.get("intensity")
    if isinstance(intensity, list):
        intensity = tuple(intensity)
    if intensity is not None:
        check_intensity("its intensity", intensity)
        if intensity == "auto":
            raise ValueError("its intensity is 'auto', which a fit resolves")
    return Preprocessing(resize, crop, mean, std, intensity)
