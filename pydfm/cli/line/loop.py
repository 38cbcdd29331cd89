"""The loop of a line: look at the inbox, judge what is whole, record it, until it is stopped."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from pydfm.cli.line.inbox import Arrival, Inbox, InboxGoneError, Looks
from pydfm.cli.line.record import Record

# The monitor's state is kept after so many images.
_SNAPSHOT: Final = 500


class Found(Protocol):
    """What a reading of a file gave."""

    @property
    def readable(self) -> bool:
        """Whether it could be read."""


class Judge(Protocol):
    """What scores files, as `Line` needs it."""

    def renew(self) -> None:
        """Take up a changed model file."""

    def read(self, paths: Sequence[str]) -> Sequence[Found]:
        """Score files."""

    def conclude(self, arrival: Arrival, found: Any) -> tuple[list[list[str]], list[bytes]]:
        """Return the lines of a file and what the monitor took, in the order of arrival."""

    def recorded(self) -> None:
        """Send messages of what was recorded."""

    def snapshot(self) -> str | None:
        """Return the monitor's state."""


class Line:
    """Runs a line.

    Parameters
    ----------
    inbox : Inbox
    looks : Looks
    record : Record
    judge : Judge
    stop : threading.Event
        Ends it after the batch at hand.
    batch_size : int
    tell : callable
        Takes a sentence for the person who watches.
    once : bool
        Whether to end when nothing is left that is waited for.
    """

    def __init__(
        self,
        inbox: Inbox,
        looks: Looks,
        record: Record,
        judge: Judge,
        stop: threading.Event,
        *,
        batch_size: int,
        tell: Callable[[str], None],
        once: bool = False,
    ) -> None:
        self._inbox = inbox
        self._looks = looks
        self._record = record
        self._judge = judge
        self._stop = stop
        self._batch_size = batch_size
        self._tell = tell
        self._once = once
        self._since_snapshot = 0
        self._gone = False

    def run(self) -> None:
        """Go on until it is stopped."""
        while not self._stop.is_set():
            self._judge.renew()
            if not self._look():
                self._looks.wait(1.0)
                continue
            whole = self._inbox.ready(time.monotonic())
            while whole and not self._stop.is_set():
                # Those of a large heap are judged without looking at the folder in between.
                self._take(whole[: self._batch_size])
                whole = whole[self._batch_size :]
                self._judge.renew()
            if self._stop.is_set() or (self._once and len(self._inbox) == 0):
                break
            self._looks.wait(max(self._inbox.next_change(time.monotonic()), 0.02))
        self.keep()

    def keep(self) -> None:
        """Keep the monitor's state."""
        if self._since_snapshot:
            self._record.keep(self._judge.snapshot())
            self._since_snapshot = 0

    def _look(self) -> bool:
        """Look at the inbox; return whether it is there."""
        try:
            self._inbox.scan(time.monotonic())
        except InboxGoneError as error:
            if not self._gone:
                self._tell(
                    f"the inbox '{self._inbox.root}' cannot be listed ({error}); it is waited for"
                )
            self._gone = True
            return False
        if self._gone:
            self._tell(f"the inbox '{self._inbox.root}' is there again")
            self._gone = False
        return True

    def _take(self, batch: Sequence[Arrival]) -> None:
        """Judge a batch and record it; files that changed meanwhile are found anew."""
        there = [own for own in batch if self._is_there(own)]
        if not there:
            return
        found = self._judge.read([own.path for own in there])
        now, rows, done, measured = time.monotonic(), [], [], []
        for arrival, own in zip(there, found, strict=True):
            if own.readable:
                # It may be gone by now; what was read was whole, unless it was changed.
                if Path(arrival.path).exists() and not self._inbox.unchanged(arrival):
                    self._inbox.drop(arrival)
                    continue
            elif not self._is_there(arrival) or self._inbox.retry(arrival, now):
                continue
            lines, taken = self._judge.conclude(arrival, own)
            rows += lines
            measured += taken
            done.append(arrival)
        if not done:
            return
        self._record.add(rows, [own.key(self._inbox.root) for own in done], measured)
        for arrival in done:
            self._inbox.done(arrival)
        self._judge.recorded()
        self._since_snapshot += len(rows)
        if self._since_snapshot >= _SNAPSHOT:
            self.keep()

    def _is_there(self, arrival: Arrival) -> bool:
        """Whether a file is as it was; else it is dropped, and found anew if it has changed."""
        if self._inbox.unchanged(arrival):
            return True
        self._inbox.drop(arrival)
        if not Path(arrival.path).exists() and self._inbox.root.is_dir():
            self._tell(f"'{arrival.path}' was gone before it could be scored")
        return False
