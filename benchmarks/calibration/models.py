"""False-alarm rates of every kind of model, by score type: drawn rows, fitted again and again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.calibration.populations import N_FRESH, Draw
from benchmarks.calibration.rates import LEVELS, fit_layers, rate
from benchmarks.report import verdict
from pydfm import DFM
from pydfm.conformal.calibration import calibration_of
from pydfm.conformal.checks.likelihoods import unsteady_likelihood
from pydfm.features.grid import Grid

KINDS = ("fre", "mahalanobis", "nll", "ppca")
HEADER = ("model", "N", "D", *KINDS, "relative_mahalanobis", "0.5 to 1.5 times alpha")
SIZES = (30, 100, 300)
WIDTHS = (64, 512, 4096)
_SHOTS = 3
_CLASSES = 2


@dataclass(frozen=True)
class Model:
    """A kind of model.

    Attributes
    ----------
    name : str
    parameters : dict
        Of `DFM`.
    draw : callable
        Draws rows, from a generator, N and D.
    layers : callable, optional
        Gives the names and grids of layers, from D.
    kinds : tuple of str
        Score types that it has.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[np.random.Generator, int, int], Draw] = lambda rng, n, d: _plain(rng, n, d)
    layers: Callable[[int], list[tuple[str, Grid]]] | None = None
    kinds: tuple[str, ...] = KINDS

    def p_values(self, seed: int, n: int, d: int) -> tuple[Any, float, set[str]]:
        """Return p-values (T, M) of new rows, the fewest units of a class, and types warned of."""
        draw = self.draw(np.random.default_rng([n, d, seed]), n, d)
        # Each draw has folds of its own, too.
        parameters: dict[str, Any] = {"random_state": seed, "score_type": self.kinds}
        for name, own in self.parameters.items():
            parameters[name] = own(n, d) if callable(own) else own
        if self.layers is not None:
            dfm = fit_layers(draw.rows, self.layers(d), **parameters)
        else:
            dfm = DFM(**parameters).fit(draw.rows, labels=draw.labels, groups=draw.groups)
        n_units = calibration_of(dfm.fitted_, self.kinds[0]).n_units.min()
        told = {k for k in self.kinds if unsteady_likelihood(dfm.fitted_, k, LEVELS[-1])}
        return dfm.p_value(draw.fresh, labels=draw.fresh_labels), n_units, told


def _plain(rng: np.random.Generator, n: int, d: int) -> Draw:
    rows = _rows(rng, n + N_FRESH, d)
    return Draw(rows[:n], rows[n:])


def _classes(rng: np.random.Generator, n: int, d: int) -> Draw:
    labels = np.arange(n + N_FRESH) % _CLASSES
    rows = _rows(rng, n + N_FRESH, d) + rng.normal(size=(_CLASSES, d)).astype(np.float32)[labels]
    return Draw(rows[:n], rows[n:], labels[:n], labels[n:])


def _parts(rng: np.random.Generator, n: int, d: int) -> Draw:
    parts = np.repeat(_rows(rng, n // _SHOTS, d), _SHOTS, axis=0)
    fresh = _rows(rng, N_FRESH, d) + 0.3 * _rows(rng, N_FRESH, d)
    rows = parts + 0.3 * _rows(rng, len(parts), d)
    return Draw(rows, fresh, groups=np.repeat(np.arange(n // _SHOTS), _SHOTS))


def _images(rng: np.random.Generator, n: int, d: int) -> Draw:
    """Draw images of 2 x 2 positions, which share a half of what varies."""
    channels = d // 4
    shared = _rows(rng, n + N_FRESH, channels)[:, :, None]
    own = _rows(rng, 4 * (n + N_FRESH), channels).reshape(n + N_FRESH, 4, channels)
    rows = (shared + own.transpose(0, 2, 1)).reshape(n + N_FRESH, d)
    return Draw(rows[:n], rows[n:])


def _rows(rng: np.random.Generator, n: int, d: int) -> Any:
    deviations = (1 / np.sqrt(np.arange(1, d + 1))).astype(np.float32)
    return rng.standard_normal((n, d), dtype=np.float32) * deviations


def _one_layer(d: int) -> list[tuple[str, Grid]]:
    return [("layer", Grid(d // 4, 2, 2))]


def _two_layers(d: int) -> list[tuple[str, Grid]]:
    return [("one", Grid(d // 2, 1, 1)), ("two", Grid(d // 2, 1, 1))]


def _quarter(n: int, d: int) -> int:
    """Return memory for a quarter of the rows, which are sketched then."""
    return max(n // 4, 8) * 16 * d


MODELS = (
    Model("plain"),
    Model("regularization 1e-6", {"regularization": 1e-6}),
    Model("regularization 1e-3", {"regularization": 1e-3}),
    Model("shrinkage", {"regularization": "shrinkage"}),
    Model("classes", draw=_classes, kinds=(*KINDS, "relative_mahalanobis")),
    Model(
        "tied",
        {"covariance": "tied"},
        _classes,
        kinds=(*KINDS, "relative_mahalanobis"),
    ),
    Model("patch", {"spatial": "patch"}, _images, _one_layer),
    Model(
        "patch, standardised",
        {"spatial": "patch", "image_score": "calibrated"},
        _images,
        _one_layer,
    ),
    Model("standardised maps", {"image_score": "calibrated"}, _images, _one_layer, ("fre",)),
    Model("several layers", {"image_score": "sum"}, layers=_two_layers),
    Model("gmm", {"density": "gmm", "calibration": "kfold"}),
    Model("kfold", {"calibration": "kfold"}),
    Model("split", {"calibration": "split"}),
    Model("max_memory for all rows", {"max_memory": "1GB"}),
    Model("max_memory for a quarter", {"max_memory": _quarter, "calibration": "kfold"}),
    Model("groups of 3", draw=_parts),
    Model("groups of 3, kfold", {"calibration": "kfold"}, _parts),
)


def measure_models(repeats: Callable[[int], int], quick: bool) -> Iterator[list[str]]:
    """Yield a row of the table for each model and shape."""
    for model in MODELS:
        for n in SIZES[:2] if quick else SIZES:
            for d in WIDTHS[:1] if quick else WIDTHS:
                found = [model.p_values(seed, n, d) for seed in range(repeats(n))]
                p, counts, told = zip(*found, strict=True)
                often = [sum(kind in each for each in told) > len(told) / 2 for kind in model.kinds]
                warned = [k for k, is_often in zip(model.kinds, often, strict=True) if is_often]
                yield _row(model, n, d, np.concatenate(p, axis=1), int(min(counts)), warned)


def _row(model: Model, n: int, d: int, p: Any, count: int, warned: list[str]) -> list[str]:
    cells = {}
    met = True
    asked = [level for level in LEVELS if level * count >= 3]
    for kind, own in zip(model.kinds, p, strict=True):
        rates = [rate(own, level) for level in LEVELS]
        possible = [level * (count + 1) >= 1 for level in LEVELS]
        cells[kind] = " / ".join(
            f"{100 * r:.1f}" if fits else "-" for r, fits in zip(rates, possible, strict=True)
        )
        if kind not in warned:
            met &= all(0.5 <= rate(own, level) / level <= 1.5 for level in asked)
    told = verdict(met, ", ".join(f"{100 * level:g} %" for level in asked)) if asked else ""
    told += "".join(f"; {kind} is warned of" for kind in warned)
    every = [cells.get(kind, "") for kind in (*KINDS, "relative_mahalanobis")]
    return [model.name, f"{n:,}", f"{d:,}", *every, told]
