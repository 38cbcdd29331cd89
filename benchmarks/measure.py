"""Timing of cases that do the same work, in turn, round by round."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits

# A case runs untimed in each round, once and until so many seconds have passed: others' thread
# pools spin for some milliseconds after a call, a processor that was idle is slow for some more,
# and it shall find its own threads, caches and freed memory.
_WARM_UP = 0.2
# A case is timed at most so many times in a round, and for about so many seconds in all.
_PER_ROUND = 5
_TIMED = 1.0
# A case longer than this is timed once.
_LONG = 5.0
# Calls of microseconds are timed together until they take this long.
_SAMPLE = 2e-3


@dataclass(frozen=True)
class Case:
    """One way to do the work; its time over pydfm's on 2 threads should be `target` or more."""

    name: str
    run: Callable[[], Any]
    target: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Cases that do the same work; pydfm's comes first.

    Attributes
    ----------
    check : callable
        Raises AssertionError where an answer is wrong. A case that returns None has none: it is a
        limit to hold the others against.
    notes : callable
        What to report of an answer beside its time.
    items : int
        Rows or images of one run.
    """

    work: str
    n_threads: int
    cases: Sequence[Case]
    check: Callable[[Any], None]
    notes: Callable[[Any], tuple[str, ...]] = lambda _answer: ()
    items: int = 1


@dataclass(frozen=True)
class Result:
    """The seconds that each run of a case took."""

    case: Case
    seconds: Sequence[float]
    notes: tuple[str, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


@contextmanager
def thread_limit(n_threads: int) -> Iterator[None]:
    """Give numpy, scikit-learn and torch `n_threads` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        with threadpool_limits(n_threads):
            yield
    finally:
        torch.set_num_threads(before)


def compare(comparison: Comparison, budget: float, min_rounds: int = 3) -> list[Result]:
    """Check the answers, then time the cases in turn (A B C A B C ...) for `budget` seconds."""
    with thread_limit(comparison.n_threads):
        notes, first = [], []
        for case in comparison.cases:
            start = time.perf_counter()
            answer = case.run()
            first.append(time.perf_counter() - start)
            if answer is not None:
                comparison.check(answer)
            notes.append(comparison.notes(answer))
            del answer
        # The first call of all pays for page faults and pools; short cases are asked again.
        cost = [
            min(seconds, _timed(case.run, 1)) if seconds < _LONG else seconds
            for case, seconds in zip(comparison.cases, first, strict=True)
        ]
        samples = [[seconds] if seconds > _LONG else [] for seconds in first]
        round_cost = sum(
            max(c, _WARM_UP) + max(c, min(_PER_ROUND * c, _TIMED)) for c in cost if c <= _LONG
        )
        rounds = min(25, max(min_rounds, int(budget / round_cost))) if round_cost else 0
        for _ in range(rounds):
            for case, seconds, kept in zip(comparison.cases, cost, samples, strict=True):
                if seconds > _LONG:
                    continue
                start = time.perf_counter()
                case.run()
                while time.perf_counter() < start + _WARM_UP:
                    case.run()
                for _ in range(max(1, min(_PER_ROUND, int(_TIMED / max(seconds, _SAMPLE))))):
                    kept.append(_timed(case.run, max(1, round(_SAMPLE / seconds))))
    return [Result(*parts) for parts in zip(comparison.cases, samples, notes, strict=True)]


def _timed(run: Callable[[], Any], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        run()
    return (time.perf_counter() - start) / number
