"""Masks of the test images of a category: which pixels are anomalous."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.datasets.category import Category
from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.pictures.orientation import orientation, upright
from pydfm.features.transforms import Preprocessing, as_8_bit


def load_masks(category: Category, size: tuple[int, int] | Preprocessing) -> NDArray[np.bool_]:
    """Read the masks of the test images of `category`, True where a pixel is anomalous.

    Parameters
    ----------
    category : Category
        Whose test images they are of.
    size : (int, int) or Preprocessing
        Height and width of the score maps, or the preprocessing of the images.
        Masks are resized by nearest neighbour, and then cropped as the images are.

    Returns
    -------
    ndarray of shape (N, H, W), bool
        All False for good images, and for those of ``category.without_mask``, which a measurement
        must leave out.

    Raises
    ------
    ImageError
        If a mask cannot be read.
    ValueError
        If a mask has another size than its image.
    """
    geometry = size if isinstance(size, Preprocessing) else Preprocessing(resize=size, crop=None)
    masks = np.zeros((len(category.test), *geometry.size), dtype=bool)
    for mask, image, paths in zip(masks, category.test, category.masks, strict=True):
        if paths:
            mask[:] = geometry.from_mask(_read_masks(paths, image))
    return masks


def _read_masks(paths: Sequence[str], image: str) -> NDArray[np.bool_]:
    """Return the union of the masks of `image`, at its size."""
    size = _read(image, _rotated_size)
    union: NDArray[np.bool_] = np.zeros(size, dtype=bool)
    for path in paths:
        mask = _read(path, _above_zero)
        if mask.shape != size:
            raise ValueError(
                f"the mask '{path}' has {mask.shape[1]} x {mask.shape[0]} pixels and its image "
                f"'{image}' {size[1]} x {size[0]}; both must have the same size"
            )
        union |= mask
    return union


def _read(path: str, convert: Callable[[Any], Any]) -> Any:
    try:
        return read_image(path, convert)
    except ImageError as error:
        raise ImageError(f"cannot read image '{path}': {error}") from error


def _rotated_size(image: Image.Image | NDArray[Any]) -> tuple[int, int]:
    """Return height and width as `Preprocessing.from_pil` sees them; only a TIFF is decoded."""
    if isinstance(image, np.ndarray):  # levels of more than 8 bits
        return image.shape[0], image.shape[1]
    if image.format == "TIFF":
        image.load()  # Pillow turns it
    on_its_side = orientation(image) >= 5
    return (image.width, image.height) if on_its_side else (image.height, image.width)


def _above_zero(image: Image.Image | NDArray[Any]) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        return np.asarray(image.any(axis=2))
    image = upright(image)
    # One channel is compared unchanged: scaled to 8 bits, small values would become zero.
    one_channel = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
    values = np.asarray(image if one_channel else as_8_bit(image))
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))
