"""Options that several commands have, and what they stand for."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.runtime.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydfm.estimator import DFM

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that `pydfm fit` wrote.")]
MovedWeights = Annotated[
    str | None, typer.Option(help="Where the weights are now, if elsewhere than at the fit.")
]
MovedBackbone = Annotated[
    str | None,
    typer.Option(help="The TorchScript file that it was fitted with, whose code runs."),
]
# Options in place of what the file has.
RUNTIME = {"device": "", "batch_size": "", "n_threads": "", "on_error": "", "max_pixels": ""}
Fdr = Annotated[
    float | None,
    typer.Option(
        help="False discovery rate: share of good images among those that are flagged as unlike "
        "the others; default: 0.05."
    ),
]
Ray = Annotated[
    int | None,
    typer.Option("--ray", metavar="WORKERS", help="Number of workers on a running Ray cluster."),
]


def load_model(
    model: Path, weights: str | None, backbone: str | None, parameters: dict[str, Any]
) -> "DFM":
    """Return the model of images in the file `model`, with the `parameters` that are not None."""
    from pydfm.estimator import load
    from pydfm.parameters import none_or

    moved: dict[str, Any] = {} if weights is None else {"weights": none_or(weights)}
    # The file has neither device nor threads, and the device is needed to load.
    machine = {name: parameters.pop(name) for name in ("device", "n_threads")}
    dfm = load(model, backbone=backbone, **machine, **moved)
    if dfm.feature_spec_ is None:
        raise ValueError(f"'{model}' was fitted on features, not on images; use it from Python")
    given = {name: value for name, value in parameters.items() if value is not None}
    dfm.set_params(**given, verbose=True)
    return dfm


def parse_groups(text: str) -> "str | Callable[[str], str]":
    """Return the groups that an option names: "folders", or a function of the path."""
    if text == "folders":
        return text
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(
            f"--groups is {text!r}, neither 'folders' nor a regular expression: {error}"
        ) from None
    if pattern.groups == 0:
        raise ValueError(
            f"--groups is {text!r}, a regular expression without parentheses; put some around what "
            "names the part, as in 'part([0-9]+)'"
        )

    def group(path: str) -> str:
        found = pattern.search(path)
        if found is None or found.group(1) is None:
            raise ValueError(
                f"--groups is {text!r}, which finds no part in '{path}'; change it, or leave the "
                "image out"
            )
        return found.group(1)

    return group


def ray_data_set(items: list[dict[str, Any]], n_workers: int) -> Any:
    """Return a Ray data set of `items`, one row each, in their order."""
    from pydfm.parallel.ray import import_ray
    from pydfm.runtime.checks import check_integer

    check_integer("--ray", n_workers, 1)
    ray = import_ray()
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    # Several blocks for each worker, so that a slow one does not keep the others waiting.
    return ray.data.from_items(items, override_num_blocks=min(4 * n_workers, len(items)))


def print_error(message: str) -> None:
    """Print one line on stderr, whatever `message` contains."""
    if sys.stderr is not None:  # print would take stdout
        print("pydfm: " + printable(" ".join(message.split())), file=sys.stderr)


def say(text: str) -> None:
    """Print one line on stdout, whatever names `text` contains."""
    typer.echo(printable(text))
