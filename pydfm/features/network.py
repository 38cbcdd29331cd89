"""Features of a network's layers for batches of pixels, traced with TorchScript."""

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pydfm.features.backbones import Network
from pydfm.features.grid import Grid
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_choice, check_integer

PRECISIONS: Final = ("float32", "bfloat16", "float16")
LAYOUTS: Final = ("auto", "channels_first", "channels_last")

_jit: Any = torch.jit  # most of it has no types

_process = os.getpid()


class Backbone:
    """A network ready to use: normalisation, features of its layers, device and precision.

    Parameters
    ----------
    network : Network
        Its module is changed: it is moved to the device and gets hooks.
    preprocessing : Preprocessing
        Size of the pixels, and their mean and standard deviation.
    spatial : {"mean", "flatten", "patch"}
        With "mean", a layer's map is averaged over all positions.
    pool : int or sequence of int, optional
        Kernel and stride of the average pooling of the layers' maps, one for all or one for each.
    device : str or torch.device, optional
        Default CUDA where there is a GPU, else the CPU.
    precision : {"float32", "bfloat16", "float16"}
        Type of the network's weights and activations; features are always float32.
    layout : {"auto", "channels_first", "channels_last"}
        Order of the sides of the layers' maps; "auto" tells it by the aspect ratio of the images,
        and where both orders have it, by images of half the width.
    known : sequence of Grid, optional
        Shapes of the layers' features that a fit found, whose channels tell their order.

    Attributes
    ----------
    device : torch.device
        Device that the network runs on.
    grids : tuple of Grid
        Shape of each layer's features, in the order of their columns.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        *,
        spatial: str = "flatten",
        pool: int | Sequence[int] | None = None,
        device: "str | torch.device | None" = None,
        precision: str = "float32",
        layout: str = "auto",
        known: Sequence[Grid] | None = None,
    ) -> None:
        _survive_fork()
        check_choice("layout", layout, LAYOUTS)
        check_choice("precision", precision, PRECISIONS)
        kernels = _kernels(pool, network.layers, spatial)
        self.device = _resolve_device(device)
        self._dtype: torch.dtype = getattr(torch, precision)
        self._copies = _stream(self.device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=self.device).view(shape)
        self._std = torch.tensor(preprocessing.std, device=self.device).view(shape)

        network.family.check_size(network.module, preprocessing.size)
        module = network.module.to(self.device, self._dtype)
        taps = _Taps(network, kernels, preprocessing.size, average=spatial == "mean")
        taps.layout = layout
        if known is not None:
            taps.known = dict(zip(network.layers, known, strict=True))
        taps.eval()
        example = torch.zeros((2, 3, *preprocessing.size), dtype=self._dtype, device=self.device)
        example = example.contiguous(memory_format=torch.channels_last)
        if not isinstance(module, torch.jit.ScriptModule):
            taps.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode():
            taps(example)
            if layout == "auto" and taps.settle(example, network.family.check_size):
                taps(example)
        self.grids = tuple(taps.grids[layer] for layer in network.layers)
        self._features = _traced(taps, example)
        # Hooks, and perhaps the network's own code, keep what they find in the module.
        self._alone = threading.RLock() if self._features is taps else nullcontext()

    def runs_on(self, device: "str | torch.device | None") -> bool:
        """Whether this is where a backbone built with `device` would run."""
        wanted = _resolve_device(device)
        return wanted.type == self.device.type and wanted.index in (None, self.device.index)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the features (B, D) of `pixels` (B, 3, h, w), uint8 or float32 in [0, 1].

        Raises
        ------
        MemoryError
            If the device has too little memory for the batch.
        """
        return self.start(pixels)()[0]

    def start(self, pixels: NDArray[Any]) -> Callable[[], tuple[NDArray[np.float32], bool]]:
        """Begin with a batch, and return a function that waits for its features.

        A GPU works on it meanwhile; a CPU has done so when this returns.

        Returns
        -------
        callable
            Returns the features (B, D), and whether all of them are finite.

        Raises
        ------
        MemoryError
            If the device has too little memory for the batch.
        """
        _survive_fork()
        try:
            with torch.inference_mode():
                batch = self._to_device(torch.from_numpy(pixels))
                scaled = batch.float().div_(255) if pixels.dtype == np.uint8 else batch
                batch = ((scaled - self._mean) / self._std).to(self._dtype)
                batch = batch.contiguous(memory_format=torch.channels_last)
                with self._alone:
                    found = self._features(batch).float()
                finite = torch.isfinite(found).all()
                if self._copies is None:
                    features = cast("NDArray[np.float32]", found.cpu().numpy())
                    all_finite = bool(finite)
                    return lambda: (features, all_finite)
                return self._copied_back(found, finite)
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(
                f"{self.device} has too little memory for {len(pixels)} images at once; "
                "pass a smaller batch_size"
            ) from error

    def _to_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return `pixels` on the device; a GPU copies them while it works on what came before."""
        if self._copies is None:
            return pixels.to(self.device)
        pinned = pixels.pin_memory()
        work = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            there = pinned.to(self.device, non_blocking=True)
        work.wait_stream(self._copies)
        there.record_stream(work)
        return there

    def _copied_back(
        self, found: torch.Tensor, finite: torch.Tensor
    ) -> Callable[[], tuple[NDArray[np.float32], bool]]:
        """Begin to copy features from the GPU, and return a function that waits for them."""
        features = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        all_finite = torch.empty((), dtype=torch.bool, pin_memory=True)
        features.copy_(found, non_blocking=True)
        all_finite.copy_(finite, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> tuple[NDArray[np.float32], bool]:
            done.synchronize()
            # Memory that the system must not move is for the next batch, not for keeping.
            kept = torch.empty_like(features, pin_memory=False).copy_(features)
            return cast("NDArray[np.float32]", kept.numpy()), bool(all_finite)

        return wait


class _Taps(nn.Module):
    """The pooled, flattened and concatenated outputs of some layers of a network.

    Parameters
    ----------
    network : Network
        Its module gets hooks.
    kernels : dict of int
        Kernel of the pooling of each layer.
    size : (int, int)
        Height and width of the images in pixels.
    average : bool
        Average maps over all positions.
    """

    def __init__(
        self, network: Network, kernels: dict[str, int], size: tuple[int, int], *, average: bool
    ) -> None:
        super().__init__()
        self.network = network.module
        self._to_map = network.family.to_map
        self._size = size
        self.grids: dict[str, Grid] = {}
        self._kernels = kernels
        self._average = average
        self.layout = "auto"
        self.known: dict[str, Grid] = {}
        self._last: dict[str, bool] = {}
        self._settled: dict[str, bool] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._probes = False
        self._n_images = 0
        self._found: dict[str, torch.Tensor] = {}
        for layer in kernels:
            if layer != "output":
                self.network.get_submodule(layer).register_forward_hook(self._hook(layer))

    def _hook(self, layer: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._found[layer] = self._flat(layer, output)

        return keep

    def _flat(self, layer: str, output: Any) -> torch.Tensor:
        output = self._to_map(self.network, layer, output, self._size)
        if not isinstance(output, torch.Tensor) or output.ndim < 2:
            raise ValueError(
                f"layer '{layer}' returns {type(output).__name__}; features can be taken only from "
                "layers that return a tensor (B, ...)"
            )
        if not _jit.is_tracing():
            if output.shape[0] != self._n_images:
                raise ValueError(
                    f"layer '{layer}' gives {output.shape[0]} rows for {self._n_images} images; "
                    "features can be taken only from layers that give one for each"
                )
            self._shapes[layer] = tuple(int(side) for side in output.shape[1:])
            if self._probes:
                return output.flatten(1)
        if output.ndim == 4:
            if not _jit.is_tracing():
                self._last[layer] = self._is_last(layer)
            if self._last[layer]:
                output = output.permute(0, 3, 1, 2)
        kernel = self._kernels[layer]
        # The run before the trace has checked the sizes. Within the trace such a check would look
        # as if it depended on the data.
        fits = _jit.is_tracing() or (output.ndim == 4 and kernel <= min(output.shape[2:]))
        if kernel > 1 and not fits:
            shape = " x ".join(str(side) for side in output.shape[1:])
            raise ValueError(
                f"pool is {kernel}; layer '{layer}' gives {shape} per image, which it does not "
                "fit: pass a smaller one, or one for each layer"
            )
        pooled: torch.Tensor = output
        if kernel > 1:
            pooled = nn.functional.avg_pool2d(output, kernel)
        elif self._average and output.ndim == 4:
            pooled = output.mean(dim=(2, 3), keepdim=True)
        if not _jit.is_tracing():
            self.grids[layer] = _grid(pooled, output, kernel)
        # A copy where nothing was computed, since a later layer may change the output in place.
        flat: torch.Tensor = pooled.flatten(1)
        return flat.clone() if pooled is output else flat

    def _is_last(self, layer: str) -> bool:
        shape = self._shapes[layer]
        if layer in self._settled:
            return self._settled[layer]
        if layer in self.known:
            ends = [side == self.known[layer].channels for side in (shape[0], shape[2])]
            if ends[0] != ends[1]:
                return ends[1]
        return _is_last(layer, shape, self._size, self.layout)

    def settle(self, example: torch.Tensor, check_size: Any) -> bool:
        """Tell the order of layers that could have either, by images of another aspect ratio.

        Returns
        -------
        bool
            Whether there are any; the network then has to run on `example` again.
        """
        height, width = self._size
        shapes = {
            layer: shape
            for layer, shape in self._shapes.items()
            if len(shape) == 3
            and shape[1:] != (1, 1)
            and layer not in self.known
            and _has_aspect(*shape[:2], self._size)
            and _has_aspect(*shape[1:], self._size)
        }
        if not shapes:
            return False
        other = (height, width // 2 if width > 63 else 2 * width)
        found: dict[str, tuple[int, ...]] = {}
        self._probes, size, self._size = True, self._size, other
        try:
            check_size(self.network, other)
            self(example.new_zeros((2, 3, *other)))
            found = dict(self._shapes)
        except Exception:  # a network may take images of one size only, and raise anything
            found = {}
        finally:
            self._probes, self._size = False, size
        for layer, shape in shapes.items():
            changed = [a != b for a, b in zip(shape, found.get(layer, shape), strict=False)]
            self._settled[layer] = changed == [False, True, False]
            if sum(changed) != 1 or changed[0]:
                sides = " x ".join(str(side) for side in shape)
                warnings.warn(
                    f"layers has '{layer}', which gives {sides} per image: channels may come first "
                    "or last, and are taken to come first; pass layout",
                    stacklevel=4,
                )
        return True

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self._found.clear()
        if not _jit.is_tracing():
            self._n_images = int(batch.shape[0])
        output = self.network(batch)
        if "output" in self._kernels:
            self._found["output"] = self._flat("output", output)
        for layer in self._kernels:
            if layer not in self._found:
                raise ValueError(f"layer '{layer}' does not run when the backbone does")
        return torch.cat([self._found.pop(layer) for layer in self._kernels], dim=1)


def _is_last(layer: str, shape: Sequence[int], size: tuple[int, int], layout: str) -> bool:
    """Whether the map of a layer, of this `shape` without the batch, has its channels last.

    Raises
    ------
    ValueError
        If neither the first nor the last two sides have the aspect ratio of images of this `size`.
    """
    if layout != "auto":
        return layout == "channels_last"
    if _has_aspect(shape[1], shape[2], size):
        return False
    if _has_aspect(shape[0], shape[1], size):
        return True
    if shape[1] == shape[2]:  # pooled to a square
        return False
    sides = " x ".join(str(side) for side in shape)
    raise ValueError(
        f"layers has '{layer}', which gives {sides} per image of {size[0]} x {size[1]} pixels, "
        "whose aspect ratio no two neighbouring sides have; pass layout='channels_first' or "
        "'channels_last', or name another layer"
    )


def _has_aspect(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether a map has the aspect ratio of images, but for a cell or 15 % that borders cost."""
    wanted = height * size[1] / size[0]
    off = abs(wanted - width)
    return off <= max(1.0, size[1] / size[0]) or off <= 0.15 * max(wanted, width)


def _grid(pooled: torch.Tensor, output: torch.Tensor, kernel: int) -> Grid:
    """Return the shape of the features `pooled` from the `output` of a layer."""
    if output.ndim != 4:
        return Grid(int(output.flatten(1).shape[1]), 1, 1)
    _, channels, height, width = (int(side) for side in pooled.shape)
    reach = tuple(
        kernel * cells / int(side) if cells > 1 or kernel > 1 else 1.0
        for cells, side in zip((height, width), output.shape[2:], strict=True)
    )
    return Grid(channels, height, width, reach=(reach[0], reach[1]))


def _kernels(
    pool: int | Sequence[int] | None, layers: Sequence[str], spatial: str
) -> dict[str, int]:
    """Return the pooling kernel of each layer."""
    if pool is None:
        return dict.fromkeys(layers, 1)
    if spatial == "mean":
        raise ValueError(
            f"pool is {pool!r}, and spatial is 'mean', which averages over the whole map; pass "
            "one of the two"
        )
    if isinstance(pool, Sequence):
        if len(pool) != len(layers):
            raise ValueError(
                f"pool has {len(pool)} kernels for {len(layers)} layers; give one for each, or one "
                "for all"
            )
        return {
            layer: check_integer("pool", kernel, 1)
            for layer, kernel in zip(layers, pool, strict=True)
        }
    return dict.fromkeys(layers, check_integer("pool", pool, 1))


def _traced(taps: _Taps, example: torch.Tensor) -> Any:
    """Return `taps` traced, frozen and optimised, or as they are if they cannot be traced.

    TorchScript is deprecated, but works in every torch from 2.4 on. Only this function has to
    change when something else (torch.export, torch.compile) replaces it.
    """
    try:
        with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", _jit.TracerWarning)
            module = _jit.freeze(_jit.trace(taps, example, check_trace=False))
            if example.device.type == "cpu" and example.dtype == torch.float32:
                module = _jit.optimize_for_inference(module)
            sizes = [module(example[:n]).shape[0] for n in (1, 2)]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
    else:
        # Python code that looks at values is traced along one of its branches only.
        if not caught and sizes == [1, 2]:
            return module
        reason = "its trace holds for one batch size only"
        if caught:
            reason = str(caught[0].message).split(". ")[0]
    warnings.warn(
        f"the backbone could not be traced with TorchScript ({reason}); it runs as it is",
        stacklevel=4,
    )
    return taps


def _stream(device: torch.device) -> "torch.cuda.Stream | None":
    """Return a queue for copies to a GPU, beside that of its work; None for other devices."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _survive_fork() -> None:
    """Limit torch to one thread in a forked process.

    OpenMP's threads do not exist after a fork, and torch would wait for them for ever. A DataLoader
    does the same for its workers.
    """
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()


def _resolve_device(device: "str | torch.device | None") -> torch.device:
    """Return `device`, checked, or the default where it is None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(
            f"device is {device!r}, which cannot be used here ({reason}); pass 'cpu', or None to "
            "take a GPU where there is one"
        ) from error
    return resolved
