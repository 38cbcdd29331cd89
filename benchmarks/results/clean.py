"""Defects among the good pictures: how many `fit(clean=...)` finds, and what that is worth."""

import warnings
from pathlib import Path

import numpy as np

from benchmarks.report import Table
from benchmarks.results.glassfiber import DEFAULT, SHARE, SIZE, WEIGHTS
from pydfm import DFM
from pydfm.conformal.checks.outliers import FDR
from pydfm.datasets.category import load_category
from pydfm.metrics import evaluate

N_GOOD, N_BAD, DRAWS = 60, (0, 3, 7, 15), 8

_HEADER = (
    "defects among 60 good",
    "flagged",
    "precision",
    "recall",
    "precision, first fit",
    "recall, first fit",
    "AUROC with the defects",
    "AUROC with clean",
    "AUROC of good alone",
)


def tables(data: Path) -> dict[str, tuple[str, Table]]:
    category = load_category(data / "glassfiber")
    labels = np.array(category.labels)
    test = np.array(category.test)
    good = np.concatenate([np.array(category.train), test[~labels]])
    bad = test[labels]
    everything = np.concatenate([good, bad])
    is_bad = np.arange(len(everything)) >= len(good)
    features = _model(data).fit(category.train).extract(everything.tolist())
    rng = np.random.default_rng(0)
    rows = []
    for n_bad in N_BAD:
        each = []
        for _ in range(DRAWS):
            chosen = np.concatenate(
                [rng.permutation(len(good))[:N_GOOD], len(good) + rng.permutation(len(bad))[:n_bad]]
            )
            each.append(_draw(data, everything, is_bad, features, chosen))
        counts = np.array([own[:4] for own in each], dtype=float).sum(axis=0)
        areas = np.array([own[4:] for own in each]).mean(axis=0)
        found, flagged, first_found, first_flagged = counts
        rows.append(
            [
                f"{n_bad} ({n_bad / (N_GOOD + n_bad):.0%})",
                f"{flagged / DRAWS:.1f}",
                _ratio(found, flagged),
                _ratio(found, n_bad * DRAWS),
                _ratio(first_found, first_flagged),
                _ratio(first_found, n_bad * DRAWS),
                *(f"{area:.3f}" for area in areas),
            ]
        )
    return {"clean": ("Defects among the good", Table(_HEADER, rows))}


def _draw(data, everything, is_bad, features, chosen):
    """Return the counts of flagged images, and AUROC on all images that were not chosen."""
    paths = everything[chosen].tolist()
    bad = set(everything[is_bad].tolist())
    rest = np.setdiff1d(np.arange(len(everything)), chosen)

    def area(dfm):
        return evaluate(dfm.score(features[rest]), is_bad[rest])["auroc"]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unlike the others|X holds rows")
        dirty = _model(data).fit(paths)
        clean = _model(data).fit(paths, clean=FDR)
        alone = _model(data).fit([path for path in paths if path not in bad])
    first = dirty.audit().flagged
    left_out = clean.left_out_
    return (
        len(bad & set(left_out)),
        len(left_out),
        len(bad & set(first)),
        len(first),
        area(dirty),
        area(clean),
        area(alone),
    )


def _model(data):
    return DFM(SHARE, weights=data / WEIGHTS, image_size=SIZE, **DEFAULT)


def _ratio(part, whole):
    return f"{part / whole:.2f}" if whole else ""
