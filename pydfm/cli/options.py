"""Options that several commands have, and what they stand for."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.runtime.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pydfm.estimator import DFM
    from pydfm.io.loading import LoadedModel

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that `pydfm fit` wrote.")]
MovedWeights = Annotated[
    str | None, typer.Option(help="Where the weights are now, if elsewhere than at the fit.")
]
MovedBackbone = Annotated[
    str | None,
    typer.Option(help="The TorchScript file that it was fitted with, whose code runs."),
]
VERDICTS = {1: "ok", -1: "anomalous", 0: "unreadable"}
# Options in place of what the file has.
RUNTIME = {
    "device": "",
    "runtime": "",
    "batch_size": "",
    "n_threads": "",
    "on_error": "",
    "max_pixels": "",
}
Fdr = Annotated[
    float | None,
    typer.Option(
        help="False discovery rate: share of good images among those that are flagged as unlike "
        "the others; default: 0.05."
    ),
]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, or one image.")]
NewModel = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="The model file to write; it may be MODEL, which is then kept as MODEL.previous.",
    ),
]
Classes = Annotated[
    bool, typer.Option("--classes", help="The subfolders of FOLDER are classes, as at the fit.")
]
Groups = Annotated[
    str | None,
    typer.Option(metavar="folders|REGEX", help="What belongs together, as for `pydfm fit`."),
]
Ray = Annotated[
    int | None,
    typer.Option("--ray", metavar="WORKERS", help="Number of workers on a running Ray cluster."),
]


def load_model(
    model: Path, weights: str | None, backbone: str | None, parameters: dict[str, Any]
) -> "DFM":
    """Return the model of images in the file `model`, with the `parameters` that are not None."""
    from pydfm.estimator import estimator_of

    return estimator_of(load_without_estimator(model, weights, backbone, parameters))


def load_without_estimator(
    model: Path, weights: str | None, backbone: str | None, parameters: dict[str, Any]
) -> "LoadedModel":
    """Return the same as `load_model`, without what takes long to import."""
    from pydfm.io.loading import load_model
    from pydfm.parameters import none_or

    given = {name: value for name, value in parameters.items() if value is not None}
    network = {name: given.pop(name, None) for name in ("device", "runtime", "n_threads")}
    network |= {} if weights is None else {"weights": none_or(weights)}
    loaded = load_model(model, backbone=backbone, **network)
    if loaded.extractor is None:
        raise ValueError(f"'{model}' was fitted on features, not on images; use it from Python")
    return loaded.with_parameters(**given, verbose=True)


def write_changed(dfm: "DFM", output: Path, done: str, before: str | None = None) -> None:
    """Write a model that a command has changed, and say what was done, and its thresholds.

    What it replaces is kept for `pydfm undo`.

    Parameters
    ----------
    dfm : DFM
    output : Path
    done : str
    before : str, optional
        The thresholds before the change; see `threshold_text`.
    """
    from pydfm.runtime.files import keep_previous

    keep_previous(output)
    # It goes on as before, where it can.
    dfm.save(output, keep=True if dfm.goes_on_ else None)
    say(f"{output}: {done}")
    if before is not None:
        say(f"before  {before}")
    say(f"now     {threshold_text(dfm)}")


def threshold_text(dfm: "DFM") -> str:
    """Return the level and the threshold of a model in words."""
    level = f"alpha {dfm.alpha:g}"
    try:
        threshold = dfm.threshold_
    except AttributeError:  # without calibration, or with one for each fold
        return level
    if isinstance(threshold, float):
        return f"{level}: anomalous above {threshold:.4g}"
    return f"{level}: anomalous above {', '.join(f'{own:.4g}' for own in threshold)}"


def labels_of(folder: Path, paths: list[str], classes: bool) -> "NDArray[Any] | None":
    """Return the subfolders of `folder` that images lie in, with --classes, as a fit takes them."""
    if not classes:
        return None
    from pydfm.features.inputs.labels import RowLabels

    return RowLabels.of_folders(folder, paths).take(slice(0, len(paths)))


def parse_groups(text: str | None) -> "str | Callable[[str], str] | None":
    """Return the groups that an option names: "folders", or a function of the path, or None."""
    if text is None or text == "folders":
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
