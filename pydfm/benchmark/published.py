"""Figures that others published, from the file ``published.toml`` beside this module."""

from functools import cache
from importlib.resources import files
from typing import Any

from pydfm.benchmark.configuration import parse_toml


@cache
def published() -> dict[str, Any]:
    """Return the content of the file: "source", "categories" and "tables"."""
    return parse_toml((files("pydfm.benchmark") / "published.toml").read_text(encoding="utf-8"))


def find_figures(backbone: str, edition: str, metric: str) -> dict[str, float]:
    """Return the published figures by category; empty where there are none."""
    key = (backbone, edition, metric)
    for table in published()["tables"]:
        if (table["backbone"], table["edition"], table["metric"]) == key:
            return dict(zip(published()["categories"], table["values"], strict=True))
    return {}
