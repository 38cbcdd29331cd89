"""Out-of-distribution detection: how well each layer and score type tells data sets apart."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.benchmark.configuration import Configuration
from pydfm.benchmark.record import Record, digest
from pydfm.benchmark.table import figure, markdown
from pydfm.datasets.measure import extract_read
from pydfm.estimator import DFM
from pydfm.features.inputs.images import list_images
from pydfm.metrics import evaluate
from pydfm.parameters import PARAMETERS
from pydfm.stats.scores import SCORES

_METRICS: Final = ("auroc", "aupr_in", "aupr", "fpr95")


@dataclass(frozen=True)
class DataSet:
    """Images, or features, with labels where there are any.

    Attributes
    ----------
    name : str
    images : list of paths, array of images (N, 3, H, W), or of features (N, D)
    labels : ndarray of shape (N,) or None
    """

    name: str
    images: Any
    labels: NDArray[Any] | None


def read_data_set(source: str) -> DataSet:
    """Read a folder, or arrays of an npz file.

    Parameters
    ----------
    source : str
        - A folder of images; where all are in subfolders, the topmost of these is the label.
        - ``FILE.npz#NAME``: the array ``NAME_x`` and, if there is one, ``NAME_y`` (without
          ``#NAME``, ``x`` and ``y``): features (N, D), or images (N, 3, H, W) or (N, H, W, 3),
          uint8 or float in [0, 1].

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If it does not contain such arrays.
    """
    file, _, name = source.partition("#")
    if not file.endswith(".npz"):
        return _from_folder(Path(source))
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file '{file}'")
    if not zipfile.is_zipfile(file):
        raise ValueError(f"'{file}' is not an npz file, which is what numpy.savez writes")
    x, y = (f"{name}_x", f"{name}_y") if name else ("x", "y")
    with np.load(file, allow_pickle=False) as arrays:
        if x not in arrays:
            raise ValueError(
                f"'{file}' has no array '{x}'; it has {', '.join(arrays.files)}: write "
                "FILE.npz#NAME for the arrays NAME_x and NAME_y"
            )
        images, labels = arrays[x], arrays.get(y)
    if images.ndim == 4 and images.shape[3] == 3 and images.shape[1] != 3:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(
            f"'{file}' has {len(images)} images in '{x}' and labels of the shape {labels.shape} in "
            f"'{y}'; each image needs one"
        )
    return DataSet(name or Path(file).stem, images, labels)


def default_configurations(labelled: bool) -> list[Configuration]:
    """Return ResNet-18 with each way to model classes that the data allow."""
    features = {"backbone": "resnet18", "layers": ("avgpool",)}
    if not labelled:
        return [Configuration("global", features)]
    return [
        Configuration(covariance, {**features, "covariance": covariance})
        for covariance in ("class", "tied", "global")
    ]


def run_outliers(
    train: DataSet,
    test: DataSet,
    others: Sequence[DataSet],
    configurations: Sequence[Configuration],
    output: "str | os.PathLike[str] | None" = None,
    *,
    verbose: bool = False,
    **runtime: Any,
) -> list[dict[str, str]]:
    """Fit each configuration to `train`, and measure how well it separates `test` from `others`.

    Every layer is fitted and measured by itself; where `train` has labels, its classes are
    modelled as the configuration's ``covariance`` says.

    Parameters
    ----------
    train, test : DataSet
        In-distribution data to fit on, and to measure on.
    others : sequence of DataSet
        Out-of-distribution data.
    configurations : sequence of Configuration
        For images each must name its ``layers``; features are one layer, named "features".
    output : str or path, optional
        A CSV file, to which every result is written at once. Results that it has, of the same
        settings, data and version of pydfm, are not measured again.
    verbose : bool
        Show a progress bar (on stderr, at a terminal).
    **runtime : optional
        Parameters of `DFM` that do not change a result: device, batch_size, n_threads.

    Returns
    -------
    list of dict
        One for each configuration, layer, score type and out-of-distribution set: "outliers",
        "configuration", "layer", "score_type", "settings", "data" (a hash of it), "n_train",
        "n_test", "n_outliers", "auroc", "aupr_in", "aupr" (AUPR-out) and "fpr95", all text.

    Raises
    ------
    ValueError
        If a configuration names no layers, an image cannot be scored, or `output` is a file of
        something else.
    """
    from tqdm import tqdm

    sets = (train, test, *others)
    given = {key: value for key, value in runtime.items() if value is not None}
    features = _Features(sets, given)
    record = Record(
        output,
        ("outliers", "configuration", "layer", "score_type", "settings", "data"),
        ("n_train", "n_test", "n_outliers", *_METRICS),
    )
    work = [
        (configuration, layer)
        for configuration in configurations
        for layer in _layers(configuration, train)
    ]
    results = []
    for configuration, layer in tqdm(work, unit="layer", disable=None if verbose else True):
        files = configuration.files
        data = {other.name: digest(*_contents(train, test, other), files) for other in others}
        kinds = _score_types(configuration, train)
        keys = [
            {
                "outliers": other.name,
                "configuration": configuration.name,
                "layer": layer,
                "score_type": kind,
                "settings": configuration.settings(),
                "data": data[other.name],
            }
            for kind in kinds
            for other in others
        ]
        rows = [record.find(key) for key in keys]
        if None in rows:
            fit_on, *parts = features.of(configuration, layer)
            model = _parameters(configuration, features=False)
            dfm = DFM(**{**model, "n_threads": runtime.get("n_threads")})
            dfm.fit(fit_on, labels=train.labels)
            measured = _measure(dfm, kinds, parts)
            rows = [
                row or record.add(key, {**values, "n_train": str(len(fit_on))})
                for row, key, values in zip(rows, keys, measured, strict=True)
            ]
        results += [row for row in rows if row is not None]
    return results


def outliers_table(results: Sequence[dict[str, str]]) -> str:
    """Return Markdown: a table for each out-of-distribution set."""
    parts = []
    for name in dict.fromkeys(row["outliers"] for row in results):
        rows = [row for row in results if row["outliers"] == name]
        best = max(rows, key=lambda row: float(row["auroc"]))
        body = [
            [
                row["configuration"],
                row["layer"],
                row["score_type"],
                *(figure(row[metric]) for metric in _METRICS),
            ]
            for row in rows
        ]
        header = ["configuration", "layer", "score", "AUROC", "AUPR-in", "AUPR-out", "FPR95"]
        parts.append(
            f"## {name}\n\n{rows[0]['n_test']} in-distribution, {rows[0]['n_outliers']} "
            f"out-of-distribution; the largest AUROC is that of {best['configuration']}, "
            f"{best['layer']}, {best['score_type']}\n\n{markdown(header, body)}\n"
        )
    return "\n".join(parts)


class _Features:
    """Features of data sets; those of the configuration that was asked for last are kept."""

    def __init__(self, sets: Sequence[DataSet], runtime: dict[str, Any]) -> None:
        self._sets = sets
        self._runtime = runtime
        self._wanted: dict[str, Any] | None = None
        self._layers: dict[str, list[NDArray[Any]]] = {}

    def of(self, configuration: Configuration, layer: str) -> list[NDArray[Any]]:
        """Return the features (N, D) of `layer`, for each data set."""
        if _holds_features(self._sets[0]):
            return [s.images for s in self._sets]
        wanted = _parameters(configuration, features=True)
        if wanted != self._wanted:
            # Two images make a model that can extract the features of all others.
            dfm = DFM(**wanted, **self._runtime, calibration=None)
            dfm.fit(self._sets[0].images[:2])
            parts = [_scorable(dfm, own) for own in self._sets]
            assert dfm.feature_spec_ is not None
            ends = np.cumsum([grid.size for grid in dfm.feature_spec_.grids])[:-1]
            split = [np.split(part, ends, axis=1) for part in parts]
            layers = dfm.feature_spec_.layers
            self._layers = dict(zip(layers, map(list, zip(*split, strict=True)), strict=True))
            self._wanted = wanted
        return self._layers[layer]


def _scorable(dfm: DFM, data: DataSet) -> NDArray[Any]:
    """Return the features (N, D) of all images, none of which may be unreadable or overflow."""
    features, read = extract_read(dfm, data.images)
    if not read.all():
        raise ValueError(f"{data.name}: {dfm.skipped_[0].reason}; leave such images out")
    return features


def _parameters(configuration: Configuration, *, features: bool) -> dict[str, Any]:
    """Return the parameters that features depend on, or the others."""
    return {
        name: value
        for name, value in configuration.parameters.items()
        if (PARAMETERS[name].role == "features") == features
    }


def _layers(configuration: Configuration, train: DataSet) -> tuple[str, ...]:
    if _holds_features(train):
        return ("features",)
    layers = configuration.parameters.get("layers")
    if configuration.parameters.get("spatial") == "patch":
        raise ValueError(
            f"configuration '{configuration.name}' has spatial = 'patch'; layers are measured here "
            "as 'flatten' or 'mean' only"
        )
    if not layers:
        raise ValueError(
            f"configuration '{configuration.name}' names no layers; give the ones to measure, such "
            "as layers = ['layer3', 'avgpool']"
        )
    return (layers,) if isinstance(layers, str) else tuple(layers)


def _score_types(configuration: Configuration, train: DataSet) -> tuple[str, ...]:
    """Return the score types that a model of `train` has: some need several classes."""
    n_classes = 0 if train.labels is None else len(np.unique(train.labels))
    several = n_classes > 1 and configuration.parameters.get("covariance") != "global"
    return tuple(name for name, score in SCORES.items() if several or not score.background)


def _measure(
    dfm: DFM, kinds: Sequence[str], parts: Sequence[NDArray[Any]]
) -> Iterator[dict[str, Any]]:
    """Yield metrics of each of ``parts[1:]`` against the in-distribution features ``parts[0]``."""
    inside, *outside = (dfm.score(part, score_type=tuple(kinds)) for part in parts)
    for t in range(len(kinds)):
        for other in outside:
            scores = np.concatenate([inside[t], other[t]])
            sizes = [inside.shape[1], other.shape[1]]
            metrics = evaluate(scores, np.repeat([False, True], sizes))
            counts = {"n_test": str(sizes[0]), "n_outliers": str(sizes[1])}
            yield {**counts, **{name: metrics[name] for name in _METRICS}}


def _contents(*sets: DataSet) -> list[Any]:
    return [part for own in sets for part in (own.images, own.labels)]


def _holds_features(data: DataSet) -> bool:
    return getattr(data.images, "ndim", 0) == 2


def _from_folder(folder: Path) -> DataSet:
    paths = list_images(folder)
    places = [Path(path).relative_to(folder).parts for path in paths]
    labels = None
    if all(len(place) > 1 for place in places) and len({place[0] for place in places}) > 1:
        labels = np.array([place[0] for place in places])
    return DataSet(folder.resolve().name, paths, labels)
