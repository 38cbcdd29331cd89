"""Views: what is shown to a person of images, kept while they are decoded for the network."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pydfm.features.pictures.orientation import upright
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

    def __call__(self, index: int, image: Image.Image) -> None:
        """Take the view of the image `index`; called by several threads, each for other images."""
        if self._side == 0:
            shown = upright(image)
            self._found[index] = View((shown.height, shown.width))
            return
        picture = self._preprocessing.picture(image)
        small = picture.copy()
        small.thumbnail((self._side, self._side), Image.Resampling.BILINEAR, reducing_gap=3.0)
        self._found[index] = View((picture.height, picture.width), small)

    def take(self, places: Sequence[int]) -> list[View]:
        """Return the views of some images, which are not kept any longer."""
        return [self._found.pop(place) for place in places]
