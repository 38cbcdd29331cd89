"""Files that are written whole or not at all."""

import os
import secrets
from pathlib import Path


def check_output(path: "str | os.PathLike[str]") -> None:
    """Tell before any work is done whether `write_file` could not write to `path`.

    Raises
    ------
    OSError
        If its folder is not there, it is a folder, or it must not be written to.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder '{path.parent}' to write '{path.name}' to")
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file to write")
    if path.exists() and not _writable(path):
        raise PermissionError(f"'{path}' is there and must not be written to; name another file")
    folder = path.resolve().parent
    if not _is_special(path) and not _writable(folder):
        raise PermissionError(f"the folder '{folder}' must not be written to; name another")


def write_file(path: "str | os.PathLike[str]", data: bytes) -> None:
    """Write `data` to `path` at once or not at all; a link stays, what it leads to is replaced.

    Raises
    ------
    OSError
        As `check_output`, or if there is no space; an older file stays as it is then.
    """
    check_output(path)
    path = Path(path)
    if _is_special(path):
        path.write_bytes(data)
        return
    path = path.resolve()
    temporary = path.parent / f".pydfm-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:  # with the permissions that the umask leaves
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _is_special(path: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout, which cannot be replaced."""
    return path.exists() and not path.is_file()
