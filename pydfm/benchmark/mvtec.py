"""Every category of a data set in MVTec AD's layout, under every configuration."""

import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydfm.benchmark.configuration import Configuration
from pydfm.benchmark.published import find_figures, published
from pydfm.benchmark.record import Record, digest
from pydfm.benchmark.table import figure, markdown, mean
from pydfm.datasets import Category, find_categories, load_category
from pydfm.datasets.measure import measure_category
from pydfm.estimator import DFM
from pydfm.parameters import DEFAULTS

_ANOMALIB: Final = {"layers": ("layer3",), "image_size": 256, "image_score": "sum"}

CONFIGURATIONS: Final = (
    Configuration("resnet18", {"backbone": "resnet18", "pool": 2, **_ANOMALIB}),
    Configuration("wide_resnet50_2", {"backbone": "wide_resnet50_2", "pool": 4, **_ANOMALIB}),
)
"""anomalib's features (layer3 at 256 pixels, averaged by 2 and by 4) and its score."""

_METRICS: Final = ("image_auroc", "aupr", "f1_max", "fpr95", "pixel_auroc", "aupro")


def run_mvtec(
    folder: "str | os.PathLike[str]",
    configurations: Sequence[Configuration] = CONFIGURATIONS,
    output: "str | os.PathLike[str] | None" = None,
    *,
    verbose: bool = False,
    **runtime: Any,
) -> list[dict[str, str]]:
    """Fit and measure every configuration on every category at or below `folder`.

    Parameters
    ----------
    folder : str or path
        Categories are found at any depth, and named by their paths below it.
    configurations : sequence of Configuration
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
        One for each category and configuration, in that order: "category", "configuration",
        "settings", "data" (a hash of it), "n_train", "n_test", "n_masks" (defective images that
        have a mask), "image_auroc", "aupr", "f1_max", "fpr95", "pixel_auroc", "aupro" and
        "seconds", all text, empty where there is no figure. Pixel metrics are over the good images
        and those that have a mask. Categories that cannot be measured are left out, with a warning.

    Raises
    ------
    FileNotFoundError
        If there are no categories.
    ValueError
        If none could be measured, or `output` is a file of something else.
    """
    from tqdm import tqdm

    paths = find_categories(folder)
    record = Record(
        output,
        ("category", "configuration", "settings", "data"),
        ("n_train", "n_test", "n_masks", *_METRICS, "seconds"),
    )
    results = []
    with tqdm(
        total=len(paths) * len(configurations), unit="run", disable=None if verbose else True
    ) as bar:
        for path in paths:
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            name = Path(path).resolve().name if name == "." else name
            for configuration in configurations:
                bar.set_description(f"{name}, {configuration.name}")
                try:
                    category = load_category(path)
                    keys = {
                        "category": name,
                        "configuration": configuration.name,
                        "settings": configuration.settings(),
                        "data": _digest(category, configuration),
                    }
                    row = record.find(keys)
                    if row is None:
                        row = record.add(keys, _measure(category, configuration.build(**runtime)))
                    results.append(row)
                except (FileNotFoundError, ValueError) as error:
                    warnings.warn(f"{name}, {configuration.name}: {error}; left out", stacklevel=2)
                bar.update()
    if not results:
        raise ValueError(f"none of the {len(paths)} categories of '{folder}' could be measured")
    return results


def _digest(category: Category, configuration: Configuration) -> str:
    masks = [path for paths in category.masks for path in paths]
    return digest(category.train, category.test, masks, configuration.files)


def _measure(category: Category, dfm: DFM) -> dict[str, float | str | None]:
    start = time.perf_counter()
    if not category.train:
        raise FileNotFoundError(f"'{category.name}' has no images to fit on in train/good")
    dfm.fit(category.train)
    metrics = measure_category(dfm, category)
    return {
        "n_train": str(dfm.n_samples_),
        "n_test": str(int(metrics.read.sum())),
        "n_masks": str(sum(bool(masks) for masks in category.masks)),
        "image_auroc": metrics.image["auroc"],
        **{name: metrics.image[name] for name in ("aupr", "f1_max", "fpr95")},
        **metrics.pixel,
        "seconds": f"{time.perf_counter() - start:.1f}",
    }


def mvtec_table(results: Sequence[dict[str, str]]) -> str:
    """Return Markdown: a table for each configuration, beside anomalib's figures."""
    parts = []
    for name in dict.fromkeys(row["configuration"] for row in results):
        rows = [row for row in results if row["configuration"] == name]
        parts.append(f"## {name}\n\nSettings: `{rows[0]['settings']}`\n\n{_table(rows)}\n")
    source = published()["source"]
    return "\n".join(parts) + f"\n{source}; averages are over the categories of each column.\n"


def _table(rows: Sequence[dict[str, str]]) -> str:
    backbone = json.loads(rows[0]["settings"]).get("backbone", DEFAULTS["backbone"])
    columns: list[tuple[str, list[str | float | None]]] = []
    for title, metric in (
        ("image AUROC", "image_auroc"),
        ("F1", "f1_max"),
        ("AUPR", "aupr"),
        ("FPR95", "fpr95"),
        ("pixel AUROC", "pixel_auroc"),
        ("AUPRO", "aupro"),
    ):
        columns.append((title, [row[metric] for row in rows]))
        for edition in ("current", "old"):
            theirs = find_figures(backbone, edition, metric)
            names = [row["category"].rsplit("/", 1)[-1] for row in rows]
            columns.append((f"anomalib {edition}", [theirs.get(name) for name in names]))
    columns = [(title, values) for title, values in columns if mean(values) is not None]
    body = [
        [row["category"], *(figure(values[i]) for _, values in columns)]
        for i, row in enumerate(rows)
    ]
    body.append([f"mean of {len(rows)}", *(figure(mean(values)) for _, values in columns)])
    return markdown(["category", *(title for title, _ in columns)], body)
