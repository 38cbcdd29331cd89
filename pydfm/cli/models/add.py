"""The command ``pydfm add``."""

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    Classes,
    Folder,
    Groups,
    Model,
    MovedBackbone,
    MovedWeights,
    NewModel,
    labels_of,
    load_model,
    parse_groups,
    say,
    threshold_text,
    write_changed,
)


def add(
    model: Model,
    folder: Folder,
    output: NewModel,
    marks: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Add only the images of FOLDER that this file, saved from a page, marks as good.",
        ),
    ] = None,
    classes: Classes = False,
    groups: Groups = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Teach a model more good images, such as false alarms: exactly as if they had been fitted."""
    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.runtime.files import check_output

    check_output(output)
    paths = with_pages(list_images(folder))
    n_bad = 0
    if marks is not None:
        paths, n_bad = _marked(marks, paths, folder)
    dfm = load_model(model, weights, backbone, parameters)
    before, old = dfm.n_samples_, threshold_text(dfm)
    labels = labels_of(folder, paths, classes)
    dfm.partial_fit(paths, labels=labels, groups=parse_groups(groups))
    added = dfm.n_samples_ - before
    write_changed(dfm, output, f"{added} image{'s' if added > 1 else ''} added to {before}", old)
    if n_bad:
        say(f"{n_bad} marked as bad are left as they are")


def _marked(marks: Path, paths: list[str], folder: Path) -> tuple[list[str], int]:
    """Return those of `paths` that a file marks as good, and how many it marks as bad."""
    with marks.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"path", "mark"} <= set(rows[0]):
        raise ValueError(
            f"--marks is '{marks}', which has no columns 'path' and 'mark'; save it from the page "
            "of `pydfm report`"
        )
    known = {path: path for path in paths}
    # Pages name images as they were given, or within their folder.
    root = folder if folder.is_dir() else folder.parent
    known |= {str(Path(path).resolve()): path for path in paths}
    good, bad = [], 0
    for row in rows:
        name = row["path"]
        if row["mark"] == "bad":
            bad += 1
            continue
        if row["mark"] != "good":
            raise ValueError(
                f"--marks is '{marks}', which marks '{name}' as {row['mark']!r}; a mark is 'good' "
                "or 'bad'"
            )
        # A cell that a spreadsheet would take for a formula was written behind an apostrophe.
        names = (name, name.removeprefix("'"))
        tried = [
            each for n in names for each in (n, str(Path(n).resolve()), str((root / n).resolve()))
        ]
        found = next((known[each] for each in tried if each in known), None)
        if found is None:
            raise ValueError(f"--marks has '{name}', which is no image of '{folder}'")
        good.append(found)
    if not good:
        raise ValueError(f"--marks is '{marks}', which marks no image as good; nothing is added")
    return good, bad


COMMAND = Command("add", add, order=12, optional=RUNTIME)
