"""Preprocessing: from images of any size and mode to the pixels that a backbone takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features.pictures.intensity import as_shares, is_deep
from pydfm.features.pictures.orientation import upright
from pydfm.runtime.checks import check_integer

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)

MOST_SIDE: Final = 1 << 13
"""Largest height and width in pixels that a network is given."""

# A float image may overshoot [0, 1] by this much, as interpolation does.
_RANGE_SLACK = 0.01

# An image whose longer side would become longer than this is resized and cropped in one step.
_LONGEST = 1 << 14


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop and normalise: torchvision's evaluation transforms, on arrays.

    Parameters
    ----------
    resize : int or (int, int)
        Length of the shorter side in pixels, which keeps the aspect ratio, or exact
        (height, width). Bilinear, with antialiasing.
    crop : (int, int) or None
        Height and width in pixels of the central crop after the resize.
    mean, std : tuple of 3 floats
        Mean and standard deviation per channel (RGB), for pixels in [0, 1]. The network sees
        (pixel - mean) / std.
    intensity : str, (float, float) or None
        Black and white of images of more than 8 bits, which become floats: a depth such as "12bit",
        or two numbers. Floats have [0, 1] but for two numbers. With None integers are refused.
    """

    resize: int | tuple[int, int] = 256
    crop: tuple[int, int] | None = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    intensity: str | tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the result."""
        if self.crop is not None:
            return self.crop
        if isinstance(self.resize, int):
            raise ValueError("an image resized by its shorter side must be cropped too")
        return self.resize

    def keeps(self, height: int, width: int) -> bool:
        """Whether images of this size are neither resized nor cropped."""
        same = self._resized(height, width) == (height, width)
        return same and self._box(height, width) == (0, 0, height, width)

    def with_changes(
        self,
        image_size: int | Sequence[int] | None,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
    ) -> "Preprocessing":
        """Return a copy in which values that are not None are replaced.

        Parameters
        ----------
        image_size : int or (int, int), optional
            Exact size in pixels, one length or (height, width); there is no crop then.
        mean, std : float or sequence of 3 floats, optional
            For all channels, or for each.

        Raises
        ------
        ValueError
            If a value is not of this form.
        """
        resize, crop = self.resize, self.crop
        if image_size is not None:
            resize, crop = _check_size(image_size), None
        return Preprocessing(
            resize=resize,
            crop=crop,
            mean=self.mean if mean is None else _check_channels("mean", mean),
            std=self.std if std is None else _check_channels("std", std, positive=True),
            intensity=self.intensity,
        )

    def from_pil(self, image: Image.Image | NDArray[Any]) -> NDArray[Any]:
        """Return the pixels (3, height, width) of an image of any mode and size, or of levels.

        The image is rotated as its EXIF orientation says. They are uint8, or float32 in [0, 1]
        where it has more than 8 bits; so have levels (H, W, 3).
        """
        if isinstance(image, Image.Image):
            if 0 in image.size:
                raise ValueError(f"it has no pixels: its size is {image.width} x {image.height}")
            image = upright(image)
            if not is_deep(image):
                return np.asarray(self._fit(as_8_bit(image)).convert("RGB")).transpose(2, 0, 1)
        shares = as_shares(image, self.intensity)
        planes = [shares] if shares.ndim == 2 else list(shares.transpose(2, 0, 1))
        fitted = [np.asarray(self._fit(Image.fromarray(own)), np.float32) for own in planes]
        pixels = np.clip(np.stack(fitted), 0, 1)
        return np.repeat(pixels, 3, axis=0) if len(planes) == 1 else pixels

    def _fit(self, image: Image.Image) -> Image.Image:
        """Return `image` resized and cropped."""
        height, width = self._resized(image.height, image.width)
        top, left, bottom, right = self._box(height, width)
        if max(height, width) <= _LONGEST:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            image = image.crop((left, top, right, bottom))
        else:
            # A long strip would fill the memory if it were resized as a whole. PIL rounds this box
            # to float32, so that some pixels differ by one from those of the branch above.
            x, y = image.width / width, image.height / height
            first, above = max(left, 0), max(top, 0)  # a crop may be larger than the strip is high
            last, below = min(right, width), min(bottom, height)
            box = (first * x, above * y, min(last * x, image.width), min(below * y, image.height))
            image = image.resize((last - first, below - above), Image.Resampling.BILINEAR, box)
            if (first, above, last, below) != (left, top, right, bottom):
                image = image.crop((left - first, top - above, right - first, bottom - above))
        return image

    def picture(self, image: "Image.Image | NDArray[Any]") -> Image.Image:
        """Return `image` for eyes: upright and whole, in mode L or RGB.

        One of more than 8 bits has the black and the white that the network sees.
        """
        if isinstance(image, Image.Image):
            image = upright(image)
            if not is_deep(image):
                return as_8_bit(image)
        shares = as_shares(image, "16bit" if self.intensity is None else self.intensity)
        return Image.fromarray(np.rint(255 * shares.clip(0, 1)).astype(np.uint8))

    def window(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return what the network sees of an image of this size: left, top, right and bottom.

        In pixels of the upright image. They lie outside of it where the crop is larger than the
        resized image.
        """
        resized = self._resized(height, width)
        top, left, bottom, right = self._box(*resized)
        y, x = height / resized[0], width / resized[1]
        return left * x, top * y, right * x, bottom * y

    def from_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the mask (height, width) for the pixels of `from_pil`, by nearest neighbour."""
        height, width = self._resized(*mask.shape)
        image = Image.fromarray(mask.astype(np.uint8))
        resized = np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0
        top, left, bottom, right = self._box(height, width)
        return resized[top:bottom, left:right]

    def from_floats(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the pixels (B, 3, height, width) of float images (B, 3, H, W)."""
        import torch

        height, width = self._resized(*images.shape[2:])
        tensor = torch.from_numpy(images)
        if (height, width) != images.shape[2:]:
            tensor = torch.nn.functional.interpolate(
                tensor, (height, width), mode="bilinear", antialias=True, align_corners=False
            )
        top, left, bottom, right = self._box(height, width)
        pixels: NDArray[np.float32] = tensor[:, :, top:bottom, left:right].numpy()
        return pixels

    def check_range(self, images: NDArray[np.float32], first: int) -> None:
        """Raise ValueError if the values of float images (B, 3, H, W) are not in [0, 1].

        Images that are normalised already, with mean 0 and std 1, may have any finite values.

        Parameters
        ----------
        first : int
            Index of the first image, for the message.
        """
        low, high = float(images.min()), float(images.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            finite = np.isfinite(images).all(axis=(1, 2, 3))
            raise ValueError(
                f"image {first + int(np.argmin(finite))} of X contains NaN or infinity"
            )
        raw = self.mean == (0.0, 0.0, 0.0) and self.std == (1.0, 1.0, 1.0)
        if not raw and (low < -_RANGE_SLACK or high > 1 + _RANGE_SLACK):
            raise ValueError(
                f"X has float images with values from {low:.3g} to {high:.3g}; pixels must be in "
                "[0, 1] (or be uint8), and where they are normalised already pass mean=0, std=1"
            )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize
        short = min(height, width)
        return (self.resize * height) // short, (self.resize * width) // short

    def _box(self, height: int, width: int) -> tuple[int, int, int, int]:
        if self.crop is None:
            return 0, 0, height, width
        top = round((height - self.crop[0]) / 2)
        left = round((width - self.crop[1]) / 2)
        return top, left, top + self.crop[0], left + self.crop[1]


def stack(pixels: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return pixels (3, h, w) as one batch, float32 in [0, 1] if one of them is."""
    if all(one.dtype == np.uint8 for one in pixels):
        return np.stack(pixels)
    return np.stack([np.float32(p / 255) if p.dtype == np.uint8 else p for p in pixels])


def as_8_bit(image: Image.Image) -> Image.Image:
    """Return `image`, of at most 8 bits, in mode L or RGB; alpha is dropped."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "P":
        image = image.convert("RGBA")  # PIL warns of transparency if this step is left out
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _check_size(image_size: Any) -> tuple[int, int]:
    sides = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sides) != 2:
        raise ValueError(f"image_size is {image_size!r}; it must be one length or (height, width)")
    height, width = (check_integer("image_size", side, 1) for side in sides)
    if max(height, width) > MOST_SIDE:
        raise ValueError(f"image_size is {image_size!r}; a side has at most {MOST_SIDE} pixels")
    return height, width


def _check_channels(name: str, value: Any, *, positive: bool = False) -> tuple[float, float, float]:
    try:
        channels = np.array(value, dtype=np.float64).ravel()
    except (TypeError, ValueError):
        channels = np.array([np.nan])
    if (
        len(channels) not in (1, 3)
        or not np.isfinite(channels).all()
        or (positive and (channels <= 0).any())
    ):
        kind = "positive number" if positive else "number"
        raise ValueError(f"{name} is {value!r}; it must be one {kind} or three, for R, G and B")
    red, green, blue = np.broadcast_to(channels, 3).tolist()
    return red, green, blue
