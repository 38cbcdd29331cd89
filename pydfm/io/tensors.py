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
out in folds, ``held_out.TYPE.folds`` (n,); and, with maps, ``held_out.map_maxima`` (m,), float32;
of later images, ``held_out.hashes`` (k,), uint64, of those whose hashes are known. The model of
fold K has the tensors of a model behind ``fold.K.``.

Files of before had no places, units and folds: each row was a unit of its own. They had no
``top_shares``: one share made scores as it was. They had no ``map_scales``: the maps that were
shown were the standardised ones, or those of layers by the scale of their scores, as they still
are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.grid import Grid
from pydfm.io.fields import (
    LARGEST_SCORE,
    check_shares,
    check_subspace,
    class_labels,
    fields,
    flag,
    integer,
    items,
    number,
    numbers,
    text,
)
from pydfm.model.anomaly_map import MapScale, PositionScale, TopShares
from pydfm.model.fusion import Combination
from pydfm.model.held_out import FoldModel, HeldOutSample, HeldOutScores
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.parameters import COMBINATIONS, PATCH_RULES
from pydfm.stats.density import Density
from pydfm.stats.mixture import Mixture
from pydfm.stats.scores import check_score_types
from pydfm.stats.subspace import Subspace

Tensors = dict[str, NDArray[Any]]

LAYER: Final = "layer."
HELD_OUT: Final = "held_out."
FOLD: Final = "fold."
STATE: Final = "state."
"""What the names of a model's tensors begin with, those of its held-out scores, of folds, and of
its training state (`pydfm.io.state`)."""

# A fit keeps deviations of positions from a millionth of the largest on; and what varies does so by
# more than rounding.
_LEAST_DEVIATION = 0.99e-6
_ROUNDED = 1e-20

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
    classes = class_labels(fields("its model", header)["classes"])
    described = items("its layers", header["layers"])
    layers = tuple(_layer(i, own, tensors) for i, own in enumerate(described))
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
    if not layers:
        raise ValueError("it has no layers")
    if len({layer.name for layer in layers}) < len(layers):
        raise ValueError("two of its layers have one name")
    if len({layer.scale is None for layer in layers}) > 1:
        raise ValueError("some of its layers are standardised, and others are not")
    rules = fields("its combinations", header["combinations"])
    combinations = {
        check_score_types(kind)[0]: _combination(own, len(layers)) for kind, own in rules.items()
    }
    top = _top_shares(header.get("top_shares"), n_classes)
    n_samples = integer("its n_samples", header["n_samples"], 1)
    return Model(layers, classes, combinations, n_samples, top)


def check_claims(header: Any, shapes: Mapping[str, Sequence[int]], *, recalibrated: bool) -> None:
    """Raise ValueError where tensors are larger than a model so described may have them.

    It is known before they are read, which takes the memory and the time of what a file claims.

    Parameters
    ----------
    header : dict
        The description of a model.
    shapes : mapping of str to sequence of int
        Shape of each tensor of the file, by name.
    recalibrated : bool
        Whether held-out scores are those of other rows than the fitted ones, of any number.
    """
    own = fields("its model", header)
    n_samples = integer("its n_samples", own["n_samples"], 1)
    widest, total = 0, 0
    for i, layer in enumerate(items("its layers", own["layers"])):
        of = f"{LAYER}{i}"
        columns = items(f"the columns of {of}", fields(of, layer)["columns"], 2)
        first, last = (integer(f"a column of {of}", column) for column in columns)
        widest, total = max(widest, last - first), max(total, last)
    for name, shape in shapes.items():
        prefix, _, kind = name.rpartition(".")
        fits = name.startswith((LAYER, HELD_OUT, FOLD))
        if name.startswith(STATE):  # whose own sizes are checked as it is read
            fits = len(shape) <= 2 and (len(shape) < 2 or shape[1] <= max(widest, total))
        elif name.startswith(HELD_OUT):
            fits = recalibrated or (len(shape) > 0 and shape[-1] <= n_samples)
        elif kind == "mean":  # of no more classes or Gaussians than rows, of patches too
            fits = fits and len(shape) == 2 and shape[1] <= widest and shape[0] <= n_samples * total
        elif kind == "components":
            count = shapes.get(f"{prefix}.mean", (0,))[0]
            fits = fits and len(shape) == 2 and shape[1] <= widest and shape[0] <= widest * count
        if not fits:
            raise ValueError(f"it has no place for its tensor {name!r} of the shape {list(shape)}")


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
    if len(held_out.hashes):
        tensors[f"{HELD_OUT}hashes"] = held_out.hashes
    if held_out.map_maxima is not None:
        tensors[f"{HELD_OUT}map_maxima"] = held_out.map_maxima
    header: dict[str, Any] = {
        "score_types": list(held_out.samples),
        "map_maxima": held_out.map_maxima is not None,
    }
    if held_out.map_type is not None:
        header["map_type"] = held_out.map_type
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
    samples, maxima, map_type = {}, None, None
    folds: list[FoldModel | None] = []
    n_classes = 1 if model.classes is None else len(model.classes)
    for k, described in enumerate(items("its folds", header.get("folds", []))):
        prefix = f"{FOLD}{k}."
        theirs = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        folds.append(None if described is None else _fold(described, theirs, model))
    # There may be none, where every class has too few images.
    kinds = items("its held-out score_types", header["score_types"])
    if len(check_score_types(kinds) if kinds else []) > len(set(kinds)):
        raise ValueError(f"its held-out score_types are {kinds!r}, of which one is there twice")
    for kind in kinds:
        name = f"{HELD_OUT}{kind}"
        scores = _float32(tensors, f"{name}.scores", 2)
        n = scores.shape[1]
        if len(scores) != 1 + len(model.layers):
            raise ValueError(f"{name}: its scores are not those of all layers")
        zeros, own = np.zeros(n, dtype=np.int64), np.arange(n)
        classes = tensors[f"{name}.classes"] if model.classes is not None else zeros
        samples[str(kind)] = HeldOutSample(
            scores,
            integers(f"{name}.classes", classes, n, n_classes),
            integers(f"{name}.units", tensors.get(f"{name}.units", own), n),
            _places(f"{name}.places", tensors.get(f"{name}.places", own), n),
            integers(f"{name}.folds", tensors[f"{name}.folds"] if folds else zeros, n, len(folds)),
        )
    if flag("its map_maxima", header["map_maxima"]):
        maxima = _float32(tensors, f"{HELD_OUT}map_maxima", 1)
        if samples and len(maxima) == 0:
            raise ValueError(f"{HELD_OUT}map_maxima is empty, beside held-out scores")
        if "map_type" in header:  # files of before do not tell
            map_type = check_score_types(text("its map_type", header["map_type"]))[0]
    pairs = [items("its names", own, 2) for own in items("its names", header.get("names", []))]
    names = {integer("a place", place): text("a name", name) for place, name in pairs}
    hashes = tensors.get(f"{HELD_OUT}hashes", np.zeros(0, dtype=np.uint64))
    if hashes.dtype != np.uint64 or hashes.ndim != 1:
        raise ValueError(f"{HELD_OUT}hashes is not of hashes of images")
    return HeldOutScores(samples, maxima, tuple(folds), names, map_type, hashes)


def _fold(described: dict[str, Any], tensors: Tensors, model: Model) -> FoldModel:
    own = model_from_tensors(fields("a fold", described)["model"], tensors)
    n_classes = 1 if model.classes is None else len(model.classes)
    places = items("its classes of a fold", described["classes"])
    classes = np.array([integer("a class of a fold", place, 0) for place in places], dtype=np.int64)
    fits = (own.n_classes, len(own.layers), own.n_features) == (
        len(classes),
        len(model.layers),
        model.n_features,
    )
    each = zip(own.layers, model.layers, strict=True)
    fits = fits and all(
        (a.grid, a.patch, a.columns) == (b.grid, b.patch, b.columns) for a, b in each
    )
    if not fits or len(set(places)) < len(places):
        raise ValueError("the model of a fold and its classes do not fit together")
    return FoldModel(own, integers("its classes of a fold", classes, len(classes), n_classes))


def _places(name: str, values: NDArray[Any], length: int) -> NDArray[np.intp]:
    places = integers(name, values, length)
    if len(np.unique(places)) < length:
        raise ValueError(f"{name} has one twice")
    return places


def integers(
    name: str, values: NDArray[Any], length: int, most: int | None = None
) -> NDArray[np.intp]:
    """Return `values` (length,), int64, from 0 to below `most` where that is given.

    Raises
    ------
    ValueError
        If they are others.
    """
    known = values.dtype == np.int64 and values.shape == (length,) and (values >= 0).all()
    if not known or (most and (values >= most).any()):
        raise ValueError(f"{name}: not {length} integers, or out of their range")
    return values.astype(np.intp)


def grid_from(described: dict[str, Any]) -> Grid:
    """Return the grid with these fields."""
    own = fields("a grid", described)
    down, across = items("the reach of a grid", own["reach"], 2)
    reach = number("the reach of a grid", down, 0, 1), number("the reach of a grid", across, 0, 1)
    if 0 in reach:
        raise ValueError(f"the reach of a grid is {reach}; it must be positive")
    sides = {
        name: integer(f"the {name} of a grid", own[name], 1)
        for name in ("channels", "height", "width")
    }
    return Grid(**sides, reach=reach)


def _float32(tensors: Tensors, name: str, ndim: int) -> NDArray[np.float32]:
    tensor = tensors[name]
    if tensor.dtype != np.float32 or tensor.ndim != ndim or not np.isfinite(tensor).all():
        raise ValueError(f"{name} is not float32 of {ndim} dimension(s), or not finite")
    return tensor


def _combination(described: Any, n_layers: int) -> Combination:
    own = fields("its combination", described)
    mean, scale, weights = (
        numbers(f"the {name} of its combination", own[name], (n_layers,))
        for name in ("mean", "scale", "weights")
    )
    if own["rule"] not in COMBINATIONS:
        raise ValueError(f"its combination has the unknown rule {own['rule']!r}")
    if not (scale > 0).all():
        raise ValueError("the scale of its combination is not positive")
    if n_layers == 1 or (own["rule"] != "logistic" and not (weights == 1).all()):
        raise ValueError(f"its combination of {n_layers} layers has the weights {weights}")
    offset = number("the offset of its combination", own["offset"])
    return Combination(own["rule"], mean, scale, weights, offset)


def _layer(i: int, described: Any, tensors: Tensors) -> LayerModel:
    prefix = f"{LAYER}{i}"
    own = fields(prefix, described)
    shared = flag(f"shared_components of {prefix}", own["shared_components"])
    subspaces = _take(tensors, prefix, shared)
    background = None
    if flag(f"background of {prefix}", own["background"]):
        (background,) = _take(tensors, f"{prefix}.background", count=1, like=subspaces[0])
    mixtures = None
    counts = items(f"the mixtures of {prefix}", own["mixtures"])
    if counts:
        items(f"the mixtures of {prefix}", counts, len(subspaces))
        mixtures = tuple(
            _mixture(f"{prefix}.mixture.{c}", subspace, count, tensors)
            for c, (subspace, count) in enumerate(zip(subspaces, counts, strict=True))
        )
    grid = None if own["grid"] is None else grid_from(own["grid"])
    scale = None
    if flag(f"standardised of {prefix}", own["standardised"]):
        kind = check_score_types(own.get("standardised_score", "fre"))[0]
        scale = _scale(prefix, grid, len(subspaces), tensors, kind)
    start, stop = items(f"the columns of {prefix}", own["columns"], 2)
    patch = flag(f"patch of {prefix}", own["patch"])
    if patch and grid is None:
        raise ValueError(f"patch of {prefix} is true, which it cannot be without a grid")
    rule = text(f"the rule of {prefix}", own["rule"])
    if rule not in PATCH_RULES and rule != "calibrated":
        raise ValueError(f"its layer has the unknown rule {rule!r}")
    map_scales = fields(f"the map_scales of {prefix}", own.get("map_scales", {}))
    return LayerModel(
        name=text(f"the name of {prefix}", own["name"]),
        columns=slice(
            integer(f"a column of {prefix}", start), integer(f"a column of {prefix}", stop)
        ),
        density=Density(tuple(subspaces), background, mixtures),
        grid=grid,
        patch=patch,
        rule=rule,
        top_share=number(f"the top_share of {prefix}", own["top_share"], 0, 1),
        scale=scale,
        map_scales={
            check_score_types(kind)[0]: _map_scale(prefix, values, len(subspaces))
            for kind, values in map_scales.items()
        },
    )


def _mixture(prefix: str, subspace: Subspace, count: Any, tensors: Tensors) -> Mixture:
    gaussians = tuple(_take(tensors, prefix))
    k = len(subspace.components)
    if any(g.components.shape != (k, k) for g in gaussians):
        raise ValueError(f"{prefix} is not of the {k} components of its class")
    weights = tensors[f"{prefix}.weights"]
    check_shares(prefix, weights, len(gaussians))
    return Mixture(weights, gaussians, integer(f"the rows of {prefix}", count, 1))


def _map_scale(prefix: str, described: Any, n_classes: int) -> MapScale:
    name, own = f"the scale of maps of {prefix}", fields(prefix, described)
    scale = MapScale(*(numbers(name, own[key], (n_classes,)) for key in ("offset", "divisor")))
    if not (scale.divisor > 0).all():
        raise ValueError(f"{name} is {described!r}, not positive")
    return scale


def _top_shares(described: Any, n_classes: int) -> TopShares | None:
    if described is None:
        return None
    own = fields("its top_shares", described)
    shares = tuple(number("a top_share", share, 0, 1) for share in items("shares", own["shares"]))
    shape = (n_classes, len(shares))
    mean, deviation = (
        numbers("its top_shares", own[name], shape) for name in ("mean", "deviation")
    )
    if not shares or not (deviation > 0).all():
        raise ValueError(f"its top_shares are {described!r}, not shares with positive deviations")
    return TopShares(shares, mean, deviation)


def _scale(
    prefix: str, grid: Grid | None, n_classes: int, tensors: Tensors, kind: str
) -> PositionScale:
    mean, deviation = tensors[f"{prefix}.position_mean"], tensors[f"{prefix}.position_deviation"]
    shape = None if grid is None else (n_classes, grid.height, grid.width)
    shapes = mean.shape == deviation.shape == shape
    if not shapes or not (deviation > 0).all() or not (np.abs(mean) <= LARGEST_SCORE).all():
        raise ValueError(
            f"{prefix}.position_deviation is not positive, or not of the layer's positions"
        )
    each = deviation.reshape(n_classes, -1)
    least = np.maximum(_LEAST_DEVIATION * each.max(axis=1), _ROUNDED * np.abs(mean).max())
    if not (each.min(axis=1) >= np.maximum(least, np.finfo(np.float64).tiny)).all():
        raise ValueError(f"{prefix}.position_deviation has {deviation.min():g}, which no fit gives")
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


def _take(
    tensors: Tensors,
    prefix: str,
    shared: bool = False,
    count: int | None = None,
    like: Subspace | None = None,
) -> list[Subspace]:
    """Return the subspaces under `prefix`: `count` of them, with as many features as `like`."""
    names = ("mean", "components", "explained_variance", "n_components", *_NUMBERS)
    of = {name: tensors[f"{prefix}.{name}"] for name in names}
    mean, components, variance, counts = (of[name] for name in names[:4])
    if mean.ndim != 2 or components.ndim != 2 or mean.shape[1] != components.shape[1]:
        raise ValueError(
            f"{prefix}.mean {mean.shape} and {prefix}.components {components.shape} do not fit "
            "together"
        )
    if count is not None and len(mean) != count:
        raise ValueError(f"{prefix}.mean has {len(mean)} rows, not {count}")
    if like is not None and mean.shape[1] != len(like.mean):
        raise ValueError(f"{prefix}.mean has {mean.shape[1]} features, not {len(like.mean)}")
    if counts.shape != (len(mean),) or not len(mean) or not mean.shape[1]:
        raise ValueError(f"{prefix}.n_components has the shape {counts.shape}")
    if shared and not (counts == counts[0]).all():
        raise ValueError(f"{prefix}.n_components differ, and its components are shared")
    n_stored = counts[:1] if shared else counts
    if (
        (counts < 0).any()
        or (counts > len(components)).any()
        or len(components) != n_stored.sum()
        or variance.shape != components.shape[:1]
    ):
        raise ValueError(
            f"{prefix}.explained_variance has the shape {variance.shape}, beside "
            f"{n_stored.sum()} components of {components.shape}"
        )
    for name in names[3:]:
        if of[name].shape != (len(mean),):
            raise ValueError(f"{prefix}.{name} has the shape {of[name].shape}")
    not_negative = [of[name] for name in ("noise_variance", "variance_error", "total_variance")]
    if not all(((own >= 0) & (own <= 1e300)).all() for own in not_negative):
        raise ValueError(f"{prefix}: its variances are not positive and finite")
    if ((of["noise_variance"] == 0) & (counts > 0)).any():
        raise ValueError(f"{prefix}.noise_variance is 0, beside components")
    if (of["n_samples"] < 1).any() or (of["n_samples"] > 2**53).any():
        raise ValueError(f"{prefix}.n_samples is {of['n_samples'].tolist()}; it must be at least 1")
    ends = np.cumsum(n_stored)
    pieces = [slice(end - k, end) for end, k in zip(ends, n_stored, strict=True)]
    each = [(components[piece], variance[piece]) for piece in pieces]
    for W, variances in each:
        check_subspace(prefix, mean, W, variances)
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
