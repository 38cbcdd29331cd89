"""Folders in MVTec AD's layout, and the pictures of the demo."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pydfm.images import list_images


@dataclass(frozen=True)
class Category:
    """One category of MVTec AD's layout: ``train/good`` and ``test/good``, ``test/DEFECT``, ....

    Attributes
    ----------
    name : str
    train : list of str
        Paths of normal pictures to fit on; empty where there is no ``train/good``.
    test : list of str
        Paths of pictures to score.
    defects : list of str
        For each of `test`, the folder it lies in: "good" or the kind of defect.
    """

    name: str
    train: list[str]
    test: list[str]
    defects: list[str]

    @property
    def labels(self) -> list[bool]:
        """For each of `test`, whether it is anomalous."""
        return [defect != "good" for defect in self.defects]


def is_category(folder: "str | os.PathLike[str]") -> bool:
    """Whether `folder` has MVTec AD's layout."""
    root = Path(folder)
    return (root / "test").is_dir() and (root / "train" / "good").is_dir()


def load_category(folder: "str | os.PathLike[str]") -> Category:
    """List the pictures of a category.

    Raises
    ------
    FileNotFoundError
        If the folder or its ``test`` is not there.
    ValueError
        If ``test`` has no pictures in "good", or none elsewhere.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder '{root}'")
    tests = root / "test"
    if not tests.is_dir():
        raise FileNotFoundError(
            f"'{root}' has no folder 'test'; a category has train/good, test/good and a folder in "
            "test for each kind of defect"
        )
    test: list[str] = []
    defects: list[str] = []
    for kind in sorted(path for path in tests.iterdir() if path.is_dir()):
        paths = list_images(kind)
        test += paths
        defects += [kind.name] * len(paths)
    if "good" not in defects or set(defects) == {"good"}:
        missing = "pictures of defects" if "good" in defects else "normal pictures in 'good'"
        raise ValueError(f"'{tests}' has no {missing}; an evaluation needs both")
    good = root / "train" / "good"
    return Category(root.resolve().name, list_images(good) if good.is_dir() else [], test, defects)


@dataclass(frozen=True)
class Demo:
    """Crops of photographs: of one surface to fit on, of it and of others to score."""

    train: list[Image.Image]
    test: list[Image.Image]
    kinds: Sequence[str]


DEMO_NORMAL = "brick"


def load_demo(size: int = 96) -> Demo:
    """Cut the photographs of surfaces that scikit-image ships into squares of `size` pixels.

    The left three quarters of the brick wall are for the fit, its right quarter, the same with a
    stain painted over, grass and gravel for the test, so that no pixel is in both.

    Raises
    ------
    ImportError
        If scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "the demo needs scikit-image and matplotlib; install them with "
            "`pip install -c constraints.txt 'pydfm[demo]'`"
        ) from error
    brick, grass, gravel = data.brick(), data.grass(), data.gravel()
    split = 3 * brick.shape[1] // 4
    train = _crops(brick[:, :split], size, size // 3)
    test: list[Image.Image] = []
    kinds: list[str] = []
    for kind, photograph in (
        (DEMO_NORMAL, brick[:, split:]),
        ("grass", grass[:, split:]),
        ("gravel", gravel[:, split:]),
    ):
        crops = _crops(photograph, size, size // 3)
        test += crops
        kinds += [kind] * len(crops)
    return Demo(train, test, kinds)


def _crops(photograph: "np.ndarray[tuple[int, int], np.dtype[np.uint8]]", size: int, step: int) -> list[Image.Image]:
    height, width = photograph.shape
    return [
        Image.fromarray(np.ascontiguousarray(photograph[top : top + size, left : left + size]))
        for top in range(0, height - size + 1, step)
        for left in range(0, width - size + 1, step)
    ]
