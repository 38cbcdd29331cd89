"""What all methods of a `DFM` share: its parameters, the sources they read, the fitted state."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import _check_feature_names

from pydfm._checks import check_choice, check_integer, check_number, check_share, parse_bytes
from pydfm.calibration import ModelCalibration
from pydfm.combination import COMBINATIONS
from pydfm.density import COVARIANCES, DENSITIES, SCORE_TYPES
from pydfm.extraction import Extractor, FeatureSpec
from pydfm.features import FeatureSource
from pydfm.fitting import ModelFitter
from pydfm.images import ImageSource, Skipped, open_source
from pydfm.labels import RowLabels, find_classes
from pydfm.layer import PATCH_RULES, SPATIAL_FORMS
from pydfm.layer_fitter import CALIBRATIONS, LayerSettings
from pydfm.maps import Grid
from pydfm.model import Model
from pydfm.subspace import check_n_components, check_regularization
from pydfm.threads import resolve_threads

if TYPE_CHECKING:
    import torch


class Estimator(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Parameters and fitted state of a `DFM`, which has their documentation."""

    calibration_: str | None
    feature_spec_: FeatureSpec | None
    _model: Model | None
    _fitter: ModelFitter | None
    skipped_: list[Skipped]
    _extractor: Extractor | None
    _loaded_calibration: ModelCalibration | None

    def __init__(
        self,
        n_components: float | int | None = 0.97,
        score_type: str | Sequence[str] = "fre",
        *,
        covariance: str = "class",
        density: str = "gaussian",
        regularization: str | float | None = None,
        backbone: "str | os.PathLike[str] | torch.nn.Module" = "resnet18",
        weights: "str | os.PathLike[str] | None" = "imagenet",
        layers: str | Sequence[str] | None = None,
        combine: str = "sum",
        spatial: str = "flatten",
        image_score: str | None = None,
        top_share: float = 0.1,
        pool: int | Sequence[int] | None = None,
        image_size: int | tuple[int, int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        device: "str | torch.device | None" = None,
        precision: str = "float32",
        batch_size: int = 32,
        n_threads: int | None = None,
        on_error: str = "raise",
        calibration: str | None = "loo",
        max_memory: str | int | None = None,
        alpha: float = 0.01,
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.score_type = score_type
        self.covariance = covariance
        self.density = density
        self.regularization = regularization
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.combine = combine
        self.spatial = spatial
        self.image_score = image_score
        self.top_share = top_share
        self.pool = pool
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.n_threads = n_threads
        self.on_error = on_error
        self.calibration = calibration
        self.max_memory = max_memory
        self.alpha = alpha
        self.random_state = random_state
        self.verbose = verbose

    @property
    def model_(self) -> Model:  # noqa: D102 (described with the class)
        self._check_fitted()
        if self._model is None:
            fitter = self._growing_fitter().copy()  # which an interruption may leave half done
            self._model = fitter.fit()
            self._fitter = fitter
        return self._model

    @property
    def n_features_in_(self) -> int:  # noqa: D102
        self._check_fitted()
        return self.model_.n_features if self._fitter is None else self._fitter.n_features

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "calibration_")

    def __dir__(self) -> list[str]:
        # scikit-learn asks for each, to leave out those that raise, which would compute them all.
        return list(object.__dir__(self))

    def __getstate__(self) -> dict[str, Any]:
        # A traced network cannot be pickled; it is built again when it is needed.
        return {**super().__getstate__(), "_extractor": None}

    def _check_parameters(self) -> None:
        check_n_components(self.n_components)
        check_regularization(self.regularization)
        self._score_types(self.score_type)
        check_choice("covariance", self.covariance, COVARIANCES)
        check_choice("density", self.density, DENSITIES)
        check_choice("combine", self.combine, COMBINATIONS)
        check_choice("spatial", self.spatial, SPATIAL_FORMS)
        self._check_image_score()
        check_number("top_share", self.top_share, 0, 1)
        parse_bytes("max_memory", self.max_memory)
        if self.calibration is not None:
            check_choice("calibration", self.calibration, CALIBRATIONS)
        check_share("alpha", self.alpha)
        if self.density == "gmm" and self.covariance == "tied":
            raise ValueError(
                "density is 'gmm' and covariance is 'tied'; a mixture is of one class: choose "
                "covariance='class', or density='gaussian'"
            )
        check_choice("on_error", self.on_error, ("raise", "skip"))
        check_integer("batch_size", self.batch_size, 1)

    def _check_image_score(self) -> None:
        rule = self.image_score
        if rule is None:
            return
        check_choice("image_score", rule, ("calibrated", *PATCH_RULES))
        allowed = PATCH_RULES if self.spatial == "patch" else ("calibrated", "sum")
        if rule not in allowed:
            listed = " or ".join(repr(choice) for choice in allowed)
            raise ValueError(
                f"image_score is {rule!r}, which spatial={self.spatial!r} does not have; choose "
                f"{listed}"
            )
        if rule == "calibrated" and (self.calibration is None or self.combine != "sum"):
            raise ValueError(
                f"image_score is 'calibrated', which adds up maps by scores of images that were "
                f"left out, but calibration is {self.calibration!r} and combine {self.combine!r}; "
                "choose a calibration and combine='sum', or image_score='sum'"
            )

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "This DFM instance is not fitted yet. Call 'fit' with normal images or features "
                "before using this method."
            )

    def _build_extractor(self) -> Extractor:
        return Extractor.build(
            self.backbone,
            self.weights,
            self.layers,
            spatial=self.spatial,
            pool=self.pool,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            precision=self.precision,
            random_state=self.random_state,
            device=self.device,
            progress=self.verbose,
        )

    def _ready_extractor(self) -> Extractor:
        if self.feature_spec_ is None:
            raise ValueError(
                f"X holds images, but the model was fitted on features (N, {self.n_features_in_}); "
                "fit it on images, or pass features"
            )
        if self._extractor is None:
            own = self.backbone if self.feature_spec_.backbone.startswith("module:") else None
            self._extractor = Extractor.rebuild(
                self.feature_spec_, backbone=own, device=self.device, progress=self.verbose
            )
        return self._extractor

    def _set_fitted(
        self, model: Model | None, calibration: str | None, extractor: Extractor | None
    ) -> None:
        self._model = model
        self.calibration_ = calibration
        self.feature_spec_ = None if extractor is None else extractor.spec
        self._extractor = extractor
        self._fitter = None
        self._loaded_calibration = None

    def _build_fitter(
        self, n_features: int, extractor: Extractor | None, n_threads: int
    ) -> ModelFitter:
        layers: list[tuple[str, Grid | None]] = [("features", None)]
        if extractor is not None:
            layers = list(zip(extractor.spec.layers, extractor.spec.grids, strict=True))
        most = parse_bytes("max_memory", self.max_memory)
        image_score, map_type = self._rules_of_maps([grid for _, grid in layers])
        settings = LayerSettings(
            n_components=self.n_components,
            covariance=self.covariance,
            density=self.density,
            regularization=self.regularization,
            spatial=self.spatial,
            image_score=image_score,
            top_share=self.top_share,
            random_state=self.random_state,
            calibration=self._left_out_in_fit(layers),
            max_bytes=None if most is None else most // len(layers),
            map_type=map_type,
        )
        split = self.calibration == "split"
        return ModelFitter(layers, n_features, settings, self.combine, n_threads, split)

    def _added(
        self,
        fitter: ModelFitter | None,
        source: FeatureSource | ImageSource,
        row_labels: RowLabels | None,
        extractor: Extractor | None,
        *,
        owned: bool = True,
        checkpoint: "str | os.PathLike[str] | None" = None,
    ) -> ModelFitter:
        """Add all rows of `source` to `fitter`, or to a new one.

        Parameters
        ----------
        owned : bool
            Whether features of the caller stay as they are as long as the fitter is used.
        """
        known = None if fitter is None else fitter.n_features
        for places, features in self._batches(source, extractor, "fit", known, checkpoint):
            if fitter is None:
                n_threads = resolve_threads(self.n_threads)
                fitter = self._build_fitter(features.shape[1], extractor, n_threads)
            theirs = None if row_labels is None else row_labels.take(places)
            theirs = None if self.covariance == "global" else theirs
            fitter.add(features, theirs, owned=owned or extractor is not None)
        if row_labels is not None:
            row_labels.check_count(source.count)
        if isinstance(source, ImageSource):
            n_images = source.count - len(source.skipped)
            if source.skipped and (fitter is None or (owned and n_images < 2)):
                needed = "fit needs at least two" if owned else "one is needed"
                raise ValueError(
                    f"X has {n_images} images that can be read, and {needed}; "
                    f"{source.skipped[0].reason}"
                )
            self._report(source)
        assert fitter is not None
        return fitter

    def _growing_fitter(self) -> ModelFitter:
        self._check_fitted()
        if self._fitter is None:
            raise ValueError(
                "the model was loaded from a file, which does not hold the rows or moments that "
                "others are added to or taken from; fit again"
            )
        return self._fitter

    def _rules_of_maps(self, grids: Sequence[Grid | None]) -> tuple[str | None, str | None]:
        """Return the image_score, None to choose by the rows, and the type of left-out maps."""
        has_maps = (
            self.calibration is not None
            and self.spatial != "mean"
            and any(grid is not None and grid.positions > 1 for grid in grids)
        )
        if self.spatial == "patch":
            kind = self._score_types(self.score_type)[0]
            return self.image_score or "top", kind if has_maps else None
        if self.image_score == "calibrated" and not has_maps:
            raise ValueError(
                "image_score is 'calibrated', but the features have no positions; choose layers "
                "that have maps and spatial='flatten', or image_score='sum'"
            )
        chosen = "sum" if self.combine != "sum" else self.image_score
        return chosen, "fre" if has_maps else None

    def _left_out_by(self) -> str | None:
        """How rows are left out: as asked for, or as it can be done."""
        if self.calibration in (None, "split"):
            return self.calibration
        return self._exact_or_folds()

    def _exact_or_folds(self) -> str:
        exact = (
            self.max_memory is None
            and self.spatial != "patch"
            and self.density == "gaussian"
            and self.regularization is None
            and "relative_mahalanobis" not in self._score_types(self.score_type)
        )
        return "loo" if exact and self.calibration != "kfold" else "kfold"

    def _left_out_in_fit(self, layers: Sequence[Any]) -> str | None:
        """How fitted rows are left out for what the fit itself needs: scales of layers, maps."""
        if self.calibration is None and len(layers) == 1:
            return None
        return self._exact_or_folds()

    def _score_types(self, score_type: Any) -> list[str]:
        """Return the types of a score_type, which is one or several."""
        several = isinstance(score_type, list | tuple) and len(score_type) > 0
        kinds = list(score_type) if several else [score_type]
        return [check_choice("score_type", kind, SCORE_TYPES) for kind in kinds]

    def _ready_scores(self, score_type: Any) -> list[str]:
        kinds = self._score_types(score_type)
        self.model_.check_scores(kinds)
        return kinds

    def _apply(
        self,
        X: Any,
        labels: Any,
        function: Callable[[NDArray[Any], NDArray[np.intp] | None], NDArray[Any]],
        shape: tuple[int, ...],
        task: str,
        *,
        axis: int = -1,
    ) -> NDArray[Any]:
        """Results of `function` for the features, and classes, of all of X; NaN where skipped.

        They are of a `shape` to which the rows are added as the first `axis`, or as the last.
        """
        if labels is not None and self.model_.classes is None:
            raise ValueError("labels are given, but the model has no classes; fit it with labels")
        source, row_labels = open_labelled(X, self.on_error, labels)
        extractor = None
        if isinstance(source, ImageSource):
            extractor = self._ready_extractor()
        else:
            self._check_feature_names(X)
        parts, taken = [], []
        for places, features in self._batches(source, extractor, task, self.n_features_in_):
            classes = None
            if row_labels is not None:
                classes = find_classes(row_labels.take(places), self.classes_)
            parts.append(function(features, classes))
            taken.append(places)
        if row_labels is not None:
            row_labels.check_count(source.count)
        if not isinstance(source, ImageSource):
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
        self._report(source)
        shape = (source.count, *shape) if axis == 0 else (*shape, source.count)
        results = np.full(shape, np.nan, dtype=parts[0].dtype if parts else np.float32)
        if parts:
            places = np.concatenate(taken)
            results[places if axis == 0 else (..., places)] = np.concatenate(parts, axis=axis)
        return results

    def _batches(
        self,
        source: FeatureSource | ImageSource,
        extractor: Extractor | None,
        task: str,
        n_features: int | None,
        checkpoint: "str | os.PathLike[str] | None" = None,
    ) -> Iterator[tuple[Any, NDArray[Any]]]:
        """Yield places in the source, and the features (B, D) there."""
        if isinstance(source, FeatureSource):
            for features in source.batches(n_features):
                yield slice(source.count - len(features), source.count), features
            return
        assert extractor is not None
        from tqdm import tqdm

        # disable=None: silent where stderr is not a terminal.
        disable = None if self.verbose else True
        with tqdm(total=source.total, desc=task, unit="img", delay=1, disable=disable) as bar:
            for indices, features in self._extracted(source, extractor, checkpoint):
                yield indices, features
                bar.update(source.count - bar.n)

    def _extracted(
        self,
        source: ImageSource,
        extractor: Extractor,
        checkpoint: "str | os.PathLike[str] | None",
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield places and features of pictures, those in the checkpoint first."""
        batch_size = check_integer("batch_size", self.batch_size, 1)
        batches = extractor.batches(source, batch_size, resolve_threads(self.n_threads))
        if checkpoint is None:
            yield from batches
            return
        from pydfm.checkpoint import Checkpoint

        written = Checkpoint(checkpoint, extractor.spec, source)
        yield from written.read(source)
        n_skipped = len(source.skipped)
        for indices, features in batches:
            # The source may have read on; what it left out behind this batch comes with the next.
            end = indices[-1] + 1
            skipped = [one for one in source.skipped[n_skipped:] if one.index < end]
            n_skipped += len(skipped)
            written.write(indices, features, skipped, end)
            yield indices, features

    def _report(self, source: ImageSource) -> None:
        self.skipped_ = source.skipped
        if source.skipped:
            warn_of_skipped(source, "images")

    def _check_feature_names(self, X: Any, *, reset: bool = False) -> None:
        # Only data frames have names; the check costs as much as scoring a row.
        if hasattr(X, "columns") or hasattr(self, "feature_names_in_"):
            _check_feature_names(self, X, reset=reset)


def open_labelled(
    X: Any, on_error: str, labels: Any
) -> tuple[FeatureSource | ImageSource, RowLabels | None]:
    """Open X, and its labels where there are any."""
    if labels is None:
        return open_source(X, on_error), None
    if isinstance(labels, str):
        check_choice("labels", labels, ("folders", "loader"))
        if labels == "loader":
            growing: list[Any] = []
            return open_source(X, on_error, growing), RowLabels(growing)
        source = open_source(X, on_error)
        names = source.names if isinstance(source, ImageSource) else None
        return source, RowLabels.of_folders(X, names)
    return open_source(X, on_error), RowLabels(labels)


def one_of(y: Any, labels: Any) -> Any:
    """Return the labels, which have two names."""
    if y is not None and labels is not None:
        raise ValueError("y and labels are both given, which are two names for the same; pass one")
    return labels if y is None else y


def warn_of_skipped(source: ImageSource, what: str) -> None:
    """Warn of the images that `source` left out, and call them `what`."""
    warnings.warn(
        f"{len(source.skipped)} of {source.count} {what} were skipped; the first: "
        f"{source.skipped[0].reason}",
        stacklevel=5,
    )
