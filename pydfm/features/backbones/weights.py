"""Weights of a network: state dicts read from files, and the hash that identifies them."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_state(
    module: "nn.Module",
    path: str,
    name: str,
    full: set[str] | None = None,
    rename: Callable[[str], str] | None = None,
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

    Raises
    ------
    ValueError
        If the file cannot be read, or is for another network.
    """
    state = _read_state(path)
    if rename is not None:
        state = {rename(key): value for key, value in state.items()}
    own = module.state_dict()
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    missing = sorted(needed - set(state))
    unknown = sorted(set(state) - (set(own) if full is None else full))
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is not in it"
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
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"weights is {path!r}, which does not hold a state dict of tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


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
