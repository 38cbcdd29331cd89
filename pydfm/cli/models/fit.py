"""The command ``pydfm fit``."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import Fdr, Ray, parse_groups, ray_data_set, say
from pydfm.runtime.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydfm.estimator import DFM


def fit(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Normal images; subfolders are searched too.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model file to write.")
    ] = None,
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
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Leave out images that are unlike the others, and list them."),
    ] = False,
    fdr: Fdr = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --clean: list what would be left out; write nothing."),
    ] = False,
    keep: Annotated[
        bool | None,
        typer.Option(
            "--keep/--slim",
            help="Keep in the file what images can be added to and forgotten from, or not; "
            "default: where it takes no more than the model.",
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
    rate = _clean_rate(clean, fdr, dry_run=dry_run, on_ray=use_ray is not None)
    if output is not None:
        check_output(output)
    elif not dry_run:
        raise ValueError("--output is missing; name the model file to write, -o MODEL")
    dfm = DFM(**parameters, verbose=True)
    parts = parse_groups(groups)
    if use_ray is None:
        labels = "folders" if classes else None
        with warnings.catch_warnings():
            # All of them are listed below.
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ images are unlike the others")
            dfm.fit(folder, labels=labels, groups=parts, checkpoint=checkpoint, clean=rate)
        for name in dfm.left_out_:
            word = "would be left out" if dry_run else "left out"
            typer.echo(printable(f"pydfm: {word}: {name}"), err=True)
    elif checkpoint is None:
        dfm = _fit_on_ray(dfm, folder, classes, parts, use_ray)
    else:
        raise ValueError(
            "--checkpoint and --ray are both given; Ray repeats lost batches by itself, so leave "
            "out --checkpoint"
        )
    if dry_run:
        count = len(dfm.left_out_)
        typer.echo(
            f"{count} of {dfm.n_samples_ + count} images would be left out; nothing is written"
        )
        return
    assert output is not None
    dfm.save(output, keep=keep)
    if checkpoint is not None:
        from pydfm.features.cache import delete_checkpoint

        delete_checkpoint(checkpoint)
    # A model file does not choose whose code runs.
    passed = f" --backbone {dfm.backbone}" if family_of(dfm.backbone).runs_code else ""
    assert dfm.feature_spec_ is not None
    say(f"{dfm.feature_spec_.summary()} (preset {dfm.preset})")
    say(f"{output}: {dfm.model_.summary()}; next: pydfm score {output} FOLDER{passed}")


def _clean_rate(clean: bool, fdr: float | None, *, dry_run: bool, on_ray: bool) -> float | None:
    """Return the false discovery rate at which images are left out, or None."""
    from pydfm.conformal.checks.outliers import FDR

    if not clean:
        if fdr is not None or dry_run:
            raise ValueError("--fdr and --dry-run are for --clean; pass it, or leave them out")
        return None
    if on_ray:
        raise ValueError("--clean and --ray are both given; clean the folder first, without --ray")
    return FDR if fdr is None else fdr


def _fit_on_ray(
    dfm: "DFM",
    folder: Path,
    classes: bool,
    groups: "str | Callable[[str], str] | None",
    n_workers: int,
) -> "DFM":
    from pydfm.features.inputs.images import list_images
    from pydfm.features.inputs.labels import RowLabels
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
