"""Resize, crop and normalisation as a module of torch, with the pixels that Pillow gives.

Pillow resizes by a triangle filter as wide as a pixel of the result, in two passes, each rounded to
8 bits; a side that stays is passed by. Here a pass is a product with a matrix of weights, in
float64, which holds Pillow's sums of integers exactly. Which pass comes first decides the rounding.
It is the one across, but in Pillow 13 the one down where the height loses more than twice the
pixels that the width loses; in Pillow 12.2 and 12.3 only in images more than 100 times as high as
wide. A module has the order of the Pillow that it was made with.

Images that would become longer than 16384 pixels are resized within a box in
`pydfm.features.transforms`, whose sides Pillow rounds: some of their pixels differ by one level.
"""

import PIL
import torch
from torch import nn

from pydfm.features.transforms import Preprocessing

# Pillow's weights are multiples of 1 / this.
_PARTS = float(1 << 22)


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
        # Numbers of pixels as tensors (1,): the exporter takes those of shape () for float32.
        rows, columns = (_centres(line) for line in (images[0, :, 0, 0], images[0, 0, :, 0]))
        height, width = rows[-1:] + 0.5, columns[-1:] + 0.5
        if isinstance(self._resize, int):
            short = torch.minimum(height, width)
            resized = [torch.floor(self._resize * side / short) for side in (height, width)]
        else:
            resized = [torch.full_like(height, side) for side in self._resize]
        across = self._weights(columns, width, resized[1], self._size[1])
        down = self._weights(rows, height, resized[0], self._size[0])
        down_first = self._is_down_first(height, width, *resized)
        if torch.compiler.is_compiling():
            planes = torch.cond(down_first, _down_first, _across_first, (images, across, down))
        else:
            # Each order takes its images, which are all or none: OpenVINO's first answer from a
            # graph with a condition ("If") was of images that were not resized.
            goes_down = down_first & torch.ones_like(images[:, 0, 0, 0], dtype=torch.bool)
            planes = torch.cat(
                [
                    _down_first(images[goes_down], across, down),
                    _across_first(images[~goes_down], across, down),
                ]
            )
        mean: torch.Tensor = getattr(self, "_mean")  # noqa: B009 (its type)
        std: torch.Tensor = getattr(self, "_std")  # noqa: B009
        pixels: torch.Tensor = (planes.float() / 255 - mean) / std
        return pixels

    def _weights(
        self, pixels: torch.Tensor, length: torch.Tensor, resized: torch.Tensor, size: int
    ) -> torch.Tensor:
        """Return weights (size, length) of a line's pixels, by their centres, in the result."""
        first = torch.zeros_like(resized)
        if self._cropped:
            first = torch.round((resized - size) / 2)
        places = first + torch.arange(size, dtype=torch.float64)
        scale = length / resized
        wide = torch.clamp(scale, min=1.0)
        centres = (places + 0.5) * scale
        weights = torch.clamp(1 - torch.abs(pixels[None] - centres[:, None]) / wide, min=0.0)
        weights = weights / torch.clamp(weights.sum(dim=1, keepdim=True), min=1e-12)
        # As Pillow's integers, so that sums, which float64 holds exactly, are rounded as its are.
        weights = torch.floor(weights * _PARTS + 0.5) / _PARTS
        inside = (places >= 0) & (places < resized)
        return weights * inside[:, None]

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


def _centres(line: torch.Tensor) -> torch.Tensor:
    """Return the centres of a line's pixels, 0.5 and so on."""
    return torch.cumsum(torch.ones_like(line, dtype=torch.float64), 0) - 0.5


def _planes(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).double()


def _rounded(planes: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.floor(planes + 0.5), 0, 255)


def _across_first(images: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return _rounded(down @ _rounded(_planes(images) @ across.T))


def _down_first(images: torch.Tensor, across: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return _rounded(_rounded(down @ _planes(images)) @ across.T)
