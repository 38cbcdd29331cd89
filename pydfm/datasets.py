"""Folders in MVTec AD's layout with their masks, and the pictures of the demo.

A category is a folder with

    train/good/*                     normal pictures to fit on
    validation/good/*                more of them, where there are any (MVTec LOCO)
    test/good/*, test/DEFECT/*       pictures to score
    ground_truth/DEFECT/*            their masks: NAME_mask.png, NAME_gt.* or NAME.*, or a folder
                                     NAME with several masks, which are joined (MVTec LOCO)

where "ok" or "normal" may stand for "good" (BTAD). So MVTec AD, MVTec LOCO and BTAD are read as
they are published, VisA as its authors' script arranges it for one class. (The measure of MVTec
LOCO's own paper, sPRO, is another than AUPRO.)
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pydfm._checks import check_integer
from pydfm.images import ImageError, list_images, read_image
from pydfm.preprocessing import Preprocessing, as_8_bit

_GOOD: Final = ("good", "ok", "normal")
_MASK_ENDINGS: Final = ("_mask", "_gt")


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
    masks : list of list of str
        For each of `test`, the paths of its masks; empty for good pictures and where there are
        none.
    validation : list of str
        Paths of normal pictures of ``validation/good``; empty where there is none.
    """

    name: str
    train: list[str]
    test: list[str]
    defects: list[str]
    masks: list[list[str]] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[bool]:
        """For each of `test`, whether it is anomalous."""
        return [defect != "good" for defect in self.defects]

    @property
    def without_mask(self) -> list[str]:
        """Paths of the anomalous pictures of `test` that no mask was found for."""
        return [
            path
            for path, anomalous, masks in zip(self.test, self.labels, self.masks, strict=True)
            if anomalous and not masks
        ]

    def select(self, keep: Iterable[Any]) -> "Category":
        """Return the category with those pictures of `test` only for which `keep` is true."""
        chosen = list(keep)
        return replace(
            self,
            test=[path for path, k in zip(self.test, chosen, strict=True) if k],
            defects=[defect for defect, k in zip(self.defects, chosen, strict=True) if k],
            masks=[paths for paths, k in zip(self.masks, chosen, strict=True) if k],
        )


def is_category(folder: "str | os.PathLike[str]") -> bool:
    """Whether `folder` has MVTec AD's layout."""
    root = Path(folder)
    return (root / "test").is_dir() and _good_folder(root / "train") is not None


def find_categories(folder: "str | os.PathLike[str]") -> list[str]:
    """Paths of the folders at or below `folder` that hold a ``train`` or a ``test``, sorted.

    Whether they are complete is for `load_category` to tell.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or none below it that has a ``train`` or a ``test``.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder '{root}'")
    found = []
    for path, subfolders, _ in os.walk(root):
        if {"train", "test"} & set(subfolders):
            found.append(path)
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    if not found:
        raise FileNotFoundError(
            f"no folder below '{root}' has a 'train' or a 'test'; a category has train/good, "
            "test/good and a folder in test for each kind of defect"
        )
    return sorted(found)


def load_category(folder: "str | os.PathLike[str]") -> Category:
    """List the pictures of a category, and the masks that are there.

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
    good = _good_folder(tests)
    test: list[str] = []
    defects: list[str] = []
    masks: list[list[str]] = []
    for kind in sorted(path for path in tests.iterdir() if path.is_dir()):
        if kind.name.startswith("."):
            continue
        paths = list_images(kind)
        test += paths
        if kind == good:
            defects += ["good"] * len(paths)
            masks += [[] for _ in paths]
        else:
            defects += [kind.name] * len(paths)
            masks += _find_masks(paths, kind, root / "ground_truth" / kind.name)
    if "good" not in defects or set(defects) == {"good"}:
        missing = "pictures of defects" if "good" in defects else "normal pictures in 'good'"
        raise ValueError(f"'{tests}' has no {missing}; an evaluation needs both")
    return Category(
        root.resolve().name,
        _list_good(root / "train"),
        test,
        defects,
        masks,
        _list_good(root / "validation"),
    )


def load_masks(category: Category, size: tuple[int, int] | Preprocessing) -> NDArray[np.bool_]:
    """Masks of the test pictures of `category`, True where a pixel is anomalous.

    Parameters
    ----------
    category : Category
    size : (int, int) or Preprocessing
        Height and width of the score maps, or the preprocessing of the pictures (which may crop).
        Masks are resized by nearest neighbour, and only then follow the crop.

    Returns
    -------
    ndarray of shape (N, H, W), bool
        All False for good pictures, and for those of ``category.without_mask``: leave these out of
        a measurement.

    Raises
    ------
    ImageError
        If a mask cannot be read.
    ValueError
        If a mask has another size than its picture.
    """
    geometry = size if isinstance(size, Preprocessing) else Preprocessing(resize=size, crop=None)
    masks = np.zeros((len(category.test), *geometry.size), dtype=bool)
    for mask, picture, paths in zip(masks, category.test, category.masks, strict=True):
        if paths:
            mask[:] = geometry.from_mask(_read_masks(paths, picture))
    return masks


def _good_folder(parent: Path) -> Path | None:
    return next((parent / name for name in _GOOD if (parent / name).is_dir()), None)


def _list_good(parent: Path) -> list[str]:
    good = _good_folder(parent)
    return [] if good is None else list_images(good)


def _find_masks(pictures: Iterable[str], kind: Path, truth: Path) -> list[list[str]]:
    """For each picture below `kind`, the masks below `truth` of its name."""
    if not truth.is_dir():
        return [[] for _ in pictures]
    named: dict[Path, list[str]] = {}
    inside: dict[Path, list[str]] = {}
    for mask in list_images(truth):
        name = Path(mask).relative_to(truth).with_suffix("")
        inside.setdefault(name.parent, []).append(mask)
        for ending in _MASK_ENDINGS:
            name = name.with_name(name.name.removesuffix(ending) or name.name)
        named.setdefault(name, []).append(mask)
    names = (Path(picture).relative_to(kind).with_suffix("") for picture in pictures)
    return [named.get(name) or inside.get(name) or [] for name in names]


def _read_masks(paths: Sequence[str], picture: str) -> NDArray[np.bool_]:
    """Union of the masks of `picture`, at its size."""
    size = _read(picture, _turned_size)
    union: NDArray[np.bool_] = np.zeros(size, dtype=bool)
    for path in paths:
        mask = _read(path, _above_zero)
        if mask.shape != size:
            raise ValueError(
                f"the mask '{path}' has {mask.shape[1]} x {mask.shape[0]} pixels and its picture "
                f"'{picture}' {size[1]} x {size[0]}; they must be of one size"
            )
        union |= mask
    return union


def _read(path: str, convert: Callable[[Image.Image], Any]) -> Any:
    try:
        return read_image(path, convert)
    except ImageError as error:
        raise ImageError(f"cannot read image '{path}': {error}") from error


def _turned_size(image: Image.Image) -> tuple[int, int]:
    """Height and width as `Preprocessing.from_pil` sees them, without decoding the picture."""
    on_its_side = image.getexif().get(0x0112, 1) >= 5
    return (image.width, image.height) if on_its_side else (image.height, image.width)


def _above_zero(image: Image.Image) -> NDArray[Any]:
    image = ImageOps.exif_transpose(image)
    # What has one channel is compared as it is: scaled to 8 bits, small values would be lost.
    one_channel = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16")
    values = np.asarray(image if one_channel else as_8_bit(image))
    return np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))


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
