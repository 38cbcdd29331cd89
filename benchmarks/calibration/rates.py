"""P-values of fresh normal rows: how many are at most what level."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.calibration.populations import Draw
from benchmarks.report import verdict
from pydfm import DFM
from pydfm.calibration import Calibration
from pydfm.fitting import ModelFitter
from pydfm.layer_fitter import LayerSettings
from pydfm.maps import Grid
from pydfm.model import Model

METHODS = ("loo", "kfold", "split", "in sample")
LEVELS = (0.01, 0.05, 0.1)
HEADER = ("population", "N", "D", *METHODS, "target for loo")


def of_features(method: str, draw: Draw, *, known: bool = False, **parameters: Any) -> Any:
    """P-values of the fresh rows of a draw by `DFM`; under their classes where these are `known`.

    "in sample" puts the scores of the very rows that were fitted in the place of left-out ones.
    """
    calibration = None if method == "in sample" else method
    dfm = DFM(calibration=calibration, **parameters).fit(draw.rows, draw.labels)
    if calibration is not None:
        return dfm.p_value(draw.fresh, draw.fresh_labels if known else None)
    codes = np.zeros(len(draw.rows), dtype=np.intp)
    if draw.labels is not None:
        codes = np.searchsorted(dfm.classes_, draw.labels)
    kind = dfm.score_type
    own = dfm.score(draw.rows, draw.labels)
    naive = Calibration.of(own, codes, dfm.model_.classes)
    under = dfm.model_.class_scores(draw.fresh, kind, 1)
    p = np.stack([naive.p_values(scores, c) for c, scores in enumerate(under)])
    if known:
        return p[np.searchsorted(dfm.classes_, draw.fresh_labels), np.arange(len(draw.fresh))]
    return p.max(axis=0)


def of_layers(method: str, draw: Draw, layers: Sequence[tuple[str, Grid]], image_score: str) -> Any:
    """As `of_features`, of the features of several layers, through the network once for all."""
    fitter, model = fit_layers(method, draw.rows, layers, image_score)
    if method == "in sample":
        own = model.score(draw.rows, ["fre"], 1)[0]
        calibration = Calibration.of(own, np.zeros(len(own), dtype=np.intp))
    else:
        calibration = fitter.calibration(model, (64, 64)).of("fre", None)
    return calibration.p_values(model.score(draw.fresh, ["fre"], 1)[0])


def fit_layers(
    method: str, rows: Any, layers: Sequence[tuple[str, Grid]], image_score: str
) -> tuple[ModelFitter, Model]:
    """Fit a model of several layers to `rows` of features."""
    settings = LayerSettings(
        n_components=0.97,
        covariance="class",
        density="gaussian",
        regularization=None,
        spatial="flatten",
        image_score=image_score,
        top_share=0.1,
        random_state=0,
        calibration="kfold" if method == "kfold" else "loo",
        map_type="fre",
    )
    fitter = ModelFitter(layers, rows.shape[1], settings, "sum", 1, split=method == "split")
    fitter.add(rows)
    return fitter, fitter.fit()


def left_out_wholly(rows: Any, layers: Sequence[tuple[str, Grid]], image_score: str) -> Any:
    """Scores (2, N) of rows left out as `pydfm` does, and by fits that have never seen them.

    The second way takes every mean and deviation anew from rows left out among the others.
    """
    fitter, model = fit_layers("loo", rows, layers, image_score)
    ours = fitter.calibration(model, (64, 64)).scores["fre"][0]
    wholly = []
    for i in range(len(rows)):
        _, others = fit_layers("loo", np.delete(rows, i, 0), layers, image_score)
        wholly.append(others.score(rows[i : i + 1], ["fre"], 1)[0, 0])
    return np.stack([ours, wholly])


def measure(draws: Iterable[Draw], p_values: Any, methods: Sequence[str] = METHODS) -> Any:
    """P-values (M,) by method, of all draws together."""
    found: dict[str, list[Any]] = {method: [] for method in methods}
    for draw in draws:
        for method in methods:
            found[method].append(p_values(method, draw))
    return {method: np.concatenate(parts) for method, parts in found.items()}


def row(
    name: str, n: int, d: int, found: Any, n_class: int | None = None, *, bound: bool = False
) -> list[str]:
    """A row of the table; levels below the smallest p-value there can be have no rate.

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
    """Share of p-values that are at most `level`."""
    return float(np.mean(p <= level * (1 + 1e-9)))
