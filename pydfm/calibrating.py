"""Scores of rows that a model of several layers has not seen, made its calibration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.calibration import ModelCalibration
from pydfm.density import possible_scores
from pydfm.model import Model
from pydfm.positions import standardise_left_out

# Maps are made of about this many bytes at once.
_MAP_BYTES = 64 << 20


@dataclass(frozen=True)
class LeftOutLayers:
    """Scores of rows under their classes, fitted without them.

    Attributes
    ----------
    classes : ndarray of shape (n,)
        Places of the rows' classes among those of the model.
    scores : dict of str to ndarray of shape (L, n)
        By score type, of each layer; NaN where the others make no model.
    maps : list of ndarray of shape (n, height, width), or None
        Of each layer; NaN likewise.
    """

    classes: NDArray[np.intp]
    scores: dict[str, NDArray[np.float64]]
    maps: list[NDArray[np.float32]] | None


def calibrate_left_out(
    model: Model, found: LeftOutLayers, map_type: str | None, size: tuple[int, int] | None
) -> ModelCalibration:
    """Calibrate `model` by fitted rows that were left out.

    Parameters
    ----------
    map_type : str, optional
        The score type of the maps that were found.
    size : (int, int), optional
        Height and width of maps.
    """
    classes, scores, maxima, standard = {}, {}, None, None
    if found.maps is not None:
        standard, maxima = _maps_of_left_out(model, found, map_type, size)
    for kind, each in found.scores.items():
        finite = np.isfinite(each).all(axis=0)
        if not finite.any():
            continue
        own = each[:, finite]
        if kind == "fre" and standard is not None:
            together = model.score_maps(standard[finite]).astype(np.float64)
        elif len(each) == 1:
            together = own[0]
        elif kind in model.combinations:
            together = model.combinations[kind].combine_left_out(own)
        else:
            continue
        classes[kind] = found.classes[finite]
        scores[kind] = _as_scores(np.concatenate([together[None], own]))
    return ModelCalibration(classes, scores, maxima)


def _maps_of_left_out(
    model: Model, found: LeftOutLayers, kind: str | None, size: tuple[int, int] | None
) -> tuple[NDArray[np.float64] | None, NDArray[np.float32] | None]:
    """Return standardised maps (n, height, width), where there are, and maxima (m,) of maps."""
    assert found.maps is not None
    assert kind is not None
    assert size is not None
    read = are_finite(found.maps[0])
    if not read.any():
        return None, None
    maps = [own[read] for own in found.maps]
    if model.calibrated:
        each = [standardise_left_out(own, found.classes[read]) for own in maps]
        joined = model.join_standardised(each)
        standard = np.full((len(read), *joined.shape[1:]), np.nan)
        standard[read] = joined
        return standard, _maxima(len(joined), lambda at: model.enlarge(joined[at], size), size)
    if len(model.layers) > 1 and kind not in model.combinations:
        return None, None
    return None, _maxima(
        len(maps[0]), lambda at: model.join_maps([own[at] for own in maps], kind, size), size
    )


def calibrate_held(
    model: Model,
    rows: NDArray[Any],
    own: NDArray[np.intp],
    map_type: str | None,
    size: tuple[int, int] | None,
    n_threads: int,
) -> ModelCalibration:
    """Calibrate `model` by `rows` (n, D), of `own` classes (n,), that it was not fitted on."""
    classes: dict[str, NDArray[np.intp]] = {}
    scores: dict[str, NDArray[np.float32]] = {}
    maxima = None
    under = None if model.classes is None else own
    kinds = possible_scores(model.check_scores)
    if not kinds:
        return ModelCalibration(classes, scores, maxima)
    together = model.score(rows, kinds, n_threads, under)
    each = model.layer_scores(rows, kinds, n_threads, under)
    for t, kind in enumerate(kinds):
        classes[kind], scores[kind] = own, np.concatenate([together[[t]], each[:, t]])
    if map_type is not None and map_type in scores:
        assert size is not None

        def maps(at: slice) -> NDArray[np.float32]:
            theirs = None if under is None else under[at]
            return model.maps(rows[at], map_type, n_threads, size, classes=theirs)

        maxima = _maxima(len(rows), maps, size)
    return ModelCalibration(classes, scores, maxima)


def _maxima(
    count: int, maps: Callable[[slice], NDArray[np.floating]], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Largest values (count,) of the `maps` of pictures, which are made some at a time."""
    step = max(1, _MAP_BYTES // (8 * size[0] * size[1]))
    parts = [maps(slice(first, first + step)).max(axis=(1, 2)) for first in range(0, count, step)]
    return _as_scores(np.concatenate(parts))


def are_finite(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which of `maps` (n, height, width) are finite."""
    return np.asarray(np.isfinite(maps).all(axis=(1, 2)))


def _as_scores(values: NDArray[np.floating]) -> NDArray[np.float32]:
    most = float(np.finfo(np.float32).max)
    return np.asarray(values.clip(-most, most), dtype=np.float32)
