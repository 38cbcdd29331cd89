"""The training state: what rows leave behind, from which a model is fitted at any time.

One dictionary of accumulators, keyed by layer, fold and class, is what rows become. It adds rows,
merges with the state of other rows, and removes rows; `pydfm.model.fitting.freeze` turns it into a
fitted model. Adding in batches, merging, forgetting, clusters and checkpoints are loops over it.
States are immutable: an update returns a new one, which shares what did not change.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pydfm.features.extractor import FeatureSpec
from pydfm.features.grid import Grid
from pydfm.features.inputs.labels import ClassCodes, as_labels, by_class
from pydfm.model.layer import take_columns
from pydfm.model.settings import N_PARTS, Settings, warn_of_folds
from pydfm.model.units import Units, draw_folds
from pydfm.stats.accumulator import Accumulator, KeptRows
from pydfm.stats.identities import Identities, UnknownRowError
from pydfm.stats.sample import Renumber, RowSample
from pydfm.stats.scatter import fits_memory, most_kept, scatter_bytes

# Names of images are kept up to this many.
_MOST_NAMES = 100_000

_Classes = NDArray[np.intp] | None

# What parameters settings come from that are no parameters themselves.
_DERIVED = {
    "held_out": "calibration, as score_type and the others allow it,",
    "map_type": "score_type, for maps,",
    "rule": "image_score",
    "max_bytes": "max_memory",
}


@dataclass(frozen=True)
class LayerColumns:
    """Where the features of a layer stand.

    Attributes
    ----------
    name : str
    columns : slice
        Of the features (N, D) of all layers.
    grid : Grid or None
        None for features that are no layer's.
    """

    name: str
    columns: slice
    grid: Grid | None


@dataclass(frozen=True, eq=False)
class TrainingState:
    """What the rows of a fit leave behind.

    Attributes
    ----------
    spec : FeatureSpec or None
        What the features of images depend on; None for features.
    layers : tuple of LayerColumns
    settings : Settings
    cells : dict of (int, int, int) to Accumulator
        By layer, fold and class; class 0 holds all classes where they share a scatter.
    fold_rows : dict of (int, int) to RowSample
        By layer and fold, rows that are scored by the model of the other folds.
    mixture_rows : dict of (int, int) to RowSample
        By layer and fold, rows that mixtures are fitted to.
    held : RowSample or None
        Rows that are not fitted, for ``calibration="split"``.
    codes : ClassCodes
        The numbers of the labels.
    labelled : bool or None
        Whether rows came with labels; None before the first.
    n_samples : int
        Number of images or rows that are fitted.
    n_seen : int
        Number of places given to rows so far.
    units : Units
        What is left out together.
    names : tuple of (int, tuple of str)
        Names of images, and the place of the first of each batch.
    identities : Identities
        Hashes of the fitted images.
    """

    spec: FeatureSpec | None
    layers: tuple[LayerColumns, ...]
    settings: Settings
    cells: Mapping[tuple[int, int, int], Accumulator] = field(default_factory=dict)
    fold_rows: Mapping[tuple[int, int], RowSample] = field(default_factory=dict)
    mixture_rows: Mapping[tuple[int, int], RowSample] = field(default_factory=dict)
    held: RowSample | None = None
    codes: ClassCodes = field(default_factory=ClassCodes)
    labelled: bool | None = None
    n_samples: int = 0
    n_seen: int = 0
    units: Units = field(default_factory=Units)
    names: tuple[tuple[int, tuple[str, ...]], ...] = ()
    identities: Identities = field(default_factory=Identities)

    @classmethod
    def begin(
        cls, spec: FeatureSpec | None, n_features: int, settings: Settings
    ) -> "TrainingState":
        """Return the state of no rows, of `n_features` features."""
        named: list[tuple[str, Grid | None]] = [("features", None)]
        if spec is not None:
            named = list(zip(spec.layers, spec.grids, strict=True))
        layers, end = [], 0
        for name, grid in named:
            begin, end = end, end + (n_features if grid is None else grid.size)
            layers.append(LayerColumns(name, slice(begin, end), grid))
        return cls(spec, tuple(layers), settings)

    @property
    def n_features(self) -> int:
        """Number of features per row, D, of all layers together."""
        return int(self.layers[-1].columns.stop)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, scatters and samples take."""
        samples = [*self.fold_rows.values(), *self.mixture_rows.values()]
        samples += [] if self.held is None else [self.held]
        cells = sum(cell.n_bytes for cell in self.cells.values())
        return cells + sum(sample.n_bytes for sample in samples)

    def emptied(self) -> "TrainingState":
        """Return the state of no rows, with the same layers and settings."""
        return TrainingState(self.spec, self.layers, self.settings)

    def counts(self) -> NDArray[np.intp]:
        """Return the number of fitted images or rows (C,) of each class, by its number."""
        total = np.zeros(max(len(self.codes), 1), dtype=np.intp)
        for (layer, _, c), cell in self.cells.items():
            if layer == 0:
                own = cell.counts()
                first = 0 if self.settings.tied else c
                total[first : first + len(own)] += own
        grid = self.layers[0].grid
        return total // (grid.positions if grid is not None and self._patch(0) else 1)

    def classes(self) -> tuple[list[Any] | None, list[int]]:
        """Return the labels of the classes that have rows, sorted, and the number of each."""
        return self.codes.sorted(self.counts()) if self.labelled else (None, [0])

    def add(
        self,
        features: NDArray[Any],
        labels: NDArray[Any] | None = None,
        *,
        n_threads: int,
        groups: NDArray[Any] | None = None,
        hashes: NDArray[np.uint64] | None = None,
        names: Sequence[str] | None = None,
        borrowed: bool = False,
    ) -> "TrainingState":
        """Return the state with rows added.

        Parameters
        ----------
        features : ndarray of shape (N, D)
            The rows.
        labels : ndarray of shape (N,), optional
            Unused where the covariance is "global".
        n_threads : int
            Of the core.
        groups : ndarray of shape (N,), optional
            Rows of a class that share a group are left out together.
        hashes : ndarray of shape (N,), optional
            Those of the images, by which they can be recognised.
        names : sequence of str, optional
            Names of the images.
        borrowed : bool
            Whether the caller may change `features` later; see `compact`.

        Raises
        ------
        ValueError
            If rows have labels or groups and those before had none, or the other way round; or if
            the statistics of the classes exceed ``max_memory``.
        """
        settings = self.settings
        labels = None if settings.covariance == "global" else labels
        self._check_labelled(labels is not None)
        codes, numbers = self.codes, None
        if labels is not None:
            codes = codes.copy()
            numbers = codes.encode(labels)
        own = np.zeros(len(features), dtype=np.intp) if numbers is None else numbers
        units, own_units = self.units.add(own, groups, max(len(codes), 1))
        places = np.arange(self.n_seen, self.n_seen + len(features))
        kept_names = self.names
        if names is not None and self.n_seen + len(names) <= _MOST_NAMES:
            kept_names = (*self.names, (self.n_seen, tuple(names)))
        state = replace(
            self,
            codes=codes,
            labelled=labels is not None,
            units=units,
            names=kept_names,
            n_seen=self.n_seen + len(features),
        )
        rows = KeptRows(features, own, places, own_units)
        if settings.split:
            held = draw_folds(own_units, N_PARTS, settings.random_state) == N_PARTS - 1
            if held.any():
                sample = self.held or self.empty_sample("held")
                away = rows.pick(held)
                sample = sample.add(away.rows, away.places, away.classes, away.units)
                state, rows = replace(state, held=sample), rows.pick(~held)
                hashes = None if hashes is None else hashes[~held]
                borrowed = False
            if len(rows.rows) == 0:
                return state
        elif state._would_sketch(rows):
            state = state._in_folds(n_threads)
        identities = state.identities.add(hashes, None if numbers is None else rows.classes)
        state = replace(state, n_samples=self.n_samples + len(rows.rows), identities=identities)
        for i, layer in enumerate(self.layers):
            columns = take_columns(rows.rows, layer.columns)
            samples = self._samples(i, rows._replace(rows=cast(Any, columns)))
            theirs = borrowed and samples.rows is features
            state = state._with_rows(i, samples, n_threads=n_threads, borrowed=theirs)
        return state

    def _with_rows(
        self, i: int, rows: KeptRows, *, n_threads: int, borrowed: bool = False
    ) -> "TrainingState":
        """Return the state with the samples of a layer added to its cells."""
        settings, n_folds = self.settings, self.settings.n_folds
        cells, mixture_rows = dict(self.cells), dict(self.mixture_rows)
        fold_rows = dict(self.fold_rows)
        folds = None
        if n_folds > 1:
            folds = draw_folds(rows.units, n_folds, settings.random_state)
        for fold in range(n_folds):
            own = rows if folds is None else rows.pick(folds == fold)
            if len(own.rows) == 0:
                continue
            if folds is not None:
                sample = fold_rows.get((i, fold)) or self.empty_sample("fold_rows", i)
                fold_rows[i, fold] = sample.add(own.rows, own.places, own.classes, own.units)
            if settings.density == "gmm":
                sample = mixture_rows.get((i, fold)) or self.empty_sample("mixture_rows", i)
                mixture_rows[i, fold] = sample.add(own.rows, own.places, own.classes, own.units)
            for c, part in self._by_cell(own):
                cell = cells.get((i, fold, c)) or self.empty_cell(i)
                cells[i, fold, c] = cell.add(
                    part.rows,
                    part.classes,
                    n_threads=n_threads,
                    places=part.places,
                    units=part.units,
                    borrowed=borrowed and len(part.rows) == len(rows.rows),
                )
            self._check_memory(cells, i, fold)
        return replace(self, cells=cells, fold_rows=fold_rows, mixture_rows=mixture_rows)

    def _would_sketch(self, rows: KeptRows) -> bool:
        """Whether rows that are left out of their own fit would be sketched with these added."""
        settings = self.settings
        if settings.held_out != "loo" or settings.max_bytes is None:
            return False
        for i in range(len(self.layers)):
            n_features, positions = self.n_columns(i), self.positions(i)
            if fits_memory(n_features, settings.cell_bytes):
                continue
            most = most_kept(n_features, settings.cell_bytes)
            for c, part in self._by_cell(rows):
                cell = self.cells.get((i, 0, c))
                have = 0 if cell is None else cell.n_kept
                if have + positions * len(part.rows) > most:
                    return True
        return False

    def _in_folds(self, n_threads: int) -> "TrainingState":
        """Return the state with its rows, all of which are kept, held out in folds."""
        settings = self.settings
        needed = max(scatter_bytes(self.n_columns(i)) for i in range(len(self.layers)))
        if settings.how is not None:
            warn_of_folds(
                f"max_memory leaves {settings.max_bytes:.3g} bytes for a layer, and the exact "
                f"scatter of its features takes {needed:.3g}"
            )
        empty: dict[Any, Any] = {}
        state = replace(
            self, settings=settings.in_folds(), cells=empty, fold_rows=empty, mixture_rows=empty
        )
        for (i, _, c), cell in sorted(self.cells.items()):
            for part in cell.kept:
                classes = part.classes if settings.tied else np.full_like(part.classes, c)
                state = state._with_rows(i, part._replace(classes=classes), n_threads=n_threads)
        return state

    def merge(self, other: "TrainingState", *, n_threads: int) -> "TrainingState":
        """Return the state of the rows of both.

        Raises
        ------
        ValueError
            If layers, settings or features differ, which are named; or if rows of one group are in
            both and in different folds.
        """
        if other.labelled is None:
            self.check_same(other)
            return self
        labelled = other.labelled
        if self.labelled is not None and self.labelled != labelled:
            raise ValueError(
                "one model was fitted with labels and the other without; models to be merged must "
                "both have classes, or none"
            )
        mine, other = self._of_one_kind(other, n_threads)
        mine.check_same(other)
        codes = mine.codes.copy()
        numbers = codes.numbers_of(other.codes) if labelled else np.zeros(1, dtype=np.intp)
        first, tied = mine.n_seen, mine.settings.tied
        n_folds = N_PARTS if mine.settings.split else mine.settings.n_folds
        units, maps = mine.units.merge(other.units, numbers, n_folds, mine.settings.random_state)
        cells, mixture_rows = dict(mine.cells), dict(mine.mixture_rows)
        fold_rows = dict(mine.fold_rows)
        for (i, fold, c), cell in other.cells.items():
            key = (i, fold, 0 if tied else int(numbers[c]))
            theirs = numbers if tied else np.zeros(1, dtype=np.intp)
            own = cells.get(key) or cell.emptied()
            cells[key] = own.merge(
                cell, theirs, n_threads=n_threads, first=first, units=_renumber(maps, c, tied)
            )
        every = _renumber(maps, 0, True)
        for samples, added in ((mixture_rows, other.mixture_rows), (fold_rows, other.fold_rows)):
            for at, rows in added.items():
                sample = samples.get(at) or rows.emptied()
                samples[at] = sample.merge(rows, first, numbers, every)
        held = mine.held
        if other.held is not None:
            held = held or other.held.emptied()
            held = held.merge(other.held, first, numbers, every)
        names = mine.names
        if other.names and first + other.n_seen <= _MOST_NAMES:
            names = (*names, *((first + place, batch) for place, batch in other.names))
        return replace(
            mine,
            cells=cells,
            fold_rows=fold_rows,
            mixture_rows=mixture_rows,
            held=held,
            codes=codes,
            labelled=labelled,
            n_samples=mine.n_samples + other.n_samples,
            n_seen=first + other.n_seen,
            units=units,
            names=names,
            identities=mine.identities.merge(other.identities, numbers),
        )

    def _of_one_kind(
        self, other: "TrainingState", n_threads: int
    ) -> tuple["TrainingState", "TrainingState"]:
        """Return both with their rows in folds, where one has them or the sum would need it."""
        if "loo" not in (self.settings.held_out, other.settings.held_out):
            return self, other
        kinds = {self.settings.in_folds(), other.settings.in_folds()}
        if len(kinds) > 1 or self.settings.max_bytes is None or self.settings.split:
            return self, other
        folded = self.settings.held_out != other.settings.held_out
        for (i, _, c), cell in self.cells.items():
            most, n_features = self.settings.cell_bytes, self.n_columns(i)
            theirs = other.cells.get((i, 0, c))
            n_kept = cell.n_kept + (0 if theirs is None else theirs.n_kept)
            folded |= not fits_memory(n_features, most) and n_kept > most_kept(n_features, most)
        if not folded:
            return self, other
        return tuple(  # type: ignore[return-value]
            state._in_folds(n_threads) if state.settings.held_out == "loo" else state
            for state in (self, other)
        )

    def remove(
        self,
        features: NDArray[Any],
        labels: NDArray[Any] | None = None,
        *,
        n_threads: int,
        groups: NDArray[Any] | None = None,
        hashes: NDArray[np.uint64] | None = None,
    ) -> "TrainingState":
        """Return the state without rows `features` (N, D); labels, groups and hashes are (N,).

        Raises
        ------
        ValueError
            As `Accumulator.remove`, but that images are recognised by their hashes also among
            folded rows; and if rows are held out in folds, since the fold of a row is not known any
            more.
        """
        labels = None if self.settings.covariance == "global" else labels
        self._check_labelled(labels is not None)
        numbers = None if labels is None else self.codes.find(labels)
        own = np.zeros(len(features), dtype=np.intp) if numbers is None else numbers
        state = replace(self, units=self.units.remove(own, groups))
        places = np.arange(len(features))
        if self.held is not None:
            found = self.held.find(features, numbers)
            held = self.held.remove(features[found], None if numbers is None else numbers[found])
            state = replace(state, held=held)
            features, numbers = features[~found], None if numbers is None else numbers[~found]
            hashes = None if hashes is None else hashes[~found]
            places = places[~found]
            if len(features) == 0:
                return state
        if self.settings.n_folds > 1:
            raise ValueError(
                "the model holds rows out in folds, and the fold of a row is not known any more; "
                "fit again without those rows, or fit with calibration=None"
            )
        known = hashes is not None and self.identities.known
        identities = Identities(None)
        if hashes is not None and known:
            with UnknownRowError.among(places):
                identities = self.identities.remove(hashes, numbers)
        cells, mixture_rows = dict(self.cells), dict(self.mixture_rows)
        for i, layer in enumerate(self.layers):
            none = np.zeros(len(features), dtype=np.intp)
            own = none if numbers is None else numbers
            rows = self._samples(
                i, KeptRows(take_columns(features, layer.columns), own, places, none)
            )
            kept = False
            if (sample := mixture_rows.get((i, 0))) is not None:
                with UnknownRowError.among(rows.places):
                    kept = self._all_kept(sample, rows.rows, rows.classes)
                mixture_rows[i, 0] = sample.remove(np.asarray(rows.rows, np.float64), rows.classes)
            for c, part in self._by_cell(rows):
                cell = cells[i, 0, c]
                with UnknownRowError.among(part.places):
                    cells[i, 0, c] = cell.remove(
                        part.rows, part.classes, n_threads=n_threads, known=known or kept
                    )
        return replace(
            state,
            cells=cells,
            mixture_rows=mixture_rows,
            n_samples=self.n_samples - len(features),
            identities=identities,
        )

    def remove_class(self, label: Any) -> "TrainingState":
        """Return the state without all rows of a class.

        Raises
        ------
        ValueError
            If there is no such class, or the classes share a scatter.
        """
        self._check_labelled(True)
        if self.settings.tied:
            raise ValueError(
                "covariance is 'tied', where the scatter of one class cannot be separated from "
                "that of the others; forget its rows"
            )
        (c,) = self.codes.find(as_labels([label]), "classes").tolist()
        return replace(
            self,
            cells={k: v.emptied() if k[2] == c else v for k, v in self.cells.items()},
            fold_rows={k: v.remove_tag(c) for k, v in self.fold_rows.items()},
            mixture_rows={k: v.remove_tag(c) for k, v in self.mixture_rows.items()},
            held=None if self.held is None else self.held.remove_tag(c),
            n_samples=self.n_samples - int(self.counts()[c]),
            identities=self.identities.remove_class(c),
            units=self.units.remove_class(c),
        )

    def compact(self) -> "TrainingState":
        """Return the same state, with the kept rows of each cell in one array of its own."""
        return replace(self, cells={key: cell.compact() for key, cell in self.cells.items()})

    def check_same(self, other: "TrainingState") -> None:
        """Raise ValueError, which names the difference, where rows of the two cannot be added."""
        if self.spec != other.spec:
            named = "features"
            if self.spec is not None and other.spec is not None:
                spec, its = vars(self.spec), vars(other.spec)
                # What follows from another difference is named last.
                differ = [name for name in spec if spec[name] != its[name]]
                named = min(differ, key=lambda name: name in ("grids", "sha256"))
                if named == "preprocessing":
                    ours, theirs = vars(self.spec.preprocessing), vars(other.spec.preprocessing)
                    first = next(name for name in ours if ours[name] != theirs[name])
                    named = f"{first}, {ours[first]!r} and {theirs[first]!r}"
            raise ValueError(
                f"the features of the two models differ, in their {named}; models to be merged "
                "must be fitted on the same"
            )
        if self.n_features != other.n_features:
            raise ValueError(
                f"one model has {self.n_features} features and the other {other.n_features}; "
                "models to be merged must have the same"
            )
        name = self.settings.difference(other.settings)
        if name is not None:
            mine, theirs = getattr(self.settings, name), getattr(other.settings, name)
            named = _DERIVED.get(name, name)
            raise ValueError(
                f"{named} is {mine!r} in one model and {theirs!r} in the other; models to be "
                "merged must have the same"
            )

    def cells_of(self, layer: int, folds: list[int], n_threads: int) -> dict[int, Accumulator]:
        """Return the rows of each class in some folds of a layer, merged."""
        merged: dict[int, Accumulator] = {}
        for fold in folds:
            for (i, f, c), cell in self.cells.items():
                if (i, f) != (layer, fold):
                    continue
                if self.settings.n_folds == 1:
                    merged[c] = cell
                    continue
                numbers = np.arange(len(cell.counts())) if self.settings.tied else np.zeros(1, int)
                mine = merged.get(c) or cell.emptied()
                merged[c] = mine.merge(cell, numbers, n_threads=n_threads)
        return merged

    def mixture_rows_of(self, layer: int, folds: list[int]) -> RowSample | None:
        """Return the rows that mixtures are fitted to, of some folds of a layer, merged."""
        parts = [self.mixture_rows[layer, f] for f in folds if (layer, f) in self.mixture_rows]
        if len(parts) <= 1:
            return parts[0] if parts else None
        merged = parts[0].emptied()
        for part in parts:
            merged = merged.merge(part)
        return merged

    def _check_labelled(self, labelled: bool) -> None:
        if self.labelled is not None and self.labelled != labelled:
            have, lack = ("with", "none") if self.labelled else ("without", "some")
            raise ValueError(
                f"the model was fitted {have} labels, and {lack} are given now; give labels "
                "(--classes) always or never"
            )

    def names_of(self, places: NDArray[np.intp]) -> dict[int, str]:
        """Return the names of the images at some places (n,), by place, where they have one."""
        found: dict[int, str] = {}
        order = np.sort(places)
        for first, names in self.names:
            begin, end = np.searchsorted(order, [first, first + len(names)])
            found |= {int(place): names[place - first] for place in order[begin:end]}
        return found

    def _patch(self, layer: int) -> bool:
        return self.settings.spatial == "patch" and self.layers[layer].grid is not None

    def positions(self, layer: int) -> int:
        """Return how many rows of a layer's model an image makes."""
        grid = self.layers[layer].grid
        return grid.positions if grid is not None and self._patch(layer) else 1

    def n_columns(self, layer: int) -> int:
        """Return the number of features of the rows of a layer's model: of an image, or a patch."""
        columns = self.layers[layer].columns
        return int(columns.stop - columns.start) // self.positions(layer)

    def _samples(self, layer: int, rows: KeptRows) -> KeptRows:
        """Return the samples that images are: each one, or each of its positions."""
        grid = self.layers[layer].grid
        if grid is None or not self._patch(layer):
            return rows
        repeated = (np.repeat(each, grid.positions) for each in rows[1:])
        return KeptRows(cast(Any, grid.patches(rows.rows)), *repeated)

    def _by_cell(self, rows: KeptRows) -> Iterator[tuple[int, KeptRows]]:
        """Yield the class numbers of cells, and the rows there with their classes in the cell."""
        if self.settings.tied or not self.labelled:
            yield 0, rows
            return
        for c, places in by_class(rows.classes):
            part = rows if len(places) == len(rows.rows) else rows.pick(places)
            yield c, part._replace(classes=np.zeros(len(places), dtype=np.intp))

    def empty_sample(self, name: str, layer: int = 0) -> RowSample:
        """Return an empty sample with the limits of "fold_rows", "mixture_rows" or "held"."""
        if name == "mixture_rows":
            return RowSample(sys.maxsize, self.settings.random_state, self.settings.cell_bytes)
        return self.settings.held_sample(self.positions(layer) if name == "fold_rows" else 1)

    def empty_cell(self, layer: int) -> Accumulator:
        """Return what the rows of a class, in a layer, are added to."""
        of_class = bool(self.labelled) and not self.settings.tied
        sample = self.settings.cell_sample(
            self.n_columns(layer), self.positions(layer), of_class=of_class
        )
        return Accumulator(sample, self.settings.cell_bytes)

    def _check_memory(
        self, cells: Mapping[tuple[int, int, int], Accumulator], layer: int, fold: int
    ) -> None:
        most = self.settings.cell_bytes
        if most is None:
            return
        own = [cell.n_bytes for key, cell in cells.items() if key[:2] == (layer, fold)]
        if len(own) > 1 and sum(own) > most:
            raise ValueError(
                f"max_memory leaves {most:.3g} bytes for the statistics of the classes, and those "
                f"of {len(own)} take {sum(own):.3g}; covariance='tied' needs one scatter for all, "
                "or allow more"
            )

    def _all_kept(self, sample: RowSample, rows: NDArray[Any], numbers: _Classes) -> bool:
        """Return whether `sample` holds all rows; raise ValueError if `rows` are not among them."""
        if not sample.complete:
            return False
        found = sample.find(rows, numbers)
        if not found.all():
            raise UnknownRowError(int(found.argmin()))
        return True


def _renumber(maps: tuple[NDArray[np.intp], ...], c: int, tied: bool) -> Renumber:
    """Return what the units of class `c` become, or, where classes are tied, those of each tag."""

    def renumber(tags: NDArray[np.intp], units: NDArray[np.intp]) -> NDArray[np.intp]:
        if not tied:
            return maps[c][units]
        own = np.empty_like(units)
        for k, places in by_class(tags):
            own[places] = maps[k][units[places]]
        return own

    return renumber
