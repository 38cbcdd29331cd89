"""Features for batches of pixels by onnxruntime; torch is not imported."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pydfm.features.onnx.choice import on_cpu
from pydfm.features.onnx.store import Graph


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
        self._process = os.getpid()
        self._session = open_session(graph, n_threads)

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
        if os.getpid() != self._process:
            # The session's threads do not exist after a fork; torch has one there, too.
            self._session = open_session(self._graph, 1)
            self._process = os.getpid()
        (found,) = self._session.run(None, {"pixels": as_shares(pixels)})
        features: NDArray[np.float32] = found
        finite = bool(np.isfinite(features).all())
        return lambda: (features, finite)


def open_session(graph: Graph, n_threads: int) -> Any:
    """Return a session of onnxruntime that runs a graph.

    Raises
    ------
    Exception
        Any of onnxruntime's, if it cannot.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised too
    # Threads that wait must not keep a core from those that decode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph.data, options, providers=["CPUExecutionProvider"])


def as_shares(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return pixels, uint8 or float32 in [0, 1], as float32 in [0, 1], contiguous."""
    if pixels.dtype == np.uint8:
        shares: NDArray[np.float32] = np.divide(
            pixels, np.float32(255), dtype=np.float32, order="C"
        )
        return shares
    return np.ascontiguousarray(pixels, dtype=np.float32)
