"""The record of a line: a CSV file of results, and the journal of what was scored beside it.

The journal is an SQLite file. A batch is written to it first, in one transaction: the keys of its
files, what the monitor takes, and the text for the CSV with its place there. Then the text is
appended to the CSV. A process that is killed in between leaves a line torn or missing, which the
next one completes from the journal. So each file has its lines once, whenever the power goes.
"""

import contextlib
import csv
import io
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_TABLES = (
    "CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS measured (number INTEGER PRIMARY KEY, value BLOB)",
)


class Record:
    """Results of a line, each file once across processes.

    Parameters
    ----------
    output : Path
        The CSV file.
    columns : sequence of str

    Attributes
    ----------
    repaired : bool
        Whether the last line was torn or missing, and is there now.

    Raises
    ------
    OSError
        If it cannot be written, or another process writes it.
    ValueError
        If the CSV has other columns, or the journal is missing.
    """

    def __init__(self, output: Path, columns: Sequence[str]) -> None:
        self.output = output
        self.journal = output.with_name(f"{output.name}.journal")
        self._header = csv_text([columns])
        self.repaired = False
        had_journal = self.journal.exists()
        if output.exists() and output.stat().st_size:
            self._check_header()
            if not had_journal:
                raise ValueError(
                    f"'{output}' exists, and '{self.journal.name}', the journal of what was scored "
                    "for it, does not; name another file"
                )
        self._base = self._open()
        try:
            self._repair()
        except BaseException:
            self._base.close()
            raise

    def _check_header(self) -> None:
        with self.output.open("rb") as file:
            first = file.readline()
        want = self._header.encode()
        # A header may be torn, too; the journal completes it.
        if first != want and (not want.startswith(first) or first.endswith(b"\n")):
            raise ValueError(
                f"'{self.output}' has other columns than {self._header.strip()}; name another file"
            )

    def _open(self) -> sqlite3.Connection:
        base = None
        try:
            base = sqlite3.connect(self.journal, timeout=0, isolation_level=None)
            base.execute("PRAGMA locking_mode=EXCLUSIVE")
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=FULL")
            base.execute("BEGIN EXCLUSIVE")
            for table in _TABLES:
                base.execute(table)
            base.execute("COMMIT")
        except sqlite3.Error as error:
            if base is not None:
                base.close()
            if "locked" in str(error):
                raise OSError(
                    f"another process writes '{self.output}'; end it, or name another file"
                ) from error
            raise OSError(f"'{self.journal}' is no journal of pydfm watch: {error}") from error
        return base

    def _repair(self) -> None:
        """Complete the last batch in the CSV."""
        last = self._kept("last")
        if last is None:
            return
        text, place = bytes(last), int(self._kept("place"))
        if not self.output.exists():
            return  # it was moved away; the next batch begins a new one
        with self.output.open("rb") as file:
            file.seek(place)
            there = file.read(len(text) + 1)
        if len(there) < len(text) and text.startswith(there) and self._size() >= place:
            self._append(text[len(there) :])
            self.repaired = True

    def knows(self, key: bytes) -> bool:
        """Whether the file with a key was scored."""
        return self._base.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    @property
    def snapshot(self) -> str | None:
        """The last state of the monitor that was kept."""
        found = self._kept("monitor")
        return None if found is None else str(found)

    def measured(self) -> Iterable[bytes]:
        """Yield what `add` was given for the monitor since that state."""
        for (value,) in self._base.execute("SELECT value FROM measured ORDER BY number"):
            yield value

    def add(
        self, rows: Sequence[Sequence[str]], keys: Sequence[bytes], measured: Sequence[bytes]
    ) -> None:
        """Write the rows of a batch.

        Parameters
        ----------
        rows : sequence of rows
        keys : sequence of bytes
            Of the files that are done with it.
        measured : sequence of bytes
            What the monitor took, to be given back by `measured`.

        Raises
        ------
        OSError
            If there is no space. The batch is then either not in the journal, and is scored again
            by the next process, or is completed by it.
        """
        size = self._size()
        text = csv_text(rows).encode("utf-8", "surrogateescape")
        if size == 0:
            text = self._header.encode() + text
        elif not self._ends_a_line():  # somebody has edited it
            text = b"\n" + text
        with self._transaction("the images of this batch are scored again at the next start"):
            self._base.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(k,) for k in keys])
            self._base.executemany(
                "INSERT INTO measured (value) VALUES (?)", [(own,) for own in measured]
            )
            self._keep("last", text)
            self._keep("place", size)
        self._append(text)

    def keep(self, snapshot: str | None) -> None:
        """Keep the state of the monitor, in place of what it was given so far."""
        with self._transaction("nothing is lost"):
            self._base.execute("DELETE FROM measured")
            self._keep("monitor", snapshot)

    def close(self) -> None:
        """Close the journal."""
        self._base.close()

    @contextlib.contextmanager
    def _transaction(self, otherwise: str) -> Any:
        try:
            self._base.execute("BEGIN IMMEDIATE")
            yield
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._base.execute("ROLLBACK")
            raise OSError(f"cannot write '{self.journal}': {error}; {otherwise}") from error

    def _kept(self, name: str) -> Any:
        found = self._base.execute("SELECT value FROM kept WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def _keep(self, name: str, value: Any) -> None:
        self._base.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, value))

    def _size(self) -> int:
        return self.output.stat().st_size if self.output.exists() else 0

    def _ends_a_line(self) -> bool:
        with self.output.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _append(self, text: bytes) -> None:
        try:
            with self.output.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or str(error)
            told = type(error)(
                f"cannot write '{self.output}': {reason}; nothing is lost, the next start "
                "completes its last lines"
            )
            told.errno = error.errno
            raise told from error


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
