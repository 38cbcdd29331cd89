"""Features of a long fit on disk, batch by batch, so that a fit that was killed goes on from there.

A folder holds ``settings.json``, what the features depend on and which pictures they are of, and a
safetensors file for every batch: its features, the places of its pictures, and which were left out,
with a sha256 of all of it. Files are replaced at once or not at all; one that is not whole, or does
not follow on the one before it, ends what is there and is written again.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pydfm.extraction import FeatureSpec
from pydfm.files import write_file
from pydfm.images import ImageSource, Skipped

_SETTINGS = "settings.json"


class Checkpoint:
    """Batches of features in a folder.

    Parameters
    ----------
    folder : str or path
        Made where it is not there.
    spec : FeatureSpec
        What the features depend on.
    source : ImageSource
        Of pictures that are files.

    Raises
    ------
    ValueError
        If the pictures are not files, or the folder holds features of others, or other files.
    """

    def __init__(
        self, folder: "str | os.PathLike[str]", spec: FeatureSpec, source: ImageSource
    ) -> None:
        if source.names is None:
            raise ValueError(
                "checkpoint needs pictures that can be found again: let X be a folder, or a list "
                "of paths"
            )
        self._folder = Path(folder)
        settings = {**asdict(spec), "pictures": _digest_of(source.names)}
        text = json.dumps(settings, default=str, indent=1)
        file = self._folder / _SETTINGS
        if not file.is_file():
            self._folder.mkdir(parents=True, exist_ok=True)
            if any(self._folder.iterdir()):
                raise ValueError(
                    f"checkpoint '{self._folder}' holds other files; name an empty or new folder"
                )
            write_file(file, text.encode())
        elif file.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"checkpoint '{self._folder}' was begun with {_difference(file, settings)}; name "
                "another folder, or delete it"
            )
        self._count = 0

    def read(self, source: ImageSource) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield places and features of the batches that are there; `source` goes on behind them."""
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
        """Add a batch: the pictures up to place `end` of which some were `skipped`."""
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
        write_file(self._file(self._count), data)
        self._count += 1

    def _file(self, i: int) -> Path:
        return self._folder / f"{i:08}.safetensors"

    def _load(self, i: int, start: int) -> Any:
        """Return batch `i`, which begins at `start`; None where it is not there or not whole."""
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
    """Delete the files of a checkpoint, and the folder where nothing else is in it."""
    path = Path(folder)
    for file in (*path.glob("[0-9]*.safetensors"), path / _SETTINGS):
        file.unlink(missing_ok=True)
    if not any(path.iterdir()):
        path.rmdir()


def _digest(tensors: dict[str, NDArray[Any]], skipped: list[Skipped], end: int) -> str:
    digest = hashlib.sha256(json.dumps([[one.index, one.reason] for one in skipped]).encode())
    digest.update(str(end).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def _digest_of(names: list[str]) -> str:
    """Of the paths, sizes and times of change of the pictures."""
    digest = hashlib.sha256()
    for name in names:
        try:
            status = Path(name).stat()
            told = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:  # a picture that cannot be read is told later, or left out
            told = "none"
        digest.update(f"{name}\0{told}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _difference(file: Path, settings: dict[str, Any]) -> str:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        now = json.loads(json.dumps(settings, default=str))
        names = [name for name in now if before.get(name) != now[name]]
    except (ValueError, AttributeError, OSError):
        names = []
    return f"other {' and '.join(names)}" if names else "something else"
