"""The command ``pydfm eval``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import RUNTIME, Model, MovedBackbone, MovedWeights, load_model, say

if TYPE_CHECKING:
    from pydfm.datasets import Category


def evaluate(
    model: Model,
    category: Annotated[
        Path,
        typer.Argument(metavar="CATEGORY", help="A folder with test/good and test/DEFECT."),
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML page: curves, tables, and what was missed."),
    ] = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    *,
    score_type: str | None,
    **parameters: Any,
) -> None:
    """Measure a model on a category in MVTec AD's layout: images, and pixels by its masks."""
    import numpy as np

    from pydfm.datasets import load_category
    from pydfm.datasets.measure import measure_category

    test = load_category(category)
    if report is None:
        dfm = load_model(model, weights, backbone, parameters)
        metrics = measure_category(dfm, test, score_type)
    else:
        from pydfm.reports.evaluation import write_evaluation
        from pydfm.reports.page import check_page

        check_page(report)
        dfm = load_model(model, weights, backbone, parameters)
        if score_type is not None:
            dfm.set_params(score_type=score_type)
        metrics = write_evaluation(dfm, test, report, model=os.fspath(model))
    kinds = np.asarray(test.defects)[metrics.read]
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in dict.fromkeys(test.defects))
    image, pixel = metrics.image, metrics.pixel
    say(f"category     {test.name} ({counts})")
    say(f"image AUROC  {image['auroc']:.4f}")
    say(f"AUPR         {image['aupr']:.4f}")
    say(f"F1-max       {image['f1_max']:.4f} at score >= {image['threshold']:.6g}")
    say(f"FPR95        {image['fpr95']:.4f}")
    if not pixel:
        say(f"pixels       not measured: {metrics.no_pixels}")
    else:
        _print_pixels(test, pixel)
    if report is not None:
        say(f"page         {report}")


def _print_pixels(test: "Category", pixel: dict[str, float]) -> None:
    missing = len(test.without_mask)
    left_out = f" (without {missing} defective images that have no mask)" if missing else ""
    say(f"pixel AUROC  {pixel['pixel_auroc']:.4f}{left_out}")
    say(f"AUPRO        {pixel['aupro']:.4f}")


COMMAND = Command(
    "eval",
    evaluate,
    order=30,
    optional={**RUNTIME, "score_type": "In place of the model's."},
)
