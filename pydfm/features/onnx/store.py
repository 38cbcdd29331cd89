"""Exported graphs of networks with names, kept in the user's cache folder.

An export takes a second or more and needs torch; a graph that is kept needs neither. Its file is
named by a digest of all that it depends on: the weights, the layers, the size of the images, the
versions of the packages, and the code that makes features of a network. The folder is
``PYDFM_CACHE`` where that is set, else the place that the system has for caches. Where it cannot
be written, nothing is kept. Files are written atomically. Beyond 1 GB, those that were not used for
the longest time are deleted.
"""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydfm import __version__
from pydfm.features.backbones import Family
from pydfm.features.grid import Grid
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.config import version_of
from pydfm.runtime.files import remove_litter, write_file

LARGEST: Final = 1_000_000_000
"""Bytes that all graphs together may take."""

_FORMAT: Final = 1
_SUFFIX: Final = ".graph"
_PACKAGES: Final = ("torch", "torchvision", "timm", "onnxruntime")
# Code that features depend on, beside that of the family.
_SOURCES: Final = ("taps.py", "onnx/export.py", "backbones/layers.py", "backbones/tokens.py")


@dataclass(frozen=True)
class Graph:
    """A network with taps as a graph of ONNX: pixels (B, 3, h, w) in [0, 1] to features (B, D).

    Attributes
    ----------
    data : bytes
        The graph, with its weights.
    grids : tuple of Grid
        Shape of each layer's features, in the order of their columns.
    """

    data: bytes
    grids: tuple[Grid, ...]


def key_of(
    family: Family,
    *,
    backbone: str,
    sha256: str,
    layers: Sequence[str],
    preprocessing: Preprocessing,
    settings: Mapping[str, Any],
) -> str:
    """Return the name that the graph of a network is kept under.

    Parameters
    ----------
    family : Family
        That of the network.
    backbone : str
        The network, as a model file stores it.
    sha256 : str
        Hash of its weights.
    layers : sequence of str
    preprocessing : Preprocessing
    settings : mapping
        What else its features depend on: ``spatial``, ``pool``, ``layout`` and ``tokens``.
    """
    own = {
        "format": _FORMAT,
        "pydfm": __version__,
        "packages": [version_of(name) for name in _PACKAGES],
        "sources": _sources(family),
        "backbone": backbone,
        "sha256": sha256,
        "layers": list(layers),
        "size": preprocessing.size,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        **settings,
    }
    return hashlib.sha256(json.dumps(own, default=str).encode()).hexdigest()


def read_graph(key: str) -> Graph | None:
    """Return the graph that is kept under `key`; None if there is none, or it is damaged."""
    try:
        path = _folder() / (key + _SUFFIX)
        line, _, data = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        if header["sha256"] != hashlib.sha256(data).hexdigest():
            return None
        grids = tuple(
            Grid(**{**grid, "reach": (grid["reach"][0], grid["reach"][1])})
            for grid in header["grids"]
        )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError):
        return None
    with suppress(OSError):  # a folder that may only be read
        os.utime(path)
    return Graph(data, grids)


def write_graph(key: str, graph: Graph) -> None:
    """Keep a graph under `key`, unless the folder cannot be written or the graph is too large."""
    header = {
        "sha256": hashlib.sha256(graph.data).hexdigest(),
        "grids": [asdict(grid) for grid in graph.grids],
    }
    content = json.dumps(header).encode() + b"\n" + graph.data
    if len(content) > LARGEST:
        return
    with suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / (key + _SUFFIX), content)
        _limit(folder, key)


def _limit(folder: Path, newest: str) -> None:
    """Delete the graphs that were not used for the longest time, until the others may stay."""
    files = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):  # another process has deleted it
            status = path.stat()
            files.append((path.stem == newest, status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, _, size, _ in files)
    for _, _, size, path in sorted(files)[:-1]:
        if total <= LARGEST:
            break
        with suppress(OSError):
            path.unlink(missing_ok=True)
        total -= size
    remove_litter(folder)


def _folder() -> Path:
    """Return the folder of the graphs.

    Raises
    ------
    RuntimeError
        If the user has no home.
    """
    chosen = os.environ.get("PYDFM_CACHE")
    if chosen:
        return Path(chosen) / "graphs"
    if sys.platform == "darwin":
        place = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        place = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return place / "pydfm" / "graphs"


def _sources(family: Family) -> str:
    """Return a hash of the code that makes features of a network of this family."""
    room = Path(__file__).parent.parent
    files = [room / name for name in _SOURCES]
    with suppress(TypeError, OSError):
        files.append(Path(inspect.getfile(type(family))))
    digest = hashlib.sha256()
    for file in files:
        with suppress(OSError):  # in an archive, where nobody edits it
            digest.update(file.read_bytes())
    return digest.hexdigest()
