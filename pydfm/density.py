r"""Features in, scores out: the densities of classes, and the scores of rows under them.

Every class has a mean and a subspace with a Gaussian, or a mixture of Gaussians, in it. Under
``covariance="class"`` each class's subspace is its own (Ahuja et al. 2019); under "tied" the
classes share that of the scatter within them (Lee et al. 2018, equations 1 and 2); under "global"
all rows are one class. A row's score is the least over the classes, or that of the class it is
said to have. Beside the scores of `pydfm.subspace` there is

- ``relative_mahalanobis``: the least mahalanobis over the classes, less that under the Gaussian of
  all rows (Ren et al. 2021, equation 3): what tells one class from another counts, what all
  classes share does not. It may be negative.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features import blocks, check_finite
from pydfm.labels import by_class
from pydfm.mixture import Mixture
from pydfm.subspace import GAUSSIAN_SCORES, Subspace

SCORE_TYPES: Final = (*GAUSSIAN_SCORES, "relative_mahalanobis")
COVARIANCES: Final = ("class", "tied", "global")
DENSITIES: Final = ("gaussian", "gmm")


@dataclass(frozen=True)
class Density:
    """Classes of rows with D features, and how far a row is from them.

    Attributes
    ----------
    subspaces : tuple of Subspace
        One to a class; tied ones share their components.
    background : Subspace or None
        Of all rows together; where there are several classes.
    mixtures : tuple of Mixture or None
        One to a class, in the coordinates of its subspace.
    """

    subspaces: tuple[Subspace, ...]
    background: Subspace | None = None
    mixtures: tuple[Mixture, ...] | None = None

    @property
    def n_features(self) -> int:
        """D."""
        return len(self.subspaces[0].mean)

    def check_scores(self, score_types: Sequence[str], classes: Sequence[Any] | None) -> None:
        """Raise ValueError where the classes cannot give one of the `score_types`."""
        for kind in score_types:
            if kind == "relative_mahalanobis" and self.background is None:
                raise ValueError(
                    "score_type is 'relative_mahalanobis', which compares classes with all of "
                    "them together; fit with the labels of at least two classes, and with "
                    "covariance='class' or 'tied'"
                )
            if kind == "fre":
                continue
            for i, subspace in enumerate(self.subspaces):
                if subspace.noise_variance > 0:
                    continue
                if classes is None or len(self.subspaces) == 1:
                    raise ValueError(
                        f"score_type is {kind!r}, which needs variance, but all rows of X are "
                        "equal; only 'fre' can score then"
                    )
                raise ValueError(
                    f"score_type is {kind!r}, which needs variance, but the "
                    f"{subspace.n_samples} row(s) of the class {classes[i]!r} have none; give it "
                    "more, leave it out, use covariance='tied', or score by 'fre'"
                )

    def score(
        self,
        features: NDArray[Any],
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scores (T, N) of `features` (N, D) for T `score_types`, and whose they are (T, N).

        Parameters
        ----------
        classes : ndarray of shape (N,), optional
            The class of each row, in place of the nearest.

        Raises
        ------
        ValueError
            If a row holds NaN or infinity.
        """
        parts = []
        for first, rows in blocks(features):
            own = None if classes is None else classes[first : first + len(rows)]
            scores, nearest = self._score(rows, score_types, n_threads, own)
            if np.isnan(scores).any():
                check_finite(rows, first)
            parts.append((scores, nearest))
        if len(parts) == 1:
            return parts[0]
        each, theirs = zip(*parts, strict=True)
        return np.concatenate(each, axis=1), np.concatenate(theirs, axis=1)

    def _score(
        self,
        rows: Any,
        score_types: Sequence[str],
        n_threads: int,
        classes: NDArray[np.intp] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        kinds = ["mahalanobis" if kind == "relative_mahalanobis" else kind for kind in score_types]
        if classes is not None:
            scores = np.empty((len(kinds), len(rows)), dtype=np.float32)
            for c, places in by_class(classes):
                scores[:, places] = self._class_scores(c, rows[places], kinds, n_threads)
            nearest = np.broadcast_to(classes.astype(np.int32), scores.shape)
        elif len(self.subspaces) == 1:
            scores = self._class_scores(0, rows, kinds, n_threads)
            nearest = np.zeros(scores.shape, dtype=np.int32)
        elif self.mixtures is None:
            scores, nearest = _core.score_nearest(
                rows, self._classes(n_threads), score_types=kinds, n_threads=n_threads
            )
        else:
            scores = np.full((len(kinds), len(rows)), np.inf, dtype=np.float32)
            nearest = np.zeros(scores.shape, dtype=np.int32)
            for c in range(len(self.subspaces)):
                theirs = self._class_scores(c, rows, kinds, n_threads)
                nearest[theirs < scores] = c
                scores = np.minimum(scores, theirs)
        if "relative_mahalanobis" in score_types:
            assert self.background is not None
            shared = self.background.score(rows, ["mahalanobis"], n_threads)[0]
            for i, kind in enumerate(score_types):
                if kind == "relative_mahalanobis":
                    scores[i] -= shared
        return scores, nearest

    def _classes(self, n_threads: int) -> _core.Classes:
        """Return what the core makes of the classes, once."""
        if "_prepared" not in vars(self):
            scorers = [subspace._scorer for subspace in self.subspaces]
            prepared = _core.Classes(scorers, n_threads=n_threads)
            object.__setattr__(self, "_prepared", prepared)
        prepared_classes: _core.Classes = vars(self)["_prepared"]
        return prepared_classes

    def __getstate__(self) -> dict[str, Any]:
        # As a subspace's scorer, it is for this processor.
        return {name: value for name, value in vars(self).items() if name != "_prepared"}

    def _class_scores(
        self, c: int, rows: Any, kinds: Sequence[str], n_threads: int
    ) -> NDArray[np.float32]:
        """Scores (T, N) under the class `c`."""
        subspace = self.subspaces[c]
        if self.mixtures is None:
            return _core.score(rows, subspace._scorer, score_types=kinds, n_threads=n_threads)
        scores = _core.score(
            rows, subspace._scorer, score_types=GAUSSIAN_SCORES, n_threads=n_threads
        )
        of = dict(zip(GAUSSIAN_SCORES, scores.astype(np.float64), strict=True))
        # What probabilistic PCA adds for the noise outside of the subspace is left as it is.
        noise = of["ppca"] - of["nll"]
        of["mahalanobis"], of["nll"] = self.mixtures[c].score(subspace, rows, n_threads)
        of["ppca"] = of["nll"] + noise
        most = float(np.finfo(np.float32).max)
        return np.stack([of[kind] for kind in kinds]).clip(-most, most).astype(np.float32)


def possible_scores(check: Callable[[list[str]], None]) -> list[str]:
    """Return the score types that `check` lets pass, which raises ValueError at others."""
    kinds = []
    for kind in SCORE_TYPES:
        with contextlib.suppress(ValueError):
            check([kind])
            kinds.append(kind)
    return kinds
