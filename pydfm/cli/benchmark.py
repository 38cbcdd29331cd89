"""The commands ``pydfm benchmark mvtec | ood``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command

if TYPE_CHECKING:
    from pydfm.benchmark.configuration import Configuration

_Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML: parameters of DFM in a table for each configuration; default: built in."
    ),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="CSV file of results; those it has are not run again."),
]
_Markdown = Annotated[
    Path | None, typer.Option(help="File for the Markdown tables; default: standard output.")
]
_Weights = Annotated[
    str | None,
    typer.Option(help="In place of the configurations': imagenet, a file, or none for random."),
]


def mvtec(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Categories in MVTec AD's layout, at any depth.")
    ],
    config: _Config = None,
    output: _Output = None,
    markdown: _Markdown = None,
    weights: _Weights = None,
    **parameters: Any,
) -> None:
    """Fit and measure every category below ROOT."""
    from pydfm.benchmark.mvtec import CONFIGURATIONS, mvtec_table, run_mvtec

    _check_outputs(output, markdown)
    configurations = _configurations(config, CONFIGURATIONS, weights)
    results = run_mvtec(root, configurations, output, verbose=True, **parameters)
    _write(markdown, mvtec_table(results))


def ood(
    train: Annotated[
        str,
        typer.Argument(
            metavar="TRAIN",
            help="What to fit on: a folder, whose subfolders are the classes, or FILE.npz#NAME for "
            "the arrays NAME_x and NAME_y.",
        ),
    ],
    test: Annotated[
        str, typer.Argument(metavar="TEST", help="In-distribution data to measure on.")
    ],
    outliers: Annotated[
        list[str], typer.Argument(metavar="OOD...", help="Out-of-distribution data, one or more.")
    ],
    config: _Config = None,
    output: _Output = None,
    markdown: _Markdown = None,
    weights: _Weights = None,
    **parameters: Any,
) -> None:
    """Measure out-of-distribution detection for each layer and score type."""
    from pydfm.benchmark.outliers import (
        default_configurations,
        outliers_table,
        read_data_set,
        run_outliers,
    )

    _check_outputs(output, markdown)
    fit_on, test_on, *others = map(read_data_set, (train, test, *outliers))
    defaults = default_configurations(labelled=fit_on.labels is not None)
    configurations = _configurations(config, defaults, weights)
    results = run_outliers(
        fit_on, test_on, others, configurations, output, verbose=True, **parameters
    )
    _write(markdown, outliers_table(results))


def _check_outputs(output: Path | None, markdown: Path | None) -> None:
    from pydfm.runtime.files import check_output

    for option, path in (("--output", output), ("--markdown", markdown)):
        if path is None:
            continue
        try:
            check_output(path)
        except OSError as error:
            raise type(error)(f"{option}: {error}") from None


def _configurations(
    config: Path | None, defaults: "Sequence[Configuration]", weights: str | None
) -> "Sequence[Configuration]":
    from pydfm.benchmark.configuration import read_configurations, with_weights

    chosen = defaults if config is None else read_configurations(config)
    return chosen if weights is None else with_weights(chosen, weights)


def _write(path: Path | None, text: str) -> None:
    from pydfm.runtime.files import write_file

    if path is None:
        typer.echo(text)
    else:
        write_file(path, text.encode())


_RUNTIME = {"device": "", "batch_size": "", "n_threads": ""}

COMMAND = Command(
    "benchmark",
    (Command("mvtec", mvtec, optional=_RUNTIME), Command("ood", ood, optional=_RUNTIME)),
    order=40,
    help="Measure configurations on data sets, beside published figures; a stopped run continues.",
)
