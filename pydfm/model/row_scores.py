"""What a model makes of some rows: every score and map is computed once, when first asked for."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.model.anomaly_map import smooth
from pydfm.model.model import Model

Found = TypeVar("Found")

# Maps under every class are kept if they take at most so many bytes.
_MOST_KEPT = 64 << 20


class RowScores:
    """Scores of a batch of rows under a model.

    Parameters
    ----------
    model : Model
    features : ndarray of shape (N, D)
    n_threads : int
    classes : ndarray of shape (N,), optional
        The class of each row, in place of the nearest.
    """

    def __init__(
        self,
        model: Model,
        features: NDArray[Any],
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> None:
        self.model = model
        self.classes = classes
        self._features = features
        self._n_threads = n_threads
        self._found: dict[Any, Any] = {}
        self._under: dict[int, RowScores] = {}

    @property
    def n_rows(self) -> int:
        """Number of rows, N."""
        return len(self._features)

    def under(self, model: Model, classes: NDArray[np.intp] | None) -> "RowScores":
        """Return the scores of the same rows under another model; kept, too."""
        found: RowScores | None = self._under.get(id(model))
        if found is None:
            found = RowScores(model, self._features, self._n_threads, classes)
            self._under[id(model)] = found
        return found

    def scores(self, score_types: Sequence[str]) -> NDArray[np.float32]:
        """Return scores (T, N) of all layers together."""
        model = self.model
        one = len(model.layers) == 1
        if one and not model.calibrated and not self._found:
            # What most calls ask for, so the way is short.
            first: NDArray[np.float32] = self.layer_scores(score_types)[0]
            return first
        found = {}
        for kind in score_types:
            if model.by_maps(kind) or (one and ("class", kind) in self._found):
                found[kind] = self.class_scores(kind).min(axis=0)
        if others := [kind for kind in score_types if kind not in found]:
            layers = self.layer_scores(others)
            for t, kind in enumerate(others):
                own = layers[:, t]
                found[kind] = own[0] if one else model.combinations[kind].combine(own)
        return np.stack([found[kind] for kind in score_types]).astype(np.float32, copy=False)

    def layer_scores(self, score_types: Sequence[str]) -> NDArray[np.float32]:
        """Return scores (L, T, N) of each layer by itself."""
        for kind in score_types:
            if ("layer classes", kind) in self._found and ("layers", kind) not in self._found:
                self._found["layers", kind] = self.layer_class_scores(kind).min(axis=1)
        missing = [kind for kind in score_types if ("layers", kind) not in self._found]
        if missing:
            scores, nearest = self._layer_scores(missing)
            for t, kind in enumerate(missing):
                self._found["layers", kind] = scores[:, t]
                self._found["nearest", kind] = nearest[:, t]
            if len(missing) == len(score_types):
                return scores
        return np.stack([self._found["layers", kind] for kind in score_types], axis=1)

    def class_scores(self, score_type: str) -> NDArray[np.float32]:
        """Return scores (C, N) under each class, or (1, N) under the rows' given classes."""
        return self._once(("class", score_type), lambda: self._class_scores(score_type))

    def layer_class_scores(self, score_type: str) -> NDArray[np.float32]:
        """Return scores (L, C, N) of each layer under each class, or (L, 1, N)."""
        key = ("layer classes", score_type)
        return self._once(key, lambda: self._layer_class_scores(score_type))

    def judge(
        self, score_type: str, held_out: _core.HeldOutScores
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]] | None:
        """Return scores (N,), and p-values and margins (2, N), the largest over the classes.

        From one pass over the rows, which need not be scored under every class; None where there is
        no such pass: under given classes, with several layers, patches, mixtures, or scores that
        compare classes.
        """
        model = self.model
        one = len(model.layers) == 1 and self.classes is None and not model.by_maps(score_type)
        if not one or not model.layers[0].judges(score_type):
            return None
        return model.layers[0].judge(self._features, score_type, held_out, self._n_threads)

    def nearest(self, score_type: str) -> NDArray[np.intp]:
        """Return the class (N,), by its place, under which each row scores the least."""
        if len(self.model.layers) > 1 or self.model.by_maps(score_type):
            return np.asarray(self.class_scores(score_type).argmin(axis=0))
        first: NDArray[np.intp] = self._layer_nearest(score_type)[0]
        return first

    def maps(
        self, score_type: str, size: tuple[int, int], smoothing: float = 0.0
    ) -> NDArray[np.float32]:
        """Return maps (N, *size), each under the image's class or the nearest."""
        model = self.model
        if model.by_maps(score_type):
            classes = self.classes
            if classes is None and model.n_classes > 1:
                classes = self.nearest(score_type)
            total = self._scaled(self._energies(classes), score_type, [classes] * len(model.layers))
            total = model.enlarge(total, size)
        else:
            found = [self._layer_maps(i, score_type) for i in range(len(model.layers))]
            each, own = zip(*found, strict=True)
            if model.has_scaled_maps(score_type):
                total = model.enlarge(self._scaled(each, score_type, own), size)
            else:
                total = model.join_maps(each, score_type, size)
        return (smooth(total, smoothing) if smoothing else total).astype(np.float32)

    def deviations(self) -> list[NDArray[np.float64]] | None:
        """Return by how many deviations positions are above those of good images.

        Standardised energies (N, height, width) of each layer, under the image's class or the
        nearest; None where the model has no standardised maps.
        """
        model, classes = self.model, self.classes
        scale = model.layers[0].scale
        if scale is None:
            return None
        if classes is None and model.n_classes > 1:
            classes = self.nearest(scale.score_type)
        found = []
        for layer, own in zip(model.layers, self._energies(classes), strict=True):
            assert layer.scale is not None
            found.append(layer.scale.standardise(own, classes))
        return found

    def _once(self, key: Any, compute: Callable[[], Found]) -> Found:
        if key not in self._found:
            self._found[key] = compute()
        found: Found = self._found[key]
        return found

    def _layer_scores(
        self, score_types: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return scores (L, T, N) of the layers, and their nearest classes (L, T, N)."""
        found = []
        for i, layer in enumerate(self.model.layers):
            if self._keeps_patches(i):
                each = np.stack([self._pooled(i, kind) for kind in score_types])  # (T, C, N)
                found.append((each.min(axis=1), each.argmin(axis=1).astype(np.int32)))
            else:
                found.append(
                    layer.score(self._features, score_types, self._n_threads, self.classes)
                )
        if len(found) == 1:
            return found[0][0][None], found[0][1][None]
        return np.stack([scores for scores, _ in found]), np.stack([near for _, near in found])

    def _layer_nearest(self, kind: str) -> NDArray[np.intp]:
        """Return the class (L, N) under which each layer scores each row the least."""
        if ("layer classes", kind) in self._found:
            return np.asarray(self.layer_class_scores(kind).argmin(axis=1))
        self.layer_scores([kind])
        nearest: NDArray[np.int32] = self._found["nearest", kind]
        return nearest.astype(np.intp)

    def _layer_maps(self, i: int, kind: str) -> tuple[NDArray[np.float64], NDArray[np.intp] | None]:
        """Return maps (N, height, width) of one layer, and the classes (N,) that they are under."""
        layer, classes = self.model.layers[i], self.classes
        if classes is None and self.model.n_classes > 1:
            classes = self._layer_nearest(kind)[i]
        if not self._keeps_patches(i):
            return layer.maps(self._features, kind, self._n_threads, classes), classes
        patches = self._patches(i, kind)
        own = patches[0]
        if len(patches) > 1:
            own = patches[classes, np.arange(len(self._features))]
        return own.astype(np.float64), classes

    def _keeps_patches(self, i: int) -> bool:
        """Whether a layer's scores of patches are kept, which make scores and maps of images."""
        layer = self.model.layers[i]
        if not layer.patch or layer.grid is None:
            return False
        n_classes = 1 if self.classes is not None else self.model.n_classes
        return 4 * layer.grid.positions * len(self._features) * n_classes <= _MOST_KEPT

    def _patches(self, i: int, kind: str) -> NDArray[np.float32]:
        """Return scores (C, N, height, width) of a layer's patches, or (1, N, height, width)."""

        def compute() -> NDArray[np.float32]:
            own: list[NDArray[np.intp] | None] = [self.classes]
            if self.classes is None and self.model.n_classes > 1:
                n = len(self._features)
                own = [np.full(n, c, dtype=np.intp) for c in range(self.model.n_classes)]
            layer = self.model.layers[i]
            return np.stack(
                [layer.patch_scores(self._features, kind, self._n_threads, c) for c in own]
            )

        return self._once(("patches", i, kind), compute)

    def _pooled(self, i: int, kind: str) -> NDArray[np.float32]:
        """Return scores (C, N) of images from those of a layer's patches, or (1, N)."""
        patches = self._patches(i, kind)
        return self.model.layers[i].pool(patches.reshape(*patches.shape[:2], -1))

    def _class_scores(self, kind: str) -> NDArray[np.float32]:
        if not self.model.by_maps(kind):
            each = self.layer_class_scores(kind)
            if len(self.model.layers) == 1:
                scores: NDArray[np.float32] = each[0]
                return scores
            return self.model.combinations[kind].combine(each).astype(np.float32)
        if self.classes is not None or self.model.n_classes == 1:
            return self._score_energies(self._energies(self.classes), self.classes)[None]
        return np.stack([self._scores_under(c) for c in range(self.model.n_classes)])

    def _layer_class_scores(self, kind: str) -> NDArray[np.float32]:
        if self.classes is not None or self.model.n_classes == 1:
            return self.layer_scores([kind])
        return np.stack(
            [
                self._pooled(i, kind)
                if self._keeps_patches(i)
                else layer.class_scores(self._features, kind, self._n_threads)
                for i, layer in enumerate(self.model.layers)
            ]
        )

    def _scores_under(self, c: int) -> NDArray[np.float32]:
        classes = np.full(len(self._features), c, dtype=np.intp)
        return self._score_energies(self._energies_under(c), classes)

    def _score_energies(
        self, energies: Sequence[NDArray[np.float64]], classes: NDArray[np.intp] | None
    ) -> NDArray[np.float32]:
        """Return scores (N,) by standardised maps, from the layers' `energies`."""
        each = []
        for layer, own in zip(self.model.layers, energies, strict=True):
            assert layer.scale is not None
            each.append(layer.scale.standardise(own, classes))
        return self.model.top_shares.score(self.model.add_layers(each), classes)

    def _scaled(
        self,
        maps: Sequence[NDArray[np.float64]],
        kind: str,
        classes: Sequence[NDArray[np.intp] | None],
    ) -> NDArray[np.float64]:
        """Return the sum of the layers' `maps` in their scales, at the finest positions."""
        return self.model.add_layers(
            [
                layer.scaled(own, kind, theirs)
                for layer, own, theirs in zip(self.model.layers, maps, classes, strict=True)
            ]
        )

    def _energies_under(self, c: int) -> list[NDArray[np.float64]]:
        """Return maps (N, height, width) of each layer under the class `c`."""
        positions = sum(layer.grid.positions for layer in self.model.layers if layer.grid)
        n_bytes = 8 * positions * len(self._features) * self.model.n_classes
        classes = np.full(len(self._features), c, dtype=np.intp)
        if n_bytes > _MOST_KEPT:
            return self._compute_energies(classes)
        return self._once(("energies", c), lambda: self._compute_energies(classes))

    def _energies(self, classes: NDArray[np.intp] | None) -> list[NDArray[np.float64]]:
        """Return maps (N, height, width) of each layer, under `classes` (N,)."""
        if classes is self.classes:
            return self._once("energies", lambda: self._compute_energies(classes))
        assert classes is not None
        if all(("energies", c) in self._found for c in range(self.model.n_classes)):
            rows = np.arange(len(classes))
            under = [self._energies_under(c) for c in range(self.model.n_classes)]
            return [np.stack(own)[classes, rows] for own in zip(*under, strict=True)]
        return self._compute_energies(classes)

    def _compute_energies(self, classes: NDArray[np.intp] | None) -> list[NDArray[np.float64]]:
        each = []
        for layer in self.model.layers:
            assert layer.scale is not None
            kind = layer.scale.score_type
            each.append(layer.maps(self._features, kind, self._n_threads, classes))
        return each
