"""Names of files in messages and tables, which they can neither colour, forge nor calculate in."""

from typing import Final

_FORMULA: Final = ("=", "+", "-", "@")


def printable(text: str) -> str:
    """Return `text` with what could steer a terminal or forge a line in Python's escapes.

    Bytes that are not text stay as they are.
    """
    return "".join(
        c if c.isprintable() or "\udc80" <= c <= "\udcff" else c.encode("unicode_escape").decode()
        for c in text
    )


def cell(text: str) -> str:
    """Return `text` as a cell that is one line, steers no terminal, and is no formula."""
    return printable("'" + text if text.startswith(_FORMULA) else text)
