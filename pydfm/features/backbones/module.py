"""A torch.nn.Module of the caller's."""

import copy
import os
import sys
import threading
from collections import deque
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

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
        if hasattr(backbone, "_orig_mod"):  # what torch.compile returns
            backbone = cast("nn.Module", backbone._orig_mod)
            layers = tuple(layer.removeprefix("_orig_mod.") for layer in layers)
        module = _copied(backbone)
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

    def copied(self, backbone: "nn.Module") -> "nn.Module":
        """Return a deep copy of the module."""
        return _copied(backbone)

    def restore(self, saved: str) -> str:
        """Raise ValueError, since a model file does not contain the module."""
        raise ValueError(
            f"backbone is needed: the model was fitted with a module of the class "
            f"{saved.removeprefix(_PREFIX)}, which is not in the file; pass it"
        )


FAMILY = ModuleFamily()


def _copied(module: "nn.Module") -> "nn.Module":
    """Return a deep copy of `module`.

    Tensors that it keeps of a pass with gradients are detached in the copy. Locks are shared.

    Raises
    ------
    ValueError
        If it keeps something that cannot be copied.
    """
    import torch

    memo = _replacements(module)
    with torch.no_grad():  # or the copied parameters of a ScriptModule are no leaves
        try:
            return copy.deepcopy(module, dict(memo))
        except Exception as error:  # what is kept may raise anything
            for name, part in module.named_modules():
                for attribute, value in vars(part).items():
                    if attribute in ("_modules", "_parameters", "_buffers"):
                        continue
                    try:
                        copy.deepcopy(value, dict(memo))
                    except Exception:
                        where = ".".join(filter(None, (name, attribute)))
                        raise ValueError(
                            f"backbone keeps in '{where}' a {type(value).__name__}, which cannot "
                            f"be copied ({error}); delete it before the network is passed"
                        ) from error
            raise ValueError(
                f"backbone is a {type(module).__name__}, which cannot be copied ({error}); pass "
                "one that copy.deepcopy can copy"
            ) from error


def _replacements(module: "nn.Module") -> dict[int, Any]:
    """Return, by the id of what the module keeps, what stands for it in a copy."""
    import torch

    locks = (type(threading.Lock()), type(threading.RLock()))
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            if not one.is_leaf:
                found[id(one)] = one.detach().clone()
        elif isinstance(one, locks):
            found[id(one)] = one
        elif isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple | set | deque):
            waiting.extend(one)
        elif isinstance(one, MethodType):
            waiting.append(one.__self__)
        elif hasattr(one, "__dict__"):
            waiting.append(vars(one))
    return found
