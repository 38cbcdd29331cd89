"""The page of a change: two models side by side, and images that are judged otherwise now."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pydfm.conformal.calibration import calibration_of
from pydfm.conformal.decisions import Assessment
from pydfm.io.journal import Entry
from pydfm.reports.batch import describe, examine, first_type, threshold_text
from pydfm.reports.cards import Card
from pydfm.reports.drawing.charts import TwoHistograms
from pydfm.reports.page import check_page, number, shown, write_page

if TYPE_CHECKING:
    from pydfm.estimator import DFM

_WORDS = {1: "✓ normal", -1: "▲ anomalous", 0: "not read"}


@dataclass(frozen=True)
class _Side:
    """What a page says of one of the two models."""

    name: str
    images: int
    threshold: str
    journal: tuple[Entry, ...]


def write_change(
    before: "DFM",
    after: "DFM",
    X: Sequence[str],
    path: "str | os.PathLike[str]",
    *,
    title: str,
    done: str,
    names: tuple[str, str] = ("before", "after"),
    note: str = "",
    judged: Assessment | None = None,
) -> None:
    """Write the page of a change of a model, or of the difference between two.

    Parameters
    ----------
    before, after : DFM
        Fitted to images, with calibration.
    X : sequence of str
        Paths of images that both judge; perhaps none.
    path : path
        The HTML file to write.
    title : str
    done : str
        What was done, in a sentence.
    names : (str, str)
        What the page calls the two models.
    note : str
        What is to be known of the images.
    judged : Assessment, optional
        What `before` says of the images, where that is known.

    Raises
    ------
    ImportError
        If Jinja2 is not installed.
    OSError
        If the page cannot be written.
    ValueError
        If a model has no calibration, or no image can be read.
    """
    check_page(path)
    cards: list[Card] = []
    groups: dict[int, str] = {}
    unreadable: list[tuple[str, str]] = []
    no_maps = ""
    if X:
        old = before.assess(list(X)) if judged is None else judged
        result = examine(after, list(X), task="report")
        unreadable, no_maps = result.unreadable, result.no_maps
        same = old.verdicts == result.assessment.verdicts
        groups = {card.index: "same" if same[card.index] else "changed" for card in result.cards}
        told = [replace(card, kind=_before(card, old, names[0])) for card in result.cards]
        cards = sorted(told, key=lambda card: groups[card.index])
    sides = [
        _Side(shown(name), dfm.n_samples_, threshold_text(dfm), dfm.journal_)
        for name, dfm in zip(names, (before, after), strict=True)
    ]
    rows = [dict(describe(dfm, None)) for dfm in (before, after)]
    write_page(
        path,
        "change.html",
        title=shown(title),
        done=shown(done),
        note=note,
        sides=sides,
        cards=cards,
        changed=sum(group == "changed" for group in groups.values()),
        unreadable=unreadable,
        no_maps=no_maps,
        chart=_chart(before, after),
        details=[(n, *(own.get(n, "") for own in rows)) for n in {**rows[0], **rows[1]}],
        data={
            "id": f"pydfm-change-{shown(title)}",
            "csv_name": f"{shown(title)}-marks.csv",
            "cards": [
                {
                    "index": card.index,
                    "name": card.name,
                    "path": card.name,
                    "p": card.p_value,
                    "score": card.score,
                    "group": groups[card.index],
                }
                for card in cards
            ],
        },
    )


def _before(card: Card, old: Assessment, name: str) -> str:
    """Say how the other model judges the image of a card."""
    i = card.index
    p, score = number(float(old.p_values[i])), number(float(old.scores[i]))
    return f"{name}: {_WORDS[int(old.verdicts[i])]}, p = {p}, score {score}"


def _chart(before: "DFM", after: "DFM") -> dict[str, Any] | None:
    """Return histograms of both models' held-out scores, where they are on one scale."""
    kinds = [first_type(dfm) for dfm in (before, after)]
    if kinds[0] != kinds[1] or before.feature_spec_ != after.feature_spec_:
        return None
    thresholds = []
    for dfm, kind in zip((before, after), kinds, strict=True):
        calibration = calibration_of(dfm.fitted_, kind)
        if len(calibration.ranks) > 1 or calibration.in_folds:
            return None
        thresholds.append(calibration.threshold(dfm.alpha))
    new, old = after.held_out_scores_, before.held_out_scores_
    chart = TwoHistograms.of_scores(new, old, max(thresholds))
    places = chart.axis.place(np.array(thresholds))
    return {
        "bars": chart,
        "before": float(places[0]),
        "after": float(places[1]),
        "counts": (len(old), len(new)),
    }
