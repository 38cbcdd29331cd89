"""Features of a long fit on disk, batch by batch, so that an interrupted fit can continue.

A folder contains ``settings.json``, with what the features depend on and a hash of the images, and
a safetensors file for every batch: its features, the indices of its images, and the images that
were skipped, with a SHA-256 of all of it. Files are written atomically. Batches count up to the
first file that is damaged or does not follow the one before it; the rest is computed again.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pydfm.features.inputs.sources import ImageSource, Skipped
from pydfm.features.pictures.pages import split_page
from pydfm.runtime.files import make_folder, remove_litter, temporary_files, write_file

_SETTINGS = "settings.json"


class Checkpoint:
    """Batches of features in a folder.

    Parameters
    ----------
    folder : str or path
        Created if it does not exist.
    settings : dict
        Settings that the features depend on: the fields of a `FeatureSpec`.
    source : ImageSource
        Images that are files.

    Raises
    ------
    ValueError
        If the images are not files, or the folder has features of other images or settings, or
        other files.
    """

    def __init__(
        self, folder: "str | os.PathLike[str]", settings: dict[str, Any], source: ImageSource
    ) -> None:
        if source.names is None:
            raise ValueError(
                "checkpoint needs images that are files, and X holds none; pass a folder, or a "
                "list of paths"
            )
        self._folder = Path(folder)
        settings = {**settings, "pictures": _digest_of(source.names)}
        text = json.dumps(settings, default=str, indent=1)
        file = self._folder / _SETTINGS
        make_folder(self._folder)
        remove_litter(self._folder)
        if not file.is_file():
            if set(self._folder.iterdir()) - set(temporary_files(self._folder)):
                raise ValueError(
                    f"checkpoint '{self._folder}' holds other files; name an empty or new folder"
                )
            write_file(file, text.encode(), tidy=False)
        elif file.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"checkpoint '{self._folder}' was begun with {_difference(file, settings)}; name "
                "another folder, or delete it"
            )
        self._count = 0

    def read(self, source: ImageSource) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield indices and features (B, D) of the batches in the folder.

        `source` is moved past each batch, so that it continues after the last one.
        """
        while True:
            found = self._load(self._count, source.count)
            if found is None:
                return
            places, features, skipped, end = found
            self._count += 1
            source.count = end
            source.skipped += skipped
            if len(places):
                yield places, features

    def write(
        self, places: list[int], features: NDArray[np.float32], skipped: list[Skipped], end: int
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        places : list of int
            Indices of its B images.
        features : array of shape (B, D)
        skipped : list of Skipped
            Images since the batch before that cannot be read.
        end : int
            Index of the first image after the batch.
        """
        tensors: dict[str, NDArray[Any]] = {
            "places": np.array(places, dtype=np.int64),
            "features": features,
        }
        header = {
            "skipped": [[one.index, one.reason] for one in skipped],
            "end": end,
            "sha256": _digest(tensors, skipped, end),
        }
        data = safetensors.numpy.save(tensors, {"pydfm": json.dumps(header)})
        write_file(self._file(self._count), data, tidy=False)
        self._count += 1

    def _file(self, i: int) -> Path:
        return self._folder / f"{i:08}.safetensors"

    def _load(self, i: int, start: int) -> Any:
        """Return batch `i`, whose first image is `start`; None if it is missing or damaged."""
        try:
            with safetensors.safe_open(self._file(i), framework="np") as file:
                header = json.loads((file.metadata() or {})["pydfm"])
                tensors = {name: file.get_tensor(name) for name in ("places", "features")}
            skipped = [Skipped(int(index), str(reason)) for index, reason in header["skipped"]]
            end = int(header["end"])
            whole = header["sha256"] == _digest(tensors, skipped, end)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
            return None
        places = tensors["places"].tolist()
        if not whole or end <= start or any(not start <= place < end for place in places):
            return None
        return places, tensors["features"], skipped, end


def delete_checkpoint(folder: "str | os.PathLike[str]") -> None:
    """Delete the files of a checkpoint, and the folder if it has no others."""
    path = Path(folder)
    for file in (*path.glob("[0-9]*.safetensors"), path / _SETTINGS):
        file.unlink(missing_ok=True)
    remove_litter(path)
    if not any(path.iterdir()):
        path.rmdir()


def _digest(tensors: dict[str, NDArray[Any]], skipped: list[Skipped], end: int) -> str:
    """Return the SHA-256 of a batch."""
    digest = hashlib.sha256(json.dumps([[one.index, one.reason] for one in skipped]).encode())
    digest.update(str(end).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _digest_of(names: list[str]) -> str:
    """Return the SHA-256 of the paths, sizes and times of change of images."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = Path(split_page(name)[0]).stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # reported or skipped when it is read
            state = "none"
        digest.update(f"{name}\0{state}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _difference(file: Path, settings: dict[str, Any]) -> str:
    """Return in words how the settings in `file` differ from `settings`."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(settings, default=str))
        names = [name for name in now if before.get(name) != now[name]]
    except (ValueError, AttributeError, OSError):
        names = []
    return f"other {' and '.join(names)}" if names else "something else"
