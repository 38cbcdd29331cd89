"""A training state as named arrays and what JSON can hold, and back.

Tensors, under ``state.``:

- ``state.cell.I``, of the I-th cell, with its ``kept.rows`` (n, D), ``kept.classes``,
  ``kept.places`` and ``kept.units`` (n,), its ``scatter.counts`` (C,), ``scatter.means`` (C, D) and
  ``scatter.products`` (D, D), or ``scatter.sketch`` (m, D), and its ``sample``;
- ``state.fold_rows.I``, ``state.mixture_rows.I`` and ``state.held``, which are samples;
- a sample has ``rows`` (n, D), ``places``, ``tags`` and ``units`` (n,), and ``numbers`` (n,);
- ``state.units.counts`` (C,) and, with groups, ``state.units.sizes`` (sum of counts,);
- ``state.identities.hashes`` and ``state.identities.classes`` (n,), of images.

Limits of memory and seeds are not read from the file: they follow from the settings.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.extractor import FeatureSpec
from pydfm.features.inputs.labels import ClassCodes
from pydfm.io.fields import fields, flag, integer, items, number, text
from pydfm.io.tensors import STATE, Tensors, integers
from pydfm.model.model import Model
from pydfm.model.settings import Settings
from pydfm.model.training import TrainingState
from pydfm.model.units import Units
from pydfm.parameters import DEFAULTS, PARAMETERS, check_parameters
from pydfm.runtime.checks import check_choice
from pydfm.stats.accumulator import Accumulator, KeptRows
from pydfm.stats.identities import Identities
from pydfm.stats.sample import RowSample, StoredSample
from pydfm.stats.scatter import Scatter
from pydfm.stats.scores import check_score_types
from pydfm.stats.sketch import FrequentDirections

_LARGEST: Final = 1e150
_ROUNDING: Final = 1e-6
_SAMPLES: Final = ("fold_rows", "mixture_rows")


def state_to_tensors(state: TrainingState) -> tuple[dict[str, Any], Tensors]:
    """Return the description of a training state, and its arrays.

    Raises
    ------
    TypeError
        If its groups are neither numbers nor texts, which cannot be written.
    """
    state = state.compact()
    tensors: Tensors = {}
    cells = []
    for i, (key, cell) in enumerate(sorted(state.cells.items())):
        prefix = f"{STATE}cell.{i}"
        for part in cell.kept:
            for name, array in part._asdict().items():
                tensors[f"{prefix}.kept.{name}"] = _written(array)
        cells.append(
            {
                "key": list(key),
                "n_samples": cell.n_samples,
                "kept": bool(cell.kept),
                "scatter": _put_scatter(tensors, f"{prefix}.scatter", cell.scatter),
                "sample": _put_sample(tensors, f"{prefix}.sample", cell.sample),
            }
        )
    header: dict[str, Any] = {
        "settings": asdict(state.settings),
        "labelled": state.labelled,
        "classes": state.codes.labels,
        "n_samples": state.n_samples,
        "n_seen": state.n_seen,
        "names": [[first, list(names)] for first, names in state.names],
        "cells": cells,
        "held": _put_sample(tensors, f"{STATE}held", state.held),
        "units": _put_units(tensors, state.units),
        "identities": state.identities.known,
    }
    for name in _SAMPLES:
        each = sorted(getattr(state, name).items())
        header[name] = [
            {"key": list(key), "sample": _put_sample(tensors, f"{STATE}{name}.{i}", sample)}
            for i, (key, sample) in enumerate(each)
        ]
    if state.identities.known:
        hashes, classes = state.identities.take()
        tensors[f"{STATE}identities.hashes"] = hashes
        tensors[f"{STATE}identities.classes"] = _written(classes)
    return header, tensors


def state_from_tensors(
    header: Any, tensors: Tensors, spec: FeatureSpec | None, model: Model
) -> TrainingState:
    """Return the state that `state_to_tensors` described, of the rows that `model` was fitted to.

    Raises
    ------
    KeyError, TypeError, ValueError
        If these are not the description and the arrays of such a state.
    """
    own = fields("its training state", header)
    state = TrainingState.begin(spec, model.n_features, _settings(own["settings"]))
    labelled = own["labelled"]
    labelled = None if labelled is None else flag("labelled of its state", labelled)
    labels = items("the classes of its state", own["classes"])
    texts = [isinstance(label, str) for label in labels]
    if any(isinstance(label, bool) or not isinstance(label, int | str) for label in labels) or (
        len(set(labels)) < len(labels) or len(set(texts)) > 1 or bool(labels) != bool(labelled)
    ):
        raise ValueError(f"the classes of its state are {labels!r}, not different labels")
    n_seen = integer("n_seen of its state", own["n_seen"], 2)
    n_samples = integer("n_samples of its state", own["n_samples"], 2, n_seen)
    units = _units(own["units"], tensors, max(len(labels), 1))
    state = replace(
        state,
        labelled=labelled,
        codes=ClassCodes.of(labels),
        n_seen=n_seen,
        n_samples=n_samples,
        units=units,
        names=_names(own["names"], n_seen),
        identities=_identities(own["identities"], tensors, n_samples, max(len(labels), 1)),
    )
    n_cells = 1 if state.settings.tied else max(len(labels), 1)
    cells: dict[tuple[int, int, int], Accumulator] = {}
    for i, described in enumerate(items("the cells of its state", own["cells"])):
        cell = fields("a cell", described)
        layer, fold, c = _key(state, cell["key"], 3)
        if integer("the class of a cell", c) >= n_cells or (layer, fold, c) in cells:
            raise ValueError(f"its state has the cell {cell['key']!r} twice, or none like it")
        cells[layer, fold, c] = _cell(state, (layer, c), f"{STATE}cell.{i}", cell, tensors)
    samples: dict[str, dict[tuple[int, int], RowSample]] = {}
    for name in _SAMPLES:
        samples[name] = {}
        for i, described in enumerate(items(f"{name} of its state", own[name])):
            one = fields(f"one of {name}", described)
            layer, fold = _key(state, one["key"], 2)
            empty = state.empty_sample(name, layer)
            samples[name][layer, fold] = _sample(
                state, empty, f"{STATE}{name}.{i}", one["sample"], tensors, layer
            )
    held = None
    if own["held"] is not None:
        held = _sample(
            state, state.empty_sample("held"), f"{STATE}held", own["held"], tensors, None
        )
    state = replace(
        state,
        cells=cells,
        fold_rows=samples["fold_rows"],
        mixture_rows=samples["mixture_rows"],
        held=held,
    )
    _check_of(state, model)
    return state


def _check_of(state: TrainingState, model: Model) -> None:
    """Raise ValueError unless the model is one of the rows of the state."""
    counts = state.counts()
    if counts.sum() != state.n_samples or state.n_samples != model.n_samples:
        raise ValueError(f"its state is of {counts.sum()} rows, and its model of {model.n_samples}")
    classes, _ = state.classes()
    if classes != model.classes:
        raise ValueError(f"its state has the classes {classes}, and its model {model.classes}")
    for i, layer in enumerate(state.layers):
        own = [cell.n_samples for key, cell in state.cells.items() if key[0] == i]
        if sum(own) != state.n_samples * state.positions(i):
            raise ValueError(f"its state has {sum(own)} rows of the layer '{layer.name}'")


def _settings(described: Any) -> Settings:
    own = fields("the settings of its state", described)
    names = {field.name for field in dataclass_fields(Settings)}
    if set(own) != names:
        raise ValueError(f"the settings of its state are {sorted(own)}, not {sorted(names)}")
    if own["top_share"] is not None:
        shares = items("top_share of its state", own["top_share"])
        own = {**own, "top_share": tuple(number("a top_share", one, 0, 1) for one in shares)}
    check_parameters({**DEFAULTS, **{name: own[name] for name in names & set(PARAMETERS)}})
    integer("random_state of its state", own["random_state"], 0, 2**32 - 1)
    if own["held_out"] is not None:
        check_choice("held_out of its state", own["held_out"], ("loo", "kfold"))
    if own["map_type"] is not None:
        check_score_types(own["map_type"], "map_type of its state")
    if own["rule"] is not None:
        text("rule of its state", own["rule"])
    if own["max_bytes"] is not None:
        integer("max_bytes of its state", own["max_bytes"], 1)
    return Settings(**own)


def _key(state: TrainingState, value: Any, length: int) -> tuple[int, ...]:
    layer, fold, *more = items("a key of its state", value, length)
    integer("a layer of its state", layer, 0, len(state.layers) - 1)
    integer("a fold of its state", fold, 0, state.settings.n_folds - 1)
    return (layer, fold, *more)


def _cell(
    state: TrainingState,
    place: tuple[int, int],
    prefix: str,
    described: Mapping[str, Any],
    tensors: Tensors,
) -> Accumulator:
    layer, c = place
    empty, width = state.empty_cell(layer), state.n_columns(layer)
    tied = state.settings.tied
    n_classes = max(len(state.codes), 1) if tied else 1
    kept: tuple[KeptRows, ...] = ()
    if flag(f"kept of {prefix}", described["kept"]):
        rows = _rows(tensors, f"{prefix}.kept.rows", width)
        classes = _integers(tensors, f"{prefix}.kept.classes", len(rows), n_classes)
        places = _integers(tensors, f"{prefix}.kept.places", len(rows), state.n_seen)
        units = _integers(tensors, f"{prefix}.kept.units", len(rows))
        _check_units(state, f"{prefix}.kept", classes if tied else np.full_like(classes, c), units)
        kept = (KeptRows(rows, classes, places, units),)
    scatter = _scatter(described["scatter"], tensors, f"{prefix}.scatter", width, n_classes)
    n_rows = sum(len(part.rows) for part in kept)
    n_rows += 0 if scatter is None else int(scatter.counts.sum())
    if integer(f"n_samples of {prefix}", described["n_samples"]) != n_rows:
        raise ValueError(f"{prefix} has {n_rows} rows, and says {described['n_samples']}")
    sample = empty.sample
    if (described["sample"] is None) != (sample is None):
        raise ValueError(f"{prefix} has a sample, or none, against its settings")
    if sample is not None:
        of = None if tied else c
        sample = _sample(state, sample, f"{prefix}.sample", described["sample"], tensors, layer, of)
    return replace(empty, sample=sample, kept=kept, scatter=scatter, n_samples=n_rows)


def _put_scatter(tensors: Tensors, prefix: str, scatter: Scatter | None) -> dict[str, Any] | None:
    if scatter is None:
        return None
    tensors[f"{prefix}.counts"] = _written(scatter.counts)
    tensors[f"{prefix}.means"] = _written(scatter.means)
    products = scatter.products
    if isinstance(products, FrequentDirections):
        tensors[f"{prefix}.sketch"] = _written(products.rows)
        return {"size": products.size, "energy": products.energy, "error": products.error}
    tensors[f"{prefix}.products"] = _written(products)
    return {}


def _scatter(
    described: Any, tensors: Tensors, prefix: str, width: int, n_classes: int
) -> Scatter | None:
    if described is None:
        return None
    own = fields(prefix, described)
    counts = tensors[f"{prefix}.counts"]
    if counts.dtype != np.int64 or counts.ndim != 1 or not 1 <= len(counts) <= n_classes:
        raise ValueError(f"{prefix}.counts has the shape {counts.shape}")
    if (counts < 0).any() or (counts > 2**53).any() or counts.sum() < 1:
        raise ValueError(f"{prefix}.counts is {counts.tolist()}")
    means = _finite(tensors, f"{prefix}.means", (len(counts), width))
    if not own:
        products = _finite(tensors, f"{prefix}.products", (width, width))
        variances = np.diagonal(products)
        most = np.sqrt(np.maximum(variances, 0))
        if (
            (variances < 0).any()
            or not np.array_equal(products, products.T)
            or (np.abs(products) > (1 + _ROUNDING) * np.outer(most, most)).any()
        ):
            raise ValueError(f"{prefix}.products are not those of any rows")
        return Scatter(counts.astype(np.intp), means, products)
    size = integer(f"the size of {prefix}", own["size"], 1)
    rows = tensors[f"{prefix}.sketch"]
    rows = _finite(tensors, f"{prefix}.sketch", (len(rows), width))
    if len(rows) >= 2 * size:
        raise ValueError(f"{prefix}.sketch has {len(rows)} rows, beside a size of {size}")
    energy, error = (number(f"{name} of {prefix}", own[name], 0) for name in ("energy", "error"))
    return Scatter(counts.astype(np.intp), means, FrequentDirections(size, rows, energy, error))


def _put_sample(tensors: Tensors, prefix: str, sample: RowSample | None) -> dict[str, Any] | None:
    if sample is None:
        return None
    stored = sample.stored()
    if stored.rows is not None:
        for name in ("rows", "places", "tags", "units", "numbers"):
            tensors[f"{prefix}.{name}"] = _written(getattr(stored, name))
    return {"rows": stored.rows is not None, "size": stored.size, "dropped": stored.dropped}


def _sample(
    state: TrainingState,
    empty: RowSample,
    prefix: str,
    described: Any,
    tensors: Tensors,
    layer: int | None,
    c: int | None = None,
) -> RowSample:
    """Return a sample with the limits of `empty`, of rows of a layer, or of all layers (None)."""
    own = fields(prefix, described)
    size = integer(f"the size of {prefix}", own["size"], 0, sys.maxsize)
    dropped = flag(f"dropped of {prefix}", own["dropped"])
    if not flag(f"rows of {prefix}", own["rows"]):
        none = np.zeros(0, dtype=np.intp)
        return empty.restored(StoredSample(None, none, none, none, np.zeros(0), size, dropped))
    width = state.n_features if layer is None else state.n_columns(layer)
    rows = _rows(tensors, f"{prefix}.rows", width)
    n = len(rows)
    n_tags = max(len(state.codes), 1)
    tags = _integers(tensors, f"{prefix}.tags", n, n_tags)
    units = _integers(tensors, f"{prefix}.units", n)
    _check_units(state, prefix, tags if c is None else np.full_like(tags, c), units)
    numbers = _finite(tensors, f"{prefix}.numbers", (n,))
    if ((numbers < 0) | (numbers > 1)).any() or n > size:
        raise ValueError(f"{prefix} has {n} rows of at most {size}, or numbers out of [0, 1]")
    places = _integers(tensors, f"{prefix}.places", n, state.n_seen)
    return empty.restored(StoredSample(rows, places, tags, units, numbers, size, dropped))


def _put_units(tensors: Tensors, units: Units) -> dict[str, Any]:
    groups = []
    for (c, group), unit in units.numbers.items():
        if not isinstance(group, bool | int | float | str):
            raise TypeError(
                f"groups has {group!r}, a {type(group).__name__}, and a file takes numbers and "
                "texts"
            )
        groups.append([c, group, unit])
    tensors[f"{STATE}units.counts"] = _written(units.counts)
    if units.grouped:
        sizes = [np.zeros(count, dtype=np.intp) for count in units.counts]
        for own, given in zip(sizes, units.sizes, strict=False):
            own[: len(given)] = given
        tensors[f"{STATE}units.sizes"] = _written(np.concatenate([*sizes, np.zeros(0, np.intp)]))
    return {"grouped": units.grouped, "groups": groups}


def _units(described: Any, tensors: Tensors, n_classes: int) -> Units:
    own = fields("the units of its state", described)
    grouped = own["grouped"]
    grouped = None if grouped is None else flag("grouped of its state", grouped)
    counts = tensors[f"{STATE}units.counts"]
    counts = _integers(tensors, f"{STATE}units.counts", min(len(counts), n_classes), 2**53)
    numbers: dict[tuple[int, Any], int] = {}
    for one in items("the groups of its state", own["groups"]):
        c, group, unit = items("a group of its state", one, 3)
        integer("the class of a group", c, 0, len(counts) - 1)
        integer("the unit of a group", unit, 0, int(counts[c]) - 1)
        if not isinstance(group, bool | int | float | str) or (c, group) in numbers:
            raise ValueError(f"its state has the group {group!r} twice, or it is no label")
        numbers[c, group] = unit
    if not grouped:
        if numbers:
            raise ValueError("its state has groups, and says that it has none")
        return Units(counts, grouped)
    sizes = _integers(tensors, f"{STATE}units.sizes", int(counts.sum()), 2**53)
    return Units(counts, True, numbers, tuple(np.split(sizes, np.cumsum(counts)[:-1])))


def _check_units(
    state: TrainingState, name: str, classes: NDArray[np.intp], units: NDArray[np.intp]
) -> None:
    counts = state.units.counts
    if len(classes) and (classes.max() >= len(counts) or (units >= counts[classes]).any()):
        raise ValueError(f"{name}.units are not units of its state")


def _names(value: Any, n_seen: int) -> tuple[tuple[int, tuple[str, ...]], ...]:
    names, end = [], 0
    for one in items("the names of its state", value):
        first, batch = items("names of its state", one, 2)
        own = tuple(text("a name of its state", name) for name in items("its names", batch))
        end = integer("the place of a name", first, end) + len(own)
        names.append((first, own))
    if end > n_seen:
        raise ValueError(f"its state names {end} images, of {n_seen}")
    return tuple(names)


def _identities(known: Any, tensors: Tensors, n_samples: int, n_classes: int) -> Identities:
    if not flag("identities of its state", known):
        return Identities(None)
    hashes = tensors[f"{STATE}identities.hashes"]
    if hashes.dtype != np.uint64 or hashes.ndim != 1 or len(hashes) > n_samples:
        raise ValueError(f"{STATE}identities.hashes is not of at most {n_samples} images")
    classes = _integers(tensors, f"{STATE}identities.classes", len(hashes), n_classes)
    return Identities(((hashes, classes),))


def _written(array: NDArray[Any]) -> NDArray[Any]:
    if np.issubdtype(array.dtype, np.signedinteger):
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)


def _rows(tensors: Tensors, name: str, width: int) -> NDArray[Any]:
    rows = tensors[name]
    if rows.dtype not in (np.float32, np.float64) or rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name} is {rows.dtype} of {rows.shape}, not rows of {width} features")
    most = _LARGEST if rows.dtype == np.float64 else np.finfo(np.float32).max
    if len(rows) == 0 or not (np.abs(rows) <= most).all():
        raise ValueError(f"{name} is empty, or not finite")
    return rows


def _finite(tensors: Tensors, name: str, shape: Iterable[int]) -> NDArray[np.float64]:
    array = tensors[name]
    if array.dtype != np.float64 or array.shape != tuple(shape):
        raise ValueError(f"{name} is {array.dtype} of {array.shape}, not float64 of {shape}")
    if not (np.abs(array) <= _LARGEST**2).all():
        raise ValueError(f"{name} is not finite")
    return array


def _integers(
    tensors: Tensors, name: str, length: int, most: int | None = None
) -> NDArray[np.intp]:
    return integers(name, tensors[name], length, most)
