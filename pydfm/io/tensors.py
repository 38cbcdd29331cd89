"""A fitted model as named arrays and what JSON can hold, and back.

Tensors of a model, with C classes of k_1, ..., k_C components and D features, under a prefix:

- ``mean`` (C, D), ``n_components`` (C,), ``components`` (k_1 + ... + k_C, D) and
  ``explained_variance`` (k_1 + ... + k_C,);
- ``noise_variance``, ``total_variance``, ``variance_error`` and ``n_samples`` (C,).

Where the classes share their components, these are there once. The prefix is ``layer.I`` for the
classes of layer I, ``layer.I.background`` for all rows together, and ``layer.I.mixture.C`` for the
Gaussians of the mixture of class C, with its ``weights``. Where standardised maps score images,
each layer has ``position_mean`` and ``position_deviation`` (C, height, width). The description has
the shares of the positions that make scores of such maps (``top_shares``), and the scales of the
maps that are shown (``map_scales`` of each layer).

Held-out scores have, by score type, ``held_out.TYPE.scores`` (1 + L, n), float32,
``held_out.TYPE.places`` (n,), where the rows stood among those that were fitted, and, where the
model has classes, ``held_out.TYPE.classes`` (n,); with groups, ``held_out.TYPE.units`` (n,); held
out in folds, ``held_out.TYPE.folds`` (n,); and, with maps, ``held_out.map_maxima`` (m,), float32.
The model of fold K has the tensors of a model behind ``fold.K.``.

Files of before had no places, units and folds: each row was a unit of its own. They had no
``top_shares``: one share made scores as it was. They had no ``map_scales``: the maps that were
shown were the standardised ones, or those of layers by the scale of their scores, as they still
are.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.grid import Grid
from pydfm.model.anomaly_map import MapScale, PositionScale, TopShares
from pydfm.model.fusion import Combination
from pydfm.model.held_out import FoldModel, HeldOutSample, HeldOutScores
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.parameters import PATCH_RULES
from pydfm.stats.density import Density
from pydfm.stats.mixture import Mixture
from pydfm.stats.scores import check_score_types
from pydfm.stats.subspace import Subspace

Tensors = dict[str, NDArray[Any]]

LAYER: Final = "layer."
HELD_OUT: Final = "held_out."
FOLD: Final = "fold."
"""What the names of a model's tensors begin with, those of its held-out scores, and of folds."""

_INTEGERS = ("n_components", "n_samples")
_NUMBERS = ("noise_variance", "total_variance", "variance_error", "n_samples")


def model_to_tensors(model: Model) -> tuple[dict[str, Any], Tensors]:
    """Return the description of `model`, and its arrays."""
    tensors: Tensors = {}
    layers = []
    for i, layer in enumerate(model.layers):
        density, prefix = layer.density, f"{LAYER}{i}"
        shared = _put(tensors, prefix, density.subspaces)
        background = density.background
        if background is not None:
            _put(tensors, f"{prefix}.background", [background])
        for c, mixture in enumerate(density.mixtures or ()):
            _put(tensors, f"{prefix}.mixture.{c}", mixture.gaussians)
            tensors[f"{prefix}.mixture.{c}.weights"] = mixture.weights
        if layer.scale is not None:
            tensors[f"{prefix}.position_mean"] = layer.scale.mean
            tensors[f"{prefix}.position_deviation"] = layer.scale.deviation
        layers.append(
            {
                "name": layer.name,
                "columns": [layer.columns.start, layer.columns.stop],
                "grid": None if layer.grid is None else asdict(layer.grid),
                "patch": layer.patch,
                "rule": layer.rule,
                "top_share": layer.top_share,
                "map_scales": {kind: asdict(own) for kind, own in layer.map_scales.items()},
                "standardised": layer.scale is not None,
                "standardised_score": None if layer.scale is None else layer.scale.score_type,
                "shared_components": shared,
                "background": density.together is not None,
                "mixtures": [mixture.n_samples for mixture in density.mixtures or ()],
            }
        )
    header = {
        "layers": layers,
        "classes": model.classes,
        "combinations": {kind: asdict(rule) for kind, rule in model.combinations.items()},
        "n_samples": model.n_samples,
        "top_shares": None if model.top is None else asdict(model.top),
    }
    # safetensors writes arrays of another layout wrongly, without an error.
    return header, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def model_from_tensors(header: dict[str, Any], tensors: Tensors) -> Model:
    """Return the model that `model_to_tensors` described.

    Raises
    ------
    KeyError, TypeError, ValueError
        If these are not the description and the arrays of a model.
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
    top = _top_shares(header.get("top_shares"), n_classes)
    return Model(layers, classes, combinations, int(header["n_samples"]), top)


def held_out_to_tensors(held_out: HeldOutScores, model: Model) -> tuple[dict[str, Any], Tensors]:
    """Return the description of the held-out scores of `model`, and their arrays."""
    tensors: Tensors = {}
    for kind, sample in held_out.samples.items():
        tensors[f"{HELD_OUT}{kind}.scores"] = sample.scores
        tensors[f"{HELD_OUT}{kind}.places"] = sample.places
        if model.classes is not None:
            tensors[f"{HELD_OUT}{kind}.classes"] = sample.classes
        if sample.grouped:
            tensors[f"{HELD_OUT}{kind}.units"] = sample.units
        if held_out.folds:
            tensors[f"{HELD_OUT}{kind}.folds"] = sample.folds
    tensors = {
        name: own if own.dtype == np.float32 else own.astype(np.int64)
        for name, own in tensors.items()
    }
    if held_out.map_maxima is not None:
        tensors[f"{HELD_OUT}map_maxima"] = held_out.map_maxima
    header: dict[str, Any] = {
        "score_types": list(held_out.samples),
        "map_maxima": held_out.map_maxima is not None,
    }
    if held_out.folds:
        folds: list[dict[str, Any] | None] = []
        header["folds"] = folds
        for k, fold in enumerate(held_out.folds):
            if fold is None:
                folds.append(None)
                continue
            described, own = model_to_tensors(fold.model)
            folds.append({"classes": fold.classes.tolist(), "model": described})
            tensors |= {f"{FOLD}{k}.{name}": tensor for name, tensor in own.items()}
    if held_out.names:
        header["names"] = [[place, name] for place, name in held_out.names.items()]
    return header, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def held_out_from_tensors(header: dict[str, Any], tensors: Tensors, model: Model) -> HeldOutScores:
    """Return the held-out scores of `model` that `held_out_to_tensors` described.

    Raises
    ------
    KeyError, TypeError, ValueError
        If these are not held-out scores of the model.
    """
    samples, maxima = {}, None
    folds: list[FoldModel | None] = []
    n_classes = 1 if model.classes is None else len(model.classes)
    for k, described in enumerate(header.get("folds", [])):
        prefix = f"{FOLD}{k}."
        theirs = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        folds.append(None if described is None else _fold(described, theirs, model))
    for kind in header["score_types"]:
        name = f"{HELD_OUT}{kind}"
        scores = _float32(tensors, f"{name}.scores", 2)
        n = scores.shape[1]
        if len(scores) != 1 + len(model.layers):
            raise ValueError(f"{name}: its scores are not those of all layers")
        zeros, own = np.zeros(n, dtype=np.int64), np.arange(n)
        classes = tensors[f"{name}.classes"] if model.classes is not None else zeros
        samples[str(kind)] = HeldOutSample(
            scores,
            _integers(f"{name}.classes", classes, n, n_classes),
            _integers(f"{name}.units", tensors.get(f"{name}.units", own), n),
            _integers(f"{name}.places", tensors.get(f"{name}.places", own), n),
            _integers(f"{name}.folds", tensors[f"{name}.folds"] if folds else zeros, n, len(folds)),
        )
    if header["map_maxima"]:
        maxima = _float32(tensors, f"{HELD_OUT}map_maxima", 1)
    names = {int(place): str(name) for place, name in header.get("names", [])}
    return HeldOutScores(samples, maxima, tuple(folds), names)


def _fold(described: dict[str, Any], tensors: Tensors, model: Model) -> FoldModel:
    own = model_from_tensors(described["model"], tensors)
    n_classes = 1 if model.classes is None else len(model.classes)
    classes = np.asarray(described["classes"], dtype=np.int64)
    fits = (own.n_classes, len(own.layers), own.n_features) == (
        len(classes),
        len(model.layers),
        model.n_features,
    )
    if not fits:
        raise ValueError("the model of a fold and its classes do not fit together")
    return FoldModel(own, _integers("its classes of a fold", classes, len(classes), n_classes))


def _integers(
    name: str, values: NDArray[Any], length: int, most: int | None = None
) -> NDArray[np.intp]:
    known = values.dtype == np.int64 and values.shape == (length,) and (values >= 0).all()
    if not known or (most and (values >= most).any()):
        raise ValueError(f"{name}: not {length} integers, or out of their range")
    return values.astype(np.intp)


def grid_from(fields: dict[str, Any]) -> Grid:
    """Return the grid with these fields."""
    down, across = fields["reach"]
    sides = {name: int(fields[name]) for name in ("channels", "height", "width")}
    return Grid(**sides, reach=(float(down), float(across)))


def _float32(tensors: Tensors, name: str, ndim: int) -> NDArray[np.float32]:
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.ndim != ndim or not np.isfinite(tensor).all():
        raise ValueError(f"{name} is not float32 of {ndim} dimension(s), or not finite")
    return tensor


def _layer(i: int, fields: dict[str, Any], tensors: Tensors) -> LayerModel:
    prefix = f"{LAYER}{i}"
    subspaces = _take(tensors, prefix, bool(fields["shared_components"]))
    background = _take(tensors, f"{prefix}.background")[0] if fields["background"] else None
    mixtures = None
    if fields["mixtures"]:
        mixtures = tuple(
            Mixture(
                tensors[f"{prefix}.mixture.{c}.weights"],
                tuple(_take(tensors, f"{prefix}.mixture.{c}")),
                int(fields["mixtures"][c]),
            )
            for c in range(len(subspaces))
        )
    grid = None if fields["grid"] is None else grid_from(fields["grid"])
    scale = None
    if fields["standardised"]:
        kind = check_score_types(fields.get("standardised_score", "fre"))[0]
        scale = _scale(prefix, grid, len(subspaces), tensors, kind)
    start, stop = fields["columns"]
    if not isinstance(fields["patch"], bool) or (fields["patch"] and grid is None):
        raise ValueError(f"its layer has patch {fields['patch']!r}, which it cannot have")
    if fields["rule"] not in PATCH_RULES and fields["rule"] != "calibrated":
        raise ValueError(f"its layer has the unknown rule {fields['rule']!r}")
    return LayerModel(
        name=str(fields["name"]),
        columns=slice(int(start), int(stop)),
        density=Density(tuple(subspaces), background, mixtures),
        grid=grid,
        patch=bool(fields["patch"]),
        rule=str(fields["rule"]),
        top_share=float(fields["top_share"]),
        scale=scale,
        map_scales={
            check_score_types(kind)[0]: _map_scale(prefix, own, len(subspaces))
            for kind, own in fields.get("map_scales", {}).items()
        },
    )


def _map_scale(prefix: str, fields: dict[str, Any], n_classes: int) -> MapScale:
    scale = MapScale(*(np.asarray(fields[name], dtype=float) for name in ("offset", "divisor")))
    known = all(
        own.shape == (n_classes,) and np.isfinite(own).all()
        for own in (scale.offset, scale.divisor)
    )
    if not known or not (scale.divisor > 0).all():
        raise ValueError(f"{prefix} has the scale of maps {fields!r}, not one for each class")
    return scale


def _top_shares(fields: dict[str, Any] | None, n_classes: int) -> TopShares | None:
    if fields is None:
        return None
    shares = tuple(float(share) for share in fields["shares"])
    mean, deviation = (np.asarray(fields[name], dtype=float) for name in ("mean", "deviation"))
    known = bool(shares) and all(0 <= share <= 1 for share in shares)
    known &= mean.shape == deviation.shape == (n_classes, len(shares))
    if (
        not known
        or not np.isfinite(mean).all()
        or not ((deviation > 0) & np.isfinite(deviation)).all()
    ):
        raise ValueError(f"its top_shares are {fields!r}, not shares with means and deviations")
    return TopShares(shares, mean, deviation)


def _scale(
    prefix: str, grid: Grid | None, n_classes: int, tensors: Tensors, kind: str
) -> PositionScale:
    mean, deviation = tensors[f"{prefix}.position_mean"], tensors[f"{prefix}.position_deviation"]
    shape = None if grid is None else (n_classes, grid.height, grid.width)
    if mean.shape != shape or deviation.shape != shape or not (deviation > 0).all():
        raise ValueError(
            f"{prefix}.position_deviation is not positive, or not of the layer's positions"
        )
    return PositionScale(mean, deviation, kind)


def _put(tensors: Tensors, prefix: str, subspaces: Sequence[Subspace]) -> bool:
    """Add the arrays of `subspaces`; return whether they share their components."""
    first = subspaces[0]
    shared = len(subspaces) > 1 and all(s.components is first.components for s in subspaces)
    stored = subspaces[:1] if shared else subspaces
    tensors[f"{prefix}.mean"] = np.stack([s.mean for s in subspaces])
    tensors[f"{prefix}.components"] = np.concatenate([s.components for s in stored])
    tensors[f"{prefix}.explained_variance"] = np.concatenate([s.explained_variance for s in stored])
    tensors[f"{prefix}.n_components"] = np.array([len(s.components) for s in subspaces])
    for name in _NUMBERS:
        tensors[f"{prefix}.{name}"] = np.array([getattr(s, name) for s in subspaces])
    return shared


def _take(tensors: Tensors, prefix: str, shared: bool = False) -> list[Subspace]:
    """Return the subspaces under `prefix`."""
    names = ("mean", "components", "explained_variance", "n_components", *_NUMBERS)
    of = {name: tensors[f"{prefix}.{name}"] for name in names}
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
    for name in names[3:]:
        if of[name].shape != (len(mean),):
            raise ValueError(f"{prefix}.{name} has the shape {of[name].shape}")
    not_negative = [of[name] for name in ("noise_variance", "variance_error", "n_components")]
    if not ((variance > 0).all() and all((own >= 0).all() for own in not_negative)):
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
            variance_error=float(of["variance_error"][c]),
        )
        for c, (W, variances) in enumerate(each)
    ]


def _vector(values: Any, length: int) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ValueError(f"a combination of {length} layers has the numbers {values!r}")
    return vector
