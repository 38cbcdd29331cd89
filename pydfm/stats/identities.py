"""Which images a training state was made of: a short hash of each, by which it can be forgotten.

Once rows are folded into moments, a row cannot be recognised among them. The hash of an image's
pixels is the same in every batch, while its features may differ in their last bits.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

# 16 bytes each; beyond so many images their hashes are not kept.
_MOST: Final = 10_000_000
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)


class UnknownRowError(ValueError):
    """A row, or an image, that is to be removed is none of those that were fitted.

    Parameters
    ----------
    index : int
        Its place among those that were given.
    why : str
    what : str

    Attributes
    ----------
    index : int
    why : str
    """

    def __init__(self, index: int, why: str = "", what: str = "row") -> None:
        self.index, self.what = index, what
        self.why = why or "is none of those the model was fitted on"
        super().__init__(f"{what} {index} of X {self.why}")

    @classmethod
    @contextlib.contextmanager
    def among(cls, places: NDArray[np.intp]) -> Iterator[None]:
        """Tell of the place (n,) among all rows where a part of them is removed."""
        try:
            yield
        except cls as error:
            raise cls(int(places[error.index]), error.why, error.what) from None


@dataclass(frozen=True, eq=False)
class Identities:
    """An immutable collection of hashes with the classes of their images.

    Attributes
    ----------
    chunks : tuple of (hashes, classes), or None
        Arrays of shape (n,), uint64 and intp. None where the hash of some image is not known.
    """

    chunks: tuple[tuple[NDArray[np.uint64], NDArray[np.intp]], ...] | None = ()

    @property
    def known(self) -> bool:
        """Whether the hashes of all images are known."""
        return self.chunks is not None

    def __len__(self) -> int:
        """Return the number of hashes."""
        return sum(len(hashes) for hashes, _ in self.chunks or ())

    def add(
        self, hashes: NDArray[np.uint64] | None, classes: NDArray[np.intp] | None
    ) -> "Identities":
        """Return the collection with `hashes` (n,) of images of `classes` (n,) added."""
        if hashes is None or self.chunks is None or len(self) + len(hashes) > _MOST:
            return Identities(None)
        own = np.zeros(len(hashes), dtype=np.intp) if classes is None else classes
        return Identities((*self.chunks, (hashes, own)))

    def merge(self, other: "Identities", numbers: NDArray[np.intp]) -> "Identities":
        """Return the collection of both, where class c of `other` is ``numbers[c]`` here."""
        if self.chunks is None or other.chunks is None or len(self) + len(other) > _MOST:
            return Identities(None)
        theirs = tuple((hashes, numbers[classes]) for hashes, classes in other.chunks)
        return Identities(self.chunks + theirs)

    def take(self) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """Return all hashes (n,) and classes (n,), which are known."""
        assert self.chunks is not None
        none = (np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.intp))
        own, numbers = (np.concatenate(part) for part in zip(none, *self.chunks, strict=True))
        return own, numbers

    def remove(self, hashes: NDArray[np.uint64], classes: NDArray[np.intp] | None) -> "Identities":
        """Return the collection without `hashes` (n,) of `classes` (n,).

        Raises
        ------
        ValueError
            If an image is not in the collection, or fewer times than it is to be removed.
        """
        own, numbers = self.take()
        have = _keys(own, numbers)
        gone = _keys(hashes, np.zeros(len(hashes), np.intp) if classes is None else classes)
        order = np.argsort(have, kind="stable")
        # The i-th copy of a hash that goes takes the i-th that is there.
        rank = np.argsort(np.argsort(gone, kind="stable"), kind="stable")
        first = np.searchsorted(np.sort(gone), gone)
        places = np.searchsorted(have[order], gone) + rank - first
        found = places < len(have)
        found[found] = have[order[places[found]]] == gone[found]
        if not found.all():
            first_lost = int(found.argmin())
            why = ""
            if gone[first_lost] in have:
                why = "comes more often than the model was fitted on it; give it once"
            raise UnknownRowError(first_lost, why, "image")
        stay = np.delete(np.arange(len(have)), order[places])
        return Identities(((own[stay], numbers[stay]),))

    def remove_class(self, c: int) -> "Identities":
        """Return the collection without the images of class `c`."""
        if self.chunks is None:
            return self
        return Identities(tuple((hashes[own != c], own[own != c]) for hashes, own in self.chunks))


def _keys(hashes: NDArray[np.uint64], classes: NDArray[np.intp]) -> NDArray[np.uint64]:
    return np.asarray(hashes ^ (classes.astype(np.uint64) * _ODD))
