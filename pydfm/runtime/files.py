"""Files that are replaced atomically."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

_PREFIX: Final = ".pydfm-"
_NAME: Final = re.compile(r"\.pydfm-[0-9a-f]{16}")


def check_output(path: "str | os.PathLike[str]") -> None:
    """Check, before any work is done, that `write_file` can write to `path`.

    Raises
    ------
    OSError
        If its folder does not exist, it is a folder, or it is not writable.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder '{path.parent}' to write '{path.name}' to")
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file to write")
    if path.exists() and not _writable(path):
        raise PermissionError(f"'{path}' exists and is not writable; name another file")
    folder = path.resolve().parent
    if not _is_special(path) and not _writable(folder):
        raise PermissionError(f"the folder '{folder}' is not writable; name another")


def make_folder(path: "str | os.PathLike[str]") -> None:
    """Make a folder, and those that it is in, unless it is there.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        told = type(error)(f"cannot make the folder '{path}': {reason}; name another")
        told.errno = error.errno
        raise told from error


def write_file(path: "str | os.PathLike[str]", data: bytes, *, tidy: bool = True) -> None:
    """Write `data` to `path` atomically. A link stays; its target is replaced.

    Parameters
    ----------
    path : path
    data : bytes
    tidy : bool
        Delete what killed writes have left in the folder.

    Raises
    ------
    OSError
        As `check_output`, or if there is no space; an older file then stays as it is.
    """
    check_output(path)
    path = Path(path)
    if _is_special(path):
        path.write_bytes(data)
        return
    path = path.resolve()
    if tidy:
        remove_litter(path.parent)
    try:
        temporary, file = _open_temporary(path.parent)
    except OSError as error:
        raise _told(error, path, len(data)) from error
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if os.name != "nt":  # which cannot rename open files
                temporary.replace(path)
        if os.name == "nt":
            temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _told(error, path, len(data)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_into(
    folder: "str | os.PathLike[str]",
    name: str,
    source: "str | os.PathLike[str]",
    size: int,
    changed: int,
) -> bool:
    """Link or copy a file into `folder`, once, and return whether it could be read.

    Parameters
    ----------
    folder : path
        It is made where it is not there.
    name : str
        The name in the folder, perhaps with subfolders. Where another file has it, the time of the
        change is put behind.
    source : path
    size : int
    changed : int
        When the file was changed, in nanoseconds since 1970.

    Raises
    ------
    OSError
        As `make_folder` and `write_file`.
    """
    target = Path(folder) / name
    if target.exists():
        found = target.stat()
        if (found.st_size, found.st_mtime_ns) == (size, changed):
            return True
        target = target.with_name(f"{target.stem}-{changed}{target.suffix}")
        if target.exists():
            return True
    make_folder(target.parent)
    try:
        os.link(source, target)
    except OSError:  # another drive, or a file system without links
        try:
            data = Path(source).read_bytes()
        except OSError:
            return False
        write_file(target, data, tidy=False)
        os.utime(target, ns=(changed, changed))
    return True


def state_of(path: "str | os.PathLike[str]") -> tuple[int, int, int] | None:
    """Return what changes where the file at `path` is replaced; None where there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def unchanged(path: "str | os.PathLike[str]", state: tuple[int, int, int] | None) -> Iterator[None]:
    """Let nobody else who asks so replace the file at `path`, which has not changed since `state`.

    Raises
    ------
    ValueError
        If it has.
    """
    path = Path(path)
    with ExitStack() as stack:
        if os.name != "nt":  # where folders cannot be opened
            import fcntl

            with suppress(OSError):  # a file system without locks
                folder = os.open(path.resolve().parent, os.O_RDONLY)
                stack.callback(os.close, folder)
                fcntl.flock(folder, fcntl.LOCK_EX)
        if state_of(path) != state:
            raise ValueError(
                f"'{path}' was changed by another process since this one began, and is kept as it "
                "is; run the command again"
            )
        yield


def previous_of(path: "str | os.PathLike[str]") -> Path:
    """Return where `keep_previous` keeps the file at `path`: beside it, NAME.previous."""
    path = Path(path).resolve()
    return path.with_name(f"{path.name}.previous")


def keep_previous(path: "str | os.PathLike[str]") -> None:
    """Keep a copy of the file at `path`, which is about to be replaced, where there is one.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    if Path(path).is_file():
        write_file(previous_of(path), Path(path).read_bytes())


def swap_with_previous(path: "str | os.PathLike[str]") -> None:
    """Put back what `keep_previous` kept of the file at `path`, and keep that one in its place.

    If it is killed on the way, both are still there, and the next call ends what was begun.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or nothing was kept of it.
    OSError
        If it cannot be written.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{os.fspath(path)}'")
    previous = previous_of(path)
    if not previous.is_file():
        raise FileNotFoundError(
            f"there is no '{previous}', which commands that replace '{path}' leave beside it; it "
            "cannot be undone"
        )
    aside = previous.with_name(f"{previous.name}.new")
    old, new = previous.read_bytes(), Path(path).read_bytes()
    if not (aside.is_file() and old == new):  # else it was killed before the last step
        write_file(aside, new)
        write_file(path, old)
    aside.replace(previous)


def remove_litter(folder: "str | os.PathLike[str]") -> None:
    """Delete the temporary files that killed processes left in `folder`.

    A process that lives holds a lock on its own, and those stay.
    """
    for file in temporary_files(folder):
        with suppress(OSError):  # another process's, or gone
            if os.name == "nt":  # where files that are open cannot be deleted
                file.unlink()
            else:
                _unlink_unless_locked(file)


def temporary_files(folder: "str | os.PathLike[str]") -> list[Path]:
    """Return the temporary files of `write_file` in `folder`."""
    return [path for path in Path(folder).glob(f"{_PREFIX}*") if _NAME.fullmatch(path.name)]


def _open_temporary(folder: Path) -> tuple[Path, IO[bytes]]:
    """Open a new file in `folder`, with a lock that says that its process lives."""
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}"
        file = path.open("xb")  # with the permissions that the umask leaves
        if os.name == "nt":
            return path, file
        import fcntl

        with suppress(OSError):  # a file system without locks, where nobody can lock and delete it
            fcntl.flock(file, fcntl.LOCK_EX)
        # Before the lock, another process may have taken it for litter.
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return path, file
        file.close()


def _unlink_unless_locked(path: Path) -> None:
    import fcntl

    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _told(error: OSError, path: Path, size: int) -> OSError:
    """Return an error of the same kind that names the file and says what became of it."""
    reason = error.strerror or str(error)
    kept = "; the file that was there is kept" if path.exists() else ""
    told = type(error)(f"cannot write '{path}' of {size} bytes: {reason}{kept}")
    told.errno = error.errno
    return told


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout, which cannot be replaced."""
    return path.exists() and not path.is_file()
