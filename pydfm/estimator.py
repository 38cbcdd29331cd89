"""`DFM`, the estimator: images or features in, scores and decisions out.

The class holds parameters, a training state and a fitted model, and passes every call on: features
make rows of images, `pydfm.model` turns rows into a model and scores, `pydfm.conformal` turns
scores into decisions, `pydfm.io` reads and writes model files.
"""

import copy
import functools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import _check_feature_names

from pydfm.conformal.calibration import calibration_of, map_range, map_threshold, thresholds
from pydfm.conformal.certificate import CONFIDENCE, Certificate, certify
from pydfm.conformal.checks.audit import Audit, AuditInput, audit
from pydfm.conformal.checks.independence import near_places, warn_of_dependence
from pydfm.conformal.checks.outliers import FDR
from pydfm.conformal.checks.outliers import outliers as outliers_among
from pydfm.conformal.decisions import Assessment, Decider, p_values
from pydfm.conformal.drift import Drift, DriftTest
from pydfm.conformal.monitor import EVIDENCE, Monitor
from pydfm.conformal.recalibration import Recalibration, RecalibrationTask
from pydfm.conformal.regions import LEAST_AREA, SPREAD, Region, RegionFinder
from pydfm.features.backbones import AS_SAVED, copy_backbone
from pydfm.features.extractor import Extractor, FeatureSpec, feature_batches, tapped_of
from pydfm.features.inputs.arrays import FeatureSource, check_finite
from pydfm.features.inputs.images import ImageError, image_hashes, read_image
from pydfm.features.inputs.labels import RowLabels, as_labels, find_classes, warn_of_ignored
from pydfm.features.inputs.sources import (
    ImageSource,
    Look,
    Skipped,
    open_groups,
    open_labelled,
    open_source,
    warn_of_skipped,
)
from pydfm.features.pictures.facts import Facts
from pydfm.features.pictures.intensity import resolve_intensity
from pydfm.features.presets import resolve_preset
from pydfm.features.transforms import Preprocessing
from pydfm.features.views import FactsTaker, Views, image_names
from pydfm.io.journal import Entry
from pydfm.io.loading import LoadedModel, load_model
from pydfm.io.model_file import ModelFile, write_model
from pydfm.model.fitting import RECALIBRATED, FittedDFM, freeze
from pydfm.model.held_out import HeldOutSample
from pydfm.model.model import Model
from pydfm.model.row_scores import RowScores
from pydfm.model.settings import Settings, resolve_settings
from pydfm.model.training import TrainingState
from pydfm.parameters import (
    DEFAULTS,
    PARAMETERS,
    changed_since,
    check_parameters,
    draw_seed,
)
from pydfm.runtime.checks import check_number, check_share
from pydfm.runtime.threads import Lock, PerThread, resolve_threads
from pydfm.stats.identities import UnknownRowError
from pydfm.stats.scores import check_score_types
from pydfm.stats.subspace import Subspace

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes
    from typing_extensions import Self

    from pydfm.features.taps import Tapped
    from pydfm.io.onnx.graph import PixelModel
    from pydfm.io.onnx.int8 import Int8Network

# Attributes that a copy does not share.
_OF_THREADS = ("_lock", "_skipped")

_Source = FeatureSource | ImageSource


class DFM(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Deep Feature Modeling: says how far an image is from what a model knows.

    The features of a pretrained network are modelled by a principal subspace and a Gaussian in it.
    A row that the subspace reconstructs badly, or that is unlikely under the Gaussian, is
    anomalous. A fit takes one pass over the images, a score one matrix product; no network is
    trained.

    Parameters
    ----------
    n_components : float in (0, 1), int or None, default=0.97
        Share of variance to keep (by the fewest components that exceed it, scikit-learn's rule),
        number of components, up to min(N, D), or None for all.
    score_type : str or tuple of str, default="fre"
        Type of the scores, one of those below, or a tuple of several. For a row x with
        d = x - mean and z = W'd, its projection on the k components with variances lambda:

        - "fre", the feature reconstruction error ||d||^2 - ||z||^2;
        - "mahalanobis", sum z_i^2 / lambda_i;
        - "nll", (mahalanobis + sum ln lambda_i + k ln 2 pi) / 2, a negative log-likelihood in nats;
        - "ppca", the negative log-likelihood in nats under probabilistic PCA, which weighs both;
        - "relative_mahalanobis", mahalanobis less that under the Gaussian of all classes together.
    covariance : {"class", "tied", "global"}, default="class"
        How classes are modelled, where labels are given: "class" fits a subspace and a Gaussian to
        each; "tied" gives each its own mean and all classes one covariance, that within the
        classes; "global" ignores labels.
    density : {"gaussian", "gmm"}, default="gaussian"
        Density in the subspace of each class: one Gaussian, or a mixture of Gaussians, whose number
        the Bayesian information criterion chooses.
    regularization : {"shrinkage"}, float or None, default=None
        Regularization of the variances: oracle approximating shrinkage towards their mean, or a
        floor as a share of the largest.
    backbone : str, path or torch.nn.Module, default="resnet18"
        A network's name, such as "resnet18" or "efficientnet_lite0" (``pydfm weights`` lists them),
        the path of a TorchScript file, or a module of your own that takes (B, 3, H, W). Unused for
        features.
    preset : {"defects", "paper", "anomalib"}, default="defects"
        What `layers`, `pool`, `image_size` and `image_score` are where they are None and the model
        is fitted to images; what is given wins. "defects" takes the maps of a network with a name
        at strides 8 and 16, averaged by 2, of the whole image at 256 x 256 pixels (or the network's
        own size); "paper" the penultimate layer of the central 224 x 224; "anomalib" the map of
        stride 16, averaged by 2 or 4, and the plain fre. The first leaves networks of your own as
        they are.
    weights : str, path or None, default="auto"
        "auto" (ImageNet weights that are here, in torch's cache or an installed package, else
        downloaded once), "imagenet" (torchvision's IMAGENET1K_V1), a file with a state dict (.pth,
        read with ``weights_only``, or .safetensors), or None for random weights from
        `random_state`. A module of your own keeps its weights unless a path is given.
    layers : str or sequence of str, optional
        Submodules whose outputs are the features, or "output" for what the network returns; each
        has a model of its own. "A+B" is the mean of the outputs of A and B. Default: as `preset`
        says for networks with names, and "output" otherwise.
    combine : {"sum", "max", "logistic"}, default="sum"
        How the scores of several layers, each standardised by the held-out scores of fitted images,
        make one: their sum, the largest, or a logistic regression against outliers that are given
        to `fit`.
    spatial : {"flatten", "mean", "patch"}, default="flatten"
        What the map of a layer becomes: one row with a feature for each channel and position, for
        images in which parts do not move; the mean over the positions; or a row for each position,
        all under one model.
    image_score : {"calibrated", "top", "max", "mean", "sum"}, optional
        How the scores of positions make the score of an image.

        - With spatial="patch": "top", the default, is the mean of the largest `top_share` of them;
          or the largest, the mean, or the sum. "calibrated" standardises them first, as below.
        - With spatial="flatten": "sum" is the plain fre. "calibrated" standardises the residual
          energy of each position by the mean and deviation of the held-out energies of fitted
          images, adds up these maps of all layers at the positions of the finest one, and averages
          the largest `top_share`; of several shares, each mean is standardised by those of the
          fitted images, and they are added up. It is the default where the layers have positions,
          `calibration` is not None and combine="sum"; otherwise "sum" is. It needs three images of
          each class that can be held out: with fewer, the default is "sum", with a warning. Score
          types other than fre are always those of whole images.
    top_share : float in [0, 1] or sequence of these, optional
        Share of the positions that "calibrated" and "top" average; at least one position. Default:
        (0.01, 0.1) for "calibrated", of small and of weak defects, and 0.1 for "top", which takes
        one.
    pool : int or sequence of int, optional
        Kernel and stride of an average pooling of the layers' maps, one for all layers or one for
        each.
    layout : {"auto", "channels_first", "channels_last"}, default="auto"
        Order of the sides of the layers' maps: (B, C, H, W) or (B, H, W, C). "auto" tells it by the
        aspect ratio of the images; a layer of neither is refused.
    tokens : int, optional
        Number of tokens before those of patches (class and register tokens), in layers that give
        tokens (B, N, C), of which a map is made. Default: told by the network's patches; where they
        cannot be seen, an error says so.
    image_size : int or (int, int), optional
        Height and width that images are resized to. Default: as `preset` says for networks with
        names; otherwise as the weights were trained, a resize of the shorter side to 256 pixels and
        the central 224 x 224.
    mean, std : float or three floats, optional
        Normalisation of pixels in [0, 1]. Default: that of the weights. With ``mean=0, std=1``
        images may have any values.
    augment : {"rotate"}, optional
        "rotate" fits each image as it is and turned by 90, 180 and 270 degrees: for fewer than ten
        images of what may lie in any direction, with spatial="patch" above all. The four are held
        out together, within their group where there are groups, and p-values count them as one.
        ``n_samples_`` counts all.
    intensity : str or (float, float), default="auto"
        Black and white of images of more than 8 bits (files, PIL images, arrays of integers), the
        same for all images; those beyond are refused. "8bit", "10bit", "12bit", "14bit" and "16bit"
        are depths. "auto" is the smallest that the images of the first fit declare (TIFF, PNG) or
        need: of files all headers and the pixels of up to 64, of a list of others all, of an
        iterable its first image; where all have 8 bits, deeper images are refused later.
        (low, high) is for float TIFFs too.
    device : str or torch.device, optional
        Where the network runs. Default: CUDA where there is a GPU, else the CPU.
    runtime : {"auto", "torch", "onnx"}, default="auto"
        What the network runs in. "onnx" is onnxruntime (the extra `onnx`), on CPUs: faster than
        torch, which is not even imported where the network's graph is kept. A graph is exported
        once, checked (features within 1e-4 of torch's, as a share of the layer's largest) and kept
        in the user's cache folder, or in ``PYDFM_CACHE``; that takes a second or more. "auto" takes
        onnxruntime where it is installed, the device is a CPU, the precision float32 and the
        network has a name, and torch otherwise: graphs of your own modules and files are not kept,
        since code may change, so they would be exported at each fit and each load; pass "onnx" for
        those. What cannot be exported runs in torch, with a warning, or with "onnx" is an error.
        ``feature_spec_.runtime`` is what the fit took. A score in one is within 1e-4 of that in the
        other.
    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Precision of the network; the statistics are always float64.
    batch_size : int, default=32
        Images per batch.
    n_threads : int, optional
        Number of threads that read images and compute scores, and of onnxruntime; torch has its
        own. Default: the number of cores this process may use. Scores do not depend on it.
    on_error : {"raise", "skip"}, default="raise"
        What happens at an image that cannot be read. With "skip" it is left out of a fit, and its
        score is NaN; a warning counts such images, and ``skipped_`` lists them.
    max_pixels : int, optional
        Largest number of pixels of an image file. Default: Pillow's bound, twice
        ``PIL.Image.MAX_IMAGE_PIXELS``, and none where that is None.
    calibration : {"loo", "kfold", "split"} or None, default="loo"
        How held-out scores are made: scores of normal images under a model that has not seen them,
        from which p-values and thresholds come. What is left out is a unit: an image, or a group
        of them (see `fit`). "loo" leaves out each unit by itself, exactly and without fitting
        again. "kfold" is cross-conformal: ten models of nine tenths of the units each, under all
        of which a new image is scored and compared with the tenth that the model lacks, which
        costs ten scores more and errs towards fewer false alarms. Where "loo" has no exact way
        (mixtures, sketches) it becomes "kfold", with a warning. "split" never fits a fifth of the
        units of a class, drawn at random, which costs images and guarantees the false-alarm rate.
        None saves time where only scores are needed.
    max_memory : str, int or None, default=None
        Limit of the memory that the statistics of the rows may take: bytes, or a text such as
        "2GB". Where neither the rows nor the D x D scatter of the features fit, a sketch replaces
        it, with a warning, whose error is known: ``subspace_.variance_error`` is the most that any
        variance is too low by.
        With density="gmm" half of the memory is for rows that mixtures are fitted to: where not all
        fit, a uniform sample, with a warning; ``model_.layers[i].density.mixtures`` have their
        ``n_samples``.
    alpha : float in (0, 1), default=0.01
        The false-alarm rate: the share of normal images that `predict` may call anomalous.
    random_state : int, RandomState, Generator or None, default=0
        Seed of random weights, mixtures and samples. From a generator of numpy's, or its global one
        where it is None, each fit draws a seed; models can be merged if their seeds are the same.
    verbose : bool, default=False
        Whether to show a progress bar for what takes longer than a second (on stderr, at a
        terminal).

    Attributes
    ----------
    fitted_ : FittedDFM
        The fitted model with its feature specification and calibration; frozen.
    training_ : TrainingState
        What the rows left behind, to which rows can be added; not for a loaded model.
    model_ : Model
        ``fitted_.model``, with the layers and the densities of their classes.
    memory_ : int
        Bytes that ``training_`` takes: for each layer and class about min(N, D) x D numbers, and a
        sample of at most 5,000 rows. 0 for a loaded model.
    classes_ : ndarray of shape (C,)
        Labels of the classes, sorted; only where it was fitted with labels.
    calibration_ : {"loo", "kfold", "split", "recalibrated"} or None
        How held-out scores were made.
    held_out_scores_ : ndarray of shape (n,), float32
        The held-out scores, of the first score type, in the order of the rows: of all fitted rows
        or images, or, of many folded ones, of a random sample.
    held_out_p_values_ : ndarray of shape (n,), float64
        The p-value of each among the others of its class: small = an outlier among the fitted ones.
    held_out_names_ : ndarray of shape (n,)
        Which they are: paths of images, else their numbers in the order they came in, from 0.
    image_score_ : {"calibrated", "top", "max", "mean", "sum"}
        How the scores of positions make the score of an image.
    threshold_ : float, or ndarray of shape (C,) of C classes
        The score, under each class, above which an image is anomalous at the level `alpha`; NaN
        for a class without held-out scores. Not there under "kfold", where each fold has its own.
    smallest_alpha_ : float
        The lowest level that can be kept: 1 / (n + 1), with n units (images or groups) of the
        smallest class. Below it, this level is used, with a warning.
    offset_ : float
        ``-threshold_``, scikit-learn's convention; only with one class.
    map_threshold_ : float
        The value that a share `alpha` of the maps of normal images exceed anywhere.
    map_range_ : (float, float)
        The ends of the colour scale of maps, whose middle is `map_threshold_`. It begins at the
        median of the largest values of the maps of normal images, so that these stay clear.
    n_features_in_ : int
        Number of features per row, D, of all layers together.
    n_samples_ : int
        Number of rows or images it was fitted on.
    subspace_ : Subspace
        The subspace; it and the attributes below, only with one layer and one class.
    mean_ : ndarray of shape (D,), float64
    components_ : ndarray of shape (k, D), float64
        Orthonormal rows by descending variance.
    explained_variance_ : ndarray of shape (k,), float64
    explained_variance_ratio_ : ndarray of shape (k,), float64
        Share of each component in the total variance.
    noise_variance_ : float
    n_components_ : int
        Number of components, k.
    feature_spec_ : FeatureSpec or None
        Everything that the features of images depend on: network, layers and their sizes,
        preprocessing, and the hash of the weights. None where it was fitted on features.
    skipped_ : list of Skipped
        Images that the last fit or score of images left out: the last of this thread, if it has
        made one.
    left_out_ : list of str
        Names of the images that `fit` left out with `clean`; empty without it.
    goes_on_ : bool
        Whether rows can be added and removed: always, but for a model that was loaded from a file
        without its training state.
    journal_ : tuple of Entry
        What the model came from: fit, rows added, forgotten and merged in, calibrations, each with
        its time and number of images.
    feature_names_in_ : ndarray of shape (D,)
        Names of the features; only where it was fitted on a data frame with names.

    See Also
    --------
    pydfm.load : Read a model that `save` wrote.

    Notes
    -----
    A parameter that is set after a fit counts at once if it belongs to decisions or to how things
    are computed (score_type, alpha, device, runtime, batch_size, n_threads, on_error, max_pixels,
    verbose).
    Any other counts at the next fit; where the model is used before, a warning says so.
    `partial_fit`, `merge` and `forget` change the rows; the model of all rows is computed when it
    is next used.
    `recalibrate` changes the held-out scores and keeps the model.
    Threads may share an estimator: those that change it wait for each other, and scores are those
    of the model at the call.

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
    >>> y = rng.normal(size=(3, 64))
    >>> bool(dfm.score(y).min() > dfm.score(x).max())
    True
    >>> dfm.predict(y), dfm.p_value(y).round(3)
    (array([-1, -1, -1]), array([0.002, 0.002, 0.002]))
    >>> dfm.partial_fit(x[:100]).n_samples_
    600
    """

    _training: TrainingState | None = None
    _fitted: FittedDFM | None = None
    _extractor: Extractor | None = None
    # The parameters of the last fit, and those that were set since and count at the next.
    _parameters: Mapping[str, Any] | None = None
    _late: tuple[str, ...] = ()
    _journal: tuple[Entry, ...] = ()

    def __init__(
        self,
        n_components: float | int | None = DEFAULTS["n_components"],
        score_type: str | Sequence[str] = DEFAULTS["score_type"],
        *,
        covariance: str = DEFAULTS["covariance"],
        density: str = DEFAULTS["density"],
        regularization: str | float | None = DEFAULTS["regularization"],
        backbone: "str | os.PathLike[str] | torch.nn.Module" = DEFAULTS["backbone"],
        preset: str = DEFAULTS["preset"],
        weights: "str | os.PathLike[str] | None" = DEFAULTS["weights"],
        layers: str | Sequence[str] | None = DEFAULTS["layers"],
        combine: str = DEFAULTS["combine"],
        spatial: str = DEFAULTS["spatial"],
        image_score: str | None = DEFAULTS["image_score"],
        top_share: float | Sequence[float] | None = DEFAULTS["top_share"],
        pool: int | Sequence[int] | None = DEFAULTS["pool"],
        layout: str = DEFAULTS["layout"],
        tokens: int | None = DEFAULTS["tokens"],
        image_size: int | tuple[int, int] | None = DEFAULTS["image_size"],
        mean: float | Sequence[float] | None = DEFAULTS["mean"],
        std: float | Sequence[float] | None = DEFAULTS["std"],
        augment: str | None = DEFAULTS["augment"],
        intensity: str | tuple[float, float] = DEFAULTS["intensity"],
        device: "str | torch.device | None" = DEFAULTS["device"],
        runtime: str = DEFAULTS["runtime"],
        precision: str = DEFAULTS["precision"],
        batch_size: int = DEFAULTS["batch_size"],
        n_threads: int | None = DEFAULTS["n_threads"],
        on_error: str = DEFAULTS["on_error"],
        max_pixels: int | None = DEFAULTS["max_pixels"],
        calibration: str | None = DEFAULTS["calibration"],
        max_memory: str | int | None = DEFAULTS["max_memory"],
        alpha: float = DEFAULTS["alpha"],
        random_state: "int | np.random.RandomState | np.random.Generator | None" = DEFAULTS[
            "random_state"
        ],
        verbose: bool = DEFAULTS["verbose"],
    ) -> None:
        self.n_components = n_components
        self.score_type = score_type
        self.covariance = covariance
        self.density = density
        self.regularization = regularization
        self.backbone = backbone
        self.preset = preset
        self.weights = weights
        self.layers = layers
        self.combine = combine
        self.spatial = spatial
        self.image_score = image_score
        self.top_share = top_share
        self.pool = pool
        self.layout = layout
        self.tokens = tokens
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.augment = augment
        self.intensity = intensity
        self.device = device
        self.runtime = runtime
        self.precision = precision
        self.batch_size = batch_size
        self.n_threads = n_threads
        self.on_error = on_error
        self.max_pixels = max_pixels
        self.calibration = calibration
        self.max_memory = max_memory
        self.alpha = alpha
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params: Any) -> "Self":
        """Set parameters.

        After a fit, those of decisions and of how things are computed count at once. Any other
        counts at the next fit: if the model is used before, a warning says so.

        Parameters
        ----------
        **params : dict
            Parameters by name.

        Returns
        -------
        DFM
            This estimator.

        Raises
        ------
        ValueError
            If there is no such parameter.
        """
        with self._updating:
            super().set_params(**params)
            if self._parameters is not None:
                now = self._values()
                self._late = tuple(changed_since(self._parameters, now, ("features", "model")))
        return self

    # Fitting

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        labels: Any = None,
        groups: Any = None,
        outliers: Any = None,
        checkpoint: "str | os.PathLike[str] | None" = None,
        clean: float | None = None,
    ) -> "Self":
        """Fit to normal images, or to features of normal data, of one class or of several.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            - features: array-like or tensor (N, D) of real numbers, of any type and layout;
            - images: array or tensor (N, 3, H, W), uint8, or float in [0, 1];
            - a folder, searched in depth, or the path of one image;
            - a list of paths, or of PIL images;
            - a DataLoader, or any iterable, of batches of images or features, or of (batch,
              labels) pairs.
        y : optional
            Ignored, as by all outlier detectors of scikit-learn; a warning says so if it looks
            like classes.
        labels : array-like of shape (N,), "folders", "loader" or None
            Classes, integers or strings, one for each row or image: an array; or "folders", the
            subfolders of the folder X; or "loader", what the loader X yields with its batches.
        groups : array-like of shape (N,), "folders", callable or None
            What belongs together, such as the shots of a part: an integer or string for each row or
            image; or "folders", the folder that each file is in; or a function of its path. Rows of
            a class that share a group are held out together, and p-values count groups.
        outliers : optional
            Images or features of known outliers, in any of the forms of X, which
            combine="logistic" needs.
        checkpoint : str or path, optional
            A folder that the features of images are written to, batch by batch: a fit that was
            stopped or killed, and is started again with the same images and network, continues
            after the last batch there. The caller deletes it once the model is saved.
        clean : float in (0, 1), optional
            Leave out what does not belong among X: images whose held-out scores are outliers at
            this false discovery rate, such as 0.05 (`pydfm.conformal.checks.outliers`). It is
            fitted again without them, until no other is one; `left_out_` lists them, and a warning
            counts them. The features of all of X are kept in memory meanwhile.

        Returns
        -------
        DFM
            This estimator; unchanged if there is an error or an interruption.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or X is empty, has fewer than two rows, is not
            finite, has values whose squares exceed float64, or holds an image that cannot be read;
            or if there is not one label for each row.
        TypeError
            If X is none of the above, or labels are neither integers nor strings.
        FileNotFoundError
            If there is no such file or folder.
        ConnectionError
            If the weights cannot be downloaded.
        """
        warn_of_ignored(y, stacklevel=2)
        with self._updating:
            return self._fit(
                X, labels, groups, outliers=outliers, checkpoint=checkpoint, clean=clean
            )

    def _fit(
        self,
        X: Any,
        labels: Any,
        groups: Any,
        *,
        outliers: Any = None,
        checkpoint: "str | os.PathLike[str] | None" = None,
        clean: float | None = None,
        join_copies: bool = False,
        look: "Callable[[Preprocessing], Look] | None" = None,
        extractor: Extractor | None = None,
    ) -> "Self":
        """Fit as `fit` does.

        Parameters
        ----------
        X, labels, groups, outliers, checkpoint, clean
            As in `fit`.
        join_copies : bool
            Whether rows without groups that are equal share one.
        look : callable, optional
            Makes what is called with each image as it is decoded.
        extractor : Extractor, optional
            What makes features of the images, in place of that of the parameters.
        """
        parameters = self._checked()
        source, row_labels = open_labelled(X, self.on_error, labels)
        row_groups = open_groups(source, groups)
        seed = draw_seed(self.random_state)
        if extractor is None and isinstance(source, ImageSource):
            extractor = self._build_extractor(seed, source)
        _check_combine(
            self.combine, outliers, 1 if extractor is None else len(extractor.spec.layers)
        )
        if checkpoint is not None and extractor is None:
            raise ValueError("checkpoint is for images, and X holds features; pass checkpoint=None")
        self._check_augment(extractor, join_copies and groups is None, checkpoint, clean)
        n_threads = resolve_threads(self.n_threads)
        seen = None if look is None or extractor is None else look(extractor.spec.preprocessing)
        batches = self._batches(source, extractor, "fit", None, checkpoint, look=seen)
        given: dict[str, Any] = {
            "seed": seed,
            "groups": row_groups,
            "join_copies": join_copies and groups is None,
        }
        left_out: tuple[str, ...] = ()
        if clean is None:
            training = self._added(None, source, row_labels, extractor, batches, **given)
            training = training.compact()
        else:
            training, left_out = self._cleaned(
                source, row_labels, extractor, batches, clean, **given
            )
        known = None
        if outliers is not None:
            known = self._outlier_features(training.n_features, extractor, outliers)
        kinds = check_score_types(self.score_type)
        fitted = freeze(training, n_threads=n_threads, outliers=known, score_types=kinds)
        fitted.model.check_scores(kinds)
        fitted = replace(fitted, left_out=left_out)
        if join_copies and groups is None:
            # Rows that are added later have no groups either.
            training = replace(training, units=replace(training.units, grouped=False))
        if self.calibration is not None:
            warn_of_dependence(training, resolve_threads(self.n_threads))
        self._check_feature_names(X, reset=True)
        n = training.n_samples
        return self._become(training, fitted, extractor, parameters, (Entry.now("fit", n, n),))

    def partial_fit(
        self, X: Any, y: Any = None, *, labels: Any = None, groups: Any = None
    ) -> "Self":
        """Add normal images or features to those fitted so far.

        The model is that of one `fit` to all of them, but for rounding. It is computed when it is
        next used, so that many small batches cost little.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            As in `fit`; one row is enough.
        y : optional
            Ignored, as in `fit`.
        labels : optional
            As in `fit`; new classes may come at any time.

        Returns
        -------
        DFM
            This estimator; unchanged if there is an error or an interruption.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError, ConnectionError
            As `fit`; and if the model was loaded from a file, which has no training state; if X is
            not of the kind that it was fitted on; or if parameters were changed since the fit.
        """
        warn_of_ignored(y, stacklevel=2)
        with self._updating:
            return self._partial_fit(X, labels, groups)

    def _partial_fit(self, X: Any, labels: Any, groups: Any) -> "Self":
        self._check_not_logistic("partial_fit")
        begun = self.__sklearn_is_fitted__()
        parameters = self._parameters if begun else self._checked()
        training = self.training_ if begun else None
        source, row_labels = open_labelled(X, self.on_error, labels)
        row_groups = open_groups(source, groups)
        images = isinstance(source, ImageSource)
        seed = 0
        if training is None:
            seed = draw_seed(self.random_state)
            extractor = (
                self._build_extractor(seed, source) if isinstance(source, ImageSource) else None
            )
        else:
            self._check_unchanged()
            if images != (training.spec is not None):
                kind = "features" if training.spec is None else "images"
                raise ValueError(
                    f"the model was fitted on {kind}, and X holds the other; pass {kind}"
                )
            extractor = self._ready_extractor() if images else None
            self._check_feature_names(X)
        self._check_augment(extractor)
        known = None if training is None else training.n_features
        training = self._added(
            training,
            source,
            row_labels,
            extractor,
            self._batches(source, extractor, "fit", known),
            seed=seed,
            groups=row_groups,
            partial=True,
        )
        if not begun:
            self._check_feature_names(X, reset=True)
        total = training.n_samples
        journal: tuple[Entry, ...] = (Entry.now("fit", total, total),)
        if begun and training is self.training_:  # no image could be read, which was told
            return self
        self._warn_of_lost_calibration()
        if begun:
            added = total - self.training_.n_samples
            journal = self._with_step("add", added, total, _names_read(source))
        return self._become(training, None, extractor, parameters, journal)

    def merge(self, *others: "DFM") -> "Self":
        """Return the model of all rows that this one and `others` were fitted on.

        Parameters
        ----------
        *others : DFM
            Fitted apart, with the same parameters and, on images, the same network.

        Returns
        -------
        DFM
            A new one, that of one fit to all rows. But for rounding, the order and the grouping do
            not matter. With calibration="split" or "kfold" each row stays held out as it was, where
            one fit may draw others.

        Raises
        ------
        ValueError
            If parameters or weights differ, which are named, or one was loaded from a file.
        """
        with self._updating:
            training, parameters = self.training_, self._fit_parameters()
        n_threads = resolve_threads(self.n_threads)
        self._check_not_logistic("merge")
        for other in others:
            if not isinstance(other, DFM):
                raise TypeError(
                    f"a DFM can be merged with another, not with {type(other).__name__}"
                )
            training = training.merge(other.training_, n_threads=n_threads)
            other._warn_of_lost_calibration()
            mine, theirs = (getattr(dfm, "feature_names_in_", None) for dfm in (self, other))
            if mine is not None and theirs is not None and list(mine) != list(theirs):
                raise ValueError(
                    "the names of the features differ in the two models, or their order; models "
                    "to be merged must have the same"
                )
        self._warn_of_lost_calibration()
        total = training.n_samples
        journal = self._with_step("merge", total - self.training_.n_samples, total)
        return self._with(parameters, training, None, None, journal)

    def __add__(self, other: "DFM") -> "Self":
        """Return ``self.merge(other)``."""
        return self.merge(other)

    def forget(
        self, X: Any = None, *, labels: Any = None, groups: Any = None, classes: Any = None
    ) -> "Self":
        """Remove images or features that were fitted, or whole classes.

        The model is then that of a fit without them, but for rounding.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable, optional
            As in `fit`.
        labels : optional
            Their labels, where the model has classes.
        groups : optional
            Their groups, where it was fitted with groups.
        classes : sequence, optional
            Classes to forget, in place of X.

        Returns
        -------
        DFM
            This estimator; unchanged if there is an error or an interruption.

        Raises
        ------
        ValueError
            If a row or image was not fitted, or that cannot be known: features cannot be
            recognised once they are folded into moments (more rows than features, and more than
            5,000, or 1,000 of a class); images always can, by their pixels. If the remaining rows
            are too small beside the removed ones for exact digits. If moments are sketched, or rows
            are held out in folds.
        """
        with self._updating:
            return self._forget(X, labels, groups, classes)

    def _forget(self, X: Any, labels: Any, groups: Any, classes: Any) -> "Self":
        training, n_threads = self.training_, resolve_threads(self.n_threads)
        names: Sequence[str] = ()
        self._check_not_logistic("forget")
        if X is not None and self._parameters and self._parameters["augment"]:
            raise ValueError(
                f"augment is {self._parameters['augment']!r}, and forget does not know the turned "
                "copies of X; fit again without it"
            )
        if (X is None) == (classes is None):
            raise ValueError("X or classes must be given, and not both: what is to be forgotten")
        if classes is not None:
            if labels is not None:
                raise ValueError(
                    "labels are given, and classes too, which are forgotten whole; pass one of them"
                )
            for label in as_labels(classes, "classes").tolist():
                training = training.remove_class(label)
        else:
            source, row_labels = open_labelled(X, self.on_error, labels)
            row_groups, extractor = open_groups(source, groups), None
            if isinstance(source, ImageSource):
                extractor = self._ready_extractor()
            else:
                self._check_feature_names(X)
            for places, features, pixels in self._batches(
                source, extractor, "forget", training.n_features
            ):
                try:
                    training = training.remove(
                        features,
                        None if row_labels is None else row_labels.take(places),
                        n_threads=n_threads,
                        groups=None if row_groups is None else row_groups.take(places),
                        hashes=None if pixels is None else image_hashes(pixels),
                    )
                except UnknownRowError as error:
                    if isinstance(source, ImageSource):
                        named = f"image {source.place(places[error.index])}"
                    else:
                        named = f"row {places.start + error.index} of X"
                    raise ValueError(f"{named} {error.why}") from None
            _check_counts(source, row_labels, row_groups)
            self._report(source)
            names = _names_read(source)
        if training is self.training_:  # no image could be read, which was told
            return self
        if training.n_samples < 2:
            raise ValueError(
                f"X or classes would leave {training.n_samples} of {self.n_samples_} rows or "
                "images, and a model needs at least two; fit again"
            )
        self._warn_of_lost_calibration()
        total = training.n_samples
        forgotten = self.training_.n_samples - total
        journal = self._with_step("forget", forgotten, total, names)
        return self._become(training, None, self._extractor, self._parameters, journal)

    def recalibrate(
        self, X: Any, *, labels: Any = None, groups: Any = None, extend: bool = False
    ) -> Recalibration:
        """Replace the held-out scores by those of later normal images; the model stays.

        Lamps age and lenses get dusty: good images of today score otherwise than those of the fit,
        and the rate of false alarms is not that asked for. What they score under the model is the
        sample that new images are compared with from now on.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            Normal images or features that were not fitted, as in `fit`; some hundred.
        labels : optional
            Their classes, where the model has any; as in `fit`.
        groups : optional
            What belongs together; as in `fit`. Groups of another call are others.
        extend : bool
            Whether the held-out scores that there are stay, and those of X come beside them. They
            must be those of images that the model never saw: of calibration="split" with one layer
            whose maps are not standardised, or of a recalibration.

        Returns
        -------
        Recalibration
            How far the threshold was off: the share of X that it called anomalous, beside `alpha`.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            As `score`; and if the model was fitted without calibration, X holds no image that can
            be read, labels are missing, or `extend` cannot be; or if X has images that the model
            was fitted on, as far as its training state is kept.
        """
        with self._updating:
            return self._recalibrate(X, labels, groups, extend)

    def _recalibrate(self, X: Any, labels: Any, groups: Any, extend: bool) -> Recalibration:
        fitted, kind = self.fitted_, self._kind
        if fitted.model.classes is not None and labels is None:
            raise ValueError(
                "labels is None, but the model has classes, each with held-out scores of its own; "
                "give the labels of X (--classes)"
            )
        source, row_labels = open_labelled(X, self.on_error, labels)
        row_groups = open_groups(source, groups)
        extractor = None
        if isinstance(source, ImageSource):
            extractor = self._ready_extractor()
        else:
            self._check_feature_names(X)
        task = RecalibrationTask(
            fitted, kind, self.alpha, resolve_threads(self.n_threads), extend=extend
        )
        images: list[str] = []
        for places, features, pixels in self._batches(
            source, extractor, "calibrate", self.n_features_in_
        ):
            classes = None
            if row_labels is not None:
                classes = find_classes(row_labels.take(places), self.classes_)
            own = None if row_groups is None else row_groups.take(places)
            task.add(features, classes, own, image_hashes(features if pixels is None else pixels))
            if isinstance(source, ImageSource) and pixels is not None:
                images += [source.place(place) for place in places]
        _check_counts(source, row_labels, row_groups)
        self._report(source)
        recalibrated, found = task.conclude(self._training, images or None)
        read = source.count - (len(source.skipped) if isinstance(source, ImageSource) else 0)
        journal = self._with_step("calibrate", read, self.n_samples_, _names_read(source))
        self._become(self._training, recalibrated, self._extractor, self._parameters, journal)
        return found

    def fit_predict(
        self, X: Any, y: Any = None, *, labels: Any = None, groups: Any = None
    ) -> NDArray[np.intp]:
        """Fit, and decide of each fitted row whether it is normal, by a model without it.

        An outlier among the fitted rows pulls the model towards itself; its held-out score does
        not know it. Copies of a row are left out with it. Where folded rows are so many that only
        a sample of them has held-out scores, the others, each of which hardly moves the model, are
        judged as by `predict`.

        Parameters
        ----------
        X, labels, groups
            As in `fit`; rows are read twice where not all have held-out scores.
        y : object
            Ignored.

        Returns
        -------
        ndarray of shape (N,)
            +1 for normal, -1 for anomalous, at the level `alpha` of the first score type; 0 for
            images that were skipped.

        Raises
        ------
        ValueError
            As `fit` and `predict`; and if rows would be read twice from an iterator.
        """
        warn_of_ignored(y, stacklevel=2)
        with self._updating:
            self._fit(X, labels, groups, join_copies=True)
            return self._own_verdicts(X, labels)

    def _own_verdicts(self, X: Any, labels: Any) -> NDArray[np.intp]:
        """Return the verdicts on the fitted rows, those of X; see `fit_predict`."""
        skipped = [image.index for image in self.skipped_] if self.feature_spec_ else []
        n_rows = self.training_.n_seen + len(skipped)
        read = np.delete(np.arange(n_rows), skipped)
        verdicts = np.zeros(n_rows, dtype=np.intp)
        sample = self.fitted_.held_out_of(self._kind).samples.get(self._kind)
        known = np.zeros(0, dtype=np.intp) if sample is None else read[sample.places]
        if len(known) < len(read):
            if isinstance(X, Iterator):
                raise ValueError(
                    f"X is an iterator, and {len(read) - len(known)} of its rows have no held-out "
                    "scores, so that they are read again; pass an array, a list or a folder"
                )
            # Of labelled rows each is judged under its own class.
            own = labels if self.model_.classes is not None else None
            verdicts[:] = self.predict(X, labels=own)
        if sample is not None:
            calibration = calibration_of(self.fitted_, self._kind)
            anomalous = calibration.reject(sample, self.alpha)
            verdicts[known] = np.where(anomalous, -1, 1)
        return verdicts

    def with_state(
        self,
        training: TrainingState | None = None,
        fitted: FittedDFM | None = None,
        extractor: Extractor | None = None,
        journal: tuple[Entry, ...] | None = None,
    ) -> "Self":
        """Return an estimator with these parameters and another state.

        Parameters
        ----------
        training : TrainingState, optional
            What its rows left behind.
        fitted : FittedDFM, optional
            Its fitted model; default that of `training`, when it is first used.
        extractor : Extractor, optional
            Its network; default this estimator's where the features are the same, or built again
            when it is first used.
        journal : tuple of Entry, optional
            What it came from; default this estimator's.

        Returns
        -------
        DFM
            A new one.
        """
        return self._with(self._values(), training, fitted, extractor, journal)

    # Scoring

    def score(
        self, X: Any, y: Any = None, *, labels: Any = None, score_type: Any = None
    ) -> NDArray[np.float32]:
        """Return anomaly scores; larger = farther from what was fitted.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            As in `fit`; a model fitted on images also scores features (N, D), as `extract` gives
            them.
        y : optional
            Ignored, as in `fit`.
        labels : array-like of shape (N,), "folders", "loader" or None
            Rows are scored under these classes, such as those that a classifier predicts, in place
            of the nearest ones.
        score_type : str or tuple of str, optional
            In place of the parameter.

        Returns
        -------
        ndarray of shape (N,) or (T, N), float32
            In the order of X (the images of a folder are sorted by path); one row for each type
            where `score_type` is a tuple of T. With several classes the score under the nearest,
            with several layers as `combine` or `image_score` says. NaN for images that were
            skipped.

        Raises
        ------
        NotFittedError
            If `fit` was not called yet.
        ValueError, TypeError, FileNotFoundError
            As `fit`; and if X has another number of features than the model, or a label is not
            one of its classes.
        """
        warn_of_ignored(y, stacklevel=2)
        chosen, kinds = self._chosen(score_type)
        scores = self._scored(X, labels, lambda rows: rows.scores(kinds), (len(kinds),), "score")
        return scores[0] if isinstance(chosen, str) else scores

    def layer_scores(
        self, X: Any, *, labels: Any = None, score_type: Any = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the scores of each layer by itself, before they are combined.

        Parameters
        ----------
        X, labels, score_type
            As in `score`.

        Returns
        -------
        dict of str to ndarray
            By layer, of the shape that `score` gives.
        """
        model = self.model_
        chosen = self.score_type if score_type is None else score_type
        kinds = check_score_types(chosen)
        model.check_layer_scores(kinds)
        scores = self._scored(
            X,
            labels,
            lambda rows: rows.layer_scores(kinds),
            (len(model.layers), len(kinds)),
            "score",
        )
        return {
            layer.name: theirs[0] if isinstance(chosen, str) else theirs
            for layer, theirs in zip(model.layers, scores, strict=True)
        }

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return ``-score(X)``: larger = more normal, scikit-learn's convention for densities."""
        return -self.score(X).astype(np.float64)

    def score_map(
        self, X: Any, *, score_type: str | None = None, smoothing: float = 0.0
    ) -> NDArray[np.float32]:
        """Return maps of scores over images: where they are anomalous.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            Images in any of the forms of `fit`, or features as `extract` gives them.
        score_type : str, optional
            In place of the parameter. Only fre is a sum over positions, and has maps of whole
            images; with spatial="patch" every type has.
        smoothing : float, default=0
            Standard deviation, in pixels, of a Gaussian that maps are smoothed by.

        Returns
        -------
        ndarray of shape (N, H, W), float32
            At the size of the network's input, ``feature_spec_.preprocessing.size``: the scores of
            the layer's positions, bilinear between them. With several layers, or where standardised
            maps score images (``image_score_ == "calibrated"``), those of each layer are divided by
            their mean over held-out normal images, so that 1 is normal, and added up; types that
            may be negative are standardised by that mean and the deviation. NaN for images that
            were skipped. A share `alpha` of the maps of normal images, without smoothing, exceed
            `map_threshold_` anywhere.

        Raises
        ------
        ValueError
            If the model was fitted on features, or has no map of that score type.
        """
        kind, size = self._map_type(score_type, smoothing)
        return self._scored(
            X,
            None,
            lambda rows: rows.maps(kind, size, float(smoothing)),
            size,
            "maps",
            axis=0,
        )

    def regions(
        self,
        X: Any,
        *,
        score_type: str | None = None,
        alpha: float | None = None,
        smoothing: float = 0.0,
        spread: float = SPREAD,
        least_area: float = LEAST_AREA,
    ) -> list[list[Region] | None]:
        """Return the anomalous regions of images, in pixels of their files.

        A region is a connected part of the map that is above a lower level everywhere and above
        `map_threshold_` somewhere.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            Images in any of the forms of `fit`.
        score_type, smoothing
            As in `score_map`.
        alpha : float in (0, 1), optional
            In place of the parameter: the share of normal images that may have a region.
        spread : float in [0, 1]
            Where the lower level lies on the way from `map_threshold_` down to the lower end of
            `map_range_`. 0 for one level.
        least_area : float in [0, 1]
            Smaller regions are dropped: share of what the network sees of the image.

        Returns
        -------
        list of N lists of Region
            Each has a box, a polygon, an area, and the highest and the mean value of the map; the
            region with the highest value first. None for images that were skipped.

        Raises
        ------
        ValueError
            As `score_map`; if the model has no held-out maps, from which the threshold comes; or if
            X holds features, which have no size in pixels.
        """
        kind, size = self._map_type(score_type, smoothing)
        level = self.alpha if alpha is None else alpha
        finder = RegionFinder.between(
            *map_range(self.fitted_, level, kind), spread=spread, least_area=least_area
        )
        source = open_source(X, self.on_error)
        if not isinstance(source, ImageSource):
            raise ValueError("X holds features, which have no size in pixels; pass images")
        extractor = self._ready_extractor()
        n_threads, preprocessing = resolve_threads(self.n_threads), extractor.spec.preprocessing
        views, found = Views(preprocessing), {}
        batches = self._batches(source, extractor, "regions", self.n_features_in_, look=views)
        for places, features, _ in batches:
            maps = self.fitted_.score(features, n_threads).maps(kind, size, float(smoothing))
            for place, own, view in zip(places, maps, views.take(places), strict=True):
                found[place] = finder.find(own, preprocessing.window(*view.size), view.size)
        self._report(source)
        return [found.get(place) for place in range(source.count)]

    def plot_scores(self, X: Any, *, labels: Any = None, ax: "Axes | None" = None) -> "Axes":
        """Draw the scores of images beside the held-out scores, with the threshold.

        Parameters
        ----------
        X, labels
            As in `score`.
        ax : matplotlib Axes, optional
            Default: those of a new figure.

        Returns
        -------
        Axes
            A line is at `threshold_` where the model has one.
        """
        from pydfm.reports.drawing.axes import draw_scores

        held_out, calibration = self.held_out_scores_, calibration_of(self.fitted_, self._kind)
        scores = self.score(X, labels=labels, score_type=self._kind)
        one = len(calibration.ranks) == 1 and not calibration.in_folds
        threshold = calibration.threshold(self.alpha) if one else None
        return draw_scores(scores[np.isfinite(scores)], held_out, threshold, ax)

    def plot_maps(
        self, X: Any, *, axes: Any = None, smoothing: float = 0.0, most: int = 12
    ) -> NDArray[Any]:
        """Draw images under the colours of their maps, with the outlines of their regions.

        In the geometry of the images: resize and crop are undone. The colours are those of
        `map_range_`, the same for all images of a model.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            Images in any of the forms of `fit`.
        axes : sequence of matplotlib Axes, optional
            One for each image. Default: those of a new figure, of the `most` images with the
            highest scores.
        smoothing : float
            As in `score_map`.
        most : int
            Used without `axes`.

        Returns
        -------
        ndarray of Axes
            With `axes`, in the order of X, else by descending scores.
        """
        from pydfm.reports.plots import plot_maps

        kind, _ = self._map_type(None, smoothing)
        return plot_maps(self, X, kind, axes, float(smoothing), most)

    def extract(self, X: Any) -> NDArray[np.float32]:
        """Return features of images, as the model was fitted on them.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            Images in any of the forms of `fit`.

        Returns
        -------
        ndarray of shape (N, D), float32
            Of all layers, one after the other; NaN for images that were skipped.
        """
        self._ready_extractor()
        shape = (self.n_features_in_,)
        return self._apply(X, None, lambda rows, _: np.asarray(rows), shape, "extract", axis=0)

    def batches(
        self,
        X: Any,
        *,
        task: str = "score",
        look: "Look | None" = None,
    ) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]:
        """Read images or features batch by batch, so that one batch at a time is in memory.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            As in `fit`.
        task : str
            Name of the progress bar.
        look : callable, optional
            Called with the index and the PIL image of each image, by the thread that decodes it;
            see `pydfm.features.views`.

        Yields
        ------
        places : list of int or slice
            Where the batch stands in X; skipped images are left out.
        features : ndarray of shape (B, D)
        pixels : ndarray of shape (B, 3, h, w), or None
            The images as the network sees them, before normalisation; None for features.
        """
        n_features = self.n_features_in_
        source = open_source(X, self.on_error)
        extractor = self._ready_extractor() if isinstance(source, ImageSource) else None
        yield from self._batches(source, extractor, task, n_features, look=look)
        self._report(source)

    # Deciding

    def predict_class(self, X: Any) -> NDArray[Any]:
        """Return the classes that rows are nearest to, by the score type of this estimator.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            As in `score`.

        Returns
        -------
        ndarray of shape (N,)
            Of `classes_`; with several layers, the class with the least combined score.

        Raises
        ------
        ValueError
            If the model was fitted without labels, or an image was skipped.
        """
        if self.model_.classes is None:
            raise ValueError("the model has no classes; fit it with labels")
        kind = self._chosen(None)[1][0]
        nearest = self._scored(
            X, None, lambda rows: rows.nearest(kind).astype(np.float32), (), "predict"
        )
        if np.isnan(nearest).any():
            raise ValueError(
                f"{self.skipped_[0].reason}; such an image has no class, so leave it out"
            )
        predicted: NDArray[Any] = self.classes_[nearest.astype(np.intp)]
        return predicted

    def p_value(
        self,
        X: Any,
        *,
        labels: Any = None,
        score_type: Any = None,
        tail: str | None = None,
    ) -> NDArray[np.float64]:
        """Return the share of normal images that score at least as high; small = anomalous.

        Parameters
        ----------
        X, labels, score_type
            As in `score`.
        tail : {"gpd"}, optional
            p-values below 1 / (n + 1), which n held-out scores cannot give, by a generalised
            Pareto distribution of the largest scores: a model, not a count
            (`pydfm.conformal.calibration`).

        Returns
        -------
        ndarray of shape (N,) or (T, N), float64
            (1 + the number of held-out scores that are at least as high) / (n + 1), with several
            classes the largest. NaN for images that were skipped.

        Raises
        ------
        NotFittedError
            If `fit` was not called yet.
        ValueError, TypeError, FileNotFoundError
            As `score`; and if the model was fitted without calibration, or a class has no held-out
            scores.
        """
        chosen, kinds = self._chosen(score_type)
        compute = p_values(self.fitted_, kinds, tail)
        p = self._scored(X, labels, compute, (len(kinds),), "score")
        return p[0] if isinstance(chosen, str) else p

    def decision_function(self, X: Any, *, labels: Any = None) -> NDArray[np.float64]:
        """Return `threshold_` less the score: negative = anomalous; the largest over the classes.

        Parameters
        ----------
        X, labels
            As in `score`.

        Returns
        -------
        ndarray of shape (N,), float64
            NaN for images that were skipped.
        """
        return self._scored(X, labels, self.decider().margins, (), "score")

    def predict(
        self,
        X: Any,
        *,
        labels: Any = None,
        alpha: float | None = None,
        fdr: float | None = None,
        tail: str | None = None,
    ) -> NDArray[np.intp]:
        """Decide whether images are normal, +1, or anomalous, -1.

        Parameters
        ----------
        X, labels
            As in `score`. With a tuple of score types, the first decides.
        alpha : float in (0, 1), optional
            In place of the parameter: the share of normal images that may be called anomalous.
        fdr : float in (0, 1), optional
            In place of alpha, the false discovery rate: the share that normal images may have
            among those of this batch that are called anomalous, by the procedure of Benjamini and
            Hochberg.
        tail : {"gpd"}, optional
            For levels that need p-values below 1 / (n + 1); see `p_value`.

        Returns
        -------
        ndarray of shape (N,)
            +1 or -1; 0 for images that were skipped.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            As `p_value`; and if a level is not within (0, 1), or a class has too few held-out
            scores for it.
        """
        return self.assess(X, labels=labels, alpha=alpha, fdr=fdr, tail=tail).verdicts

    def assess(
        self,
        X: Any,
        *,
        labels: Any = None,
        alpha: float | None = None,
        fdr: float | None = None,
        tail: str | None = None,
    ) -> Assessment:
        """Return scores, p-values and verdicts together, from one pass over the images.

        Parameters
        ----------
        X, labels, alpha, fdr, tail
            As in `predict`.

        Returns
        -------
        Assessment
            What `score`, `p_value` and `predict` give.
        """
        decider = self.decider(alpha=alpha, fdr=fdr, tail=tail)
        return decider.judge(self._scored(X, labels, decider.measure, (3,), "score"))

    def decider(
        self, *, alpha: float | None = None, fdr: float | None = None, tail: str | None = None
    ) -> Decider:
        """Return what turns scores of rows into p-values, margins and verdicts.

        Parameters
        ----------
        alpha, fdr, tail
            As in `predict`.
        """
        fitted = self.fitted_
        if alpha is not None and fdr is not None:
            raise ValueError("alpha and fdr are both given; one of them decides, so pass one")
        kind = self._chosen(None)[1][0]
        level = self.alpha if alpha is None else alpha
        return Decider.of(fitted, kind, alpha=level, fdr=fdr, tail=tail)

    def drift(self, X: Any, *, labels: Any = None) -> Drift:
        """Test whether images still score as the normal ones did, and what has moved.

        Parameters
        ----------
        X, labels
            As in `score`: a batch of what comes in now. With several classes and no labels, each
            image counts for the nearest class, with the largest of its p-values; since these run
            high, only smaller ones count as a drift.

        Returns
        -------
        Drift
            P-values of the tests; a small one means a drift.
        """
        kind = self._chosen(None)[1][0]
        test = DriftTest(self.fitted_, kind, labelled=labels is not None)
        return test.conclude(self._scored(X, labels, test.measure, (test.n_values,), "drift"))

    def monitor(
        self,
        *,
        evidence: float = EVIDENCE,
        reference: str | None = None,
        seed: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> Monitor:
        """Return an alarm for drift that may be looked at after every image.

        Unlike `drift`, whose test is of one batch, ``monitor.update(X)`` takes images as they come,
        for as long as they come: ``monitor.evidence`` is how many to 1 it is that the line has
        changed, and the probability that it reaches `evidence` in an endless run without a change
        is at most 1 / `evidence`. Verdicts stay as they are. See `pydfm.conformal.monitor`.

        Parameters
        ----------
        evidence : float, default=100
            The evidence at which an alarm is raised.
        reference : {"calibration", "stream"}, optional
            What images are compared with: the held-out scores and the images before them, or these
            alone, which finds no change that is there from the first image on. Default:
            "calibration" where held-out scores are of one model and class, else "stream".
        seed : int, default=0
            Of the numbers that break ties between scores.
        state : dict, optional
            What ``monitor.state()`` of the process before gave, to go on from there.

        Returns
        -------
        Monitor
            ``monitor.sentence`` says what it found, ``monitor.changed_at`` where.

        Raises
        ------
        ValueError
            If `evidence` is below 1, the model has no such reference, or `state` is of another
            model.
        """

        def score(monitor: Monitor, X: Any) -> NDArray[np.float64]:
            n_values = len(monitor.names) + 1
            return self._scored(X, None, monitor.measure, (n_values,), "watch")

        found = Monitor(
            self.fitted_,
            self._kind,
            evidence=evidence,
            reference=reference,
            seed=seed,
            score=score,
        )
        if state is not None:
            found.restore(state)
        return found

    def certify(self, alpha: float | None = None, *, confidence: float = CONFIDENCE) -> Certificate:
        """Bound the false-alarm rate of the threshold of a level, with a confidence.

        `alpha` is kept on average over samples of held-out images; this bounds the rate of the
        threshold that came from this one, says whether the bound is proven, and how many good
        images are missing for `alpha` as a bound. See `pydfm.conformal.certificate`.

        Parameters
        ----------
        alpha : float in (0, 1), optional
            In place of the parameter.
        confidence : float in (0, 1), default=0.95

        Returns
        -------
        Certificate
            ``print(certificate)`` says all of it in sentences.

        Raises
        ------
        ValueError
            If a number is out of its range, or the model was fitted without calibration.
        """
        level = self.alpha if alpha is None else alpha
        return certify(self.fitted_, self._kind, level, confidence)

    def audit(
        self, X: Any = None, *, labels: Any = None, groups: Any = None, fdr: float = FDR
    ) -> Audit:
        """Say what is wrong with good images, before or after a fit.

        Images that are least like the others, by held-out scores and a false discovery rate;
        equal and nearly equal images and the groups that they form; those that cannot be read, or
        have another size, mode, exposure or sharpness than most.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable, optional
            Good images or features, as in `fit`: a copy of this estimator is fitted to them, with
            equal images held out together. Default: what this estimator was fitted on.
        labels, groups : optional
            As in `fit`.
        fdr : float in (0, 1), default=0.05
            Share of good images among those that are flagged: `pydfm.conformal.checks.outliers`.

        Returns
        -------
        Audit
            ``table()`` is a data frame, the images least like the others first.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            As `fit`; and if there are no held-out scores.
        """
        check_share("fdr", fdr)
        if X is None:
            return audit(self.fitted_, self._kind, self.alpha, self._fitted_images(), fdr)
        copy_of_this = self._with(self._checked(), None, None, None, ())
        if copy_of_this.calibration is None:
            copy_of_this.calibration = DEFAULTS["calibration"]
        copy_of_this.on_error = "skip"
        facts: dict[int, Facts] = {}
        with warnings.catch_warnings():
            # What these say is in the audit.
            warnings.filterwarnings("ignore", message="alpha is|X holds rows that are not indep")
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ images were skipped")
            copy_of_this._fit(
                X, labels, groups, join_copies=True, look=lambda own: FactsTaker(own, facts)
            )
            given = copy_of_this._audited_images(image_names(X), facts)
            return audit(copy_of_this.fitted_, copy_of_this._kind, self.alpha, given, fdr)

    def _audited_images(self, names: list[str] | None, facts: Mapping[int, Facts]) -> AuditInput:
        """Return what an audit needs to know of the images of the last fit."""
        skipped = {one.index: one.reason for one in self.skipped_} if self.feature_spec_ else {}
        n_rows = self.training_.n_seen + len(skipped)
        read = np.delete(np.arange(n_rows), list(skipped))
        shown = [f"{i} of X" for i in range(n_rows)] if names is None else names
        near = near_places(self.training_, resolve_threads(self.n_threads))
        return AuditInput(
            dict(enumerate(shown)),
            read,
            facts,
            skipped,
            [(int(read[i]), int(read[j])) for i, j in near],
        )

    def _fitted_images(self) -> AuditInput:
        """Return what an audit needs to know of the images that this was fitted on.

        Their files are read again, where they are still there.
        """
        places = np.sort(self._held_out_sample().places)
        known = self.fitted_.held_out.names
        facts: dict[int, Facts] = {}
        if self.feature_spec_ is not None:
            take = FactsTaker(self.feature_spec_.preprocessing, facts)
            for place, name in known.items():
                with suppress(ImageError):  # it was readable at the fit, and has gone since
                    read_image(name, functools.partial(take, place), self.max_pixels)
        names = {int(place): str(known.get(int(place), f"{place} of X")) for place in places}
        near = [] if self._training is None else near_places(self._training, resolve_threads(1))
        read = np.arange(int(places.max(initial=-1)) + 1)
        inside = [(i, j) for i, j in near if i in names and j in names]
        return AuditInput(names, read, facts, {}, inside)

    def save(self, path: "str | os.PathLike[str]", *, keep: bool | None = None) -> None:
        """Write the fitted model to one file, which `pydfm.load` reads.

        The file is safetensors with a JSON header: the subspaces in float64, the held-out scores,
        the parameters, the preprocessing, and name and hash of the weights, but not the weights.
        An older file is replaced atomically.

        Parameters
        ----------
        path : path
        keep : bool, optional
            Whether the file keeps the training state, `training_`: with it, `partial_fit`,
            `merge` and `forget` work after `pydfm.load` as before. Default: where it takes no
            more than the model itself.

        Raises
        ------
        NotFittedError
            If `fit` was not called yet.
        OSError
            If the file cannot be written.
        ValueError
            If the state is to be kept and there is none, or a file cannot hold it; or if this is
            what `to_onnx` returned for `int8`.
        """
        if self.feature_spec_ is not None and self.feature_spec_.precision == "int8":
            raise ValueError(
                "the model is that of an export in int8, whose network only the export holds; save "
                "the model that was exported"
            )
        with self._updating:
            names = getattr(self, "feature_names_in_", None)
            fitted = self.fitted_
            if fitted.calibration is not None:
                for kind in check_score_types(self.score_type):
                    fitted.held_out_of(kind)  # some are only computed where they are asked for
            content = ModelFile(
                fitted, self._fit_parameters(), names, self._training, self.journal_
            )
        write_model(path, content, keep)

    def to_torch(
        self,
        *,
        backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
        weights: "str | os.PathLike[str] | None" = AS_SAVED,
    ) -> "torch.nn.Module":
        """Return the fitted model as a module of torch: uint8 pixels in, scores and maps out.

        Parameters
        ----------
        backbone, weights : optional
            Where these are now, if elsewhere than at the fit; as in `pydfm.load`.

        Returns
        -------
        torch.nn.Module
            On the CPU. It takes images (N, H, W, 3), uint8, RGB, of any size, and a false-alarm
            rate, a float64 tensor of shape (); it returns scores (N,), p-values (N,), verdicts
            (N,), +1 or -1, and maps (N, height, width), as far as the model has them. Call it under
            ``torch.no_grad()``, since the network has weights. Both
            ``torch.export.export(..., strict=False)`` and `to_onnx` take it.

        Raises
        ------
        ValueError
            If the model cannot be one module: one of features, of images of more than 8 bits, in
            another precision than float32, or with a score of one's own.
        """
        return self._pixel_model(backbone, weights)[0]

    def to_onnx(
        self,
        path: "str | os.PathLike[str]",
        *,
        backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
        weights: "str | os.PathLike[str] | None" = AS_SAVED,
        int8: Any = None,
        labels: Any = None,
        groups: Any = None,
    ) -> "DFM":
        """Write the fitted model as one graph of ONNX, from pixels to verdicts and maps.

        Weights, held-out scores and thresholds are inside: onnxruntime alone can run it. The inputs
        are ``images`` and ``alpha`` of `to_torch`, the second with this model's as default.

        With `int8` the network computes in integers of 8 bits, which is faster where the processor
        has instructions for them. Its features are not those that the model was fitted to, so the
        exported model is fitted again, with the same parameters, to what the network in int8 makes
        of all good images: its scores are held out as in any fit, and the false-alarm rate is held
        as in any fit. Weights have 7 bits, so that every processor gives the same.

        Parameters
        ----------
        path : path
        backbone, weights : optional
            As in `to_torch`.
        int8 : folder, list of paths or of PIL images, or array of images, optional
            All good images that the exported model is to know, those of the fit among them. Up to
            32 of them, evenly spread, give the ranges of the network's activations.
        labels, groups : optional
            Those of `int8`, as in `fit`.

        Returns
        -------
        DFM
            What the file holds: this model, or that of `int8`, which scores in onnxruntime alone
            and cannot be saved.

        Raises
        ------
        ImportError
            If onnx is not installed (the extra `onnx`).
        ValueError
            As `to_torch`; if the network cannot be exported or quantised; if `int8` is given and
            the model has combine="logistic", classes and no labels, or labels and no classes; or as
            `fit`.
        OSError
            If the file cannot be written.
        """
        from pydfm.io.onnx.export import check_export, write_onnx
        from pydfm.io.onnx.graph import PixelModel

        check_export(path)
        if int8 is None and (labels is not None or groups is not None):
            raise ValueError("labels and groups are those of int8, which is None; leave them out")
        module, tapped = self._pixel_model(backbone, weights)
        held, network = self, None
        if int8 is not None:
            held, network = self._in_int8(module, tapped, int8, labels, groups)
            module = PixelModel(held.fitted_, tapped, held._kind).eval()
        spec = self.feature_spec_
        assert spec is not None
        parameters = {name: repr(value) for name, value in self._fit_parameters().items()}
        about = {"model": held.model_.summary(), "parameters": json.dumps(parameters)}
        about["sha256"] = spec.sha256
        write_onnx(path, module, float(self.alpha), about, network)
        return held

    def _pixel_model(self, backbone: Any, weights: Any) -> "tuple[PixelModel, Tapped]":
        """Return the model from pixels on, and its network.

        What cannot be exported is refused before a network is loaded.
        """
        from pydfm.io.onnx.graph import PixelModel, check_exportable

        fitted, kind, spec = self.fitted_, self._kind, self.feature_spec_
        check_exportable(fitted, kind)
        assert spec is not None
        own = self.backbone if backbone is None and spec.needs_module else backbone
        tapped = tapped_of(spec, backbone=own, weights=weights)
        return PixelModel(fitted, tapped, kind).eval(), tapped

    def _in_int8(
        self, module: "PixelModel", tapped: "Tapped", X: Any, labels: Any, groups: Any
    ) -> "tuple[DFM, Int8Network]":
        """Return the model fitted again with its network in int8, and that network."""
        from pydfm.io.onnx.export import graph_of
        from pydfm.io.onnx.int8 import LARGEST, quantise, sample_pixels

        self._check_not_logistic("an export in int8")
        if self.model_.classes is not None and labels is None:
            raise ValueError(
                "labels is None, but the model has classes; give the labels of int8, or --classes"
            )
        if labels is not None and self.model_.classes is None and self.covariance != "global":
            raise ValueError(
                "labels is given, but the model has no classes, and the exported one would have; "
                "leave labels, or --classes, out"
            )
        spec, n_threads = self.feature_spec_, resolve_threads(self.n_threads)
        assert spec is not None
        shares = sample_pixels(X, spec.preprocessing, self.on_error, self.max_pixels, n_threads)
        network = quantise(
            graph_of(module, self.alpha), shares, spec.preprocessing, tapped.grids, n_threads
        )
        if not network.error <= LARGEST:
            warnings.warn(
                f"the features of the network in int8 differ by {network.error:.2g} of their "
                "deviation, so that the model may find less; compare it with this one, or export "
                "without int8",
                stacklevel=3,
            )
        extractor = Extractor(
            network.backbone(n_threads), replace(spec, precision="int8", runtime="onnx"), "onnx"
        )
        parameters = {**self._fit_parameters(), "runtime": "onnx", "device": "cpu"}
        held = self._with(parameters, None, None, None, ())
        held._fit(X, labels, groups, extractor=extractor)
        messages = []
        if held.n_samples_ < self.n_samples_:
            messages.append(
                f"the model was fitted to {self.n_samples_} images, and int8 has "
                f"{held.n_samples_}: the exported one knows these alone; give all good images"
            )
        if self.left_out_:
            messages.append(
                f"the fit left out {len(self.left_out_)} images, such as '{self.left_out_[0]}', "
                "and the exported model is fitted to all of int8; see that they are not among them"
            )
        if self.calibration_ == RECALIBRATED:
            messages.append(
                "the model was recalibrated, and the held-out scores of the exported one are those "
                "of int8; give later good images too"
            )
        for message in messages:
            warnings.warn(message, stacklevel=3)
        return held, network

    # Fitted attributes

    @property
    def fitted_(self) -> FittedDFM:  # noqa: D102 (described with the class)
        self._check_fitted()
        fitted = self._fitted
        if fitted is None:
            # Rows were added or removed: the model of all of them, computed once.
            training = self.training_
            compact = training.compact()
            kinds = check_score_types(self.score_type)
            n_threads = resolve_threads(self.n_threads)
            fitted = freeze(compact, n_threads=n_threads, score_types=kinds)
            if self.calibration is not None:
                warn_of_dependence(compact, n_threads)
            with self._updating:
                if self._training is training:  # or another thread has added rows meanwhile
                    self._training, self._fitted = compact, fitted
        return fitted

    @property
    def training_(self) -> TrainingState:  # noqa: D102
        self._check_fitted()
        if self._training is None:
            raise ValueError(
                "the model was loaded from a file, which does not hold the training state that "
                "rows are added to or removed from; fit again, and keep it by save(keep=True), or "
                "`pydfm fit --keep`"
            )
        return self._training

    @property
    def model_(self) -> Model:  # noqa: D102
        return self.fitted_.model

    @property
    def feature_spec_(self) -> FeatureSpec | None:  # noqa: D102
        return self._state().spec

    @property
    def calibration_(self) -> str | None:  # noqa: D102
        state = self._state()
        return state.calibration if isinstance(state, FittedDFM) else state.settings.how

    @property
    def n_features_in_(self) -> int:  # noqa: D102
        state = self._state()
        return state.model.n_features if isinstance(state, FittedDFM) else state.n_features

    @property
    def n_samples_(self) -> int:  # noqa: D102
        state = self._state()
        return state.model.n_samples if isinstance(state, FittedDFM) else state.n_samples

    @property
    def memory_(self) -> int:  # noqa: D102
        self._check_fitted()
        return 0 if self._training is None else self._training.n_bytes

    @property
    def skipped_(self) -> list[Skipped]:  # noqa: D102
        if "_skipped" not in vars(self):
            raise AttributeError("no images were fitted or scored yet; skipped_ is of those")
        skipped: list[Skipped] = vars(self)["_skipped"].get()
        return skipped

    @property
    def threshold_(self) -> float | NDArray[np.float64]:  # noqa: D102
        found = thresholds(self.fitted_, self._kind, self.alpha)
        return float(found[0]) if self.model_.classes is None else found

    @property
    def held_out_scores_(self) -> NDArray[np.float32]:  # noqa: D102
        scores: NDArray[np.float32] = self._held_out_sample().scores[0]
        return scores

    @property
    def held_out_p_values_(self) -> NDArray[np.float64]:  # noqa: D102
        sample = self._held_out_sample()
        return calibration_of(self.fitted_, self._kind).p_values_of(sample)

    @property
    def held_out_names_(self) -> NDArray[Any]:  # noqa: D102
        places = self._held_out_sample().places.tolist()
        names = self.fitted_.held_out.names
        return np.array([names.get(place, place) for place in places])

    @property
    def left_out_(self) -> list[str]:  # noqa: D102
        return list(self.fitted_.left_out)

    @property
    def smallest_alpha_(self) -> float:  # noqa: D102
        return calibration_of(self.fitted_, self._kind).smallest_alpha

    @property
    def offset_(self) -> float:  # noqa: D102
        found = thresholds(self.fitted_, self._kind, self.alpha)
        if len(found) > 1:
            raise AttributeError(
                f"the model has {len(found)} classes, each with a threshold of its own: see "
                "threshold_"
            )
        return -float(found[0])

    @property
    def map_threshold_(self) -> float:  # noqa: D102
        return map_threshold(self.fitted_, self.alpha, self.model_.map_type(self._kind))

    @property
    def map_range_(self) -> tuple[float, float]:  # noqa: D102
        kind = self.model_.map_type(self._kind)
        low, middle = map_range(self.fitted_, self.alpha, kind)
        return low, 2 * middle - low

    @property
    def image_score_(self) -> str:  # noqa: D102
        return self.model_.image_score

    @property
    def goes_on_(self) -> bool:  # noqa: D102
        self._check_fitted()
        return self._training is not None

    @property
    def journal_(self) -> tuple[Entry, ...]:  # noqa: D102
        self._check_fitted()
        return self._journal

    @property
    def classes_(self) -> NDArray[Any]:  # noqa: D102
        if self.model_.classes is None:
            raise AttributeError("the model has no classes: it was fitted without labels")
        return np.array(self.model_.classes)

    @property
    def subspace_(self) -> Subspace:  # noqa: D102
        layers, subspaces = self.model_.layers, self.model_.layers[0].density.subspaces
        if len(layers) > 1 or len(subspaces) > 1:
            raise AttributeError(
                f"the model has {len(layers)} layer(s) and {len(subspaces)} class(es), each with a "
                "subspace of its own: see model_.layers[i].density.subspaces"
            )
        return subspaces[0]

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

    def __sklearn_is_fitted__(self) -> bool:
        return self._fitted is not None or self._training is not None

    def __dir__(self) -> list[str]:
        # scikit-learn tries each name and drops those that raise, which would compute them all.
        return list(object.__dir__(self))

    def __getstate__(self) -> dict[str, Any]:
        # A traced network cannot be pickled; it is built again when it is needed.
        state = {**super().__getstate__(), "_extractor": None}
        return state | {name: copy.copy(state[name]) for name in _OF_THREADS if name in state}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Self":
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        memo.setdefault(id(self.backbone), copy_backbone(self.backbone))
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def __sklearn_clone__(self) -> "Self":
        shell = copy.copy(self)
        shell.backbone = None  # type: ignore[assignment]
        new = super(DFM, shell).__sklearn_clone__()
        new.backbone = copy_backbone(self.backbone)
        return new  # type: ignore[no-any-return]

    # Shared by the methods above

    def _become(
        self,
        training: TrainingState | None,
        fitted: FittedDFM | None,
        extractor: Extractor | None,
        parameters: Mapping[str, Any] | None,
        journal: tuple[Entry, ...],
    ) -> "Self":
        """Take up another state, all at once."""
        self._training, self._fitted, self._extractor = training, fitted, extractor
        self._parameters, self._late, self._journal = parameters, (), journal
        return self

    def _with_step(
        self, what: str, n_samples: int, total: int, names: Sequence[str] = ()
    ) -> tuple[Entry, ...]:
        """Return the journal with one more step."""
        return (*self._journal, Entry.now(what, n_samples, total, names))

    @property
    def _updating(self) -> Lock:
        """The lock of whoever changes this estimator: rows that others add must not be lost."""
        lock: Lock = self.__dict__.setdefault("_lock", Lock())
        return lock

    def _values(self) -> dict[str, Any]:
        """Return the parameters of the table, also where a subclass does not take them."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def _with(
        self,
        parameters: Mapping[str, Any],
        training: TrainingState | None,
        fitted: FittedDFM | None,
        extractor: Extractor | None,
        journal: tuple[Entry, ...] | None,
    ) -> "Self":
        """Return an estimator with other parameters and another state; see `with_state`."""
        # A subclass may have parameters of its own.
        other = type(self)(**self.get_params(deep=False))
        for name, value in parameters.items():
            setattr(other, name, value)
        state = training if fitted is None else fitted
        if state is not None and extractor is None and self._extractor is not None:
            extractor = self._extractor if self._extractor.spec == state.spec else None
        if hasattr(self, "feature_names_in_"):
            other.feature_names_in_ = self.feature_names_in_
        journal = self._journal if journal is None else journal
        return other._become(training, fitted, extractor, dict(parameters), journal)

    def _fit_parameters(self) -> dict[str, Any]:
        """Return the parameters of the fitted model: those set since that count at once, too."""
        self._check_fitted()
        assert self._parameters is not None
        now = self._values()
        late = changed_since(self._parameters, now, ("features", "model"))
        parameters = {**now, **{name: self._parameters[name] for name in late}}
        check_parameters(parameters)
        return parameters

    def _check_not_logistic(self, method: str) -> None:
        if self.combine == "logistic":
            raise ValueError(
                "combine is 'logistic', which needs known outliers and can only be fitted by fit, "
                f"not changed by {method}; use 'sum' or 'max'"
            )

    def _checked(self) -> dict[str, Any]:
        """Return the parameters, which are in their ranges."""
        parameters: dict[str, Any] = self._values()
        check_parameters(parameters)
        return parameters

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                "This DFM instance is not fitted yet. Call 'fit' with normal images or features "
                "before using this method."
            )

    def _check_unchanged(self) -> None:
        """Raise ValueError if parameters that count at a fit differ from those of the fit."""
        assert self._parameters is not None
        now = self._values()
        for name in changed_since(self._parameters, now, ("features", "model")):
            raise ValueError(
                f"{name} was {self._parameters[name]!r} at the fit and is {now[name]!r} now; rows "
                "can be added only with the parameters of the fit: set it back, or call fit"
            )

    def _check_feature_names(self, X: Any, *, reset: bool = False) -> None:
        # Only data frames have names; the check costs as much as scoring a row.
        if hasattr(X, "columns") or hasattr(self, "feature_names_in_"):
            _check_feature_names(self, X, reset=reset)

    def _state(self) -> FittedDFM | TrainingState:
        """Return the fitted model if it is there, else the training state; nothing is computed."""
        self._check_fitted()
        state = self._fitted if self._fitted is not None else self._training
        assert state is not None
        return state

    def _chosen(self, score_type: Any) -> tuple[Any, list[str]]:
        """Return the score type or types that were asked for, and a list of them, which exist."""
        model = self.model_
        if self._late:
            names, self._late = ", ".join(self._late), ()
            warnings.warn(
                f"{names} changed after the fit: the fitted model stays as it is, and the new "
                "value counts at the next fit",
                stacklevel=3,
            )
        chosen = self.score_type if score_type is None else score_type
        kinds = check_score_types(chosen)
        model.check_scores(kinds)
        return chosen, kinds

    def _map_type(self, score_type: str | None, smoothing: float) -> tuple[str, tuple[int, int]]:
        """Return the score type of maps, and their size, or raise ValueError if there are none."""
        chosen, kinds = self._chosen(score_type)
        if not isinstance(chosen, str):
            raise ValueError(f"score_type is {chosen!r}; a map is of one type: pass score_type")
        self.model_.check_maps(kinds[0])
        spec = self.feature_spec_
        assert spec is not None
        size = spec.preprocessing.size
        check_number("smoothing", smoothing, 0, max(size))
        return kinds[0], size

    @property
    def _kind(self) -> str:
        """The score type that decides."""
        return self._chosen(None)[1][0]

    def _held_out_sample(self) -> HeldOutSample:
        """Return the held-out scores of the score type that decides."""
        calibration_of(self.fitted_, self._kind)  # or an error that says why there are none
        return self.fitted_.held_out_of(self._kind).samples[self._kind]

    def _warn_of_lost_calibration(self) -> None:
        if self._fitted is not None and self._fitted.calibration == RECALIBRATED:
            warnings.warn(
                "the model was recalibrated, and its rows change: held-out scores come from the "
                "fitted rows again; call recalibrate once more",
                stacklevel=3,
            )

    def _build_extractor(self, seed: int, source: ImageSource) -> Extractor:
        source.check_there()  # before weights are downloaded
        found = self._resolved()
        return Extractor.build(
            self.backbone,
            self.weights,
            found["layers"],
            spatial=self.spatial,
            pool=found["pool"],
            image_size=found["image_size"],
            mean=self.mean,
            std=self.std,
            precision=self.precision,
            layout=self.layout,
            tokens=self.tokens,
            random_state=seed,
            device=self.device,
            runtime=self.runtime,
            n_threads=self.n_threads,
            progress=self.verbose,
            intensity=resolve_intensity(self.intensity, source.look_at(), self.max_pixels),
        )

    def _ready_extractor(self) -> Extractor:
        spec = self.feature_spec_
        if spec is None:
            raise ValueError(
                f"X holds images, but the model was fitted on features (N, {self.n_features_in_}); "
                "fit it on images, or pass features"
            )
        asked: dict[str, Any] = {
            "runtime": self.runtime,
            "device": self.device,
            "n_threads": self.n_threads,
        }
        if self._extractor is None or not self._extractor.serves(**asked):
            own = self.backbone if spec.needs_module else None
            self._extractor = Extractor.rebuild(spec, backbone=own, progress=self.verbose, **asked)
        return self._extractor

    def _settings(self, extractor: Extractor | None, seed: int) -> Settings:
        grids = [None] if extractor is None else list(extractor.spec.grids)
        values = self._values() if extractor is None else self._resolved()
        return resolve_settings({**values, "random_state": seed}, grids)

    def _resolved(self) -> dict[str, Any]:
        """Return the parameters of a fit to images, with what the preset adds."""
        values = resolve_preset(self._values())
        check_parameters(values)
        return values

    def _added(
        self,
        training: TrainingState | None,
        source: _Source,
        row_labels: RowLabels | None,
        extractor: Extractor | None,
        batches: Iterable[tuple[Any, NDArray[Any], NDArray[Any] | None]],
        *,
        seed: int,
        groups: RowLabels | None = None,
        join_copies: bool = False,
        partial: bool = False,
    ) -> TrainingState:
        """Return `training`, or a new state, with all rows of `source` added, in `batches`."""
        n_threads = resolve_threads(self.n_threads)
        for places, features, pixels in batches:
            if training is None:
                spec = None if extractor is None else extractor.spec
                settings = self._settings(extractor, seed)
                training = TrainingState.begin(spec, features.shape[1], settings)
            theirs = None if row_labels is None else row_labels.take(places)
            borrowed = extractor is None
            if partial and borrowed:
                features, borrowed = features.copy(), False
            if partial or extractor is None:
                # Later it would be found too late, and in the rows of one class or batch.
                with np.errstate(over="ignore", invalid="ignore"):
                    total = features.sum()  # of finite rows it may overflow
                if not np.isfinite(total):
                    _check_batch(features, places)
            own = None if groups is None else groups.take(places)
            names = None
            if isinstance(source, ImageSource) and source.names is not None:
                names = [source.names[place] for place in places]
            if extractor is not None and self.augment == "rotate":
                assert pixels is not None
                if own is None:
                    own = image_hashes(pixels)
                names = list(map(str, places)) if names is None else names
                features, pixels = extractor.with_rotations(features, pixels)
                theirs = None if theirs is None else np.tile(theirs, 4)
                own, names = np.tile(own, 4), names * 4
            hashes = None if pixels is None else image_hashes(pixels)
            if join_copies:
                own = image_hashes(features) if hashes is None else hashes
            training = training.add(
                features,
                theirs,
                n_threads=n_threads,
                groups=own,
                hashes=hashes,
                names=names,
                borrowed=borrowed,
            )
        _check_counts(source, row_labels, groups)
        if isinstance(source, ImageSource):
            n_images = source.count - len(source.skipped)
            if source.skipped and (training is None or (not partial and n_images < 2)):
                needed = "one is needed" if partial else "fit needs at least two"
                raise ValueError(
                    f"X has {n_images} images that can be read, and {needed}; "
                    f"{source.skipped[0].reason}"
                )
            self._report(source)
        assert training is not None
        return training

    def _check_augment(
        self,
        extractor: Extractor | None,
        join_copies: bool = False,
        checkpoint: Any = None,
        clean: float | None = None,
    ) -> None:
        """Raise ValueError where `augment` is given, and its copies cannot be made or counted."""
        if self.augment is None:
            return
        found = "checkpoint is given, which keeps no images to turn" if checkpoint else ""
        if clean is not None:
            found = "clean is given, which leaves out images by their own scores"
        if join_copies:
            found = "fit_predict judges the fitted images alone; use fit and predict"
        if extractor is None:
            found = "X holds features, which cannot be turned"
        if found:
            raise ValueError(f"augment is {self.augment!r}, but {found}; or leave augment out")

    def _cleaned(
        self,
        source: _Source,
        row_labels: RowLabels | None,
        extractor: Extractor | None,
        batches: Iterable[tuple[Any, NDArray[Any], NDArray[Any] | None]],
        fdr: float,
        **given: Any,
    ) -> tuple[TrainingState, tuple[str, ...]]:
        """Return the state of the rows that belong together, and names of those left out."""
        check_share("clean", fdr)
        if self.calibration is None:
            raise ValueError(
                "clean is given, but calibration is None, and held-out scores say what does not "
                "belong; pass calibration='loo'"
            )
        n_threads, kinds = resolve_threads(self.n_threads), check_score_types(self.score_type)
        kept = [(_places(places), features.copy(), pixels) for places, features, pixels in batches]
        n_rows = sum(len(places) for places, _, _ in kept)
        out: list[int] = []
        while True:
            training = self._added(None, source, row_labels, extractor, kept, **given).compact()
            fitted = freeze(training, n_threads=n_threads, score_types=kinds)
            sample = fitted.held_out_of(kinds[0]).samples.get(kinds[0])
            rows = np.concatenate([places for places, _, _ in kept])
            found = (
                rows[sample.places[outliers_among(sample, fdr)]] if sample is not None else rows[:0]
            )
            if len(found) == 0:
                break
            if len(out) + len(found) > n_rows // 2:
                raise ValueError(
                    f"clean is {fdr}, which would leave out more than half of {n_rows} rows or "
                    "images; look at them first (DFM.audit), or pass a smaller share"
                )
            out += found.tolist()
            kept = [_without(batch, found) for batch in kept]
        names = source.names if isinstance(source, ImageSource) else None
        left_out = tuple(f"{i} of X" if names is None else names[i] for i in out)
        if left_out:
            warnings.warn(
                f"{len(left_out)} of {n_rows} images are unlike the others and were left out; "
                f"left_out_ lists them; the first: '{left_out[0]}'",
                stacklevel=4,
            )
        return training, left_out

    def _outlier_features(
        self, n_features: int, extractor: Extractor | None, outliers: Any
    ) -> NDArray[Any]:
        """Return the features (m, D) of known outliers."""
        source = open_source(outliers, self.on_error)
        parts = [rows for _, rows, _ in self._batches(source, extractor, "outliers", n_features)]
        if isinstance(source, ImageSource) and source.skipped:
            if not parts:
                raise ValueError(
                    f"outliers holds no image that can be read; {source.skipped[0].reason}"
                )
            warn_of_skipped(source, "outliers", stacklevel=3)
        return np.concatenate(parts)

    def _batches(
        self,
        source: _Source,
        extractor: Extractor | None,
        task: str,
        n_features: int | None,
        checkpoint: "str | os.PathLike[str] | None" = None,
        look: "Look | None" = None,
    ) -> Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]:
        """Yield places in the source, the features (B, D) there, and pixels of images."""
        return feature_batches(
            source,
            extractor,
            batch_size=self.batch_size,
            n_threads=self.n_threads,
            task=task,
            verbose=self.verbose,
            n_features=n_features,
            checkpoint=checkpoint,
            max_pixels=self.max_pixels,
            look=look,
        )

    def _scored(
        self,
        X: Any,
        labels: Any,
        function: Callable[[RowScores], NDArray[Any]],
        shape: tuple[int, ...],
        task: str,
        *,
        axis: int = -1,
    ) -> NDArray[Any]:
        """Return the results of `function` for the scores of all of X; see `_apply`."""
        model, n_threads = self.model_, resolve_threads(self.n_threads)
        return self._apply(
            X,
            labels,
            lambda rows, classes: function(RowScores(model, rows, n_threads, classes)),
            shape,
            task,
            axis=axis,
        )

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
        """Return the results of `function` for features and classes of all of X.

        They have a `shape`, to which rows are added as the first `axis` or the last; NaN stands for
        images that were skipped.
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
        for places, features, _ in self._batches(source, extractor, task, self.n_features_in_):
            classes = None
            if row_labels is not None:
                classes = find_classes(row_labels.take(places), self.classes_)
            try:
                parts.append(function(features, classes))
            except ValueError:
                _check_batch(features, places)
                raise
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

    def _report(self, source: _Source) -> None:
        if isinstance(source, ImageSource):
            # setdefault: of two threads that come first, both get the same.
            skipped = self.__dict__.setdefault("_skipped", PerThread(source.skipped))
            skipped.set(source.skipped)
            if source.skipped:
                warn_of_skipped(source, "images", stacklevel=5)


def load(
    path: "str | os.PathLike[str]",
    *,
    backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
    weights: "str | os.PathLike[str] | None" = AS_SAVED,
    device: "str | torch.device | None" = None,
    n_threads: int | None = None,
    runtime: str | None = None,
) -> DFM:
    """Read a model that `DFM.save` wrote; with the same packages its scores have the same bits.

    Parameters
    ----------
    path : path
        The file.
    backbone : path or torch.nn.Module, optional
        Needed where the model was fitted with a module of your own or a TorchScript file, whose
        code would run: a model file must not choose it.
    weights : path, str or None, optional
        Where the weights are now, if elsewhere than when the model was fitted.
    device, n_threads : optional
        As for `DFM`.
    runtime : {"auto", "torch", "onnx"}, optional
        As for `DFM`; default that of the file, "torch" in files of before.

    Returns
    -------
    DFM
        Fitted; a model of images has its network loaded and checked.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a file that the network needs is not where it was.
    ValueError
        If it is not a whole model file of a known format, or the network's weights are not those
        it was fitted with.
    """
    loaded = load_model(
        path,
        backbone=backbone,
        weights=weights,
        device=device,
        n_threads=n_threads,
        runtime=runtime,
    )
    return estimator_of(loaded)


def estimator_of(loaded: LoadedModel) -> DFM:
    """Return the estimator of a model that was loaded from a file."""
    dfm = DFM(**loaded.parameters)
    if loaded.feature_names is not None:
        dfm.feature_names_in_ = loaded.feature_names
    return dfm.with_state(loaded.training, loaded.fitted, loaded.extractor, loaded.journal)


def _names_read(source: _Source) -> list[str]:
    """Return the names of the images of a source that were read, where they are files."""
    if not isinstance(source, ImageSource) or source.names is None:
        return []
    skipped = {one.index for one in source.skipped}
    return [name for i, name in enumerate(source.names) if i not in skipped]


def _check_counts(source: _Source, *each: RowLabels | None) -> None:
    """Raise ValueError unless there is a label, and a group, for each row that was read."""
    for own in each:
        if own is not None:
            own.check_count(source.count)


def _places(places: slice | list[int]) -> NDArray[np.intp]:
    """Return the places of a batch as an array."""
    if isinstance(places, slice):
        return np.arange(places.start, places.stop)
    return np.array(places, dtype=np.intp)


def _without(
    batch: tuple[NDArray[np.intp], NDArray[Any], NDArray[Any] | None], found: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[Any] | None]:
    """Return a batch without the rows at the places `found`."""
    places, features, pixels = batch
    keep = ~np.isin(places, found)
    return places[keep], features[keep], None if pixels is None else pixels[keep]


def _check_batch(features: NDArray[Any], places: slice | list[int]) -> None:
    """Raise ValueError if features are not finite; it names the row by its number in all of X."""
    check_finite(features, places.start if isinstance(places, slice) else 0)


def _check_combine(combine: str, outliers: Any, n_layers: int) -> None:
    if n_layers == 1 and outliers is not None:
        raise ValueError(
            "outliers is given, but the model has one layer, and outliers only fit how several "
            "layers are combined; name more layers, or omit outliers"
        )
    if combine == "logistic" and outliers is None and n_layers > 1:
        raise ValueError(
            "combine is 'logistic', which is fitted to known outliers; pass fit(X, outliers=...)"
        )
    if combine != "logistic" and outliers is not None:
        raise ValueError(
            f"outliers is given, but combine is {combine!r}, which does not use it; pass "
            "combine='logistic'"
        )
