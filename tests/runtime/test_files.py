import errno
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pydfm.runtime.files import (
    check_output,
    keep_previous,
    make_folder,
    previous_of,
    put_into,
    remove_litter,
    swap_with_previous,
    temporary_files,
    write_file,
)


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


@pytest.mark.parametrize("failing", [(os, "fsync"), (Path, "replace")])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_old_file_and_no_other(
    tmp_path, monkeypatch, failing, error
):
    def fail(*_arguments):
        raise error

    write_file(tmp_path / "x", b"old")
    monkeypatch.setattr(*failing, fail)
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


# What killed processes leave

WRITING = """
import os, sys, time
from pydfm.runtime.files import write_file
def wait(_):
    print("in the middle", flush=True)
    time.sleep(60)
os.fsync = wait
write_file(sys.argv[1], b"new")
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of a write to `x`."""
    (tmp_path / "x").write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", WRITING, tmp_path / "x"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_what_a_killed_write_left_is_deleted_by_the_next(writer, tmp_path):
    assert len(temporary_files(tmp_path)) == 1
    write_file(tmp_path / "y", b"another")
    remove_litter(tmp_path)
    assert len(temporary_files(tmp_path)) == 1  # its process lives
    writer.kill()
    writer.wait()
    assert len(temporary_files(tmp_path)) == 1
    write_file(tmp_path / "y", b"another")
    assert names(tmp_path) == ["x", "y"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_only_what_a_write_left_is_deleted(tmp_path):
    kept = [".pydfm-notes", ".pydfm-0123456789abcdef.bak", "x"]
    for name in (*kept, ".pydfm-0123456789abcdef"):
        (tmp_path / name).touch()
    remove_litter(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_threads_that_write_to_one_folder_do_not_delete_each_others_files(tmp_path):
    def write(i):
        for _ in range(30):
            write_file(tmp_path / str(i), b"data")

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == [str(i) for i in range(8)]
    assert all(path.read_bytes() == b"data" for path in tmp_path.iterdir())


def test_a_full_disk_is_told_in_one_sentence(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    says = rf"^cannot write '{re.escape(str(tmp_path / 'x'))}' of 3 bytes: No space left on device"
    with pytest.raises(OSError, match=says + "$") as caught:
        write_file(tmp_path / "x", b"new")
    assert caught.value.errno == errno.ENOSPC
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(OSError, match=says + "; the file that was there is kept$"):
        write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_folder_that_takes_no_file_is_told_in_one_sentence(tmp_path, monkeypatch):
    """Some are told by nothing else, such as /proc."""

    def fail(folder):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder / ".pydfm-0"))

    monkeypatch.setattr("pydfm.runtime.files._open_temporary", fail)
    says = (
        rf"^cannot write '{re.escape(str(tmp_path / 'x'))}' of 3 bytes: No such file or directory$"
    )
    with pytest.raises(FileNotFoundError, match=says):
        write_file(tmp_path / "x", b"new")


@pytest.mark.skipif(os.name != "posix", reason="needs limits of file sizes")
def test_a_limit_of_file_sizes_is_told_too(tmp_path, run_python):
    code = """
import resource, sys
from pydfm.runtime.files import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_file(sys.argv[1], bytes(5000))
except OSError as error:
    print(error)
"""
    (tmp_path / "x").write_bytes(b"old")
    assert "x' of 5000 bytes: File too large; the file" in run_python(code, tmp_path / "x").stdout
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_folder_is_made_once(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_in_a_file_system_that_is_read_only_is_told(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", fail)
    says = r"^cannot make the folder '.*new': Read-only file system; name another$"
    with pytest.raises(OSError, match=says) as caught:
        make_folder(tmp_path / "new")
    assert caught.value.errno == errno.EROFS


def test_files_are_put_into_a_folder_once(tmp_path, monkeypatch):
    source = tmp_path / "a.png"
    source.write_bytes(b"first")
    folder = tmp_path / "kept"

    def put(name="day/a.png"):
        found = source.stat()
        return put_into(folder, name, source, found.st_size, found.st_mtime_ns)

    def fail(*_):
        raise OSError(errno.EXDEV, "another drive")

    assert put()
    assert put()
    assert names(folder / "day") == ["a.png"]
    monkeypatch.setattr(os, "link", fail)
    assert put("copy.png")
    copied = (folder / "copy.png").stat()
    assert copied.st_mtime_ns == source.stat().st_mtime_ns
    assert copied.st_ino != source.stat().st_ino
    assert put("copy.png")
    source.unlink()
    source.write_bytes(b"another one")
    assert put("copy.png")
    assert put("copy.png")
    assert names(folder) == sorted(["day", "copy.png", f"copy-{source.stat().st_mtime_ns}.png"])
    found = source.stat()
    source.unlink()
    assert not put_into(folder, "gone.png", source, found.st_size, found.st_mtime_ns)
    assert not (folder / "gone.png").exists()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_nothing_is_lost_where_a_swap_is_killed(tmp_path, monkeypatch, step):
    path = tmp_path / "m"
    path.write_bytes(b"old")
    keep_previous(path)
    write_file(path, b"new")
    steps = []

    def killed(source, target, replace=Path.replace):
        steps.append(1)
        if len(steps) == step:
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            swap_with_previous(path)
    there = [one.read_bytes() for one in tmp_path.iterdir()]
    assert {b"old", b"new"} <= set(there)
    swap_with_previous(path)
    assert (path.read_bytes(), previous_of(path).read_bytes()) == (b"old", b"new")
    assert names(tmp_path) == ["m", "m.previous"]
    swap_with_previous(path)
    assert (path.read_bytes(), previous_of(path).read_bytes()) == (b"new", b"old")
