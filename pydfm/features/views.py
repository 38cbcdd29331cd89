"""Views and facts of images for a person, taken while they are decoded for the network."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from pydfm.features.inputs.images import list_images
from pydfm.features.pictures.facts import Facts
from pydfm.features.pictures.orientation import upright
from pydfm.features.pictures.pages import with_pages
from pydfm.features.transforms import Preprocessing


@dataclass(frozen=True)
class View:
    """What is shown of an image.

    Attributes
    ----------
    size : (int, int)
        Height and width in pixels of the upright image.
    picture : PIL image or None
        The whole image, scaled down, in mode L or RGB.
    """

    size: tuple[int, int]
    picture: Image.Image | None = None


class Views:
    """Takes views of images; `DFM.batches` calls it for each one that it decodes.

    Parameters
    ----------
    preprocessing : Preprocessing
        That of the network, for the grey levels of deep images.
    side : int
        Longest side of pictures in pixels; 0 for none, only sizes.
    """

    def __init__(self, preprocessing: Preprocessing, side: int = 0) -> None:
        self._preprocessing = preprocessing
        self._side = side
        self._found: dict[int, View] = {}

    def __call__(self, index: int, image: Image.Image | NDArray[Any]) -> None:
        """Take the view of the image `index`; called by several threads, each for other images."""
        if self._side == 0:
            if isinstance(image, Image.Image):
                shown = upright(image)
                size = (shown.height, shown.width)
            else:
                size = (image.shape[0], image.shape[1])
            self._found[index] = View(size)
            return
        picture = self._preprocessing.picture(image)
        small = picture.copy()
        small.thumbnail((self._side, self._side), Image.Resampling.BILINEAR, reducing_gap=3.0)
        self._found[index] = View((picture.height, picture.width), small)

    def take(self, places: Sequence[int]) -> list[View]:
        """Return the views of some images, which are not kept any longer."""
        return [self._found.pop(place) for place in places]


class FactsTaker:
    """Takes facts of images; called as `Views`.

    Parameters
    ----------
    preprocessing : Preprocessing
    found : dict
        Where the facts of each image go, by its index.
    """

    def __init__(self, preprocessing: Preprocessing, found: dict[int, Facts]) -> None:
        self._preprocessing = preprocessing
        self._found = found

    def __call__(self, index: int, image: Image.Image | NDArray[Any]) -> None:
        """Take the facts of the image `index`."""
        mode = image.mode if isinstance(image, Image.Image) else "RGB;16"
        self._found[index] = Facts.of(self._preprocessing.picture(image), mode)


def image_names(X: Any) -> list[str] | None:
    """Return the paths of the images of `X`, a folder, a path or a list of paths; else None."""
    if isinstance(X, str | os.PathLike):
        return with_pages(list_images(X))
    if isinstance(X, list | tuple) and all(isinstance(x, str | os.PathLike) for x in X):
        return with_pages([os.fspath(x) for x in X])
    return None
