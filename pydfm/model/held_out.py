"""Held-out scores: those of normal rows under models that have not seen them.

They are what p-values, thresholds and standardised maps come from. Fitted rows are left out unit by
unit, exactly (`pydfm.stats.leave_one_out`), or in folds; rows of ``calibration="split"`` were never
fitted. A unit is a row or image, or a group of them (`pydfm.model.units`). Under folds each row has
the model of the other folds, and a new row is compared with the rows of a fold under that model
(`pydfm.conformal.calibration`), so the models of the folds stay.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.model.anomaly_map import scale_held_out, standardise_held_out
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.model.row_scores import RowScores
from pydfm.model.training import TrainingState
from pydfm.stats.accumulator import KeptRows
from pydfm.stats.density import Density, DensityFit, fit_background, fit_density, possible_scores
from pydfm.stats.scores import CORE_SCORES, SCORES

# Maps are made of about this many bytes at once.
_MAP_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class HeldOutSample:
    """Held-out scores of one type.

    Attributes
    ----------
    scores : ndarray of shape (1 + L, n), float32
        The score of all layers together, and that of each of L layers.
    classes : ndarray of shape (n,)
        Places of the rows' classes among those of the model.
    units : ndarray of shape (n,)
        Rows of a class that share one were left out together.
    places : ndarray of shape (n,)
        Where each row stood among all that came.
    folds : ndarray of shape (n,)
        Place of the fold that each row is of; 0 without folds.
    """

    scores: NDArray[np.float32]
    classes: NDArray[np.intp]
    units: NDArray[np.intp]
    places: NDArray[np.intp]
    folds: NDArray[np.intp]

    @property
    def grouped(self) -> bool:
        """Whether some units have several rows."""
        keys = np.stack([self.classes, self.units], axis=1)
        return len(np.unique(keys, axis=0)) < len(keys)


@dataclass(frozen=True, eq=False)
class FoldModel:
    """The model that the rows of a fold were scored under, which is that of the other folds.

    Attributes
    ----------
    model : Model
    classes : ndarray of shape (C',)
        Places of its classes among those of the whole model: those that other folds have rows of.
    """

    model: Model
    classes: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class HeldOutScores:
    """Held-out scores under a model, of all types that it has.

    Attributes
    ----------
    samples : dict of str to HeldOutSample
        By score type.
    map_maxima : ndarray of shape (m,), float32, or None
        The largest value of the map of each image.
    folds : tuple of FoldModel or None
        Of each fold, None where the other folds make no model; empty without folds.
    names : dict of int to str
        Names of images, by their places.
    map_type : str or None
        Score type of the maps that `map_maxima` are of; None without any, and of old files.
    hashes : ndarray of shape (k,), uint64
        Those of the images or rows of a recalibration, as far as they are known.
    """

    samples: dict[str, HeldOutSample]
    map_maxima: NDArray[np.float32] | None
    folds: tuple[FoldModel | None, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    map_type: str | None = None
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))


@dataclass(frozen=True, eq=False)
class LayerScores:
    """Held-out scores of one layer, under the rows' own classes.

    Attributes
    ----------
    classes : ndarray of shape (n,)
        Places of the rows' classes among those of the model.
    places, units, folds : ndarray of shape (n,)
        As in `HeldOutSample`; a row has the same in every layer.
    scores : dict of str to ndarray of shape (n,)
        By score type; NaN where the other rows make no model.
    maps : ndarray of shape (n, height, width), float32, or None
        Scores of the positions; NaN where the other rows make no model.
    moments : dict of str to ndarray of shape (n, 2)
        By score type that has maps, mean and mean square of an image's scores over its positions;
        NaN for mean squares of whole images, which nothing needs.
    """

    classes: NDArray[np.intp]
    places: NDArray[np.intp]
    units: NDArray[np.intp]
    folds: NDArray[np.intp]
    scores: dict[str, NDArray[np.float64]]
    maps: NDArray[np.float32] | None = None
    moments: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def of_images(self, layer: LayerModel, map_type: str | None) -> "LayerScores":
        """Return the scores of images from those of their patches, all of which are needed."""
        assert layer.grid is not None
        grid, order = layer.grid, np.argsort(self.places, kind="stable")
        _, first, counts = np.unique(self.places[order], return_index=True, return_counts=True)
        first = first[counts == grid.positions]
        each = order[first[:, None] + np.arange(grid.positions)]
        patches = {kind: own[each] for kind, own in self.scores.items()}
        maps = None
        if map_type is not None and map_type in patches:
            shape = (len(each), grid.height, grid.width)
            maps = patches[map_type].reshape(shape).astype(np.float32)
        one = order[first]
        return LayerScores(
            self.classes[one],
            self.places[one],
            self.units[one],
            self.folds[one],
            {k: layer.pool(own).astype(np.float64) for k, own in patches.items()},
            maps,
            {
                kind: np.stack([own.mean(axis=1), np.square(own).mean(axis=1)], axis=1)
                for kind, own in patches.items()
            },
        )

    def of_whole(self, layer: LayerModel) -> "LayerScores":
        """Return this of whole images, with the mean residual energy of their positions."""
        if layer.grid is None or "fre" not in self.scores:
            return self
        mean = self.scores["fre"] / layer.grid.positions
        return replace(self, moments={"fre": np.stack([mean, np.full_like(mean, np.nan)], axis=1)})


@dataclass(frozen=True, eq=False)
class AllLayersScores:
    """Held-out scores of all layers, of the rows that every layer has.

    Attributes
    ----------
    classes, places, units, folds : ndarray of shape (n,)
        As in `LayerScores`.
    scores : dict of str to ndarray of shape (L, n)
        By score type; NaN where the other rows make no model.
    maps : list of ndarray of shape (n, height, width), or None
        One for each layer; NaN likewise.
    moments : dict of str to ndarray of shape (L, n, 2)
        As in `LayerScores`.
    """

    classes: NDArray[np.intp]
    places: NDArray[np.intp]
    units: NDArray[np.intp]
    folds: NDArray[np.intp]
    scores: dict[str, NDArray[np.float64]]
    maps: list[NDArray[np.float32]] | None
    moments: dict[str, NDArray[np.float64]]

    def sample(self, scores: NDArray[np.floating], which: NDArray[np.bool_]) -> HeldOutSample:
        """Return `scores` (1 + L, m) of the rows `which` (n,), of which there are m."""
        return HeldOutSample(
            _as_scores(scores),
            self.classes[which],
            self.units[which],
            self.places[which],
            self.folds[which],
        )


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

    def held_out(self, *, background: bool = False) -> AllLayersScores:
        """Return the held-out scores of fitted rows, by each layer.

        Parameters
        ----------
        background : bool
            Whether those of score types that compare with all classes together are wanted, which
            cost as much as the others.
        """
        parts = [self._of_layer(i, background) for i in range(len(self.layers))]
        # The rows that every layer has in its sample, in the order that they came in.
        common = functools.reduce(np.intersect1d, (p.places for p in parts), parts[0].places)
        picks = []
        for part in parts:
            order = np.argsort(part.places)
            picks.append(order[np.searchsorted(part.places[order], common)])
        kinds = [k for k in parts[0].scores if all(k in part.scores for part in parts)]
        scores = {
            kind: np.stack([p.scores[kind][pick] for p, pick in zip(parts, picks, strict=True)])
            for kind in kinds
        }
        maps = [p.maps[pick] for p, pick in zip(parts, picks, strict=True) if p.maps is not None]
        moments = {
            kind: np.stack([p.moments[kind][pick] for p, pick in zip(parts, picks, strict=True)])
            for kind in kinds
            if all(kind in part.moments for part in parts)
        }
        one, pick = parts[0], picks[0]
        return AllLayersScores(
            one.classes[pick],
            common,
            one.units[pick],
            one.folds[pick],
            scores,
            maps or None,
            moments,
        )

    def forget_pairs(self) -> "ModelFit":
        """Return this fit without the eigenpairs, which take as much memory as all else."""
        fits = tuple(
            replace(fit, fits={c: one.forget_pairs() for c, one in fit.fits.items()})
            for fit in self.fits
        )
        return replace(self, fits=fits)

    def held_rows(self) -> KeptRows | None:
        """Return rows that were not fitted, of classes by their places; None without any."""
        held = self.state.held
        if held is None or held.n_rows == 0:
            return None
        places, rows, numbers, units = held.take()
        known = np.isin(numbers, self.order)  # or the class has no fitted row
        kept = KeptRows(rows, numbers, places, units).pick(known)
        return kept._replace(classes=self._class_places()[kept.classes])

    def fold_models(self, model: Model) -> tuple[FoldModel | None, ...]:
        """Return the models of the folds, whose layers are combined as those of `model`."""
        if self.state.settings.n_folds == 1:
            return ()
        places = self._class_places()
        found: list[FoldModel | None] = []
        for numbers, densities in self._folds:
            if not densities:
                found.append(None)
                continue
            own = places[numbers]
            layers = tuple(
                layer.with_density(density, own)
                for layer, density in zip(model.layers, densities, strict=True)
            )
            classes = None if model.classes is None else [model.classes[c] for c in own]
            top = None if model.top is None else model.top.of_classes(own)
            found.append(FoldModel(replace(model, layers=layers, classes=classes, top=top), own))
        return tuple(found)

    @cached_property
    def _folds(self) -> list[tuple[NDArray[np.intp], list[Density]]]:
        """Of each fold, the classes that others have rows of, and the density of each layer."""
        settings, found = self.state.settings, []
        for fold in range(settings.n_folds):
            others = [f for f in range(settings.n_folds) if f != fold]
            order, densities = np.zeros(0, dtype=np.intp), []
            for i, layer in enumerate(self.layers):
                cells = self.state.cells_of(i, others, self.n_threads)
                n_rows = sum(cell.n_samples for cell in cells.values())
                if n_rows < 2:
                    break
                wanted = settings.n_components
                if wanted is not None and wanted >= 1:
                    wanted = min(int(wanted), n_rows, layer.density.n_features)
                # In the order of the model's classes.
                order = np.array([c for c in self.order if _has_rows(cells, c, settings.tied)])
                fit = fit_density(
                    cells,
                    order.tolist(),
                    n_components=wanted,
                    regularization=settings.regularization,
                    tied=settings.tied,
                    mixture_rows=self.state.mixture_rows_of(i, others),
                    random_state=settings.random_state,
                    n_threads=self.n_threads,
                    quiet=True,
                )
                densities.append(fit.density)
            found.append((order, densities))
        return found

    def _class_places(self) -> NDArray[np.intp]:
        """Return the places among the model's classes, by the number of the class."""
        places = np.zeros(max(self.order) + 1, dtype=np.intp)
        places[self.order] = np.arange(len(self.order))
        return places

    def _of_layer(self, i: int, background: bool) -> LayerScores:
        layer, map_type = self.layers[i], self.state.settings.map_type
        if self.state.settings.n_folds > 1:
            found = self._by_folds(i)
        else:
            found = self._left_out(i, background)
        found = replace(found, classes=self._class_places()[found.classes])
        return found.of_images(layer, map_type) if layer.patch else found.of_whole(layer)

    def _left_out(self, i: int, background: bool) -> LayerScores:
        """Score fitted rows, each under its class fitted without the row's unit."""
        fit, layer, reduce = self.fits[i], self.layers[i], None
        if self.state.settings.map_type is not None and not layer.patch:
            assert layer.grid is not None
            reduce = layer.grid.energies
        positions = layer.grid.positions if layer.patch and layer.grid is not None else 1
        parts = []
        for c, one in sorted(fit.fits.items()):
            if one.spectrum.rows.n_samples:
                complete = functools.partial(self._complete, None if fit.tied else c, positions)
                found = one.held_out(self.n_threads, complete, reduce)
                own = found.classes if fit.tied else np.full_like(found.classes, c)
                parts.append(found._replace(classes=own))
        classes, places, units = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("classes", "places", "units")
        )
        each = np.concatenate([part.scores for part in parts], axis=1)
        core = dict(zip(CORE_SCORES, each, strict=True))
        scores = {
            kind: np.asarray(score.value(*(core[name] for name in score.inputs)))
            for kind, score in SCORES.items()
            if not score.background
        }
        if background and len(self.order) > 1:
            keys = np.stack([classes, units], axis=1)
            _, together = np.unique(keys, axis=0, return_inverse=True)
            rows = KeptRows(
                np.concatenate([part.rows for part in parts]),
                np.zeros_like(classes),
                places,
                together.reshape(-1),
            )
            settings = self.state.settings
            all_classes = fit_background(
                self.state.cells_of(i, [0], self.n_threads),
                n_components=settings.n_components,
                regularization=settings.regularization,
                n_threads=self.n_threads,
            )
            theirs = dict(
                zip(CORE_SCORES, all_classes.scores_without(rows, self.n_threads), strict=True)
            )
            for kind, score in SCORES.items():
                if score.background:
                    inputs = [of[name] for of in (core, theirs) for name in score.inputs]
                    scores[kind] = np.asarray(score.value(*inputs))
        maps = [part.reduced for part in parts if part.reduced is not None]
        return LayerScores(
            classes,
            places,
            units,
            np.zeros_like(classes),
            scores,
            np.concatenate(maps) if maps else None,
        )

    def _complete(
        self,
        c: int | None,
        positions: int,
        classes: NDArray[np.intp],
        units: NDArray[np.intp],
    ) -> NDArray[np.bool_]:
        """Return which of some rows (n,), of class `c` or of their own, are of whole units."""
        own = classes if c is None else np.full_like(classes, c)
        return self.state.units.complete(own, units, positions)

    def _by_folds(self, i: int) -> LayerScores:
        """Score rows of each fold under the model of the others."""
        state, layer = self.state, self.layers[i]
        map_type = state.settings.map_type
        parts = []
        for fold, (order, densities) in enumerate(self._folds):
            sample = state.fold_rows.get((i, fold))
            if sample is None or sample.n_rows == 0 or not densities:
                continue
            places, rows, classes, units = sample.take()
            known = np.isin(classes, order)
            kept = KeptRows(rows, classes, places, units).pick(known)
            if len(kept.rows) == 0:
                continue
            density = densities[i]
            columns = slice(0, kept.rows.shape[1])
            model = LayerModel(layer.name, columns, density, grid=layer.grid)
            own = None
            if len(density.subspaces) > 1:
                own = np.array([order.tolist().index(c) for c in kept.classes.tolist()])
            kinds = possible_scores(functools.partial(density.check_scores, classes=None))
            each = density.score(np.asarray(kept.rows), kinds, self.n_threads, own)[0]
            scores = dict(zip(kinds, each.astype(np.float64), strict=True))
            maps = None
            if map_type is not None and not layer.patch:
                exact = model.maps(np.asarray(kept.rows), map_type, self.n_threads, own)
                maps = exact.astype(np.float32)
            folds = np.full(len(kept.rows), fold, dtype=np.intp)
            parts.append(LayerScores(kept.classes, kept.places, kept.units, folds, scores, maps))
        return _joined(parts)


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

    def compute(self, model: Model, *, background: bool = False) -> HeldOutScores:
        """Return the held-out scores under `model`, which is that of the fit.

        Parameters
        ----------
        model : Model
        background : bool
            As in `ModelFit.held_out`.
        """
        state = self.fit.state
        size = None if state.spec is None else state.spec.preprocessing.size
        map_type = state.settings.map_type
        if not state.settings.split:
            found = self.found
            if found is None or (
                background and not any(SCORES[k].background for k in found.scores)
            ):
                found = self.fit.held_out(background=background)
            folds = self.fit.fold_models(model)
            scores = _of_fitted(model, found, map_type, size, folds)
            return replace(scores, names=state.names_of(found.places))
        held = self.fit.held_rows()
        if held is None:
            return HeldOutScores({}, None)
        scores = score_new_rows(model, held, map_type, size, self.fit.n_threads)
        return replace(scores, names=state.names_of(held.places))


def are_finite(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which of `maps` (n, height, width) are finite."""
    return np.asarray(np.isfinite(maps).all(axis=(1, 2)))


def _has_rows(cells: Any, c: int, tied: bool) -> bool:
    """Whether cells have rows of the class with this number."""
    if tied:
        counts = cells[0].counts()
        return bool(c < len(counts) and counts[c] > 0)
    return c in cells and cells[c].n_samples > 0


def _joined(parts: Sequence[LayerScores]) -> LayerScores:
    """Return the rows of all `parts`; scores that one of them lacks are NaN there."""
    none = np.zeros(0, dtype=np.intp)
    if not parts:
        return LayerScores(none, none, none, none, {kind: np.zeros(0) for kind in SCORES})
    kinds = [kind for kind in SCORES if any(kind in part.scores for part in parts)]
    scores = {
        kind: np.concatenate([p.scores.get(kind, np.full(len(p.places), np.nan)) for p in parts])
        for kind in kinds
    }
    maps = [part.maps for part in parts if part.maps is not None]
    classes, places, units, folds = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("classes", "places", "units", "folds")
    )
    together = np.concatenate(maps) if maps else None
    return LayerScores(classes, places, units, folds, scores, together)


def _of_fitted(
    model: Model,
    found: AllLayersScores,
    map_type: str | None,
    size: tuple[int, int] | None,
    folds: tuple[FoldModel | None, ...],
) -> HeldOutScores:
    """Combine the layers' held-out scores of fitted rows."""
    samples, maxima, standard = {}, None, None
    if found.maps is not None:
        standard, maxima = _maps_of_fitted(model, found, map_type, size)
    for kind, each in found.scores.items():
        finite = np.asarray(np.isfinite(each).all(axis=0))
        if not finite.any():
            continue
        own = each[:, finite]
        if model.by_maps(kind) and standard is not None:
            theirs = found.classes[finite], found.units[finite]
            together = model.top_shares.score_held_out(standard[finite], *theirs)
        elif len(each) == 1:
            together = own[0]
        elif kind in model.combinations:
            together = model.combinations[kind].combine_held_out(own)
        else:
            continue
        samples[kind] = found.sample(np.concatenate([together[None], own]), finite)
    return HeldOutScores(samples, maxima, folds, map_type=None if maxima is None else map_type)


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
    theirs = found.classes[read], found.units[read]
    standard = None
    if model.calibrated:
        joined = model.add_layers([standardise_held_out(own, *theirs) for own in maps])
        standard = np.full((len(read), *joined.shape[1:]), np.nan)
        standard[read] = joined
    if model.has_scaled_maps(kind):
        signed = SCORES[kind].signed
        scaled = [
            scale_held_out(own, moments[read], *theirs, signed=signed)
            for own, moments in zip(maps, found.moments[kind], strict=True)
        ]
        total = model.add_layers(scaled)
        return standard, _maxima(len(total), lambda at: model.enlarge(total[at], size), size)
    if len(model.layers) > 1 and kind not in model.combinations:
        return None, None
    return None, _maxima(
        len(maps[0]), lambda at: model.join_maps([own[at] for own in maps], kind, size), size
    )


def score_new_rows(
    model: Model,
    rows: KeptRows,
    map_type: str | None,
    size: tuple[int, int] | None,
    n_threads: int,
) -> HeldOutScores:
    """Score rows that the model was not fitted on.

    Parameters
    ----------
    model : Model
    rows : KeptRows
        Features of all layers, of classes by their places among those of the model.
    map_type : str or None
        Score type of maps.
    size : (int, int) or None
        Height and width of maps.
    n_threads : int
    """
    features: NDArray[Any] = rows.rows
    under = None if model.classes is None else rows.classes
    kinds = possible_scores(model.check_scores)
    if not kinds:
        return HeldOutScores({}, None)
    found = RowScores(model, features, n_threads, under)
    together, each = found.scores(kinds), found.layer_scores(kinds)
    folds, maxima = np.zeros_like(rows.places), None
    samples = {
        kind: HeldOutSample(
            np.concatenate([together[[t]], each[:, t]]), *rows[1:2], rows.units, rows.places, folds
        )
        for t, kind in enumerate(kinds)
    }
    if map_type is not None and map_type in samples:
        assert size is not None

        def maps(at: slice) -> NDArray[np.float32]:
            theirs = None if under is None else under[at]
            return RowScores(model, features[at], n_threads, theirs).maps(map_type, size)

        maxima = _maxima(len(features), maps, size)
    return HeldOutScores(samples, maxima, map_type=None if maxima is None else map_type)


def joined_scores(parts: Sequence[HeldOutScores]) -> HeldOutScores:
    """Return the scores of new rows that came in parts, numbered on from one to the next."""
    samples = {}
    for kind in parts[0].samples:
        each = [part.samples[kind] for part in parts if kind in part.samples]
        if len(each) < len(parts):
            continue
        samples[kind] = HeldOutSample(
            np.concatenate([own.scores for own in each], axis=1),
            *(
                np.concatenate([getattr(own, name) for own in each])
                for name in ("classes", "units", "places", "folds")
            ),
        )
    maxima = [part.map_maxima for part in parts if part.map_maxima is not None]
    together = np.concatenate(maxima) if maxima else None
    hashes = np.concatenate([part.hashes for part in parts])
    return HeldOutScores(samples, together, map_type=parts[-1].map_type, hashes=hashes)


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
