"""Rows added to a model, models merged, rows taken away again."""

import copy
from typing import TYPE_CHECKING, Any

from sklearn.base import clone

from pydfm.deciding import Deciding
from pydfm.estimator import one_of, open_labelled
from pydfm.images import ImageSource
from pydfm.labels import as_labels

if TYPE_CHECKING:
    from typing_extensions import Self

# Parameters that a model's rows do not depend on, and those that `feature_spec_` tells.
_WITHOUT_EFFECT = frozenset(
    {"alpha", "batch_size", "device", "n_threads", "on_error", "score_type", "verbose"}
)
_OF_FEATURES = frozenset(
    {"backbone", "weights", "layers", "image_size", "mean", "std", "precision"}
)


class Growing(Deciding):
    """The methods of a `DFM` that change the rows it is fitted on."""

    def partial_fit(self, X: Any, y: Any = None, *, labels: Any = None) -> "Self":
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
        source, row_labels = open_labelled(X, self.on_error, one_of(y, labels))
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

    def merge(self, *others: "Self") -> "Self":
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
        merged: Self = clone(self)
        fitter = self._growing_fitter().copy()
        for other in others:
            if not isinstance(other, Growing):
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

    def __add__(self, other: "Self") -> "Self":
        """Return ``self.merge(other)``."""
        return self.merge(other)

    def forget(
        self, X: Any = None, y: Any = None, *, labels: Any = None, classes: Any = None
    ) -> "Self":
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
            This estimator; as it was before, if there is an error or an interruption.

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
            source, row_labels = open_labelled(X, self.on_error, one_of(y, labels))
            extractor = self._ready_extractor() if isinstance(source, ImageSource) else None
            for places, features in self._batches(source, extractor, "forget", self.n_features_in_):
                theirs = None if row_labels is None else row_labels.take(places)
                fitter.forget(features, None if self.covariance == "global" else theirs)
            if row_labels is not None:
                row_labels.check_count(source.count)
        self._model = None
        self._fitter = fitter
        return self

    @property
    def memory_(self) -> int:  # noqa: D102
        self._check_fitted()
        return 0 if self._fitter is None else self._fitter.n_bytes

    def _emptied(self) -> "Self":
        """Return an estimator with the same network, to which rows can be added."""
        other = copy.copy(self)
        other._model, other._fitter = None, self._growing_fitter().emptied()
        return other

    def _check_same(self, other: "Self") -> None:
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
