"""Fits the model of one layer to batches of features, and leaves rows out of it.

How rows are left out is the calibration: "loo", each by itself, exactly and from the one fit
(`pydfm.leave_one_out`); "kfold", a fifth of them at a time, by fits to the other fifths; or
"split", every fifth row of a class, which nothing is fitted on.
"""

import copy
import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.density import SCORE_TYPES, possible_scores
from pydfm.density_fitter import DensityFitter, LeftOutScores
from pydfm.layer import LayerModel, take_columns
from pydfm.maps import Grid
from pydfm.sample import RowSample

CALIBRATIONS: Final = ("loo", "kfold", "split")

N_FOLDS: Final = 5
# Features that are kept to be scored by a fit without them, at most: bytes and rows.
SAMPLE_BYTES: Final = 256 << 20
SAMPLE_ROWS: Final = 10_000


@dataclass(frozen=True)
class LayerSettings:
    """What a layer's model is fitted with; see the parameters of `DFM`.

    Here `calibration` is how the fitted rows are left out, "loo", "kfold" or None; and `map_type`
    the score type of the maps that are made of them, None without.
    """

    n_components: float | int | None
    covariance: str
    density: str
    regularization: str | float | None
    spatial: str
    image_score: str | None
    top_share: float
    random_state: int
    calibration: str | None
    max_bytes: int | None = None
    map_type: str | None = None

    @property
    def n_parts(self) -> int:
        """Parts that rows are divided into to be left out."""
        return N_FOLDS if self.calibration == "kfold" else 1

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

    def sample(self) -> RowSample:
        """Return a sample of the pictures' features, to be scored by a fit without them."""
        most = SAMPLE_BYTES if self.max_bytes is None else self.max_bytes // 4
        return RowSample(SAMPLE_ROWS, self.random_state, most)


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
        self._sample = settings.sample()
        self._model: LayerModel | None = None
        self._found: LeftOutScores | None = None
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

    def add(
        self,
        features: NDArray[Any],
        classes: NDArray[np.intp] | None,
        *,
        owned: bool = True,
    ) -> None:
        """Add rows `features` (N, D) of `classes` (N,); see `SubspaceFitter.add`."""
        rows = take_columns(features, self._columns)
        if len(self._parts) == 1:
            self._parts[0].add(*self._samples(rows, classes), owned=owned)
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
        self._parts[0].forget(*self._samples(take_columns(features, self._columns), classes))
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
        self,
        order: Sequence[int] | None = None,
        classes: Sequence[Any] | None = None,
        *,
        whole: bool = False,
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
            density=fitter.fit(order, classes, whole=whole and len(self._parts) == 1),
            grid=self._grid,
            patch=self._patch,
            rule=self._settings.image_score or "top",
            top_share=self._settings.top_share,
        )
        self._found = None
        return self._model

    def left_out(self) -> LeftOutScores:
        """Scores of rows under their class, fitted without them, after `fit`.

        Classes are numbered in the order that was given to `fit`.
        """
        if self._found is None:
            maps = None
            if self._settings.map_type is not None:
                assert self._grid is not None
                maps = self._grid.energies
            single = len(self._parts) == 1
            self._found = self._parts[0].left_out(maps) if single else self._held_out()
        found = self._found
        places = inverse(self._order)
        return replace(found, classes=places[found.classes])

    def _held_out(self) -> LeftOutScores:
        """Scores of rows of each fold under the model of the others."""
        assert self._model is not None
        places, rows, classes = self._sample.take()
        scores = {kind: np.full(len(places), np.nan) for kind in SCORE_TYPES}
        map_type, maps = self._settings.map_type, None
        if map_type is not None:
            assert self._grid is not None
            shape = (len(places), self._grid.height, self._grid.width)
            maps = np.full(shape, np.nan, dtype=np.float32)
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
            kinds = possible_scores(functools.partial(density.check_scores, classes=None))
            for kind, theirs in zip(
                kinds, model.score(rows[out], kinds, self._n_threads, own)[0], strict=True
            ):
                scores[kind][out] = theirs
            if maps is not None and map_type in kinds:
                maps[out] = model.maps(rows[out], map_type, self._n_threads, own)
        return LeftOutScores(classes, places, scores, maps)


def inverse(order: Sequence[int]) -> NDArray[np.intp]:
    """Return the places of numbers in `order`, by the number."""
    places = np.zeros(max(order) + 1, dtype=np.intp)
    places[list(order)] = np.arange(len(order))
    return places
