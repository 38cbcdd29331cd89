"""Categories: folders in MVTec AD's layout.

A category is a folder with

    train/good/*                     normal images to fit on
    validation/good/*                more of them, where there are any (MVTec LOCO)
    test/good/*, test/DEFECT/*       images to score
    ground_truth/DEFECT/*            their masks: NAME_mask.png, NAME_gt.* or NAME.*, or a folder
                                     NAME with several masks, which are joined (MVTec LOCO)

where "ok" or "normal" may stand for "good" (BTAD). MVTec AD, MVTec LOCO and BTAD are read as they
are published, VisA as its authors' script arranges it for one class. (The metric of MVTec LOCO's
own paper, sPRO, differs from AUPRO.)
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydfm.features.inputs.images import list_images
from pydfm.features.pictures.pages import split_page, with_pages

_GOOD: Final = ("good", "ok", "normal")
_MASK_ENDINGS: Final = ("_mask", "_gt")
_LAYOUT: Final = "a category has train/good, test/good and a folder in test for each kind of defect"


@dataclass(frozen=True)
class Category:
    """One category: its images, kinds of defects and masks.

    Attributes
    ----------
    name : str
        Name of its folder.
    train : list of str
        Paths of normal images to fit on; empty where there is no ``train/good``.
    test : list of str
        Paths of images to score.
    defects : list of str
        For each of `test`, the folder that contains it: "good" or the kind of defect.
    masks : list of list of str
        For each of `test`, the paths of its masks; empty for good images and where there are none.
    validation : list of str
        Paths of normal images of ``validation/good``; empty where there is none.
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
        """Paths of the anomalous images of `test` that have no mask."""
        return [
            path
            for path, anomalous, masks in zip(self.test, self.labels, self.masks, strict=True)
            if anomalous and not masks
        ]

    def select(self, keep: Iterable[Any]) -> "Category":
        """Return the category with only those images of `test` for which `keep` is true."""
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
    """Return the sorted paths of the folders at or below `folder` with a ``train`` or a ``test``.

    `load_category` checks whether they are complete.

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
        raise FileNotFoundError(f"no folder below '{root}' has a 'train' or a 'test'; {_LAYOUT}")
    return sorted(found)


def load_category(folder: "str | os.PathLike[str]") -> Category:
    """List the images of a category, and the masks that there are.

    Raises
    ------
    FileNotFoundError
        If the folder or its ``test`` is not there.
    ValueError
        If ``test`` has no images in "good", or none elsewhere, or one of its folders is empty.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder '{root}'")
    tests = root / "test"
    if not tests.is_dir():
        raise FileNotFoundError(f"'{root}' has no folder 'test'; {_LAYOUT}")
    good = _good_folder(tests)
    test: list[str] = []
    defects: list[str] = []
    masks: list[list[str]] = []
    for kind in sorted(path for path in tests.iterdir() if path.is_dir()):
        if kind.name.startswith("."):
            continue
        paths = with_pages(list_images(kind))
        test += paths
        if kind == good:
            defects += ["good"] * len(paths)
            masks += [[] for _ in paths]
        else:
            defects += [kind.name] * len(paths)
            masks += _find_masks(paths, kind, root / "ground_truth" / kind.name)
    if "good" not in defects or set(defects) == {"good"}:
        missing = "images of defects" if "good" in defects else "normal images in 'good'"
        raise ValueError(f"'{tests}' has no {missing}; an evaluation needs both")
    return Category(
        root.resolve().name,
        _list_good(root / "train"),
        test,
        defects,
        masks,
        _list_good(root / "validation"),
    )


def _good_folder(parent: Path) -> Path | None:
    return next((parent / name for name in _GOOD if (parent / name).is_dir()), None)


def _list_good(parent: Path) -> list[str]:
    good = _good_folder(parent)
    return [] if good is None else with_pages(list_images(good))


def _find_masks(images: Iterable[str], kind: Path, truth: Path) -> list[list[str]]:
    """Return, for each image below `kind`, the masks below `truth` that have its name.

    A page has the mask's page of its number, where the mask has pages, and otherwise the mask.
    """
    if not truth.is_dir():
        return [[] for _ in images]
    named: dict[tuple[Path, int | None], list[str]] = {}
    inside: dict[Path, list[str]] = {}
    for mask in with_pages(list_images(truth)):
        file, page = split_page(mask)
        name = Path(file).relative_to(truth).with_suffix("")
        inside.setdefault(name.parent, []).append(mask)
        for ending in _MASK_ENDINGS:
            name = name.with_name(name.name.removesuffix(ending) or name.name)
        for key in {page, None}:
            named.setdefault((name, key), []).append(mask)
    found = []
    for image in images:
        file, page = split_page(image)
        name = Path(file).relative_to(kind).with_suffix("")
        own = named.get((name, page)) or named.get((name, None)) or inside.get(name)
        found.append(own or [])
    return found
