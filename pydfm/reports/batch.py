"""The page of a batch: the answer first, then each image, worst first."""

import hashlib
import json
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import Calibration, calibration_of, map_range
from pydfm.conformal.decisions import Assessment
from pydfm.conformal.drift import Drift, DriftTest
from pydfm.features.inputs.images import list_images
from pydfm.features.pictures.pages import with_pages
from pydfm.features.views import Views
from pydfm.parameters import DEFAULTS
from pydfm.reports.cards import Card, CardMaker, fit_on_page
from pydfm.reports.drawing.charts import TwoHistograms, shortest_between, thinned
from pydfm.reports.drawing.scale import ColourScale
from pydfm.reports.page import PICTURE_SIDE, check_page, link_to, number, share, shown, write_page
from pydfm.runtime.threads import resolve_threads

if TYPE_CHECKING:
    from pydfm.estimator import DFM

_FEW = 10
_MOST_LEVELS = 300


@dataclass(frozen=True)
class BatchResult:
    """All that a page says of a batch, from one pass over the images.

    Attributes
    ----------
    cards : list of Card
        Of the images that could be read, worst first.
    assessment : Assessment
        Of all images, in their order.
    drift : Drift
    unreadable : list of (str, str)
        Names and reasons.
    no_maps : str
        Why there are no overlays, or "".
    features : ndarray of shape (N, D) or None
        Where they were to be kept; NaN for images that could not be read.
    """

    cards: list[Card]
    assessment: Assessment
    drift: Drift | None
    unreadable: list[tuple[str, str]]
    no_maps: str
    features: NDArray[np.float32] | None = None


def report(
    dfm: "DFM",
    X: Any,
    path: "str | os.PathLike[str]",
    *,
    alpha: float | None = None,
    link: bool = False,
    title: str | None = None,
    names: Sequence[str] | None = None,
    model: str | None = None,
) -> BatchResult:
    """Write a page about a batch of images: one file, without server or network connection.

    It says how many images are anomalous, and whether the batch has drifted; below, each image has
    its picture with overlay and regions, worst first. The threshold can be moved in the page.

    Parameters
    ----------
    dfm : DFM
        Fitted to images, with calibration.
    X : array, tensor, path, sequence or iterable
        Images in any of the forms of `DFM.fit`.
    path : path
        The HTML file to write.
    alpha : float in (0, 1), optional
        The false-alarm rate that the page starts with, in place of the parameter.
    link : bool
        Whether pictures lead to the full files, where they are now.
    title : str, optional
        Heading of the page; default: the name of the folder.
    names : sequence of N str, optional
        Names of the images, where they are not files; default: their numbers.
    model : str, optional
        Path of the model file, for the command that the page shows.

    Returns
    -------
    BatchResult
        What the page says.

    Raises
    ------
    ImportError
        If Jinja2 is not installed.
    OSError
        If the page cannot be written.
    ValueError
        If the model was fitted on features or without calibration, or no image can be read.
    """
    check_page(path)
    if dfm.feature_spec_ is None:
        raise ValueError("the model was fitted on features; a report shows images: fit it on them")
    folder = None
    if isinstance(X, str | os.PathLike):
        folder = os.fspath(X)
        X = with_pages(list_images(folder))
    result = examine(dfm, X, alpha=alpha, root=folder, names=names)
    if link:
        if not (isinstance(X, list) and all(isinstance(one, str | os.PathLike) for one in X)):
            raise ValueError("link is True, but X holds no files that pictures could lead to")
        cards = [replace(c, link=link_to(os.fspath(X[c.index]), path)) for c in result.cards]
        result = replace(result, cards=cards)
    level = dfm.alpha if alpha is None else alpha
    heading = title or (shown(Path(folder).resolve().name) if folder else "Images")
    command = "dfm.predict(X, alpha=ALPHA)"
    if model is not None and folder is not None:
        command = shown(f"pydfm score {shlex.quote(model)} {shlex.quote(folder)} --alpha ALPHA")
    chart = _chart(dfm, result, level)
    chart["levels"][chart["start"]]["text"] = f"{level:.12g}"
    level = max(level, float(chart["levels"][0]["alpha"]))
    write_page(
        path,
        "batch.html",
        title=heading,
        result=result,
        answer=_answer(result, level),
        details=describe(dfm, model),
        **chart,
        data=_data(result, X, heading, command, chart),
    )
    return result


def examine(
    dfm: "DFM",
    X: Any,
    *,
    alpha: float | None = None,
    root: str | None = None,
    names: Sequence[str] | None = None,
    task: str = "report",
    keep_features: bool = False,
) -> BatchResult:
    """Score, judge and picture a batch in one pass: images are decoded and scored once.

    Parameters
    ----------
    dfm, X, alpha, names
        As in `report`.
    root : str, optional
        Folder of the images, which is left out of their names.
    task : str
        Name of the progress bar.
    keep_features : bool
        Whether the result has the features.
    """
    fitted, kind = dfm.fitted_, first_type(dfm)
    decider = dfm.decider(alpha=alpha)
    level = dfm.alpha if alpha is None else alpha
    assert fitted.spec is not None
    scale, no_maps = map_scale(dfm, kind, level)
    maker = CardMaker(fitted, kind, level, scale)
    views = Views(fitted.spec.preprocessing, PICTURE_SIDE)
    n_threads = resolve_threads(dfm.n_threads)
    test = DriftTest(fitted, kind, labelled=False)
    names = names_of(X, root) or names
    cards: list[Card] = []
    measured, drifted, kept = [], [], []
    for places, features, _ in dfm.batches(X, task=task, look=views):
        if not isinstance(places, list):
            raise ValueError("X holds features; a report shows images, so pass these")
        scored = fitted.score(features, n_threads)
        measured.append(decider.measure(scored))
        drifted.append(test.measure(scored))
        if keep_features:
            kept.append(features)
        own = [names[i] if names is not None else f"image {i}" for i in places]
        cards += maker.make(places, own, scored, views.take(places))
    skipped = dfm.skipped_
    if not cards:
        reason = f"; {skipped[0].reason}" if skipped else ""
        raise ValueError(f"X holds no image that can be read{reason}")
    count = len(cards) + len(skipped)
    found, read = np.full((3, count), np.nan), [card.index for card in cards]
    found[:, read] = np.concatenate(measured, axis=1)
    all_features = None
    if keep_features:
        all_features = np.full((count, dfm.n_features_in_), np.nan, dtype=np.float32)
        all_features[read] = np.concatenate(kept)
    assessment = decider.judge(found)
    drift = test.conclude(np.concatenate(drifted, axis=1))
    cards = [
        replace(
            card,
            score=float(assessment.scores[card.index]),
            p_value=float(assessment.p_values[card.index]),
            anomalous=bool(assessment.verdicts[card.index] == -1),
        )
        for card in fit_on_page(cards)
    ]
    cards.sort(key=lambda card: (card.p_value, -card.score, card.index))
    unreadable = [
        (shown(names[one.index] if names is not None else f"image {one.index}"), shown(one.reason))
        for one in skipped
    ]
    return BatchResult(cards, assessment, drift, unreadable, no_maps, all_features)


def map_scale(dfm: "DFM", kind: str, alpha: float) -> tuple[ColourScale | None, str]:
    """Return the colour scale of maps, or None and why there are no maps to show."""
    try:
        dfm.model_.check_maps(kind)
        with warnings.catch_warnings():
            # The decisions have warned of few held-out images already.
            warnings.filterwarnings("ignore", message="alpha is")
            return ColourScale(*map_range(dfm.fitted_, alpha, kind)), ""
    except ValueError as error:
        return None, f"There are no overlays: {error}."


def first_type(dfm: "DFM") -> str:
    """Return the score type that decides."""
    return dfm.score_type if isinstance(dfm.score_type, str) else dfm.score_type[0]


def threshold_text(dfm: "DFM") -> str:
    """Return the level and the threshold of a model in words."""
    if dfm.calibration_ is None:
        return "no calibration: it scores, and does not decide"
    level = f"alpha {dfm.alpha:g}"
    if dfm.fitted_.held_out.folds:
        return f"{level}: p-values come from {len(dfm.fitted_.held_out.folds)} folds"
    threshold = dfm.threshold_
    if isinstance(threshold, float):
        return f"{level}: anomalous above {threshold:.4g}"
    return f"{level}: anomalous above {', '.join(f'{own:.4g}' for own in threshold)}"


def names_of(X: Any, root: str | None) -> list[str] | None:
    """Return the names of images, where they are files, without their folder."""
    if not isinstance(X, list | tuple) or not all(isinstance(x, str | os.PathLike) for x in X):
        return None
    paths = with_pages([os.fspath(x) for x in X])
    if root is None or not Path(root).is_dir():
        return paths
    return [os.path.relpath(path, root) for path in paths]


def describe(dfm: "DFM", model: str | None) -> list[tuple[str, str]]:
    """Return what a page says of a model: names and values."""
    spec, fitted = dfm.feature_spec_, dfm.fitted_
    assert spec is not None
    size = spec.preprocessing.size
    changed = [
        f"{name} = {value!r}"
        for name, value in dfm.get_params(deep=False).items()
        if name in DEFAULTS and value != DEFAULTS[name] and name not in ("backbone", "verbose")
    ]
    rows = [
        ("Model", "" if model is None else shown(model)),
        ("Fitted on", fitted.model.summary()),
        ("Network", shown(f"{spec.backbone}, {spec.weights or 'random weights or its own'}")),
        (
            "Layers",
            ", ".join(
                f"{g.channels} x {g.height} x {g.width} ({n})"
                for n, g in zip(spec.layers, spec.grids, strict=True)
            ),
        ),
        ("Hash of the weights", spec.sha256),
        ("Images are seen at", f"{size[1]} x {size[0]} px"),
        ("Score", f"{first_type(dfm)}, {dfm.image_score_}"),
        ("Held-out scores", f"{dfm.calibration_}, {len(dfm.held_out_scores_)} images"),
        ("Smallest false-alarm rate", share(dfm.smallest_alpha_)),
        ("Settings that are not the default", shown("; ".join(changed)) or "none"),
    ]
    return [(name, value) for name, value in rows if value]


def _answer(result: BatchResult, alpha: float) -> dict[str, Any]:
    """Return the sentences at the top of the page."""
    count = len(result.cards)
    return {
        "images": count,
        "anomalous": sum(card.anomalous for card in result.cards),
        "alpha": alpha,
        "expected": number(alpha * count),
        "drift": drift_in_words(result.drift),
        "moved": result.drift is not None and result.drift.p_value <= 0.01,
    }


def drift_in_words(drift: Drift | None) -> str:
    """Say whether a batch scores as good images did."""
    if drift is None or drift.n_samples < _FEW:
        return f"Too few images to tell whether the line has changed: {_FEW} are needed."
    if drift.p_value > 0.01:
        return (
            "No drift: as a whole, these images score as the good ones of the fit did "
            f"(p = {drift.p_value:.2g})."
        )
    moved = drift.moved()
    where = f", most clearly in {', '.join(str(name) for name in moved)}" if moved else ""
    return (
        f"These images score differently from the good ones of the fit (p = {drift.p_value:.1e}"
        f"{where}). Either many of them are bad, or the line has changed: light, lens, material. "
        "Look at some that you know are good."
    )


def _chart(dfm: "DFM", result: BatchResult, alpha: float) -> dict[str, Any]:
    """Return the histograms, and the levels at which decisions change."""
    calibration = calibration_of(dfm.fitted_, first_type(dfm))
    one = len(calibration.ranks) == 1 and not calibration.in_folds
    p = np.array([card.p_value for card in result.cards])
    if one:
        alphas, thresholds = calibration.levels()
        keep = list(thinned(len(alphas), _MOST_LEVELS))
        threshold = calibration.threshold(alpha)
        scores = np.array([card.score for card in result.cards])
        chart = TwoHistograms.of_scores(scores, dfm.held_out_scores_, threshold)
        places = chart.axis.place(thresholds)[keep]
        ends = np.append(alphas[1:], 1.0)[keep]
        alphas, thresholds = alphas[keep], thresholds[keep]
    else:
        alphas = _levels_of_classes(calibration)
        chart = TwoHistograms.of_p_values(p, dfm.held_out_p_values_)
        places, ends = chart.axis.place(-np.log10(alphas)), np.append(alphas[1:], 1.0)
        thresholds = np.full(len(alphas), np.nan)
    levels = [
        {
            "alpha": float(level),
            "text": shortest_between(float(level), float(end)),
            "x": round(float(x), 2),
            "threshold": None if np.isnan(t) else float(t),
        }
        for level, end, x, t in zip(alphas, ends, places, thresholds, strict=True)
    ]
    start = max(int(np.searchsorted(alphas, alpha * (1 + 1e-9), side="right")) - 1, 0)
    return {"chart": chart, "of_scores": one, "levels": levels, "start": start}


def _levels_of_classes(calibration: Calibration) -> NDArray[np.float64]:
    """Return levels that all classes can keep, ascending."""
    smallest = calibration.smallest_alpha
    steps = np.arange(1, max(int(0.5 / smallest), 1) + 1) * smallest
    return np.asarray(steps[list(thinned(len(steps), _MOST_LEVELS))])


def _data(
    result: BatchResult, X: Any, heading: str, command: str, chart: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the page's script needs: p-values, names, levels, and the command for one."""
    files = names_of(X, None)
    cards = [
        {
            "index": card.index,
            "name": card.name,
            "path": card.name if files is None else shown(files[card.index]),
            "p": card.p_value,
            "score": card.score,
        }
        for card in result.cards
    ]
    return {
        "id": f"pydfm-{hashlib.sha256(json.dumps(cards).encode()).hexdigest()[:16]}",
        "csv_name": f"{heading}-marks.csv",
        "command": command,
        "levels": chart["levels"],
        "start": chart["start"],
        "cards": cards,
    }
