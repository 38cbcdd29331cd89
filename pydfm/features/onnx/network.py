"""Features for batches of pixels by onnxruntime; torch is not imported."""

import ctypes
import functools
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features.onnx.choice import on_cpu
from pydfm.features.onnx.store import Graph

_backbones: "weakref.WeakSet[OnnxBackbone]" = weakref.WeakSet()


class OnnxBackbone:
    """A network as a graph, ready to use; as `pydfm.features.network.Backbone`.

    Parameters
    ----------
    graph : Graph
        The network with its taps and normalisation.
    n_threads : int
        Threads of one run.
    by_choice : bool
        Whether the caller asked for onnxruntime, in place of the best that there is.

    Attributes
    ----------
    device : str
        "cpu".
    grids : tuple of Grid
        Shape of each layer's features, in the order of their columns.
    runtime : str
        "onnx".
    """

    runtime = "onnx"
    device = "cpu"

    def __init__(self, graph: Graph, n_threads: int, *, by_choice: bool = False) -> None:
        self.grids = graph.grids
        self.n_threads = n_threads
        self._graph = graph
        self._by_choice = by_choice
        self._session: Any = open_session(graph.data, n_threads)
        _backbones.add(self)

    def runs_on(self, device: Any) -> bool:
        """Whether this is where a backbone built with `device` would run."""
        return (device is None and self._by_choice) or on_cpu(device)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the features (B, D) of `pixels` (B, 3, h, w), uint8 or float32 in [0, 1]."""
        return self.start(pixels)()[0]

    def start(self, pixels: NDArray[Any]) -> Callable[[], tuple[NDArray[np.float32], bool]]:
        """Compute the features of a batch, and return a function that gives them.

        Returns
        -------
        callable
            Returns the features (B, D), and whether all of them are finite.
        """
        if self._session is None:  # after a fork, where torch has one thread, too
            self._session = open_session(self._graph.data, 1)
        (found,) = self._session.run(None, {"pixels": as_shares(pixels)})
        features: NDArray[np.float32] = found
        finite = bool(np.isfinite(features).all())
        return lambda: (features, finite)


def _begin_fork() -> None:
    """Let a forked process open sessions of its own, and end.

    The threads of the old sessions, and of onnxruntime itself, do not exist there. Who frees them
    waits for these threads for ever: a session when it is no longer used, and the library, which
    has a thread since it was imported, at the exit.
    """
    for backbone in list(_backbones):
        if backbone._session is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(backbone._session))
            backbone._session = None
    with suppress(AttributeError):  # a system without it, as all but Linux
        library = ctypes.CDLL(None)
        # Runs after Python has ended, and before what was there at the fork.
        library.on_exit(library._exit, None)


@functools.cache
def _prepare_forks() -> None:
    """Register what a forked process needs, where there are any."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_fork)


def open_session(model: bytes | str, n_threads: int) -> Any:
    """Return a session of onnxruntime that runs a graph, or the graph in a file.

    Raises
    ------
    Exception
        Any of onnxruntime's, if it cannot.
    """
    import onnxruntime

    _prepare_forks()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised too
    # Threads that wait must not keep a core from those that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def as_shares(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return pixels, uint8 or float32 in [0, 1], as float32 in [0, 1], contiguous."""
    if pixels.dtype == np.uint8:
        shares: NDArray[np.float32] = np.divide(
            pixels, np.float32(255), dtype=np.float32, order="C"
        )
        return shares
    return np.ascontiguousarray(pixels, dtype=np.float32)
