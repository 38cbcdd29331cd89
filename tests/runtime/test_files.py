import os
import stat
import time

import pytest

from pydfm.runtime.files import check_output, write_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_replaced(tmp_path):
    for data in (b"first", b"", b"second and longer"):
        write_file(tmp_path / "x", data)
        assert (tmp_path / "x").read_bytes() == data
    assert names(tmp_path) == ["x"]


def test_a_path_may_have_no_folder_and_a_name_of_any_length(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [os.fsdecode(b"bad\xff"), "n" * 255, "x"]
    for name in given:
        write_file(name, b"data")
    assert names(tmp_path) == given


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_old_file_and_no_other(
    tmp_path, monkeypatch, failing, error
):
    def fail(*_arguments):
        raise error

    write_file(tmp_path / "x", b"old")
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)):
        write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "x", b"")
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/x")
    for data in (b"first", b"second"):
        write_file(tmp_path / "link", data)
        assert (tmp_path / "elsewhere" / "x").read_bytes() == data
    assert (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs devices")  # noqa: PTH110
def test_a_device_is_written_to_and_stays_one():
    write_file("/dev/null", b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)  # noqa: PTH116


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", b"data")
    assert os.read(reader, 99) == b"data"
    os.close(reader)


def test_what_cannot_be_written_is_told_before_and_after(tmp_path):
    (tmp_path / "file").touch()
    for call in (check_output, lambda path: write_file(path, b"")):
        with pytest.raises(FileNotFoundError, match=r"^there is no folder '.*gone' to write 'x'"):
            call(tmp_path / "gone" / "x")
        with pytest.raises(FileNotFoundError, match=r"^there is no folder '.*file'"):
            call(tmp_path / "file" / "x")
        with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
            call(tmp_path)
    assert check_output(tmp_path / "new") is None
    assert names(tmp_path) == ["file"]


def test_what_must_not_be_written_is_told(unprivileged):
    file = unprivileged / "file"
    file.write_bytes(b"old")
    file.chmod(0o444)
    with pytest.raises(PermissionError, match=r"'.*file' exists and is not writable"):
        write_file(file, b"new")
    unprivileged.chmod(0o555)
    with pytest.raises(PermissionError, match=r"^the folder '.*' is not writable"):
        write_file(unprivileged / "new", b"new")
    assert names(unprivileged) == ["file"]
    assert file.read_bytes() == b"old"


def test_what_killed_saves_left_is_deleted_and_what_is_being_written_stays(tmp_path):
    for name, age in ((".pydfm-old", 7200), (".pydfm-new", 0), ("other", 7200)):
        (tmp_path / name).write_bytes(b"part")
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    write_file(tmp_path / "x", b"data")
    assert names(tmp_path) == [".pydfm-new", "other", "x"]
