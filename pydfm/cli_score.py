"""The commands pydfm score | eval."""

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli_options import (
    BatchSize,
    Device,
    Model,
    MovedBackbone,
    MovedWeights,
    ScoreType,
    Skip,
    Threads,
    load_model,
)

if TYPE_CHECKING:
    from pydfm.dfm import DFM


def score(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, or one picture.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file; default: standard output.")
    ] = None,
    score_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="In place of the model's; repeated, a column for each."),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for heatmaps over the pictures, PICTURE.png."),
    ] = None,
    smoothing: Annotated[
        float, typer.Option(help="Of the heatmaps: a Gaussian's standard deviation in pixels.")
    ] = 0.0,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    skip_unreadable: Skip = False,
) -> None:
    """Score pictures: CSV with path and score, larger = more anomalous, and class if there are."""
    import numpy as np

    from pydfm.files import check_output, write_file
    from pydfm.images import list_images

    if output is not None:
        check_output(output)
    elif sys.stdout is None:
        raise OSError("standard output is closed; name a file with --output")
    paths = list_images(folder)
    if maps is not None:
        from pydfm.heatmaps import check_folder

        check_folder(maps, folder)
    dfm = load_model(model, weights, backbone, device, batch_size, threads, skip_unreadable)
    if score_type:
        dfm.set_params(score_type=score_type[0] if len(score_type) == 1 else tuple(score_type))
    if maps is None and dfm.model_.classes is None:
        scores, classes = dfm.score(paths), None
    else:
        # Once through the network; of all pictures, since heatmaps have one scale.
        if maps is not None:
            dfm.model_.check_maps(_one_type(dfm))
        features = dfm.extract(paths)
        read = np.isfinite(features).all(axis=1)
        scores, classes = _scores(dfm, features, read)
        if maps is not None:
            from pydfm.heatmaps import write_heatmaps

            write_heatmaps(dfm, paths, features, read, folder, maps, smoothing)
    table = _csv(paths, dfm.score_type, scores, classes)
    if output is None:
        sys.stdout.write(table)
    else:
        write_file(output, table.encode("utf-8", "surrogateescape"))


def evaluate_category(
    model: Model,
    category: Annotated[
        Path,
        typer.Argument(metavar="CATEGORY", help="A folder with test/good and test/DEFECT."),
    ],
    score_type: Annotated[ScoreType | None, typer.Option(help="In place of the model's.")] = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    skip_unreadable: Skip = False,
) -> None:
    """Measure a model on a category in MVTec AD's layout: pictures, and pixels by its masks."""
    import numpy as np

    from pydfm.benchmark.category import measure_category
    from pydfm.datasets import load_category

    test = load_category(category)
    dfm = load_model(model, weights, backbone, device, batch_size, threads, skip_unreadable)
    metrics = measure_category(dfm, test, score_type)
    kinds = np.asarray(test.defects)[metrics.read]
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in dict.fromkeys(test.defects))
    image, pixel = metrics.image, metrics.pixel
    typer.echo(f"category     {test.name} ({counts})")
    typer.echo(f"image AUROC  {image['auroc']:.4f}")
    typer.echo(f"AUPR         {image['aupr']:.4f}")
    typer.echo(f"F1-max       {image['f1_max']:.4f} at score >= {image['threshold']:.6g}")
    typer.echo(f"FPR95        {image['fpr95']:.4f}")
    if not pixel:
        typer.echo(f"pixels       not measured: {metrics.no_pixels}")
        return
    missing = len(test.without_mask)
    left_out = f" (without {missing} defective pictures that have no mask)" if missing else ""
    typer.echo(f"pixel AUROC  {pixel['pixel_auroc']:.4f}{left_out}")
    typer.echo(f"AUPRO        {pixel['aupro']:.4f}")


def _one_type(dfm: "DFM") -> str:
    if isinstance(dfm.score_type, str):
        return dfm.score_type
    raise ValueError(
        f"--maps are of one type, and there are {', '.join(dfm.score_type)}; name one with "
        "--score-type"
    )


def _scores(dfm: "DFM", features: Any, read: Any) -> tuple[Any, Any]:
    """Scores of the pictures that could be read, and their classes where the model has any."""
    import numpy as np

    several = () if isinstance(dfm.score_type, str) else (len(dfm.score_type),)
    scores = np.full((*several, len(read)), np.nan, dtype=np.float32)
    classes = None if dfm.model_.classes is None else np.full(len(read), "", dtype=object)
    if read.any():
        scores[..., read] = dfm.score(features[read])
        if classes is not None:
            classes[read] = dfm.predict_class(features[read])
    return scores, classes


def _csv(paths: list[str], score_type: Any, scores: Any, classes: Any) -> str:
    one = isinstance(score_type, str)
    names = ["path", *(["score"] if one else score_type)]
    columns = [paths, *([f"{value:.9g}" for value in row] for row in ([scores] if one else scores))]
    if classes is not None:
        names.append("class")
        columns.append(classes)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(zip(*columns, strict=True))
    return table.getvalue()
