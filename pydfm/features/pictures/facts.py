"""Facts about an image file that need no network: size, mode, exposure, sharpness, equality."""

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMB: Final = 16
"""Side of the thumbnails by which images are compared."""

_SHARPNESS_SIDE: Final = 512


@dataclass(frozen=True, eq=False)
class Facts:
    """What an image is like.

    Attributes
    ----------
    size : (int, int)
        Height and width of the upright image.
    mode : str
        As Pillow names it: "L" grey, "RGB" colours, "I;16" grey of 16 bits.
    brightness : float
        Mean grey level, from 0 to 1.
    contrast : float
        Standard deviation of the grey levels.
    sharpness : float
        Deviation of the Laplacian over that of the grey levels, at 512 pixels at most: low where an
        image is blurred.
    digest : str
        Hash of the upright image's pixels.
    thumb : ndarray of shape (16, 16), float32
        Grey levels from 0 to 255.
    """

    size: tuple[int, int]
    mode: str
    brightness: float
    contrast: float
    sharpness: float
    digest: str
    thumb: NDArray[np.float32]

    @classmethod
    def of(cls, picture: Image.Image, mode: str) -> "Facts":
        """Measure an upright `picture` in mode L or RGB, which comes from a file of `mode`."""
        grey = picture.convert("L")
        small = grey.copy()
        small.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE), Image.Resampling.BOX)
        levels = np.asarray(small, dtype=np.float32)
        contrast = float(levels.std())
        thumb = grey.resize((THUMB, THUMB), Image.Resampling.BOX)
        header = f"{picture.mode} {picture.size}".encode()
        return cls(
            (picture.height, picture.width),
            mode,
            float(levels.mean()) / 255,
            contrast / 255,
            float(_laplacian(levels).std()) / contrast if contrast > 0 else 0.0,
            hashlib.blake2b(header + picture.tobytes(), digest_size=16).hexdigest(),
            np.asarray(thumb, dtype=np.float32),
        )


def _laplacian(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sum of the four neighbours less four times each inner pixel."""
    if min(levels.shape) < 3:
        return np.zeros(1, dtype=np.float32)
    inner = levels[1:-1, 1:-1]
    around = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:]
    return np.asarray(around - 4 * inner)


def near_equal(thumbs: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return pairs (p, 2) of images whose thumbnails are nearly equal.

    They are compared by what each has that the mean of all has not: their correlation exceeds
    0.995, and their difference is below a hundredth of the range of grey levels. Of two images
    nothing can be said in this way.

    Parameters
    ----------
    thumbs : ndarray of shape (n, 16, 16)
    """
    none = np.zeros((0, 2), dtype=np.intp)
    n = len(thumbs)
    if n < 3:
        return none
    flat = thumbs.reshape(n, -1).astype(np.float64)
    away = flat - flat.mean(axis=0)
    length = np.sqrt(np.square(away).sum(axis=1))
    found = []
    for i in range(n - 1):
        later = slice(i + 1, n)
        product = away[later] @ away[i]
        alike = product > 0.995 * length[later] * length[i]
        alike &= np.sqrt(np.square(flat[later] - flat[i]).mean(axis=1)) < 2.55
        found += [(i, i + 1 + int(j)) for j in np.flatnonzero(alike)]
    return np.array(found, dtype=np.intp) if found else none
