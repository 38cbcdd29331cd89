"""The speed of each build of the core: the same work on one thread, each in its own process."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks import ours
from benchmarks.report import Table, seconds
from benchmarks.workloads import Population
from pydfm import _core

_ROUNDS: Final = 9
_PAUSE: Final = 0.02
_SHARE: Final = 0.97


def _score(n_features: int, k: int) -> Callable[[], object]:
    population = Population(n_features, k)
    return ours.scores(population.model, population.rows(10_000), 1)


def _fit(n_rows: int, n_features: int, k: int) -> Callable[[], object]:
    return ours.fit(Population(n_features, k).rows(n_rows), k, 1)


def _eigenpairs(n: int) -> Callable[[], object]:
    return ours.leading_eigenpairs(Population(n, n // 5, _SHARE).covariance, _SHARE, 1)


_WORKS: Final[dict[str, Callable[[], Callable[[], object]]]] = {
    "score, 10,000 x 512, k = 120": lambda: _score(512, 120),
    "score, 10,000 x 2,048, k = 400": lambda: _score(2048, 400),
    "fit, 391 x 16,384, k = 300": lambda: _fit(391, 16_384, 300),
    "fit, 20,000 x 512, k = 120": lambda: _fit(20_000, 512, 120),
    "eigenpairs, n = 1,024, those of 97%": lambda: _eigenpairs(1024),
}


@contextmanager
def _worker(instruction_set: str) -> Iterator[Callable[[int], float]]:
    """A process with one build of the core, which times one run of a numbered piece of work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.instruction_sets"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYDFM_INSTRUCTION_SET": instruction_set},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, answers = process.stdin, process.stdout

    def run(work: int) -> float:
        print(work, file=to, flush=True)
        return float(answers.readline())

    with process:
        yield run


def table(quick: bool) -> Table:
    """Return seconds of each build, and how many times faster than the baseline it is."""
    names: list[str] = _core.supported_instruction_sets()
    lines = []
    with ExitStack() as stack:
        workers = [stack.enter_context(_worker(name)) for name in names]
        for i, work in enumerate(_WORKS):
            took: list[list[float]] = [[] for _ in names]
            for r in range(1 + (3 if quick else _ROUNDS)):
                for run, kept in zip(workers, took, strict=True):
                    time.sleep(_PAUSE)
                    value = run(i)
                    if r > 0:
                        kept.append(value)
            typical = [median(values) for values in took]
            cells = [f"{seconds(t)} ({typical[0] / t:.2f})" for t in typical[1:]]
            lines.append([work, seconds(typical[0]), *cells])
    return Table(("work", names[0], *(f"{name} (gain)" for name in names[1:])), lines)


def _main() -> None:
    made: dict[int, Callable[[], Any]] = {}
    works = list(_WORKS.values())
    for line in sys.stdin:
        i = int(line)
        if i not in made:
            made[i] = works[i]()
        start = time.perf_counter()
        made[i]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    _main()
