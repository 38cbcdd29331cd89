"""One file for a fitted model: safetensors with a JSON header, never pickle.

Tensors: ``mean`` (D,), ``components`` (k, D) and ``explained_variance`` (k,), float64. Metadata:
one entry, ``pydfm``, a JSON object with ``format_version``, ``pydfm_version``, ``parameters``
(those of the estimator that can be written), ``subspace`` (the scalars) and ``features`` (a
FeatureSpec, or null for a model of features).
"""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pydfm._version import __version__
from pydfm.density import Subspace
from pydfm.dfm import DFM
from pydfm.extraction import Extractor, FeatureSpec
from pydfm.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

FORMAT_VERSION: Final = 1

# What belongs to the machine and not to the model.
_NOT_SAVED = frozenset({"device", "n_threads", "verbose"})


def save(dfm: DFM, path: "str | os.PathLike[str]") -> None:
    """Write the fitted `dfm` to `path`; see `DFM.save`."""
    subspace = dfm.subspace_
    header = {
        "format_version": FORMAT_VERSION,
        "pydfm_version": __version__,
        "parameters": _parameters(dfm),
        "subspace": {
            "noise_variance": subspace.noise_variance,
            "total_variance": subspace.total_variance,
            "n_samples": subspace.n_samples,
        },
        "features": None if dfm.feature_spec_ is None else asdict(dfm.feature_spec_),
    }
    if hasattr(dfm, "feature_names_in_"):
        header["feature_names_in"] = list(dfm.feature_names_in_)
    # safetensors writes arrays of another layout wrongly, without a word.
    tensors = {
        "mean": np.ascontiguousarray(subspace.mean),
        "components": np.ascontiguousarray(subspace.components),
        "explained_variance": np.ascontiguousarray(subspace.explained_variance),
    }
    _replace(Path(path), safetensors.numpy.save(tensors, {"pydfm": json.dumps(header)}))


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
        subspace = _subspace(header, tensors)
        spec = None if header["features"] is None else _feature_spec(header["features"])
        dfm = DFM(**header["parameters"])
        dfm._check_parameters()
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"'{os.fspath(path)}' is not a model file of pydfm: {reason}") from error
    dfm.set_params(device=device, n_threads=n_threads)
    if spec is not None and len(subspace.mean) != sum(spec.layer_sizes):
        raise ValueError(f"'{os.fspath(path)}' is damaged: mean and layers have different sizes")
    if "feature_names_in" in header:
        dfm.feature_names_in_ = np.asarray(header["feature_names_in"], dtype=object)
    extractor = None
    if spec is not None:
        extractor = Extractor.rebuild(spec, backbone=backbone, weights=weights, device=device)
        if backbone is not None:
            dfm.set_params(backbone=backbone)
        if weights != "as saved":
            dfm.set_params(weights=weights)
    dfm._set_fitted(subspace, extractor)
    return dfm


def _parameters(dfm: DFM) -> dict[str, Any]:
    parameters = {}
    for name, value in dfm.get_params(deep=False).items():
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = list(value)
        plain = value is None or isinstance(value, str | int | float | list)
        if plain and name not in _NOT_SAVED:
            parameters[name] = value
    return parameters


def _replace(path: Path, data: bytes) -> None:
    """Write `data` to `path` at once or not at all."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder '{path.parent}' to write the model to")
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file to write the model to")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(
    path: "str | os.PathLike[str]",
) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        if "pydfm" not in metadata:
            raise ValueError("it has no pydfm header")
        header = json.loads(metadata["pydfm"])
        version = header["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"its format version is {version}, and this pydfm ({__version__}) reads "
                f"{FORMAT_VERSION}; update pydfm"
            )
        tensors = {
            name: file.get_tensor(name) for name in ("mean", "components", "explained_variance")
        }
    return header, tensors


def _subspace(header: dict[str, Any], tensors: dict[str, NDArray[np.float64]]) -> Subspace:
    mean, components = tensors["mean"], tensors["components"]
    variance = tensors["explained_variance"]
    scalars = header["subspace"]
    noise, total = float(scalars["noise_variance"]), float(scalars["total_variance"])
    if components.ndim != 2 or mean.shape != components.shape[1:]:
        raise ValueError(f"mean {mean.shape} and components {components.shape} do not fit together")
    if variance.shape != components.shape[:1]:
        raise ValueError(f"explained_variance has the shape {variance.shape}")
    for name, tensor in tensors.items():
        if tensor.dtype != np.float64 or not np.isfinite(tensor).all():
            raise ValueError(f"{name} is not float64, or not finite")
    if not ((variance > 0).all() and noise >= 0 and np.isfinite(noise) and np.isfinite(total)):
        raise ValueError("its variances are not positive and finite")
    return Subspace(mean, components, variance, noise, total, int(scalars["n_samples"]))


def _feature_spec(fields: dict[str, Any]) -> FeatureSpec:
    preprocessing = dict(fields["preprocessing"])
    for name, value in preprocessing.items():
        if isinstance(value, list):
            preprocessing[name] = tuple(value)
    return FeatureSpec(
        **{
            **fields,
            "layers": tuple(fields["layers"]),
            "layer_sizes": tuple(fields["layer_sizes"]),
            "preprocessing": Preprocessing(**preprocessing),
        }
    )
