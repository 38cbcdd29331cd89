"""P-values of new normal rows, and the share of them at or below each level."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.calibration.populations import Draw
from benchmarks.report import verdict
from pydfm import DFM
from pydfm.conformal.calibration import Calibration
from pydfm.features.extractor import FeatureSpec
from pydfm.features.grid import Grid
from pydfm.features.transforms import Preprocessing
from pydfm.model.settings import resolve_settings
from pydfm.model.training import TrainingState

METHODS = ("loo", "kfold", "split", "in sample")
LEVELS = (0.01, 0.05, 0.1)
HEADER = ("population", "N", "D", *METHODS, "target for loo")


def of_features(method: str, draw: Draw, *, known: bool = False, **parameters: Any) -> Any:
    """Return p-values of the new rows of a draw; under their own classes if these are `known`.

    "in sample" uses the scores of the fitted rows themselves in place of held-out scores.
    """
    calibration = None if method == "in sample" else method
    dfm = DFM(calibration=calibration, **parameters).fit(draw.rows, labels=draw.labels)
    if calibration is not None:
        return dfm.p_value(draw.fresh, labels=draw.fresh_labels if known else None)
    codes = np.zeros(len(draw.rows), dtype=np.intp)
    if draw.labels is not None:
        codes = np.searchsorted(dfm.classes_, draw.labels)
    kind = dfm.score_type
    own = dfm.score(draw.rows, labels=draw.labels)
    naive = Calibration.of(own, codes, dfm.model_.classes)
    under = dfm.fitted_.score(draw.fresh, n_threads=1).class_scores(kind)
    p = np.stack([naive.p_values(scores[None], c) for c, scores in enumerate(under)])
    if known:
        return p[np.searchsorted(dfm.classes_, draw.fresh_labels), np.arange(len(draw.fresh))]
    return p.max(axis=0)


def of_layers(method: str, draw: Draw, layers: Sequence[tuple[str, Grid]], image_score: str) -> Any:
    """Return what `of_features` does, for several layers from one run of the network."""
    calibration = "loo" if method == "in sample" else method
    dfm = fit_layers(draw.rows, layers, image_score=image_score, calibration=calibration)
    if method != "in sample":
        return dfm.p_value(draw.fresh)
    own = dfm.score(draw.rows)
    naive = Calibration.of(own, np.zeros(len(own), dtype=np.intp))
    return naive.p_values(dfm.score(draw.fresh)[None])


def fit_layers(rows: Any, layers: Sequence[tuple[str, Grid]], **parameters: Any) -> DFM:
    """Fit a model of several layers to `rows` of features."""
    names, grids = zip(*layers, strict=True)
    spec = FeatureSpec(
        backbone="given",
        weights=None,
        layers=names,
        grids=grids,
        spatial=parameters.get("spatial", "flatten"),
        pool=None,
        precision="float32",
        random_state=0,
        preprocessing=Preprocessing(resize=(64, 64), crop=None),
        sha256="",
    )
    dfm = DFM(**parameters)
    settings = resolve_settings(dfm.get_params(), grids)
    training = TrainingState.begin(spec, rows.shape[1], settings).add(rows, n_threads=2)
    return dfm.with_state(training)


def left_out_wholly(rows: Any, layers: Sequence[tuple[str, Grid]], image_score: str) -> Any:
    """Held-out scores (2, N) as `pydfm` computes them, and by fits that have never seen the row.

    The second way also takes every mean and deviation from rows that were held out of the others.
    """
    ours = fit_layers(rows, layers, image_score=image_score).held_out_scores_
    wholly = []
    for i in range(len(rows)):
        others = fit_layers(np.delete(rows, i, 0), layers, image_score=image_score)
        wholly.append(others.score(rows[i : i + 1])[0])
    return np.stack([ours, wholly])


def measure(draws: Iterable[Draw], p_values: Any, methods: Sequence[str] = METHODS) -> Any:
    """Return the p-values (M,) of all draws together, by method."""
    found: dict[str, list[Any]] = {method: [] for method in methods}
    for draw in draws:
        for method in methods:
            found[method].append(p_values(method, draw))
    return {method: np.concatenate(parts) for method, parts in found.items()}


def row(
    name: str, n: int, d: int, found: Any, n_class: int | None = None, *, bound: bool = False
) -> list[str]:
    """Return a row of the table; levels below the smallest possible p-value have no rate.

    `n_class` is the number of rows of the smallest class, where there are any; `bound` says that
    the levels are upper bounds only, so that there is no target.
    """
    cells, n_own = [name, f"{n:,}", f"{d:,}"], n_class or n
    for method in METHODS:
        count = n_own // 5 if method == "split" else n_own
        rates = [
            f"{100 * rate(found[method], level):.1f}" if level * (count + 1) >= 1 else "-"
            for level in LEVELS
        ]
        cells.append(" / ".join(rates))
    asked = [level for level in LEVELS if n_own * level >= 3]
    low = 0.0 if bound else 0.5
    met = all(low <= rate(found["loo"], level) / level <= 1.5 for level in asked)
    target = ", ".join(f"{100 * level:g} %" for level in asked)
    return [*cells, verdict(met, f"{low:g} to 1.5 times {target}") if asked else ""]


def rate(p: Any, level: float) -> float:
    """Return the share of p-values that are at most `level`."""
    return float(np.mean(p <= level * (1 + 1e-9)))
