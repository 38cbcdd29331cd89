"""Results as Markdown tables, and their places in a document written by hand."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Comparison, Result
from pydfm.benchmark.table import markdown

HEADER = ("work", "threads", "who", "median", "best", "ratio", "ratio of bests", "target")


@dataclass(frozen=True)
class Table:
    """A header and rows of text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return markdown(self.header, self.rows)


def verdict(met: bool, target: str) -> str:
    """Return the target, and whether it was missed."""
    return target if met else f"{target}: **miss**"


def rows(comparison: Comparison, results: Sequence[Result]) -> list[list[str]]:
    """Return one row per case; a ratio is its time divided by that of pydfm, the first case."""
    ours, lines = results[0], []
    for result in results:
        target, ratio = "", result.median / ours.median
        # Targets are set for two threads.
        if result.case.target is not None and comparison.n_threads >= 2:
            target = verdict(ratio >= result.case.target, f">= {result.case.target:.2g}")
        first = result is ours
        lines.append(
            [
                comparison.work if first else "",
                str(comparison.n_threads) if first else "",
                result.case.name,
                seconds(result.median),
                seconds(result.best),
                "1" if first else f"{ratio:.2f}",
                "1" if first else f"{result.best / ours.best:.2f}",
                target,
                *([f"{comparison.items / result.median:.0f}"] if comparison.items > 1 else []),
                *result.notes,
            ]
        )
    return lines


def seconds(value: float) -> str:
    """Return a time with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def write(path: Path, tables: dict[str, tuple[str, Table]]) -> None:
    """Put each table (name -> title, table) between its markers in `path`; the rest stays.

    The markers are ``<!-- begin generated: NAME -->`` and ``<!-- end generated: NAME -->``; where a
    name has none yet, a section is added at the end.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else "# Benchmarks\n"
    for name, (title, table) in tables.items():
        begin, end = (f"<!-- {edge} generated: {name} -->" for edge in ("begin", "end"))
        block = f"{begin}\n{table}\n{end}"
        found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if found.search(text):
            text = found.sub(block.replace("\\", r"\\"), text, count=1)
        else:
            text = f"{text.rstrip()}\n\n## {title}\n\n{block}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
