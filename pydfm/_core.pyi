"""The compiled core: free functions over C-contiguous arrays that release the GIL.

Rows are float32 or float64 and are not converted; everything else is float64. Wrong shapes raise
ValueError, an eigenvalue iteration that does not converge numpy.linalg.LinAlgError. Called on the
main thread, they let signal handlers run, and stop where one raises, as that of Ctrl-C does.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Rows: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
_Float64: TypeAlias = NDArray[np.float64]
_Moments: TypeAlias = tuple[int, _Float64, _Float64]

instruction_set: str
eigen_version: str
compiler: str

def supported_instruction_sets() -> list[str]: ...
def moments(rows: _Rows, *, n_threads: int) -> _Moments:
    """Count, mean (D,) and scatter (D, D) of rows (N, D)."""

def subtract_moments(a: _Moments, b: _Moments) -> _Moments:
    """Moments of the rows of `a` without those of `b`, which must be among them."""

def merge_moments(a: _Moments, b: _Moments) -> _Moments:
    """Moments of the union of two disjoint sets of rows."""

def gram(rows: _Rows, *, n_threads: int) -> tuple[_Float64, _Float64]:
    """Mean (D,) and inner products (N, N) of the centred rows."""

def eigh(
    a: _Float64, *, count: int = ..., share: float = 1.0, n_threads: int
) -> tuple[_Float64, _Float64]:
    """All eigenvalues, descending, and the vectors of the leading ones, one to a row.

    Vectors are computed for at most `count` eigenvalues, and for no more than it takes to exceed
    `share` of the sum of the positive ones (or one more, where the sum meets it but for rounding).
    """

def components_from_gram(
    rows: _Rows, mean: _Float64, values: _Float64, vectors: _Float64, *, n_threads: int
) -> _Float64:
    """Principal components (k, D) from eigenpairs of the centred rows' Gram matrix."""

class Scorer:
    """A class made ready to score rows; it keeps the arrays it was made of."""

    def __init__(
        self,
        mean: _Float64,
        components: _Float64,
        variances: _Float64,
        *,
        noise_variance: float,
    ) -> None: ...

def coordinates(rows: _Rows, mean: _Float64, components: _Float64, *, n_threads: int) -> _Float64:
    """Coordinates (N, k) of rows less the mean along components (k, D), in float64."""

def product(a: _Float64, b: _Float64, *, transposed: bool = False, n_threads: int) -> _Float64:
    """Product a @ b, or a @ b.T, in no more than `n_threads` threads."""

def residuals(rows: _Rows, mean: _Float64, components: _Float64, *, n_threads: int) -> _Float64:
    """Residuals (N, D) of rows less the mean under components (k, D), in float64.

    The bits of a row's residuals depend on no other row.
    """

def leave_one_out(
    coordinates: _Float64,
    eigenvalues: _Float64,
    rho: _Float64,
    *,
    n_components: int,
    degrees_of_freedom: float,
    n_variances: int,
    n_features: int,
    resolution: float,
    score_types: list[str],
    n_threads: int,
) -> _Float64:
    """Scores (len(score_types), N) of rows, each under the model that is fitted without it.

    The rows are given by their coordinates (N, r) in the eigenvectors of a scatter with these
    eigenvalues (r,), descending and above the resolution; rho (N,) is n / (n - 1) for n rows in a
    row's class.
    """

def leave_one_out_residuals(
    coordinates: _Float64,
    eigenvalues: _Float64,
    rho: _Float64,
    *,
    n_components: int,
    resolution: float,
    n_threads: int,
) -> _Float64:
    """Residuals (N, r) of rows under the models without them, in the same coordinates."""

def leave_groups_out(
    coordinates: _Float64,
    eigenvalues: _Float64,
    starts: NDArray[np.int64],
    class_sizes: _Float64,
    *,
    n_components: int,
    degrees_of_freedom: _Float64,
    n_variances: NDArray[np.int64],
    n_features: int,
    resolution: float,
    shrinkage: bool = False,
    floor: float = 0.0,
    scored: _Float64 | None = None,
    scored_starts: NDArray[np.int64] | None = None,
    score_types: list[str],
    n_threads: int,
) -> _Float64:
    """Scores (len(score_types), N) of rows, each under the model fitted without the row's group.

    The rows (N, r) are those of `leave_one_out`, group by group: starts (G + 1,) is where each
    begins, and N. For each group (G,): the rows of its class; the divisor of the scatter without
    it, rows left less classes left; and what the noise variance is a mean of, min(D, that plus
    one). Variances are regularised by oracle approximating shrinkage, or by a floor, a share of
    the largest.

    Rows `scored` (N, r), given as coordinates of x less the mean of their class without the group,
    are scored in the place of the groups' own; starts are one per group, too.
    """

def leave_groups_out_residuals(
    coordinates: _Float64,
    eigenvalues: _Float64,
    starts: NDArray[np.int64],
    class_sizes: _Float64,
    *,
    n_components: int,
    degrees_of_freedom: _Float64,
    resolution: float,
    scored: _Float64 | None = None,
    scored_starts: NDArray[np.int64] | None = None,
    n_threads: int,
) -> _Float64:
    """Residuals (N, r) of the same rows under the same models, in the same coordinates."""

def leave_groups_out_rests(
    coordinates: _Float64,
    eigenvalues: _Float64,
    starts: NDArray[np.int64],
    class_sizes: _Float64,
    *,
    n_components: int,
    degrees_of_freedom: _Float64,
    resolution: float,
    n_threads: int,
) -> _Float64:
    """Return sums (G,) of the eigenvalues of the same models beyond those of their components."""

def score(
    rows: _Rows, scorer: Scorer, *, score_types: Sequence[str], n_threads: int
) -> NDArray[np.float32]:
    """Scores (len(score_types), N); NaN where a row is not finite."""

class Classes:
    """Classes made ready for `score_nearest`, of one number of features; it keeps the scorers."""

    def __init__(self, scorers: Sequence[Scorer], *, n_threads: int) -> None: ...

class HeldOutScores:
    """Held-out scores of C classes, of one type, that rows are judged by; keeps the arrays.

    `scores` (n,) float32 are class after class, ascending, from `starts` (C + 1,) on; `weights`
    (n + C,) has for each class the weight of all scores from each on, and 0; `n_units` (C,) is 0,
    and `thresholds` (C,) NaN, where a class has no scores.
    """

    def __init__(
        self,
        scores: NDArray[np.float32],
        weights: _Float64,
        starts: NDArray[np.int64],
        n_units: _Float64,
        thresholds: _Float64,
    ) -> None: ...

def judge(
    rows: _Rows, classes: Classes, held_out: HeldOutScores, *, score_type: str, n_threads: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], _Float64, _Float64]:
    """Lowest scores (1, N) and their classes (1, N), largest p-values (N,) and margins (N,).

    A p-value is (1 + weight of the held-out scores that are at least as high) / (n_units + 1), a
    margin threshold less score. NaN where a row is not finite or no class has held-out scores.
    """

def score_nearest(
    rows: _Rows, scorers: Classes | Sequence[Scorer], *, score_types: Sequence[str], n_threads: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Lowest scores over the classes (len(score_types), N), and whose they are; -1 for NaN.

    `Classes` pass over those that cannot be a row's nearest, with the same result to the bit; a
    sequence of scorers is gone through whole.
    """
