r"""Rows that are not independent: copies, and rows much nearer to each other than to the rest.

A rate of false alarms holds where fitted rows and new ones are exchangeable. Several shots of a
part are not: each is left out of a model that has seen the others, and scores too low. What belongs
together is for the caller to say (``groups=``); here it is noticed where nothing was said.

Around a row, among n rows drawn independently from a density that is smooth there, the volumes that
the nearest rows enclose grow like the times of a Poisson process: with q the dimension of the data,
r_k the distance of the k-th nearest row, and H the harmonic numbers,

    E ln(r_20 / r_10) = (H_19 - H_9) / q,   P((r_1 / r_10)^q < u) = 1 - (1 - u)^9

(Facco, d'Errico, Rodriguez and Laio 2017 estimate q so, from r_2 / r_1). The first gives q, from
neighbours that shots of one part do not reach; the second how odd it is that a row's nearest one is
so near. A row in a hundred has a probability below 0.01 by chance.
"""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pydfm import _core
from pydfm.features.inputs.labels import by_class
from pydfm.model.training import TrainingState
from pydfm.stats.accumulator import KeptRows

# Fewer rows than this tell nothing; of folded ones so many are compared.
_LEAST = 40
_MOST = 500
_NEAR, _FAR = 10, 20
# Rows whose nearest one is so near by chance as seldom as this, and what share of them is too much.
_ODD = 0.01
_ODD_SHARE = 0.1
# One alone is too near at this probability, over the number of rows, and at this share of the
# distance of its tenth neighbour: clusters may deceive about the dimension.
_IMPOSSIBLE = 1e-4
_VERY_NEAR = 5e-4


def warn_of_dependence(state: TrainingState, n_threads: int) -> None:
    """Warn, once, where fitted rows without groups are copies of others, or much nearer to them."""
    if state.units.grouped:
        return
    copies = _copies(state)
    cure = "pass"
    if copies is not None:
        found, pairs = f"{copies[0]} of {state.n_samples} images are copies of others", copies[1]
        cure = "forget the copies, or pass"
    else:
        near = _near(state, n_threads)
        if near is None:
            return
        what = "rows" if state.spec is None else "images"
        found, pairs = f"{what} are much nearer to one another than to the rest", near
    named = "; ".join(f"{_name(state, i)} and {_name(state, j)}" for i, j in pairs[:3])
    examples = f", such as {named}" if named else ""
    warnings.warn(
        f"X holds rows that are not independent: {found}{examples}. Rates of false alarms do not "
        f"hold then: {cure} groups=, which says what belongs together (shots of a part, frames of "
        "a film, crops of an image)",
        stacklevel=3,
    )


def check_not_fitted(
    state: TrainingState, hashes: NDArray[np.uint64], names: Sequence[str]
) -> None:
    """Raise ValueError if images that are to be held out were fitted, as far as that is known.

    Parameters
    ----------
    state : TrainingState
    hashes : ndarray of shape (n,)
        Of the images.
    names : sequence of str
        How messages call them.
    """
    if not state.identities.known:
        return
    fitted = np.isin(hashes, state.identities.take()[0])
    if fitted.any():
        raise ValueError(
            f"X has {fitted.sum()} of {len(hashes)} images that the model was fitted on, such as "
            f"image {names[int(fitted.argmax())]}, whose scores are too low to calibrate by; give "
            "images that it never saw"
        )


def near_pairs(squared: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return rows that are nearer to each other than chance would have it.

    Parameters
    ----------
    squared : ndarray of shape (n, n)
        Squares of the distances between rows.

    Returns
    -------
    ndarray of shape (p, 2)
        Pairs of a row and the one nearest to it, the oddest first; none where so many are expected.
    """
    none = np.zeros((0, 2), dtype=np.intp)
    n = len(squared)
    if n < _LEAST:
        return none
    distances = np.sqrt(np.maximum(squared, 0))
    np.fill_diagonal(distances, np.inf)
    first, near, far = np.partition(distances, (0, _NEAR - 1, _FAR - 1), axis=1)[
        :, [0, _NEAR - 1, _FAR - 1]
    ].T
    apart = near > 0
    if apart.sum() < _LEAST or (far[apart] <= near[apart]).all():
        return none
    expected = (1 / np.arange(_NEAR, _FAR)).sum()
    dimension = expected / np.log(far[apart] / near[apart]).mean()
    share = np.where(apart, first / np.where(apart, near, 1), 0.0) ** dimension
    odd = -np.expm1((_NEAR - 1) * np.log1p(-np.minimum(share, 1 - 1e-12)))
    which = np.flatnonzero(odd < _ODD)
    if len(which) < _ODD_SHARE * n:
        which = np.flatnonzero((odd < _IMPOSSIBLE / n) & (first <= _VERY_NEAR * near))
    which = which[np.argsort(odd[which], kind="stable")]
    pairs = np.sort(np.stack([which, distances[which].argmin(axis=1)], axis=1), axis=1)
    _, place = np.unique(pairs, axis=0, return_index=True)
    return np.asarray(pairs[np.sort(place)])


def near_places(state: TrainingState, n_threads: int) -> list[tuple[int, int]]:
    """Return pairs of places of fitted rows that are too near to be independent."""
    return _near(state, n_threads) or []


def _copies(state: TrainingState) -> tuple[int, list[tuple[int, int]]] | None:
    """Return how many images are copies, and some places of copies; None without any."""
    if not state.identities.known:
        return None
    hashes, classes = state.identities.take()
    keys = list(zip(hashes.tolist(), classes.tolist(), strict=True))
    n_copies = len(keys) - len(set(keys))
    if n_copies == 0 or state.n_seen != len(keys):  # some are gone: places are not known
        return (n_copies, []) if n_copies else None
    seen: dict[tuple[int, int], int] = {}
    pairs: list[tuple[int, int]] = []
    for place, key in enumerate(keys):
        if key in seen and len(pairs) < 3:
            pairs.append((seen[key], place))
        seen.setdefault(key, place)
    return n_copies, pairs


def _near(state: TrainingState, n_threads: int) -> list[tuple[int, int]] | None:
    """Return some places of rows of a class that are too near, or None."""
    found = []
    for squared, places in _distances(state, n_threads):
        found += [(int(places[i]), int(places[j])) for i, j in near_pairs(squared)]
    return found or None


def _distances(
    state: TrainingState, n_threads: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.intp]]]:
    """Yield squared distances (n, n) and places (n,) of rows of each class, by the first layer.

    Of rows that are left out together there is one.
    """
    parts = _rows_of_first_layer(state) if state.settings.spatial != "patch" else []
    if not parts:
        return
    classes, places, units = (np.concatenate(own) for own in list(zip(*parts, strict=True))[1:])
    ends = np.cumsum([len(part.rows) for part in parts])
    for _, of_class in by_class(classes):
        one = np.unique(units[of_class], return_index=True)[1]
        own = of_class[np.sort(one)][:_MOST]
        rows = np.empty((len(own), parts[0].rows.shape[1]))
        for k, here in by_class(np.searchsorted(ends, own, side="right")):
            rows[here] = parts[k].rows[own[here] - ends[k] + len(parts[k].rows)]
        _, products = _core.gram(rows, n_threads=n_threads)
        lengths = np.diag(products)
        yield lengths[:, None] + lengths - 2 * products, places[own]


def _rows_of_first_layer(state: TrainingState) -> list[KeptRows]:
    """Return the rows that are kept, with their classes."""
    parts = []
    for (layer, _), sample in sorted(state.fold_rows.items()):
        if layer == 0 and sample.n_rows:
            places, rows, classes, units = sample.take()
            parts.append(KeptRows(rows, classes, places, units))
    for (layer, _, c), cell in sorted(state.cells.items()):
        if layer > 0 or state.settings.n_folds > 1:
            continue
        found = list(cell.kept) if cell.scatter is None else []
        if cell.scatter is not None and cell.sample is not None and cell.sample.n_rows:
            places, rows, classes, units = cell.sample.take()
            found = [KeptRows(rows, classes, places, units)]
        if not state.settings.tied:
            found = [part._replace(classes=np.full_like(part.classes, c)) for part in found]
        parts += found
    return parts


def _name(state: TrainingState, place: int) -> str:
    """Return the name of an image, or the number of a row."""
    name = state.names_of(np.array([place])).get(place)
    return f"row {place}" if name is None else f"'{name}'"
