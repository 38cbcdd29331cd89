"""Folders in MVTec AD's layout with their masks, the images of the demo, and a model's metrics."""

from pydfm.datasets.category import Category, find_categories, is_category, load_category
from pydfm.datasets.demo import Demo, load_demo
from pydfm.datasets.masks import load_masks

__all__ = [
    "Category",
    "Demo",
    "find_categories",
    "is_category",
    "load_category",
    "load_demo",
    "load_masks",
]
