"""The commands pydfm score | eval."""

import csv
import io
import math
import sys
from collections.abc import Iterator
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
    from pydfm.heatmaps import Heatmaps

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
    if maps is None:
        columns = _columns(dfm, paths, use_ray, alpha, fdr, None)
    else:
        from pydfm.heatmaps import Heatmaps

        with Heatmaps(dfm, folder, maps, smoothing) as heatmaps:
            columns = _columns(dfm, paths, use_ray, alpha, fdr, heatmaps)
            heatmaps.write()
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
    dfm: "DFM",
    paths: list[str],
    n_workers: int | None,
    alpha: float | None,
    fdr: float | None,
    heatmaps: "Heatmaps | None",
) -> dict[str, list[str]]:
    """Texts of each column of the table; of several score types the first decides.

    The features of a batch are gone when the next one comes.
    """
    import numpy as np

    from pydfm.deciding import make_assessment

    dfm._ready_scores(dfm.score_type)
    judged = dfm.calibration_ is not None or alpha is not None or fdr is not None
    assess = dfm._assessor(alpha, fdr, None) if judged else None
    kinds = (dfm.score_type,) if isinstance(dfm.score_type, str) else tuple(dfm.score_type)
    scores = np.full((len(kinds), len(paths)), np.nan, dtype=np.float32)
    found = np.full((3, len(paths)), np.nan)
    classes = np.full(len(paths), "", dtype=object)
    read = np.zeros(len(paths), dtype=bool)
    for places, features in _batches(dfm, paths, n_workers):
        read[places] = True
        if assess is not None:
            found[:, places] = assess(features, None)
        if assess is None or len(kinds) > 1:
            scores[:, places] = dfm.score(features, score_type=kinds)
        else:
            scores[0, places] = found[0, places]
        if dfm.model_.classes is not None:
            classes[places] = dfm.predict_class(features)
        if heatmaps is not None:
            heatmaps.add([paths[i] for i in places], features)
    names = ["score"] if isinstance(dfm.score_type, str) else kinds
    columns = {
        name: [_number(value) for value in own] for name, own in zip(names, scores, strict=True)
    }
    final = make_assessment(found, fdr)
    p_values = [f"{p:.6g}" for p in final.p_values]
    verdicts = [_VERDICTS[int(verdict)] for verdict in final.verdicts]
    if not judged:
        p_values = ["" if known else "nan" for known in read]
        verdicts = ["" if known else _VERDICTS[0] for known in read]
    columns |= {"p_value": p_values, "verdict": verdicts}
    if dfm.model_.classes is not None:
        columns["class"] = [str(value) for value in classes]
    return columns


def _batches(dfm: "DFM", paths: list[str], n_workers: int | None) -> Iterator[tuple[Any, Any]]:
    """Yield the places of pictures that can be read, and their features."""
    if n_workers is None:
        yield from dfm._extracted_batches(paths)
        return
    import numpy as np

    from pydfm.cli_ray import extract_on_cluster

    features = extract_on_cluster(dfm, paths, n_workers)
    places = np.flatnonzero(np.isfinite(features).all(axis=1))
    for first in range(0, len(places), dfm.batch_size):
        part = places[first : first + dfm.batch_size]
        yield part, features[part]


def _number(value: float) -> str:
    return f"{value:.9g}"


def _csv(columns: dict[str, list[str]]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return table.getvalue()
