"""Simulated lines, with a change and without, and what the alarm for drift makes of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.report import verdict
from pydfm import DFM

HEADER = (
    "compared with",
    "line",
    "false alarms",
    *(f"late, {d} dev." for d in (0.5, 1, 2)),
    *(f"early, {d} dev." for d in (0.5, 1, 2)),
    "target",
)
_SHIFTS = (0.5, 1.0, 2.0)
_WIDTH = 64
# Name, rows that are fitted, rows that recalibrate, parameters of the fit and of the monitor.
_KINDS: tuple[tuple[str, int, int, dict[str, Any], dict[str, Any]], ...] = (
    ("30 images, loo", 30, 0, {}, {}),
    ("100 images, loo", 100, 0, {}, {}),
    ("1,000 images, loo", 1000, 0, {}, {}),
    ("100 of 500 images, split", 500, 0, {"calibration": "split"}, {}),
    ("100 later images, recalibrated", 100, 100, {}, {}),
    ("the stream alone", 100, 0, {}, {"reference": "stream"}),
)


def measure_lines(n_lines: int, length: int) -> Iterator[list[str]]:
    """Yield a row of the table for each reference, and for lines with defects."""
    for name, n, later, fitted, monitored in _KINDS:
        yield _row(name, n, later, fitted, monitored, n_lines, length, defects=0.0)
    for name, n, later, fitted, monitored in (_KINDS[1], _KINDS[-1]):
        yield _row(name, n, later, fitted, monitored, n_lines, length, defects=0.01)


def _row(
    name: str,
    n: int,
    later: int,
    fitted: dict[str, Any],
    monitored: dict[str, Any],
    n_lines: int,
    length: int,
    defects: float,
) -> list[str]:
    """Measure one reference on lines whose scores move by a share of their deviation."""
    rng = np.random.default_rng([n, later, n_lines, bool(monitored), round(1000 * defects)])
    deviations = (1 / np.sqrt(np.arange(1, _WIDTH + 1))).astype(np.float32)
    middle, false = length // 2, 0
    late: list[list[float]] = [[] for _ in _SHIFTS]
    early: list[list[float]] = [[] for _ in _SHIFTS]
    for line in range(n_lines):
        x = rng.standard_normal((n + later + length, _WIDTH), dtype=np.float32) * deviations
        dfm = DFM(n_threads=1, **fitted).fit(x[:n])
        if later:
            dfm.recalibrate(x[n : n + later])
        scores = dfm.score(x[n + later :]).astype(np.float64)
        spread = scores.std()
        scores[rng.random(length) < defects] += 10 * spread
        monitor = dfm.monitor(seed=line, **monitored)
        _feed(monitor, scores[:middle])
        if monitor.change is None:
            state = monitor.state()
            for delays, shift in zip(late, _SHIFTS, strict=True):
                moved = dfm.monitor(state=state, **monitored)
                delays.append(_delay(moved, scores[middle:] + shift * spread) - middle)
        _feed(monitor, scores[middle:])
        false += monitor.change is not None
        if not monitored and not defects:
            for delays, shift in zip(early, _SHIFTS, strict=True):
                moved = dfm.monitor(seed=line)
                delays.append(_delay(moved, scores[:middle] + shift * spread))
    bound = n_lines / 100
    met = false <= bound + 3 * bound**0.5
    return [
        name,
        f"{defects:.0%} defects" if defects else "normal",
        f"{false} of {n_lines}",
        *(_told(own) for own in (*late, *early)),
        "" if defects else verdict(met, f"<= {bound:g}, but for chance"),
    ]


def _feed(monitor: Any, scores: Any) -> None:
    monitor.add(np.stack([scores, np.zeros(len(scores))]))


def _delay(monitor: Any, scores: Any) -> float:
    """Return the number of the image that the change was seen at; infinity if it was not."""
    for first in range(0, len(scores), 50):
        _feed(monitor, scores[first : first + 50])
        if monitor.change is not None:
            return float(monitor.change.seen_at)
    return np.inf


def _told(delays: list[float]) -> str:
    """Return the median and the ninth decile of the delays, and how many changes were found."""
    if not delays:
        return "-"
    found = np.isfinite(delays).sum()
    share = "" if found == len(delays) else f"; {found} of {len(delays)} found"
    middle, late = (np.quantile(delays, q, method="inverted_cdf") for q in (0.5, 0.9))
    shown = " / ".join("-" if np.isinf(own) else f"{own:,.0f}" for own in (middle, late))
    return f"{shown}{share}"
