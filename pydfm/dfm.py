"""The DFM estimator: images or features in, anomaly scores out."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import _check_feature_names

from pydfm._checks import check_choice, check_integer, check_number, check_share, parse_bytes
from pydfm.calibration import Assessment, Calibration, Drift, ModelCalibration, uniformity
from pydfm.combination import COMBINATIONS
from pydfm.density import COVARIANCES, DENSITIES, SCORE_TYPES
from pydfm.extraction import Extractor, FeatureSpec
from pydfm.features import FeatureSource
from pydfm.fitting import CALIBRATIONS, LayerSettings, ModelFitter
from pydfm.images import ImageSource, Skipped, open_source
from pydfm.labels import RowLabels, as_labels, by_class, find_classes
from pydfm.layer import PATCH_RULES, SPATIAL_FORMS
from pydfm.maps import Grid
from pydfm.model import Model
from pydfm.subspace import Subspace, check_n_components, check_regularization
from pydfm.threads import resolve_threads

if TYPE_CHECKING:
    import torch

# Parameters that a model's rows do not depend on, and those that `feature_spec_` tells.
_WITHOUT_EFFECT = frozenset(
    {"batch_size", "device", "n_threads", "on_error", "score_type", "verbose"}
)
_OF_FEATURES = frozenset(
    {"backbone", "weights", "layers", "image_size", "mean", "std", "precision"}
)


class DFM(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Deep Feature Modeling: tells how far an image is from what a model knows.

    The features of a pretrained network are modelled by a principal subspace and a Gaussian in it;
    what the subspace cannot reconstruct, or the Gaussian finds unlikely, is anomalous. One pass to
    fit, one matrix product to score, no training.

    Parameters
    ----------
    n_components : float in (0, 1), int or None, default=0.97
        A share of variance to keep (the fewest components that exceed it, scikit-learn's rule), a
        number of components up to min(N, D), or all.
    score_type : str or tuple of str, default="fre"
        What `score` gives, one of those below or several. For a row x with d = x - mean and
        z = W'd, its projection on the k components with variances lambda:

        - "fre", the feature reconstruction error ||d||^2 - ||z||^2;
        - "mahalanobis", sum z_i^2 / lambda_i;
        - "nll", (mahalanobis + sum ln lambda_i + k ln 2 pi) / 2, a negative log-likelihood in nats;
        - "ppca", the negative log-likelihood in nats under probabilistic PCA, which weighs both;
        - "relative_mahalanobis", mahalanobis less that under the Gaussian of all classes together.
    covariance : {"class", "tied", "global"}, default="class"
        What becomes of classes, where labels are given: each has its own subspace and Gaussian;
        or its own mean, and one subspace of the deviations from these for all; or labels are
        ignored.
    density : {"gaussian", "gmm"}, default="gaussian"
        In the subspace: one Gaussian, or a mixture of as many as the Bayesian information
        criterion says, for each class.
    regularization : {"shrinkage"}, float or None, default=None
        Of the variances: oracle approximating shrinkage towards their mean, or a floor as a share
        of the largest.
    backbone : str, path or torch.nn.Module, default="resnet18"
        "resnet18", "resnet34", "resnet50" or "wide_resnet50_2", the path of a TorchScript file, or
        a module of your own that takes (B, 3, H, W). Not used for features.
    weights : str, path or None, default="imagenet"
        "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), a file with a state dict (.pth,
        read with ``weights_only``, or .safetensors), or None for random weights from
        `random_state`. A module of your own keeps its weights unless a path is given.
    layers : str or sequence of str, optional
        Submodules whose outputs are the features, or "output" for what the network returns; each
        has a model of its own. Default "avgpool", the penultimate layer, for the networks named
        above and "output" otherwise.
    combine : {"sum", "max", "logistic"}, default="sum"
        How scores of several layers, standardised by those that fitted images have without
        themselves, make one: their sum, the largest, or a logistic regression against outliers
        given to `fit`.
    spatial : {"flatten", "mean", "patch"}, default="flatten"
        What a layer's map becomes: one row with a feature for each channel and position, which
        suits pictures whose parts stand still; the mean over positions; or a row for each
        position, all of one model.
    image_score : {"calibrated", "top", "max", "mean", "sum"}, optional
        What scores of positions make the score of a picture.

        - With spatial="patch": "top", the default, is the mean of the largest `top_share` of them;
          or the largest, the mean, or the sum.
        - With spatial="flatten": "sum" is the plain fre. "calibrated" standardises the residual
          energy of each position by the mean and deviation that it has over the fitted images
          without themselves, adds up these maps of all layers at the positions of the finest one,
          and is the mean of the largest `top_share`. It is the default where the layers have
          positions, `calibration` is not None, combine="sum", and there are ten images or more of
          each class; "sum" is otherwise. Other score types than fre are those of whole images.
    top_share : float in [0, 1], default=0.1
        At least one position is taken.
    pool : int or sequence of int, optional
        Kernel and stride of an average pooling of the layers' maps, one for all or one for each.
    image_size : int or (int, int), optional
        Height and width that pictures are resized to. Default: what the weights were trained
        with, a resize of the shorter side to 256 pixels and the central 224 x 224.
    mean, std : float or three floats, optional
        Normalisation of pixels in [0, 1]. Default: those of the weights. With ``mean=0, std=1``
        images may hold any values.
    device : str or torch.device, optional
        Where the network runs. Default: CUDA where there is a GPU, else the CPU.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Of the network; the statistics are float64 always.
    batch_size : int, default=32
        Images per batch.
    n_threads : int, optional
        Threads that read pictures and compute scores; torch has its own. Default: the cores this
        process may use. Scores do not depend on it.
    on_error : {"raise", "skip"}, default="raise"
        What happens at a picture that cannot be read. With "skip" it is left out of a fit and
        scores NaN, with a warning that counts them; ``skipped_`` lists them.
    calibration : {"loo", "kfold", "split"} or None, default="loo"
        How the scores of normal images that a model has not seen are found, which p-values and
        thresholds come from. "loo": each image is left out by itself, exactly and without fitting
        again; "kfold": a fifth at a time. Where there is no exact way (patches, mixtures,
        regularization, relative_mahalanobis) "loo" is "kfold". "split": every fifth image of a
        class is not fitted on at all, which costs images and guarantees the rate of false alarms.
        None saves time where only plain scores are needed.
    alpha : float in (0, 1), default=0.01
        The share of normal images that `predict` may call anomalous.
    max_memory : str, int or None, default=None
        Bytes, or a text such as "2GB", that the statistics of the rows may take. Where the D x D
        scatter of the features does not fit, a sketch takes its place, whose error is known:
        ``subspace_.variance_error`` bounds what any variance is too low by.
    random_state : int, default=0
        Seed of random weights, of mixtures and of samples.
    verbose : bool, default=False
        Show a progress bar for what takes longer than a second (on stderr, at a terminal).

    Attributes
    ----------
    model_ : Model
        The fitted model: of each layer, or of the features.
    memory_ : int
        Bytes that are kept to add rows to the model or leave rows out: of each layer and class
        about min(N, D) x D numbers, and a sample of at most 10,000 rows. 0 for a loaded model.
    classes_ : ndarray of shape (C,)
        Sorted; only where it was fitted with labels.
    calibration_ : {"loo", "kfold", "split"} or None
        How images are left out.
    image_score_ : {"calibrated", "top", "max", "mean", "sum"}
        What scores of positions make the score of a picture.
    threshold_ : float, or ndarray of shape (C,) of C classes
        The score, under each class, above which an image is anomalous at the level `alpha`.
    smallest_alpha_ : float
        The lowest level there is a threshold for, 1 / (n + 1) with n left-out images of the
        smallest class.
    offset_ : float
        ``-threshold_``, scikit-learn's convention; only with one class.
    map_threshold_ : float
        What a share `alpha` of maps of normal images exceed anywhere.
    n_features_in_ : int
        D, of all layers together.
    n_samples_ : int
        Rows or images it was fitted on.
    subspace_ : Subspace
        This and what follows only with one layer and one class.
    mean_ : ndarray of shape (D,), float64
    components_ : ndarray of shape (k, D), float64
        Orthonormal rows by descending variance.
    explained_variance_ : ndarray of shape (k,), float64
    explained_variance_ratio_ : ndarray of shape (k,), float64
        Shares of the total variance.
    noise_variance_ : float
    n_components_ : int
        k.
    feature_spec_ : FeatureSpec or None
        What the features of images depend on: network, layers and their sizes, preprocessing, and
        the hash of the weights. None where it was fitted on features.
    skipped_ : list of Skipped
        Pictures that the last fit or score of images left out.
    feature_names_in_ : ndarray of shape (D,)
        Only where it was fitted on a data frame with names.

    See Also
    --------
    pydfm.load : Read a model that `save` wrote.

    References
    ----------
    .. [1] N. Ahuja, I. Ndiour, T. Kalyanpur, O. Tickoo, "Probabilistic Modeling of Deep Features
       for Out-of-Distribution and Adversarial Detection", 2019, arXiv:1909.11786.
    .. [2] I. Ndiour, N. Ahuja, O. Tickoo, "Out-Of-Distribution Detection With Subspace Techniques
       And Probabilistic Modeling Of Features", 2020, arXiv:2012.04250.
    .. [3] K. Lee, K. Lee, H. Lee, J. Shin, "A Simple Unified Framework for Detecting
       Out-of-Distribution Samples and Adversarial Attacks", 2018, arXiv:1807.03888.
    .. [4] J. Ren, S. Fort, J. Liu, A. Roy, S. Padhy, B. Lakshminarayanan, "A Simple Fix to
       Mahalanobis Distance for Improving Near-OOD Detection", 2021, arXiv:2106.09022.
    .. [5] Y. Chen, A. Wiesel, Y. Eldar, A. Hero, "Shrinkage Algorithms for MMSE Covariance
       Estimation", IEEE Transactions on Signal Processing 58 (2010), for regularization.

    Examples
    --------
    >>> import numpy as np, pydfm
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 64))
    >>> dfm = pydfm.DFM().fit(x)
    >>> bool(dfm.score(rng.normal(size=(1, 64)))[0] > dfm.score(x).max())
    True
    """

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

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        labels: Any = None,
        outliers: Any = None,
        checkpoint: "str | os.PathLike[str] | None" = None,
    ) -> "DFM":
        """Fit to normal images, or to features of normal data, of one class or of several.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            - features: array-like or tensor (N, D) of real numbers, any type and layout;
            - images: array or tensor (N, 3, H, W), uint8, or float in [0, 1];
            - a folder, searched in depth, or the path of one picture;
            - a list of paths, or of PIL images;
            - a DataLoader, or any iterable, of batches of images or features, or of (batch,
              labels) pairs.
        y : array-like of shape (N,), "folders", "loader" or None
            Labels, integers or strings, of which each is a class: an array; or the subfolders of
            the folder X; or what the loader X yields along with its batches.
        labels : optional
            Another name for `y`, which is scikit-learn's.
        outliers : optional
            Images or features of known outliers, in any of the forms of X, which
            combine="logistic" needs.
        checkpoint : str or path, optional
            A folder that the features of pictures are written to, batch by batch: a fit that was
            stopped or killed, and is begun again with the same pictures and network, goes on from
            the last batch there. It is deleted by the caller, when the model is saved.

        Returns
        -------
        DFM
            This estimator.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or X is empty, has fewer than two rows, is not
            finite, has values beyond float64 when squared, or holds a picture that cannot be read;
            or if there is not one label for each row.
        TypeError
            If X is none of the above, or labels are neither integers nor strings.
        FileNotFoundError
            If there is no such file or folder.
        ConnectionError
            If the weights cannot be downloaded.
        """
        self._check_parameters()
        source, row_labels = _open(X, self.on_error, _one_of(y, labels))
        extractor = self._build_extractor() if isinstance(source, ImageSource) else None
        n_layers = 1 if extractor is None else len(extractor.spec.layers)
        _check_combine(self.combine, outliers, n_layers)
        if checkpoint is not None and extractor is None:
            raise ValueError("checkpoint is for images, and X holds features; pass checkpoint=None")
        fitter = self._added(None, source, row_labels, extractor, checkpoint=checkpoint)
        model = fitter.fit()
        if len(model.layers) > 1:
            known = None
            if outliers is not None:
                known = self._outlier_scores(model, extractor, outliers)
            model = fitter.combined(model, known)
        model.check_scores(self._score_types(self.score_type))
        fitter.own()
        self._check_feature_names(X, reset=True)
        self._set_fitted(model, self._left_out_by(), extractor)
        self._fitter = fitter
        return self

    def partial_fit(self, X: Any, y: Any = None, *, labels: Any = None) -> "DFM":
        """Add normal images or features to those fitted so far.

        The model is that of one `fit` to all of them, but for rounding. It is computed when it is
        next asked for, so that many small batches cost little.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            As in `fit`; one row is enough.
        y, labels : optional
            As in `fit`; new classes may come at any time.

        Returns
        -------
        DFM
            This estimator; as it was before, if there is an error or an interruption.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError, ConnectionError
            As `fit`; and if the model was loaded from a file, which does not hold what rows are
            added to, or X is not of the kind that it was fitted on.
        """
        fitted = self.__sklearn_is_fitted__()
        if not fitted:
            self._check_parameters()
        if self.combine == "logistic":
            raise ValueError(
                "combine is 'logistic', which is learnt from outliers, with fit; use 'sum' or 'max'"
            )
        source, row_labels = _open(X, self.on_error, _one_of(y, labels))
        images = isinstance(source, ImageSource)
        extractor = None
        if not fitted:
            extractor = self._build_extractor() if images else None
            fitter = None
        else:
            fitter = self._growing_fitter().copy()
            if images != (self.feature_spec_ is not None):
                kind = "features" if self.feature_spec_ is None else "images"
                raise ValueError(
                    f"the model was fitted on {kind}, and X holds the other; pass {kind}"
                )
            extractor = self._ready_extractor() if images else None
            self._check_feature_names(X)
        fitter = self._added(fitter, source, row_labels, extractor, owned=False)
        if not fitted:
            self._check_feature_names(X, reset=True)
        self._set_fitted(None, self._left_out_by(), extractor)
        self._fitter = fitter
        return self

    def merge(self, *others: "DFM") -> "DFM":
        """Return the model of all rows that this one and `others` were fitted on.

        Parameters
        ----------
        *others : DFM
            Fitted apart, with the same settings and, on images, the same network.

        Returns
        -------
        DFM
            A new one. But for rounding, the order and the grouping do not matter.

        Raises
        ------
        ValueError
            If settings or weights differ, which are named, or one was loaded from a file.
        """
        merged: DFM = clone(self)
        fitter = self._growing_fitter().copy()
        for other in others:
            if not isinstance(other, DFM):
                raise TypeError(
                    f"a DFM can be merged with another, not with {type(other).__name__}"
                )
            self._check_same(other)
            fitter.merge(other._growing_fitter())
        merged._set_fitted(None, self.calibration_, self._extractor)
        merged.feature_spec_ = self.feature_spec_
        if hasattr(self, "feature_names_in_"):
            merged.feature_names_in_ = self.feature_names_in_
        merged._fitter = fitter
        return merged

    def __add__(self, other: "DFM") -> "DFM":
        """Return ``self.merge(other)``."""
        return self.merge(other)

    def forget(
        self, X: Any = None, y: Any = None, *, labels: Any = None, classes: Any = None
    ) -> "DFM":
        """Take away images or features that were fitted, or whole classes, as if they had not been.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable, optional
            As in `fit`.
        y, labels : optional
            Their labels, where the model has classes.
        classes : sequence, optional
            Classes to forget, in place of X.

        Returns
        -------
        DFM
            This estimator; as it was before, if there is an error.

        Raises
        ------
        ValueError
            If a row was not fitted, as far as can be told: of rows that were folded into moments,
            only where a variance would become negative. If what is left is too small beside what
            goes for its digits to be true. If moments are sketched, or rows are left out by folds.
        """
        self._check_fitted()
        fitter = self._growing_fitter().copy()
        if (X is None) == (classes is None):
            raise ValueError("X or classes must be given, and not both: what is to be forgotten")
        if classes is not None:
            for label in as_labels(classes).tolist():
                fitter.forget_class(label)
        else:
            source, row_labels = _open(X, self.on_error, _one_of(y, labels))
            extractor = self._ready_extractor() if isinstance(source, ImageSource) else None
            for places, features in self._batches(source, extractor, "forget", self.n_features_in_):
                theirs = None if row_labels is None else row_labels.take(places)
                fitter.forget(features, None if self.covariance == "global" else theirs)
            if row_labels is not None:
                row_labels.check_count(source.count)
        self._model = None
        self._fitter = fitter
        return self

    def score(
        self, X: Any, y: Any = None, *, labels: Any = None, score_type: Any = None
    ) -> NDArray[np.float32]:
        """Anomaly scores; larger = farther from what was fitted.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            As in `fit`; a model fitted on images also scores features (N, D), as `extract` gives
            them.
        y : array-like of shape (N,), "folders", "loader" or None
            Labels: rows are scored under these classes, such as those that a classifier predicts,
            in place of the nearest ones.
        labels : optional
            Another name for `y`, which is scikit-learn's.
        score_type : str or tuple of str, optional
            In place of the parameter.

        Returns
        -------
        ndarray of shape (N,) or (T, N), float32
            In the order of X (a folder's pictures are sorted by path); a row for each where
            `score_type` is a tuple of T. Of several classes that of the nearest, of several layers
            what `combine` or `image_score` makes of them. NaN for pictures that were skipped.

        Raises
        ------
        NotFittedError
            If `fit` was not called yet.
        ValueError, TypeError, FileNotFoundError
            As `fit`; and if X has another number of features than the model, or a label is not
            one of its classes.
        """
        self._check_fitted()
        chosen = self.score_type if score_type is None else score_type
        kinds = self._ready_scores(chosen)
        model, n_threads = self.model_, resolve_threads(self.n_threads)
        scores = self._apply(
            X,
            _one_of(y, labels),
            lambda rows, classes: model.score(rows, kinds, n_threads, classes),
            (len(kinds),),
            "score",
        )
        return scores[0] if isinstance(chosen, str) else scores

    def layer_scores(
        self, X: Any, y: Any = None, *, labels: Any = None, score_type: Any = None
    ) -> dict[str, NDArray[np.float32]]:
        """Scores of each layer by itself, as they are before they are combined.

        Parameters
        ----------
        X, y, labels, score_type
            As in `score`.

        Returns
        -------
        dict of str to ndarray
            By layer, of the shape that `score` gives.
        """
        self._check_fitted()
        chosen = self.score_type if score_type is None else score_type
        kinds = self._score_types(chosen)
        model, n_threads = self.model_, resolve_threads(self.n_threads)
        model.check_layer_scores(kinds)
        scores = self._apply(
            X,
            _one_of(y, labels),
            lambda rows, classes: model.layer_scores(rows, kinds, n_threads, classes),
            (len(model.layers), len(kinds)),
            "score",
        )
        return {
            layer.name: theirs[0] if isinstance(chosen, str) else theirs
            for layer, theirs in zip(model.layers, scores, strict=True)
        }

    def p_value(
        self,
        X: Any,
        y: Any = None,
        *,
        labels: Any = None,
        score_type: Any = None,
        tail: str | None = None,
    ) -> NDArray[np.float64]:
        """Share of normal images that score as high; small = anomalous.

        Parameters
        ----------
        X, y, labels, score_type
            As in `score`.
        tail : {"gpd"}, optional
            p-values below 1 / (n + 1), which n left-out images cannot tell, by a generalised Pareto
            distribution of the largest scores: a model, not a count (`pydfm.calibration`).

        Returns
        -------
        ndarray of shape (N,) or (T, N), float64
            (1 + the number of left-out images that score at least as high) / (n + 1), of several
            classes the largest. NaN for pictures that were skipped.

        Raises
        ------
        NotFittedError
            If `fit` was not called yet.
        ValueError, TypeError, FileNotFoundError
            As `score`; and if the model was fitted without calibration, or a class has no image
            that could be left out.
        """
        self._check_fitted()
        chosen = self.score_type if score_type is None else score_type
        kinds = self._ready_scores(chosen)
        calibrations = [self._ready_calibration(kind, tail) for kind in kinds]
        model, n_threads = self.model_, resolve_threads(self.n_threads)

        def p_values(rows: NDArray[Any], classes: NDArray[np.intp] | None) -> NDArray[np.float64]:
            each = [
                _best(
                    calibration.p_values,
                    _under_classes(model, rows, kind, n_threads, classes),
                    classes,
                )
                for kind, calibration in zip(kinds, calibrations, strict=True)
            ]
            return np.stack(each)

        p = self._apply(X, _one_of(y, labels), p_values, (len(kinds),), "score")
        return p[0] if isinstance(chosen, str) else p

    def decision_function(
        self, X: Any, y: Any = None, *, labels: Any = None
    ) -> NDArray[np.float64]:
        """`threshold_` less the score: negative = anomalous; of several classes the largest.

        Parameters
        ----------
        X, y, labels
            As in `score`.

        Returns
        -------
        ndarray of shape (N,), float32
            NaN for pictures that were skipped.
        """
        thresholds = self._thresholds(self.alpha, None)
        kind = self._score_types(self.score_type)[0]
        model, n_threads = self.model_, resolve_threads(self.n_threads)

        def margins(rows: NDArray[Any], classes: NDArray[np.intp] | None) -> NDArray[np.float64]:
            scores = _under_classes(model, rows, kind, n_threads, classes)
            return _best(lambda own, c: thresholds[c] - own, scores, classes)

        return self._apply(X, _one_of(y, labels), margins, (), "score")

    def predict(
        self,
        X: Any,
        y: Any = None,
        *,
        labels: Any = None,
        alpha: float | None = None,
        fdr: float | None = None,
        tail: str | None = None,
    ) -> NDArray[np.intp]:
        """Tell whether images are normal, +1, or anomalous, -1.

        Parameters
        ----------
        X, y, labels
            As in `score`. With a tuple of score types, the first decides.
        alpha : float in (0, 1), optional
            In place of the parameter: the share of normal images that may be called anomalous.
        fdr : float in (0, 1), optional
            In place of alpha: the share that normal images may have of those that are called
            anomalous in this batch, by the procedure of Benjamini and Hochberg.
        tail : {"gpd"}, optional
            For levels that need p-values below 1 / (n + 1); see `p_value`.

        Returns
        -------
        ndarray of shape (N,)
            +1 or -1; 0 for pictures that were skipped.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            As `p_value`; and if a level is not within (0, 1), or so low that the left-out images
            of a class are too few for it.
        """
        return self.assess(X, y, labels=labels, alpha=alpha, fdr=fdr, tail=tail).verdicts

    def assess(
        self,
        X: Any,
        y: Any = None,
        *,
        labels: Any = None,
        alpha: float | None = None,
        fdr: float | None = None,
        tail: str | None = None,
    ) -> Assessment:
        """Return scores, p-values and verdicts together, from one pass over the images.

        Parameters
        ----------
        X, y, labels, alpha, fdr, tail
            As in `predict`.

        Returns
        -------
        Assessment
            What `score`, `p_value` and `predict` give.
        """
        self._check_fitted()
        if alpha is not None and fdr is not None:
            raise ValueError("alpha and fdr are both given; one of them decides, so pass one")
        kind = self._ready_scores(self.score_type)[0]
        calibration = self._ready_calibration(kind, tail)
        level = self.alpha if alpha is None else alpha
        thresholds = np.full(len(calibration.scores), np.nan)
        if fdr is None:
            thresholds = self._thresholds(level, tail)
        else:
            check_share("fdr", fdr)
        model, n_threads = self.model_, resolve_threads(self.n_threads)

        def assess(rows: NDArray[Any], classes: NDArray[np.intp] | None) -> NDArray[np.float64]:
            under = _under_classes(model, rows, kind, n_threads, classes)
            score = under[0] if len(under) == 1 else model.score(rows, [kind], n_threads)[0]
            p = _best(calibration.p_values, under, classes)
            margin = _best(lambda own, c: thresholds[c] - own, under, classes)
            return np.stack([score.astype(np.float64), p, margin])

        score, p, margin = self._apply(X, _one_of(y, labels), assess, (3,), "score")
        read = ~np.isnan(p)
        anomalous = margin < 0
        if fdr is not None and read.any():
            from scipy.stats import false_discovery_control

            anomalous[read] = false_discovery_control(p[read]) <= fdr
        verdicts = np.where(read, np.where(anomalous, -1, 1), 0)
        return Assessment(score.astype(np.float32), p, verdicts)

    def drift(self, X: Any, y: Any = None, *, labels: Any = None) -> Drift:
        """Test whether images still score as the normal ones did, and what has moved.

        Parameters
        ----------
        X, y, labels
            As in `score`: a batch of what comes in now. Of several classes without labels, each
            image counts for the nearest one, with the largest of its p-values; since these run
            high, only smaller ones count as a drift.

        Returns
        -------
        Drift
            P-values of the tests; small ones tell of a drift.
        """
        self._check_fitted()
        kind = self._ready_scores(self.score_type)[0]
        model, n_threads = self.model_, resolve_threads(self.n_threads)
        n_layers = len(model.layers)
        calibrations = [
            self._ready_calibration(kind, None, layer) for layer in (None, *range(n_layers))
        ]

        def p_values(rows: NDArray[Any], classes: NDArray[np.intp] | None) -> NDArray[np.float64]:
            scores = [_under_classes(model, rows, kind, n_threads, classes)]
            for layer in model.layers:
                if classes is None:
                    scores.append(layer.class_scores(rows, kind, n_threads))
                else:
                    scores.append(layer.score(rows, [kind], n_threads, classes)[0])
            each = [
                _best(calibration.p_values, theirs, classes)
                for calibration, theirs in zip(calibrations, scores, strict=True)
            ]
            nearest = scores[0].argmin(axis=0) if classes is None else classes
            return np.stack([*each, nearest])

        found = self._apply(X, _one_of(y, labels), p_values, (n_layers + 2,), "drift")
        found = found[:, np.isfinite(found).all(axis=0)]
        if found.shape[1] == 0:
            raise ValueError("X holds no picture that can be read; drift needs at least one")
        p, nearest = found[:-1], found[-1].astype(np.intp)
        names = model.classes or []
        n_classes = max(len(names), 1)
        one_sided = n_classes > 1 and y is None and labels is None
        own = [[c.own_p_values(k) for k in range(n_classes)] for c in calibrations]
        tests = [
            uniformity(row, np.concatenate(theirs), one_sided=one_sided)
            for row, theirs in zip(p, own, strict=True)
        ]
        classes = {
            names[c]: uniformity(p[0, nearest == c], own[0][c], one_sided=one_sided)
            for c in (np.unique(nearest).tolist() if names else ())
        }
        layers = {layer.name: test for layer, test in zip(model.layers, tests[1:], strict=True)}
        return Drift(tests[0], classes, layers, found.shape[1])

    def predict_class(self, X: Any) -> NDArray[Any]:
        """Classes that rows are nearest to, by the score type of this estimator.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            As in `score`.

        Returns
        -------
        ndarray of shape (N,)
            Of `classes_`; with several layers, that of the least combined score.

        Raises
        ------
        ValueError
            If the model was fitted without labels, or a picture was skipped.
        """
        self._check_fitted()
        if self.model_.classes is None:
            raise ValueError("the model has no classes; fit it with labels")
        kind = self._ready_scores(self.score_type)[0]
        model, n_threads = self.model_, resolve_threads(self.n_threads)
        nearest = self._apply(
            X,
            None,
            lambda rows, _: model.nearest(rows, kind, n_threads).astype(np.float32),
            (),
            "predict",
        )
        if np.isnan(nearest).any():
            raise ValueError(
                f"{self.skipped_[0].reason}; such a picture has no class, so leave it out"
            )
        predicted: NDArray[Any] = self.classes_[nearest.astype(np.intp)]
        return predicted

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return ``-score(X)``: larger = more normal, scikit-learn's convention for densities."""
        return -self.score(X).astype(np.float64)

    def score_map(
        self, X: Any, *, score_type: str | None = None, smoothing: float = 0.0
    ) -> NDArray[np.float32]:
        """Compute maps of scores over pictures: where they are anomalous.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            Images in any of the forms of `fit`, or features as `extract` gives them.
        score_type : str, optional
            In place of the parameter. Only fre is a sum over positions, and has maps of whole
            pictures; with spatial="patch" every type has.
        smoothing : float, default=0
            Standard deviation, in pixels, of a Gaussian that maps are smoothed by.

        Returns
        -------
        ndarray of shape (N, H, W), float32
            At the size of the network's input, ``feature_spec_.preprocessing.size``: the scores of
            the layer's positions, bilinear between them. Of several layers the sum, each divided
            by its mean over the fitted images without themselves; where images are scored by
            standardised maps (``image_score_ == "calibrated"``), these. NaN for pictures that were
            skipped. A share `alpha` of the maps of normal images, without smoothing, exceed
            `map_threshold_` anywhere.

        Raises
        ------
        ValueError
            If the model was fitted on features, or has no map of that score type.
        """
        self._check_fitted()
        chosen = self.score_type if score_type is None else score_type
        kind = self._ready_scores(chosen)[0]
        if not isinstance(chosen, str):
            raise ValueError(f"score_type is {chosen!r}; a map is of one type: pass score_type")
        self.model_.check_maps(kind)
        assert self.feature_spec_ is not None
        size = self.feature_spec_.preprocessing.size
        check_number("smoothing", smoothing, 0, max(size))
        model, n_threads = self.model_, resolve_threads(self.n_threads)
        return self._apply(
            X,
            None,
            lambda rows, _: model.maps(rows, kind, n_threads, size, float(smoothing)),
            size,
            "maps",
            axis=0,
        )

    def extract(self, X: Any) -> NDArray[np.float32]:
        """Features of images, as the model was fitted on them.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            Images in any of the forms of `fit`.

        Returns
        -------
        ndarray of shape (N, D), float32
            Of all layers, one after the other; NaN for pictures that were skipped.
        """
        self._check_fitted()
        self._ready_extractor()
        shape = (self.n_features_in_,)
        return self._apply(X, None, lambda rows, _: np.asarray(rows), shape, "extract", axis=0)

    def save(self, path: "str | os.PathLike[str]") -> None:
        """Write the fitted model to one file, which `pydfm.load` reads.

        The file is safetensors with a JSON header: the subspace in float64, the parameters, the
        preprocessing, and name and hash of the weights, but not the weights. It takes the place of
        an older one only when it is whole.

        Raises
        ------
        NotFittedError
            If `fit` was not called yet.
        OSError
            If the file cannot be written.
        """
        from pydfm.modelfile import save

        self._check_fitted()
        save(self, path)

    @property
    def model_(self) -> Model:  # noqa: D102 (described with the class)
        self._check_fitted()
        if self._model is None:
            model = self._growing_fitter().fit()
            if len(model.layers) > 1:
                model = self._growing_fitter().combined(model, None)
            self._model = model
        return self._model

    @property
    def memory_(self) -> int:  # noqa: D102
        self._check_fitted()
        return 0 if self._fitter is None else self._fitter.n_bytes

    @property
    def subspace_(self) -> Subspace:  # noqa: D102
        self._check_fitted()
        layers, subspaces = self.model_.layers, self.model_.layers[0].density.subspaces
        if len(layers) > 1 or len(subspaces) > 1:
            raise AttributeError(
                f"the model has {len(layers)} layer(s) and {len(subspaces)} class(es), each with a "
                "subspace of its own: see model_.layers[i].density.subspaces"
            )
        return subspaces[0]

    @property
    def image_score_(self) -> str:  # noqa: D102
        self._check_fitted()
        layer = self.model_.layers[0]
        if layer.patch:
            return layer.rule
        return "calibrated" if self.model_.calibrated else "sum"

    @property
    def threshold_(self) -> float | NDArray[np.float64]:  # noqa: D102
        thresholds = self._thresholds(self.alpha, None)
        return float(thresholds[0]) if self.model_.classes is None else thresholds

    @property
    def smallest_alpha_(self) -> float:  # noqa: D102
        self._check_fitted()
        kind = self._ready_scores(self.score_type)[0]
        return self._ready_calibration(kind, None).smallest_alpha

    @property
    def offset_(self) -> float:  # noqa: D102
        thresholds = self._thresholds(self.alpha, None)
        if len(thresholds) > 1:
            raise AttributeError(
                f"the model has {len(thresholds)} classes, each with a threshold of its own: see "
                "threshold_"
            )
        return -float(thresholds[0])

    @property
    def map_threshold_(self) -> float:  # noqa: D102
        check_share("alpha", self.alpha)
        maxima = self._ready_calibrations().map_maxima
        if maxima is None:
            raise ValueError(
                "the model has no maps of images that were left out; fit to images, with layers "
                "that have positions and a score type that has maps"
            )
        every = np.zeros(len(maxima), dtype=np.intp)
        return Calibration.of(maxima, every).threshold(self.alpha)

    @property
    def classes_(self) -> NDArray[Any]:  # noqa: D102
        self._check_fitted()
        if self.model_.classes is None:
            raise AttributeError("the model has no classes: it was fitted without labels")
        return np.array(self.model_.classes)

    @property
    def mean_(self) -> NDArray[np.float64]:  # noqa: D102
        return self.subspace_.mean

    @property
    def components_(self) -> NDArray[np.float64]:  # noqa: D102
        return self.subspace_.components

    @property
    def explained_variance_(self) -> NDArray[np.float64]:  # noqa: D102
        return self.subspace_.explained_variance

    @property
    def explained_variance_ratio_(self) -> NDArray[np.float64]:  # noqa: D102
        return self.subspace_.explained_variance / self.subspace_.total_variance

    @property
    def noise_variance_(self) -> float:  # noqa: D102
        return self.subspace_.noise_variance

    @property
    def n_components_(self) -> int:  # noqa: D102
        return len(self.subspace_.components)

    @property
    def n_features_in_(self) -> int:  # noqa: D102
        self._check_fitted()
        return self.model_.n_features if self._fitter is None else self._fitter.n_features

    @property
    def n_samples_(self) -> int:  # noqa: D102
        self._check_fitted()
        return self.model_.n_samples if self._fitter is None else self._fitter.n_samples

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "calibration_")

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
            needed = 2 if owned else 0 if fitter is not None else 1
            if source.skipped and n_images < needed:
                raise ValueError(
                    f"X has {n_images} images that can be read, and {needed} are needed at least; "
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

    def _emptied(self) -> "DFM":
        """Return an estimator with the same network, to which rows can be added."""
        other = copy.copy(self)
        other._model, other._fitter = None, self._growing_fitter().emptied()
        return other

    def _check_same(self, other: "DFM") -> None:
        """Raise ValueError where rows of the two are not of one model."""
        other._check_fitted()
        mine, theirs = self.get_params(deep=False), other.get_params(deep=False)
        for name, value in mine.items():
            if name in _WITHOUT_EFFECT or name in _OF_FEATURES:
                continue
            if value != theirs[name]:
                raise ValueError(
                    f"{name} is {value!r} in one model and {theirs[name]!r} in the other; models "
                    "to be merged must have the same"
                )
        if self.feature_spec_ != other.feature_spec_:
            named = "features"
            if self.feature_spec_ is not None and other.feature_spec_ is not None:
                spec, its = vars(self.feature_spec_), vars(other.feature_spec_)
                named = next(name for name in spec if spec[name] != its[name])
            raise ValueError(
                f"the features of the two models differ, in their {named}; models to be merged "
                "must be fitted on the same"
            )
        if self.n_features_in_ != other.n_features_in_:
            raise ValueError(
                f"one model has {self.n_features_in_} features and the other "
                f"{other.n_features_in_}; models to be merged must have the same"
            )

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

    def _ready_calibrations(self) -> ModelCalibration:
        """Return the scores of left-out rows, which are made when they are first needed."""
        self._check_fitted()
        if self._loaded_calibration is not None:
            return self._loaded_calibration
        if self.calibration_ is None or self._fitter is None:
            raise ValueError(
                "the model was fitted with calibration=None, and has no scores of images that were "
                "left out; fit it with calibration='loo'"
            )
        size = None if self.feature_spec_ is None else self.feature_spec_.preprocessing.size
        return self._fitter.calibration(self.model_, size)

    def _ready_calibration(
        self, kind: str, tail: str | None, layer: int | None = None
    ) -> Calibration:
        calibration = self._ready_calibrations().of(kind, self.model_.classes, layer)
        return calibration if tail is None else calibration.with_tail(tail)

    def _thresholds(self, alpha: float, tail: str | None) -> NDArray[np.float64]:
        """Thresholds (C,) of the first score type under each class."""
        check_share("alpha", alpha)
        self._check_fitted()
        calibration = self._ready_calibration(self._ready_scores(self.score_type)[0], tail)
        return np.array([calibration.threshold(alpha, c) for c in range(len(calibration.scores))])

    def _outlier_scores(
        self, model: Model, extractor: Extractor | None, outliers: Any
    ) -> Callable[[list[str]], NDArray[np.float32]]:
        """Return what scores the features of known outliers by the layers of `model`."""
        source = open_source(outliers, self.on_error)
        parts = [rows for _, rows in self._batches(source, extractor, "outliers", model.n_features)]
        if isinstance(source, ImageSource) and source.skipped:
            if not parts:
                raise ValueError(
                    f"outliers holds no picture that can be read; {source.skipped[0].reason}"
                )
            _warn_of_skipped(source, "outliers")
        rows, n_threads = np.concatenate(parts), resolve_threads(self.n_threads)
        return lambda kinds: model.layer_scores(rows, kinds, n_threads)

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
        source, row_labels = _open(X, self.on_error, labels)
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
            _warn_of_skipped(source, "images")

    def _check_feature_names(self, X: Any, *, reset: bool = False) -> None:
        # Only data frames have names; the check costs as much as scoring a row.
        if hasattr(X, "columns") or hasattr(self, "feature_names_in_"):
            _check_feature_names(self, X, reset=reset)


def _open(
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


def _under_classes(
    model: Model,
    rows: NDArray[Any],
    kind: str,
    n_threads: int,
    classes: NDArray[np.intp] | None,
) -> NDArray[np.float32]:
    """Scores (C, N) under each class, or (1, N) under the `classes` (N,) of the rows."""
    if classes is None:
        return model.class_scores(rows, kind, n_threads)
    return model.score(rows, [kind], n_threads, classes)


def _best(
    function: Callable[[NDArray[np.float32], int], NDArray[np.float64]],
    scores: NDArray[np.float32],
    classes: NDArray[np.intp] | None,
) -> NDArray[np.float64]:
    """Largest values (N,) over classes of a function of scores and class, or under `classes`."""
    if classes is None:
        return np.asarray(np.max([function(own, c) for c, own in enumerate(scores)], axis=0))
    values = np.empty(len(classes))
    for c, places in by_class(classes):
        values[places] = function(scores[0, places], c)
    return values


def _one_of(y: Any, labels: Any) -> Any:
    if y is not None and labels is not None:
        raise ValueError("y and labels are both given, which are two names for the same; pass one")
    return labels if y is None else y


def _warn_of_skipped(source: ImageSource, what: str) -> None:
    warnings.warn(
        f"{len(source.skipped)} of {source.count} {what} were skipped; the first: "
        f"{source.skipped[0].reason}",
        stacklevel=5,
    )


def _check_combine(combine: str, outliers: Any, n_layers: int) -> None:
    if n_layers == 1 and outliers is not None:
        raise ValueError(
            "outliers are given, of which is learnt how layers are combined, and there is one "
            "layer; name several, or leave them out"
        )
    if combine == "logistic" and outliers is None and n_layers > 1:
        raise ValueError(
            "combine is 'logistic', which is learnt from known outliers; pass fit(X, outliers=...)"
        )
    if combine != "logistic" and outliers is not None:
        raise ValueError(
            f"outliers are given, which combine={combine!r} does not use; pass combine='logistic'"
        )
