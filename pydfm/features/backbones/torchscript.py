"""Networks in TorchScript files, with the weights that these contain."""

import hashlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydfm.features.backbones.family import AS_SAVED, Family, Network
from pydfm.features.backbones.layers import check_layers

if TYPE_CHECKING:
    from torch import nn


class TorchScriptFamily(Family):
    """The path of a file that ``torch.jit.save`` wrote."""

    description = "the path of an existing TorchScript file"
    priority = 90  # last, since any text may be a path
    runs_code = True

    def claims(self, backbone: Any) -> bool:
        """Whether `backbone` is the path of a file."""
        return isinstance(backbone, str | os.PathLike) and Path(backbone).is_file()

    def is_saved_as(self, saved: str) -> bool:
        """Whether `saved` may be a path; names of other families begin with "FAMILY:"."""
        return ":" not in saved[2:]

    def load(
        self,
        backbone: "str | os.PathLike[str]",
        weights: "str | os.PathLike[str] | None",
        layers: tuple[str, ...],
        *,
        random_state: int,
        progress: bool,
    ) -> Network:
        """Load the file, which contains its weights; `random_state` does not matter.

        Raises
        ------
        ValueError
            If it is not a TorchScript file, or other weights are asked for.
        """
        path = os.fspath(backbone)
        if weights not in (None, "auto", "imagenet", path):
            raise ValueError(
                f"weights is {weights!r}, but the backbone {path!r} is a TorchScript file, which "
                "contains its weights; leave weights out"
            )
        module = _read(path)
        check_layers(module, layers)
        return Network(
            module,
            layers,
            family=self,
            backbone=path,
            name="torchscript",
            weights=path,
            sha256=hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        )

    def needed_files(
        self,
        saved: str,
        saved_weights: str | None,
        backbone: Any = None,
        weights: "str | os.PathLike[str] | None" = AS_SAVED,
    ) -> dict[str, str]:
        """Return the TorchScript file, which contains the weights, unless another is given."""
        return {"backbone": saved} if backbone is None else {}


FAMILY = TorchScriptFamily()


def _read(path: str) -> "nn.Module":
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load: Any = torch.jit.load
            module: nn.Module = load(path, map_location="cpu")
            return module
    except RuntimeError as error:
        raise ValueError(
            f"backbone is {path!r}, which is not a TorchScript file; save one with "
            "torch.jit.save, or name a torchvision network and pass this file as weights"
        ) from error
