"""The command pydfm fit."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pydfm.cli_options import BatchSize, Device, ScoreType, Skip, Threads, read_weights


def fit(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Normal pictures, searched in depth.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write.")],
    classes: Annotated[
        bool, typer.Option("--classes", help="The subfolders of FOLDER are classes.")
    ] = False,
    n_components: Annotated[
        str, typer.Option(help="A share of variance such as 0.97, a number such as 50, or all.")
    ] = "0.97",
    score_type: Annotated[ScoreType, typer.Option(help="What `score` gives.")] = "fre",
    covariance: Annotated[
        Literal["class", "tied", "global"],
        typer.Option(help="Of classes: one each, one for all about their means, or no classes."),
    ] = "class",
    density: Annotated[
        Literal["gaussian", "gmm"], typer.Option(help="One Gaussian for a class, or a mixture.")
    ] = "gaussian",
    regularization: Annotated[
        str, typer.Option(help="Of variances: none, shrinkage, or a floor such as 1e-3.")
    ] = "none",
    backbone: Annotated[
        str,
        typer.Option(help="resnet18, resnet34, resnet50, wide_resnet50_2 or a TorchScript file."),
    ] = "resnet18",
    weights: Annotated[
        str, typer.Option(help="imagenet (downloaded once), a file, or none for random ones.")
    ] = "imagenet",
    layer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A layer to take features from; may be repeated."),
    ] = None,
    combine: Annotated[
        Literal["sum", "max"], typer.Option(help="How scores of several layers make one.")
    ] = "sum",
    spatial: Annotated[
        Literal["flatten", "mean", "patch"],
        typer.Option(help="A layer's map as a row, its mean, or a row for each position."),
    ] = "flatten",
    image_score: Annotated[
        Literal["calibrated", "top", "max", "mean", "sum"] | None,
        typer.Option(
            help="How positions make the score of a picture; default: calibrated, of patches top."
        ),
    ] = None,
    top_share: Annotated[
        float, typer.Option(help="Share of the positions that calibrated and top average.")
    ] = 0.1,
    pool: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Kernel of the average pooling; repeated, one for each layer."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side that pictures are resized to; default: 256, cut 224.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the network.")
    ] = "float32",
    calibration: Annotated[
        Literal["loo", "kfold", "split", "none"],
        typer.Option(help="How pictures are scored by a model without them."),
    ] = "loo",
    alpha: Annotated[
        float, typer.Option(help="Share of good pictures that may be called anomalous.")
    ] = 0.01,
    max_memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="Of the statistics, such as 2GB.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to go on from if the fit is stopped or killed."),
    ] = None,
    use_ray: Annotated[
        int | None,
        typer.Option("--ray", metavar="WORKERS", help="Workers on the Ray cluster there is."),
    ] = None,
    random_state: Annotated[
        int, typer.Option(help="Seed of random weights, mixtures and samples.")
    ] = 0,
    device: Device = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    skip_unreadable: Skip = False,
) -> None:
    """Learn what normal pictures look like."""
    from pydfm.datasets import is_category
    from pydfm.dfm import DFM
    from pydfm.files import check_output

    if is_category(folder):
        raise ValueError(
            f"'{folder}' holds train/good and test, normal and defective pictures together; fit "
            f"on the normal ones: {folder / 'train' / 'good'}"
        )
    check_output(output)
    dfm = DFM(
        _n_components(n_components),
        score_type,
        covariance=covariance,
        density=density,
        regularization=_regularization(regularization),
        backbone=backbone,
        weights=read_weights(weights),
        layers=tuple(layer) if layer else None,
        combine=combine,
        spatial=spatial,
        image_score=image_score,
        top_share=top_share,
        pool=pool[0] if pool is not None and len(pool) == 1 else pool,
        image_size=image_size,
        precision=precision,
        calibration=None if calibration == "none" else calibration,
        alpha=alpha,
        max_memory=max_memory,
        random_state=random_state,
        device=device,
        batch_size=batch_size,
        n_threads=threads,
        on_error="skip" if skip_unreadable else "raise",
        verbose=True,
    )
    if use_ray is not None:
        if checkpoint is not None:
            raise ValueError("--checkpoint and --ray are both given; Ray makes lost batches again")
        from pydfm.cli_ray import fit_on_cluster

        dfm = fit_on_cluster(dfm, folder, classes, use_ray)
    else:
        dfm.fit(folder, labels="folders" if classes else None, checkpoint=checkpoint)
    dfm.save(output)
    if checkpoint is not None:
        from pydfm.checkpoint import delete_checkpoint

        delete_checkpoint(checkpoint)
    typer.echo(f"{output}: {dfm.model_.summary()}; next: pydfm score {output} FOLDER")


def _n_components(text: str) -> float | int | None:
    if text.lower() == "all":
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise ValueError(
                f"--n-components is {text!r}; it must be a share of variance between 0 and 1, a "
                "number of components, or all"
            ) from None


def _regularization(text: str) -> str | float | None:
    if text in ("none", "shrinkage"):
        return None if text == "none" else text
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f"--regularization is {text!r}; it must be none, shrinkage, or a floor of variances "
            "as a share of the largest"
        ) from None
