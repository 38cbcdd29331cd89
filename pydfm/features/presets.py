"""Presets: what the parameters of `DFM` that are None stand for, where it is fitted to images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydfm.features.backbones import family_of


@dataclass(frozen=True)
class Preset:
    """A configuration of features and image scores under a name.

    Attributes
    ----------
    name : str
    summary : str
        What it is for.
    layers : str
        Which layers, in words.
    strides : {"all", "last"} or None
        Of the layers for maps (see `Family.map_layers`): all, the last, or none of them.
    pool : int or mapping of str to int, or None
        Kernel of the pooling; of a mapping, by network, and "" for all others.
    image_size : bool
        Whether the whole image counts, at the side that the family names, usually 256 pixels.
    image_score : str or None
    """

    name: str
    summary: str
    layers: str
    strides: str | None = None
    pool: int | Mapping[str, int] | None = None
    image_size: bool = False
    image_score: str | None = None

    def pool_of(self, backbone: str) -> int | None:
        """Return the kernel of the pooling for a network."""
        if isinstance(self.pool, Mapping):
            return self.pool.get(backbone, self.pool[""])
        return self.pool

    @property
    def _pools(self) -> str:
        if isinstance(self.pool, Mapping):
            own = ", ".join(f"{n} for {name}" for name, n in self.pool.items() if name)
            return f"{self.pool['']}; {own}"
        return "none" if self.pool is None else str(self.pool)

    def cells(self) -> tuple[str, str, str, str]:
        """Return layers, pooling, images and image score in words."""
        size = "whole, 256 x 256" if self.image_size else "256, the central 224 x 224"
        score = "the plain sum" if self.image_score == "sum" else "calibrated where it has maps"
        return self.layers, self._pools, size, score

    def describe(self) -> str:
        """Return the same as a line."""
        layers, pool, size, score = self.cells()
        return f"{layers}; pool {pool}; images {size}; image score {score}"


PRESETS: Final = {
    preset.name: preset
    for preset in (
        Preset(
            "defects",
            "Finds defects, and shows where they are: the default.",
            "those of stride 8 and 16, or a transformer's block at 60 % of the depth",
            "all",
            pool=2,
            image_size=True,
        ),
        Preset(
            "paper",
            "Ahuja et al. 2019: tells kinds of images apart, beside a classifier.",
            "the penultimate layer",
        ),
        Preset(
            "anomalib",
            "anomalib's `Dfm`, whose published tables it stands beside.",
            "that of stride 16",
            "last",
            pool={"resnet18": 2, "resnet34": 2, "": 4},
            image_size=True,
            image_score="sum",
        ),
    )
}
"""By name."""


def resolve_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a fit to images, those that are None as the preset has them.

    What is given wins. The pooling of a preset belongs to its layers, and to maps that are
    flattened. A preset leaves networks without known layers for maps as they are.

    Parameters
    ----------
    values : mapping
        All parameters of `DFM` by name, each in its range.

    Raises
    ------
    ValueError
        If a parameter contradicts the preset, or the preset needs layers that are not known.
    """
    found, preset = dict(values), PRESETS[values["preset"]]
    if found["image_score"] is None:
        found["image_score"] = preset.image_score
        if preset.image_score == "sum" and found["top_share"] is not None:
            raise ValueError(
                f"top_share is {found['top_share']!r}, and preset={preset.name!r} scores images by "
                "a sum, which takes no share; pass image_score too, or leave top_share out"
            )
    if preset.strides is None:
        return found
    backbone = found["backbone"]
    layers = None
    if isinstance(backbone, str | os.PathLike):
        layers = family_of(backbone).map_layers(os.fspath(backbone))
    if layers is None:
        if found["layers"] is None and preset.strides == "last":
            named = backbone if isinstance(backbone, str) else type(backbone).__name__
            raise ValueError(
                f"preset is {preset.name!r}, but the layers of backbone {named!r} that have maps "
                "are not known; pass layers"
            )
        return found
    name = os.fspath(backbone)
    if found["layers"] is None:
        found["layers"] = layers if preset.strides == "all" else layers[-1:]
        if found["pool"] is None and found["spatial"] == "flatten":
            found["pool"] = preset.pool_of(name)
    if found["image_size"] is None and preset.image_size:
        found["image_size"] = family_of(backbone).map_size(name)
    return found


def table() -> tuple[Sequence[str], list[Sequence[str]]]:
    """Return the header and the rows of the guide's table of presets."""
    header = ("preset", "layers", "pool", "images", "image score", "what it is for")
    rows = [(f"`{p.name!r}`", *p.cells(), p.summary) for p in PRESETS.values()]
    return header, list(rows)
