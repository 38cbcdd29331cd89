"""From a training state to a fitted model: `freeze` is the one place that fits."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.extractor import FeatureSpec
from pydfm.model.anomaly_map import (
    LEAST_ROWS,
    MapScale,
    PositionScale,
    TopShares,
    standardise_held_out,
)
from pydfm.model.fusion import Combination
from pydfm.model.held_out import (
    AllLayersScores,
    HeldOutScores,
    ModelFit,
    PendingScores,
    are_finite,
)
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.model.row_scores import RowScores
from pydfm.model.settings import Settings
from pydfm.model.training import TrainingState
from pydfm.stats.density import DensityFit, fit_density
from pydfm.stats.scores import SCORES

RECALIBRATED: Final = "recalibrated"
"""How held-out scores are made where those of later images replace those of fitted ones."""


@dataclass(frozen=True, eq=False)
class FittedDFM:
    """A fitted model with its calibration; frozen: a new fit makes a new one.

    Attributes
    ----------
    spec : FeatureSpec or None
        What the features of images depend on; None where it was fitted on features.
    model : Model
    calibration : {"loo", "kfold", "split", "recalibrated"} or None
        How held-out scores are made.
    pending : PendingScores, HeldOutScores or None
        The held-out scores, or what they are computed from.
    left_out : tuple of str
        Names of the images that did not belong among the others, and were not fitted.
    """

    spec: FeatureSpec | None
    model: Model
    calibration: str | None
    pending: PendingScores | HeldOutScores | None
    left_out: tuple[str, ...] = ()

    @property
    def held_out(self) -> HeldOutScores:
        """Held-out scores of normal rows, computed when they are first asked for.

        Raises
        ------
        ValueError
            If the model was fitted without calibration.
        """
        return self.held_out_of(None)

    def held_out_of(self, score_type: str | None) -> HeldOutScores:
        """Return held-out scores, among them, if it can be, those of a score type.

        Raises
        ------
        ValueError
            If the model was fitted without calibration.
        """
        if self.calibration is None or self.pending is None:
            raise ValueError(
                "the model was fitted with calibration=None, and has no held-out scores; fit it "
                "with calibration='loo'"
            )
        if isinstance(self.pending, HeldOutScores):
            return self.pending
        found: HeldOutScores | None = vars(self).get("_held_out")
        background = score_type is not None and SCORES[score_type].background
        if found is None or (background and score_type not in found.samples):
            found = self.pending.compute(self.model, background=background)
            object.__setattr__(self, "_held_out", found)
        return found

    def once(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """Return what `compute` makes of this model; kept under `key` from the first time on."""
        kept: dict[tuple[Any, ...], Any] = vars(self).get("_kept", {})
        if key not in kept:
            kept = {**kept, key: compute()}  # another thread may read the old one
            object.__setattr__(self, "_kept", kept)
        return kept[key]

    def __getstate__(self) -> dict[str, Any]:
        # What is computed again when it is asked for.
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def score(
        self, features: NDArray[Any], n_threads: int, classes: NDArray[np.intp] | None = None
    ) -> RowScores:
        """Return the scores of `features` (N, D), perhaps under given `classes` (N,)."""
        return RowScores(self.model, features, n_threads, classes)


def freeze(
    state: TrainingState,
    *,
    n_threads: int,
    outliers: NDArray[Any] | None = None,
    score_types: Sequence[str] = (),
) -> FittedDFM:
    """Fit the model of all rows of a training state.

    Parameters
    ----------
    state : TrainingState
    n_threads : int
    outliers : ndarray of shape (m, D), optional
        Features of known outliers, which the rule "logistic" needs.
    score_types : sequence of str
        Those that will be asked for first.

    Raises
    ------
    ValueError
        With fewer than two rows, rows that are not finite, more components than min(N, D), or too
        few images for what was asked for.
    """
    settings = state.settings
    classes, order = state.classes()
    _check_groups(state, classes, order)
    patch = settings.spatial == "patch"
    wanted = ("calibrated",) if patch else (None, "calibrated")
    standardise = settings.rule in wanted and settings.map_type is not None
    # Held-out scores of the layers are then needed at once, with all eigenpairs.
    needed = standardise or len(state.layers) > 1
    folds = list(range(settings.n_folds))
    fits = tuple(
        fit_density(
            state.cells_of(i, folds, n_threads),
            order,
            n_components=settings.n_components,
            regularization=settings.regularization,
            tied=settings.tied,
            mixture_rows=state.mixture_rows_of(i, folds),
            random_state=settings.random_state,
            n_threads=n_threads,
            classes=classes,
            whole=needed and settings.n_folds == 1,
        )
        for i in range(len(state.layers))
    )
    if any(SCORES[kind].inputs == ("fre",) for kind in score_types):
        _warn_of_no_residual(fits)
    layers = tuple(
        LayerModel(
            name=layer.name,
            columns=layer.columns,
            density=fit.density,
            grid=layer.grid,
            patch=patch and layer.grid is not None,
            # Of patches, for the scores that standardised maps do not make.
            rule="top" if settings.rule is None or (patch and standardise) else settings.rule,
            top_share=settings.patch_share,
        )
        for layer, fit in zip(state.layers, fits, strict=True)
    )
    fit = ModelFit(state, order, layers, fits, n_threads)
    background = any(SCORES[kind].background for kind in score_types)
    found = fit.held_out(background=background) if needed else None
    if found is not None:
        layers = _with_map_scales(layers, found)
    model = Model(layers, classes, {}, state.n_samples)
    if found is not None and standardise:
        model = _standardised(model, found, settings)
    if found is not None and len(layers) > 1:
        model = _combined(model, settings.combine, found, outliers, n_threads)
    pending = None if settings.how is None else PendingScores(fit.forget_pairs(), found)
    return FittedDFM(state.spec, model, settings.how, pending)


def _warn_of_no_residual(fits: Sequence[DensityFit]) -> None:
    """Warn where every direction is a component, so that no row has a residual."""
    subspaces = [subspace for fit in fits for subspace in fit.density.subspaces]
    if all(len(subspace.components) == len(subspace.mean) for subspace in subspaces):
        warnings.warn(
            f"score_type is 'fre', and all {len(subspaces[0].mean)} directions of the features are "
            "components, so that no row has a residual and every score is 0; take fewer "
            "n_components, or score_type='mahalanobis'",
            stacklevel=4,
        )


def _check_groups(state: TrainingState, classes: Sequence[Any] | None, order: list[int]) -> None:
    """Raise ValueError where a class has one group, without which nothing is left of it."""
    if not state.units.grouped or state.settings.held_out is None:
        return
    for place, c in enumerate(order):
        if state.units.n_groups(c) < 2:
            named = "all rows" if classes is None else f"the rows of the class {classes[place]!r}"
            raise ValueError(
                f"groups puts {named} into one group, and without it nothing is left; give groups "
                "that are smaller, such as the parts, or leave groups out"
            )


def _with_map_scales(
    layers: tuple[LayerModel, ...], found: AllLayersScores
) -> tuple[LayerModel, ...]:
    """Give `layers` the scales in which their maps are shown."""
    n_classes = len(layers[0].density.subspaces)
    scales: list[dict[str, MapScale]] = [{} for _ in layers]
    for kind, moments in found.moments.items():
        finite = np.isfinite(moments[:, :, 0]).all(axis=0)
        if not finite.any():
            continue
        for own, theirs in zip(scales, moments, strict=True):
            own[kind] = MapScale.fit(
                theirs[finite], found.classes[finite], n_classes, signed=SCORES[kind].signed
            )
    return tuple(replace(layer, map_scales=own) for layer, own in zip(layers, scales, strict=True))


def _standardised(model: Model, found: AllLayersScores, settings: Settings) -> Model:
    """Return `model` with the scales of its standardised maps, if there are enough images."""
    layers, classes, n_classes = model.layers, model.classes, model.n_classes
    finite = np.zeros(len(found.classes), dtype=bool)
    if found.maps is not None:
        finite = are_finite(found.maps[0])
    counts = np.bincount(found.classes[finite], minlength=n_classes)
    if counts.min() < LEAST_ROWS:
        least = int(counts.argmin())
        named = "the model" if classes is None else f"the class {classes[least]!r}"
        needs = f"needs {LEAST_ROWS} images that can be held out, and {named} has {counts[least]}"
        if settings.rule == "calibrated":
            raise ValueError(
                f"image_score is 'calibrated', which {needs}; give it more, or choose another"
            )
        warnings.warn(
            f"image_score is None, for 'calibrated', which {needs}: it is 'sum'; give more images, "
            "or pass image_score='sum'",
            stacklevel=3,
        )
        return model
    own, units = found.classes[finite], found.units[finite]
    assert found.maps is not None
    assert settings.map_type is not None
    maps = [theirs[finite] for theirs in found.maps]
    layers = tuple(
        replace(layer, scale=PositionScale.fit(theirs, own, n_classes, settings.map_type))
        for layer, theirs in zip(layers, maps, strict=True)
    )
    standard = model.add_layers([standardise_held_out(theirs, own, units) for theirs in maps])
    top = TopShares.fit(settings.calibrated_shares, standard, own, n_classes)
    return replace(model, layers=layers, top=top)


def _combined(
    model: Model,
    rule: str,
    found: AllLayersScores,
    outliers: NDArray[Any] | None,
    n_threads: int,
) -> Model:
    """Return `model` with its layers combined."""
    finite = {kind: s[:, np.isfinite(s).all(axis=0)] for kind, s in found.scores.items()}
    kinds = [kind for kind, normal in finite.items() if normal.shape[1] > 0]
    known = None
    if outliers is not None:
        known = RowScores(model, outliers, n_threads).layer_scores(kinds).astype(np.float64)
    combinations = {
        kind: Combination.fit(rule, finite[kind], None if known is None else known[:, t])
        for t, kind in enumerate(kinds)
    }
    return replace(model, combinations=combinations)
