"""The command ``pydfm add``."""

import csv
import io
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    ChangePage,
    Classes,
    Folder,
    Groups,
    Model,
    MovedBackbone,
    MovedWeights,
    NewModel,
    check_written,
    labels_of,
    load_model,
    open_change,
    parse_groups,
    say,
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
    keep_bad: Annotated[
        Path | None,
        typer.Option(
            metavar="CATEGORY",
            help="With --marks: copy the images that are marked as bad to CATEGORY/test/bad, where "
            "`pydfm eval MODEL CATEGORY` finds them.",
        ),
    ] = None,
    report: ChangePage = None,
    classes: Classes = False,
    groups: Groups = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Teach a model more good images, such as false alarms: exactly as if they had been fitted."""
    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.runtime.files import make_folder

    state = check_written(output, report)
    paths, bad = with_pages(list_images(folder)), list[str]()
    if marks is not None:
        paths, bad = _marked(marks, paths, folder)
    elif keep_bad is not None:
        raise ValueError(
            "--keep-bad is for images that --marks marks as bad; pass --marks, or leave it out"
        )
    if keep_bad is not None:
        make_folder(keep_bad / "test" / "bad")
        _check_files(bad)
    dfm = load_model(model, weights, backbone, parameters)
    before = open_change(dfm, report)
    labels = labels_of(folder, paths, classes)
    dfm.partial_fit(paths, labels=labels, groups=parse_groups(groups))
    added = dfm.n_samples_ - before.n_samples_
    write_changed(
        before,
        dfm,
        output,
        state,
        f"{added} image{'s' if added > 1 else ''} added to {before.n_samples_}",
        paths,
        report,
        "They are those that were added: now the model knows them.",
    )
    if bad:
        _tell_of_bad(bad, folder, keep_bad)


def _check_files(bad: list[str]) -> None:
    """Raise ValueError where an image is a page of a file, which cannot be copied by itself."""
    from pydfm.features.pictures.pages import split_page

    for path in bad:
        if split_page(path)[1] is not None:
            raise ValueError(
                f"--keep-bad copies files, and '{path}' is a page of one with several; save it as "
                "a file of its own, or leave --keep-bad out"
            )


def _tell_of_bad(bad: list[str], folder: Path, category: Path | None) -> None:
    """Copy the bad images into a category, where there is one, and say so."""
    from pydfm.runtime.files import put_into

    word = "1 image that is" if len(bad) == 1 else f"{len(bad)} images that are"
    if category is None:
        say(f"{word} marked as bad: left out; --keep-bad CATEGORY keeps such for `pydfm eval`")
        return
    root, target = folder if folder.is_dir() else folder.parent, category / "test" / "bad"
    for path in bad:
        found = Path(path).stat()
        name = os.path.relpath(path, root)
        put_into(target, name, path, found.st_size, found.st_mtime_ns)
    say(f"{word} marked as bad: in '{target}', for `pydfm eval MODEL {category}`")


def _marked(marks: Path, paths: list[str], folder: Path) -> tuple[list[str], list[str]]:
    """Return those of `paths` that a file marks as good, and those that it marks as bad."""
    # A spreadsheet may have written it again: in another encoding, and with other separators.
    try:
        data = marks.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        text = data.decode(encoding, errors="surrogateescape")
        header = text.partition("\n")[0]
        separator = next((s for s in ",;\t" if s in header), ",")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
    except (OSError, UnicodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"--marks is '{marks}', which cannot be read: {reason}; give the file that a page saved"
        ) from error
    if not rows or not {"path", "mark"} <= set(rows[0]):
        raise ValueError(
            f"--marks is '{marks}', which has no columns 'path' and 'mark'; save it from the page "
            "of `pydfm report`"
        )
    known = {path: path for path in paths}
    # Pages name images as they were given, or within their folder.
    root = folder if folder.is_dir() else folder.parent
    known |= {str(Path(path).resolve()): path for path in paths}
    found: dict[str, str] = {}
    for row in rows:
        name, mark = row["path"], (row["mark"] or "").strip().lower()
        if mark not in ("good", "bad"):
            raise ValueError(
                f"--marks is '{marks}', which marks '{name}' as {mark!r}; a mark is 'good' or 'bad'"
            )
        # A cell that a spreadsheet would take for a formula was written behind an apostrophe.
        names = (name, name.removeprefix("'"))
        tried = [
            each for n in names for each in (n, str(Path(n).resolve()), str((root / n).resolve()))
        ]
        path = next((known[each] for each in tried if each in known), None)
        if path is None:
            raise ValueError(f"--marks has '{name}', which is no image of '{folder}'")
        if found.setdefault(path, mark) != mark:
            raise ValueError(f"--marks is '{marks}', which marks '{name}' as good and as bad")
    good, bad = ([path for path, own in found.items() if own == mark] for mark in ("good", "bad"))
    if not good:
        raise ValueError(f"--marks is '{marks}', which marks no image as good; nothing is added")
    return good, bad


COMMAND = Command("add", add, order=12, optional=RUNTIME)
