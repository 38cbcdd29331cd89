"""The command ``pydfm watch``: scores what arrives in a folder until it is stopped."""

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.images.score import Wanted
from pydfm.cli.options import (
    RUNTIME,
    VERDICTS,
    Model,
    MovedBackbone,
    MovedWeights,
    load_model,
    print_error,
    say,
)
from pydfm.runtime.files import state_of
from pydfm.runtime.text import cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pydfm.cli.images.score import Outputs
    from pydfm.cli.line.inbox import Arrival
    from pydfm.cli.line.record import Record
    from pydfm.cli.line.webhook import Webhook
    from pydfm.conformal.decisions import Decider
    from pydfm.conformal.monitor import Monitor
    from pydfm.estimator import DFM

COLUMNS = (
    "path",
    "score",
    "p_value",
    "verdict",
    "class",
    "time",
    "latency",
    "evidence",
    "alarm",
)


def watch(
    model: Model,
    inbox: Annotated[
        Path, typer.Argument(metavar="INBOX", help="Folder in which images arrive; at any depth.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="CSV file that results are appended to."),
    ],
    ng: Annotated[
        Path | None,
        typer.Option(
            "--ng", metavar="DIR", help="Folder for links to, or copies of, anomalous files."
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Where anomalous images and alarms are posted, as JSON."),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for overlays on the images, IMAGE.png."),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Look at the folder so often, in place of events, which network drives may not "
            "give; default: events if watchfiles is installed, else every second.",
        ),
    ] = None,
    settle: Annotated[
        float,
        typer.Option(
            help="Seconds without a change after which a file is whole; 0 where files are written "
            "elsewhere, or under a hidden name, and moved in."
        ),
    ] = 0.5,
    evidence: Annotated[
        float, typer.Option(help="Evidence, to 1, at which an alarm of drift is raised.")
    ] = 100.0,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="calibration|stream",
            help="What drift is told from: the model's held-out scores and the images before, or "
            "these alone.",
        ),
    ] = None,
    reset_drift: Annotated[
        bool, typer.Option("--reset-drift", help="Forget the evidence of drift so far.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="End when all that is there is scored.")
    ] = False,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    *,
    alpha: float | None,
    **parameters: Any,
) -> None:
    """Score images as they arrive, each once, until Ctrl-C; tell when the line has changed."""
    from pydfm.cli.line.inbox import Inbox, Looks
    from pydfm.cli.line.loop import Line
    from pydfm.cli.line.record import Record
    from pydfm.cli.line.webhook import Webhook
    from pydfm.reports.drawing.heatmaps import check_folder
    from pydfm.runtime.checks import check_number
    from pydfm.runtime.files import check_output

    check_number("--settle", settle, 0, 3600)
    if poll is not None:
        check_number("--poll", poll, 0.01, 3600)
    if not inbox.is_dir():
        raise FileNotFoundError(f"there is no folder '{inbox}' to watch")
    check_output(output)
    wanted = Wanted(maps, (), None, None, 0.0)
    wanted.check(inbox)
    if ng is not None:
        check_folder("--ng", ng, inbox)

    def load() -> "DFM":
        dfm = load_model(model, weights, backbone, parameters)
        return dfm.set_params(on_error="skip", verbose=False)

    stop = threading.Event()
    record = Record(output, COLUMNS)
    hook = looks = None
    try:
        hook = None if webhook is None else Webhook(webhook, print_error)
        judge = _Judge(model, load, record, hook, inbox, ng, wanted, alpha, evidence, reference)
        judge.begin(reset=reset_drift)
        looks = Looks(inbox, stop, poll, print_error)
        line = Line(
            Inbox(inbox, settle, record.knows),
            looks,
            record,
            judge,
            stop,
            batch_size=judge.dfm.batch_size,
            tell=print_error,
            once=once,
        )
        how = "by events" if looks.by_events else f"every {poll or 1:g} s"
        with _stopped_by_signals(stop, looks.wake):
            _say(f"watching '{inbox}' {how}; results go to '{output}'; Ctrl-C ends")
            _say(f"drift: {judge.monitor.validity}")
            line.run()
    finally:
        stop.set()
        if looks is not None:
            looks.wake()
            looks.close()
        if hook is not None:
            hook.close()
        record.close()
    counts = ", ".join(f"{judge.counts[word]} {word}" for word in VERDICTS.values())
    lost = f"; {hook.lost} messages to --webhook were not delivered" if hook and hook.lost else ""
    _say(f"{sum(judge.counts.values())} images: {counts}{lost}; {judge.monitor.sentence}")


@dataclass(frozen=True)
class _Image:
    """What was found of one image of a file."""

    path: str
    score: float
    p_value: float
    verdict: int
    label: str
    measured: "NDArray[Any]"


@dataclass(frozen=True)
class _File:
    """What was found of a file."""

    images: tuple[_Image, ...]

    @property
    def readable(self) -> bool:
        return all(own.verdict != 0 for own in self.images)


class _Judge:
    """Scores files by the model file as it is now, and keeps the monitor."""

    def __init__(
        self,
        model: Path,
        load: "Callable[[], DFM]",
        record: "Record",
        webhook: "Webhook | None",
        inbox: Path,
        ng: Path | None,
        wanted: Wanted,
        alpha: float | None,
        evidence: float,
        reference: str | None,
    ) -> None:
        self._model = model
        self._load = load
        self._record = record
        self._webhook = webhook
        self._inbox = inbox
        self._ng = ng
        self._wanted = wanted
        self._alpha = alpha
        self._evidence = evidence
        self._reference = reference
        self._messages: list[dict[str, Any]] = []
        self.counts = dict.fromkeys(VERDICTS.values(), 0)
        self._state = state_of(model)
        self._take_up(load())

    def _take_up(self, dfm: "DFM") -> None:
        """Take a model; what it cannot do is told before anything of the old one is given up."""
        decider = dfm.decider(alpha=self._alpha)
        monitor = dfm.monitor(evidence=self._evidence, reference=self._reference)
        level = dfm.alpha if self._alpha is None else self._alpha
        outputs = self._wanted.open(dfm.fitted_, dfm.score_type, [], self._inbox, level)
        self.dfm: DFM = dfm
        self._decider: Decider = decider
        self.monitor: Monitor = monitor
        self._outputs: Outputs | None = outputs

    def begin(self, *, reset: bool) -> None:
        """Go on where the last process was."""
        import json

        import numpy as np

        if self._record.repaired:
            print_error("the last lines of the results were torn, and are complete now")
        if reset:
            self._record.keep(self.snapshot())
            return
        kept = self._record.snapshot
        if kept is None and next(iter(self._record.measured()), None) is None:
            self._record.keep(self.snapshot())  # whose images the monitor's are
            return
        try:
            if kept is not None:
                self.monitor.restore(json.loads(kept))
        except ValueError:
            print_error("the model is another one than before: evidence of drift begins anew")
            self._record.keep(self.snapshot())
            return
        n_values = len(self.monitor.names) + 1
        for value in self._record.measured():
            self.monitor.add(np.frombuffer(value).reshape(n_values, 1))
        if self.monitor.change is not None:
            print_error(f"{self.monitor.sentence}; --reset-drift forgets it")

    def renew(self) -> None:
        """Take up a changed model file."""
        now = state_of(self._model)
        if now == self._state:
            return
        self._state = now
        if now is None:
            print_error(f"there is no '{self._model}' any more; the model goes on without its file")
            return
        old = self.monitor
        try:
            self._take_up(self._load())
        except Exception as error:  # whatever is wrong with it, the line goes on
            print_error(f"the changed model is not taken up, the old one goes on: {error}")
            return
        if self.monitor.fingerprint == old.fingerprint:
            self.monitor.restore(old.state())
            _say(f"took up the changed '{self._model}'")
        else:
            self._record.keep(self.snapshot())
            _say(f"took up the changed '{self._model}'; evidence of drift begins anew")

    def snapshot(self) -> str:
        """Return the monitor's state."""
        import json

        return json.dumps(self.monitor.state())

    def read(self, paths: Sequence[str]) -> list[_File]:
        """Score files, and write their maps."""
        import numpy as np

        from pydfm.features.pictures.pages import with_pages
        from pydfm.runtime.threads import resolve_threads

        each = [with_pages([path]) for path in paths]
        names = [name for own in each for name in own]
        dfm, fitted = self.dfm, self.dfm.fitted_
        n_threads, kind = resolve_threads(dfm.n_threads), self._decider.score_type
        measured = np.full((3, len(names)), np.nan)
        watched = np.full((len(self.monitor.names) + 1, len(names)), np.nan)
        labels = np.full(len(names), "", dtype=object)
        outputs, views = self._outputs, None
        if outputs is not None:
            outputs = replace(outputs, paths=names)
            views = outputs.views
        with warnings.catch_warnings():
            # Each has a line of its own.
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ images were skipped")
            for places, features, pixels in dfm.batches(names, look=views):
                scored = fitted.score(features, n_threads)
                measured[:, places] = self._decider.measure(scored)
                watched[:, places] = self.monitor.measure(scored)
                if fitted.model.classes is not None:
                    labels[places] = dfm.classes_[scored.nearest(kind)]
                if outputs is not None:
                    assert pixels is not None
                    outputs.add(places, scored, kind, pixels)
        final = self._decider.judge(measured)
        images = iter(
            [
                _Image(name, score, p, verdict, str(label), own)
                for name, score, p, verdict, label, own in zip(
                    names,
                    final.scores.tolist(),
                    final.p_values.tolist(),
                    final.verdicts.tolist(),
                    labels,
                    watched.T,
                    strict=True,
                )
            ]
        )
        return [_File(tuple(next(images) for _ in own)) for own in each]

    def conclude(self, arrival: "Arrival", found: _File) -> tuple[list[list[str]], list[bytes]]:
        """Return the lines of a file and what the monitor took, in the order of arrival."""
        if self._ng is not None and any(own.verdict == -1 for own in found.images):
            self._set_aside(arrival)
        rows = [self._row(arrival, own) for own in found.images]
        return rows, [own.measured.tobytes() for own in found.images]

    def _row(self, arrival: "Arrival", image: _Image) -> list[str]:
        known = self.monitor.change
        self.monitor.add(image.measured[:, None])
        alarm = ""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if known is None and self.monitor.change is not None:
            alarm = self.monitor.sentence
            self._messages.append({"event": "drift", "time": at, "sentence": alarm})
        verdict = VERDICTS[image.verdict]
        self.counts[verdict] += 1
        if image.verdict == -1:
            self._messages.append(
                {
                    "event": verdict,
                    "time": at,
                    "path": image.path,
                    "score": image.score,
                    "p_value": image.p_value,
                    "class": image.label,
                }
            )
        return [
            cell(image.path),
            f"{image.score:.9g}",
            f"{image.p_value:.6g}",
            verdict,
            cell(image.label),
            at,
            f"{time.monotonic() - arrival.first:.3f}",
            f"{self.monitor.evidence:.4g}",
            cell(alarm),
        ]

    def recorded(self) -> None:
        """Tell of what was recorded, here and to the webhook."""
        for message in self._messages:
            if message["event"] == "drift":
                _say(f"ALARM: {message['sentence']}")
            else:
                _say(
                    f"anomalous: {message['path']} (score {message['score']:.6g}, p "
                    f"{message['p_value']:.3g})"
                )
            if self._webhook is not None:
                self._webhook.send(message)
        self._messages.clear()

    def _set_aside(self, arrival: "Arrival") -> None:
        """Link or copy a file to the folder for what is anomalous, once."""
        from pydfm.runtime.files import put_into

        assert self._ng is not None
        name = os.path.relpath(arrival.path, self._inbox)
        if not put_into(self._ng, name, arrival.path, arrival.size, arrival.changed):
            print_error(f"'{arrival.path}' is anomalous, and was gone before it could be copied")


def _say(sentence: str) -> None:
    """Print a line at once; nobody may be reading."""
    if sys.stdout is not None:
        say(sentence)
        sys.stdout.flush()


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event, wake: "Callable[[], None]") -> "Iterator[None]":
    """Let SIGINT and SIGTERM set `stop`; a second one ends the program at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: Any) -> None:
        stop.set()
        wake()
        for own, handler in old.items():
            signal.signal(own, handler)

    try:
        for number in old:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


COMMAND = Command(
    "watch",
    watch,
    order=21,
    optional={
        # An image that cannot be read never stops the line.
        **{name: text for name, text in RUNTIME.items() if name != "on_error"},
        "alpha": "False-alarm rate: share of normal images that may be called anomalous; "
        "default: the model's.",
    },
)
