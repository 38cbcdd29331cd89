"""Held-out scores: those of normal rows under models that have not seen them.

They are what p-values, thresholds and standardised maps come from. Fitted rows are left out one by
one (`pydfm.stats.leave_one_out`) or in folds; rows of ``calibration="split"`` were never fitted.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.model.anomaly_map import standardise_held_out
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.model.row_scores import RowScores
from pydfm.model.training import TrainingState
from pydfm.stats.density import DensityFit, fit_density, possible_scores
from pydfm.stats.leave_one_out import Reduction
from pydfm.stats.scores import CORE_SCORES, SCORES

# Maps are made of about this many bytes at once.
_MAP_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class HeldOutScores:
    """Held-out scores under a model, of all types that it has.

    Attributes
    ----------
    classes : dict of str to ndarray of shape (n,)
        By score type, the places of the rows' classes among those of the model.
    scores : dict of str to ndarray of shape (1 + L, n), float32
        The score of all layers together, and that of each of L layers.
    map_maxima : ndarray of shape (m,), float32, or None
        The largest value of the map of each image.
    """

    classes: dict[str, NDArray[np.intp]]
    scores: dict[str, NDArray[np.float32]]
    map_maxima: NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Held-out scores of one layer, under the rows' own classes.

    Attributes
    ----------
    classes : ndarray of shape (n,)
        Places of the rows' classes among those of the model.
    places : ndarray of shape (n,)
        With the class, these identify a row: it has the same in every layer.
    scores : dict of str to ndarray of shape (n,)
        By score type; NaN where the other rows make no model.
    maps : ndarray of shape (n, height, width), float32, or None
        Scores of the positions; NaN where the other rows make no model.
    """

    classes: NDArray[np.intp]
    places: NDArray[np.intp]
    scores: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class AllLayersScores:
    """Held-out scores of all layers, of the rows that every layer has.

    Attributes
    ----------
    classes : ndarray of shape (n,)
        Places of the rows' classes among those of the model.
    scores : dict of str to ndarray of shape (L, n)
        By score type; NaN where the other rows make no model.
    maps : list of ndarray of shape (n, height, width), or None
        One for each layer; NaN likewise.
    """

    classes: NDArray[np.intp]
    scores: dict[str, NDArray[np.float64]]
    maps: list[NDArray[np.float32]] | None


@dataclass(frozen=True, eq=False)
class ModelFit:
    """A training state with the fits of its layers: what held-out scores are computed from.

    Attributes
    ----------
    state : TrainingState
    order : list of int
        The number of each class of the model.
    layers : tuple of LayerModel
    fits : tuple of DensityFit
        One for each layer.
    n_threads : int
    """

    state: TrainingState
    order: list[int]
    layers: tuple[LayerModel, ...]
    fits: tuple[DensityFit, ...]
    n_threads: int

    def held_out(self) -> AllLayersScores:
        """Return the held-out scores of fitted rows, by each layer."""
        parts = [self._of_layer(i) for i in range(len(self.layers))]
        # The rows that every layer has in its sample.
        keys = [np.stack([part.classes, part.places], axis=1) for part in parts]
        names = [key.view([("class", key.dtype), ("place", key.dtype)])[:, 0] for key in keys]
        common = functools.reduce(np.intersect1d, names)
        picks = [np.argsort(name)[np.searchsorted(np.sort(name), common)] for name in names]
        kinds = [k for k in parts[0].scores if all(k in part.scores for part in parts)]
        scores = {
            kind: np.stack([p.scores[kind][pick] for p, pick in zip(parts, picks, strict=True)])
            for kind in kinds
        }
        maps = [p.maps[pick] for p, pick in zip(parts, picks, strict=True) if p.maps is not None]
        return AllLayersScores(parts[0].classes[picks[0]], scores, maps or None)

    def forget_pairs(self) -> "ModelFit":
        """Return this fit without the eigenpairs, which take as much memory as all else."""
        fits = tuple(
            replace(fit, fits={c: one.forget_pairs() for c, one in fit.fits.items()})
            for fit in self.fits
        )
        return replace(self, fits=fits)

    def held_rows(self) -> tuple[NDArray[Any], NDArray[np.intp]] | None:
        """Return rows (n, D) that were not fitted, and their classes (n,); None without any."""
        held = self.state.held
        if held is None or held.n_rows == 0:
            return None
        _, rows, numbers = held.take()
        return rows, self._places()[numbers]

    def _places(self) -> NDArray[np.intp]:
        """Return the places among the model's classes, by the number of the class."""
        places = np.zeros(max(self.order) + 1, dtype=np.intp)
        places[self.order] = np.arange(len(self.order))
        return places

    def _of_layer(self, i: int) -> LayerScores:
        if self.state.settings.n_folds > 1:
            found = self._by_folds(i)
        else:
            reduce = None
            if self.state.settings.map_type is not None:
                grid = self.layers[i].grid
                assert grid is not None
                reduce = grid.energies
            found = _leave_one_out(self.fits[i], self.n_threads, reduce)
        return replace(found, classes=self._places()[found.classes])

    def _by_folds(self, i: int) -> LayerScores:
        """Score rows of each fold under the model of the others."""
        state, settings, layer = self.state, self.state.settings, self.layers[i]
        places, rows, classes = state.fold_rows[i].take()
        scores = {kind: np.full(len(places), np.nan) for kind in SCORES}
        map_type, maps = settings.map_type, None
        if map_type is not None:
            assert layer.grid is not None
            shape = (len(places), layer.grid.height, layer.grid.width)
            maps = np.full(shape, np.nan, dtype=np.float32)
        for fold in range(settings.n_folds):
            others = [f for f in range(settings.n_folds) if f != fold]
            cells = state.cells_of(i, others, self.n_threads)
            n_rows = sum(cell.n_samples for cell in cells.values())
            if n_rows < 2:
                continue
            wanted = settings.n_components
            if wanted is not None and wanted >= 1:
                wanted = min(int(wanted), n_rows, layer.density.n_features)
            order = _present(cells, settings.tied)
            density = fit_density(
                cells,
                order.tolist(),
                n_components=wanted,
                regularization=settings.regularization,
                tied=settings.tied,
                mixture_rows=state.mixture_rows_of(i, others),
                random_state=settings.random_state,
                n_threads=self.n_threads,
                quiet=True,
            ).density
            out = (places % settings.n_folds == fold) & np.isin(classes, order)
            if not out.any():
                continue
            model = replace(layer, density=density, columns=slice(0, rows.shape[1]))
            own = np.searchsorted(order, classes[out]) if len(density.subspaces) > 1 else None
            kinds = possible_scores(functools.partial(density.check_scores, classes=None))
            found = model.score(rows[out], kinds, self.n_threads, own)[0]
            for kind, theirs in zip(kinds, found, strict=True):
                scores[kind][out] = theirs
            if maps is not None and map_type in kinds:
                maps[out] = model.maps(rows[out], map_type, self.n_threads, own)
        return LayerScores(classes, places, scores, maps)


@dataclass(frozen=True, eq=False)
class PendingScores:
    """Held-out scores that are computed when they are first asked for.

    Attributes
    ----------
    fit : ModelFit
    found : AllLayersScores or None
        Where the fit itself needed them.
    """

    fit: ModelFit
    found: AllLayersScores | None

    def compute(self, model: Model) -> HeldOutScores:
        """Return the held-out scores under `model`, which is that of the fit."""
        state = self.fit.state
        size = None if state.spec is None else state.spec.preprocessing.size
        map_type = state.settings.map_type
        if not state.settings.split:
            found = self.found or self.fit.held_out()
            return _of_fitted(model, found, map_type, size)
        held = self.fit.held_rows()
        if held is None:
            return HeldOutScores({}, {}, None)
        return _of_held(model, *held, map_type, size, self.fit.n_threads)


def are_finite(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which of `maps` (n, height, width) are finite."""
    return np.asarray(np.isfinite(maps).all(axis=(1, 2)))


def _present(cells: Any, tied: bool) -> NDArray[np.intp]:
    """Return the numbers of the classes that have rows, ascending."""
    if tied:
        return np.flatnonzero(cells[0].counts())
    return np.array(sorted(c for c, cell in cells.items() if cell.n_samples), dtype=np.intp)


def _leave_one_out(fit: DensityFit, n_threads: int, reduce: Reduction | None) -> LayerScores:
    """Score rows of a density, each under its class fitted without it."""
    parts = [
        (c, *one.held_out(n_threads, reduce))
        for c, one in sorted(fit.fits.items())
        if one.spectrum.rows.n_samples
    ]
    places = np.concatenate([part[1] for part in parts])
    scores = np.concatenate([part[3] for part in parts], axis=1)
    if fit.tied:
        classes = np.concatenate([part[2] for part in parts])
    else:
        classes = np.repeat([part[0] for part in parts], [len(part[1]) for part in parts])
    maps = [part[4] for part in parts if part[4] is not None]
    core = dict(zip(CORE_SCORES, scores, strict=True))
    named = {
        kind: np.asarray(score.value(*(core[name] for name in score.inputs)))
        for kind, score in SCORES.items()
        if score.exact_held_out and not score.background
    }
    return LayerScores(classes, places, named, np.concatenate(maps) if maps else None)


def _of_fitted(
    model: Model, found: AllLayersScores, map_type: str | None, size: tuple[int, int] | None
) -> HeldOutScores:
    """Combine the layers' held-out scores of fitted rows."""
    classes, scores, maxima, standard = {}, {}, None, None
    if found.maps is not None:
        standard, maxima = _maps_of_fitted(model, found, map_type, size)
    for kind, each in found.scores.items():
        finite = np.isfinite(each).all(axis=0)
        if not finite.any():
            continue
        own = each[:, finite]
        if model.by_maps(kind) and standard is not None:
            together = model.score_maps(standard[finite]).astype(np.float64)
        elif len(each) == 1:
            together = own[0]
        elif kind in model.combinations:
            together = model.combinations[kind].combine_held_out(own)
        else:
            continue
        classes[kind] = found.classes[finite]
        scores[kind] = _as_scores(np.concatenate([together[None], own]))
    return HeldOutScores(classes, scores, maxima)


def _maps_of_fitted(
    model: Model, found: AllLayersScores, kind: str | None, size: tuple[int, int] | None
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
        each = [standardise_held_out(own, found.classes[read]) for own in maps]
        joined = model.join_standardised(each)
        standard = np.full((len(read), *joined.shape[1:]), np.nan)
        standard[read] = joined
        return standard, _maxima(len(joined), lambda at: model.enlarge(joined[at], size), size)
    if len(model.layers) > 1 and kind not in model.combinations:
        return None, None
    return None, _maxima(
        len(maps[0]), lambda at: model.join_maps([own[at] for own in maps], kind, size), size
    )


def _of_held(
    model: Model,
    rows: NDArray[Any],
    own: NDArray[np.intp],
    map_type: str | None,
    size: tuple[int, int] | None,
    n_threads: int,
) -> HeldOutScores:
    """Score `rows` (n, D), of `own` classes (n,), that the model was not fitted on."""
    classes: dict[str, NDArray[np.intp]] = {}
    scores: dict[str, NDArray[np.float32]] = {}
    maxima = None
    under = None if model.classes is None else own
    kinds = possible_scores(model.check_scores)
    if not kinds:
        return HeldOutScores(classes, scores, maxima)
    found = RowScores(model, rows, n_threads, under)
    together, each = found.scores(kinds), found.layer_scores(kinds)
    for t, kind in enumerate(kinds):
        classes[kind], scores[kind] = own, np.concatenate([together[[t]], each[:, t]])
    if map_type is not None and map_type in scores:
        assert size is not None

        def maps(at: slice) -> NDArray[np.float32]:
            theirs = None if under is None else under[at]
            return RowScores(model, rows[at], n_threads, theirs).maps(map_type, size)

        maxima = _maxima(len(rows), maps, size)
    return HeldOutScores(classes, scores, maxima)


def _maxima(
    count: int, maps: Callable[[slice], NDArray[np.floating]], size: Sequence[int]
) -> NDArray[np.float32]:
    """Return the largest values (count,) of the maps of images, which are made some at a time."""
    step = max(1, _MAP_BYTES // (8 * size[0] * size[1]))
    parts = [maps(slice(first, first + step)).max(axis=(1, 2)) for first in range(0, count, step)]
    return _as_scores(np.concatenate(parts))


def _as_scores(values: NDArray[np.floating]) -> NDArray[np.float32]:
    most = float(np.finfo(np.float32).max)
    return np.asarray(values.clip(-most, most), dtype=np.float32)
