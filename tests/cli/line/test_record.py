import csv
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydfm.cli.line.record import Record

COLUMNS = ("path", "verdict")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "results.csv"


def add(record, *names):
    keys = [name.encode() for name in names]
    record.add([[name, "ok"] for name in names], keys, [b"m" + key for key in keys])


def rows(output):
    with output.open(newline="") as file:
        return [row[0] for row in csv.reader(file)]


def test_what_was_added_is_known_in_the_next_process(output):
    record = Record(output, COLUMNS)
    assert not record.knows(b"a")
    add(record, "a", "b\n,")
    record.keep("state")
    add(record, "c")
    record.close()
    record = Record(output, COLUMNS)
    assert [record.knows(own) for own in (b"a", b"b\n,", b"c", b"d")] == [True, True, True, False]
    assert record.snapshot == "state"
    assert list(record.measured()) == [b"mc"]
    assert rows(output) == ["path", "a", "b\n,", "c"]
    assert not record.repaired
    record.close()


@pytest.mark.parametrize("batches", [1, 2])
def test_a_line_that_is_torn_anywhere_is_completed(output, batches):
    record = Record(output, COLUMNS)
    for name in "ab"[:batches]:
        add(record, name)
        start = output.stat().st_size
    whole = output.read_bytes()
    record.close()
    first = 0 if batches == 1 else whole.index(b"b,")
    for end in range(first, len(whole) + 1):
        output.write_bytes(whole[:end])
        record = Record(output, COLUMNS)
        assert output.read_bytes() == whole
        assert record.repaired == (end < len(whole))
        record.close()
    assert start == len(whole)


def test_lines_of_others_are_kept(output):
    record = Record(output, COLUMNS)
    add(record, "a")
    record.close()
    with output.open("a") as file:
        file.write("mine,ok")
    record = Record(output, COLUMNS)
    add(record, "b")
    record.close()
    assert rows(output) == ["path", "a", "mine", "b"]


def test_a_file_that_was_moved_away_begins_anew(output, tmp_path):
    record = Record(output, COLUMNS)
    add(record, "a")
    output.rename(tmp_path / "old.csv")
    add(record, "b")
    record.close()
    assert rows(output) == ["path", "b"]
    output.unlink()
    record = Record(output, COLUMNS)
    assert record.knows(b"a")
    add(record, "c")
    record.close()
    assert rows(output) == ["path", "c"]


def test_what_cannot_go_on_is_one_sentence(output):
    record = Record(output, COLUMNS)
    add(record, "a")
    with pytest.raises(OSError, match=r"another process writes '.*results.csv'; end it, or name"):
        Record(output, COLUMNS)
    record.close()
    with pytest.raises(ValueError, match=r"has other columns than path,other; name another file"):
        Record(output, ("path", "other"))
    record.journal.unlink()
    with pytest.raises(ValueError, match=r"and 'results.csv.journal', the journal of what was"):
        Record(output, COLUMNS)
    record.journal.write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match="is no journal of pydfm watch: file is not a database"):
        Record(output, COLUMNS)


def test_a_full_disk_loses_nothing(output, monkeypatch):
    record = Record(output, COLUMNS)
    add(record, "a")
    # The journal has no space: nothing of the batch is there.
    pages = record._base.execute("PRAGMA page_count").fetchone()[0]
    record._base.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(
        OSError, match=r"cannot write '.*journal': database or disk is full; the im"
    ):
        record.add([["x" * 9000, "ok"]], [b"b"], [b"m" * 20000])
    assert not record.knows(b"b")
    assert rows(output) == ["path", "a"]
    record._base.execute("PRAGMA max_page_count=100000")

    # The CSV has none: the journal has the batch.
    class Full:
        def __enter__(self):
            raise OSError(28, "No space left on device")

        def __exit__(self, *_):
            pass

    opened = type(output).open

    def open_(self, mode="r", **options):
        return Full() if mode == "ab" else opened(self, mode, **options)

    monkeypatch.setattr(type(output), "open", open_)
    with pytest.raises(
        OSError, match=r"cannot write '.*results.csv': No space left on device; noth"
    ):
        add(record, "c")
    monkeypatch.undo()
    record.close()
    record = Record(output, COLUMNS)
    assert record.repaired
    assert rows(output) == ["path", "a", "c"]
    record.close()


# Cells have no control characters: the command escapes them.
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=6)


@settings(deadline=None, max_examples=25)
@given(names=st.lists(NAMES, unique=True, min_size=1, max_size=6), data=st.data())
def test_any_name_comes_back(tmp_path_factory, names, data):
    output = tmp_path_factory.mktemp("r") / "results.csv"
    cut = data.draw(st.integers(0, len(names)))
    for part in (names[:cut], names[cut:]):
        record = Record(output, COLUMNS)
        for name in part:
            record.add([[name, "ok"]], [name.encode("utf-8", "surrogatepass")], [])
        record.close()
    with output.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        _, *found = csv.reader(file)
    assert [name for name, _ in found] == names


def test_the_journal_is_sqlite(output):
    record = Record(output, COLUMNS)
    add(record, "a")
    record.close()
    base = sqlite3.connect(record.journal)
    assert base.execute("SELECT count(*) FROM seen").fetchone() == (1,)
    base.close()
