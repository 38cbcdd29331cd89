"""What a family of backbones has to provide, and the network that it loads.

A family is one way to name a network and to load it: torchvision's names, a TorchScript file, a
module of the caller's. To add one, write a module of this package that defines a subclass of
`Family` and ``FAMILY``, an instance of it. Such a module imports torch inside its functions only.
"""

import copy
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from pydfm.features.transforms import Preprocessing

if TYPE_CHECKING:
    from torch import nn

# The value of `weights` that stands for those that a model file names.
AS_SAVED: Final = "as saved"


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, and what identifies it.

    Attributes
    ----------
    module : nn.Module
        The network.
    layers : tuple of str
        Layers that the features are taken from.
    family : Family
        The family that loaded it.
    backbone : str
        The backbone, as a model file stores it.
    name : str
        The backbone, as messages call it.
    weights : str or None
        Source of the weights: a name that the family knows, a path, or None where they are random
        or the module's own.
    sha256 : str
        Hash of the tensors that the features depend on, or of the file that contains them.
    preprocessing : Preprocessing
        Preprocessing that the weights were trained with.
    """

    module: "nn.Module"
    layers: tuple[str, ...]
    family: "Family"
    backbone: str
    name: str
    weights: str | None
    sha256: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)


class Family(ABC):
    """A kind of backbone.

    Attributes
    ----------
    names : tuple of str
        Names of its backbones, where they have names.
    description : str
        Form of a backbone without a name, for messages: "the path of a file".
    priority : int
        Families with a lower number are asked first whether a backbone is theirs.
    default_layers : tuple of str
        Layers of the features where the caller names none.
    in_memory : bool
        Whether its backbones are Python objects, which a model file cannot name.
    runs_code : bool
        Whether its backbones are files whose code runs, so that a model file must not choose them.
    """

    names: tuple[str, ...] = ()
    description: str = ""
    priority: int = 50
    default_layers: tuple[str, ...] = ("output",)
    in_memory: bool = False
    runs_code: bool = False

    def claims(self, backbone: Any) -> bool:
        """Whether this family loads `backbone`, a value of the parameter."""
        return isinstance(backbone, str) and backbone in self.names

    def is_saved_as(self, saved: str) -> bool:
        """Whether a model file stores backbones of this family as `saved`."""
        return saved in self.names

    def map_layers(self, backbone: str) -> tuple[str, ...] | None:
        """Return the layers of `backbone` whose maps find defects, where they are known.

        Those of stride 8 and 16, in this order, or the middle blocks of a transformer.
        """
        return None

    def map_size(self, backbone: str) -> int:
        """Return the side in pixels of the images whose maps these are."""
        return 256

    def weights_place(self, backbone: str) -> tuple[str, str] | None:
        """Return where ImageNet weights of `backbone` are, and what brings them, where it has any.

        The first is "cache", "package" or "not here"; the second is an address or a command.
        """
        return None

    @abstractmethod
    def load(
        self,
        backbone: Any,
        weights: "str | os.PathLike[str] | None",
        layers: tuple[str, ...],
        *,
        random_state: int,
        progress: bool,
    ) -> Network:
        """Load `backbone`, which this family claims; see `load_network` for the parameters."""

    def check_size(self, module: "nn.Module", size: tuple[int, int]) -> None:
        """Raise ValueError unless `module` takes images of this height and width."""
        return

    def to_map(self, module: "nn.Module", layer: str, output: Any, size: tuple[int, int]) -> Any:
        """Return the output of a layer as a map (B, C, H, W), or as vectors (B, D).

        The default returns it as it is. A family whose layers give tokens (B, N, C) arranges them
        by position here. The operations are recorded by TorchScript's tracer, so they must not
        depend on values.

        Parameters
        ----------
        module : nn.Module
            The whole network.
        layer : str
            Name of the layer, or "output".
        output : object
            What the layer returned for a batch of B images.
        size : (int, int)
            Height and width of these images in pixels.

        Returns
        -------
        torch.Tensor
            Of shape (B, C, H, W) or (B, ...); anything else raises an error where it is used.
        """
        return output

    def copied(self, backbone: Any) -> Any:
        """Return a deep copy of `backbone`, a Python object that this family claims."""
        return copy.deepcopy(backbone)

    def restore(self, saved: str) -> str:
        """Return the backbone to load where a model file stores `saved` and the caller names none.

        Raises
        ------
        ValueError
            If the caller must pass it.
        """
        return saved

    def needed_files(
        self,
        saved: str,
        saved_weights: str | None,
        backbone: Any = None,
        weights: "str | os.PathLike[str] | None" = AS_SAVED,
    ) -> dict[str, str]:
        """Return the files that a saved model needs, by the parameter that can name another place.

        Parameters
        ----------
        saved, saved_weights : str
            Backbone and weights that the model file stores.
        backbone, weights : optional
            What the caller passes in their place.
        """
        if weights != AS_SAVED or saved_weights is None:
            return {}
        # torchvision's names of weights contain neither.
        is_path = "." in saved_weights or os.sep in saved_weights
        return {"weights": saved_weights} if is_path else {}
