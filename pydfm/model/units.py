"""Units: the rows that are left out together, and the folds that units are drawn into.

Rows that share a part, a film or a day are not independent: a model that has seen one knows the
others. Such rows, a group, are one unit, within each class; a row without a group is a unit by
itself. Units of a class are numbered from 0 in the order in which they come; a merge of rows that
are held out in folds passes over some numbers, so that each unit stays in its fold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features.inputs.labels import by_class
from pydfm.stats.sample import hashed

_Integers = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Units:
    """The units of the rows that came so far; immutable.

    Attributes
    ----------
    counts : ndarray of shape (C,)
        The next unit of each class.
    grouped : bool or None
        Whether rows have groups; None before the first.
    numbers : dict of (int, object) to int
        The unit of each class and group.
    sizes : tuple of ndarray of shape (counts[c],)
        With groups, the number of rows of each unit of each class.
    """

    counts: _Integers = field(default_factory=lambda: np.zeros(0, dtype=np.intp))
    grouped: bool | None = None
    numbers: Mapping[tuple[int, Any], int] = field(default_factory=dict)
    sizes: tuple[_Integers, ...] = ()

    def add(
        self, classes: _Integers, groups: NDArray[Any] | None, n_classes: int
    ) -> tuple["Units", _Integers]:
        """Return the units with rows added, and the unit (N,) of each row.

        Parameters
        ----------
        classes : ndarray of shape (N,)
        groups : ndarray of shape (N,) or None
        n_classes : int
            More than the largest number of a class.

        Raises
        ------
        ValueError
            If rows have groups and those before had none, or the other way round.
        """
        self._check_grouped(groups is not None)
        counts = _extended(self.counts, n_classes)
        units = np.empty(len(classes), dtype=np.intp)
        if groups is None:
            for c, places in by_class(classes):
                units[places] = counts[c] + np.arange(len(places))
                counts[c] += len(places)
            return Units(counts, False), units
        numbers = dict(self.numbers)
        for i, (c, group) in enumerate(zip(classes.tolist(), groups.tolist(), strict=True)):
            unit = numbers.setdefault((c, group), int(counts[c]))
            counts[c] += unit == counts[c]
            units[i] = unit
        sizes = list(self._sizes(counts))
        for c, places in by_class(classes):
            sizes[c] = sizes[c] + np.bincount(units[places], minlength=counts[c])
        return Units(counts, True, numbers, tuple(sizes)), units

    def merge(
        self, other: "Units", classes: _Integers, n_folds: int = 1, seed: int = 0
    ) -> tuple["Units", tuple[_Integers, ...]]:
        """Return the units of both, and what the units of each class of `other` become.

        Parameters
        ----------
        other : Units
        classes : ndarray of shape (C,)
            What the classes 0, ..., C - 1 of `other` are here.
        n_folds, seed : int
            As in `draw_folds`: with several folds units stay in theirs, also those of rows that
            come later, and no group may be in both.

        Raises
        ------
        ValueError
            If one has groups and the other has none, or, with several folds, both have a group.
        """
        if other.grouped is None:
            return self, ()
        self._check_grouped(other.grouped)
        counts = _extended(self.counts, int(classes.max()) + 1 if len(classes) else 0)
        numbers = dict(self.numbers)
        maps = [np.arange(count) for count in other.counts]
        if n_folds > 1 or not other.grouped:
            self._check_apart(other, classes)
            for c, own in enumerate(classes[: len(maps)]):
                maps[c] = _in_same_folds(len(maps[c]), int(counts[own]), n_folds, seed)
                counts[own] = maps[c].max(initial=counts[own] - 1) + 1
        for (c, group), unit in other.numbers.items():
            own = int(classes[c])
            first = int(counts[own] if n_folds == 1 else maps[c][unit])
            maps[c][unit] = numbers.setdefault((own, group), first)
            counts[own] += maps[c][unit] == counts[own]
        if not other.grouped:
            return Units(counts, False), tuple(maps)
        sizes = list(self._sizes(counts))
        for c, theirs in enumerate(other.sizes):
            np.add.at(sizes[classes[c]], maps[c], theirs)
        return Units(counts, True, numbers, tuple(sizes)), tuple(maps)

    def remove(self, classes: _Integers, groups: NDArray[Any] | None) -> "Units":
        """Return the units without rows of `classes` (N,) and `groups` (N,); no number changes.

        Raises
        ------
        ValueError
            If a group is none of those of its class; or rows have groups and none are given.
        """
        if not self.grouped:
            return self
        if groups is None:
            raise ValueError(
                "the model was fitted with groups, and groups is None; give those of X"
            )
        sizes = [own.copy() for own in self._sizes(self.counts)]
        for c, group in zip(classes.tolist(), groups.tolist(), strict=True):
            unit = self.numbers.get((c, group))
            if unit is None or sizes[c][unit] == 0:
                raise ValueError(
                    f"groups has {group!r}, and the model was fitted on no more rows of that group"
                )
            sizes[c][unit] -= 1
        return Units(self.counts, True, self.numbers, tuple(sizes))

    def remove_class(self, c: int) -> "Units":
        """Return the units without the rows of class `c`."""
        sizes = [own * (i != c) for i, own in enumerate(self.sizes)]
        return Units(self.counts, self.grouped, self.numbers, tuple(sizes))

    def complete(self, classes: _Integers, units: _Integers, positions: int) -> NDArray[np.bool_]:
        """Return which of some rows (n,) belong to units all rows of which are among them.

        Parameters
        ----------
        classes, units : ndarray of shape (n,)
        positions : int
            Number of rows that each row or image of a unit has made.
        """
        whole = np.ones(len(units), dtype=bool)
        if self.grouped or positions > 1:
            for c, places in by_class(classes):
                own = units[places]
                have = np.bincount(own, minlength=self.counts[c])
                size = self._sizes(self.counts)[c] if self.grouped else np.ones_like(have)
                whole[places] = (have == positions * size)[own]
        return whole

    def n_groups(self, c: int) -> int:
        """Return the number of units of class `c` that have rows; only with groups."""
        return int(np.count_nonzero(self.sizes[c])) if c < len(self.sizes) else 0

    def _sizes(self, counts: _Integers) -> tuple[_Integers, ...]:
        """Return the sizes of so many units of each class."""
        none = [np.zeros(0, dtype=np.intp)] * (len(counts) - len(self.sizes))
        return tuple(
            _extended(own, count) for own, count in zip([*self.sizes, *none], counts, strict=True)
        )

    def _check_apart(self, other: "Units", classes: _Integers) -> None:
        """Raise ValueError where both have rows of a group; `classes` as in `merge`."""
        for c, group in other.numbers:
            if (int(classes[c]), group) in self.numbers:
                raise ValueError(
                    f"the group {group!r} has rows in both models, which may be in different "
                    "folds; fit them together, or with calibration='loo'"
                )

    def _check_grouped(self, grouped: bool) -> None:
        if self.grouped is not None and self.grouped != grouped:
            have, lack = ("with", "none are") if self.grouped else ("without", "some are")
            raise ValueError(
                f"the model was fitted {have} groups, and {lack} given now; give groups "
                "(--groups) always or never"
            )


def draw_folds(units: _Integers, n_folds: int, seed: int) -> _Integers:
    """Return the folds (N,) of `units` (N,): each fold gets one, at random, of each `n_folds`."""
    blocks, own = np.divmod(units, n_folds)
    drawn = hashed(blocks[:, None] * n_folds + np.arange(n_folds), seed)
    return np.asarray(drawn.argsort(axis=1).argsort(axis=1)[np.arange(len(units)), own])


def _in_same_folds(count: int, first: int, n_folds: int, seed: int) -> _Integers:
    """Return numbers (count,) from `first` on, whose folds are those of 0, ..., count - 1.

    They begin with a block, in which each fold has one number.
    """
    begin, units = -(-first // n_folds) * n_folds, np.arange(count)
    blocks = units // n_folds
    there = begin + blocks[:, None] * n_folds + np.arange(n_folds)
    folds = draw_folds(there.reshape(-1), n_folds, seed).reshape(there.shape)
    same = folds == draw_folds(units, n_folds, seed)[:, None]
    return np.asarray(there[same])


def _extended(counts: _Integers, length: int) -> _Integers:
    """Return a copy of `counts`, with zeros up to a length."""
    total = np.zeros(max(length, len(counts)), dtype=np.intp)
    total[: len(counts)] = counts
    return total
