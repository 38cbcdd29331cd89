"""A fitted model: the layers, their classes and how they are combined; rows of features in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.combination import Combination
from pydfm.layer import LayerModel, pool_positions
from pydfm.maps import Grid, smooth
from pydfm.positions import finest_of, sum_of_layers

# Maps are float64 while they are made, of so many pictures at once.
_MAPS_AT_ONCE = 32


@dataclass(frozen=True)
class Model:
    """Models of one or more layers, of the same rows and classes.

    Attributes
    ----------
    layers : tuple of LayerModel
    classes : list or None
        Labels of the classes, sorted; None without labels.
    combinations : dict of str to Combination
        By score type, how the layers make one score; empty with one layer.
    n_samples : int
        Rows or images it was fitted on.
    """

    layers: tuple[LayerModel, ...]
    classes: list[Any] | None
    combinations: dict[str, Combination]
    n_samples: int

    @property
    def calibrated(self) -> bool:
        """Whether fre of pictures is made of standardised maps; see `pydfm.positions`."""
        return self.layers[0].scale is not None

    @property
    def n_features(self) -> int:
        """D, of all layers together."""
        return int(self.layers[-1].columns.stop)

    def summary(self) -> str:
        """Tell in a line what it was fitted on, and how many components it keeps."""
        parts = [f"{self.n_samples} images"]
        if self.classes is not None:
            parts.append(f"{len(self.classes)} classes")
        for layer in self.layers:
            counts = [len(subspace.components) for subspace in layer.density.subspaces]
            kept = str(min(counts))
            if max(counts) > min(counts):
                kept += f" to {max(counts)}"
            name = f"{layer.name}: " if len(self.layers) > 1 else ""
            parts.append(f"{name}{kept} of {layer.density.n_features} components")
            fitted = sum(mixture.n_samples for mixture in layer.density.mixtures or ())
            n_rows = sum(subspace.n_samples for subspace in layer.density.subspaces)
            if 0 < fitted < n_rows:
                parts.append(f"{name}mixtures on {fitted} of {n_rows} rows")
        return ", ".join(parts)

    def check_scores(self, score_types: Sequence[str]) -> None:
        """Raise ValueError where the layers, together, cannot give one of the `score_types`."""
        self.check_layer_scores(score_types)
        for kind in score_types:
            combined = kind in self.combinations or (kind == "fre" and self.calibrated)
            if len(self.layers) > 1 and not combined:
                raise ValueError(
                    f"score_type is {kind!r}, of which the layers' scores cannot be combined, "
                    "since fitted images do not have it without themselves; fit with that "
                    "score_type, or with more images"
                )

    def check_layer_scores(self, score_types: Sequence[str]) -> None:
        """Raise ValueError where a layer cannot give one of the `score_types`."""
        for layer in self.layers:
            layer.density.check_scores(score_types, self.classes)

    def check_maps(self, score_type: str) -> None:
        """Raise ValueError where the model has no maps of `score_type`."""
        if any(layer.grid is None for layer in self.layers):
            raise ValueError(
                "the model was fitted on features, which have no place on a picture; fit it on "
                "images"
            )
        if score_type != "fre" and not all(layer.patch for layer in self.layers):
            raise ValueError(
                f"score_type is {score_type!r}, of which a whole picture has no map; pass "
                "score_type='fre', or fit with spatial='patch'"
            )
        if all(layer.grid is not None and layer.grid.positions == 1 for layer in self.layers):
            names = ", ".join(repr(layer.name) for layer in self.layers)
            raise ValueError(
                f"features of {names} have one position in a picture, so that there is no map; fit "
                "with a layer that has more, such as 'layer3', and spatial='flatten' or 'patch'"
            )

    def layer_scores(
        self,
        features: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float32]:
        """Scores (L, T, N) of `features` (N, D) by each layer; see `Density.score`."""
        return np.stack(
            [layer.score(features, score_types, n_threads, classes)[0] for layer in self.layers]
        )

    def score(
        self,
        features: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float32]:
        """Scores (T, N) of `features` (N, D) by all layers together."""
        if self.calibrated and "fre" in score_types:
            others = [kind for kind in score_types if kind != "fre"]
            standard = self._standard_scores(features, n_threads, classes).min(axis=0)
            found = {"fre": standard}
            if others:
                scores = self.score(features, others, n_threads, classes)
                found |= dict(zip(others, scores, strict=True))
            return np.stack([found[kind] for kind in score_types])
        if len(self.layers) == 1:
            return self.layers[0].score(features, score_types, n_threads, classes)[0]
        scores = self.layer_scores(features, score_types, n_threads, classes)
        combined = [
            self.combinations[kind].combine(scores[:, t]) for t, kind in enumerate(score_types)
        ]
        return np.stack(combined).astype(np.float32)

    def class_scores(
        self, features: NDArray[Any], score_type: str, n_threads: int
    ) -> NDArray[np.float32]:
        """Scores (C, N) of `features` (N, D) under each of the classes."""
        if self.calibrated and score_type == "fre":
            return self._standard_scores(features, n_threads, None)
        each = np.stack(
            [layer.class_scores(features, score_type, n_threads) for layer in self.layers]
        )
        if len(self.layers) > 1:
            return self.combinations[score_type].combine(each).astype(np.float32)
        scores: NDArray[np.float32] = each[0]
        return scores

    def nearest(self, features: NDArray[Any], score_type: str, n_threads: int) -> NDArray[np.int32]:
        """Places (N,) among the classes of those that `features` (N, D) score the least under."""
        if len(self.layers) == 1 and not (self.calibrated and score_type == "fre"):
            nearest: NDArray[np.int32] = self.layers[0].score(features, [score_type], n_threads)[1][
                0
            ]
            return nearest
        each = self.class_scores(features, score_type, n_threads)
        return np.asarray(each.argmin(axis=0), dtype=np.int32)

    def maps(
        self,
        features: NDArray[Any],
        score_type: str,
        n_threads: int,
        size: tuple[int, int],
        smoothing: float = 0.0,
        classes: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float32]:
        """Return maps (N, *size) under a picture's class or the nearest; see `join_maps`."""
        if self.calibrated and score_type == "fre":
            if classes is None and len(self.layers[0].density.subspaces) > 1:
                classes = self.nearest(features, score_type, n_threads).astype(np.intp)
            total = self.enlarge(self._standard_maps(features, n_threads, classes), size)
        else:
            each = [layer.maps(features, score_type, n_threads, classes) for layer in self.layers]
            total = self.join_maps(each, score_type, size)
        return (smooth(total, smoothing) if smoothing else total).astype(np.float32)

    def join_maps(
        self, maps: Sequence[NDArray[np.floating]], score_type: str, size: tuple[int, int]
    ) -> NDArray[np.float64]:
        """Return maps (N, *size) of those of the layers: the sum of each over its mean."""
        total = np.zeros((len(maps[0]), *size))
        for i, (layer, own) in enumerate(zip(self.layers, maps, strict=True)):
            assert layer.grid is not None
            large = layer.grid.enlarge(own, size)
            if len(self.layers) > 1:
                large /= max(float(self.combinations[score_type].mean[i]), np.finfo(float).tiny)
            total += large
        return total

    def join_standardised(self, maps: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the sum of layers' standardised `maps`, at the positions of the finest layer."""
        return sum_of_layers(maps, self._grids)

    def score_maps(self, maps: NDArray[np.float64]) -> NDArray[np.float32]:
        """Scores (N,) of standardised `maps` (N, height, width): the mean of the largest."""
        flat = maps.reshape(len(maps), -1)
        return pool_positions(flat, "top", self.layers[0].top_share).astype(np.float32)

    def enlarge(self, maps: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Return standardised `maps` of all layers at a picture's `size`."""
        return self.grid.enlarge(maps, size)

    @property
    def grid(self) -> Grid:
        """The finest of the layers' grids."""
        return finest_of(self._grids)

    @property
    def _grids(self) -> list[Grid]:
        return [layer.grid for layer in self.layers if layer.grid is not None]

    def _standard_maps(
        self, features: NDArray[Any], n_threads: int, classes: NDArray[np.intp] | None
    ) -> NDArray[np.float64]:
        each = []
        for layer in self.layers:
            assert layer.scale is not None
            energies = layer.maps(features, "fre", n_threads, classes)
            each.append(layer.scale.standardise(energies, classes))
        return self.join_standardised(each)

    def _standard_scores(
        self, features: NDArray[Any], n_threads: int, classes: NDArray[np.intp] | None
    ) -> NDArray[np.float32]:
        """Scores by standardised maps: (C, N) under each class, or (1, N) under their own."""
        n_classes = len(self.layers[0].density.subspaces)
        if classes is not None or n_classes == 1:
            return self.score_maps(self._standard_maps(features, n_threads, classes))[None]
        every = [np.full(len(features), c, dtype=np.intp) for c in range(n_classes)]
        return np.stack(
            [self.score_maps(self._standard_maps(features, n_threads, c)) for c in every]
        )
