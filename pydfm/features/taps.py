"""The taps of a network: some layers' outputs, pooled, flattened and concatenated to features."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pydfm.features.backbones import Network
from pydfm.features.backbones.layers import parts_of
from pydfm.features.backbones.tokens import as_map, token_grid
from pydfm.features.grid import Grid
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_integer

_jit: Any = torch.jit  # most of it has no types


@dataclass(frozen=True)
class Tapped:
    """A network with taps, on its device, that has run once.

    Attributes
    ----------
    taps : Taps
        Takes normalised pixels (B, 3, h, w), and returns features (B, D).
    example : torch.Tensor
        A batch of two images, all zeros, of the device and type that `taps` takes.
    preprocessing : Preprocessing
        Size of the pixels, and their mean and standard deviation.
    grids : tuple of Grid
        Shape of each layer's features, in the order of their columns.
    """

    taps: "Taps"
    example: torch.Tensor
    preprocessing: Preprocessing
    grids: tuple[Grid, ...]


def tap(
    network: Network,
    preprocessing: Preprocessing,
    *,
    spatial: str = "flatten",
    pool: int | Sequence[int] | None = None,
    device: torch.device,
    dtype: torch.dtype,
    layout: str = "auto",
    known: Sequence[Grid] | None = None,
    tokens: int | None = None,
) -> Tapped:
    """Return `network` with taps; its module is moved to the device and gets hooks.

    The parameters are those of `pydfm.features.network.Backbone`.

    Raises
    ------
    ValueError
        If a layer gives nothing that features can be, or does not run.
    """
    kernels = _kernels(pool, network.layers, spatial)
    network.family.set_size(network.module, preprocessing.size)
    module = network.module.to(device, dtype)
    taps = Taps(network, kernels, preprocessing.size, average=spatial == "mean")
    taps.layout, taps.prefix = layout, tokens
    if known is not None:
        taps.known = dict(zip(network.layers, known, strict=True))
    taps.eval()
    example = torch.zeros((2, 3, *preprocessing.size), dtype=dtype, device=device)
    example = example.contiguous(memory_format=torch.channels_last)
    if not isinstance(module, torch.jit.ScriptModule):
        taps.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.inference_mode():
        taps(example)
        if layout == "auto" and taps.settle(example, network.family.set_size):
            taps(example)
    grids = tuple(taps.grids[layer] for layer in network.layers)
    return Tapped(taps, example, preprocessing, grids)


class Taps(nn.Module):
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

    Attributes
    ----------
    unsure : bool
        Whether the order of a layer's sides was guessed, with a warning.
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
        self.prefix: int | None = None
        self._token_grids: dict[str, tuple[int, int, int]] = {}
        self._parts: dict[str, list[torch.Tensor]] = {}
        self.known: dict[str, Grid] = {}
        self._last: dict[str, bool] = {}
        self._settled: dict[str, bool] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._probes = False
        self.unsure = False
        self._n_images = 0
        self._found: dict[str, torch.Tensor] = {}
        for layer in kernels:
            if layer != "output":
                for part in parts_of(layer):
                    self.network.get_submodule(part).register_forward_hook(self._hook(layer, part))

    def _hook(self, layer: str, part: str) -> Any:
        n_parts = len(parts_of(layer))

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if n_parts > 1:
                parts = self._parts.setdefault(layer, [])
                parts.append(output.clone())  # a later layer may change it in place
                if len(parts) < n_parts:
                    return
                output = _mean(layer, parts)
            self._found[layer] = self._flat(layer, output)

        return keep

    def _flat(self, layer: str, output: Any) -> torch.Tensor:
        output = self._to_map(self.network, layer, output, self._size)
        if isinstance(output, torch.Tensor) and output.ndim == 3:
            if not _is_traced():
                self._token_grids[layer] = token_grid(
                    self.network, layer, int(output.shape[1]), self._size, self.prefix
                )
            output = as_map(output, *self._token_grids[layer])
        if not isinstance(output, torch.Tensor) or output.ndim < 2:
            raise ValueError(
                f"layer '{layer}' returns {type(output).__name__}; features can be taken only from "
                "layers that return a tensor (B, ...)"
            )
        if not _is_traced():
            if output.shape[0] != self._n_images:
                raise ValueError(
                    f"layer '{layer}' gives {output.shape[0]} rows for {self._n_images} images; "
                    "features can be taken only from layers that give one for each"
                )
            self._shapes[layer] = tuple(int(side) for side in output.shape[1:])
            if self._probes:
                return output.flatten(1)
        if output.ndim == 4:
            if not _is_traced():
                self._last[layer] = self._is_last(layer)
            if self._last[layer]:
                output = output.permute(0, 3, 1, 2)
        kernel = self._kernels[layer]
        # The run before the trace has checked the sizes. Within the trace such a check would look
        # as if it depended on the data.
        fits = _is_traced() or (output.ndim == 4 and kernel <= min(output.shape[2:]))
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
        if not _is_traced():
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

    def settle(self, example: torch.Tensor, set_size: Any) -> bool:
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
            set_size(self.network, other)
            self(example.new_zeros((2, 3, *other)))
            found = dict(self._shapes)
        except Exception:  # a network may take images of one size only, and raise anything
            found = {}
        finally:
            self._probes, self._size = False, size
            set_size(self.network, size)
        for layer, shape in shapes.items():
            changed = [a != b for a, b in zip(shape, found.get(layer, shape), strict=False)]
            self._settled[layer] = changed == [False, True, False]
            if sum(changed) != 1 or changed[0]:
                self.unsure = True
                sides = " x ".join(str(side) for side in shape)
                warnings.warn(
                    f"layers has '{layer}', which gives {sides} per image: channels may come first "
                    "or last, and are taken to come first; pass layout",
                    stacklevel=5,
                )
        return True

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the features (B, D) of normalised pixels (B, 3, h, w)."""
        self._found.clear()
        self._parts.clear()
        if not _is_traced():
            self._n_images = int(batch.shape[0])
        output = self.network(batch)
        if "output" in self._kernels:
            self._found["output"] = self._flat("output", output)
        for layer in self._kernels:
            if layer not in self._found:
                raise ValueError(f"layer '{layer}' does not run when the backbone does")
        return torch.cat([self._found.pop(layer) for layer in self._kernels], dim=1)


def _is_traced() -> bool:
    """Whether this run makes a graph, whose sizes are no numbers; a run before it has seen them."""
    return bool(_jit.is_tracing() or torch.compiler.is_compiling())


def _mean(layer: str, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the outputs of some submodules, which together are a layer."""
    if not _is_traced() and len({part.shape for part in parts}) > 1:
        shapes = ", ".join(" x ".join(map(str, part.shape[1:])) for part in parts)
        raise ValueError(
            f"layers has '{layer}', whose parts cannot be averaged: they give {shapes} per image; "
            "join layers that give the same"
        )
    return torch.stack(list(parts)).mean(dim=0)


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
