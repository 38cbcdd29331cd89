"""Batches of pixels -> features of a pretrained network, traced with TorchScript."""

import copy
import hashlib
import os
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pydfm._checks import check_choice, check_integer
from pydfm.preprocessing import Preprocessing

TORCHVISION_NETWORKS: Final = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
PRECISIONS: Final = ("float32", "bfloat16", "float16")

# Seconds without an answer after which a download of weights is given up.
_DOWNLOAD_TIMEOUT = 30.0


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, and what identifies it.

    Attributes
    ----------
    module : nn.Module
    layers : tuple of str
        The layers its features are taken from.
    name : str
        torchvision's name, ``"module:CLASS"`` or ``"torchscript"``.
    weights : str or None
        Where the weights came from: the name of torchvision's enum member, a path, or None where
        they are random or the module's own.
    sha256 : str
        Of the tensors that the features depend on, or of the TorchScript file.
    preprocessing : Preprocessing
        What the weights were trained with.
    """

    module: nn.Module
    layers: tuple[str, ...]
    name: str
    weights: str | None
    sha256: str
    preprocessing: Preprocessing


def load_network(
    backbone: "str | os.PathLike[str] | nn.Module",
    weights: "str | os.PathLike[str] | None" = "imagenet",
    layers: str | Sequence[str] | None = None,
    *,
    random_state: int = 0,
    progress: bool = False,
) -> Network:
    """Build the network that `backbone` names, with its weights.

    Parameters
    ----------
    backbone : str, path or nn.Module
        One of `TORCHVISION_NETWORKS`, the path of a TorchScript file, or a module of your own.
    weights : {"imagenet"}, path or None
        For a torchvision network: "imagenet" for IMAGENET1K_V1 (or any other name that torchvision
        has for its weights), downloaded once and kept in torch's cache; a file (.safetensors, or
        any other name for what ``torch.save`` wrote of a state dict); or None for random weights
        seeded by `random_state`. A module of your own keeps the weights it has, unless a path is
        given; a TorchScript file brings its own.
    layers : str or sequence of str, optional
        Names of submodules (see ``nn.Module.named_modules``), or "output". Default "avgpool" for a
        torchvision network, "output" otherwise.
    random_state : int
    progress : bool
        Show the progress of a download.

    Raises
    ------
    ValueError
        If there is no such backbone or layer, or the file does not fit the network.
    ConnectionError
        If weights cannot be downloaded.
    """
    preprocessing = Preprocessing()
    source: str | None = None
    sha256 = ""
    if isinstance(backbone, nn.Module):
        module, name = copy.deepcopy(backbone), f"module:{type(backbone).__qualname__}"
        if isinstance(weights, os.PathLike) or weights not in ("imagenet", None):
            source = os.fspath(weights)
    elif isinstance(backbone, str) and backbone in TORCHVISION_NETWORKS:
        module, source, preprocessing = _torchvision_network(
            backbone, weights, random_state, progress
        )
        name = backbone
    elif isinstance(backbone, str | os.PathLike) and Path(backbone).is_file():
        module, name, source = _torchscript(backbone), "torchscript", os.fspath(backbone)
        sha256 = hashlib.sha256(Path(backbone).read_bytes()).hexdigest()
    else:
        raise ValueError(
            f"backbone is {backbone!r}; it must be one of {', '.join(TORCHVISION_NETWORKS)}, the "
            "path of an existing TorchScript file, or a torch.nn.Module"
        )

    default = "avgpool" if name in TORCHVISION_NETWORKS else "output"
    names = (layers,) if isinstance(layers, str) else tuple(layers or (default,))
    _check_layers(module, names)
    if name in TORCHVISION_NETWORKS:
        full = set(module.state_dict())
        _prune(module, names)
        if source is not None and os.path.exists(source):
            _load_state(module, source, full, name)
    elif source is not None and name != "torchscript":
        _load_state(module, source, set(module.state_dict()), name)
    if name != "torchscript":
        sha256 = _fingerprint(module)
    return Network(module.eval(), names, name, source, sha256, preprocessing)


class Backbone:
    """A network made ready: normalisation, features of its layers, device and precision.

    Parameters
    ----------
    network : Network
        Its module is taken over: moved, and given hooks.
    preprocessing : Preprocessing
        Gives the size of the pixels that come, and their mean and standard deviation.
    pool : int, optional
        Kernel and stride of the average pooling of each layer's map.
    device : str or torch.device, optional
        Default CUDA where there is a GPU, else the CPU.
    precision : {"float32", "bfloat16", "float16"}
        Of the network's weights and activations; features are float32 always.

    Attributes
    ----------
    layer_sizes : tuple of int
        Features per layer; they stand in this order in the D columns.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        *,
        pool: int | None = None,
        device: "str | torch.device | None" = None,
        precision: str = "float32",
    ) -> None:
        check_choice("precision", precision, PRECISIONS)
        if pool is not None:
            check_integer("pool", pool, 1)
        self.device = _resolve_device(device)
        self._dtype: torch.dtype = getattr(torch, precision)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=self.device).view(shape)
        self._std = torch.tensor(preprocessing.std, device=self.device).view(shape)

        module = network.module.to(self.device, self._dtype)
        taps = _Taps(module, network.layers, pool).eval()
        example = torch.zeros((2, 3, *preprocessing.size), dtype=self._dtype, device=self.device)
        example = example.contiguous(memory_format=torch.channels_last)
        if not isinstance(module, torch.jit.ScriptModule):
            taps = taps.to(memory_format=torch.channels_last)
        with torch.inference_mode():
            taps(example)
        self.layer_sizes = tuple(taps.sizes)
        self._features = _traced(taps, example)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Features (B, D), float32, of `pixels` (B, 3, h, w): uint8, or float32 in [0, 1].

        Raises
        ------
        MemoryError
            If the device has too little memory for the batch.
        """
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(pixels).to(self.device)
                scaled = batch.float().div_(255) if pixels.dtype == np.uint8 else batch
                batch = ((scaled - self._mean) / self._std).to(self._dtype)
                batch = batch.contiguous(memory_format=torch.channels_last)
                features = self._features(batch).float().cpu().numpy()
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(
                f"{self.device} has too little memory for {len(pixels)} images at once; "
                "pass a smaller batch_size"
            ) from error
        return cast("NDArray[np.float32]", features)


class _Taps(nn.Module):
    """The pooled, flattened and concatenated outputs of some layers of a network."""

    def __init__(self, network: nn.Module, layers: Sequence[str], pool: int | None) -> None:
        super().__init__()
        self.network = network
        self.sizes: list[int] = []
        self._layers = layers
        self._pool = pool
        self._found: dict[str, torch.Tensor] = {}
        for layer in layers:
            if layer != "output":
                network.get_submodule(layer).register_forward_hook(self._hook(layer))

    def _hook(self, layer: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._found[layer] = self._flat(layer, output)

        return keep

    def _flat(self, layer: str, output: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor) or output.ndim < 2:
            raise ValueError(
                f"layer '{layer}' gives {type(output).__name__}; features can be taken only from "
                "layers that give a tensor (B, ...)"
            )
        if self._pool is None:
            # A copy, since a later layer may work in place.
            return output.flatten(1).clone()
        if output.ndim != 4 or self._pool > min(output.shape[2:]):
            shape = " x ".join(str(side) for side in output.shape[1:])
            raise ValueError(
                f"pool is {self._pool}; layer '{layer}' gives {shape} per image, which it does not "
                "fit: pass a smaller one, or None"
            )
        return nn.functional.avg_pool2d(output, self._pool).flatten(1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self._found.clear()
        output = self.network(batch)
        if "output" in self._layers:
            self._found["output"] = self._flat("output", output)
        features = [self._found.pop(layer) for layer in self._layers]
        self.sizes = [tensor.shape[1] for tensor in features]
        return torch.cat(features, dim=1)


def _traced(taps: _Taps, example: torch.Tensor) -> Any:
    """Trace, freeze and optimise; a network that cannot be traced runs as it is.

    TorchScript is deprecated, but works in every torch from 2.4 on: this is the one place to change
    when something else (torch.export, torch.compile) takes its place.
    """
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            module = torch.jit.freeze(torch.jit.trace(taps, example, check_trace=False))
            if example.device.type == "cpu" and example.dtype == torch.float32:
                module = torch.jit.optimize_for_inference(module)
            sizes = [module(example[:n]).shape[0] for n in (1, 2)]
    except RuntimeError as error:
        sizes, reason = [], str(error).strip().splitlines()[-1]
    else:
        reason = "its trace holds for one batch size only"
    if sizes == [1, 2]:
        return module
    warnings.warn(
        f"the backbone could not be traced with TorchScript ({reason}); it runs as it is",
        stacklevel=4,
    )
    return taps


def _resolve_device(device: "str | torch.device | None") -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"device is {device!r}, which cannot be used here ({reason}); pass 'cpu', or None to "
            "take a GPU where there is one"
        ) from error
    return resolved


def _check_layers(module: nn.Module, layers: tuple[str, ...]) -> None:
    scripted = isinstance(module, torch.jit.ScriptModule)
    known = [] if scripted else [name for name, _ in module.named_modules() if name]
    for layer in layers:
        if layer != "output" and layer not in known:
            top = [name for name, _ in module.named_children()] if not scripted else []
            inner = f" (and what is inside them, as in '{known[-1]}')" if len(known) > 8 else ""
            raise ValueError(
                f"layers has {layer!r}, which this backbone does not have; it has "
                + ", ".join([*top, "output"]) + inner
            )
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers is {layers!r}; each layer may be named once")


def _torchvision_network(
    name: str, weights: "str | os.PathLike[str] | None", random_state: int, progress: bool
) -> tuple[nn.Module, str | None, Preprocessing]:
    models = _torchvision_models()
    build = models.get_model_builder(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_integer("random_state", random_state, 0))
        module: nn.Module = build(weights=None)
    if weights is None:
        return module, None, Preprocessing()
    if os.path.isfile(weights):
        return module, os.fspath(weights), Preprocessing()

    enum = models.get_model_weights(name)
    member = "IMAGENET1K_V1" if weights == "imagenet" else weights
    if member not in enum.__members__:
        raise ValueError(
            f"weights is {os.fspath(weights)!r}, which is not an existing file; it must be "
            f"'imagenet', one of {', '.join(enum.__members__)}, a path, or None for random weights"
        )
    chosen = enum[member]
    module.load_state_dict(_download(name, chosen, progress))
    transforms = chosen.transforms()
    preprocessing = Preprocessing(
        resize=transforms.resize_size[0],
        crop=(transforms.crop_size[0], transforms.crop_size[0]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
    return module, member, preprocessing


def _download(name: str, weights: Any, progress: bool) -> dict[str, torch.Tensor]:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(progress=progress, check_hash=True)
        return state
    except (OSError, RuntimeError) as error:  # no network, a proxy's page, a wrong hash
        raise ConnectionError(
            f"the weights {weights.name} of {name} cannot be downloaded from {weights.url} "
            f"({error}); pass weights=PATH to a file of them (.pth or .safetensors), or "
            "weights=None for random weights, which see textures but no objects"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


_torchvision_ops: Any = None  # kept: the schemas last as long as their library


def _torchvision_models() -> Any:
    """torchvision.models, also where torchvision's compiled operators do not fit this torch.

    PyPI's torchvision is built for CUDA; beside a CPU build of torch its operators cannot load and
    its import fails for want of two schemas. Networks need neither, so we declare them.
    """
    global _torchvision_ops
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torchvision import models
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            _torchvision_ops = torch.library.Library("torchvision", "FRAGMENT")
            _torchvision_ops.define("nms(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _torchvision_ops.define("qnms(Tensor dets, Tensor scores, float threshold) -> Tensor")
            from torchvision import models
    return models


def _prune(module: nn.Module, layers: tuple[str, ...]) -> None:
    """Replace what comes after the last of `layers` by nothing: no time, no weights needed."""
    if "output" in layers:
        return
    children = [name for name, _ in module.named_children()]
    last = max(children.index(layer.split(".")[0]) for layer in layers)
    for name in children[last + 1 :]:
        setattr(module, name, nn.Identity())


def _torchscript(path: "str | os.PathLike[str]") -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = torch.jit.load(os.fspath(path), map_location="cpu")
            return module
    except RuntimeError as error:
        raise ValueError(
            f"backbone is {os.fspath(path)!r}, which is not a TorchScript file; save one with "
            "torch.jit.save, or name a torchvision network and pass this file as weights"
        ) from error


def _load_state(module: nn.Module, path: str, full: set[str], name: str) -> None:
    """Load a state dict that has all that the (pruned) `module` needs."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and pickle raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"weights is {path!r}, which cannot be read as a state dict ({reason})"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"weights is {path!r}, which does not hold a state dict of tensors")
    state = {key.removeprefix("module."): value for key, value in state.items()}

    needed = {key for key in module.state_dict() if not key.endswith("num_batches_tracked")}
    missing = sorted(needed - set(state))
    unknown = sorted(set(state) - full)
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is not in it"
        more = len(missing or unknown) - 1
        raise ValueError(
            f"weights is {path!r}, which is not for {name}: it {what}"
            + (f" (and {more} more)" if more else "")
        )
    try:
        module.load_state_dict({k: v for k, v in state.items() if k in needed}, strict=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"weights is {path!r}, which is not for {name}: {reason}") from error


def _fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
