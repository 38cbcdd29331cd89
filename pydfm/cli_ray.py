"""What the commands do on a Ray cluster: `--ray WORKERS`."""

from pathlib import Path
from typing import Any

from pydfm.dfm import DFM


def fit_on_cluster(dfm: DFM, folder: Path, classes: bool, n_workers: int) -> DFM:
    """Return the model of the pictures in `folder`, as `DFM.fit` would."""
    from pydfm.images import list_images
    from pydfm.labels import RowLabels
    from pydfm.ray import fit

    paths = list_images(folder)
    items: list[dict[str, Any]] = [{"path": path} for path in paths]
    if classes:
        labels = RowLabels.of_folders(folder, paths).take(slice(0, len(paths)))
        items = [{"path": p, "label": label} for p, label in zip(paths, labels, strict=True)]
    data = _data_set(items, n_workers)
    label = "label" if classes else None
    return fit(data, dfm, label=label, batch_size=dfm.batch_size, n_workers=n_workers)


def extract_on_cluster(dfm: DFM, paths: list[str], n_workers: int) -> Any:
    """Return the features (N, D) of pictures, as `DFM.extract` would."""
    from pydfm.ray import extract

    data = _data_set([{"path": path} for path in paths], n_workers)
    return extract(data, dfm, batch_size=dfm.batch_size, n_workers=n_workers)


def _data_set(items: list[dict[str, Any]], n_workers: int) -> Any:
    from pydfm._checks import check_integer
    from pydfm.ray import import_ray

    check_integer("--ray", n_workers, 1)
    ray = import_ray()
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    # Some blocks to a worker, so that one that is slow does not keep the others waiting.
    return ray.data.from_items(items, override_num_blocks=min(4 * n_workers, len(items)))
