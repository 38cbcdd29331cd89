import os
import sys

import numpy as np
import pytest

from pydfm.benchmark.record import Record, digest
from pydfm.benchmark.table import markdown


def test_a_record_resumes(tmp_path):
    path = tmp_path / "results.csv"
    keys = {"who": "a,b", "settings": "{s, t}"}
    record = Record(path, ("who", "settings"), ("x", "y"))
    assert record.find(keys) is None
    row = record.add(keys, {"x": 1 / 3, "y": None})
    assert row == {**keys, "x": "0.333333", "y": ""}
    again = Record(path, ("who", "settings"), ("x", "y"))
    assert again.find(keys) == row
    assert again.find({**keys, "settings": "t"}) is None


def test_names_in_a_record_are_cells_and_resume(tmp_path):
    path = tmp_path / "results.csv"
    names = ["=1+1", "a\nb", "\x1b[31m", "\udcff", 'a"b']
    record = Record(path, ("who",), ("x",))
    for name in names:
        record.add({"who": name}, {"x": 0.5})
    again = Record(path, ("who",), ("x",))
    assert all(again.find({"who": name}) is not None for name in names)
    lines = path.read_bytes().splitlines()
    want = [b"who,x", b"'=1+1,0.500000", b"a\\nb,0.500000", b"\\x1b[31m,0.500000"]
    assert lines == [*want, b"\xff,0.500000", b'"a""b",0.500000']


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_short_is_removed(tmp_path, cut):
    path = tmp_path / "results.csv"
    every = [{"who": who, "settings": "{settings with, commas}"} for who in "ab"]
    record = Record(path, ("who", "settings"), ("x",))
    for keys in every:
        record.add(keys, {"x": 0.5})
    whole = path.read_text()
    path.write_text(whole[:-cut])
    again = Record(path, ("who", "settings"), ("x",))
    for keys in every:
        if again.find(keys) is None:
            again.add(keys, {"x": 0.5})
    assert path.read_text() == whole


def test_a_digest_is_of_what_files_and_arrays_hold(tmp_path):
    for folder in "ab":
        (tmp_path / folder / "good").mkdir(parents=True)
        for name in ("good/1.png", "2.png"):
            (tmp_path / folder / name).write_text(name)

    def of(folder, *names):
        return digest([str(tmp_path / folder / name) for name in names], np.arange(3))

    first = of("a", "good/1.png", "2.png")
    assert of("b", "good/1.png", "2.png") == first
    (tmp_path / "b" / "2.png").write_text("another picture")
    others = [
        of("b", "good/1.png", "2.png"),
        of("a", "2.png", "good/1.png"),
        of("a", "2.png"),
        of("a", "good/1.png", "2.png", "not there.png"),
        digest(None, np.arange(3)),
        digest(None, np.arange(3.0)),
        digest(None, np.arange(3)[:, None]),
        digest(np.arange(3), None),
    ]
    assert len({first, *others}) == 9


def test_another_table_is_not_written_to(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("path,score\n1.png,2\n")
    with pytest.raises(ValueError, match="has other columns"):
        Record(path, ("who",), ("x",))
    assert path.read_text() == "path,score\n1.png,2\n"


@pytest.mark.parametrize("content", [b'{"precious": 1}', b"\x00\xe8\xff", b"some words\nmore\n"])
def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="precious' has other columns than this benchmark writes"):
        Record(path, ("a",), ("b",))
    assert path.read_bytes() == content


@pytest.mark.skipif(sys.platform == "win32", reason="names there are text")
def test_a_digest_takes_names_that_are_no_text(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_text("x")
    assert digest([path]) != digest([tmp_path / "x.png"])


def test_names_forge_no_column_of_a_table():
    assert markdown(["a"], [["x|y\n| z"]]).splitlines()[-1] == r"| x\|y\n\| z |"
