"""Tokens of transformers (B, N, C), and the map (B, C, H, W) that those of patches are."""

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch import nn

# More tokens before those of patches than any network has: a class token and registers.
_MOST_PREFIX: Final = 16


def patch_of(module: "nn.Module") -> tuple[int, int] | None:
    """Return height and width of the patches of a transformer in pixels, where they can be seen.

    They are those of its ``patch_embed``, or the kernel of its first convolution of an image, if
    that is its stride too.
    """
    from torch import nn

    own: Any = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if own is not None:
        return (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            height, width = (int(side) for side in part.kernel_size)
            is_patch = part.kernel_size == part.stride and max(height, width) > 1
            return (height, width) if is_patch else None
    return None


def check_patches(patch: tuple[int, int] | None, size: tuple[int, int]) -> None:
    """Raise ValueError unless patches divide images of this height and width."""
    if patch is not None and any(side % own for side, own in zip(size, patch, strict=True)):
        pairs = zip(size, patch, strict=True)
        multiples = [max(side // own, 1) * own for side, own in pairs]
        raise ValueError(
            f"image_size is {size[0]} x {size[1]}, which patches of {patch[0]} x {patch[1]} do not "
            f"divide; pass multiples, such as {' x '.join(map(str, multiples))}"
        )


def token_grid(
    module: "nn.Module", layer: str, n_tokens: int, size: tuple[int, int], prefix: int | None
) -> tuple[int, int, int]:
    """Return the number of tokens before those of patches, and the patches' grid.

    Parameters
    ----------
    module : nn.Module
        The network.
    layer : str
        Name of the layer, for messages.
    n_tokens : int
        Number of tokens that it gives per image.
    size : (int, int)
        Height and width of the images in pixels.
    prefix : int or None
        Number of tokens before those of patches; None to see it.

    Returns
    -------
    tuple of int
        Number before, height, width.

    Raises
    ------
    ValueError
        If the grid cannot be seen, or the tokens do not fill one.
    """
    patch = patch_of(module)
    grid = None if patch is None else (size[0] // patch[0], size[1] // patch[1])
    first: int | None = prefix
    if first is None and isinstance(getattr(module, "num_prefix_tokens", None), int):
        first = int(module.num_prefix_tokens)  # type: ignore[arg-type]
    if first is None and grid is not None and 0 <= n_tokens - math.prod(grid) <= _MOST_PREFIX:
        first = n_tokens - math.prod(grid)
    if first is None:
        raise ValueError(
            f"layer '{layer}' gives {n_tokens} tokens per image, whose grid cannot be seen; pass "
            "tokens, the number of those before the patches (class and register tokens), or name a "
            "layer with maps"
        )
    if grid is None or first + math.prod(grid) != n_tokens:
        grid = _of_aspect(n_tokens - first, size)
    if grid is None:
        raise ValueError(
            f"layer '{layer}' gives {n_tokens} tokens per image of {size[0]} x {size[1]} pixels: "
            f"without the first {first} they fill no grid of this aspect ratio; pass tokens, or "
            "name another layer"
        )
    return first, *grid


def as_map(tokens: "torch.Tensor", first: int, height: int, width: int) -> "torch.Tensor":
    """Return tokens (B, N, C) from the `first` on as a map (B, C, height, width)."""
    n_images, _, channels = tokens.shape
    return tokens[:, first:].transpose(1, 2).reshape(n_images, channels, height, width)


def _of_aspect(n_tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return height and width of a grid of so many tokens that has the images' aspect ratio."""
    if n_tokens < 1:
        return None
    height = max(round(math.sqrt(n_tokens * size[0] / size[1])), 1)
    width = n_tokens // height
    fits = height * width == n_tokens and width == max(round(height * size[1] / size[0]), 1)
    return (height, width) if fits else None
