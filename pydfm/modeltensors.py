"""A fitted model as named arrays and what JSON can hold, and back.

The subspaces of C classes with k_1, ..., k_C components of D features are, under one prefix:
``mean`` (C, D), ``n_components`` (C,), ``components`` (k_1 + ... + k_C, D) and
``explained_variance`` (k_1 + ... + k_C,), ``noise_variance``, ``total_variance`` and ``n_samples``
(C,). Where the classes share their components, these stand there once. The prefix is the number of
a layer for its classes, ``0.background`` for all rows together, and ``0.mixture.c`` for the
Gaussians of the mixture of class c, beside whose subspaces stand its ``weights``. Where pictures
are scored by standardised maps, each layer has ``position_mean`` and ``position_deviation`` (C,
height, width).

A calibration has, by score type, ``calibration.TYPE.scores`` (1 + L, n), float32, and, where the
model has classes, ``calibration.TYPE.classes`` (n,); and perhaps ``calibration.map_maxima`` (m,),
float32.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.calibration import ModelCalibration
from pydfm.combination import Combination
from pydfm.density import Density
from pydfm.layer import LayerModel
from pydfm.maps import Grid
from pydfm.mixture import Mixture
from pydfm.model import Model
from pydfm.positions import PositionScale
from pydfm.subspace import Subspace

Tensors = dict[str, NDArray[Any]]

_INTEGERS = ("n_components", "n_samples")


def to_tensors(model: Model) -> tuple[dict[str, Any], Tensors]:
    """Return what describes `model`, and its numbers."""
    tensors: Tensors = {}
    layers = []
    for i, layer in enumerate(model.layers):
        density = layer.density
        shared = _put(tensors, str(i), density.subspaces)
        if density.background is not None:
            _put(tensors, f"{i}.background", [density.background])
        for c, mixture in enumerate(density.mixtures or ()):
            _put(tensors, f"{i}.mixture.{c}", mixture.gaussians)
            tensors[f"{i}.mixture.{c}.weights"] = mixture.weights
        if layer.scale is not None:
            tensors[f"{i}.position_mean"] = layer.scale.mean
            tensors[f"{i}.position_deviation"] = layer.scale.deviation
        layers.append(
            {
                "name": layer.name,
                "columns": [layer.columns.start, layer.columns.stop],
                "grid": None if layer.grid is None else asdict(layer.grid),
                "patch": layer.patch,
                "rule": layer.rule,
                "top_share": layer.top_share,
                "standardised": layer.scale is not None,
                "shared_components": shared,
                "background": density.background is not None,
                "mixtures": [mixture.n_samples for mixture in density.mixtures or ()],
            }
        )
    header = {
        "layers": layers,
        "classes": model.classes,
        "combinations": {kind: asdict(rule) for kind, rule in model.combinations.items()},
        "n_samples": model.n_samples,
    }
    # safetensors writes arrays of another layout wrongly, without a word.
    return header, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_tensors(header: dict[str, Any], tensors: Tensors) -> Model:
    """Return the model that `to_tensors` gave these of.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are not those of a model.
    """
    for name, tensor in tensors.items():
        kind = np.int64 if name.rpartition(".")[2] in _INTEGERS else np.float64
        if tensor.dtype != kind or not np.isfinite(tensor).all():
            raise ValueError(f"{name} is not {kind.__name__}, or not finite")
    classes = header["classes"]
    layers = tuple(_layer(i, fields, tensors) for i, fields in enumerate(header["layers"]))
    n_classes = 1 if classes is None else len(classes)
    end = 0
    for layer in layers:
        density = layer.density
        if len(density.subspaces) != n_classes:
            raise ValueError(f"it has {n_classes} classes and {len(density.subspaces)} subspaces")
        size = density.n_features * (layer.grid.positions if layer.grid and layer.patch else 1)
        wrong = layer.grid is not None and layer.grid.size != size
        if wrong or (layer.columns.start, layer.columns.stop) != (end, end + size):
            raise ValueError(
                f"its mean and the columns of layer '{layer.name}' do not fit together"
            )
        end += size
    combinations = {
        kind: Combination(
            rule=rule["rule"],
            offset=float(rule["offset"]),
            **{name: _vector(rule[name], len(layers)) for name in ("mean", "scale", "weights")},
        )
        for kind, rule in header["combinations"].items()
    }
    if not layers:
        raise ValueError("it has no layers")
    if len({layer.scale is None for layer in layers}) > 1:
        raise ValueError("some of its layers are standardised, and others are not")
    return Model(layers, classes, combinations, int(header["n_samples"]))


def calibration_to_tensors(
    calibration: ModelCalibration, model: Model
) -> tuple[dict[str, Any], Tensors]:
    """Return what describes the `calibration` of `model`, and its numbers."""
    tensors: Tensors = {}
    for kind, scores in calibration.scores.items():
        tensors[f"calibration.{kind}.scores"] = np.ascontiguousarray(scores)
        if model.classes is not None:
            tensors[f"calibration.{kind}.classes"] = calibration.classes[kind].astype(np.int64)
    if calibration.map_maxima is not None:
        tensors["calibration.map_maxima"] = calibration.map_maxima
    header = {
        "score_types": list(calibration.scores),
        "map_maxima": calibration.map_maxima is not None,
    }
    return header, tensors


def calibration_from_tensors(
    header: dict[str, Any], tensors: Tensors, model: Model
) -> ModelCalibration:
    """Return the calibration of `model` that `calibration_to_tensors` gave these of.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are not those of a calibration of the model.
    """
    classes, scores, maxima = {}, {}, None
    n_classes = 1 if model.classes is None else len(model.classes)
    for kind in header["score_types"]:
        own = _float32(tensors, f"calibration.{kind}.scores", 2)
        theirs = np.zeros(own.shape[1], dtype=np.int64)
        if model.classes is not None:
            theirs = tensors[f"calibration.{kind}.classes"]
        known = theirs.dtype == np.int64 and ((theirs >= 0) & (theirs < n_classes)).all()
        if not known or own.shape != (1 + len(model.layers), *theirs.shape):
            raise ValueError(f"calibration.{kind}: its scores and classes do not fit together")
        scores[str(kind)], classes[str(kind)] = own, theirs.astype(np.intp)
    if header["map_maxima"]:
        maxima = _float32(tensors, "calibration.map_maxima", 1)
    return ModelCalibration(classes, scores, maxima)


def _float32(tensors: Tensors, name: str, ndim: int) -> NDArray[np.float32]:
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.ndim != ndim or not np.isfinite(tensor).all():
        raise ValueError(f"{name} is not float32 of {ndim} dimension(s), or not finite")
    return tensor


def _layer(i: int, fields: dict[str, Any], tensors: Tensors) -> LayerModel:
    subspaces = _take(tensors, str(i), bool(fields["shared_components"]))
    background = _take(tensors, f"{i}.background")[0] if fields["background"] else None
    mixtures = None
    if fields["mixtures"]:
        mixtures = tuple(
            Mixture(
                tensors[f"{i}.mixture.{c}.weights"],
                tuple(_take(tensors, f"{i}.mixture.{c}")),
                int(fields["mixtures"][c]),
            )
            for c in range(len(subspaces))
        )
    grid = None if fields["grid"] is None else grid_of(fields["grid"])
    scale = _scale(i, grid, len(subspaces), tensors) if fields["standardised"] else None
    start, stop = fields["columns"]
    return LayerModel(
        name=str(fields["name"]),
        columns=slice(int(start), int(stop)),
        density=Density(tuple(subspaces), background, mixtures),
        grid=grid,
        patch=bool(fields["patch"]),
        rule=str(fields["rule"]),
        top_share=float(fields["top_share"]),
        scale=scale,
    )


def _scale(i: int, grid: Grid | None, n_classes: int, tensors: Tensors) -> PositionScale:
    mean, deviation = tensors[f"{i}.position_mean"], tensors[f"{i}.position_deviation"]
    shape = None if grid is None else (n_classes, grid.height, grid.width)
    if mean.shape != shape or deviation.shape != shape or not (deviation > 0).all():
        raise ValueError(f"{i}.position_deviation is not positive, or not of the layer's positions")
    return PositionScale(mean, deviation)


def grid_of(fields: dict[str, Any]) -> Grid:
    """Return the grid that these are the fields of."""
    down, across = fields["reach"]
    sides = {name: int(fields[name]) for name in ("channels", "height", "width")}
    return Grid(**sides, reach=(float(down), float(across)))


def _put(tensors: Tensors, prefix: str, subspaces: Sequence[Subspace]) -> bool:
    """Add the numbers of `subspaces`; return whether they share their components."""
    first = subspaces[0]
    shared = len(subspaces) > 1 and all(s.components is first.components for s in subspaces)
    stored = subspaces[:1] if shared else subspaces
    tensors[f"{prefix}.mean"] = np.stack([s.mean for s in subspaces])
    tensors[f"{prefix}.components"] = np.concatenate([s.components for s in stored])
    tensors[f"{prefix}.explained_variance"] = np.concatenate([s.explained_variance for s in stored])
    tensors[f"{prefix}.n_components"] = np.array([len(s.components) for s in subspaces])
    for name in ("noise_variance", "total_variance", "n_samples"):
        tensors[f"{prefix}.{name}"] = np.array([getattr(s, name) for s in subspaces])
    return shared


def _take(tensors: Tensors, prefix: str, shared: bool = False) -> list[Subspace]:
    """Return the subspaces under `prefix`."""
    names = ("mean", "components", "explained_variance", "n_components", "noise_variance")
    of = {name: tensors[f"{prefix}.{name}"] for name in (*names, "total_variance", "n_samples")}
    mean, components, variance, counts = (of[name] for name in names[:4])
    if mean.ndim != 2 or components.ndim != 2 or mean.shape[1] != components.shape[1]:
        raise ValueError(
            f"{prefix}.mean {mean.shape} and {prefix}.components {components.shape} do not fit "
            "together"
        )
    n_stored = counts[:1] if shared else counts
    if len(components) != n_stored.sum() or variance.shape != components.shape[:1]:
        raise ValueError(
            f"{prefix}.explained_variance has the shape {variance.shape}, beside "
            f"{n_stored.sum()} components of {components.shape}"
        )
    for name in (*names[3:], "total_variance", "n_samples"):
        if of[name].shape != (len(mean),):
            raise ValueError(f"{prefix}.{name} has the shape {of[name].shape}")
    if not ((variance > 0).all() and (of["noise_variance"] >= 0).all() and (counts >= 0).all()):
        raise ValueError(f"{prefix}: its variances are not positive and finite")
    ends = np.cumsum(n_stored)
    pieces = [slice(end - k, end) for end, k in zip(ends, n_stored, strict=True)]
    each = [(components[piece], variance[piece]) for piece in pieces]
    each = each * len(mean) if shared else each
    return [
        Subspace(
            mean=mean[c],
            components=W,
            explained_variance=variances,
            noise_variance=float(of["noise_variance"][c]),
            total_variance=float(of["total_variance"][c]),
            n_samples=int(of["n_samples"][c]),
        )
        for c, (W, variances) in enumerate(each)
    ]


def _vector(values: Any, length: int) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ValueError(f"a combination of {length} layers has the numbers {values!r}")
    return vector
