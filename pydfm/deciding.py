"""From scores to decisions: p-values, verdicts, thresholds and drift."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm._checks import check_share
from pydfm.calibration import Assessment, Calibration, Drift, ModelCalibration, uniformity
from pydfm.estimator import Estimator, one_of
from pydfm.labels import by_class
from pydfm.model import Model
from pydfm.threads import resolve_threads


class Deciding(Estimator):
    """The methods of a `DFM` that calibrate its scores."""

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

        p = self._apply(X, one_of(y, labels), p_values, (len(kinds),), "score")
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

        return self._apply(X, one_of(y, labels), margins, (), "score")

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
        assess = self._assessor(alpha, fdr, tail)
        return make_assessment(self._apply(X, one_of(y, labels), assess, (3,), "score"), fdr)

    def _assessor(
        self, alpha: float | None, fdr: float | None, tail: str | None
    ) -> Callable[[NDArray[Any], NDArray[np.intp] | None], NDArray[np.float64]]:
        """Return what gives scores, p-values and margins (3, N) of rows, perhaps of classes."""
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

        return assess

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

        found = self._apply(X, one_of(y, labels), p_values, (n_layers + 2,), "drift")
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


def make_assessment(found: NDArray[np.float64], fdr: float | None) -> Assessment:
    """Judge all scores, p-values and margins (3, N) together."""
    score, p, margin = found
    read = ~np.isnan(p)
    anomalous = margin < 0
    if fdr is not None and read.any():
        from scipy.stats import false_discovery_control

        anomalous[read] = false_discovery_control(p[read]) <= fdr
    verdicts = np.where(read, np.where(anomalous, -1, 1), 0)
    return Assessment(score.astype(np.float32), p, verdicts)


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
