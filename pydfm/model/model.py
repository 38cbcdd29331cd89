"""A fitted model: layers, their classes, and how the layers are combined. Rows in, scores out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features.grid import Grid
from pydfm.model.anomaly_map import TopShares, finest_of, sum_of_layers
from pydfm.model.fusion import Combination
from pydfm.model.layer import LayerModel
from pydfm.stats.scores import SCORES


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
        Number of rows or images it was fitted on.
    top : TopShares or None
        How standardised maps make scores of images; None for the mean of one share, that of the
        layers.
    """

    layers: tuple[LayerModel, ...]
    classes: list[Any] | None
    combinations: dict[str, Combination]
    n_samples: int
    top: TopShares | None = None

    @property
    def calibrated(self) -> bool:
        """Whether standardised maps make the score of an image; see `pydfm.model.anomaly_map`."""
        return self.layers[0].scale is not None

    @property
    def n_features(self) -> int:
        """Number of features per row, D, of all layers together."""
        return int(self.layers[-1].columns.stop)

    @property
    def n_classes(self) -> int:
        """Number of classes; 1 without labels."""
        return len(self.layers[0].density.subspaces)

    @property
    def image_score(self) -> str:
        """How scores of positions make the score of an image."""
        layer = self.layers[0]
        if self.calibrated:
            return "calibrated"
        return layer.rule if layer.patch else "sum"

    def summary(self) -> str:
        """Say in a line what it was fitted on, and how many components it keeps."""
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

    def by_maps(self, score_type: str) -> bool:
        """Whether scores of this type are made of standardised maps."""
        scale = self.layers[0].scale
        return scale is not None and scale.score_type == score_type

    def has_scaled_maps(self, score_type: str) -> bool:
        """Whether the maps of the layers, of this type, have scales in which they are added up."""
        return score_type in self.layers[0].map_scales or self.by_maps(score_type)

    def check_scores(self, score_types: Sequence[str]) -> None:
        """Raise ValueError if the layers, together, cannot give one of the `score_types`."""
        # The model is frozen, so that what passed once passes always.
        passed: set[str] = vars(self).setdefault("_passed", set())
        if passed.issuperset(score_types):
            return
        self.check_layer_scores(score_types)
        for kind in score_types:
            combined = kind in self.combinations or self.by_maps(kind)
            if len(self.layers) > 1 and not combined:
                raise ValueError(
                    f"score_type is {kind!r}, for which the layers' scores cannot be combined, "
                    "since fitted images have no held-out scores of that type; fit with that "
                    "score_type, or with more images"
                )
        passed.update(score_types)

    def check_layer_scores(self, score_types: Sequence[str]) -> None:
        """Raise ValueError if a layer cannot give one of the `score_types`."""
        for layer in self.layers:
            layer.density.check_scores(score_types, self.classes)

    def check_maps(self, score_type: str) -> None:
        """Raise ValueError if the model has no maps of `score_type`."""
        why = self._why_no_maps(score_type)
        if why is not None:
            raise ValueError(why)

    def map_type(self, score_type: str) -> str | None:
        """Return the type of the maps beside scores of `score_type`; None where there are none.

        Patches have maps of each type, a whole image those of its residual.
        """
        kind = score_type if all(layer.patch for layer in self.layers) else "fre"
        return kind if self._why_no_maps(kind) is None else None

    def _why_no_maps(self, score_type: str) -> str | None:
        if any(layer.grid is None for layer in self.layers):
            return (
                "the model was fitted on features, which have no place in an image; fit it on "
                "images"
            )
        if not SCORES[score_type].has_maps and not all(layer.patch for layer in self.layers):
            return (
                f"score_type is {score_type!r}, of which a whole image has no map; pass "
                "score_type='fre', or fit with spatial='patch'"
            )
        if all(layer.grid is not None and layer.grid.positions == 1 for layer in self.layers):
            names = ", ".join(repr(layer.name) for layer in self.layers)
            return (
                f"features of {names} have one position in an image, so that there is no map; fit "
                "with a layer that has more, such as 'layer3', and spatial='flatten' or 'patch'"
            )
        return None

    def join_maps(
        self, maps: Sequence[NDArray[np.floating]], score_type: str, size: tuple[int, int]
    ) -> NDArray[np.float64]:
        """Return maps (N, *size) of those of the layers, where they have no scales.

        That of one layer is as it is. Of several layers, as files of before have them: the sum of
        each over the mean of the layer's scores, or over their deviation if they may be negative.
        """
        total = np.zeros((len(maps[0]), *size))
        scales: Any = ()
        if len(self.layers) > 1:
            rule = self.combinations[score_type]
            mean = np.maximum(rule.mean, np.finfo(float).tiny)
            scales = rule.scale if SCORES[score_type].signed else mean
        for i, (layer, own) in enumerate(zip(self.layers, maps, strict=True)):
            assert layer.grid is not None
            large = layer.grid.enlarge(own, size)
            if len(self.layers) > 1:
                large /= scales[i]
            total += large
        return total

    def add_layers(self, maps: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the sum of layers' scaled `maps`, at the positions of the finest layer."""
        return sum_of_layers(maps, self._grids)

    @property
    def top_shares(self) -> TopShares:
        """How standardised maps make scores of images."""
        return self.top or TopShares.plain(self.layers[0].top_share, self.n_classes)

    def enlarge(self, maps: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Return `maps` of all layers, added up, at an image's `size`."""
        return self.grid.enlarge(maps, size)

    @property
    def grid(self) -> Grid:
        """The finest of the layers' grids."""
        return finest_of(self._grids)

    @property
    def _grids(self) -> list[Grid]:
        return [layer.grid for layer in self.layers if layer.grid is not None]
