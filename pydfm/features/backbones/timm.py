"""Networks of timm, by name: "timm:NAME". Transformers' tokens become maps."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydfm.features.backbones.family import Family, Network
from pydfm.features.backbones.layers import check_layers
from pydfm.features.backbones.torchvision import torchvision_models
from pydfm.features.backbones.weights import fingerprint, load_state
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_integer

if TYPE_CHECKING:
    from torch import nn

_PREFIX: Final = "timm:"


class TimmFamily(Family):
    """timm's networks, with its weights, those of a file, or random ones.

    Layers are submodules. Those of a transformer may be blocks by number ("7" for "blocks.7"); its
    default is the block at 60 % of the depth, that of another network the last of stride 16.
    """

    description = "timm:NAME for a network of timm"
    priority = 15
    default_layers = ()

    def claims(self, backbone: Any) -> bool:
        """Whether `backbone` starts with "timm:"."""
        return isinstance(backbone, str) and backbone.startswith(_PREFIX)

    def is_saved_as(self, saved: str) -> bool:
        """Whether `saved` starts with "timm:"."""
        return self.claims(saved)

    def load(
        self,
        backbone: str,
        weights: "str | os.PathLike[str] | None",
        layers: tuple[str, ...],
        *,
        random_state: int,
        progress: bool,
    ) -> Network:
        """Build the network and load its weights."""
        name = backbone.removeprefix(_PREFIX)
        path = None if weights is None else os.fspath(weights)
        is_file = path is not None and Path(path).is_file()
        if path is not None and not is_file and path not in ("auto", "imagenet", "timm"):
            raise ValueError(
                f"weights is {path!r}, which is not an existing file; it must be 'auto' for timm's "
                "hub, a path, or None for random weights"
            )
        hub = path is not None and not is_file
        module = _build(name, random_state, pretrained=hub)
        layers = tuple(f"blocks.{n}" if n.isdecimal() else n for n in layers) or _default(module)
        check_layers(module, layers)
        full = set(module.state_dict())
        module.reset_classifier(0)
        if is_file:
            assert path is not None
            load_state(module, path, backbone, full)
        return Network(
            module,
            layers,
            family=self,
            backbone=backbone,
            name=backbone,
            weights="timm" if hub else path,
            sha256=fingerprint(module),
            preprocessing=_preprocessing_of(module),
        )

    def check_size(self, module: "nn.Module", size: tuple[int, int]) -> None:
        """Raise ValueError unless the sides are multiples of the patch."""
        patch = getattr(getattr(module, "patch_embed", None), "patch_size", (1, 1))
        if any(side % int(own) for side, own in zip(size, patch, strict=True)):
            raise ValueError(
                f"image_size is {size[0]} x {size[1]}, which patches of {patch[0]} x {patch[1]} "
                f"do not divide; pass multiples, such as {size[0] // patch[0] * patch[0]}"
            )

    def to_map(self, module: "nn.Module", layer: str, output: Any, size: tuple[int, int]) -> Any:
        """Arrange tokens by position, without class and register tokens; NHWC becomes NCHW.

        Raises
        ------
        ValueError
            If the layer has no grid, or the patches do not divide the image.
        """
        if layer == "output" or getattr(output, "ndim", 0) not in (3, 4):
            return output
        if output.ndim == 4:
            last = getattr(module, "output_fmt", "NCHW") == "NHWC"
            return output.permute(0, 3, 1, 2) if last else output
        patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
        if patch is None:
            raise ValueError(
                f"layer '{layer}' returns tokens whose grid is not known; choose a layer with maps"
            )
        # The run before a trace has checked the sizes.
        height, width = size[0] // int(patch[0]), size[1] // int(patch[1])
        prefix = int(getattr(module, "num_prefix_tokens", 0))
        if int(output.shape[1]) != prefix + height * width:
            raise ValueError(
                f"layer '{layer}' returns {output.shape[1]} tokens, which are not {height} x "
                f"{width} patches and {prefix} others; choose a block"
            )
        return output[:, prefix:].transpose(1, 2).unflatten(2, (height, width))


FAMILY = TimmFamily()


def _build(name: str, random_state: int, *, pretrained: bool) -> Any:
    """Return the network; a transformer takes images of any multiple of its patch."""
    import torch

    torchvision_models()  # timm imports torchvision, whose operators may not fit this torch
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"backbone is 'timm:{name}', which needs timm; install it with `pip install timm`"
        ) from error
    if not timm.is_model(name):
        near = timm.list_models(f"*{re.split('[_.]', name)[0]}*")[:3] or timm.list_models()[:3]
        raise ValueError(
            f"backbone is 'timm:{name}', which timm does not have; it has {', '.join(near)} and "
            "others (timm.list_models() lists them)"
        )
    options: dict[str, Any] = {"pretrained": pretrained}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(check_integer("random_state", random_state, 0))
        try:
            module: nn.Module
            try:
                module = timm.create_model(name, dynamic_img_size=True, **options)
            except TypeError:  # not a transformer that can
                module = timm.create_model(name, **options)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"the weights of timm:{name} cannot be downloaded ({str(error).splitlines()[0]}); "
                "pass as weights the path of a file (.pth or .safetensors)"
            ) from error
    return module


def _default(module: Any) -> tuple[str, ...]:
    """Return the block at 60 % of the depth, or the last layer of stride 16."""
    if hasattr(module, "blocks") and hasattr(module, "num_prefix_tokens"):
        return (f"blocks.{round(0.6 * (len(module.blocks) - 1))}",)
    found = [one["module"] for one in module.feature_info if one["reduction"] == 16]
    return (str(found[-1]),) if found else ("output",)


def _preprocessing_of(module: Any) -> Preprocessing:
    own = module.pretrained_cfg
    _, height, width = own["input_size"]
    return Preprocessing((height, width), None, mean=tuple(own["mean"]), std=tuple(own["std"]))
