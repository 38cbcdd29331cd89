"""Markdown tables of results."""

from collections.abc import Sequence

from pydfm.runtime.text import printable


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table with aligned columns; names can forge neither a column nor a row."""
    rows = [[printable(own).replace("|", "\\|") for own in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def figure(text: str | float | None, digits: int = 3) -> str:
    """Return a result as text for a table; empty where there is none."""
    return "" if text in ("", None) else f"{float(text):.{digits}f}"


def mean(values: Sequence[str | float | None]) -> float | None:
    """Return the mean of the results, or None if there is none."""
    numbers = [float(value) for value in values if value not in ("", None)]
    return sum(numbers) / len(numbers) if numbers else None
