"""The commands pydfm benchmark mvtec | ood."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydfm.benchmark.configuration import Configuration

app = typer.Typer(
    help="Measure configurations on data sets, resumably, beside published figures.",
    no_args_is_help=True,
)

_Config = Annotated[
    Path | None,
    typer.Option(help="TOML: a table of DFM's parameters per configuration; default: built in."),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="CSV file of results; what it has is not run again."),
]
_Markdown = Annotated[
    Path | None, typer.Option(help="File for the Markdown tables; default: standard output.")
]
_Weights = Annotated[
    str | None,
    typer.Option(help="In place of the configurations': imagenet, a file, or none for random."),
]
_Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; default: a GPU where there is one.")
]
_BatchSize = Annotated[int | None, typer.Option(help="Images per batch.")]
_Threads = Annotated[
    int | None, typer.Option(help="Threads; default: the cores this process may use.")
]


@app.command()
def mvtec(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Categories in MVTec AD's layout, at any depth.")
    ],
    config: _Config = None,
    output: _Output = None,
    markdown: _Markdown = None,
    weights: _Weights = None,
    device: _Device = None,
    batch_size: _BatchSize = None,
    threads: _Threads = None,
) -> None:
    """Fit and measure every category below ROOT."""
    from pydfm.benchmark.mvtec import DEFAULTS, mvtec_table, run_mvtec

    _check_outputs(output, markdown)
    results = run_mvtec(
        root,
        _configurations(config, DEFAULTS, weights),
        output,
        device=device,
        batch_size=batch_size,
        n_threads=threads,
        verbose=True,
    )
    _write(markdown, mvtec_table(results))


@app.command()
def ood(
    train: Annotated[
        str,
        typer.Argument(
            metavar="TRAIN",
            help="What to fit on: a folder, its subfolders being the classes, or FILE.npz#NAME for "
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
    device: _Device = None,
    batch_size: _BatchSize = None,
    threads: _Threads = None,
) -> None:
    """Measure out-of-distribution detection per layer and score type."""
    from pydfm.benchmark.outliers import (
        default_configurations,
        outliers_table,
        read_data_set,
        run_outliers,
    )

    _check_outputs(output, markdown)
    fit_on = read_data_set(train)
    defaults = default_configurations(labelled=fit_on.labels is not None)
    results = run_outliers(
        fit_on,
        read_data_set(test),
        [read_data_set(source) for source in outliers],
        _configurations(config, defaults, weights),
        output,
        device=device,
        batch_size=batch_size,
        n_threads=threads,
        verbose=True,
    )
    _write(markdown, outliers_table(results))


def _check_outputs(output: Path | None, markdown: Path | None) -> None:
    from pydfm.files import check_output

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
    from pydfm.files import write_file

    if path is None:
        typer.echo(text)
    else:
        write_file(path, text.encode())
