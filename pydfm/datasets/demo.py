"""The images of the demo: crops of photographs that scikit-image ships."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.runtime.checks import check_integer


@dataclass(frozen=True)
class Demo:
    """Crops of photographs: a brick wall to fit on; the same wall and other surfaces to score.

    Attributes
    ----------
    train, test : list of PIL images
    kinds : list of str
        For each of `test`, what it shows; "brick" is the normal kind.
    """

    train: list[Image.Image]
    test: list[Image.Image]
    kinds: list[str]

    @property
    def labels(self) -> list[bool]:
        """For each of `test`, whether it is anomalous."""
        return [kind != "brick" for kind in self.kinds]


def load_demo(size: int = 96) -> Demo:
    """Cut scikit-image's photographs of surfaces into squares of `size` pixels.

    The left three quarters of the brick wall are for the fit. The right quarter is for the test,
    and so are the same crops with a piece of gravel a sixth as wide in the middle ("brick with
    stone"), grass and gravel. No pixel is in both.

    Parameters
    ----------
    size : int
        From 6 to 128, which is the width of the part for the test.

    Raises
    ------
    ImportError
        If scikit-image is not installed.
    ValueError
        If `size` is out of its range.
    """
    if check_integer("size", size, 6) > 128:
        raise ValueError(f"size is {size}; it must be at most 128")
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "the demo needs scikit-image; install it with "
            "`pip install -c constraints.txt '.[demo]'`"
        ) from error
    names = ("brick", "grass", "gravel")
    photographs = {name: getattr(data, name)() for name in names}  # (512, 512) uint8
    train_part, test_part = np.s_[:, :384], np.s_[:, 384:]
    test: list[Image.Image] = []
    kinds: list[str] = []
    for kind, photograph in photographs.items():
        crops = _crops(photograph[test_part], size)
        test += crops
        kinds += [kind] * len(crops)
    stone = Image.fromarray(photographs["gravel"][: size // 6, : size // 6])
    for crop in _crops(photographs["brick"][test_part], size):
        crop.paste(stone, (5 * size // 12, 5 * size // 12))
        test.append(crop)
        kinds.append("brick with stone")
    return Demo(_crops(photographs["brick"][train_part], size), test, kinds)


def _crops(photograph: NDArray[np.uint8], size: int) -> list[Image.Image]:
    """Return squares of `size` pixels that overlap by two thirds."""
    height, width = photograph.shape
    step = size // 3
    return [
        Image.fromarray(np.ascontiguousarray(photograph[top : top + size, left : left + size]))
        for top in range(0, height - size + 1, step)
        for left in range(0, width - size + 1, step)
    ]
