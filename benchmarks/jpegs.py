"""JPEG files to decode, with as much detail as photographs have."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_jpegs(folder: Path, count: int, side: int, *, grain: float = 4.0) -> list[str]:
    """Write JPEG files of smooth shapes with a little grain, and return their paths.

    Parameters
    ----------
    folder : Path
        Is made if it is not there.
    count, side : int
        Number of files, and their height and width in pixels.
    grain : float
        Standard deviation of the noise, of 255.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        shapes = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        pixels = np.asarray(shapes.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        pixels = pixels + rng.normal(0, grain, pixels.shape)
        path = folder / f"{i:04}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(str(path))
    return paths
