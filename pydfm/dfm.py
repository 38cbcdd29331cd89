"""The DFM estimator: images or features in, anomaly scores out."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import _check_feature_names

from pydfm._checks import check_choice, check_integer
from pydfm.density import SCORE_TYPES, Subspace, SubspaceFitter, check_n_components
from pydfm.extraction import Extractor, FeatureSpec
from pydfm.features import FeatureSource
from pydfm.images import ImageSource, Skipped, open_source
from pydfm.threads import resolve_threads

if TYPE_CHECKING:
    import torch


class DFM(BaseEstimator):  # type: ignore[misc]
    """Deep Feature Modeling: tells how far an image is from what a model knows.

    The features of a pretrained network are modelled by a principal subspace and a Gaussian in it;
    what the subspace cannot reconstruct, or the Gaussian finds unlikely, is anomalous. One pass to
    fit, one matrix product to score, no training.

    Parameters
    ----------
    n_components : float in (0, 1), int or None, default=0.97
        A share of variance to keep (the fewest components that exceed it, scikit-learn's rule), a
        number of components up to min(N, D), or all.
    score_type : {"fre", "mahalanobis", "nll", "ppca"}, default="fre"
        What `score` gives. For a row x with d = x - mean and z = W'd, its projection on the k
        components with variances lambda:

        - "fre", the feature reconstruction error ||d||^2 - ||z||^2;
        - "mahalanobis", sum z_i^2 / lambda_i;
        - "nll", (mahalanobis + sum ln lambda_i + k ln 2 pi) / 2, a negative log-likelihood in nats;
        - "ppca", the negative log-likelihood in nats under probabilistic PCA, which weighs both.
    backbone : str, path or torch.nn.Module, default="resnet18"
        "resnet18", "resnet34", "resnet50" or "wide_resnet50_2", the path of a TorchScript file, or
        a module of your own that takes (B, 3, H, W). Not used for features.
    weights : str, path or None, default="imagenet"
        "imagenet" (torchvision's IMAGENET1K_V1, downloaded once), a file with a state dict (.pth,
        read with ``weights_only``, or .safetensors), or None for random weights from
        `random_state`. A module of your own keeps its weights unless a path is given.
    layers : str or sequence of str, optional
        Submodules whose outputs are the features, concatenated, or "output" for what the network
        returns. Default "avgpool", the penultimate layer, for the networks named above and
        "output" otherwise.
    pool : int, optional
        Kernel and stride of an average pooling of each layer's map before it is flattened.
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
    random_state : int, default=0
        Seed of random weights.
    verbose : bool, default=False
        Show a progress bar for what takes longer than a second (on stderr, at a terminal).

    Attributes
    ----------
    subspace_ : Subspace
        The fitted model.
    mean_ : ndarray of shape (D,), float64
    components_ : ndarray of shape (k, D), float64
        Orthonormal rows by descending variance.
    explained_variance_ : ndarray of shape (k,), float64
    explained_variance_ratio_ : ndarray of shape (k,), float64
        Shares of the total variance.
    noise_variance_ : float
    n_components_ : int
        k.
    n_features_in_ : int
        D.
    n_samples_ : int
        Rows or images it was fitted on.
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

    Examples
    --------
    >>> import numpy as np, pydfm
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 64))
    >>> dfm = pydfm.DFM().fit(x)
    >>> bool(dfm.score(rng.normal(size=(1, 64)))[0] > dfm.score(x).max())
    True
    """

    subspace_: Subspace
    feature_spec_: FeatureSpec | None
    skipped_: list[Skipped]
    _extractor: Extractor | None

    def __init__(
        self,
        n_components: float | int | None = 0.97,
        score_type: str = "fre",
        *,
        backbone: "str | os.PathLike[str] | torch.nn.Module" = "resnet18",
        weights: "str | os.PathLike[str] | None" = "imagenet",
        layers: str | Sequence[str] | None = None,
        pool: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        device: "str | torch.device | None" = None,
        precision: str = "float32",
        batch_size: int = 32,
        n_threads: int | None = None,
        on_error: str = "raise",
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.score_type = score_type
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.pool = pool
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.n_threads = n_threads
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "DFM":
        """Fit to normal images, or to features of normal data.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            - features: array-like or tensor (N, D) of real numbers, any type and layout;
            - images: array or tensor (N, 3, H, W), uint8, or float in [0, 1];
            - a folder, searched in depth, or the path of one picture;
            - a list of paths, or of PIL images;
            - a DataLoader, or any iterable, of batches of images or features; or of (batch,
              labels) pairs, of which the labels are left aside.
        y : None
            Not used; there for scikit-learn's conventions.

        Returns
        -------
        DFM
            This estimator.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or X is empty, has fewer than two rows, is not
            finite, has values beyond float64 when squared, or holds a picture that cannot be read.
        TypeError
            If X is none of the above.
        FileNotFoundError
            If there is no such file or folder.
        ConnectionError
            If the weights cannot be downloaded.
        """
        self._check_parameters()
        n_threads = resolve_threads(self.n_threads)
        fitter = SubspaceFitter(n_threads)
        source = open_source(X, self.on_error)
        extractor = None
        if isinstance(source, ImageSource):
            extractor = self._build_extractor()
            for _, features in self._extracted(extractor, source, "fit"):
                fitter.add(features)
            if source.skipped and fitter.n_samples < 2:
                raise ValueError(
                    f"X has {fitter.n_samples} images that can be read, and fit needs at least "
                    f"two; {source.skipped[0].reason}"
                )
            self._report(source)
        else:
            for features in source.batches():
                fitter.add(features)
        subspace = fitter.fit(self.n_components)
        if subspace.noise_variance == 0 and self.score_type != "fre":
            raise ValueError(
                f"score_type is {self.score_type!r}, which needs variance, but all rows of X are "
                "equal; only 'fre' can score then"
            )
        self._check_feature_names(X, reset=True)
        self._set_fitted(subspace, extractor)
        return self

    def score(self, X: Any, y: Any = None) -> NDArray[np.float32]:
        """Anomaly scores; larger = farther from what was fitted.

        Parameters
        ----------
        X : array-like, tensor, path, sequence or iterable
            As in `fit`; a model fitted on images also scores features (N, D), as `extract` gives
            them.
        y : None
            Not used; there for scikit-learn's conventions.

        Returns
        -------
        ndarray of shape (N,), float32
            In the order of X (a folder's pictures are sorted by path), of the kind `score_type`;
            NaN for pictures that were skipped.

        Raises
        ------
        NotFittedError
            If `fit` was not called yet.
        ValueError, TypeError, FileNotFoundError
            As `fit`; and if X has another number of features than the model.
        """
        self._check_fitted()
        kinds = [check_choice("score_type", self.score_type, SCORE_TYPES)]
        n_threads = resolve_threads(self.n_threads)
        subspace = self.subspace_
        if kinds != ["fre"] and subspace.noise_variance == 0:
            raise ValueError(
                f"score_type is {self.score_type!r}, but the rows fitted were all equal; only "
                "'fre' can score then"
            )
        return self._apply(X, lambda rows: subspace.score(rows, kinds, n_threads)[0], (), "score")

    def score_samples(self, X: Any) -> NDArray[np.float32]:
        """Return ``-score(X)``: larger = more normal, scikit-learn's convention for densities."""
        return -self.score(X)

    def extract(self, X: Any) -> NDArray[np.float32]:
        """Features of images, as the model was fitted on them.

        Parameters
        ----------
        X : array, tensor, path, sequence or iterable
            Images in any of the forms of `fit`.

        Returns
        -------
        ndarray of shape (N, D), float32
            NaN for pictures that were skipped.
        """
        self._check_fitted()
        self._ready_extractor()
        return self._apply(X, np.asarray, (self.n_features_in_,), "extract")

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
    def mean_(self) -> NDArray[np.float64]:  # noqa: D102 (described with the class)
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
        return len(self.subspace_.mean)

    @property
    def n_samples_(self) -> int:  # noqa: D102
        return self.subspace_.n_samples

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "subspace_")

    def __getstate__(self) -> dict[str, Any]:
        # A traced network cannot be pickled; it is built again when it is needed.
        return {**super().__getstate__(), "_extractor": None}

    def _check_parameters(self) -> None:
        check_n_components(self.n_components)
        check_choice("score_type", self.score_type, SCORE_TYPES)
        check_choice("on_error", self.on_error, ("raise", "skip"))
        check_integer("batch_size", self.batch_size, 1)

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

    def _set_fitted(self, subspace: Subspace, extractor: Extractor | None) -> None:
        self.subspace_ = subspace
        self.feature_spec_ = None if extractor is None else extractor.spec
        self._extractor = extractor

    def _apply(
        self,
        X: Any,
        function: Callable[[NDArray[Any]], NDArray[np.float32]],
        shape: tuple[int, ...],
        task: str,
    ) -> NDArray[np.float32]:
        """Results (N, *shape) of `function` for the features of all of X, NaN where skipped."""
        source = open_source(X, self.on_error)
        if isinstance(source, FeatureSource):
            self._check_feature_names(X)
            parts = [function(rows) for rows in source.batches(self.n_features_in_)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        places: list[int] = []
        parts = []
        for indices, features in self._extracted(self._ready_extractor(), source, task):
            places.extend(indices)
            parts.append(function(features))
        self._report(source)
        results = np.full((source.count, *shape), np.nan, dtype=np.float32)
        if parts:
            results[places] = np.concatenate(parts)
        return results

    def _extracted(
        self, extractor: Extractor, source: ImageSource, task: str
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        from tqdm import tqdm

        batch_size = check_integer("batch_size", self.batch_size, 1)
        batches = extractor.batches(source, batch_size, resolve_threads(self.n_threads))
        # disable=None: silent where stderr is not a terminal.
        disable = None if self.verbose else True
        with tqdm(total=source.total, desc=task, unit="img", delay=1, disable=disable) as bar:
            for indices, features in batches:
                yield indices, features
                bar.update(source.count - bar.n)

    def _report(self, source: ImageSource) -> None:
        self.skipped_ = source.skipped
        if source.skipped:
            warnings.warn(
                f"{len(source.skipped)} of {source.count} images were skipped; the first: "
                f"{source.skipped[0].reason}",
                stacklevel=4,
            )

    def _check_feature_names(self, X: Any, *, reset: bool = False) -> None:
        # Only data frames have names; the check costs as much as scoring a row.
        if hasattr(X, "columns") or hasattr(self, "feature_names_in_"):
            _check_feature_names(self, X, reset=reset)
