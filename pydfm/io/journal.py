"""The journal of a model: what it came from, step by step, from the fit on."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from pydfm import __version__
from pydfm.io.fields import fields, integer, items, text

MOST_NAMES: Final = 100
"""So many names of a step's images are kept."""


@dataclass(frozen=True)
class Entry:
    """A step.

    Attributes
    ----------
    what : str
        "fit", "add", "forget", "merge" or "calibrate".
    n_samples : int
        How many images or rows were fitted, added, forgotten, merged in or calibrated by.
    total : int
        How many the model was fitted on after the step.
    when : str
        Time of the step, ISO 8601, in UTC.
    pydfm : str
        Version that made it.
    names : tuple of str
        The images that were added, forgotten or calibrated by, where they are files: the first 100.
    """

    what: str
    n_samples: int
    total: int
    when: str
    pydfm: str
    names: tuple[str, ...] = ()

    @classmethod
    def now(cls, what: str, n_samples: int, total: int, names: Sequence[str] = ()) -> "Entry":
        """Return a step that was made at this moment."""
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        first = tuple(names[:MOST_NAMES])
        return cls(what, int(n_samples), int(total), when, __version__, first)


def entry_from(described: Any) -> Entry:
    """Return the entry that a file describes.

    Raises
    ------
    KeyError, ValueError
        If it is none.
    """
    own = fields("a step of its journal", described)
    when = text("when of a step of its journal", own["when"])
    datetime.fromisoformat(when)
    return Entry(
        text("what of a step of its journal", own["what"]),
        integer("n_samples of a step of its journal", own["n_samples"]),
        integer("total of a step of its journal", own["total"]),
        when,
        text("the version of a step of its journal", own["pydfm"]),
        tuple(
            text("a name of a step of its journal", name)
            for name in items("names of a step of its journal", own.get("names", []))
        ),
    )
