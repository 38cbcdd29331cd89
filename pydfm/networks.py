"""Networks and their weights: torchvision's, a TorchScript file's, or a module of your own."""

import contextlib
import copy
import hashlib
import io
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from pydfm._checks import check_integer
from pydfm.preprocessing import Preprocessing

TORCHVISION_NETWORKS: Final = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")

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
        Show the progress of a download, where stderr is a terminal.

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
    names = (layers,) if isinstance(layers, str) else tuple(() if layers is None else layers)
    if isinstance(backbone, nn.Module):
        with torch.no_grad():  # or the copied parameters of a ScriptModule are no leaves
            module = copy.deepcopy(backbone)
        name = f"module:{type(backbone).__qualname__}"
        if isinstance(weights, os.PathLike) or weights not in ("imagenet", None):
            source = os.fspath(weights)
    elif isinstance(backbone, str) and backbone in TORCHVISION_NETWORKS:
        names = names or ("avgpool",)
        module, source, preprocessing = _torchvision_network(
            backbone, weights, names, random_state, progress
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

    names = names or ("output",)
    _check_layers(module, names)
    if name in TORCHVISION_NETWORKS:
        full = set(module.state_dict())
        _prune(module, names)
        if source is not None and Path(source).exists():
            _load_state(module, source, full, name)
    elif source is not None and name != "torchscript":
        _load_state(module, source, set(module.state_dict()), name)
    if name != "torchscript":
        sha256 = _fingerprint(module)
    return Network(module.eval(), names, name, source, sha256, preprocessing)


def _check_layers(module: nn.Module, layers: tuple[str, ...]) -> None:
    scripted = isinstance(module, torch.jit.ScriptModule)
    known = [] if scripted else [name for name, _ in module.named_modules() if name]
    for layer in layers:
        if layer != "output" and layer not in known:
            nested = [name for name in known if "." in name]
            listed = ", ".join([*(name for name in known if "." not in name), "output"])
            inner = f", and what is inside them, such as '{nested[0]}'" if nested else ""
            raise ValueError(
                f"layers has {layer!r}, which this backbone does not have; it has {listed}{inner}"
            )
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers is {layers!r}; each layer may be named once")


def _torchvision_network(
    name: str,
    weights: "str | os.PathLike[str] | None",
    layers: tuple[str, ...],
    random_state: int,
    progress: bool,
) -> tuple[nn.Module, str | None, Preprocessing]:
    models = _torchvision_models()
    build = models.get_model_builder(name)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(check_integer("random_state", random_state, 0))
        module: nn.Module = build(weights=None)
    _check_layers(module, layers)  # before anything is downloaded
    if weights is None:
        return module, None, Preprocessing()
    weights = os.fspath(weights)
    if Path(weights).is_file():
        return module, weights, Preprocessing()

    enum = models.get_model_weights(name)
    member = "IMAGENET1K_V1" if weights == "imagenet" else weights
    if member not in enum.__members__:
        raise ValueError(
            f"weights is {weights!r}, which is not an existing file; it must be "
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
    # torch.hub announces a download on stdout, where a program may write its results, and does so
    # also where no progress is wanted.
    shown = progress and sys.stderr is not None and sys.stderr.isatty()
    told = sys.stderr if shown else io.StringIO()
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            state: dict[str, torch.Tensor] = weights.get_state_dict(progress=shown, check_hash=True)
        return state
    except (OSError, RuntimeError) as error:  # no network, a proxy's page, a wrong hash
        raise ConnectionError(
            f"the weights {weights.name} of {name} cannot be downloaded from {weights.url} "
            f"({error}); pass as weights the path of a file (.pth or .safetensors), or none "
            "for random ones, which see textures but no objects"
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
            _torchvision_ops = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
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
            load: Any = torch.jit.load
            module: nn.Module = load(os.fspath(path), map_location="cpu")
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
        raise ValueError(
            f"weights is {path!r}, which cannot be read as a state dict; it must be a .safetensors "
            "file, or what torch.save wrote of a state dict (tensors only, no pickled objects)"
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
