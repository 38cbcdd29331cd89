import pytest

from pydfm.benchmark.record import Record


def test_a_record_resumes(tmp_path):
    path = tmp_path / "results.csv"
    keys = {"who": "a,b"}
    record = Record(path, ("who",), ("x", "y"))
    assert record.find(keys, "s") is None
    row = record.add(keys, "s", {"x": 1 / 3, "y": None})
    assert row == {"who": "a,b", "settings": "s", "x": "0.333333", "y": ""}
    again = Record(path, ("who",), ("x", "y"))
    assert again.find(keys, "s") == row
    with pytest.raises(ValueError, match=r"has a,b with the settings s, not t; pass another file"):
        again.find(keys, "t")


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_short_is_removed(tmp_path, cut):
    path = tmp_path / "results.csv"
    record = Record(path, ("who",), ("x",))
    for who in "ab":
        record.add({"who": who}, "{settings with, commas}", {"x": 0.5})
    whole = path.read_text()
    path.write_text(whole[:-cut])
    again = Record(path, ("who",), ("x",))
    for who in "ab":
        if again.find({"who": who}, "{settings with, commas}") is None:
            again.add({"who": who}, "{settings with, commas}", {"x": 0.5})
    assert path.read_text() == whole


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
