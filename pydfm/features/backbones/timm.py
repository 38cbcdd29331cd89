"""Networks of timm, by name. Transformers' tokens become maps."""

import contextlib
import difflib
import functools
import importlib.util
import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydfm.features.backbones.family import Family, Network, Pretrained
from pydfm.features.backbones.layers import check_layers, parts_of
from pydfm.features.backbones.tokens import check_patches, patch_of
from pydfm.features.backbones.torchvision import torchvision_models
from pydfm.features.backbones.weights import fingerprint, load_state
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_integer

if TYPE_CHECKING:
    from torch import nn

_PREFIX: Final = "timm:"


class TimmFamily(Family):
    """timm's networks, with its weights, those of a file, or random ones.

    Layers are submodules. Those of a transformer may be blocks by number: "7" for "blocks.7", and
    "6-8" or "6+7+8" for the mean of three. The default is the block at 60 % of the depth, that of
    another network the last of stride 16.
    """

    description = "a network of timm by its name, as timm:NAME where another family has the name"
    priority = 15
    default_layers = ()

    def claims(self, backbone: Any) -> bool:
        """Whether `backbone` starts with "timm:", or is a name that timm has."""
        if not isinstance(backbone, str):
            return False
        return backbone.startswith(_PREFIX) or (
            re.fullmatch(r"[a-z]\w+(\.\w+)?", backbone) is not None and _has(backbone)
        )

    def is_saved_as(self, saved: str) -> bool:
        """Whether `saved` starts with "timm:"."""
        return saved.startswith(_PREFIX)

    def known_names(self) -> list[str]:
        """Return the names that timm has, where it is installed."""
        timm = _timm()
        return [] if timm is None else list(timm.list_models())

    def map_layers(self, backbone: str) -> tuple[str, ...] | None:
        """Return the layers of stride 8 and 16, or the block at 60 % of the depth."""
        return _maps_of(backbone.removeprefix(_PREFIX))[0]

    def map_size(self, backbone: str) -> int:
        """Return 256, or the side that the network takes where it takes one only."""
        return _maps_of(backbone.removeprefix(_PREFIX))[1]

    def pretrained(self, backbone: str) -> Pretrained | None:
        """Return the address of the weights; whether timm's own cache has them is not looked up."""
        timm = _timm()
        own = timm and timm.get_pretrained_cfg(backbone.removeprefix(_PREFIX))
        if not own or not (own.hf_hub_id or own.url):
            return None
        source = own.url
        if own.hf_hub_id:
            file = own.hf_hub_filename or "model.safetensors"
            source = f"https://huggingface.co/{own.hf_hub_id}/resolve/main/{file}"
        return Pretrained("hub", source, None, own.license or "unknown")

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
        layers = tuple(_block_names(one) for one in layers) or _default(module)
        check_layers(module, layers)
        full = set(module.state_dict())
        module.reset_classifier(0)
        _prune_blocks(module, layers)
        if is_file:
            assert path is not None
            load_state(module, path, _PREFIX + name, full, convert=_converter(name, module))
        return Network(
            module,
            layers,
            family=self,
            backbone=_PREFIX + name,
            name=_PREFIX + name,
            weights="timm" if hub else path,
            sha256=fingerprint(module),
            preprocessing=_preprocessing_of(module),
        )

    def set_size(self, module: Any, size: tuple[int, int]) -> None:
        """Resample positional embeddings to this size.

        Raises
        ------
        ValueError
            If the sides are no multiples of the patch.
        """
        check_patches(patch_of(module) if _is_vit(module) else None, size)
        if hasattr(module, "set_input_size") and module.pretrained_cfg.get("fixed_input_size"):
            module.set_input_size(img_size=size)
        if _is_vit(module) and hasattr(getattr(module, "patch_embed", None), "img_size"):
            # The size is checked above; timm's check of each batch would end a trace.
            module.patch_embed.img_size = None

    def to_map(self, module: "nn.Module", layer: str, output: Any, size: tuple[int, int]) -> Any:
        """Return a map (B, H, W, C) as (B, C, H, W), and anything else as it is."""
        is_map = layer != "output" and getattr(output, "ndim", 0) == 4
        last = getattr(module, "output_fmt", "NCHW") == "NHWC"
        return output.permute(0, 3, 1, 2) if is_map and last else output


FAMILY = TimmFamily()


def _timm() -> Any:
    """Return timm, or None where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        return None
    torchvision_models()  # timm imports torchvision, whose operators may not fit this torch
    # Its dependencies may print, where a program writes its results.
    with contextlib.redirect_stdout(io.StringIO()):
        import timm

    return timm


def _has(name: str) -> bool:
    """Whether timm has a network of this name; a name with a tag needs to have weights.

    Of others with a full stop, such as "resnet18.pt", timm would overlook what comes after it.
    """
    timm = _timm()
    if timm is None or "." in name:
        return timm is not None and name in timm.list_pretrained()
    return bool(timm.is_model(name))


def _build(name: str, random_state: int, *, pretrained: bool) -> Any:
    """Return the network."""
    import torch

    timm = _timm()
    if timm is None:
        raise ImportError(
            f"backbone is 'timm:{name}', which needs timm; install it with `pip install timm`"
        )
    if not timm.is_model(name):
        names = timm.list_models()
        near = difflib.get_close_matches(name, names, 3) or names[:3]
        raise ValueError(
            f"backbone is 'timm:{name}', which timm does not have; it has {', '.join(near)} and "
            "others (timm.list_models() lists them)"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(check_integer("random_state", random_state, 0))
        try:
            return timm.create_model(name, pretrained=pretrained)
        except (OSError, RuntimeError) as error:
            raise ConnectionError(
                f"the weights of timm:{name} cannot be downloaded ({str(error).splitlines()[0]}); "
                "pass as weights the path of a file (.pth or .safetensors)"
            ) from error


@functools.cache
def _maps_of(name: str) -> tuple[tuple[str, ...] | None, int]:
    """Return the layers of a network that have maps, and the side of images for them."""
    import torch

    with torch.device("meta"):  # takes neither memory nor time
        module = _build(name, 0, pretrained=False)
    own = module.pretrained_cfg
    side = int(own["input_size"][1]) if own.get("fixed_input_size") else 256
    if _is_vit(module):
        return _default(module), side
    found = {one["reduction"]: str(one["module"]) for one in getattr(module, "feature_info", ())}
    layers = tuple(found[stride] for stride in (8, 16) if stride in found)
    return (layers or None), side


def _is_vit(module: Any) -> bool:
    return hasattr(module, "blocks") and hasattr(module, "num_prefix_tokens")


def _block_names(layer: str) -> str:
    """Return a layer of which blocks are named by their numbers."""
    span = re.fullmatch(r"(\d+)-(\d+)", layer)
    parts = [layer]
    if span:
        first, last = int(span[1]), int(span[2])
        if first >= last:
            raise ValueError(f"layers has {layer!r}; the first block must come before the last")
        parts = [str(n) for n in range(first, last + 1)]
    elif "+" in layer:
        parts = layer.split("+")
    return "+".join(f"blocks.{part}" if part.isdecimal() else part for part in parts)


def _default(module: Any) -> tuple[str, ...]:
    """Return the block at 60 % of the depth, or the last layer of stride 16."""
    if _is_vit(module):
        return (f"blocks.{round(0.6 * (len(module.blocks) - 1))}",)
    found = [one["module"] for one in module.feature_info if one["reduction"] == 16]
    return (str(found[-1]),) if found else ("output",)


def _prune_blocks(module: Any, layers: tuple[str, ...]) -> None:
    """Remove the blocks of a transformer after the last of `layers`, if all are in blocks."""
    parts = [part for layer in layers for part in parts_of(layer)]
    numbers = [re.match(r"blocks\.(\d+)", part) for part in parts]
    if _is_vit(module) and all(numbers):
        module.blocks = module.blocks[: 1 + max(int(n[1]) for n in numbers if n)]


def _converter(name: str, module: Any) -> Any:
    """Return timm's function for checkpoints of other makers, such as DINOv2's, or None."""
    timm = _timm()
    home = sys.modules[timm.model_entrypoint(name).__module__]
    convert = getattr(home, "checkpoint_filter_fn", None)
    return None if convert is None else lambda state: convert(state, module)


def _preprocessing_of(module: Any) -> Preprocessing:
    own = module.pretrained_cfg
    _, height, width = own["input_size"]
    return Preprocessing((height, width), None, mean=tuple(own["mean"]), std=tuple(own["std"]))
