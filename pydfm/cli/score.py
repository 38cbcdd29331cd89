"""The command ``pydfm score``: each image is decoded once, and each of its scores computed once."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    Model,
    MovedBackbone,
    MovedWeights,
    Ray,
    load_model,
    printable,
    ray_data_set,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pydfm.conformal.decisions import Decider
    from pydfm.estimator import DFM
    from pydfm.report.heatmaps import Heatmaps

_VERDICTS = {1: "ok", -1: "anomalous", 0: "unreadable"}


def score(
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, or one image.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file; default: standard output.")
    ] = None,
    score_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="In place of the model's; repeated, a column for each."),
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            help="In place of --alpha: share of normal images among those that are called "
            "anomalous."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for heatmaps over the images, IMAGE.png."),
    ] = None,
    smoothing: Annotated[
        float,
        typer.Option(help="Standard deviation of a Gaussian that smooths heatmaps, in pixels."),
    ] = 0.0,
    use_ray: Ray = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    *,
    alpha: float | None,
    **parameters: Any,
) -> None:
    """Score images: CSV with path, score (larger = more anomalous), p-value and verdict."""
    from pydfm.features.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.runtime.files import check_output, write_file

    if output is not None:
        check_output(output)
    elif sys.stdout is None:
        raise OSError("standard output is closed; name a file with --output")
    paths = with_pages(list_images(folder))
    if maps is not None:
        from pydfm.report.heatmaps import check_folder

        check_folder(maps, folder)
    dfm = load_model(model, weights, backbone, parameters)
    if score_type:
        dfm.set_params(score_type=score_type[0] if len(score_type) == 1 else tuple(score_type))
    if maps is not None:
        _check_maps(dfm, smoothing)
    decider = _decider(dfm, alpha, fdr)
    if maps is None:
        columns = _columns(dfm, paths, use_ray, decider)
    else:
        from pydfm.report.heatmaps import Heatmaps

        with Heatmaps(folder if folder.is_dir() else folder.parent, maps) as heatmaps:
            columns = _columns(dfm, paths, use_ray, decider, heatmaps, smoothing)
            heatmaps.write()
    if "class" in columns:
        columns["class"] = [_cell(name) for name in columns["class"]]
    table = _csv({"path": [_cell(path) for path in paths], **columns})
    if output is None:
        sys.stdout.write(table)
    else:
        write_file(output, table.encode("utf-8", "surrogateescape"))


def _check_maps(dfm: "DFM", smoothing: float) -> None:
    """Raise ValueError unless there are heatmaps of the model's score type."""
    from pydfm.runtime.checks import check_number
    from pydfm.stats.scores import check_score_types

    kinds = check_score_types(dfm.score_type)
    if len(kinds) > 1:
        raise ValueError(
            f"--maps are of one score type, and there are {', '.join(kinds)}; name one with "
            "--score-type"
        )
    dfm.model_.check_maps(kinds[0])
    assert dfm.feature_spec_ is not None
    check_number("--smoothing", smoothing, 0, max(dfm.feature_spec_.preprocessing.size))


def _decider(dfm: "DFM", alpha: float | None, fdr: float | None) -> "Decider | None":
    """Return what decides; None for a model that has no held-out scores."""
    if alpha is None and fdr is None and dfm.calibration_ is None:
        return None
    return dfm.decider(alpha=alpha, fdr=fdr)


def _columns(
    dfm: "DFM",
    paths: list[str],
    n_workers: int | None,
    decider: "Decider | None",
    heatmaps: "Heatmaps | None" = None,
    smoothing: float = 0.0,
) -> dict[str, list[str]]:
    """Return the texts of each column of the table, and add the maps of images to `heatmaps`.

    Of several score types the first decides. One batch at a time is in memory.
    """
    import numpy as np

    from pydfm.runtime.threads import resolve_threads
    from pydfm.stats.scores import check_score_types

    fitted, n_threads = dfm.fitted_, resolve_threads(dfm.n_threads)
    kinds = check_score_types(dfm.score_type)
    fitted.model.check_scores(kinds)
    scores = np.full((len(kinds), len(paths)), np.nan, dtype=np.float32)
    measured = np.full((3, len(paths)), np.nan)
    classes = np.full(len(paths), "", dtype=object)
    read = np.zeros(len(paths), dtype=bool)
    batches = _batches(dfm, paths, n_workers, with_pixels=heatmaps is not None)
    for places, features, pixels in batches:
        # Each of the following takes from it what the others have computed.
        scored = fitted.score(features, n_threads)
        read[places] = True
        if decider is not None:
            measured[:, places] = decider.measure(scored)
        scores[:, places] = scored.scores(kinds)
        if fitted.model.classes is not None:
            classes[places] = dfm.classes_[scored.nearest(kinds[0])]
        if heatmaps is not None:
            assert fitted.spec is not None
            assert pixels is not None
            maps = scored.maps(kinds[0], fitted.spec.preprocessing.size, smoothing)
            heatmaps.add([paths[i] for i in places], maps, pixels)
    names = ["score"] if isinstance(dfm.score_type, str) else kinds
    columns = {
        name: [f"{value:.9g}" for value in own] for name, own in zip(names, scores, strict=True)
    }
    if decider is not None:
        final = decider.judge(measured)
        columns["p_value"] = [f"{p:.6g}" for p in final.p_values]
        columns["verdict"] = [_VERDICTS[int(verdict)] for verdict in final.verdicts]
    else:
        columns["p_value"] = ["" if known else "nan" for known in read]
        columns["verdict"] = ["" if known else _VERDICTS[0] for known in read]
    if fitted.model.classes is not None:
        columns["class"] = [str(value) for value in classes]
    return columns


def _batches(
    dfm: "DFM", paths: list[str], n_workers: int | None, *, with_pixels: bool
) -> "Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]":
    """Yield places, features and pixels of the images that can be read; see `DFM.batches`."""
    if n_workers is None:
        yield from dfm.batches(paths)
        return
    import numpy as np

    from pydfm.features.images import read_image
    from pydfm.features.transforms import stack
    from pydfm.parallel.ray import extract

    data = ray_data_set([{"path": path} for path in paths], n_workers)
    features = extract(data, dfm, batch_size=dfm.batch_size, n_workers=n_workers)
    found = np.flatnonzero(np.isfinite(features).all(axis=1))
    assert dfm.feature_spec_ is not None
    convert = dfm.feature_spec_.preprocessing.from_pil
    for first in range(0, len(found), dfm.batch_size):
        places = found[first : first + dfm.batch_size]
        pixels = None
        if with_pixels:  # they stayed with the workers
            pixels = stack([read_image(paths[i], convert, dfm.max_pixels) for i in places])
        yield places, features[places], pixels


def _cell(text: str) -> str:
    """Return `text` as a cell that is one line, steers no terminal, and is no formula."""
    return printable("'" + text if text.startswith(("=", "+", "-", "@")) else text)


def _csv(columns: dict[str, list[str]]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return table.getvalue()


COMMAND = Command(
    "score",
    score,
    order=20,
    optional={
        **RUNTIME,
        "alpha": "False-alarm rate: share of normal images that may be called anomalous; "
        "default: the model's.",
    },
)
