"""Weights of a network: state dicts read from files, and the hash that identifies them."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch import nn


_PREFIXES: Final = ("module.", "_orig_mod.", "backbone.", "model.")
"""What trainers and torch.compile put before the names of a network's tensors."""

_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema")
"""What checkpoints keep a state dict under."""


def load_state(
    module: "nn.Module",
    path: str,
    name: str,
    full: set[str] | None = None,
    rename: Callable[[str], str] | None = None,
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Load the state dict in the file `path` into `module`.

    Parameters
    ----------
    module : nn.Module
        Changed in place. The file must contain all that it needs.
    path : str
        A .safetensors file, or any other name for what ``torch.save`` wrote.
    name : str
        Name of the network, for messages.
    full : set of str, optional
        Keys that the file may contain: those of the network before layers were removed from it.
        Default those of `module`.
    rename : callable, optional
        Makes a key of `module` from a key of the file.
    convert : callable, optional
        Makes a state dict of `module` from one of another maker, whose keys are not those of
        `module`.

    Raises
    ------
    ValueError
        If the file cannot be read, or is for another network.
    """
    state = _read_state(path)
    own = module.state_dict()
    known = set(own) if full is None else full | set(own)
    state = _renamed(state, known, rename, path)
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    if convert is not None and (needed - set(state) or set(state) - known):
        try:
            state = convert(state)
        except Exception as error:  # of a file that is for another network, anything
            raise ValueError(f"weights is {path!r}, which is not for {name}: {error}") from error
    missing = sorted(needed - set(state))
    unknown = sorted(set(state) - (set(own) if full is None else full))
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is not in it"
        if missing and unknown:
            alike = [key for key in unknown if key.endswith(missing[0])] or unknown
            what = f"has {alike[0]!r} in place of {missing[0]!r}"
        more = len(missing or unknown) - 1
        raise ValueError(
            f"weights is {path!r}, which is not for {name}: it {what}"
            + (f" (and {more} more)" if more else "")
        )
    try:
        module.load_state_dict({k: v for k, v in state.items() if k in needed}, strict=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"weights is {path!r}, which is not for {name}: {reason}") from error


def _read_state(path: str) -> "dict[str, torch.Tensor]":
    """Return the state dict in the file `path`, also where a trainer wrapped it."""
    import torch

    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and pickle raise many kinds
        raise ValueError(
            f"weights is {path!r}, which cannot be read as a state dict; it must be a .safetensors "
            "file, or a state dict written by torch.save (tensors only, no pickled objects)"
        ) from error
    while isinstance(state, dict):
        inner = [state[key] for key in _WRAPPERS if isinstance(state.get(key), dict)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        held = f"a {type(state).__name__}"
        if isinstance(state, dict):
            held = ", ".join(repr(key) for key in list(state)[:5]) + (", ..." * (len(state) > 5))
        raise ValueError(
            f"weights is {path!r}, which does not hold a state dict of tensors: it holds {held}; "
            "save the network's state_dict()"
        )
    return state


def _renamed(
    state: "dict[str, torch.Tensor]",
    known: set[str],
    rename: Callable[[str], str] | None,
    path: str,
) -> "dict[str, torch.Tensor]":
    """Return `state` with the keys of a network that has the keys `known`, where they are there."""
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        new = _known_key(key, known, rename)
        if new in found:
            raise ValueError(f"weights is {path!r}, which has {new!r} twice, once as {key!r}")
        found[new] = value
    return found


def _known_key(key: str, known: set[str], rename: Callable[[str], str] | None) -> str:
    """Return the known key that `key` is without prefixes, or `key` if there is none."""
    bare: str | None = key
    while bare is not None:
        for candidate in (bare, bare.replace("_orig_mod.", "")):
            name = candidate if rename is None else rename(candidate)
            if name in known:
                return name
        bare = next((bare[len(p) :] for p in _PREFIXES if bare.startswith(p)), None)
    return key if rename is None else rename(key)


def fingerprint(module: "nn.Module") -> str:
    """Return the SHA-256 of the names, types, shapes and values of the tensors of `module`.

    Counters of batches are left out: training changes them, and features do not depend on them.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
