"""The registry of backbone families: one module of this package for each.

A module that defines ``FAMILY``, an instance of `Family`, adds a family; there is no list to edit.
Importing this package, or any family, does not import torch, so that the command line and error
messages can read the names at once.
"""

import copy
import difflib
import importlib
import os
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydfm.features.backbones.family import AS_SAVED, Family, Network

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "AS_SAVED",
    "Family",
    "Network",
    "backbone_names",
    "copy_backbone",
    "describe_backbones",
    "families",
    "family_of",
    "family_saved_as",
    "is_name",
    "load_network",
]


def families() -> list[Family]:
    """All families, in the order in which they are asked: by priority, then by module name."""
    found: list[tuple[int, str, Family]] = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        family = getattr(module, "FAMILY", None)
        if isinstance(family, Family):
            found.append((family.priority, info.name, family))
    return [family for _, _, family in sorted(found, key=lambda entry: entry[:2])]


def backbone_names() -> tuple[str, ...]:
    """Names that `backbone` may have, such as "resnet18"."""
    return tuple(name for family in families() for name in family.names)


def describe_backbones(*, in_memory: bool = True) -> str:
    """Return in words what `backbone` may be, for error messages and help texts.

    Parameters
    ----------
    in_memory : bool
        Whether to name Python objects too, which a command cannot take.
    """
    # Objects come last, since not every reader can pass one.
    ordered = sorted(families(), key=lambda family: family.in_memory)
    described = [
        family.description
        for family in ordered
        if family.description and (in_memory or not family.in_memory)
    ]
    *others, last = [*backbone_names(), *described]
    return f"{', '.join(others)}, or {last}" if others else last


def family_of(backbone: Any) -> Family:
    """Return the family that loads `backbone`.

    Raises
    ------
    ValueError
        If no family does.
    """
    for family in families():
        if family.claims(backbone):
            return family
    known = [name for family in families() for name in family.known_names()]
    near = difflib.get_close_matches(str(backbone), dict.fromkeys(known), 3)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ValueError(f"backbone is {backbone!r}{meant}; it must be one of {describe_backbones()}")


def is_name(backbone: str) -> bool:
    """Whether `backbone` is the name of a network, so that it never stands for a file's code."""
    return any(family.claims(backbone) for family in families() if not family.runs_code)


def family_saved_as(saved: str) -> Family:
    """Return the family whose backbones a model file stores as `saved`.

    Raises
    ------
    ValueError
        If there is none in this version of pydfm.
    """
    for family in families():
        if family.is_saved_as(saved):
            return family
    raise ValueError(
        f"the model was fitted with the backbone {saved!r}, which this version of pydfm does not "
        "know; install the version that fitted it"
    )


def copy_backbone(backbone: Any) -> Any:
    """Return a deep copy of `backbone`, a value of the parameter."""
    for family in families():
        if family.in_memory and family.claims(backbone):
            return family.copied(backbone)
    return copy.deepcopy(backbone)


def load_network(
    backbone: "str | os.PathLike[str] | nn.Module",
    weights: "str | os.PathLike[str] | None" = "auto",
    layers: str | Sequence[str] | None = None,
    *,
    random_state: int = 0,
    progress: bool = False,
) -> Network:
    """Build the network that `backbone` names, with its weights.

    Parameters
    ----------
    backbone : str, path or nn.Module
        One of `backbone_names`, the path of a TorchScript file, or a module of the caller's.
    weights : {"auto", "imagenet"}, path or None
        "auto": ImageNet weights that are here, in torch's cache or an installed package, else
        downloaded. For a torchvision network: "imagenet" for IMAGENET1K_V1 (or any other name that
        torchvision has for its weights), downloaded once and kept in torch's cache; a file
        (.safetensors, or any other name for a state dict written by ``torch.save``); or None for
        random weights seeded by `random_state`. A module keeps the weights it has, unless a path
        is given; a TorchScript file contains its own.
    layers : str or sequence of str, optional
        Names of submodules (see ``nn.Module.named_modules``), or "output". Default "avgpool" for a
        torchvision network, "output" otherwise.
    random_state : int
        Seed of random weights.
    progress : bool
        Show the progress of a download, where stderr is a terminal.

    Returns
    -------
    Network
        In evaluation mode.

    Raises
    ------
    ValueError
        If there is no such backbone or layer, or the file does not fit the network.
    ConnectionError
        If weights cannot be downloaded.
    """
    family = family_of(backbone)
    names = (layers,) if isinstance(layers, str) else tuple(() if layers is None else layers)
    network = family.load(
        backbone,
        weights,
        names or family.default_layers,
        random_state=random_state,
        progress=progress,
    )
    network.module.eval()
    return network
