"""The network of an exported graph in integers of 8 bits; pixels and statistics stay as they are.

onnxruntime's static quantisation: each tensor of the network becomes integers times a scale, that
of activations chosen by what they reach on some images, that of weights for each channel. Weights
have 7 bits: on x86-64 without VNNI the products of two 8-bit numbers are added up in 16 bits, which
overflow, and features become noise (0.7 of their deviation, for ResNet-18 under AVX2); of 7 bits
they are the same to the bit on every processor.

The features of such a network are others than those that the model was fitted to, so the model is
fitted again to them (`pydfm.estimator.DFM.to_onnx`): its means, axes, scales and held-out scores
are of the features that the graph computes.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pydfm.features.grid import Grid
from pydfm.features.inputs.arrays import is_array
from pydfm.features.inputs.sources import ImageSource, open_source
from pydfm.features.onnx.network import OnnxBackbone, as_shares, open_session
from pydfm.features.onnx.store import Graph
from pydfm.features.transforms import Preprocessing

N_IMAGES: Final = 32
"""Images from which the ranges of activations are taken, at most."""

LARGEST: Final = 0.5
"""Largest error of the features, as a share of their deviation, that is not warned of."""

# Names of operations in the graph of a PixelModel begin with its attributes, in order.
_BEFORE: Final = "/pixels/"
_OWN: Final = "/network/"
_PIXELS: Final = "pixels"


@dataclass(frozen=True)
class Int8Network:
    """A network in int8, cut out of the graph of a `PixelModel`.

    Attributes
    ----------
    proto : onnx.ModelProto
        From normalised pixels to features, by the names that these have in that graph.
    preprocessing : Preprocessing
        The normalisation.
    grids : tuple of Grid
        Shape of each layer's features, in the order of their columns.
    error : float
        Root of the mean squared error of the features beside those in float32, as a share of their
        deviation; of the worst layer.
    n_bytes, n_bytes_before : int
        Size in int8 and in float32.
    """

    proto: Any
    preprocessing: Preprocessing
    grids: tuple[Grid, ...]
    error: float
    n_bytes: int
    n_bytes_before: int

    def backbone(self, n_threads: int) -> OnnxBackbone:
        """Return it as what an `Extractor` takes."""
        data = _with_normalisation(self.proto, self.preprocessing)
        return OnnxBackbone(Graph(data, self.grids), n_threads, by_choice=True)


def sample_pixels(
    X: Any, preprocessing: Preprocessing, on_error: str, max_pixels: int | None, n_threads: int
) -> NDArray[np.float32]:
    """Return up to `N_IMAGES` of some images, evenly spread, as shares (n, 3, h, w).

    Raises
    ------
    ValueError
        If X holds features or a single image, or can be read only once, or none of these images can
        be read.
    ImageError
        If an image cannot be read, unless `on_error` is "skip".
    """
    source = open_source(X, on_error)
    if not isinstance(source, ImageSource):
        raise ValueError("int8 holds features, and a network is quantised by images; pass images")
    known: list[Any] = []
    for one in source.look_at():
        known += list(one) if is_array(one) and one.ndim == 4 else [one]
    if len(known) != source.total:
        raise ValueError(
            "int8 is an iterable, which can be read once, and its images are needed twice; pass a "
            "folder, a list or an array"
        )
    places = np.unique(np.linspace(0, len(known) - 1, N_IMAGES).round().astype(int))
    chosen = ImageSource([known[i] for i in places], on_error)
    chosen.max_pixels = max_pixels
    batches = [batch.pixels for batch in chosen.batches(preprocessing, N_IMAGES, n_threads)]
    if not any(map(len, batches)):
        raise ValueError(
            f"int8 holds no image that can be read; {chosen.skipped[0].reason}; give good images"
        )
    if len(known) == 1:
        raise ValueError("int8 holds one image, and a fit needs at least two; give all good images")
    return np.concatenate([as_shares(pixels) for pixels in batches])


def quantise(
    proto: Any,
    shares: NDArray[np.float32],
    preprocessing: Preprocessing,
    grids: Sequence[Grid],
    n_threads: int,
) -> Int8Network:
    """Return the network of the graph `proto` of a `PixelModel` in int8.

    Parameters
    ----------
    proto : onnx.ModelProto
    shares : ndarray of shape (n, 3, h, w)
        Pixels in [0, 1] of good images, by which the ranges of activations are chosen.
    preprocessing : Preprocessing
    grids : sequence of Grid
    n_threads : int

    Raises
    ------
    ValueError
        If it has no operations that can be, or onnxruntime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    network = _cut(proto)
    (name,) = [one.name for one in network.graph.input]
    mean, std = (
        np.array(own, np.float32)[:, None, None] for own in (preprocessing.mean, preprocessing.std)
    )
    reader = _Reader(name, (shares - mean) / std)
    # What joins the layers stays in float32: they have ranges of their own.
    joins = [node.name for node in network.graph.node if node.name.count("/") == 2]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(network, before)  # given as it is, it would be changed
        try:
            quantize_static(
                before,
                after,
                reader,
                quant_format=QuantFormat.QDQ,
                calibrate_method=CalibrationMethod.MinMax,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,  # see above
                nodes_to_exclude=joins,
            )
            found = onnx.load(after)
        except Exception as error:  # of onnxruntime and onnx, whose exceptions have no common class
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the network cannot be quantised by onnxruntime ({reason}); export without int8"
            ) from error
    if not any(node.op_type == "QuantizeLinear" for node in found.graph.node):
        raise ValueError(
            "the network has no operations that onnxruntime can quantise; export without int8"
        )
    want, features = (
        _features(_with_normalisation(one, preprocessing), shares, n_threads)
        for one in (network, found)
    )
    return Int8Network(
        found,
        preprocessing,
        tuple(grids),
        _error(want, features, grids),
        found.ByteSize(),
        network.ByteSize(),
    )


def put_network(proto: Any, network: Int8Network) -> None:
    """Put a network in int8 into the graph of a `PixelModel`, in place of its own."""
    graph, new = proto.graph, network.proto.graph
    nodes = _needed([*graph.node, *new.node], [one.name for one in graph.output], set())
    used = {name for node in nodes for name in _inputs(node)}
    used -= {name for node in nodes for name in node.output}  # weights that are computed now
    tensors = {one.name: one for one in (*graph.initializer, *new.initializer)}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(one for name, one in tensors.items() if name in used)
    del graph.value_info[:]  # shapes of tensors that may be gone


class _Reader:
    """Images one by one, as onnxruntime asks for them."""

    def __init__(self, name: str, pixels: NDArray[np.float32]) -> None:
        self._batches = iter([{name: one[None]} for one in pixels])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._batches, None)


def _cut(proto: Any) -> Any:
    """Return the network of a graph as a model of its own, from normalised pixels to features."""
    from onnx import TensorProto, helper

    graph = proto.graph
    ends = []
    for prefix, shape in ((_BEFORE, ("n", 3, None, None)), (_OWN, ("n", None))):
        names = [node.output[0] for node in graph.node if node.name.startswith(prefix)]
        if not names:
            raise ValueError(
                "the network cannot be told from the rest of the graph, so it is not quantised; "
                "export without int8"
            )
        ends.append(helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, shape))
    nodes = _needed(graph.node, [ends[1].name], {ends[0].name})
    # The exporter keeps one of several equal weights; they get scales of their own.
    weights, copies = {one.name: one for one in graph.initializer}, {}
    for node in nodes:
        if node.op_type == "Identity" and node.input[0] in weights:
            copy = TensorProto()
            copy.CopyFrom(weights[node.input[0]])
            copy.name = node.output[0]
            copies[copy.name] = copy
    nodes = [node for node in nodes if node.output[0] not in copies]
    used = {name for node in nodes for name in _inputs(node)}
    own = [one for name, one in {**weights, **copies}.items() if name in used]
    cut = helper.make_graph(nodes, "network", ends[:1], ends[1:], own)
    return helper.make_model(
        cut, opset_imports=list(proto.opset_import), ir_version=proto.ir_version
    )


def _needed(nodes: Iterable[Any], outputs: Sequence[str], given: set[str]) -> list[Any]:
    """Return the nodes that compute `outputs` from what is `given`, in an order that they run in.

    Of two nodes that give the same the later one is taken.
    """
    makers = {name: node for node in nodes for name in node.output}
    done, found, waiting = set(given), [], list(outputs)
    while waiting:
        name = waiting[-1]
        node = None if name in done else makers.get(name)
        missing = [] if node is None else [one for one in _inputs(node) if one not in done]
        if node is not None and missing:
            waiting += missing
            continue
        waiting.pop()
        done.add(name)
        if node is not None:
            done.update(node.output)
            found.append(node)
    return found


def _inputs(node: Any) -> list[str]:
    """Return the names that a node takes, and the branches in it."""
    graphs = [one.g for one in node.attribute if one.HasField("g")]
    return [*node.input, *(name for g in graphs for own in g.node for name in _inputs(own))]


def _with_normalisation(network: Any, preprocessing: Preprocessing) -> bytes:
    """Return the graph from shares of pixels on."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    whole = onnx.ModelProto()
    whole.CopyFrom(network)
    graph = whole.graph
    (entry,) = graph.input
    tensors = []
    for name, own in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        values = np.array(own, np.float32)[None, :, None, None]
        tensors.append(numpy_helper.from_array(values, f"{_PIXELS}_{name}"))
    nodes = [
        helper.make_node("Sub", [_PIXELS, f"{_PIXELS}_mean"], [f"{_PIXELS}_centred"]),
        helper.make_node("Div", [f"{_PIXELS}_centred", f"{_PIXELS}_std"], [entry.name]),
        *graph.node,
    ]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    shape = ("n", 3, None, None)
    graph.input.append(helper.make_tensor_value_info(_PIXELS, TensorProto.FLOAT, shape))
    data: bytes = whole.SerializeToString()
    return data


def _features(data: bytes, shares: NDArray[np.float32], n_threads: int) -> NDArray[np.float32]:
    session = open_session(data, n_threads)
    return np.concatenate([session.run(None, {_PIXELS: one[None]})[0] for one in shares])


def _error(want: NDArray[np.float32], found: NDArray[np.float32], grids: Sequence[Grid]) -> float:
    worst, first = 0.0, 0
    for grid in grids:
        columns = slice(first, first + grid.size)
        first += grid.size
        own = want[:, columns].astype(np.float64)
        off = float(np.square(found[:, columns] - own).mean())
        worst = max(worst, float(np.sqrt(off / max(own.var(), np.finfo(np.float64).tiny))))
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime from advice that does not apply: the graph has its shapes, and no norms."""

    def others(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    logging.getLogger().addFilter(others)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(others)
