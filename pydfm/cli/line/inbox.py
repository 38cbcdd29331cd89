"""An inbox: the folder in which images arrive, and which of them are there as a whole."""

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PATIENCE: Final = 10.0
"""Seconds for which a file that cannot be read is waited for: its writer may have paused."""

# With events, the folder is still looked at so often, in seconds: events can be lost.
_WITH_EVENTS: Final = 30.0


class InboxGoneError(OSError):
    """The inbox cannot be listed now."""


@dataclass
class Arrival:
    """A file in the inbox that was not scored yet.

    Attributes
    ----------
    path : str
    size, changed : int
        Bytes, and the time of the last change in nanoseconds.
    first : float
        When it was first seen, by the caller's clock.
    since : float
        Since when it has not changed.
    next_look : float
        Not to be read before.
    wait : float
        Seconds until it is tried again, if it cannot be read.
    """

    path: str
    size: int
    changed: int
    first: float
    since: float
    next_look: float = 0.0
    wait: float = field(default=0.25)

    def key(self, root: Path) -> bytes:
        """Return what tells it from all other files, and from itself once it has changed."""
        name = os.fsencode(os.path.relpath(self.path, root))
        text = b"%d %d %s" % (self.size, self.changed, name)
        return hashlib.blake2b(text, digest_size=16).digest()


class Inbox:
    """Finds files that have arrived as a whole, each once.

    A file is whole when size and time have not changed for `settle` seconds. One that is written
    under another name, hidden or without the ending of an image, and then renamed, is seen only
    when it is whole, and `settle` may be 0. A file that changes after it was scored is a new one.

    Parameters
    ----------
    root : Path
    settle : float
    is_known : callable
        Whether the file with a key was scored, in this process or one before.
    """

    def __init__(self, root: Path, settle: float, is_known: Callable[[bytes], bool]) -> None:
        self.root = root
        self.settle = settle
        self._is_known = is_known
        self._waiting: dict[str, Arrival] = {}
        self._done: dict[str, tuple[int, int]] = {}  # only files that are there

    def __len__(self) -> int:
        """Return how many files are waited for."""
        return len(self._waiting)

    def scan(self, now: float) -> None:
        """Look at the folder.

        Raises
        ------
        InboxGoneError
            If it cannot be listed. What is known stays so.
        """
        found: dict[str, tuple[int, int]] = {}
        self._walk(self.root, found, set())
        for path, (size, changed) in found.items():
            if self._done.get(path) == (size, changed):
                continue
            old = self._waiting.get(path)
            if old is not None and (old.size, old.changed) == (size, changed):
                continue
            first = now if old is None else old.first
            arrival = Arrival(path, size, changed, first, now)
            if old is None and self._is_known(arrival.key(self.root)):
                self._done[path] = (size, changed)
            else:
                self._waiting[path] = arrival
        for known in (self._waiting, self._done):
            for path in [path for path in known if path not in found]:
                del known[path]

    def ready(self, now: float) -> list[Arrival]:
        """Return the files that are whole, in the order in which they came."""
        whole = [own for own in self._waiting.values() if now >= self._due(own)]
        return sorted(whole, key=lambda own: (own.first, own.changed, own.path))

    def unchanged(self, arrival: Arrival) -> bool:
        """Whether the file is still what it was when it was called whole."""
        try:
            own = Path(arrival.path).stat()
        except OSError:
            return False
        return (own.st_size, own.st_mtime_ns) == (arrival.size, arrival.changed)

    def retry(self, arrival: Arrival, now: float) -> bool:
        """Wait for a file that cannot be read; return False where it was waited for enough."""
        if now >= arrival.since + PATIENCE:
            return False
        arrival.next_look = now + arrival.wait
        arrival.wait = min(2 * arrival.wait, 4.0)
        return True

    def done(self, arrival: Arrival) -> None:
        """Note that a file was scored."""
        self._waiting.pop(arrival.path, None)
        self._done[arrival.path] = (arrival.size, arrival.changed)

    def drop(self, arrival: Arrival) -> None:
        """Forget a file that is gone, or was changed; the next look finds it anew."""
        self._waiting.pop(arrival.path, None)

    def next_change(self, now: float) -> float:
        """Return in how many seconds a file that is waited for is to be looked at again."""
        due = min((self._due(own) for own in self._waiting.values()), default=float("inf"))
        return max(due - now, 0.0)

    def _due(self, arrival: Arrival) -> float:
        """Return when a file is whole if it does not change; an empty one is waited for."""
        wait = self.settle if arrival.size else max(self.settle, PATIENCE)
        return max(arrival.since + wait, arrival.next_look)

    def _walk(self, folder: Path, found: dict[str, tuple[int, int]], above: set[str]) -> None:
        from pydfm.features.inputs.images import is_image_name

        try:
            real = os.path.realpath(folder)
            if real in above:  # a link that leads back up
                return
            entries = list(os.scandir(folder))
        except OSError as error:
            if folder == self.root:
                raise InboxGoneError(error.strerror or str(error)) from error
            return  # it went away since its parent was listed
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    self._walk(Path(entry.path), found, {*above, real})
                elif is_image_name(entry.name):
                    own = entry.stat()
                    found[entry.path] = (own.st_size, own.st_mtime_ns)
            except OSError:
                continue  # it went away since it was listed


class Looks:
    """Says when to look at the inbox: by events where these can be had, else every so often.

    Parameters
    ----------
    root : Path
    stop : threading.Event
        Ends all waiting.
    interval : float or None
        Seconds between two looks without events; None for events, if watchfiles is installed.
    tell : callable
        Takes a sentence for the person who watches.
    """

    def __init__(
        self,
        root: Path,
        stop: threading.Event,
        interval: float | None,
        tell: Callable[[str], None],
    ) -> None:
        self._stop = stop
        self._tell = tell
        self._woken = threading.Event()
        self._interval = 1.0 if interval is None else interval
        self._thread: threading.Thread | None = None
        self.by_events = False
        if interval is None:
            try:
                import watchfiles
            except ImportError:
                return
            self.by_events = True
            self._thread = threading.Thread(
                target=self._listen, args=(watchfiles, root), daemon=True, name="pydfm-inbox"
            )
            self._thread.start()

    def wait(self, most: float) -> None:
        """Return when there is something to look at, after at most `most` seconds, or at a stop."""
        interval = _WITH_EVENTS if self.by_events else self._interval
        self._woken.wait(min(interval, most))
        if not self._stop.is_set():
            self._woken.clear()

    def wake(self) -> None:
        """End a wait."""
        self._woken.set()

    def close(self) -> None:
        """End the thread; the stop event is set."""
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _listen(self, watchfiles: Any, root: Path) -> None:
        try:
            changes = watchfiles.watch(
                root,
                watch_filter=None,
                stop_event=self._stop,
                debounce=50,
                step=20,
                raise_interrupt=False,
            )
            for _ in changes:
                self._woken.set()
            reason = "they have ended"
        except Exception as error:  # such as too many folders, or a drive that gives none
            reason = str(error) or type(error).__name__
        self.by_events = False
        if not self._stop.is_set():
            self._tell(
                f"there are no events of the inbox any more ({reason}); it is looked at every "
                f"{self._interval:g} s"
            )
        self._woken.set()
