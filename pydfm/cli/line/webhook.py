"""A webhook: messages posted as JSON by a thread of its own, which never stops the line."""

import contextlib
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final

TRIES: Final = 5
"""How often a message is posted until it is given up."""

_TIMEOUT: Final = 5.0
_MOST_WAITING: Final = 1000


class Webhook:
    """Posts messages in their order; those that cannot be delivered are given up and counted.

    Parameters
    ----------
    url : str
        http or https.
    tell : callable
        Takes a sentence for the person who watches.
    delay : float
        Seconds before the second try; each later one waits twice as long.

    Attributes
    ----------
    lost : int
        Messages that were given up.
    """

    def __init__(self, url: str, tell: Callable[[str], None], delay: float = 1.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--webhook is {url!r}; it must begin with http:// or https://")
        self.lost = 0
        self._url = url
        self._tell = tell
        self._delay = delay
        self._told = False
        self._closed = threading.Event()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, daemon=True, name="pydfm-webhook")
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Post a message some time soon; returns at once."""
        # Paths may have bytes that are not text.
        data = json.dumps(message).encode("ascii")
        try:
            self._queue.put_nowait(data)
        except queue.Full:
            self._give_up(f"{_MOST_WAITING} messages wait already")

    def close(self, patience: float = 5.0) -> None:
        """Post what waits, for so many seconds, and end."""
        end = time.monotonic() + patience
        while not self._queue.empty() and time.monotonic() < end:
            time.sleep(0.02)
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
                self.lost += 1
        self._queue.put_nowait(None)
        self._thread.join(timeout=max(end - time.monotonic(), 0.1))

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            for attempt in range(TRIES):
                reason = self._post(data)
                if reason is None:
                    self._told = False
                    break
                if attempt == TRIES - 1 or self._closed.wait(self._delay * 2**attempt):
                    self._give_up(reason)
                    break

    def _post(self, data: bytes) -> str | None:
        """Post once; return why it failed, or None."""
        from pydfm import __version__

        headers = {"Content-Type": "application/json", "User-Agent": f"pydfm/{__version__}"}
        request = urllib.request.Request(self._url, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
                answer.read(1 << 16)
        except urllib.error.HTTPError as error:
            error.close()
            return f"it answered {error.code}"
        except (OSError, ValueError) as error:  # no route, no name, no answer
            return str(getattr(error, "reason", error)) or type(error).__name__
        except Exception as error:  # what is no HTTP
            return f"{type(error).__name__}: {error}"
        return None

    def _give_up(self, reason: str) -> None:
        self.lost += 1
        if not self._told:  # once until one is delivered
            self._told = True
            self._tell(f"a message to --webhook could not be delivered: {reason}; the line goes on")
