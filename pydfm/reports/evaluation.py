"""The page of an evaluation: curves, the threshold's table, and what was missed, as pictures."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pydfm.datasets.category import Category
from pydfm.datasets.measure import CategoryMetrics, measure_category
from pydfm.metrics import evaluate
from pydfm.reports.batch import describe, examine
from pydfm.reports.cards import Card
from pydfm.reports.drawing.charts import curve
from pydfm.reports.page import check_page, share, shown, write_page

if TYPE_CHECKING:
    from pydfm.estimator import DFM

_SIDE = 400.0
_ORDER = {"missed": 0, "alarm": 1, "found": 2, "passed": 3}
_NAMES = {
    "missed": "▲ missed",
    "alarm": "▲ false alarm",
    "found": "found",
    "passed": "passed",
}


@dataclass(frozen=True)
class KindRow:
    """How well a kind of defect is found, or how many good images pass."""

    name: str
    count: int
    anomalous: int
    auroc: float | None


def write_evaluation(
    dfm: "DFM",
    category: Category,
    path: "str | os.PathLike[str]",
    *,
    model: str | None = None,
) -> CategoryMetrics:
    """Write the page of how a model does on the test images of a category.

    Images are decoded once, for the scores, the metrics and the pictures.

    Parameters
    ----------
    dfm : DFM
        Fitted to images, with calibration.
    category : Category
    path : path
        The HTML file to write.
    model : str, optional
        Path of the model file, which the page names.

    Returns
    -------
    CategoryMetrics
        What `measure_category` gives.

    Raises
    ------
    ImportError
        If Jinja2 is not installed.
    OSError
        If the page cannot be written.
    ValueError
        If the model has no calibration, or as `measure_category`.
    """
    check_page(path)
    result = examine(dfm, category.test, keep_features=True, task="eval")
    metrics = measure_category(dfm, category, features=result.features)
    cards = sorted(
        (_judged(card, category) for card in result.cards),
        key=lambda card: (_ORDER[_group(card, category)], card.p_value, -card.score),
    )
    labels = np.array(category.labels)[metrics.read]
    scores = result.assessment.scores[metrics.read]
    anomalous = result.assessment.verdicts[metrics.read] == -1
    write_page(
        path,
        "evaluation.html",
        title=shown(category.name),
        metrics=metrics,
        result=result,
        cards=cards,
        kinds=_kinds(category, metrics, scores, anomalous),
        alpha=dfm.alpha,
        confusion={
            "found": int((anomalous & labels).sum()),
            "missed": int((~anomalous & labels).sum()),
            "alarms": int((anomalous & ~labels).sum()),
            "passed": int((~anomalous & ~labels).sum()),
        },
        curves=_curves(scores, labels, anomalous),
        without_mask=len(category.without_mask),
        details=describe(dfm, model),
        data=_data(cards, category),
    )
    return metrics


def _judged(card: Card, category: Category) -> Card:
    what = _NAMES[_group(card, category)]
    name = os.path.join(*card.path.replace("\\", "/").split("/")[-2:])  # noqa: PTH118
    return replace(card, path=name, kind=f"{what}: {shown(category.defects[card.index])}")


def _group(card: Card, category: Category) -> str:
    if category.labels[card.index]:
        return "found" if card.anomalous else "missed"
    return "alarm" if card.anomalous else "passed"


def _kinds(
    category: Category, metrics: CategoryMetrics, scores: Any, anomalous: Any
) -> list[KindRow]:
    """Return a row for good images, and for each kind of defect beside them."""
    kinds = np.array(category.defects)[metrics.read]
    rows = []
    for kind in dict.fromkeys(category.defects):
        own = kinds == kind
        area = None
        if kind != "good" and own.any() and (kinds == "good").any():
            both = own | (kinds == "good")
            area = evaluate(scores[both], own[both])["auroc"]
        rows.append(KindRow(shown(kind), int(own.sum()), int(anomalous[own].sum()), area))
    return rows


def _curves(scores: Any, labels: Any, anomalous: Any) -> dict[str, Any]:
    """Return the points of both curves, and where the threshold is on them."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    false, true, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    found = float((anomalous & labels).sum())
    at = {
        "recall": found / float(labels.sum()),
        "false": float((anomalous & ~labels).sum()) / float((~labels).sum()),
        "precision": found / max(float(anomalous.sum()), 1.0) if anomalous.any() else 1.0,
    }
    return {
        "side": _SIDE,
        "roc": curve(false, true, _SIDE),
        "pr": curve(recall[::-1], precision[::-1], _SIDE),
        "share": labels.mean(),
        "at": at,
        "words": f"found {share(at['recall'])}, false alarms {share(at['false'])}",
    }


def _data(cards: list[Card], category: Category) -> dict[str, Any]:
    return {
        "id": f"pydfm-eval-{shown(category.name)}",
        "csv_name": f"{shown(category.name)}-marks.csv",
        "cards": [
            {
                "index": card.index,
                "name": card.name,
                "path": shown(category.test[card.index]),
                "p": card.p_value,
                "score": card.score,
                "group": _group(card, category),
            }
            for card in cards
        ],
    }
