"""Masks of the test images of a category: which pixels are anomalous."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.datasets.category import Category
from pydfm.features.inputs.images import ImageError, read_image
from pydfm.features.pictures.orientation import orientation, turned_levels, upright
from pydfm.features.pictures.reading import stored_orientation
from pydfm.features.transforms import Preprocessing, as_8_bit
from pydfm.runtime.text import printable


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
        If a mask has another size than its image, or none can say how it lies on one that EXIF
        turns.
    """
    geometry = size if isinstance(size, Preprocessing) else Preprocessing(resize=size, crop=None)
    masks = np.zeros((len(category.test), *geometry.size), dtype=bool)
    for mask, image, paths in zip(masks, category.test, category.masks, strict=True):
        if paths:
            mask[:] = geometry.from_mask(_read_masks(paths, image))
    return masks


def _read_masks(paths: Sequence[str], image: str) -> NDArray[np.bool_]:
    """Return the union of the masks of `image`, at its size."""
    size, turn = _read(image, _size), stored_orientation(image)
    union: NDArray[np.bool_] = np.zeros(size, dtype=bool)
    for path in paths:
        mask = _read(path, _above_zero)
        if turn != 1 and stored_orientation(path) == 1:
            mask = _turned_as(mask, turn, size, path, image)
        if mask.shape != size:
            raise ValueError(
                f"the mask '{printable(path)}' has {mask.shape[1]} x {mask.shape[0]} pixels and "
                f"its image '{printable(image)}' {size[1]} x {size[0]}; both must have the same "
                "size"
            )
        union |= mask
    return union


def _turned_as(
    mask: NDArray[Any], turn: int, size: tuple[int, int], path: str, image: str
) -> NDArray[Any]:
    """Return a mask without orientation for an image that has one, as far as its size tells.

    Raises
    ------
    ValueError
        If the mask may be of the image as it is stored or as it is shown.
    """
    turned = turned_levels(mask, turn)
    if turned.shape != size or np.array_equal(turned, mask):
        return mask
    if mask.shape != size:
        return turned
    raise ValueError(
        f"the image '{printable(image)}' is turned by its EXIF orientation, {turn}, and its mask "
        f"'{printable(path)}' has none, so that it may be of the image as stored or as shown; save "
        "the image upright"
    )


def _read(path: str, convert: Callable[[Any], Any]) -> Any:
    try:
        return read_image(path, convert)
    except ImageError as error:
        raise ImageError(f"cannot read image '{path}': {error}") from error


def _size(image: Image.Image | NDArray[Any]) -> tuple[int, int]:
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
