"""Options that several commands have, and what they stand for."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.runtime.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
ChangePage = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="HTML page: both models side by side, and the images that are judged otherwise now.",
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


def is_export(model: Path) -> bool:
    """Whether a file is to be taken for an export: by its ending, unless it is a model's own."""
    if model.suffix.lower() != ".onnx":
        return False
    with suppress(OSError), model.open("rb") as file:
        return file.read(9)[8:] != b"{"  # as safetensors begin, and a graph cannot
    return True


def check_written(output: Path, report: Path | None) -> tuple[int, int, int] | None:
    """Check, before any work is done, that a model and a page can be written.

    Return the state of the file that is there, for `write_changed`.
    """
    from pydfm.runtime.files import check_output, state_of

    check_output(output)
    if report is not None:
        from pydfm.reports.page import check_page

        if report.resolve() == output.resolve():
            raise ValueError(
                f"--report and --output are both '{report}'; name another file for the page"
            )
        check_page(report)
    return state_of(output)


def open_change(dfm: "DFM", report: Path | None) -> "DFM":
    """Return a model as it is now, for `write_changed`, and check that a page can compare it."""
    if report is not None:
        dfm.decider()  # or an error that says why it does not decide
    return dfm.with_state(fitted=dfm.fitted_)


def write_changed(
    before: "DFM",
    after: "DFM",
    output: Path,
    state: tuple[int, int, int] | None,
    done: str,
    images: "Sequence[str]",
    report: Path | None,
    note: str = "",
    names: tuple[str, str] = ("before", "now"),
) -> None:
    """Write a model that a command has changed, say what was done, and write a page if asked for.

    What it replaces is kept for `pydfm undo`.

    Parameters
    ----------
    before, after : DFM
        See `open_change`.
    output : Path
    state : tuple of int, or None
        What `check_written` returned: another process may have changed the file meanwhile.
    done : str
    images : sequence of str
        Paths of those that the page shows.
    report : Path or None
        The page to write.
    note : str
        What the page says of the images.
    names : (str, str)
        What the models are called.
    """
    from pydfm.reports.batch import threshold_text
    from pydfm.runtime.files import keep_previous, unchanged

    if after.journal_ == before.journal_:
        raise ValueError(
            f"no image could be read, so that the model does not change and '{output}' is not "
            "written; give images that can be read"
        )
    with unchanged(output, state):
        keep_previous(output)
        # It goes on as before, where it can.
        after.save(output, keep=True if after.goes_on_ else None)
    say(f"{output}: {done}")
    width = max(map(len, names))
    for name, dfm in zip(names, (before, after), strict=True):
        say(f"{name:<{width}}  {threshold_text(dfm)}")
    if report is not None:
        from pydfm.reports.change import write_change

        write_change(
            before, after, images, report, title=output.name, done=done, names=names, note=note
        )
        say(f"page  {report}")


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
