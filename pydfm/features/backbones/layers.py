"""Layers of a network by name: checked, and everything after the last one removed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def parts_of(layer: str) -> list[str]:
    """Return the submodules whose outputs' mean is the layer: those joined by "+"."""
    return layer.split("+")


def check_layers(module: "nn.Module", layers: tuple[str, ...]) -> None:
    """Raise ValueError unless `module` has all `layers`, and each is named once.

    Layers are submodules, several joined by "+" for the mean of their outputs, or "output" for the
    result of the whole network. A scripted network has "output" only, since its submodules take no
    hooks.
    """
    import torch

    scripted = isinstance(module, torch.jit.ScriptModule)
    known = [] if scripted else [name for name, _ in module.named_modules() if name]
    for layer in layers:
        missing = [part for part in parts_of(layer) if part not in known]
        if layer != "output" and missing:
            nested = [name for name in known if "." in name]
            listed = ", ".join([*(name for name in known if "." not in name), "output"])
            inner = f", and what is inside them, such as '{nested[0]}'" if nested else ""
            raise ValueError(
                f"layers has {missing[0]!r}, which this backbone does not have; it has "
                f"{listed}{inner}"
            )
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers is {layers!r}; each layer may be named once")
    for layer in layers:
        if len(set(parts_of(layer))) < len(parts_of(layer)):
            raise ValueError(f"layers has {layer!r}; each part of a mean may be named once")


def prune(module: "nn.Module", layers: tuple[str, ...]) -> None:
    """Replace the children after the last of `layers` by the identity, in place.

    They then take no time and need no weights. The children of `module` must run in their order.
    """
    from torch import nn

    if "output" in layers:
        return
    children = [name for name, _ in module.named_children()]
    last = max(children.index(part.split(".")[0]) for layer in layers for part in parts_of(layer))
    for name in children[last + 1 :]:
        setattr(module, name, nn.Identity())
