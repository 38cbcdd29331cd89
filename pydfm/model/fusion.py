r"""Fusion: scores of several layers made one.

With s_l the score of layer l, m_l and d_l the mean and standard deviation of the held-out scores of
normal rows, and t_l = (s_l - m_l) / d_l:

- "sum": sum over l of t_l;
- "max": the largest t_l;
- "logistic": b + sum over l of w_l t_l, the log-odds of an outlier by a logistic regression between
  those normal rows and known outliers (Ahuja et al. 2019, section 3; Lee et al. 2018).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Combination:
    """How scores of one type are combined.

    Attributes
    ----------
    rule : {"sum", "max", "logistic"}
    mean, scale : ndarray of shape (L,), float64
        Of the held-out scores of normal rows; scale is positive.
    weights : ndarray of shape (L,), float64
        Ones for all rules but "logistic".
    offset : float
    """

    rule: str
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    offset: float = 0.0

    @classmethod
    def fit(
        cls,
        rule: str,
        normal: NDArray[np.float64],
        outliers: NDArray[np.float64] | None = None,
    ) -> "Combination":
        """Fit the rule to held-out scores of `normal` rows (L, n), and of `outliers` (L, m)."""
        mean, scale = normal.mean(axis=1), normal.std(axis=1)
        scale = np.where(scale > 0, scale, 1.0)
        plain = cls(rule, mean, scale, np.ones(len(normal)))
        if rule != "logistic":
            return plain
        from sklearn.linear_model import LogisticRegression

        assert outliers is not None
        t = np.concatenate([plain._standardised(normal), plain._standardised(outliers)], axis=1)
        is_outlier = np.repeat([False, True], [normal.shape[1], outliers.shape[1]])
        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(t.T, is_outlier)
        return cls(rule, mean, scale, model.coef_[0], float(model.intercept_[0]))

    def combine(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return combined scores (...) from those of the layers (L, ...)."""
        t = self._standardised(scores)
        if self.rule == "max":
            return np.asarray(t.max(axis=0))
        return np.asarray(np.tensordot(self.weights, t, axes=1) + self.offset)

    def combine_held_out(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return combined scores (n,) of the normal rows (L, n) that the rule was fitted to.

        Each row is standardised by the others; the weights are those of all rows.
        """
        n = scores.shape[1]
        away = scores - scores.mean(axis=1, keepdims=True)
        total = np.square(away).sum(axis=1, keepdims=True)
        variance = (total - n / max(n - 1, 1) * away**2) / max(n - 1, 1)
        scale = np.sqrt(np.maximum(variance, 0))
        t = n / max(n - 1, 1) * away / np.where(scale > 0, scale, 1.0)
        ones = np.ones(len(scores))
        return replace(self, mean=np.zeros(len(scores)), scale=ones).combine(t)

    def _standardised(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        shape = (len(self.mean),) + (1,) * (scores.ndim - 1)
        return np.asarray((scores - self.mean.reshape(shape)) / self.scale.reshape(shape))
