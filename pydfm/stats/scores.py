r"""The registry of scores: what each is made of, and what it promises.

For a row x of a class with mean mu, components W (k, D) and variances lambda, d = x - mu and
z = W d. The core computes two energies of the row, the residual ||d||^2 - ||z||^2 and the
mahalanobis sum z_i^2 / lambda_i, and makes four scores of them (`CORE_SCORES`), each within
`CORE_ERROR` of its float64 value. A score of the registry is a function of these four. So a new
score is one more entry here: scores over classes, held-out scores, thresholds, the command line
and the model file read the registry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CORE_SCORES: Final = ("fre", "mahalanobis", "nll", "ppca")
"""The scores that the compiled core computes, in its order."""

CORE_ERROR: Final = 1e-4
"""Relative error of a core score in float32 on rows whose rounding errors are independent.

Rows that are constant but for one feature exceed it (docs/method.md, "Accuracy").
"""


def _same(value: NDArray[Any]) -> NDArray[Any]:
    return value


@dataclass(frozen=True)
class Score:
    """A score type.

    Attributes
    ----------
    name : str
    formula : str
        For documentation and help texts.
    inputs : tuple of str
        The core scores that it is computed from.
    value : callable
        Computes the score from arrays of its inputs (of the same shape, float32 or float64), and,
        with `background`, from the same inputs under the model of all classes together.
    background : bool
        Whether it compares a class with the model of all classes together, which then must be
        there: at least two classes.
    needs_variance : bool
        Whether it divides by variances, which rows that are all equal do not have.
    increasing : bool
        Whether it grows with its only input, so that the nearest class is that of the input.
    has_maps : bool
        Whether a whole image has a map of it: only the residual, a sum over the features, does.
    signed : bool
        Whether it may be negative, so that a mean says nothing of its scale.
    constants : bool
        Whether logarithms of fitted variances, which few rows leave uncertain, are part of it.
    """

    name: str
    formula: str
    inputs: tuple[str, ...]
    value: Callable[..., NDArray[Any]] = _same
    background: bool = False
    needs_variance: bool = True
    increasing: bool = True
    has_maps: bool = False
    signed: bool = False
    constants: bool = False

    def __post_init__(self) -> None:
        if self.has_maps and (self.inputs != ("fre",) or self.value is not _same):
            raise ValueError(
                f"has_maps is True for the score {self.name!r}; only the residual itself has a map "
                "of whole images, so leave it out"
            )

    def error_bound(self, *inputs: NDArray[Any]) -> NDArray[np.float64]:
        """Return a bound (N,) of the error of scores with these inputs, to first order.

        By differences: each input is moved by `CORE_ERROR`, and the changes are added up. Where a
        class is compared with the background, mahalanobis is computed in float64, so that
        `CORE_ERROR` is that of the difference.
        """
        values = [np.asarray(given, dtype=np.float64) for given in inputs]
        at = np.asarray(self.value(*values))
        total = np.zeros(at.shape)
        for i, given in enumerate(values):
            if self.background and self.inputs[i % len(self.inputs)] == "mahalanobis":
                continue
            moved = [*values[:i], given + CORE_ERROR * np.abs(given), *values[i + 1 :]]
            total += np.abs(np.asarray(self.value(*moved)) - at)
        if self.background:
            total += CORE_ERROR * np.abs(at)
        return total


SCORES: Final[dict[str, Score]] = {
    score.name: score
    for score in (
        Score(
            "fre",
            "the feature reconstruction error ||d||^2 - ||z||^2",
            ("fre",),
            needs_variance=False,
            has_maps=True,
        ),
        Score("mahalanobis", "sum z_i^2 / lambda_i", ("mahalanobis",)),
        Score(
            "nll",
            "the negative log-likelihood (mahalanobis + sum ln lambda_i + k ln 2 pi) / 2, in nats",
            ("nll",),
            signed=True,
            constants=True,
        ),
        Score(
            "ppca",
            "the negative log-likelihood under probabilistic PCA, in nats, which weighs both",
            ("ppca",),
            signed=True,
            constants=True,
        ),
        Score(
            "relative_mahalanobis",
            "mahalanobis less that under the Gaussian of all classes together",
            ("mahalanobis",),
            np.subtract,
            background=True,
            signed=True,
        ),
    )
}
"""By name. A new score type is one more entry."""

SCORE_TYPES: Final = tuple(SCORES)


def check_score_types(score_type: Any, name: str = "score_type") -> list[str]:
    """Return the types that `score_type`, one or a sequence, names.

    Raises
    ------
    ValueError
        If one of them is not in the registry, or there is none.
    """
    several = isinstance(score_type, list | tuple) and len(score_type) > 0
    kinds = list(score_type) if several else [score_type]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in SCORES:
            listed = ", ".join(repr(choice) for choice in SCORES)
            raise ValueError(f"{name} is {kind!r}; it must be one of {listed}")
    return kinds
