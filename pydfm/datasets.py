"""Folders in MVTec AD's layout, and the pictures of the demo."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm._checks import check_integer
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
        If ``test`` has no pictures in "good", or none elsewhere, or one of the folders has none.
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
        if kind.name.startswith("."):
            continue
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
    """Crops of photographs: of a brick wall to fit on; of it and of others to score.

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
    """Cut the photographs of surfaces that scikit-image ships into squares of `size` pixels.

    The left three quarters of the brick wall are for the fit. The test has its right quarter, the
    same crops with a piece of gravel a sixth as wide in the middle ("brick with stone"), grass and
    gravel: no pixel is in both.

    Parameters
    ----------
    size : int
        From 6 to 128, the width of the part to test on.

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
    """Squares of `size` pixels that overlap by two thirds."""
    height, width = photograph.shape
    step = size // 3
    return [
        Image.fromarray(np.ascontiguousarray(photograph[top : top + size, left : left + size]))
        for top in range(0, height - size + 1, step)
        for left in range(0, width - size + 1, step)
    ]
