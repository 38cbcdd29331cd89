"""An audit of good images: what is wrong with the folder that a model is fitted on."""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.conformal.calibration import calibration_of
from pydfm.conformal.checks.outliers import FDR, discovery_rates
from pydfm.features.pictures.facts import Facts, near_equal
from pydfm.model.fitting import FittedDFM

FINE_ALPHA: Final = 0.001
"""A false-alarm rate that lines ask for, which needs 999 images."""

# How many robust deviations from the median are odd.
_ODD: Final = 6.0


@dataclass(frozen=True)
class AuditRow:
    """What the audit says of an image.

    Attributes
    ----------
    index : int
        Its place in X.
    name : str
        Its path, or its number.
    score : float
        The held-out score; NaN where it has none.
    p_value : float
        The share of the fitted images that score at least as high, each under a model without it.
    fdr : float
        The false discovery rate at which it is an outlier; see `pydfm.conformal.checks.outliers`.
    flagged : bool
        Whether it is one at the rate of the audit.
    copies, near : tuple of str
        Names of images that are equal to it, or nearly.
    group : int
        Number of the group that copies and near-equal images form, from 1; 0 for none.
    notes : tuple of str
        What else is odd: size, mode, exposure, sharpness, or why it cannot be read.
    facts : Facts or None
    """

    index: int
    name: str
    score: float = math.nan
    p_value: float = math.nan
    fdr: float = math.nan
    flagged: bool = False
    copies: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    group: int = 0
    notes: tuple[str, ...] = ()
    facts: Facts | None = None


@dataclass(frozen=True)
class Audit:
    """What is wrong with a folder of good images.

    Attributes
    ----------
    rows : tuple of AuditRow
        One for each image, the least like the others first.
    fdr : float
        The rate at which images are flagged.
    groups_option : str or None
        What ``--groups`` would keep the groups together.
    n_units : int
        Number of images or groups that held-out scores come from, of the smallest class.
    threshold, threshold_without : float
        The threshold at the model's alpha, and what it would be without the two worst scores; NaN
        where there is not one.
    """

    rows: tuple[AuditRow, ...]
    fdr: float = FDR
    groups_option: str | None = None
    n_units: int = 0
    threshold: float = math.nan
    threshold_without: float = math.nan

    @property
    def flagged(self) -> list[str]:
        """Names of the images that are least like the others, at the rate `fdr`."""
        return [row.name for row in self.rows if row.flagged]

    @property
    def groups(self) -> list[list[str]]:
        """Names of images that are equal or nearly equal, by group."""
        found: dict[int, list[str]] = defaultdict(list)
        for row in self.rows:
            if row.group:
                found[row.group].append(row.name)
        return [sorted(found[number]) for number in sorted(found)]

    @property
    def missing(self) -> int:
        """How many more images a false-alarm rate of 0.001 needs."""
        return max(math.ceil(1 / FINE_ALPHA) - 1 - self.n_units, 0)

    def table(self) -> Any:
        """Return a data frame with a row for each image; a dict of lists without pandas."""
        columns: dict[str, list[Any]] = {
            "image": [row.name for row in self.rows],
            "flagged": [row.flagged for row in self.rows],
            "fdr": [row.fdr for row in self.rows],
            "p_value": [row.p_value for row in self.rows],
            "score": [row.score for row in self.rows],
            "group": [row.group for row in self.rows],
            "copies": ["; ".join(row.copies) for row in self.rows],
            "near": ["; ".join(row.near) for row in self.rows],
            "notes": ["; ".join(row.notes) for row in self.rows],
        }
        measures: list[tuple[str, Callable[[Facts], Any]]] = [
            ("width", lambda facts: facts.size[1]),
            ("height", lambda facts: facts.size[0]),
            ("mode", lambda facts: facts.mode),
            ("brightness", lambda facts: facts.brightness),
            ("sharpness", lambda facts: facts.sharpness),
        ]
        for name, value in measures:
            columns[name] = [None if row.facts is None else value(row.facts) for row in self.rows]
        try:
            import pandas as pd
        except ImportError:
            return columns
        return pd.DataFrame(columns)


@dataclass(frozen=True)
class AuditInput:
    """What an audit is made of, beside the fitted model.

    Attributes
    ----------
    names : dict of int to str
        Names of the images, by their places in X.
    read : ndarray of shape (n,)
        Places in X of the images that were fitted.
    facts : dict of int to Facts
        By places in X.
    unreadable : dict of int to str
        Reasons, by places in X.
    near : sequence of (int, int)
        Pairs of places in X whose features are nearer than chance would have it.
    """

    names: Mapping[int, str]
    read: NDArray[np.intp]
    facts: Mapping[int, Facts] = field(default_factory=dict)
    unreadable: Mapping[int, str] = field(default_factory=dict)
    near: Sequence[tuple[int, int]] = ()


def audit(fitted: FittedDFM, score_type: str, alpha: float, given: AuditInput, fdr: float) -> Audit:
    """Audit the images that a model was fitted on."""
    sample = fitted.held_out_of(score_type).samples.get(score_type)
    calibration = calibration_of(fitted, score_type)
    assert sample is not None
    rates, p = discovery_rates(sample), calibration.p_values_of(sample)
    rows: dict[int, dict[str, Any]] = {
        place: {"index": place, "name": name} for place, name in given.names.items()
    }
    for k, place in enumerate(given.read[sample.places].tolist()):
        rows[place] |= {
            "score": float(sample.scores[0][k]),
            "p_value": float(p[k]),
            "fdr": float(rates[k]),
            "flagged": bool(rates[k] <= fdr),
        }
    equal, near = _pairs(given)
    for key, pairs in (("copies", equal), ("near", near)):
        for i, j in pairs:
            for one, other in ((i, j), (j, i)):
                known = rows[one].get(key, ())
                rows[one][key] = (*known, given.names[other])
    members = _components([*equal, *near])
    for number, group in enumerate(members, 1):
        for place in group:
            rows[place]["group"] = number
    notes = _notes(given.facts)
    for place in rows:
        rows[place]["facts"] = given.facts.get(place)
        rows[place]["notes"] = tuple(notes.get(place, ()))
    for place, reason in given.unreadable.items():
        rows[place]["notes"] = (f"cannot be read: {reason}",)
    done = [AuditRow(**own) for own in rows.values()]
    done.sort(key=lambda row: (not row.flagged, np.nan_to_num(row.p_value, nan=2.0), -row.score))
    known = [[given.names[place] for place in group] for group in members]
    names = [given.names[place] for place in sorted(given.names)]
    threshold = without = math.nan
    if len(calibration.ranks) == 1 and not calibration.in_folds:
        threshold = calibration.threshold(alpha)
        kept = np.sort(sample.scores[0])[:-2]
        if len(kept):
            left = type(calibration).of(kept, np.zeros(len(kept), dtype=np.intp))
            without = left.threshold(alpha)
    return Audit(
        tuple(done),
        fdr,
        groups_option(names, known),
        int(calibration.n_units[calibration.usable].min(initial=np.inf)),
        threshold,
        without,
    )


def groups_option(names: Sequence[str], groups: Sequence[Sequence[str]]) -> str | None:
    """Return what ``--groups`` would keep all `groups` of images together, and not put all in one.

    Of those that do, the one that makes the most groups; None where none does.
    """
    if not groups:
        return None
    candidates: list[tuple[str, Callable[[str], str | None]]] = [("folders", os.path.dirname)]
    for pattern in (
        r"(?:^|/)([^/]*)[_-][^/]*$",
        r"(?:^|/)([^/]*?)[_-][^/]*$",
        r"([0-9]+)[^/]*$",
    ):
        candidates.append((pattern, _finder(pattern)))
    best, most = None, 1
    for option, key in candidates:
        keys = [key(name) for name in names]
        together = all(len({key(name) for name in group}) == 1 for group in groups)
        count = len(set(keys))
        if together and None not in keys and most < count < len(names):
            best, most = option, count
    return best


def _finder(pattern: str) -> Callable[[str], str | None]:
    def find(name: str) -> str | None:
        found = re.search(pattern, name)
        return None if found is None else found.group(1)

    return find


def _pairs(given: AuditInput) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return pairs of places of equal images, and of nearly equal ones."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for place, facts in sorted(given.facts.items()):
        by_digest[facts.digest].append(place)
    equal = [(own[0], other) for own in by_digest.values() for other in own[1:]]
    near = {(min(pair), max(pair)) for pair in given.near}
    places = sorted(given.facts)
    if places:
        thumbs = np.stack([given.facts[place].thumb for place in places])
        near |= {(places[i], places[j]) for i, j in near_equal(thumbs).tolist()}
    same = {
        (i, j)
        for i, j in near
        if i in given.facts and j in given.facts and given.facts[i].digest == given.facts[j].digest
    }
    return equal, sorted(near - same - set(equal))


def _components(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the sets of places that pairs connect, sorted."""
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        while parent.setdefault(place, place) != place:
            parent[place] = place = parent[parent[place]]
        return place

    for i, j in pairs:
        first, second = sorted((root(i), root(j)))
        parent[second] = first
    found: dict[int, list[int]] = defaultdict(list)
    for place in sorted(parent):
        found[root(place)].append(place)
    return [found[place] for place in sorted(found)]


def _notes(facts: Mapping[int, Facts]) -> dict[int, list[str]]:
    """Return, by place, what is unlike most images: size, mode, exposure, sharpness."""
    notes: dict[int, list[str]] = defaultdict(list)
    if not facts:
        return notes
    kinds: list[tuple[str, Callable[[Facts], str]]] = [
        ("size", lambda f: f"{f.size[1]} x {f.size[0]} px"),
        ("mode", lambda f: f.mode),
    ]
    for what, kind in kinds:
        common, count = Counter(kind(own) for own in facts.values()).most_common(1)[0]
        for place, own in facts.items():
            if kind(own) != common:
                most = f"{count} of {len(facts)} have {common}"
                notes[place].append(f"its {what} is {kind(own)}; {most}")
    measures: list[tuple[Callable[[Facts], float], str, str]] = [
        (lambda f: f.brightness, "darker", "brighter"),
        (lambda f: f.contrast, "flatter", "richer in contrast"),
        (lambda f: f.sharpness, "more blurred", "sharper or noisier"),
    ]
    for value, low, high in measures:
        each = np.array([value(own) for own in facts.values()])
        middle = np.median(each)
        unit = 1.4826 * np.median(np.abs(each - middle))
        if unit <= 0:
            continue
        for place, one in zip(facts, each, strict=True):
            if abs(one - middle) > _ODD * unit:
                word = low if one < middle else high
                notes[place].append(f"{word} than the others ({one:.2g}; median {middle:.2g})")
    return notes
