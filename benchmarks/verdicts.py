"""What a verdict costs beside a score: `predict`, `p_value` and `assess`, by number of classes."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import pydfm
from benchmarks.report import Table, seconds, verdict

_MOST: Final = 1.3  # times the score
_N_CLASSES: Final = (1, 300, 1000)
_PER_CLASS: Final = 30
_N_FEATURES: Final = 128
_WARM_UP: Final = 0.2


def table(quick: bool) -> Table:
    """Return times of scores and verdicts, and their ratios."""
    rows = []
    n_rows, rounds = (1000, 3) if quick else (5000, 9)
    for n_classes in _N_CLASSES[: 2 if quick else 3]:
        for score_type in ("fre", "mahalanobis"):
            rows += _measured(n_classes, score_type, n_rows, rounds)
    return Table(("classes", "score", "call", "median", "ratio to score", "target"), rows)


def _measured(n_classes: int, score_type: str, n_rows: int, rounds: int) -> list[list[str]]:
    X, labels, queries = _population(n_classes, n_rows)
    dfm = pydfm.DFM(n_components=8, score_type=score_type)
    dfm.fit(X, labels=None if n_classes == 1 else labels)
    calls: dict[str, Callable[[Any], Any]] = {
        "score": dfm.score,
        "predict": dfm.predict,
        "p_value": dfm.p_value,
        "assess": dfm.assess,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            while time.perf_counter() - begin < _WARM_UP:
                call(queries)
            start = time.perf_counter()
            call(queries)
            times[name].append(time.perf_counter() - start)
    base = median(times["score"])
    lines = []
    for name, taken in times.items():
        ratio = median(taken) / base
        first = name == "score"
        lines.append(
            [
                str(n_classes) if first else "",
                score_type if first else "",
                name,
                seconds(median(taken)),
                f"{ratio:.2f}",
                "" if first else verdict(ratio <= _MOST, f"<= {_MOST:g}"),
            ]
        )
    return lines


def _population(
    n_classes: int, n_rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Return rows of normal classes, their labels, and other rows of the same classes."""
    rng = np.random.default_rng(0)
    per_class = 1000 if n_classes == 1 else _PER_CLASS
    centres = 3 * rng.normal(size=(n_classes, _N_FEATURES))
    scale = np.arange(1, _N_FEATURES + 1) ** -0.5

    def rows(labels: NDArray[np.int64]) -> NDArray[np.float32]:
        noise = rng.normal(size=(len(labels), _N_FEATURES)) * scale
        return (centres[labels] + noise).astype(np.float32)

    labels = np.repeat(np.arange(n_classes), per_class)
    return rows(labels), labels, rows(rng.integers(0, n_classes, n_rows))
