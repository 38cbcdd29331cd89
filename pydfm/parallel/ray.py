"""Fit and score data sets of Ray Data on the machines of a Ray cluster (the extra ``pydfm[ray]``).

A data set has one of the columns "features" (D numbers), "image" ((H, W, 3) or (3, H, W) pixels) or
"path". Each batch goes to an actor, which builds the network once, and becomes a training state:
rows, or their moments where these are fewer numbers. The states are merged two by two, in the order
of the batches, so that the model does not depend on which machine did what. Ray computes a batch
again whose worker has died, and only one result of it is counted.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from pydfm.estimator import DFM
from pydfm.features.pictures.intensity import Seen, chosen_depth, look_at
from pydfm.features.pictures.pages import with_pages
from pydfm.model.training import TrainingState
from pydfm.parameters import check_parameters, draw_seed
from pydfm.stats.scores import check_score_types

if TYPE_CHECKING:
    from ray.data import Dataset

_COLUMNS = ("features", "image", "path")
_SEEN = tuple(own.name for own in fields(Seen))


def fit(
    dataset: "Dataset",
    dfm: DFM | None = None,
    *,
    column: str | None = None,
    label: str | None = None,
    group: str | None = None,
    batch_size: int = 256,
    n_workers: int = 1,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> DFM:
    """Fit a model to a data set.

    Parameters
    ----------
    dataset : ray.data.Dataset
        The rows.
    dfm : DFM, optional
        Its parameters are those of the model; default ``DFM()``.
    column : str, optional
        What is fitted; default that of "features", "image" and "path" that is there.
    label : str, optional
        The column of labels.
    group : str, optional
        The column of groups: what belongs together, as in `DFM.fit`.
    batch_size : int
        Rows per batch; a batch is what is computed again where a worker dies.
    n_workers : int
        Number of actors, each with a network of its own.
    num_cpus, num_gpus : float, optional
        Cores and GPUs of each actor; a fraction of a GPU lets several share it.

    Returns
    -------
    DFM
        Equal to one `DFM.fit` to all rows, but for rounding; `DFM.partial_fit` and `DFM.merge`
        continue from it.

    Raises
    ------
    ImportError
        If Ray is not installed.
    ValueError
        If there is no such column, or the data are not what `DFM.fit` takes.
    """
    ray = import_ray()
    template = DFM() if dfm is None else dfm
    check_parameters(template.get_params(deep=False))
    seeded = clone(template).set_params(random_state=draw_seed(template.random_state))
    column = _find_column(dataset, column, label, group)
    if template.intensity == "auto" and column != "features":
        # Workers see some images each, and must agree.
        chosen = _chosen_intensity(dataset, template, column, n_workers, num_cpus)
        seeded.set_params(intensity=chosen or "auto")
    states = dataset.map_batches(
        _Fit,
        fn_constructor_args=(seeded, column, label, group),
        **_resources(batch_size, n_workers, num_cpus, num_gpus),
    )
    load = ray.remote(_merge_block)
    merge = ray.remote(_merge_two)
    try:
        parts = [load.remote(block) for block in states.to_arrow_refs()]
        while len(parts) > 1:
            pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
            parts = [merge.remote(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
        merged = ray.get(parts[0]) if parts else None
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    if merged is None:
        raise ValueError("the data set is empty; there is nothing to fit")
    return template.with_state(merged)


def score(
    dataset: "Dataset",
    dfm: DFM,
    *,
    column: str | None = None,
    label: str | None = None,
    score_type: str | Sequence[str] | None = None,
    assess: bool = False,
    output: str | None = None,
    batch_size: int = 256,
    n_workers: int = 1,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> "Dataset | None":
    """Score the rows of a data set.

    Parameters
    ----------
    dataset : ray.data.Dataset
        The rows.
    dfm : DFM
        Fitted.
    column : str, optional
        As in `fit`.
    label : str, optional
        A column of labels, under whose classes rows are scored.
    score_type : str or sequence of str, optional
        In place of that of the model.
    assess : bool
        Whether to add the columns "p_value" and "verdict" (+1 normal, -1 anomalous, at the level
        `alpha` of the model) of its first score type.
    output : str, optional
        A folder or an URL that Parquet files are written to as scores come.
    batch_size, n_workers, num_cpus, num_gpus
        As in `fit`.

    Returns
    -------
    ray.data.Dataset or None
        The columns of the data set, but for features and images, and "score" (of several types
        "score_fre" and so on); None where it was written to `output`.
    """
    ray = import_ray()
    model = dfm.model_
    column = _find_column(dataset, column, label)
    chosen = dfm.score_type if score_type is None else score_type
    kinds = check_score_types(chosen)
    model.check_scores(kinds)
    if assess:
        dfm.threshold_  # noqa: B018 (computed once, here, or an error that says why not)
    names = ["score"] if isinstance(chosen, str) else [f"score_{kind}" for kind in kinds]
    scored = dataset.map_batches(
        _Score,
        fn_constructor_args=(dfm, column, label, tuple(kinds), names, assess),
        **_resources(batch_size, n_workers, num_cpus, num_gpus),
    )
    if output is None:
        return scored
    try:
        scored.write_parquet(output)
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    return None


def extract(
    dataset: "Dataset",
    dfm: DFM,
    *,
    column: str | None = None,
    batch_size: int = 256,
    n_workers: int = 1,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> NDArray[np.float32]:
    """Features (N, D) of the images of a data set, here; see `DFM.extract`.

    In the order of the data set where ``execution_options.preserve_order`` of Ray's DataContext
    says so.
    """
    ray = import_ray()
    dfm.fitted_  # noqa: B018 (computed once, here)
    column = _find_column(dataset, column)
    features = dataset.map_batches(
        _Extract,
        fn_constructor_args=(dfm, column),
        **_resources(batch_size, n_workers, num_cpus, num_gpus),
    )
    try:
        parts = [batch["features"] for batch in features.iter_batches(batch_size=None)]
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from None
    return np.concatenate(parts)


def _chosen_intensity(
    dataset: "Dataset", template: DFM, column: str, n_workers: int, num_cpus: float | None
) -> str | None:
    """Return what intensity="auto" is for all images, or None where none has more than 8 bits."""
    seen = dataset.select_columns([column]).map_batches(
        _Look,
        fn_constructor_args=(template.max_pixels, column),
        **_resources(template.batch_size, n_workers, num_cpus, None),
    )
    total = Seen()
    try:
        for batch in seen.iter_batches(batch_size=None):
            for own in zip(*(batch[name].tolist() for name in _SEEN), strict=True):
                total += Seen(*own)
    except import_ray().exceptions.RayTaskError as error:
        raise _cause(error) from None
    return chosen_depth(total)


class _Look:
    """An actor: a batch in, the depth of its images out."""

    def __init__(self, max_pixels: int | None, column: str) -> None:
        self._max_pixels = max_pixels
        self._column = column

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = _rows(batch[self._column])
        images = with_pages(rows) if isinstance(rows, list) else [rows]
        seen = look_at(images, self._max_pixels)
        return {name: np.array([getattr(seen, name)]) for name in _SEEN}


class _Extract:
    """An actor: a batch in, features out."""

    def __init__(self, dfm: DFM, column: str) -> None:
        self._dfm = dfm
        self._column = column

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"features": self._dfm.extract(_single(_rows(batch[self._column])))}


class _Fit:
    """An actor: a batch in, a training state out."""

    def __init__(self, template: DFM, column: str, label: str | None, group: str | None) -> None:
        self._template = template
        self._column = column
        self._label = label
        self._group = group
        self._fitted: DFM | None = None

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        from ray import cloudpickle

        # The network is built for the first batch.
        if self._fitted is None:
            dfm: DFM = clone(self._template)
        else:
            dfm = self._fitted.with_state(self._fitted.training_.emptied())
        labels = None if self._label is None else batch[self._label]
        groups = None if self._group is None else batch[self._group]
        rows = _rows(batch[self._column])
        if labels is not None or groups is not None:
            rows = _single(rows)
        self._fitted = dfm.partial_fit(rows, labels=labels, groups=groups)
        state = np.empty(1, dtype=object)
        dump: Any = cloudpickle.dumps
        state[0] = dump(self._fitted.training_)
        return {"state": state}


class _Score:
    """An actor: a batch in, the batch with scores out."""

    def __init__(
        self,
        dfm: DFM,
        column: str,
        label: str | None,
        kinds: tuple[str, ...],
        names: list[str],
        assess: bool,
    ) -> None:
        self._dfm = dfm
        self._column = column
        self._label = label
        self._kinds = kinds
        self._names = names
        self._assess = assess

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        labels = None if self._label is None else batch[self._label]
        rows: Any = _single(_rows(batch[self._column]))
        read = np.ones(len(rows), dtype=bool)
        if self._dfm.feature_spec_ is not None and self._column != "features":
            rows = self._dfm.extract(rows)  # once, for all that follows
            read = np.isfinite(rows).all(axis=1)  # others were skipped
        n_rows = len(rows)
        rows, labels = rows[read], None if labels is None else labels[read]
        scores = {kind: np.full(n_rows, np.nan, dtype=np.float32) for kind in self._kinds}
        result = dict(batch)
        others = list(self._kinds)
        if self._assess:
            first = check_score_types(self._dfm.score_type)[0]
            result |= {"p_value": np.full(n_rows, np.nan), "verdict": np.zeros(n_rows, np.intp)}
            if read.any():
                found = self._dfm.assess(rows, labels=labels)
                result["p_value"][read], result["verdict"][read] = found.p_values, found.verdicts
                if first in scores:
                    scores[first][read] = found.scores
                    others.remove(first)
        if others and read.any():
            theirs = self._dfm.score(rows, labels=labels, score_type=others)
            for kind, own in zip(others, theirs, strict=True):
                scores[kind][read] = own
        if self._column != "path":
            del result[self._column]
        return result | {
            name: scores[kind] for name, kind in zip(self._names, self._kinds, strict=True)
        }


def _cause(error: BaseException) -> BaseException:
    """Return the error of a worker, which Ray wraps more than once."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValueError | TypeError | OSError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def _merge_block(block: Any) -> TrainingState | None:
    """Return the state of all batches of a block."""
    from ray import cloudpickle

    merged: TrainingState | None = None
    for state in block.column("state").to_pylist():
        merged = _merge_two(merged, cloudpickle.loads(state))
    return merged


def _merge_two(one: TrainingState | None, other: TrainingState | None) -> TrainingState | None:
    if one is None or other is None:
        return one or other
    return one.merge(other, n_threads=1)


def _rows(values: NDArray[Any]) -> Any:
    """Return what `DFM` takes of a column: paths, pixels (N, 3, H, W) or features (N, D)."""
    if values.dtype.kind in "OU" and isinstance(values[0], str):
        return values.tolist()
    if values.dtype == object:
        values = np.stack(list(values))
    if values.ndim == 4 and values.shape[3] == 3 and values.shape[1] != 3:
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    return values


def _single(rows: Any) -> Any:
    """Return `rows`, or raise ValueError if a path among them stands for several images."""
    for path in rows if isinstance(rows, list) else ():
        pages = with_pages([path])
        if len(pages) > 1:
            raise ValueError(
                f"'{path}' has {len(pages)} pages, and a row is one image; give a row for each: "
                f"'{pages[0]}' to '{pages[-1]}'"
            )
    return rows


def _find_column(dataset: "Dataset", column: str | None, *others: str | None) -> str:
    names = list(dataset.columns() or [])
    if column is None:
        column = next((name for name in _COLUMNS if name in names), _COLUMNS[0])
    for name in (column, *others):
        if name is not None and name not in names:
            raise ValueError(
                f"the data set has no column '{name}'; it has {', '.join(names) or 'none'}"
            )
    return column


def _resources(
    batch_size: int, n_workers: int, num_cpus: float | None, num_gpus: float | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"batch_size": batch_size, "concurrency": (1, n_workers)}
    if num_cpus is not None:
        options["num_cpus"] = num_cpus
    if num_gpus is not None:
        options["num_gpus"] = num_gpus
    return options


def import_ray() -> Any:
    """Return the module ray, or raise an ImportError that names the extra."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            "pydfm.parallel.ray needs Ray, which the extra 'ray' brings: pip install 'pydfm[ray]'"
        ) from error
    return ray
