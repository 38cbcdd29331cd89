"""A torch.nn.Module of the caller's."""

import copy
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from pydfm.features.backbones.family import Family, Network
from pydfm.features.backbones.layers import check_layers
from pydfm.features.backbones.weights import fingerprint, load_state

if TYPE_CHECKING:
    from torch import nn

_PREFIX: Final = "module:"


class ModuleFamily(Family):
    """A module with the weights it has, or with those of a file.

    A model file stores ``"module:CLASS"``, from which the module cannot be built again: the caller
    passes it once more.
    """

    description = "a torch.nn.Module"
    priority = 20
    in_memory = True

    def claims(self, backbone: Any) -> bool:
        """Whether `backbone` is a module."""
        torch = sys.modules.get("torch")  # a module cannot exist before torch is imported
        return torch is not None and isinstance(backbone, torch.nn.Module)

    def is_saved_as(self, saved: str) -> bool:
        """Whether `saved` names a class of modules."""
        return saved.startswith(_PREFIX)

    def load(
        self,
        backbone: "nn.Module",
        weights: "str | os.PathLike[str] | None",
        layers: tuple[str, ...],
        *,
        random_state: int,
        progress: bool,
    ) -> Network:
        """Copy the module, and load weights into the copy where `weights` is a path."""
        import torch

        with torch.no_grad():  # or the copied parameters of a ScriptModule are no leaves
            module = copy.deepcopy(backbone)
        name = f"{_PREFIX}{type(backbone).__qualname__}"
        check_layers(module, layers)
        source: str | None = None
        if isinstance(weights, os.PathLike) or weights not in ("auto", "imagenet", None):
            source = os.fspath(weights)
            load_state(module, source, name)
        return Network(
            module,
            layers,
            family=self,
            backbone=name,
            name=name,
            weights=source,
            sha256=fingerprint(module),
        )

    def restore(self, saved: str) -> str:
        """Raise ValueError, since a model file does not contain the module."""
        raise ValueError(
            f"backbone is needed: the model was fitted with a module of the class "
            f"{saved.removeprefix(_PREFIX)}, which is not in the file; pass it"
        )


FAMILY = ModuleFamily()
