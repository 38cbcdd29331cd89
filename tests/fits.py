"""Fits below the estimator: rows to accumulators, subspaces, densities and training states."""

import copy
import sys

import numpy as np

import pydfm
from pydfm.conformal.calibration import calibration_of
from pydfm.features.grid import Grid
from pydfm.model.fusion import Combination
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model
from pydfm.model.settings import resolve_settings
from pydfm.model.training import LayerColumns, TrainingState
from pydfm.parameters import DEFAULTS
from pydfm.stats.accumulator import Accumulator
from pydfm.stats.density import fit_density
from pydfm.stats.sample import RowSample
from pydfm.stats.subspace import Spectrum


def accumulated(rows, classes=None, *, batches=1, n_threads=2, sample=None, max_bytes=None):
    """The accumulator of `rows` that came in so many batches."""
    result = Accumulator(sample, max_bytes)
    for part in np.array_split(np.arange(len(rows)), batches):
        theirs = None if classes is None else classes[part]
        result = result.add(rows[part], theirs, n_threads=n_threads)
    return result


def fit_subspaces(rows, n_components, classes=None, *, n_threads=2, regularization=None, **options):
    """The subspaces of `rows`, of classes that share a scatter."""
    cell = accumulated(rows, classes, n_threads=n_threads, **options)
    return Spectrum.of(cell, n_threads).fit(n_components, regularization, n_threads)


def fit_classes(
    rows,
    classes=None,
    n_components=4,
    *,
    covariance="class",
    density="gaussian",
    regularization=None,
    **options,
):
    """The density of `rows` of these classes, with what it was fitted from."""
    tied = covariance == "tied"
    numbers = np.zeros(len(rows), dtype=int) if classes is None else classes
    order = range(int(numbers.max(initial=0)) + 1)
    if tied:
        cells = {0: accumulated(rows, numbers, **options)}
    else:
        cells = {c: accumulated(rows[numbers == c], **options) for c in order}
    mixture_rows = None
    if density == "gmm":
        mixture_rows = RowSample(sys.maxsize).add(rows, np.arange(len(rows)), numbers)
    return fit_density(
        cells,
        list(order),
        n_components=n_components,
        regularization=regularization,
        tied=tied,
        mixture_rows=mixture_rows,
        random_state=0,
        n_threads=2,
    )


def settings_of(grids=(None,), **parameters):
    """The settings of a fit with these parameters of `DFM`."""
    return resolve_settings({**DEFAULTS, "n_components": 3, **parameters}, grids)


def trained(
    rows, labels=None, groups=None, *, layers=(("features", None),), batches=1, **parameters
):
    """The training state of `rows` of some layers that came in so many batches."""
    settings = settings_of([grid for _, grid in layers], **parameters)
    columns, end = [], 0
    for name, grid in layers:
        begin, end = end, rows.shape[1] if grid is None else end + grid.size
        columns.append(LayerColumns(name, slice(begin, end), grid))
    state = TrainingState(None, tuple(columns), settings)
    for part in np.array_split(np.arange(len(rows)), batches):
        theirs = None if labels is None else labels[part]
        own = None if groups is None else groups[part]
        state = state.add(rows[part], theirs, n_threads=2, groups=own)
    return state


GRIDS = (Grid(4, 4, 4), Grid(8, 2, 2))
"""Of two layers with 64 and 32 features."""


def layers_of(rows, labels=None, *, patch=False):
    """Models of the layers "a" and "b" with these grids; classes are numbered from 0."""
    found, end = [], 0
    for name, grid in zip("ab", GRIDS, strict=True):
        own = np.ascontiguousarray(rows[:, end : end + grid.size])
        theirs = labels
        if patch:
            own = grid.patches(own)
            theirs = None if labels is None else np.repeat(labels, grid.positions)
        density = fit_classes(own, theirs, 3).density
        columns = slice(end, end + grid.size)
        found.append(LayerModel(name, columns, density, grid, patch=patch))
        end += grid.size
    return tuple(found)


def rule_of(name="sum"):
    """A rule for two layers."""
    return Combination(name, np.array([2.0, 30.0]), np.array([0.5, 7.0]), np.ones(2))


def model_of(rows, labels=None, combination=None, *, patch=False):
    """A model of two layers, whose scores of the core's types are combined."""
    classes = None if labels is None else [f"class {c}" for c in range(labels.max() + 1)]
    rules = dict.fromkeys(("fre", "mahalanobis", "nll", "ppca"), combination or rule_of())
    return Model(layers_of(rows, labels, patch=patch), classes, rules, len(rows))


def maps_dfm(**parameters):
    """An estimator of images of 16 x 16, whose two layers have 8 x 8 and 4 x 4 positions."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, padding=1)
    )
    parameters = {"backbone": network, "layers": ("0", "2"), "alpha": 0.1, **parameters}
    return pydfm.DFM(5, image_size=16, device="cpu", **parameters)


def held_out_of(dfm, kind="fre"):
    """Held-out scores of a fitted estimator by class, ascending."""
    return [ranks.scores for (ranks,) in calibration_of(dfm.fitted_, kind).ranks]


def conformal_p_values(scores, own):
    """P-values of `scores` among those `own`, by their definition."""
    return (1 + (np.asarray(own) >= np.asarray(scores)[:, None]).sum(axis=1)) / (1 + len(own))


def scripted(network):
    """A network as TorchScript.

    torch knows its builtins by their places in memory, some of which are free again: a list that
    comes to lie there is taken for a builtin. A copy lies elsewhere.
    """
    import torch

    tried = [network]
    while True:
        try:
            return torch.jit.script(tried[-1])
        except RuntimeError as error:
            if "builtin cannot be used as a value" not in str(error) or len(tried) > 5:
                raise
            tried.append(copy.deepcopy(network))
