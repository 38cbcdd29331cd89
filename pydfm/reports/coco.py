"""Regions as annotation tools read them: the JSON of COCO, with scores beside it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydfm import __version__
from pydfm.conformal.regions import Region


class RegionFile:
    """Collects the regions of images, and writes them as one file in COCO's form.

    Each image has "file_name" (relative to the folder), "width" and "height". Each annotation has
    "bbox" (left, top, width, height), "segmentation" (one polygon, holes filled), "area", and two
    that COCO does not know: "score", the peak of the map, and "mean". Coordinates are pixels of the
    upright image, as its EXIF orientation says. Images that could not be read are missing.

    Parameters
    ----------
    root : Path
        Folder of the images.
    threshold : float
        The value of maps that a region exceeds.
    """

    def __init__(self, root: Path, threshold: float) -> None:
        self._root = root
        self._threshold = threshold
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, path: str, size: tuple[int, int], regions: Sequence[Region]) -> None:
        """Take the regions of an image with `size`, its height and width in pixels."""
        number = len(self._images) + 1
        name = Path(os.path.relpath(path, self._root)).as_posix()
        self._images.append({"id": number, "file_name": name, "width": size[1], "height": size[0]})
        for region in regions:
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [round(value, 2) for value in region.box],
                    "segmentation": [region.polygon.round(2).ravel().tolist()],
                    "area": round(region.area, 2),
                    "iscrowd": 0,
                    "score": region.peak,
                    "mean": region.mean,
                }
            )

    def text(self) -> str:
        """Return the file's text."""
        content = {
            "info": {
                "description": "regions above the threshold of maps",
                "version": f"pydfm {__version__}",
                "map_threshold": self._threshold,
            },
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": 1, "name": "anomaly", "supercategory": "anomaly"}],
        }
        return json.dumps(content, indent=1) + "\n"
