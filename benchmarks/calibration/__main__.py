"""Print the tables of docs/calibration.md, or write them and its figure."""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.calibration import lines, models, populations
from benchmarks.calibration.plot import reliability
from benchmarks.calibration.rates import (
    HEADER,
    LEVELS,
    left_out_wholly,
    measure,
    of_features,
    of_layers,
    rate,
    row,
)
from benchmarks.report import Table, write
from pydfm.conformal.drift import uniformity

_SIZES = (30, 100, 300, 1000)
_WIDTHS = (64, 512, 4096, 16384)
_KINDS = ("fre", "mahalanobis", "nll", "ppca")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="real data too, from this folder")
    parser.add_argument("--quick", action="store_true", help="few repeats, small shapes")
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, metavar="NAME")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables into this file")
    options = parser.parse_args()
    panels: dict[str, dict[str, np.ndarray]] = {}
    names = options.only or [n for n in _SECTIONS if options.data or n not in _OF_DATA]
    for name in names:
        start = time.perf_counter()
        tables = _SECTIONS[name](options.data, options.quick, panels)
        for title, table in tables.values():
            print(f"\n{title}\n\n{table}", flush=True)
        if options.write:
            write(options.write, tables)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    if options.write and list(names) == list(_SECTIONS):
        reliability(panels, options.write.with_suffix(".png"))


def _repeats(n: int, quick: bool) -> int:
    return 4 if quick else 60 if n < 100 else 30 if n < 1000 else 15


def _synthetic(_, quick, panels):
    rows = []
    for heavy, widths in ((False, _WIDTHS[:2] if quick else _WIDTHS), (True, (512,))):
        name = "heavy tails" if heavy else "Gaussian"
        for d in widths:
            for n in _SIZES[:3] if quick else _SIZES:
                draws = populations.synthetic(n, d, _repeats(n, quick), heavy=heavy)
                found = measure(draws, of_features)
                rows.append(row(name, n, d, found))
                if (n, d) == (100, 512) and not heavy:
                    panels["Gaussian, N = 100, D = 512"] = found
                print(rows[-1], file=sys.stderr)
    return {"synthetic": ("Drawn rows", Table(HEADER, rows))}


def _kinds(_, quick, __):
    rows = []
    for kind in _KINDS:
        for n, d in ((100, 512), (300, 64)):
            draws = populations.synthetic(n, d, _repeats(n, quick), heavy=False)
            found = measure(draws, partial(of_features, score_type=kind))
            rows.append(row(kind, n, d, found))
    return {"kinds": ("Types of scores", Table(("score", *HEADER[1:]), rows))}


def _models(_, quick, __):
    rows = []
    for found in models.measure_models(lambda n: 4 if quick else 60 if n < 100 else 30, quick):
        rows.append(found)
        print(found, file=sys.stderr)
    return {"models": ("Every kind of model", Table(models.HEADER, rows))}


def _lines(_, quick, __):
    rows = []
    for found in lines.measure_lines(5 if quick else 100, 1000 if quick else 10_000):
        rows.append(found)
        print(found, file=sys.stderr)
    return {"lines": ("The alarm for drift", Table(lines.HEADER, rows))}


def _cifar(data, quick, panels):
    rows, pool = [], populations.cifar(data)
    d = pool.features.shape[1]
    for n in _SIZES:
        found = measure(pool.draws(n, _repeats(n, quick)), of_features)
        rows.append(row("CIFAR-10", n, d, found))
        if n == 300:
            panels["CIFAR-10, N = 300, D = 64"] = found
    n, n_class = 1000, 80  # about a hundred to a class, and some have fewer
    for kind in ("fre", "ppca"):
        for known in (True, False):
            draws = pool.draws(n, _repeats(n, quick), labelled=True)
            found = measure(draws, partial(of_features, score_type=kind, known=known))
            name = f"by class, {kind}, class {'known' if known else 'not known'}"
            rows.append(row(name, n, d, found, n_class, bound=not known))
    return {"cifar": ("CIFAR-10", Table(HEADER, rows))}


def _glassfiber(data, quick, panels):
    known = populations.glassfiber(data)
    rows, n = [], 80
    d = known.train.shape[1]
    for image_score in ("sum", "calibrated"):
        p_values = partial(of_layers, layers=known.layers, image_score=image_score)
        found = measure(known.good.draws(n, 4 if quick else 40), p_values)
        rows.append(row(f"glassfiber, {image_score}", n, d, found))
    panels["glassfiber, N = 80, standardised maps"] = found
    good, bad = known.test[~known.defective], known.test[known.defective]
    shifted = []
    for image_score in ("sum", "calibrated"):
        p = of_layers(
            "loo",
            populations.Draw(known.train, np.concatenate([good, bad])),
            layers=known.layers,
            image_score=image_score,
        )
        labels = np.repeat([False, True], [len(good), len(bad)])
        every = np.arange(1, len(known.train) + 1) / len(known.train)
        rates = " / ".join(f"{100 * rate(p[~labels], level):.0f}" for level in LEVELS[1:])
        caught = " / ".join(f"{100 * rate(p[labels], level):.0f}" for level in LEVELS[1:])
        drift = uniformity(p[~labels], every, one_sided=False)
        shifted.append([image_score, rates, caught, f"{drift:.1g}"])
    nested = []
    for image_score in ("sum", "calibrated"):
        train = known.train[:30] if quick else known.train
        ours, wholly = left_out_wholly(train, known.layers, image_score)
        away = (ours - wholly) / wholly.std()
        nested.append(
            [
                image_score,
                f"{away.mean():+.3f}",
                f"{np.abs(away).max():.3f}",
                f"{spearmanr(ours, wholly).statistic:.4f}",
            ]
        )
    columns = ("image score", "mean difference", "largest", "rank correlation")
    header = ("image score", "good called anomalous", "defective called anomalous", "p of drift")
    return {
        "glassfiber": ("Glass fibre", Table(HEADER, rows)),
        "nested": ("Left out wholly", Table(columns, nested)),
        "shift": ("The test set of glass fibre", Table(header, shifted)),
    }


_SECTIONS = {
    "synthetic": _synthetic,
    "kinds": _kinds,
    "models": _models,
    "lines": _lines,
    "cifar": _cifar,
    "glassfiber": _glassfiber,
}
_OF_DATA = ("cifar", "glassfiber")

main()
