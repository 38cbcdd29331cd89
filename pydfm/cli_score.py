"""The commands pydfm score | eval."""

import csv
import io
import math
import sys
from collections.abc import Callable
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
    tell,
)

if TYPE_CHECKING:
    from pydfm.dfm import DFM

_VERDICTS = {1: "ok", -1: "anomalous", 0: "unreadable"}


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
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of good pictures that may be called anomalous; default: 0.01."),
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(help="In place of it: share of good ones among those called anomalous."),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for heatmaps over the pictures, PICTURE.png."),
    ] = None,
    smoothing: Annotated[
        float, typer.Option(help="Of the heatmaps: a Gaussian's standard deviation in pixels.")
    ] = 0.0,
    use_ray: Annotated[
        int | None,
        typer.Option("--ray", metavar="WORKERS", help="Workers on the Ray cluster there is."),
    ] = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    threads: Threads = None,
    skip_unreadable: Skip = False,
) -> None:
    """Score pictures: CSV with path, score (larger = more anomalous), p-value and verdict."""
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
    if maps is not None:
        dfm.model_.check_maps(_one_type(dfm))
    alpha = _possible_alpha(dfm, alpha, fdr)
    X: Any = paths
    read = np.ones(len(paths), dtype=bool)
    if use_ray is not None:
        from pydfm.cli_ray import extract_on_cluster

        X = extract_on_cluster(dfm, paths, use_ray)
        read = np.isfinite(X).all(axis=1)
    several = maps is not None or dfm.model_.classes is not None
    if use_ray is None and (several or not isinstance(dfm.score_type, str)):
        # Once through the network; of all pictures, since heatmaps have one scale.
        X = dfm.extract(paths)
        read = np.isfinite(X).all(axis=1)
    columns = _columns(dfm, X, read, alpha, fdr)
    if maps is not None:
        from pydfm.heatmaps import write_heatmaps

        write_heatmaps(dfm, paths, X, read, folder, maps, smoothing)
    table = _csv({"path": paths, **columns})
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


def _possible_alpha(dfm: "DFM", alpha: float | None, fdr: float | None) -> float | None:
    """Return the level of the verdicts; where the model's own is too low, the lowest there is."""
    if dfm.calibration_ is None or alpha is not None or fdr is not None:
        return alpha
    least = dfm.smallest_alpha_
    if least <= dfm.alpha:
        return None
    alpha = math.ceil(least * 1e4) / 1e4
    tell(
        f"warning: verdicts are at alpha = {alpha:.4g}, the smallest that is possible with "
        f"{round(1 / least) - 1} normal pictures"
    )
    return alpha


def _columns(
    dfm: "DFM", X: Any, read: Any, alpha: float | None, fdr: float | None
) -> dict[str, list[str]]:
    """Texts of each column of the table; of several score types the first decides."""
    import numpy as np

    def column(values: Any, text: Callable[[Any], str], missing: str) -> list[str]:
        texts = np.full(len(read), missing, dtype=object)
        texts[read] = [text(value) for value in values]
        return [str(value) for value in texts]

    readable = X if read.all() else X[read]
    columns: dict[str, list[str]] = {}
    judged = dfm.calibration_ is not None or alpha is not None or fdr is not None
    empty = len(read) > 0 and not read.any()
    found = dfm.assess(readable, alpha=alpha, fdr=fdr) if judged and not empty else None
    kinds = dfm.score_type
    if not isinstance(kinds, str):
        scores: Any = [] if empty else dfm.score(readable)
        for i, kind in enumerate(kinds):
            columns[kind] = column([] if empty else scores[i], _number, "nan")
    else:
        plain: Any = [] if empty else found.scores if found is not None else dfm.score(readable)
        columns["score"] = column(plain, _number, "nan")
    p: Any = [] if found is None else found.p_values
    verdicts: Any = [] if found is None else found.verdicts
    if not judged:
        p = verdicts = [None] * int(read.sum())
    columns["p_value"] = column(p, lambda v: "" if v is None else f"{v:.6g}", "nan")
    columns["verdict"] = column(verdicts, _verdict, _VERDICTS[0])
    if dfm.model_.classes is not None:
        classes: Any = [] if empty else dfm.predict_class(readable)
        columns["class"] = column(classes, str, "")
    return columns


def _verdict(value: int | None) -> str:
    return "" if value is None else _VERDICTS[int(value)]


def _number(value: float) -> str:
    return f"{value:.9g}"


def _csv(columns: dict[str, list[str]]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return table.getvalue()
