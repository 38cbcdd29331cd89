"""The journal of a model: what it came from, step by step, from the fit on."""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pydfm import __version__
from pydfm.io.fields import fields, integer, text


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
    """

    what: str
    n_samples: int
    total: int
    when: str
    pydfm: str

    @classmethod
    def now(cls, what: str, n_samples: int, total: int) -> "Entry":
        """Return a step that was made at this moment."""
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(what, int(n_samples), int(total), when, __version__)


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
    )
