"""A CSV file of results, written line by line, from which a stopped run continues."""

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pydfm import __version__
from pydfm.runtime.text import cell


class Record:
    """Results in a CSV file, one line each, written as soon as they are known.

    Parameters
    ----------
    path : str or path or None
        Created where it is missing. An incomplete last line is removed. None keeps the results in
        memory only.
    keys : sequence of str
        Columns that name a result, and say all that it depends on.
    values : sequence of str
        The other columns.

    Attributes
    ----------
    rows : list of dict
        The results, those of earlier runs first; numbers as text.

    Raises
    ------
    ValueError
        If the file has other columns.
    """

    def __init__(
        self, path: "str | os.PathLike[str] | None", keys: Sequence[str], values: Sequence[str]
    ) -> None:
        self._path = None if path is None else Path(path)
        self._keys = tuple(keys)
        self._columns = (*keys, *values)
        self.rows: list[dict[str, str]] = []
        if self._path is None:
            return
        data = self._path.read_bytes() if self._path.is_file() else b""
        text = data.decode("utf-8", "surrogateescape")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole))
        # A first line that was cut short is the beginning of the header.
        ours = ",".join(self._columns).startswith(text)
        if whole:
            ours = tuple(reader.fieldnames or ()) == self._columns
        if not ours:
            raise ValueError(
                f"'{self._path}' has other columns than this benchmark writes "
                f"({','.join(self._columns)}); pass another file"
            )
        self.rows = list(reader)
        if whole != text:
            self._path.write_bytes(whole.encode("utf-8", "surrogateescape"))
        if not whole:
            self._append(self._columns)

    def find(self, keys: Mapping[str, str]) -> dict[str, str] | None:
        """Return the result that `keys` name, or None if there is none yet."""
        wanted = {name: cell(value) for name, value in keys.items()}.items()
        return next((row for row in self.rows if wanted <= row.items()), None)

    def add(
        self, keys: Mapping[str, str], values: Mapping[str, float | str | None]
    ) -> dict[str, str]:
        """Write one result; floats with six decimals, nothing for None and NaN."""
        row = {k: cell(v) for k, v in keys.items()} | {k: _text(v) for k, v in values.items()}
        row = {column: row.get(column, "") for column in self._columns}
        self._append(tuple(row.values()))
        self.rows.append(row)
        return row

    def _append(self, fields: Sequence[str]) -> None:
        if self._path is None:
            return
        with self._path.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerow(fields)


def digest(*parts: Any) -> str:
    """Return a hash of what was measured, by this version of pydfm.

    Parameters
    ----------
    *parts : sequence of paths, ndarray or None
        Files, by their order, their places below the folder that has them all, and what they
        contain; or arrays.
    """
    found = hashlib.sha256(__version__.encode())
    for part in parts:
        if isinstance(part, np.ndarray):
            found.update(f"{part.dtype} {part.shape}\n".encode())
            found.update(np.ascontiguousarray(part).data)
        elif part:
            paths = [Path(path).absolute() for path in part]
            top = os.path.commonpath([path.parent for path in paths])
            for path in paths:
                found.update(os.fsencode(path.relative_to(top)) + b"\n")
                # A file that cannot be read is an error where it is measured.
                with contextlib.suppress(OSError):
                    found.update(hashlib.sha256(path.read_bytes()).digest())
        found.update(b"\0")
    return found.hexdigest()[:16]


def _text(value: float | str | None) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.6f}"
    return "" if value is None else str(value)
