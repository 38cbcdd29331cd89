"""The DFM estimator: images or features in, anomaly scores out."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm._checks import check_number
from pydfm.estimator import one_of, open_labelled, warn_of_skipped
from pydfm.extraction import Extractor
from pydfm.growing import Growing
from pydfm.images import ImageSource, open_source
from pydfm.subspace import Subspace
from pydfm.threads import resolve_threads


class DFM(Growing):
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
        ``subspace_.variance_error`` bounds what any variance is too low by. With density="gmm" half
        of it is for rows, which mixtures are fitted on: where not all fit, a uniform sample, with a
        warning; ``model_.layers[i].density.mixtures`` tell their ``n_samples``.
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
        about min(N, D) x D numbers, and a sample of at most 5,000 rows. 0 for a loaded model.
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
            This estimator; as it was before, if there is an error or an interruption.

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
        source, row_labels = open_labelled(X, self.on_error, one_of(y, labels))
        extractor = self._build_extractor() if isinstance(source, ImageSource) else None
        n_layers = 1 if extractor is None else len(extractor.spec.layers)
        _check_combine(self.combine, outliers, n_layers)
        if checkpoint is not None and extractor is None:
            raise ValueError("checkpoint is for images, and X holds features; pass checkpoint=None")
        fitter = self._added(None, source, row_labels, extractor, checkpoint=checkpoint)
        known = None
        if outliers is not None:
            known = self._outlier_features(fitter.n_features, extractor, outliers)
        model = fitter.fit(known)
        model.check_scores(self._score_types(self.score_type))
        fitter.own()
        self._check_feature_names(X, reset=True)
        self._set_fitted(model, self._left_out_by(), extractor)
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
            one_of(y, labels),
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
            one_of(y, labels),
            lambda rows, classes: model.layer_scores(rows, kinds, n_threads, classes),
            (len(model.layers), len(kinds)),
            "score",
        )
        return {
            layer.name: theirs[0] if isinstance(chosen, str) else theirs
            for layer, theirs in zip(model.layers, scores, strict=True)
        }

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

    def _extracted_batches(self, X: Any) -> Iterator[tuple[Any, NDArray[np.float32]]]:
        """Yield places in X, images, and the features there; one batch at a time is in memory."""
        source = open_source(X, self.on_error)
        assert isinstance(source, ImageSource)
        yield from self._batches(source, self._ready_extractor(), "score", self.n_features_in_)
        self._report(source)

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
    def n_samples_(self) -> int:  # noqa: D102
        self._check_fitted()
        return self.model_.n_samples if self._fitter is None else self._fitter.n_samples

    def _outlier_features(
        self, n_features: int, extractor: Extractor | None, outliers: Any
    ) -> NDArray[Any]:
        """Return the features (m, D) of known outliers."""
        source = open_source(outliers, self.on_error)
        parts = [rows for _, rows in self._batches(source, extractor, "outliers", n_features)]
        if isinstance(source, ImageSource) and source.skipped:
            if not parts:
                raise ValueError(
                    f"outliers holds no picture that can be read; {source.skipped[0].reason}"
                )
            warn_of_skipped(source, "outliers")
        return np.concatenate(parts)


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
