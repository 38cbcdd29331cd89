"""Files that are replaced atomically."""

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Final

# A file that a save has not finished for so many seconds is the litter of one that was killed.
_STALE: Final = 3600

_TEMPORARY: Final = ".pydfm-"


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


def write_file(path: "str | os.PathLike[str]", data: bytes) -> None:
    """Write `data` to `path` atomically. A link stays; its target is replaced.

    What a killed save left in the folder more than an hour ago is deleted.

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
    _clean(path.parent)
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:  # with the permissions that the umask leaves
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _clean(folder: Path) -> None:
    """Delete the temporary files of killed saves in `folder`."""
    for left in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):  # another process may delete it too
            if left.is_file() and time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout, which cannot be replaced."""
    return path.exists() and not path.is_file()
