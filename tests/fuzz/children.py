"""Cases run in child processes, so that a crash, a hang or a growth is seen and named."""

import faulthandler
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 5.0
"""The longest that a case may take."""

BYTES = 500_000_000
"""The most that a case may grow the process by."""

# Longer, since a child may have to start, on a machine that does other things too: the time that
# counts is that of its process.
_PATIENCE = 60.0


class WrongError(AssertionError):
    """A case ended in neither a documented exception nor a right answer."""


@dataclass
class Tally:
    """What came of the cases of a kind.

    Attributes
    ----------
    outcomes : Counter
        Number of cases by how they ended.
    findings : list of (int, str)
        Numbers of the cases that ended as none may, and how.
    seconds : float
        Time of all.
    slowest, growth : tuple of (float, int)
        Seconds of the slowest case, largest growth of the process in bytes, and the cases' numbers.
    """

    outcomes: Counter = field(default_factory=Counter)
    findings: list = field(default_factory=list)
    seconds: float = 0.0
    slowest: tuple = (0.0, 0)
    growth: tuple = (0.0, 0)


def run(cases):
    """Run cases in a child, one after the other, and return a Tally.

    Parameters
    ----------
    cases : iterable of (str, int)
        A module and a number: its ``case(number, folder)`` returns a word for how it ended. What
        it raises is a finding. Before the first, the module's ``prepare()`` is called.
    """
    context = multiprocessing.get_context("spawn")
    tally, began = Tally(), time.monotonic()
    child = None
    with tempfile.TemporaryDirectory() as folder:
        for module, number in cases:
            child = child or _Child(context, folder)
            outcome, found = child.ask((module, number))
            if found is None:
                tally.findings.append((number, outcome))
                tally.outcomes["found"] += 1
                child = None
                continue
            took, grew, wrong = found
            tally.slowest = max(tally.slowest, (took, number))
            tally.growth = max(tally.growth, (grew, number))
            if not wrong and took > SECONDS:
                outcome, wrong = f"{outcome} after {took:.1f} s", True
            if not wrong and grew > BYTES:
                outcome, wrong = f"{outcome} with {grew / 1e6:.0f} MB more", True
            tally.outcomes["found" if wrong else outcome] += 1
            if wrong:
                tally.findings.append((number, outcome))
        if child is not None:
            child.end()
    tally.seconds = time.monotonic() - began
    return tally


class _Child:
    """A process that runs cases one after the other."""

    def __init__(self, context, folder):
        self._folder = Path(folder)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, folder), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, case):
        """Return how a case ended, and (seconds, bytes, wrong); None where the child is gone.

        Raises
        ------
        RuntimeError
            If the module of the case cannot be prepared, so that no case of it can run.
        """
        self._pipe.send(case)
        try:
            answer = self._receive(_PATIENCE)
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            trace = (self._folder / "trace").read_text().splitlines()
            where = next((line.strip() for line in trace if "pydfm" in line), "")
            return f"crash: {name} {where}", None
        if isinstance(answer, str):
            self._process.join()
            raise RuntimeError(answer)
        if answer is None:
            self._process.kill()
            self._process.join()
            return f"hang: longer than {_PATIENCE:.0f} s", None
        return answer

    def end(self):
        self._pipe.close()
        self._process.join()

    def _receive(self, seconds):
        return self._pipe.recv() if self._pipe.poll(seconds) else None


def _serve(pipe, folder):
    # What libtiff and others write there is of no use; where a crash was, is.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.enable((Path(folder) / "trace").open("w"))
    logging.disable()
    warnings.simplefilter("ignore")
    os.environ["OMP_NUM_THREADS"] = "1"  # torch's
    modules = {}
    while True:
        try:
            module, number = pipe.recv()
        except EOFError:
            return
        if module not in modules:
            try:
                modules[module] = importlib.import_module(module)
                modules[module].prepare()
            except BaseException:
                pipe.send(f"{module} cannot be prepared:\n{traceback.format_exc()}")
                return
        before, began = _reset_peak(), time.process_time()
        wrong = False
        try:
            outcome = modules[module].case(number, Path(folder))
        except BaseException as error:
            wrong = True
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            outcome = f"{type(error).__name__} at {place}: {str(error)[:200]}"
        pipe.send((outcome, (time.process_time() - began, _peak() - before, wrong)))


def _status(name):
    with Path("/proc/self/status").open() as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _reset_peak():
    """Return the memory of this process, and let its peak count from here on (Linux)."""
    if not sys.platform.startswith("linux"):
        return _peak()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak():
    if sys.platform.startswith("linux"):
        return _status("VmHWM")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_shares(module, count, n_processes=None):
    """Run the first `count` cases of a module in several children at once, and return a Tally."""
    from concurrent.futures import ThreadPoolExecutor

    n = n_processes or min(2, os.cpu_count() or 1)
    total = Tally()
    with ThreadPoolExecutor(n) as pool:
        began = time.monotonic()
        for part in pool.map(lambda i: run((module, j) for j in range(i, count, n)), range(n)):
            total.outcomes += part.outcomes
            total.findings += part.findings
            total.slowest = max(total.slowest, part.slowest)
            total.growth = max(total.growth, part.growth)
    total.seconds = time.monotonic() - began
    total.findings.sort()
    return total
