"""Processes killed at random moments of a save, a fit with a checkpoint, and ``pydfm score -o``.

After each, the file is a whole old or a whole new one; the fit goes on to the same scores; and what
the killed left is gone after the next run.
"""

import contextlib
import io
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import model_kinds
import numpy as np
from PIL import Image

import pydfm
from fuzz.children import Tally, WrongError
from pydfm.runtime.files import temporary_files

SEED = 19


def run(count):
    """Kill `count` processes, in turn of each kind, and return a Tally."""
    import torch

    torch.set_num_threads(1)  # a forked child has no other
    tally, began = Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jobs = [job(Path(name) / job.__name__) for job in (Save, Fit, Score)]
        for number in range(count):
            rng = np.random.default_rng([SEED, number])
            job = jobs[number % len(jobs)]
            kind = type(job).__name__.lower()
            start = time.monotonic()
            try:
                job.prepare()
                killed = kill(job.work, rng.uniform(0, job.seconds))
                left = len(temporary_files(job.folder))
                state = job.check()
                litter = temporary_files(job.folder)
                if litter:
                    raise WrongError(f"{len(litter)} temporary files stay")
                outcome = f"{kind}: {'killed' if killed else 'ended'}, {state}"
                outcome += ", litter gone" if left else ""
            except Exception as error:
                outcome = f"{kind}: found"
                tally.findings.append((number, f"{kind}: {type(error).__name__}: {error}"))
            tally.outcomes[outcome] += 1
            tally.slowest = max(tally.slowest, (time.monotonic() - start, number))
    tally.seconds = time.monotonic() - began
    return tally


def kill(work, after):
    """Run `work` in a fork and kill it `after` seconds later; return whether it had not ended."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise WrongError(f"the process ended with {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


class Save:
    """`DFM.save` over an older file, of another model, again and again."""

    seconds = 0.1

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        rows = np.random.default_rng(0).normal(size=(400, 200))
        self._old, self._new = (pydfm.DFM(50).fit(own) for own in (rows, 2 * rows))
        self._rows = rows[:3]
        self._file = folder / "model.pydfm"
        self._known = [dfm.score(self._rows).tolist() for dfm in (self._old, self._new)]

    def prepare(self):
        self._old.save(self._file)

    def work(self):
        for i in range(1000):
            (self._old if i % 2 else self._new).save(self._file)

    def check(self):
        found = pydfm.load(self._file).score(self._rows).tolist()
        if found not in self._known:
            raise WrongError("the file is neither the old model nor the new one")
        self._old.save(self._file)
        return ("old", "new")[self._known.index(found)]


class Fit:
    """A fit with a checkpoint, killed and begun again until it has ended."""

    seconds = 0.4

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder / "checkpoint"
        self._pictures = folder / "pictures"
        self._pictures.mkdir()
        for i in range(40):
            own = model_kinds.IMAGES[i % 20] ^ np.uint8(i)
            Image.fromarray(own.transpose(1, 2, 0)).save(self._pictures / f"{i:02}.png")
        self._network = model_kinds.network()
        self._want = self._new().fit(self._pictures).score(model_kinds.QUERIES)
        self.folder.mkdir()

    def _new(self):
        sizes = {"layers": "2", "image_size": 16, "device": "cpu", "batch_size": 2}
        return pydfm.DFM(2, backbone=self._network, n_threads=1, **sizes)

    def prepare(self):
        if len(list(self.folder.glob("*.safetensors"))) == 20:
            shutil.rmtree(self.folder)

    def work(self):
        self._new().fit(self._pictures, checkpoint=self.folder)

    def check(self):
        had = len(list(self.folder.glob("*.safetensors")))
        # A second run on a copy ends it; the next kill goes on where this one was.
        copy = self.folder.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        if self.folder.is_dir():
            shutil.copytree(self.folder, copy)
        dfm = self._new().fit(self._pictures, checkpoint=copy)
        if not np.array_equal(dfm.score(model_kinds.QUERIES), self._want):
            raise WrongError(f"the fit that went on after {had} batches has other scores")
        if temporary_files(copy):
            raise WrongError("temporary files stay in the checkpoint")
        from pydfm.runtime.files import remove_litter

        remove_litter(self.folder)
        return f"went on after {'some' if had else 'no'} batches"


class Score:
    """``pydfm score -o`` over an older table."""

    seconds = 0.2

    def __init__(self, folder):
        folder.mkdir()
        self.folder = folder
        pictures = folder / "pictures"
        pictures.mkdir()
        for i, own in enumerate(model_kinds.QUERIES):
            Image.fromarray(own.transpose(1, 2, 0)).save(pictures / f"{i}.png")
        model, self._table = folder / "model.pydfm", folder / "table.csv"
        module = folder / "network.pt"
        import torch

        torch.jit.trace(model_kinds.network().eval(), torch.zeros(1, 3, 16, 16)).save(module)
        sizes = {"image_size": 16, "device": "cpu", "n_threads": 1}
        pydfm.DFM(2, backbone=module, **sizes).fit(model_kinds.IMAGES).save(model)
        self._line = [str(own) for own in ("score", model, pictures, "-o", self._table)]
        self._line += ["--backbone", str(module), "--device", "cpu", "--threads", "1"]
        self._score()
        self._new = self._table.read_bytes()

    def _score(self):
        from pydfm.cli.main import main

        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            code = main(self._line)
        if code != 0:
            raise WrongError(f"pydfm score: {told.getvalue().strip()}")

    def prepare(self):
        self._table.write_bytes(b"old\n")

    def work(self):
        for _ in range(100):
            self._score()

    def check(self):
        found = self._table.read_bytes()
        if found not in (b"old\n", self._new):
            raise WrongError(f"the table is neither old nor new: {found[:40]!r}")
        self._score()
        if self._table.read_bytes() != self._new:
            raise WrongError("the next run writes another table")
        return "old" if found == b"old\n" else "new"
