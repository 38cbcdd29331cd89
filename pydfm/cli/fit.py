"""The command ``pydfm fit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import Ray, ray_data_set

if TYPE_CHECKING:
    from pydfm.estimator import DFM


def fit(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Normal images; subfolders are searched too.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write.")],
    classes: Annotated[
        bool, typer.Option("--classes", help="The subfolders of FOLDER are classes.")
    ] = False,
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
    from pydfm.runtime.files import check_output

    if is_category(folder):
        raise ValueError(
            f"'{folder}' contains train/good and test, normal and defective images together; fit "
            f"on the normal ones: {folder / 'train' / 'good'}"
        )
    check_output(output)
    dfm = DFM(**parameters, verbose=True)
    if use_ray is None:
        dfm.fit(folder, labels="folders" if classes else None, checkpoint=checkpoint)
    elif checkpoint is None:
        dfm = _fit_on_ray(dfm, folder, classes, use_ray)
    else:
        raise ValueError(
            "--checkpoint and --ray are both given; Ray repeats lost batches by itself, so leave "
            "out --checkpoint"
        )
    dfm.save(output)
    if checkpoint is not None:
        from pydfm.features.cache import delete_checkpoint

        delete_checkpoint(checkpoint)
    typer.echo(f"{output}: {dfm.model_.summary()}; next: pydfm score {output} FOLDER")


def _fit_on_ray(dfm: "DFM", folder: Path, classes: bool, n_workers: int) -> "DFM":
    from pydfm.features.images import list_images
    from pydfm.features.labels import RowLabels
    from pydfm.parallel.ray import fit

    paths = list_images(folder)
    items: list[dict[str, Any]] = [{"path": path} for path in paths]
    if classes:
        labels = RowLabels.of_folders(folder, paths).take(slice(0, len(paths)))
        items = [{"path": p, "label": label} for p, label in zip(paths, labels, strict=True)]
    return fit(
        ray_data_set(items, n_workers),
        dfm,
        label="label" if classes else None,
        batch_size=dfm.batch_size,
        n_workers=n_workers,
    )


COMMAND = Command("fit", fit, order=10, roles=("features", "model", "decision", "runtime"))
