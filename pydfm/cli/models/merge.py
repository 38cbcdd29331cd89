"""The command ``pydfm merge``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    ChangePage,
    MovedBackbone,
    MovedWeights,
    NewModel,
    check_written,
    load_model,
    open_change,
    write_changed,
)


def merge(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODELS", help="Two or more files of models.")
    ],
    output: NewModel,
    report: ChangePage = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Join models: the result is that of all their images, each held out as it was."""
    if len(models) < 2:
        raise ValueError(f"one model is named, '{models[0]}'; name two or more to be merged")
    state = check_written(output, report)
    first, *others = (load_model(path, weights, backbone, parameters) for path in models)
    counts = [dfm.n_samples_ for dfm in (first, *others)]
    before = open_change(first, report)
    merged = first.merge(*others)
    done = f"{' + '.join(map(str, counts))} = {merged.n_samples_} images"
    names = (models[0].name, "merged")
    write_changed(before, merged, output, state, done, [], report, names=names)


COMMAND = Command("merge", merge, order=15, optional=RUNTIME)
