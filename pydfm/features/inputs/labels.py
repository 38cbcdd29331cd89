"""Class labels and groups of rows and images: from arrays, folders or loaders, and as numbers."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features.inputs.arrays import as_array, check_unmasked
from pydfm.runtime.checks import check_choice


class RowLabels:
    """The labels of the rows or images of a source, or their groups.

    Parameters
    ----------
    values : array-like of shape (N,)
        Integers or strings, one for each row or image.
    name : {"labels", "groups"}
        What they are, for messages.
    """

    def __init__(self, values: Any, name: str = "labels") -> None:
        self._name = name
        self._growing: list[Any] | None = None
        self._values: NDArray[Any] | None = as_labels(values, name)

    @classmethod
    def of_loader(cls, growing: list[Any]) -> "RowLabels":
        """Return the labels in a list that grows while a loader is read."""
        labels = cls([])
        labels._growing, labels._values = growing, None
        return labels

    @classmethod
    def of_folders(cls, X: Any, names: Sequence[str] | None) -> "RowLabels":
        """Return the labels of the images in the folder `X`: the names of its subfolders.

        Parameters
        ----------
        X : path
            A folder with a subfolder for each class.
        names : sequence of str or None
            Paths of the N images, in order; None where they are not files.

        Raises
        ------
        ValueError
            If X is not a folder, or an image lies in none of its subfolders.
        """
        if names is None or not isinstance(X, str | os.PathLike) or not Path(X).is_dir():
            raise ValueError(
                "labels is 'folders', which needs X to be a folder whose subfolders are the "
                "classes; pass such a folder, or an array of labels"
            )
        places = [Path(name).relative_to(X).parts for name in names]
        loose = next(
            (name for name, place in zip(names, places, strict=True) if len(place) < 2), None
        )
        if loose is not None:
            raise ValueError(
                f"labels is 'folders', but '{loose}' lies in no subfolder of '{os.fspath(X)}'; "
                "move it into the folder of its class"
            )
        return cls(np.array([place[0] for place in places]))

    @classmethod
    def of_groups(cls, groups: Any, names: Sequence[str] | None) -> "RowLabels":
        """Return the groups of rows or images.

        Parameters
        ----------
        groups : array-like of shape (N,), "folders" or callable
            One for each; or the folder that each file is in; or a function of its path.
        names : sequence of str or None
            Paths of the N images, in order; None where they are not files.

        Raises
        ------
        ValueError, TypeError
            If there are no paths, or the groups are neither integers nor strings.
        """
        if not callable(groups) and not isinstance(groups, str):
            return cls(groups, "groups")
        if isinstance(groups, str):
            check_choice("groups", groups, ("folders",))
        if names is None:
            named = repr(groups) if isinstance(groups, str) else "a function of the path"
            raise ValueError(
                f"groups is {named}, which needs X to be files; pass a folder or a list of paths, "
                "or an array of groups"
            )
        if isinstance(groups, str):
            return cls(np.array([os.fspath(Path(name).parent) for name in names]), "groups")
        return cls([groups(name) for name in names], "groups")

    def take(self, places: Sequence[int] | slice) -> NDArray[Any]:
        """Return the labels of the rows with these indices.

        Raises
        ------
        ValueError
            If there are fewer labels than rows.
        """
        if self._growing is not None:
            some = (
                self._growing[places]
                if isinstance(places, slice)
                else [self._growing[i] for i in places]
            )
            return as_labels(some)
        assert self._values is not None
        last = places.stop - 1 if isinstance(places, slice) else max(places)
        if last >= len(self._values):
            raise ValueError(
                f"{self._name} has {len(self._values)} {self._name}, and X has more rows; give one "
                "for each"
            )
        taken: NDArray[Any] = self._values[places]
        return taken

    def check_count(self, count: int) -> None:
        """Raise ValueError unless there are `count` labels; those of a loader always match."""
        if self._values is not None and len(self._values) != count:
            raise ValueError(
                f"{self._name} has {len(self._values)} {self._name}, and X has {count} rows or "
                "images; give one for each"
            )


def as_labels(labels: Any, name: str = "labels") -> NDArray[Any]:
    """Return `labels`, called `name`, as an array (N,) of integers or strings.

    Raises
    ------
    ValueError
        If they are not one-dimensional, or one of them is a number but not an integer.
    TypeError
        If they are neither integers nor strings.
    """
    check_unmasked(labels, name)
    try:
        array = as_array(labels)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made an array: {error}") from None
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} has the shape {array.shape}; it must be (N,), one for each row")
    if array.dtype.kind == "O":
        if all(isinstance(value, str) for value in array):
            return array.astype(str)
        if all(isinstance(value, int | np.integer) for value in array):
            large = [value for value in array if not -(2**63) <= value < 2**63]
            if large:
                raise ValueError(f"{name} has {large[0]}, which exceeds 64 bits; pass strings")
            return array.astype(np.int64)
        missing = [
            i
            for i, value in enumerate(array)
            if type(value).__name__ == "NAType" or (isinstance(value, float) and np.isnan(value))
        ]
        if missing:
            raise ValueError(
                f"{name} has {array[missing[0]]} in row {missing[0]}; give one for each row"
            )
    if array.dtype.kind == "f":
        whole = (np.abs(array) < 2.0**63) & (array == np.rint(array))
        if not whole.all():
            raise ValueError(f"{name} has {array[~whole][0]}; they must be integers or strings")
        return array.astype(np.int64)
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} must be integers or strings")
    if array.dtype.kind not in "iubU":
        raise TypeError(f"{name} is of the type {array.dtype}; they must be integers or strings")
    return array


def warn_of_ignored(y: Any, *, stacklevel: int = 1) -> None:
    """Warn that `y` is ignored if it looks like classes, which `labels` is for.

    Numbers with fractions, and marks of outliers (+1 and -1, 0 and 1, or bool), are no classes.

    Parameters
    ----------
    stacklevel : int
        The line that the warning names: 1 is the line that calls this function, 2 the line that
        calls the caller, and so on.
    """
    if y is not None and _looks_like_classes(y):
        warnings.warn(
            "y looks like classes and is ignored, as by all outlier detectors of scikit-learn; "
            "pass classes as labels",
            stacklevel=stacklevel + 1,
        )


def _looks_like_classes(y: Any) -> bool:
    try:
        array = as_array(y)
    except ValueError:  # rows of several lengths
        return False
    if array.dtype.kind == "O":
        return any(isinstance(value, str) for value in array.ravel())
    if array.dtype.kind in "iu":
        values = set(np.unique(array).tolist())
        return not (values <= {-1, 1} or values <= {0, 1})
    return array.dtype.kind == "U"


class ClassCodes:
    """Numbers for classes: 0, 1, ... in the order in which the classes first appear."""

    def __init__(self) -> None:
        self._codes: dict[Any, int] = {}

    @classmethod
    def of(cls, labels: Sequence[Any]) -> "ClassCodes":
        """Return the numbers of different `labels` that appeared in this order."""
        codes = cls()
        codes._codes = {label: c for c, label in enumerate(labels)}
        return codes

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self._codes)

    @property
    def labels(self) -> list[Any]:
        """Labels of the classes, in the order of their numbers."""
        return list(self._codes)

    def encode(self, labels: NDArray[Any]) -> NDArray[np.intp]:
        """Return the numbers (N,) of `labels` (N,); new labels get new numbers.

        Raises
        ------
        TypeError
            If there are numbers and strings among all labels so far.
        """
        found, inverse = np.unique(labels, return_inverse=True)
        codes = [self._codes.setdefault(value, len(self._codes)) for value in found.tolist()]
        kinds = {type(value) for value in self._codes}
        if len(kinds) > 1:
            raise TypeError("labels holds numbers and strings; they must be of one kind")
        return np.array(codes, dtype=np.intp)[inverse]

    def copy(self) -> "ClassCodes":
        """Return a copy, which can grow on its own."""
        other = ClassCodes()
        other._codes = dict(self._codes)
        return other

    def find(self, labels: NDArray[Any], name: str = "labels") -> NDArray[np.intp]:
        """Return the numbers (N,) of `labels` (N,); see `find_classes` for unknown ones."""
        classes = np.array(list(self._codes))
        order = np.argsort(classes)
        return order[find_classes(labels, classes[order], name)]

    def numbers_of(self, other: "ClassCodes") -> NDArray[np.intp]:
        """Return the numbers (C,) of the C classes of `other`; new classes get new numbers."""
        return self.encode(np.array(list(other._codes)))

    def sorted(self, counts: NDArray[np.intp]) -> tuple[list[Any], list[int]]:
        """Return the classes that have rows, sorted, and their numbers.

        Parameters
        ----------
        counts : array of shape (C,)
            Number of rows of each class.
        """
        classes = sorted(label for label, c in self._codes.items() if counts[c] > 0)
        return classes, [self._codes[label] for label in classes]


def by_class(classes: NDArray[np.intp]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each number in `classes` (N,), and the indices (n,) of the rows that have it."""
    if len(classes) == 0:
        return
    order = np.argsort(classes, kind="stable")
    found, first = np.unique(classes[order], return_index=True)
    for c, places in zip(found, np.split(order, first[1:]), strict=True):
        yield int(c), places


def find_classes(
    labels: NDArray[Any], classes: NDArray[Any], name: str = "labels"
) -> NDArray[np.intp]:
    """Return the indices (N,) of `labels` (N,), called `name`, in the sorted `classes` (C,).

    Raises
    ------
    ValueError
        If a label is none of the classes.
    """
    comparable = (labels.dtype.kind == "U") == (classes.dtype.kind == "U")
    places = np.searchsorted(classes, labels) if comparable else np.zeros(len(labels), np.intp)
    places = np.minimum(places, len(classes) - 1)
    known = classes[places] == labels if comparable else np.zeros(len(labels), dtype=bool)
    if not known.all():
        strange = labels[~known][0]
        listed = ", ".join(repr(c) for c in classes[:10].tolist())
        more = f" and {len(classes) - 10} others" if len(classes) > 10 else ""
        raise ValueError(
            f"{name} has {strange.item()!r}, which is none of the classes the model was fitted "
            f"with: {listed}{more}"
        )
    return places
