"""A soak of ``pydfm watch``: tiny files in and out of an inbox, and the process killed on the way.

``python -m fuzz.soak`` from tests/, or `nox -s soak`. A third of the files is written slowly, a
third moved in, a third copied; what was recorded is taken out. At the end each file has one line,
in a whole file of results, and the memory of the last process has not grown.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pydfm

_MOST_THERE = 400
_STARTED = "; Ctrl-C ends"
_SIZE = 12


@dataclass
class Soaked:
    """What a soak found."""

    files: int
    lost: int
    twice: int
    strange: int
    kills: int
    torn: int
    seconds: float
    memory: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def growth(self):
        """Bytes by which the last process has grown since it had seen a tenth of the files."""
        return self.memory[-1] - self.memory[0] if len(self.memory) > 1 else 0

    def __str__(self):
        middle, late = np.quantile(self.latencies, [0.5, 0.99])
        return (
            f"{self.files} files in {self.seconds:.0f} s, {self.kills} kills: {self.lost} lost, "
            f"{self.twice} twice, {self.strange} strange lines; {self.torn} torn lines completed; "
            f"memory {self.memory[0] / 1e6:.0f} MB, then {self.growth / 1e6:+.1f} MB; latency "
            f"{middle:.2f} s, 99 % {late:.2f} s"
        )


def soak(files, kills, folder, seed=0, arguments=()):
    """Run one in `folder`, and return a Soaked."""
    folder = Path(folder).resolve()  # and away from a source tree, which has no core
    rng, began = random.Random(seed), time.monotonic()
    model, script = _make_model(folder)
    inbox, results, made = folder / "inbox", folder / "results.csv", folder / "made"
    inbox.mkdir()
    made.mkdir()
    pictures = [_picture(i) for i in range(16)]
    # All kills are in the first half, so that the last process sees many files.
    at = sorted(rng.sample(range(files // 20, files // 2), kills))
    words = ["watch", model, inbox, "-o", results, "--backbone", script, "--settle", "0.2"]
    command = [sys.executable, "-m", "pydfm", *map(os.fspath, words), *arguments]
    log = (folder / "log.txt").open("ab")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    soaked = Soaked(files, 0, 0, 0, kills, 0, 0.0)
    tail, seen, sent, slow = _Tail(results), set(), 0, []
    most = min(_MOST_THERE, files // 5)
    try:
        while len(seen) < files:
            if process.poll() is not None:
                raise RuntimeError(_log_of(folder)[-2000:])
            for path, latency in tail.read():
                if Path(path).name in seen:
                    soaked.twice += 1
                seen.add(Path(path).name)
                soaked.latencies.append(latency)
                Path(path).unlink(missing_ok=True)  # out
            while sent < files and sent - len(seen) < most:
                slow += _bring(inbox, made, f"{sent:06}.png", pictures[sent % 16], sent % 3)
                sent += 1
            for path, rest in slow:
                with path.open("ab") as file:
                    file.write(rest)
            slow = []
            if at and len(seen) >= at[0]:
                at.pop(0)
                time.sleep(rng.uniform(0, 0.3))
                process.send_signal(signal.SIGKILL)
                process.wait()
                process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
                soaked.memory.clear()
            if not at and len(seen) % 50 < 25 and soaked.latencies:
                _weigh(process.pid, len(seen), files, soaked.memory)
            time.sleep(0.02)
        while _log_of(folder).count(_STARTED) < kills + 1 and process.poll() is None:
            time.sleep(0.02)  # the last kill was after the last file
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise RuntimeError(f"it ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
        log.close()
    with results.open(newline="") as file:
        _, *rows = csv.reader(file)
    names = [Path(row[0]).name for row in rows]
    soaked.twice = len(names) - len(set(names))
    soaked.lost = len({f"{i:06}.png" for i in range(files)} - set(names))
    soaked.strange = sum(len(row) != 9 or row[3] not in ("ok", "anomalous") for row in rows)
    soaked.torn = _log_of(folder).count("were torn")
    soaked.seconds = time.monotonic() - began
    return soaked


def _log_of(folder):
    return (folder / "log.txt").read_text(errors="replace")


class _Tail:
    """Reads the lines of a CSV that are new and whole."""

    def __init__(self, path):
        self._path = path
        self._place = 0

    def read(self):
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._place)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._place += len(whole)
        rows = csv.reader(whole.decode().splitlines())
        return [(row[0], float(row[6])) for row in rows if row[0] != "path"]


def _bring(inbox, made, name, data, how):
    """Bring a file; return what is still to be written of it."""
    if how == 0:
        (made / name).write_bytes(data)
        (made / name).rename(inbox / name)
    elif how == 1:
        (inbox / name).write_bytes(data)
    else:
        (inbox / name).write_bytes(data[: len(data) // 2])
        return [(inbox / name, data[len(data) // 2 :])]
    return []


def _weigh(pid, seen, files, memory):
    """Note the memory of a process, once it has warmed up."""
    if seen < files * 0.6:
        return
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            memory.append(1024 * int(line.split()[1]))


def _make_model(folder):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU())
    script, model = folder / "network.pt", folder / "model.pydfm"
    torch.jit.script(network.eval()).save(script)
    pixels = np.random.default_rng(1).integers(0, 256, (120, 3, _SIZE, _SIZE), dtype=np.uint8)
    dfm = pydfm.DFM(3, backbone=script, image_size=_SIZE, device="cpu", n_threads=1)
    dfm.fit(pixels).save(model)
    return model, script


def _picture(i):
    pixels = np.random.default_rng([2, i]).integers(0, 256, (_SIZE, _SIZE, 3), dtype=np.uint8)
    from io import BytesIO

    data = BytesIO()
    Image.fromarray(pixels).save(data, format="PNG")
    return data.getvalue()


def main():
    parser = argparse.ArgumentParser(prog="fuzz.soak", description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    chosen, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(chosen.files, chosen.kills, folder, arguments=arguments)
    print(found)
    return 1 if found.lost or found.twice or found.strange or found.growth > 20e6 else 0


if __name__ == "__main__":
    sys.exit(main())
