"""The command ``pydfm report``."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import RUNTIME, Folder, Model, MovedBackbone, MovedWeights, load_model, say


def report(
    model: Model,
    folder: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")],
    title: Annotated[
        str | None, typer.Option(help="Heading of the page; default: the folder's name.")
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Names lead to the full pictures, where they are now.")
    ] = False,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    *,
    alpha: float | None,
    **parameters: Any,
) -> None:
    """Write one page about a batch: verdicts, drift, and what is strange where, worst first."""
    from pydfm.features.inputs.images import list_images
    from pydfm.reports.batch import report as write_report
    from pydfm.reports.page import check_page

    check_page(output)
    list_images(folder)  # or an error before the network is loaded
    dfm = load_model(model, weights, backbone, parameters)
    result = write_report(
        dfm, folder, output, alpha=alpha, link=link, title=title, model=os.fspath(model)
    )
    anomalous = sum(card.anomalous for card in result.cards)
    say(f"{output}: {anomalous} of {len(result.cards)} images are anomalous; open it")


COMMAND = Command(
    "report",
    report,
    order=25,
    optional={
        **RUNTIME,
        "alpha": "False-alarm rate that the page starts with; default: the model's.",
    },
)
