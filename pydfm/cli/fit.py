"""The command ``pydfm fit``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import Ray, ray_data_set

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydfm.estimator import DFM


def fit(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Normal images; subfolders are searched too.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write.")],
    classes: Annotated[
        bool, typer.Option("--classes", help="The subfolders of FOLDER are classes.")
    ] = False,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="folders|REGEX",
            help="What belongs together, such as the shots of a part: the images of a folder, or "
            "those whose paths have the same text in the first parentheses of a regular "
            "expression, such as 'part([0-9]+)'.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder that keeps features, from which a fit that was stopped continues.",
        ),
    ] = None,
    use_ray: Ray = None,
    **parameters: Any,
) -> None:
    """Learn what normal images look like."""
    from pydfm.datasets import is_category
    from pydfm.estimator import DFM
    from pydfm.features.backbones import family_of
    from pydfm.runtime.files import check_output

    if is_category(folder):
        raise ValueError(
            f"'{folder}' contains train/good and test, normal and defective images together; fit "
            f"on the normal ones: {folder / 'train' / 'good'}"
        )
    check_output(output)
    dfm = DFM(**parameters, verbose=True)
    parts = None if groups is None else _parse_groups(groups)
    if use_ray is None:
        labels = "folders" if classes else None
        dfm.fit(folder, labels=labels, groups=parts, checkpoint=checkpoint)
    elif checkpoint is None:
        dfm = _fit_on_ray(dfm, folder, classes, parts, use_ray)
    else:
        raise ValueError(
            "--checkpoint and --ray are both given; Ray repeats lost batches by itself, so leave "
            "out --checkpoint"
        )
    dfm.save(output)
    if checkpoint is not None:
        from pydfm.features.cache import delete_checkpoint

        delete_checkpoint(checkpoint)
    # A model file does not choose whose code runs.
    passed = f" --backbone {dfm.backbone}" if family_of(dfm.backbone).runs_code else ""
    assert dfm.feature_spec_ is not None
    typer.echo(f"{dfm.feature_spec_.summary()} (preset {dfm.preset})")
    typer.echo(f"{output}: {dfm.model_.summary()}; next: pydfm score {output} FOLDER{passed}")


def _parse_groups(text: str) -> "str | Callable[[str], str]":
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


def _fit_on_ray(
    dfm: "DFM",
    folder: Path,
    classes: bool,
    groups: "str | Callable[[str], str] | None",
    n_workers: int,
) -> "DFM":
    from pydfm.features.images import list_images
    from pydfm.features.labels import RowLabels
    from pydfm.features.pictures.pages import with_pages
    from pydfm.parallel.ray import fit

    paths = with_pages(list_images(folder))
    items: list[dict[str, Any]] = [{"path": path} for path in paths]
    columns: dict[str, RowLabels] = {}
    if classes:
        columns["label"] = RowLabels.of_folders(folder, paths)
    if groups is not None:
        columns["group"] = RowLabels.of_groups(groups, paths)
    for name, own in columns.items():
        for item, value in zip(items, own.take(slice(0, len(paths))), strict=True):
            item[name] = value
    return fit(
        ray_data_set(items, n_workers),
        dfm,
        label="label" if classes else None,
        group=None if groups is None else "group",
        batch_size=dfm.batch_size,
        n_workers=n_workers,
    )


COMMAND = Command("fit", fit, order=10, roles=("features", "model", "decision", "runtime"))
