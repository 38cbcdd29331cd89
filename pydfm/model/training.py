"""The training state: what rows leave behind, from which a model is fitted at any time.

One dictionary of accumulators, keyed by layer, fold and class, is what rows become. It adds rows,
merges with the state of other rows, and removes rows; `pydfm.model.fitting.freeze` turns it into a
fitted model. Adding in batches, merging, forgetting, clusters and checkpoints are loops over it.
States are immutable: an update returns a new one, which shares what did not change.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features.arrays import blocks
from pydfm.features.extractor import FeatureSpec
from pydfm.features.grid import Grid
from pydfm.features.labels import ClassCodes, as_labels, by_class
from pydfm.model.layer import take_columns
from pydfm.model.settings import N_FOLDS, Settings
from pydfm.stats.accumulator import Accumulator
from pydfm.stats.identities import Identities
from pydfm.stats.sample import RowSample

# Folded rows that are kept to compute their held-out scores, at most: in all, and of a class; and
# bytes of them, but for a tenth as many rows.
_SAMPLE = 5_000
_CLASS_SAMPLE = 1_000
_SAMPLE_BYTES = 32 << 20

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
    fold_rows : dict of int to RowSample
        By layer, rows that are scored by the model of the other folds.
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
    n_of_class : ndarray of shape (C,)
        With "split", number of rows of each class that came.
    identities : Identities
        Hashes of the fitted images.
    """

    spec: FeatureSpec | None
    layers: tuple[LayerColumns, ...]
    settings: Settings
    cells: Mapping[tuple[int, int, int], Accumulator] = field(default_factory=dict)
    fold_rows: Mapping[int, RowSample] = field(default_factory=dict)
    mixture_rows: Mapping[tuple[int, int], RowSample] = field(default_factory=dict)
    held: RowSample | None = None
    codes: ClassCodes = field(default_factory=ClassCodes)
    labelled: bool | None = None
    n_samples: int = 0
    n_seen: int = 0
    n_of_class: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))
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
        hashes: NDArray[np.uint64] | None = None,
        borrowed: bool = False,
    ) -> "TrainingState":
        """Return the state with rows added.

        Parameters
        ----------
        features : ndarray of shape (N, D)
        labels : ndarray of shape (N,), optional
            Unused where the covariance is "global".
        n_threads : int
        hashes : ndarray of shape (N,), optional
            Those of the images, by which they can be recognised.
        borrowed : bool
            Whether the caller may change `features` later; see `compact`.

        Raises
        ------
        ValueError
            If rows have labels and those before had none, or the other way round; or if the
            statistics of the classes exceed ``max_memory``.
        """
        labels = None if self.settings.covariance == "global" else labels
        self._check_labelled(labels is not None)
        codes, numbers = self.codes, None
        if labels is not None:
            codes = codes.copy()
            numbers = codes.encode(labels)
        state = replace(self, codes=codes, labelled=labels is not None)
        if self.settings.split:
            state, held = state._hold(features, numbers)
            features, numbers = features[~held], None if numbers is None else numbers[~held]
            hashes = None if hashes is None else hashes[~held]
            if len(features) == 0:
                return state
        places = np.arange(self.n_seen, self.n_seen + len(features))
        cells, mixture_rows = dict(self.cells), dict(self.mixture_rows)
        fold_rows = dict(self.fold_rows)
        n_folds = self.settings.n_folds
        for i, layer in enumerate(self.layers):
            rows = features
            if len(self.layers) > 1:
                rows = take_columns(features, layer.columns)
            if n_folds > 1:
                sample = fold_rows.get(i) or self.settings.fold_sample()
                fold_rows[i] = sample.add(rows, places, numbers)
            for fold in range(n_folds):
                own, theirs = rows, numbers
                if n_folds > 1:
                    chosen = places % n_folds == fold
                    own, theirs = rows[chosen], None if numbers is None else numbers[chosen]
                if len(own):
                    own, theirs = self._samples(i, own, theirs)
                    self._add_to_mixtures(mixture_rows, (i, fold), own, theirs)
                    for c, part, classes in self._by_cell(own, theirs):
                        cell = cells.get((i, fold, c)) or self._new_cell(theirs is not None)
                        cells[i, fold, c] = cell.add(
                            part,
                            classes,
                            n_threads=n_threads,
                            borrowed=borrowed and part is features,
                        )
                    self._check_memory(cells, i, fold)
        return replace(
            state,
            cells=cells,
            fold_rows=fold_rows,
            mixture_rows=mixture_rows,
            n_samples=self.n_samples + len(features),
            n_seen=self.n_seen + len(features),
            identities=self.identities.add(hashes, numbers),
        )

    def merge(self, other: "TrainingState", *, n_threads: int) -> "TrainingState":
        """Return the state of the rows of both.

        Raises
        ------
        ValueError
            If layers, settings or features differ, which are named.
        """
        self.check_same(other)
        if other.labelled is None:
            return self
        self._check_labelled(other.labelled)
        codes = self.codes.copy()
        numbers = codes.numbers_of(other.codes) if other.labelled else np.zeros(1, dtype=np.intp)
        # So that a row's place still gives its fold.
        n_folds = self.settings.n_folds
        first = -(-self.n_seen // n_folds) * n_folds
        cells, mixture_rows = dict(self.cells), dict(self.mixture_rows)
        fold_rows = dict(self.fold_rows)
        for (i, fold, c), cell in other.cells.items():
            key = (i, fold, 0 if self.settings.tied else int(numbers[c]))
            theirs = numbers if self.settings.tied else np.zeros(1, dtype=np.intp)
            mine = cells.get(key) or cell.emptied()
            cells[key] = mine.merge(cell, theirs, n_threads=n_threads)
        for at, rows in other.mixture_rows.items():
            sample = mixture_rows.get(at) or rows.emptied()
            mixture_rows[at] = sample.merge(rows, sample.end, numbers)
        for i, rows in other.fold_rows.items():
            sample = fold_rows.get(i) or rows.emptied()
            fold_rows[i] = sample.merge(rows, first, numbers)
        held = self.held
        if other.held is not None:
            held = held or other.held.emptied()
            held = held.merge(other.held, held.end, numbers)
        n_of_class = _extended(self.n_of_class, max(len(codes), 1))
        n_of_class[numbers[: len(other.n_of_class)]] += other.n_of_class
        return replace(
            self,
            cells=cells,
            fold_rows=fold_rows,
            mixture_rows=mixture_rows,
            held=held,
            codes=codes,
            labelled=other.labelled,
            n_samples=self.n_samples + other.n_samples,
            n_seen=first + other.n_seen,
            n_of_class=n_of_class,
            identities=self.identities.merge(other.identities, numbers),
        )

    def remove(
        self,
        features: NDArray[Any],
        labels: NDArray[Any] | None = None,
        *,
        n_threads: int,
        hashes: NDArray[np.uint64] | None = None,
    ) -> "TrainingState":
        """Return the state without rows `features` (N, D), with their labels and hashes (N,).

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
        state = self
        if self.held is not None:
            found = self.held.find(features, numbers)
            held = self.held.remove(features[found], None if numbers is None else numbers[found])
            state = replace(state, held=held)
            features, numbers = features[~found], None if numbers is None else numbers[~found]
            hashes = None if hashes is None else hashes[~found]
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
            identities = self.identities.remove(hashes, numbers)
        cells, mixture_rows = dict(self.cells), dict(self.mixture_rows)
        for i, layer in enumerate(self.layers):
            rows, theirs = self._samples(i, take_columns(features, layer.columns), numbers)
            kept = False
            if (sample := mixture_rows.get((i, 0))) is not None:
                kept = self._all_kept(sample, rows, theirs)
                mixture_rows[i, 0] = sample.remove(np.asarray(rows, np.float64), theirs)
            for c, part, classes in self._by_cell(rows, theirs):
                cell = cells[i, 0, c]
                cells[i, 0, c] = cell.remove(
                    part, classes, n_threads=n_threads, known=known or kept
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
        (c,) = self.codes.find(as_labels([label])).tolist()
        return replace(
            self,
            cells={k: v.emptied() if k[2] == c else v for k, v in self.cells.items()},
            fold_rows={k: v.remove_tag(c) for k, v in self.fold_rows.items()},
            mixture_rows={k: v.remove_tag(c) for k, v in self.mixture_rows.items()},
            held=None if self.held is None else self.held.remove_tag(c),
            n_samples=self.n_samples - int(self.counts()[c]),
            identities=self.identities.remove_class(c),
            n_of_class=np.where(np.arange(len(self.n_of_class)) == c, 0, self.n_of_class),
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
            merged = merged.merge(part, merged.end)
        return merged

    def _check_labelled(self, labelled: bool) -> None:
        if self.labelled is not None and self.labelled != labelled:
            have, lack = ("with", "none") if self.labelled else ("without", "some")
            raise ValueError(
                f"the model was fitted {have} labels, and {lack} are given now; give labels always "
                "or never"
            )

    def _hold(
        self, features: NDArray[Any], numbers: _Classes
    ) -> tuple["TrainingState", NDArray[np.bool_]]:
        """Hold every fifth row of each class out of the fit, and return which these are."""
        held = np.zeros(len(features), dtype=bool)
        own = np.zeros(len(features), dtype=np.intp) if numbers is None else numbers
        n_of_class = _extended(self.n_of_class, max(len(self.codes), 1))
        for c, places in by_class(own):
            held[places] = (n_of_class[c] + np.arange(len(places))) % N_FOLDS == N_FOLDS - 1
            n_of_class[c] += len(places)
        sample = self.held or self.settings.fold_sample()
        if held.any():
            places = np.arange(sample.end, sample.end + int(held.sum()))
            sample = sample.add(features[held], places, own[held])
        return replace(self, held=sample, n_of_class=n_of_class), held

    def _patch(self, layer: int) -> bool:
        return self.settings.spatial == "patch" and self.layers[layer].grid is not None

    def _samples(
        self, layer: int, rows: NDArray[Any], numbers: _Classes
    ) -> tuple[NDArray[Any], _Classes]:
        """Return the samples that images are: each one, or each of its positions."""
        grid = self.layers[layer].grid
        if grid is None or not self._patch(layer):
            return rows, numbers
        repeated = None if numbers is None else np.repeat(numbers, grid.positions)
        return grid.patches(rows), repeated

    def _by_cell(
        self, rows: NDArray[Any], numbers: _Classes
    ) -> Iterator[tuple[int, NDArray[Any], _Classes]]:
        """Yield the class numbers of cells, and the rows and classes that belong there."""
        if numbers is None or self.settings.tied:
            yield 0, rows, numbers
            return
        for c, places in by_class(numbers):
            yield c, rows if len(places) == len(rows) else rows[places], None

    def _new_cell(self, labelled: bool) -> Accumulator:
        sample = None
        if self.settings.held_out == "loo":
            size = _CLASS_SAMPLE if labelled and not self.settings.tied else _SAMPLE
            sample = RowSample(size, self.settings.random_state, _SAMPLE_BYTES, size // 10)
        return Accumulator(sample, self.settings.cell_bytes)

    def _add_to_mixtures(
        self,
        mixture_rows: dict[tuple[int, int], RowSample],
        at: tuple[int, int],
        rows: NDArray[Any],
        numbers: _Classes,
    ) -> None:
        if self.settings.density != "gmm":
            return
        sample = mixture_rows.get(at) or RowSample(
            sys.maxsize, self.settings.random_state, self.settings.cell_bytes
        )
        for first, block in blocks(rows):
            places = np.arange(sample.end, sample.end + len(block))
            theirs = None if numbers is None else numbers[first : first + len(block)]
            sample = sample.add(block, places, theirs)
        mixture_rows[at] = sample

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
            raise ValueError(f"row {found.argmin()} of X is none of those the model was fitted on")
        return True


def _extended(counts: NDArray[np.intp], n_classes: int) -> NDArray[np.intp]:
    """Return a copy of `counts` for `n_classes` classes."""
    total = np.zeros(max(n_classes, len(counts)), dtype=np.intp)
    total[: len(counts)] = counts
    return total
