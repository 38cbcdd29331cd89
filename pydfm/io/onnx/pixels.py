"""Resize, crop and normalisation as a module of torch, with the pixels that Pillow gives.

Pillow resizes by a triangle filter as wide as a pixel of the result, in two passes, each rounded to
8 bits; a side that stays is passed by. Here a pass is a product with matrices of weights, in
float64, which holds Pillow's sums of integers exactly: lines of the result by groups, each of the
pixels that its lines need. Which pass comes first decides the rounding.
It is the one across, but in Pillow 13 the one down where the height loses more than twice the
pixels that the width loses; in Pillow 12.2 and 12.3 only in images more than 100 times as high as
wide. A module has the order of the Pillow that it was made with.

Images that would become longer than 16384 pixels are resized within a box in
`pydfm.features.transforms`, whose sides Pillow rounds: some of their pixels differ by one level.
"""

from typing import NamedTuple

import PIL
import torch
from torch import nn

from pydfm.features.transforms import Preprocessing

# Pillow's weights are multiples of 1 / this.
_PARTS = float(1 << 22)
# Groups of lines of a result: of more, less is to be multiplied, and more pixels are in two groups.
_MOST_GROUPS = 16


class _Weights(NamedTuple):
    """Weights of the pixels of a side, by groups of lines of the result."""

    places: torch.Tensor  # (groups, pixels) int64: the pixels that a group needs
    values: torch.Tensor  # (groups, lines, pixels), or across (groups, pixels, lines), float64


class Pixels(nn.Module):
    """Resize, crop and normalisation: (N, H, W, 3) uint8 to (N, 3, height, width) float32.

    Parameters
    ----------
    preprocessing : Preprocessing
    pillow : str
        The version of Pillow whose order of passes is taken.
    """

    def __init__(self, preprocessing: Preprocessing, pillow: str = PIL.__version__) -> None:
        super().__init__()
        self._resize = preprocessing.resize
        self._size = preprocessing.size
        self._cropped = preprocessing.crop is not None
        self._pillow = tuple(int(part) for part in pillow.split(".")[:2])
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(f"_{name}", torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pixels that the network takes."""
        planes = images.permute(0, 3, 1, 2)
        # Numbers of pixels as tensors (1,): the exporter takes those of shape () for float32.
        rows, columns = (_centres(n) for n in planes.shape[2:])
        height, width = rows[-1:] + 0.5, columns[-1:] + 0.5
        if isinstance(self._resize, int):
            short = torch.minimum(height, width)
            resized = [torch.floor(self._resize * side / short) for side in (height, width)]
        else:
            resized = [torch.full_like(height, side) for side in self._resize]
        # onnxruntime before 1.24 has no product of float64 with what is transposed.
        across = self._weights(columns, width, resized[1], self._size[1], 1)
        down = self._weights(rows, height, resized[0], self._size[0], 2)
        down_first = self._is_down_first(height, width, *resized)
        if torch.compiler.is_compiling():
            planes = torch.cond(down_first, _down_first, _across_first, (planes, *across, *down))
        else:
            # Both orders, one of them of a single pixel. OpenVINO's first answer from a graph with
            # a condition ("If") was of images that were not resized, and onnxruntime before 1.24
            # has no products of no images.
            by_order = [
                order(
                    _shrunk(planes, taken, 0, 2),
                    *(_shrunk(own * taken, taken, *range(own.ndim)) for own in (*across, *down)),
                )
                for order, taken in ((_down_first, down_first), (_across_first, ~down_first))
            ]
            planes = torch.where(down_first, by_order[0], by_order[1])
        mean: torch.Tensor = getattr(self, "_mean")  # noqa: B009 (its type)
        std: torch.Tensor = getattr(self, "_std")  # noqa: B009
        pixels: torch.Tensor = (planes.float() / 255 - mean) / std
        return pixels

    def _weights(
        self,
        pixels: torch.Tensor,
        length: torch.Tensor,
        resized: torch.Tensor,
        size: int,
        axis: int,
    ) -> _Weights:
        """Return the weights of a line's pixels, by their centres, in the `size` of the result.

        The pixels are on the `axis` of the values.
        """
        first = torch.zeros_like(resized)
        if self._cropped:
            first = torch.round((resized - size) / 2)
        n_groups = next(n for n in range(_MOST_GROUPS, 0, -1) if size % n == 0)
        if torch.compiler.is_compiling():  # which knows no lengths that values decide
            n_groups = 1
        results = (first + torch.arange(size, dtype=torch.float64)).view(n_groups, -1)
        scale = length / resized
        wide = torch.clamp(scale, min=1.0)
        centres = (results + 0.5) * scale
        near = pixels
        if n_groups > 1:
            near = pixels[pixels < size // n_groups * scale + 2 * wide + 1]
            begin = torch.floor(torch.clamp(centres[:, :1] - wide, min=0.0))
            near = torch.minimum(begin, length - near[-1:] - 0.5) + near
        near = near.view(n_groups, -1)
        distances = torch.abs(near.unsqueeze(3 - axis) - centres.unsqueeze(axis))
        weights = torch.clamp(1 - distances / wide, min=0.0)
        weights = weights / torch.clamp(weights.sum(dim=axis, keepdim=True), min=1e-12)
        # As Pillow's integers, so that sums, which float64 holds exactly, are rounded as its are.
        weights = torch.floor(weights * _PARTS + 0.5) / _PARTS
        inside = (results >= 0) & (results < resized)
        return _Weights((near - 0.5).long(), weights * inside.unsqueeze(axis))

    def _is_down_first(
        self,
        height: torch.Tensor,
        width: torch.Tensor,
        new_height: torch.Tensor,
        new_width: torch.Tensor,
    ) -> torch.Tensor:
        """Return whether Pillow's first pass is the one down, a bool of shape (1,)."""
        lower = new_height < height
        if self._pillow >= (13, 0):
            return lower & (height - new_height > 2 * (width - new_width))
        if self._pillow >= (12, 2):
            return lower & (height > 100 * width)
        return torch.zeros_like(lower)


def _centres(length: int) -> torch.Tensor:
    """Return the centres of a line's pixels, 0.5 and so on."""
    return torch.cumsum(torch.ones(length, dtype=torch.float64), 0) - 0.5


def _shrunk(x: torch.Tensor, taken: torch.Tensor, *axes: int) -> torch.Tensor:
    """Return `x` where it is taken, or else what is first on these axes."""
    for axis in axes:
        keep = (_centres(x.shape[axis]) < 1) | taken
        x = x.index_select(axis, keep.nonzero()[:, 0])
    return x


def _across(planes: torch.Tensor, weights: _Weights) -> torch.Tensor:
    """Return planes (N, 3, H, W) with rows of the result's width."""
    parts = planes[:, :, :, weights.places].transpose(2, 3).double()
    parts = (parts @ weights.values).transpose(2, 3)
    return _rounded(parts.flatten(3))


def _down(planes: torch.Tensor, weights: _Weights) -> torch.Tensor:
    """Return planes (N, 3, H, W) with columns of the result's height."""
    parts = weights.values @ planes[:, :, weights.places].double()
    return _rounded(parts.flatten(2, 3))


def _rounded(planes: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.floor(planes + 0.5), 0, 255)


def _across_first(planes: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    return _down(_across(planes, _Weights(*weights[:2])), _Weights(*weights[2:]))


def _down_first(planes: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    return _across(_down(planes, _Weights(*weights[2:])), _Weights(*weights[:2]))
