"""The command ``pydfm score``: each image is decoded once, and each of its scores computed once."""

import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from pydfm.cli.command import Command
from pydfm.cli.images.exported import export_columns
from pydfm.cli.options import (
    RUNTIME,
    VERDICTS,
    Folder,
    Model,
    MovedBackbone,
    MovedWeights,
    Ray,
    is_export,
    load_without_estimator,
    ray_data_set,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pydfm.conformal.decisions import Decider
    from pydfm.conformal.regions import RegionFinder
    from pydfm.features.transforms import Preprocessing
    from pydfm.features.views import Views
    from pydfm.io.loading import LoadedModel
    from pydfm.model.fitting import FittedDFM
    from pydfm.model.row_scores import RowScores
    from pydfm.reports.coco import RegionFile
    from pydfm.reports.drawing.heatmaps import MapFiles

# As `DFM.batches` yields them.
_Batches: TypeAlias = "Iterator[tuple[Any, NDArray[Any], NDArray[Any] | None]]"


def score(
    model: Model,
    folder: Folder,
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
        typer.Option(
            metavar="DIR",
            help="Folder for overlays on the images, IMAGE.png, on the model's colour scale.",
        ),
    ] = None,
    map_format: Annotated[
        list[str] | None,
        typer.Option(
            metavar="png|npy|tiff",
            help="What --maps writes: the overlay (default), or the map itself in float32; may be "
            "repeated.",
        ),
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file, as COCO's, for boxes and outlines of what is anomalous.",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for masks of the regions, IMAGE.png."),
    ] = None,
    smoothing: Annotated[
        float,
        typer.Option(help="Standard deviation of a Gaussian that smooths maps, in pixels."),
    ] = 0.0,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="anomalous",
            help="End with exit code 1 if an image is anomalous (0: none is; 2: an error).",
        ),
    ] = None,
    use_ray: Ray = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    *,
    alpha: float | None,
    **parameters: Any,
) -> None:
    """Score images: CSV with path, score (larger = more anomalous), p-value and verdict."""
    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.runtime.files import check_output, write_file
    from pydfm.runtime.text import cell

    if fail_on not in (None, "anomalous"):
        raise ValueError(f"--fail-on is {fail_on!r}; it must be 'anomalous'")
    if output is not None:
        check_output(output)
    elif sys.stdout is None:
        raise OSError("standard output is closed; name a file with --output")
    paths = with_pages(list_images(folder))
    wanted = Wanted(maps, tuple(map_format or ()), regions, masks, smoothing)
    wanted.check(folder)
    if is_export(model):
        others = (score_type, fdr, maps, regions, masks, use_ray, weights, backbone)
        if any(one is not None for one in others) or smoothing:
            raise ValueError(
                f"'{model}' is an export, which gives scores, p-values and verdicts; of the "
                "options, leave all out but --output, --alpha, --threads, --max-pixels, "
                "--skip-unreadable and --fail-on"
            )
        columns = export_columns(model, paths, alpha, parameters, to_decide=fail_on is not None)
        _write(columns, paths, output, fail_on)
        return
    loaded = load_without_estimator(model, weights, backbone, parameters)
    if score_type:
        kinds = score_type[0] if len(score_type) == 1 else tuple(score_type)
        loaded = loaded.with_parameters(score_type=kinds)
    if fail_on is not None and loaded.fitted.calibration is None:
        raise ValueError(
            "--fail-on is given, but the model was fitted without calibration and does not decide; "
            "fit with --calibration loo"
        )
    level = loaded.parameters["alpha"] if alpha is None else alpha
    root, chosen = folder if folder.is_dir() else folder.parent, loaded.parameters["score_type"]
    outputs = wanted.open(loaded.fitted, chosen, paths, root, level)
    decider, views = _decider(loaded, alpha, fdr), None if outputs is None else outputs.views
    if use_ray is None:
        batches = loaded.batches(paths, look=views)
    else:
        batches = _ray_batches(loaded, paths, use_ray, views)
    columns = _columns(loaded, len(paths), batches, decider, outputs)
    if "class" in columns:
        columns["class"] = [cell(name) for name in columns["class"]]
    if regions is not None:
        assert outputs is not None
        assert outputs.regions is not None
        write_file(regions, outputs.regions.text().encode())
    _write(columns, paths, output, fail_on)


def _write(
    columns: dict[str, list[str]], paths: list[str], output: Path | None, fail_on: str | None
) -> None:
    """Write the table, and end as `--fail-on` says."""
    from pydfm.runtime.files import write_file
    from pydfm.runtime.text import cell

    table = _csv({"path": [cell(path) for path in paths], **columns})
    if output is None:
        sys.stdout.write(table)
    else:
        write_file(output, table.encode("utf-8", "surrogateescape"))
    if fail_on is None:
        return
    if set(columns["verdict"]) == {"unreadable"}:
        raise ValueError("--fail-on is given, and no image could be read, so that none was judged")
    if "anomalous" in columns["verdict"]:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Wanted:
    """What is asked for beside the table."""

    maps: Path | None
    map_formats: tuple[str, ...]
    regions: Path | None
    masks: Path | None
    smoothing: float

    def check(self, images: Path) -> None:
        """Check, before any work is done, that all of it can be written."""
        from pydfm.reports.drawing.heatmaps import check_folder
        from pydfm.runtime.files import check_output

        if self.map_formats and self.maps is None:
            raise ValueError("--map-format is given without --maps; name a folder with --maps")
        for option, folder in (("--maps", self.maps), ("--masks", self.masks)):
            if folder is not None:
                check_folder(option, folder, images)
        named = [folder.resolve() for folder in (self.maps, self.masks) if folder is not None]
        if len(set(named)) < len(named):
            raise ValueError("--maps and --masks name one folder; name two")
        if self.regions is not None:
            check_output(self.regions)

    def open(
        self, fitted: "FittedDFM", score_type: Any, paths: list[str], root: Path, alpha: float
    ) -> "Outputs | None":
        """Return what writes it, or raise ValueError where the model has no such maps."""
        from pydfm.conformal.calibration import map_range
        from pydfm.conformal.regions import RegionFinder
        from pydfm.features.views import Views
        from pydfm.reports.coco import RegionFile
        from pydfm.reports.drawing.heatmaps import MapFiles
        from pydfm.reports.drawing.scale import ColourScale
        from pydfm.runtime.checks import check_number
        from pydfm.stats.scores import check_score_types

        if self.maps is None and self.regions is None and self.masks is None:
            return None
        kinds = check_score_types(score_type)
        if len(kinds) > 1:
            raise ValueError(
                f"maps and regions are of one score type, and there are {', '.join(kinds)}; name "
                "one with --score-type"
            )
        fitted.model.check_maps(kinds[0])
        assert fitted.spec is not None
        check_number("--smoothing", self.smoothing, 0, max(fitted.spec.preprocessing.size))
        formats = self.map_formats or ("png",)
        finder = scale = None
        if "png" in formats or self.regions is not None or self.masks is not None:
            low, threshold = map_range(fitted, alpha, kinds[0])
            scale = ColourScale(low, threshold)
            finder = RegionFinder.between(low, threshold)
        geometry = fitted.spec.preprocessing
        return Outputs(
            paths,
            geometry,
            Views(geometry),
            self.smoothing,
            finder,
            None if self.maps is None else MapFiles(root, self.maps, scale, formats),
            None if self.masks is None else MapFiles(root, self.masks),
            None if scale is None else RegionFile(root, scale.middle),
        )


@dataclass(frozen=True)
class Outputs:
    """What is written of the map of each image."""

    paths: list[str]
    geometry: "Preprocessing"
    views: "Views"
    smoothing: float
    finder: "RegionFinder | None"
    maps: "MapFiles | None"
    masks: "MapFiles | None"
    regions: "RegionFile | None"

    def add(
        self, places: "Sequence[int]", scored: "RowScores", kind: str, pixels: "NDArray[Any]"
    ) -> None:
        """Write files, and keep regions, of a batch."""
        maps = scored.maps(kind, self.geometry.size, self.smoothing)
        paths, views = [self.paths[i] for i in places], self.views.take(places)
        if self.maps is not None:
            self.maps.write_maps(paths, maps, pixels)
        if self.finder is None:
            return
        for path, own, view in zip(paths, maps, views, strict=True):
            window = self.geometry.window(*view.size)
            if self.regions is not None:
                self.regions.add(path, view.size, self.finder.find(own, window, view.size))
            if self.masks is not None:
                self.masks.write_mask(path, self.finder.mask(own, window, view.size))


def _decider(loaded: "LoadedModel", alpha: float | None, fdr: float | None) -> "Decider | None":
    """Return what decides; None for a model that has no held-out scores."""
    from pydfm.conformal.decisions import Decider
    from pydfm.stats.scores import check_score_types

    if alpha is None and fdr is None and loaded.fitted.calibration is None:
        return None
    if alpha is not None and fdr is not None:
        raise ValueError("alpha and fdr are both given; one of them decides, so pass one")
    (kind, *_) = check_score_types(loaded.parameters["score_type"])
    level = loaded.parameters["alpha"] if alpha is None else alpha
    return Decider.of(loaded.fitted, kind, alpha=level, fdr=fdr)


def _columns(
    loaded: "LoadedModel",
    count: int,
    batches: "_Batches",
    decider: "Decider | None",
    outputs: "Outputs | None" = None,
) -> dict[str, list[str]]:
    """Return the texts of each column of the table, and write the `outputs` of each image.

    Of several score types the first decides. One batch at a time is in memory.
    """
    import numpy as np

    from pydfm.runtime.threads import resolve_threads
    from pydfm.stats.scores import check_score_types

    fitted, chosen = loaded.fitted, loaded.parameters["score_type"]
    n_threads, kinds = resolve_threads(loaded.parameters["n_threads"]), check_score_types(chosen)
    fitted.model.check_scores(kinds)
    scores = np.full((len(kinds), count), np.nan, dtype=np.float32)
    measured = np.full((3, count), np.nan)
    classes = np.full(count, "", dtype=object)
    read = np.zeros(count, dtype=bool)
    names = None if fitted.model.classes is None else np.array(fitted.model.classes)
    for places, features, pixels in batches:
        # Each of the following takes from it what the others have computed.
        scored = fitted.score(features, n_threads)
        read[places] = True
        if decider is not None:
            measured[:, places] = decider.measure(scored)
        scores[:, places] = scored.scores(kinds)
        if names is not None:
            classes[places] = names[scored.nearest(kinds[0])]
        if outputs is not None:
            assert pixels is not None
            outputs.add(places, scored, kinds[0], pixels)
    titles = ["score"] if isinstance(chosen, str) else kinds
    columns = {
        title: [f"{value:.9g}" for value in own] for title, own in zip(titles, scores, strict=True)
    }
    if decider is not None:
        final = decider.judge(measured)
        columns["p_value"] = [f"{p:.6g}" for p in final.p_values]
        columns["verdict"] = [VERDICTS[int(verdict)] for verdict in final.verdicts]
    else:
        columns["p_value"] = ["" if known else "nan" for known in read]
        columns["verdict"] = ["" if known else VERDICTS[0] for known in read]
    if names is not None:
        columns["class"] = [str(value) for value in classes]
    return columns


def _ray_batches(
    loaded: "LoadedModel", paths: list[str], n_workers: int, views: "Views | None"
) -> "_Batches":
    """Yield what `DFM.batches` yields, with features from the workers of a Ray cluster."""
    import numpy as np

    from pydfm.estimator import estimator_of
    from pydfm.features.transforms import stack
    from pydfm.parallel.ray import extract

    dfm = estimator_of(loaded)
    data = ray_data_set([{"path": path} for path in paths], n_workers)
    features = extract(data, dfm, batch_size=dfm.batch_size, n_workers=n_workers)
    found = np.flatnonzero(np.isfinite(features).all(axis=1))
    assert dfm.feature_spec_ is not None
    convert = dfm.feature_spec_.preprocessing.from_pil
    for first in range(0, len(found), dfm.batch_size):
        places = found[first : first + dfm.batch_size]
        pixels = None
        if views is not None:  # they stayed with the workers
            pixels = stack([_read(paths[i], i, convert, views, dfm.max_pixels) for i in places])
        yield places, features[places], pixels


def _read(
    path: str, index: int, convert: "Callable[[Any], Any]", views: "Views", most: int | None
) -> "NDArray[Any]":
    """Return the pixels of an image, whose view is taken too."""
    from pydfm.features.inputs.images import read_image

    def look(image: Any) -> Any:
        pixels = convert(image)
        views(index, image)
        return pixels

    pixels: NDArray[Any] = read_image(path, look, most)
    return pixels


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
