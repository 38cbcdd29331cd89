"""A fitted model: the layers, their classes and how they are combined; rows of features in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.combination import Combination
from pydfm.layer import LayerModel
from pydfm.maps import smooth

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
        return ", ".join(parts)

    def check_scores(self, score_types: Sequence[str]) -> None:
        """Raise ValueError where the layers, together, cannot give one of the `score_types`."""
        self.check_layer_scores(score_types)
        for kind in score_types:
            if len(self.layers) > 1 and kind not in self.combinations:
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
        if len(self.layers) == 1:
            return self.layers[0].score(features, score_types, n_threads, classes)[0]
        scores = self.layer_scores(features, score_types, n_threads, classes)
        combined = [
            self.combinations[kind].combine(scores[:, t]) for t, kind in enumerate(score_types)
        ]
        return np.stack(combined).astype(np.float32)

    def nearest(self, features: NDArray[Any], score_type: str, n_threads: int) -> NDArray[np.int32]:
        """Places (N,) among the classes of those that `features` (N, D) score the least under."""
        if len(self.layers) == 1:
            nearest: NDArray[np.int32] = self.layers[0].score(features, [score_type], n_threads)[1][
                0
            ]
            return nearest
        each = [layer.class_scores(features, score_type, n_threads) for layer in self.layers]
        combined = self.combinations[score_type].combine(np.stack(each))
        return np.asarray(combined.argmin(axis=0), dtype=np.int32)

    def maps(
        self,
        features: NDArray[Any],
        score_type: str,
        n_threads: int,
        size: tuple[int, int],
        smoothing: float,
    ) -> NDArray[np.float32]:
        """Return maps (N, *size); of several layers, the sum of each over its mean."""
        each = [layer.maps(features, score_type, n_threads) for layer in self.layers]
        maps = np.empty((len(features), *size), dtype=np.float32)
        for first in range(0, len(features), _MAPS_AT_ONCE):
            part = slice(first, first + _MAPS_AT_ONCE)
            total = np.zeros(maps[part].shape)
            for i, (layer, own) in enumerate(zip(self.layers, each, strict=True)):
                assert layer.grid is not None
                enlarged = layer.grid.enlarge(own[part], size)
                if len(self.layers) > 1:
                    mean = float(self.combinations[score_type].mean[i])
                    enlarged /= max(mean, np.finfo(float).tiny)
                total += enlarged
            maps[part] = smooth(total, smoothing) if smoothing else total
        return maps
