"""Fits models of several layers to batches of features, and scores rows without themselves."""

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.calibrating import LeftOutLayers, are_finite, calibrate_held, calibrate_left_out
from pydfm.calibration import ModelCalibration
from pydfm.combination import Combination
from pydfm.labels import ClassCodes, as_labels, by_class
from pydfm.layer import LayerModel
from pydfm.layer_fitter import N_FOLDS, LayerFitter, LayerSettings, inverse
from pydfm.maps import Grid
from pydfm.model import Model
from pydfm.positions import LEAST_ROWS, PositionScale

# Rows of each class that standardised maps need to be what is taken without asking.
_ENOUGH_ROWS = 10


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
    split : bool
        Whether every fifth row of a class is kept for the calibration.
    """

    def __init__(
        self,
        layers: Sequence[tuple[str, Grid | None]],
        n_features: int,
        settings: LayerSettings,
        combine: str,
        n_threads: int,
        split: bool = False,
    ) -> None:
        self._arguments = (layers, n_features, settings, combine, n_threads, split)
        self._codes = ClassCodes()
        self._combine = combine
        self._labelled: bool | None = None
        self.n_features = n_features
        self.names = [name for name, _ in layers]
        self._settings = settings
        self._n_threads = n_threads
        self._split = split
        # Rows of each class that came, and those of them that are kept for the calibration.
        self._n_of_class = np.zeros(0, dtype=np.intp)
        self._n_held = 0
        self._held = settings.sample()
        self._places: NDArray[np.intp] = np.zeros(1, dtype=np.intp)
        self._calibration: ModelCalibration | None = None
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
        if self._split:
            other._held, other._n_of_class = self._held.copy(), self._n_of_class.copy()
        return other

    def emptied(self) -> "ModelFitter":
        """Return a fitter of the same layers and settings, without rows."""
        return ModelFitter(*self._arguments)

    def add(
        self, features: NDArray[Any], labels: NDArray[Any] | None = None, *, owned: bool = True
    ) -> None:
        """Add rows `features` (N, D), with `labels` (N,); see `SubspaceFitter.add`."""
        self._check_labelled(labels is not None)
        classes = None if labels is None else self._codes.encode(labels)
        if self._split:
            fitted = ~self._hold(features, classes)
            features, classes = features[fitted], None if classes is None else classes[fitted]
            if len(features) == 0:
                return
        for layer in self._layers:
            layer.add(features, classes, owned=owned)

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
        if self._split:
            self._held.merge(other._held, self._n_held, numbers)
            self._n_held += other._n_held
            where = np.arange(len(other._n_of_class)) if numbers is None else numbers
            self._count(where, other._n_of_class)
        for layer, theirs in zip(self._layers, other._layers, strict=True):
            layer.merge(theirs, numbers)

    def forget(self, features: NDArray[Any], labels: NDArray[Any] | None = None) -> None:
        """Take rows away again; see `SubspaceFitter.forget`."""
        self._check_labelled(labels is not None)
        classes = None if labels is None else self._codes.find(labels)
        if self._split:
            found = self._held.find(features, classes)
            self._held = self._held.without(
                features[found], None if classes is None else classes[found]
            )
            features, classes = features[~found], None if classes is None else classes[~found]
            if len(features) == 0:
                return
        for layer in self._layers:
            layer.forget(features, classes)

    def forget_class(self, label: Any) -> None:
        """Take all rows of a class away."""
        self._check_labelled(True)
        (c,) = self._codes.find(as_labels([label]))
        self._held = self._held.without_tag(int(c))
        for layer in self._layers:
            layer.forget_class(int(c))

    def fit(self, outliers: NDArray[Any] | None = None) -> Model:
        """Return the model of all rows.

        Parameters
        ----------
        outliers : ndarray of shape (m, D), optional
            Features of known outliers, which the rule "logistic" needs.
        """
        classes, order = None, None
        if self._labelled:
            classes, order = self._codes.sorted(self._layers[0].counts())
        self._places = inverse(order or [0])
        self._calibration = None
        standardise = (
            self._settings.image_score in (None, "calibrated") and self._settings.map_type == "fre"
        )
        whole = standardise or len(self._layers) > 1
        layers = tuple(layer.fit(order, classes, whole=whole) for layer in self._layers)
        if standardise:
            layers = self._standardised(layers, classes)
        model = Model(layers, classes, {}, self.n_samples)
        return model if len(layers) == 1 else self._combined(model, outliers)

    def _check_labelled(self, labelled: bool) -> None:
        if self._labelled is None:
            self._labelled = labelled
        if self._labelled != labelled:
            have, lack = ("with", "none") if self._labelled else ("without", "some")
            raise ValueError(
                f"the model was fitted {have} labels, and {lack} are given now; give labels always "
                "or never"
            )

    def left_out(self) -> LeftOutLayers:
        """Scores of rows under their classes, fitted without them, after `fit`."""
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
        maps = [p.maps[pick] for p, pick in zip(parts, picks, strict=True) if p.maps is not None]
        return LeftOutLayers(parts[0].classes[picks[0]], scores, maps or None)

    def calibration(self, model: Model, size: tuple[int, int] | None) -> ModelCalibration:
        """Scores of rows that `model`, which this fitted, has not seen.

        Parameters
        ----------
        size : (int, int), optional
            Height and width of maps.
        """
        if self._calibration is None:
            map_type = self._settings.map_type
            if not self._split:
                self._calibration = calibrate_left_out(model, self.left_out(), map_type, size)
            elif self._n_held == 0:
                self._calibration = ModelCalibration({}, {}, None)
            else:
                _, rows, codes = self._held.take()
                own = self._places[codes]
                self._calibration = calibrate_held(
                    model, rows, own, map_type, size, self._n_threads
                )
        return self._calibration

    def _combined(self, model: Model, outliers: NDArray[Any] | None) -> Model:
        """Return `model` with its layers combined."""
        scores = self.left_out().scores
        finite = {k: s[:, np.isfinite(s).all(axis=0)] for k, s in scores.items()}
        kinds = [kind for kind, normal in finite.items() if normal.shape[1] > 0]
        known = None
        if outliers is not None:
            known = model.layer_scores(outliers, kinds, self._n_threads).astype(np.float64)
        combinations = {
            kind: Combination.fit(
                self._combine, finite[kind], None if known is None else known[:, t]
            )
            for t, kind in enumerate(kinds)
        }
        return replace(model, combinations=combinations)

    def _hold(self, features: NDArray[Any], classes: NDArray[np.intp] | None) -> NDArray[np.bool_]:
        """Keep every fifth row of each class, and tell which they are."""
        held = np.zeros(len(features), dtype=bool)
        own = np.zeros(len(features), dtype=np.intp) if classes is None else classes
        for c, places in by_class(own):
            self._count(np.array([c]), np.zeros(1, dtype=np.intp))
            numbers = self._n_of_class[c] + np.arange(len(places))
            held[places] = numbers % N_FOLDS == N_FOLDS - 1
            self._n_of_class[c] += len(places)
        places = np.arange(self._n_held, self._n_held + int(held.sum()))
        self._n_held += len(places)
        if held.any():
            self._held.add(features[held], places, own[held])
        return held

    def _count(self, classes: NDArray[np.intp], counts: NDArray[np.intp]) -> None:
        """Count rows of some classes."""
        n = max([len(self._n_of_class), *(int(c) + 1 for c in classes)])
        total = np.zeros(n, dtype=np.intp)
        total[: len(self._n_of_class)] = self._n_of_class
        total[classes] += counts
        self._n_of_class = total

    def _standardised(
        self, layers: tuple[LayerModel, ...], classes: Sequence[Any] | None
    ) -> tuple[LayerModel, ...]:
        """Give `layers` the scales of their maps, where there are rows enough."""
        found = self.left_out()
        assert found.maps is not None
        finite = are_finite(found.maps[0])
        n_classes = len(layers[0].density.subspaces)
        counts = np.bincount(found.classes[finite], minlength=n_classes)
        asked = self._settings.image_score == "calibrated"
        if counts.min() < (LEAST_ROWS if asked else _ENOUGH_ROWS):
            if not asked:
                return layers
            least = int(counts.argmin())
            named = "the model" if classes is None else f"the class {classes[least]!r}"
            raise ValueError(
                f"image_score is 'calibrated', which needs {LEAST_ROWS} pictures that can be left "
                f"out, and {named} has {counts[least]}; give it more, or choose image_score='sum'"
            )
        own = found.classes[finite]
        return tuple(
            replace(layer, scale=PositionScale.fit(maps[finite], own, n_classes))
            for layer, maps in zip(layers, found.maps, strict=True)
        )
