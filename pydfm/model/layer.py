"""One layer of a network: its features in their spatial form, its density, scores and maps.

The features of a layer are a row (channels, height, width), flattened. An image is one sample, or,
in the spatial form "patch", each of its positions is one, all under one density. The score of an
image is then a rule over the scores of its positions (`pydfm.model.anomaly_map.pool_positions`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.grid import Grid
from pydfm.features.inputs.arrays import blocks, check_finite
from pydfm.features.inputs.labels import by_class
from pydfm.model.anomaly_map import MapScale, PositionScale, pool_positions
from pydfm.stats.density import Density

# Patches and residuals are made of about this many bytes of features at once.
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class LayerModel:
    """The density of a layer's features, and their columns.

    Attributes
    ----------
    name : str
    columns : slice
        Of the features (N, D) of all layers.
    density : Density
    grid : Grid or None
        None for features that the caller gave.
    patch : bool
        Whether each position of an image is a sample.
    rule : {"max", "top", "mean", "sum"}
        How scores of positions make the score of an image.
    top_share : float in (0, 1]
        Share of the positions that the rule "top" averages.
    scale : PositionScale or None
        Scale of the positions' scores, where standardised maps score images.
    map_scales : dict of str to MapScale
        Scales of the maps that are shown, by score type; empty where maps are shown as they are.
    """

    name: str
    columns: slice
    density: Density
    grid: Grid | None = None
    patch: bool = False
    rule: str = "top"
    top_share: float = 0.1
    scale: PositionScale | None = None
    map_scales: Mapping[str, MapScale] = field(default_factory=dict)

    def score(
        self,
        features: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return scores (T, N) of `features` (N, D), and their classes; see `Density.score`."""
        return self._score(take_columns(features, self.columns), score_types, n_threads, classes)

    def judges(self, score_type: str) -> bool:
        """Whether `judge` has this score type."""
        return not self.patch and self.density.judges(score_type)

    def judge(
        self,
        features: NDArray[Any],
        score_type: str,
        held_out: _core.HeldOutScores,
        n_threads: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return scores (N,), and p-values and margins (2, N), in one pass; see `Density.judge`."""
        return self.density.judge(
            take_columns(features, self.columns), score_type, held_out, n_threads
        )

    def class_scores(
        self, features: NDArray[Any], score_type: str, n_threads: int
    ) -> NDArray[np.float32]:
        """Return scores (C, N) under each of the classes."""
        n_classes = len(self.density.subspaces)
        every = [np.full(len(features), c, dtype=np.intp) for c in range(n_classes)]
        return np.stack([self.score(features, [score_type], n_threads, c)[0][0] for c in every])

    def maps(
        self,
        features: NDArray[Any],
        score_type: str,
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float64]:
        """Return maps (N, height, width), each under its image's class or the nearest.

        A map holds the scores of patches, or, of a whole image, the residual energy of each
        position: its share in the fre.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity.
        """
        assert self.grid is not None
        if self.patch:
            if classes is None and len(self.density.subspaces) > 1:
                classes = self.score(features, [score_type], n_threads)[1][0].astype(np.intp)
            return self.patch_scores(features, score_type, n_threads, classes).astype(np.float64)
        parts = []
        for at, rows in _pieces(take_columns(features, self.columns)):
            check_finite(rows, at.start)
            nearest = None if classes is None else classes[at]
            if nearest is None and len(self.density.subspaces) > 1:
                nearest = self._score(rows, [score_type], n_threads, None)[1][0].astype(np.intp)
            parts.append(self.grid.energies(self._residuals(rows, nearest, n_threads)))
        return np.concatenate(parts).astype(np.float64)

    def patch_scores(
        self,
        features: NDArray[Any],
        score_type: str,
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float32]:
        """Return scores (N, height, width) of patches, under their image's class or the only one.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity.
        """
        assert self.grid is not None
        parts = []
        for at, rows in _pieces(take_columns(features, self.columns)):
            check_finite(rows, at.start)  # the density would name the patch, not the image
            theirs = None if classes is None else classes[at]
            parts.append(self._patch_scores(rows, [score_type], n_threads, theirs)[0])
        shape = (len(features), self.grid.height, self.grid.width)
        return np.concatenate(parts).reshape(shape)

    def with_density(self, density: Density, places: NDArray[np.intp]) -> "LayerModel":
        """Return this layer with another density, of the classes at some `places`."""
        return replace(
            self,
            density=density,
            scale=None if self.scale is None else self.scale.of_classes(places),
            map_scales={k: own.of_classes(places) for k, own in self.map_scales.items()},
        )

    def scaled(
        self, maps: NDArray[np.floating], score_type: str, classes: NDArray[np.intp] | None
    ) -> NDArray[np.float64]:
        """Return `maps` (N, height, width) in the units in which layers' maps are added up."""
        if score_type in self.map_scales:
            return self.map_scales[score_type].scale(maps, classes)
        # Files of before have no scale of their own for maps.
        assert self.scale is not None
        return self.scale.standardise(maps, classes)

    def pool(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores (...) of images from those (..., positions) of their patches."""
        return pool_positions(scores, self.rule, self.top_share).astype(np.float32)

    def _score(
        self,
        own: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        if not self.patch:
            return self.density.score(own, score_types, n_threads, classes)
        parts = []
        for at, rows in _pieces(own):
            check_finite(rows, at.start)  # the density would name the patch, not the image
            theirs = None if classes is None else classes[at]
            parts.append(self._score_patches(rows, score_types, n_threads, theirs))
        scores, nearest = zip(*parts, strict=True)
        return np.concatenate(scores, axis=1), np.concatenate(nearest, axis=1)

    def _score_patches(
        self,
        rows: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        n_classes = len(self.density.subspaces)
        if classes is not None or n_classes == 1:
            scores = self.pool(self._patch_scores(rows, score_types, n_threads, classes))
            own = np.zeros(len(rows), dtype=np.int32) if classes is None else classes
            return scores, np.broadcast_to(own.astype(np.int32), scores.shape)
        # All positions of an image are of one class.
        least = np.full((len(score_types), len(rows)), np.inf, dtype=np.float32)
        nearest = np.zeros(least.shape, dtype=np.int32)
        for c in range(n_classes):
            every = np.full(len(rows), c, dtype=np.intp)
            scores = self.pool(self._patch_scores(rows, score_types, n_threads, every))
            nearest[scores < least] = c
            least = np.minimum(least, scores)
        return least, nearest

    def _patch_scores(
        self,
        rows: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None,
    ) -> NDArray[np.float32]:
        """Return scores (T, N, positions) of the patches of `rows` (N, size)."""
        assert self.grid is not None
        if classes is not None:
            classes = np.repeat(classes, self.grid.positions)
        patches = self.grid.patches(rows)
        scores, _ = self.density.score(patches, score_types, n_threads, classes)
        return scores.reshape(len(score_types), len(rows), self.grid.positions)

    def _residuals(
        self, rows: NDArray[Any], nearest: NDArray[np.intp] | None, n_threads: int
    ) -> NDArray[np.float64]:
        """Return the residuals of `rows` (N, size) under the subspaces of their classes."""
        residuals = np.empty(rows.shape)
        own = np.zeros(len(rows), dtype=np.intp) if nearest is None else nearest
        for c, places in by_class(own):
            subspace = self.density.subspaces[c]
            for first, block in blocks(rows[places]):
                residuals[places[first : first + len(block)]] = _core.residuals(
                    block, subspace.mean, subspace.components, n_threads=n_threads
                )
        return residuals


def take_columns(features: NDArray[Any], columns: slice) -> NDArray[Any]:
    """Return some columns of `features` (N, D); the array itself where they are all."""
    whole = (columns.start, columns.stop) == (0, features.shape[1])
    return features if whole else features[:, columns]


def _pieces(features: NDArray[Any]) -> Any:
    """Yield places and rows of `features`, in pieces of bounded size."""
    step = max(1, _BLOCK_BYTES // (features.shape[1] * 8))
    for first in range(0, len(features), step):
        yield slice(first, first + step), features[first : first + step]
