"""Fits models to batches of features, and scores rows under the model that the others make.

How rows are left out is the calibration: "loo", each by itself, exactly and from the one fit
(`pydfm.leave_one_out`); or "kfold", a fifth of them at a time, by fits to the other fifths.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.combination import Combination
from pydfm.density import SCORE_TYPES
from pydfm.density_fitter import DensityFitter, LeftOutScores
from pydfm.labels import ClassCodes, as_labels
from pydfm.layer import LayerModel
from pydfm.maps import Grid
from pydfm.model import Model
from pydfm.sample import RowSample

CALIBRATIONS: Final = ("loo", "kfold")

_N_FOLDS = 5
# Bytes of the features that are kept to be scored by a fit without them.
_SAMPLE_BYTES = 256 << 20


@dataclass(frozen=True)
class LayerSettings:
    """What a layer's model is fitted with; see the parameters of `DFM`."""

    n_components: float | int | None
    covariance: str
    density: str
    regularization: str | float | None
    spatial: str
    image_score: str
    top_share: float
    random_state: int
    calibration: str | None
    max_bytes: int | None = None

    @property
    def n_parts(self) -> int:
        """Parts that rows are divided into to be left out."""
        return _N_FOLDS if self.calibration == "kfold" else 1

    def fitter(self, n_threads: int) -> DensityFitter:
        """Return a fitter of densities with these settings."""
        # Of folds each is a part, and a quarter is left for rows to be scored by the others.
        share = None
        if self.max_bytes is not None:
            share = (
                self.max_bytes if self.n_parts == 1 else self.max_bytes * 3 // (4 * self.n_parts)
            )
        return DensityFitter(
            self.n_components,
            covariance=self.covariance,
            density=self.density,
            regularization=self.regularization,
            random_state=self.random_state,
            n_threads=n_threads,
            left_out=self.calibration == "loo",
            max_bytes=share,
        )


class ModelFitter:
    """Takes features and labels in any number of batches, and gives a model of all layers.

    Parameters
    ----------
    layers : sequence of (str, Grid or None)
        Names and grids, in the order of the columns.
    n_features : int
        D, of all layers together.
    settings : LayerSettings
    combine : str
        The rule for several layers; see `pydfm.combination`.
    n_threads : int
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, Grid | None]],
        n_features: int,
        settings: LayerSettings,
        combine: str,
        n_threads: int,
    ) -> None:
        self._arguments = (layers, n_features, settings, combine, n_threads)
        self._codes = ClassCodes()
        self._combine = combine
        self._labelled: bool | None = None
        self.n_features = n_features
        self.names = [name for name, _ in layers]
        sizes = [n_features if grid is None else grid.size for _, grid in layers]
        ends = np.cumsum(sizes).tolist()
        self._layers = [
            LayerFitter(name, slice(end - size, end), grid, settings, n_threads)
            for (name, grid), size, end in zip(layers, sizes, ends, strict=True)
        ]

    @property
    def n_samples(self) -> int:
        """Rows that were added."""
        return self._layers[0].n_samples

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, moments and samples take."""
        return sum(layer.n_bytes for layer in self._layers)

    def copy(self) -> "ModelFitter":
        """Return a fitter of the same rows; what is added to one is not in the other."""
        other = copy.copy(self)
        other._codes = self._codes.copy()
        other._layers = [layer.copy() for layer in self._layers]
        return other

    def emptied(self) -> "ModelFitter":
        """Return a fitter of the same layers and settings, without rows."""
        return ModelFitter(*self._arguments)

    def add(self, features: NDArray[Any], labels: NDArray[Any] | None = None) -> None:
        """Add rows `features` (N, D), with `labels` (N,); both must stay as they are."""
        self._check_labelled(labels is not None)
        classes = None if labels is None else self._codes.encode(labels)
        for layer in self._layers:
            layer.add(features, classes)

    def own(self) -> None:
        """Copy rows that are kept where they may be the caller's, who may change them."""
        for layer in self._layers:
            layer.own()

    def merge(self, other: "ModelFitter") -> None:
        """Add all rows that were added to `other`, which has the same layers and settings."""
        if other._labelled is None:
            return
        self._check_labelled(other._labelled)
        numbers = self._codes.numbers_of(other._codes) if self._labelled else None
        for layer, theirs in zip(self._layers, other._layers, strict=True):
            layer.merge(theirs, numbers)

    def forget(self, features: NDArray[Any], labels: NDArray[Any] | None = None) -> None:
        """Take rows away again; see `SubspaceFitter.forget`."""
        self._check_labelled(labels is not None)
        classes = None if labels is None else self._codes.find(labels)
        for layer in self._layers:
            layer.forget(features, classes)

    def forget_class(self, label: Any) -> None:
        """Take all rows of a class away."""
        self._check_labelled(True)
        (c,) = self._codes.find(as_labels([label]))
        for layer in self._layers:
            layer.forget_class(int(c))

    def fit(self) -> Model:
        """Return the model of all rows; of several layers not combined yet."""
        classes, order = None, None
        if self._labelled:
            classes, order = self._codes.sorted(self._layers[0].counts())
        layers = tuple(layer.fit(order, classes) for layer in self._layers)
        return Model(layers, classes, {}, self.n_samples)

    def _check_labelled(self, labelled: bool) -> None:
        if self._labelled is None:
            self._labelled = labelled
        if self._labelled != labelled:
            have, lack = ("with", "none") if self._labelled else ("without", "some")
            raise ValueError(
                f"the model was fitted {have} labels, and {lack} are given now; give labels always "
                "or never"
            )

    def left_out(self) -> tuple[NDArray[np.intp], dict[str, NDArray[np.float64]]]:
        """Scores of rows under their classes, fitted without them, after `fit`.

        Returns
        -------
        classes : ndarray of shape (n,)
            Places of the rows' classes among those of the model.
        scores : dict of str to ndarray of shape (L, n)
            By score type, of each layer; NaN where the others make no model.
        """
        parts = [layer.left_out() for layer in self._layers]
        # The same rows of all layers: those of the sample of each.
        keys = [np.stack([part.classes, part.places], axis=1) for part in parts]
        names = [key.view([("class", key.dtype), ("place", key.dtype)])[:, 0] for key in keys]
        common = functools.reduce(np.intersect1d, names)
        picks = [np.argsort(name)[np.searchsorted(np.sort(name), common)] for name in names]
        kinds = [k for k in parts[0].scores if all(k in part.scores for part in parts)]
        scores = {
            kind: np.stack([p.scores[kind][pick] for p, pick in zip(parts, picks, strict=True)])
            for kind in kinds
        }
        return parts[0].classes[picks[0]], scores

    def combined(
        self, model: Model, outliers: Callable[[list[str]], NDArray[np.float32]] | None
    ) -> Model:
        """Return `model` with its layers combined.

        Parameters
        ----------
        outliers : callable, optional
            Gives scores (L, T, m) of known outliers for T score types.
        """
        _, scores = self.left_out()
        finite = {k: s[:, np.isfinite(s).all(axis=0)] for k, s in scores.items()}
        kinds = [kind for kind, normal in finite.items() if normal.shape[1] > 0]
        known = None if outliers is None else outliers(kinds).astype(np.float64)
        combinations = {
            kind: Combination.fit(
                self._combine, finite[kind], None if known is None else known[:, t]
            )
            for t, kind in enumerate(kinds)
        }
        return replace(model, combinations=combinations)


class LayerFitter:
    """Takes features in any number of batches, and gives the model of a layer.

    Parameters
    ----------
    name : str
    columns : slice
        Of the features that come, of which the layer's are those.
    grid : Grid or None
        None for features that are no layer's.
    settings : LayerSettings
    n_threads : int
    """

    def __init__(
        self, name: str, columns: slice, grid: Grid | None, settings: LayerSettings, n_threads: int
    ) -> None:
        self._name = name
        self._columns = columns
        self._grid = grid
        self._settings = settings
        self._n_threads = n_threads
        self._patch = settings.spatial == "patch" and grid is not None
        self._parts = [settings.fitter(n_threads) for _ in range(settings.n_parts)]
        most = _SAMPLE_BYTES if settings.max_bytes is None else settings.max_bytes // 4
        size = max(most // (4 * (columns.stop - columns.start)), 1)
        self._sample = RowSample(min(size, 10_000), settings.random_state)
        self._model: LayerModel | None = None
        self._order: Sequence[int] = [0]
        self._n_seen = 0  # with those that were taken away since
        self.n_samples = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that rows, moments and samples take."""
        return sum(part.n_bytes for part in self._parts) + self._sample.n_bytes

    def copy(self) -> "LayerFitter":
        """Return a fitter of the same rows; what is added to one is not in the other."""
        other = copy.copy(self)
        other._parts = [part.copy() for part in self._parts]
        if len(self._parts) > 1:
            other._sample = self._sample.copy()
        return other

    def add(self, features: NDArray[Any], classes: NDArray[np.intp] | None) -> None:
        """Add rows `features` (N, D) of `classes` (N,); both must stay as they are."""
        rows = self._own_columns(features)
        if len(self._parts) == 1:
            self._parts[0].add(*self._samples(rows, classes))
        else:
            places = np.arange(self._n_seen, self._n_seen + len(rows))
            self._sample.add(rows, places, classes)
            for f, part in enumerate(self._parts):
                fold = places % len(self._parts) == f
                theirs = None if classes is None else classes[fold]
                if fold.any():
                    part.add(*self._samples(rows[fold], theirs))
        self._n_seen += len(rows)
        self.n_samples += len(rows)

    def own(self) -> None:
        """Copy rows that are kept where they may be the caller's, who may change them."""
        for part in self._parts:
            part.own()

    def merge(self, other: "LayerFitter", numbers: NDArray[np.intp] | None) -> None:
        """Add all rows that were added to `other`, whose class c is ``numbers[c]`` here."""
        # So that a row's place tells its fold.
        first = -(-self._n_seen // len(self._parts)) * len(self._parts)
        if len(self._parts) > 1:
            self._sample.merge(other._sample, first, numbers)
        for part, theirs in zip(self._parts, other._parts, strict=True):
            part.merge(theirs, numbers)
        self._n_seen = first + other._n_seen
        self.n_samples += other.n_samples

    def forget(self, features: NDArray[Any], classes: NDArray[np.intp] | None) -> None:
        """Take rows away again; see `SubspaceFitter.forget`."""
        if len(self._parts) > 1:
            raise ValueError(
                "the model leaves rows out by folds, and which a row is in is not known any more; "
                "fit again without those rows, or fit with calibration=None"
            )
        self._parts[0].forget(*self._samples(self._own_columns(features), classes))
        self.n_samples -= len(features)

    def forget_class(self, c: int) -> None:
        """Take all rows of class `c` away."""
        gone = int(self.counts()[c])
        for part in self._parts:
            part.forget_class(c)
        self._sample = self._sample.without_tag(c)
        self.n_samples -= gone

    def counts(self) -> NDArray[np.intp]:
        """Return the number of pictures (C,) of each class."""
        counts = [part.counts() for part in self._parts]
        total = np.zeros(max(len(c) for c in counts), dtype=np.intp)
        for part in counts:
            total[: len(part)] += part
        positions = self._grid.positions if self._patch and self._grid is not None else 1
        return total // positions

    def _own_columns(self, features: NDArray[Any]) -> NDArray[Any]:
        whole = (self._columns.start, self._columns.stop) == (0, features.shape[1])
        return features if whole else features[:, self._columns]

    def _samples(
        self, rows: NDArray[Any], classes: NDArray[np.intp] | None
    ) -> tuple[NDArray[Any], NDArray[np.intp] | None]:
        """Return the samples that pictures are, each or each of its positions."""
        if not self._patch:
            return rows, classes
        assert self._grid is not None
        repeated = None if classes is None else np.repeat(classes, self._grid.positions)
        return self._grid.patches(rows), repeated

    def fit(
        self, order: Sequence[int] | None = None, classes: Sequence[Any] | None = None
    ) -> LayerModel:
        """Return the model of all rows; see `DensityFitter.fit`."""
        fitter = self._parts[0]
        if len(self._parts) > 1:
            fitter = self._settings.fitter(self._n_threads)
            for part in self._parts:
                fitter.merge(part)
        self._order = order or [0]
        self._model = LayerModel(
            name=self._name,
            columns=self._columns,
            density=fitter.fit(order, classes),
            grid=self._grid,
            patch=self._patch,
            rule=self._settings.image_score,
            top_share=self._settings.top_share,
        )
        return self._model

    def left_out(self) -> LeftOutScores:
        """Scores of rows under their class, fitted without them, after `fit`.

        Classes are numbered in the order that was given to `fit`.
        """
        found = self._parts[0].left_out() if len(self._parts) == 1 else self._held_out()
        places = np.zeros(max(self._order) + 1, dtype=np.intp)
        places[list(self._order)] = np.arange(len(self._order))
        return replace(found, classes=places[found.classes])

    def _held_out(self) -> LeftOutScores:
        """Scores of rows of each fold under the model of the others."""
        assert self._model is not None
        places, rows, classes = self._sample.take()
        scores = {kind: np.full(len(places), np.nan) for kind in SCORE_TYPES}
        for f in range(len(self._parts)):
            others = [part for g, part in enumerate(self._parts) if g != f]
            n_rows = sum(part.n_samples for part in others)
            if n_rows < 2:
                continue
            settings, wanted = self._settings, self._settings.n_components
            if wanted is not None and wanted >= 1:
                n_features = self._model.density.n_features
                settings = replace(settings, n_components=min(int(wanted), n_rows, n_features))
            fitter = settings.fitter(self._n_threads)
            for part in others:
                fitter.merge(part)
            order = np.flatnonzero(fitter.counts())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the fit of all rows has told it
                density = fitter.fit(order.tolist())
            out = (places % len(self._parts) == f) & np.isin(classes, order)
            if not out.any():
                continue
            model = replace(self._model, density=density, columns=slice(0, rows.shape[1]))
            own = np.searchsorted(order, classes[out]) if len(density.subspaces) > 1 else None
            for kind in SCORE_TYPES:
                try:
                    density.check_scores([kind], None)
                except ValueError:
                    continue
                scores[kind][out] = model.score(rows[out], [kind], self._n_threads, own)[0][0]
        return LeftOutScores(classes, places, scores)
