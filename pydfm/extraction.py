"""Images in, features out: preprocessing and backbone as one, described by a FeatureSpec."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pydfm.images import ImageSource
from pydfm.maps import Grid
from pydfm.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

    from pydfm.backbone import Backbone


@dataclass(frozen=True)
class FeatureSpec:
    """All that the features of an image depend on.

    Attributes
    ----------
    backbone : str
        torchvision's name, the path of a TorchScript file, or ``"module:CLASS"``.
    weights : str or None
        torchvision's name for the weights, a path, or None where they are random or the module's.
    layers : tuple of str
    grids : tuple of Grid
        What each layer gives, in the order of the columns.
    spatial : str
    pool : int, tuple of int or None
    precision : str
    random_state : int
    preprocessing : Preprocessing
    sha256 : str
        Of the tensors that the features depend on, or of the TorchScript file.
    """

    backbone: str
    weights: str | None
    layers: tuple[str, ...]
    grids: tuple[Grid, ...]
    spatial: str
    pool: int | tuple[int, ...] | None
    precision: str
    random_state: int
    preprocessing: Preprocessing
    sha256: str

    @property
    def n_features(self) -> int:
        """D, of all layers together."""
        return sum(grid.size for grid in self.grids)


class Extractor:
    """A backbone with the preprocessing it needs.

    Attributes
    ----------
    spec : FeatureSpec
    """

    def __init__(self, backbone: "Backbone", spec: FeatureSpec) -> None:
        self.spec = spec
        self._backbone = backbone

    @classmethod
    def build(
        cls,
        backbone: "str | os.PathLike[str] | torch.nn.Module",
        weights: "str | os.PathLike[str] | None",
        layers: str | Sequence[str] | None,
        *,
        spatial: str,
        pool: int | Sequence[int] | None,
        image_size: int | Sequence[int] | None,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        precision: str,
        random_state: int,
        device: "str | torch.device | None",
        progress: bool,
    ) -> "Extractor":
        """Build it from the parameters of a `DFM`, which see."""
        from pydfm.backbone import Backbone
        from pydfm.networks import load_network

        # Wrong parameters are told before anything is downloaded.
        Preprocessing().with_changes(image_size, mean, std)
        network = load_network(
            backbone, weights, layers, random_state=random_state, progress=progress
        )
        preprocessing = network.preprocessing.with_changes(image_size, mean, std)
        ready = Backbone(
            network,
            preprocessing,
            spatial=spatial,
            pool=pool,
            device=device,
            precision=precision,
        )
        return cls(
            ready,
            FeatureSpec(
                backbone=os.fspath(backbone)
                if isinstance(backbone, str | os.PathLike)
                else network.name,
                weights=network.weights,
                layers=network.layers,
                grids=ready.grids,
                spatial=spatial,
                pool=tuple(pool) if isinstance(pool, Sequence) else pool,
                precision=precision,
                random_state=random_state,
                preprocessing=preprocessing,
                sha256=network.sha256,
            ),
        )

    @classmethod
    def rebuild(
        cls,
        spec: FeatureSpec,
        *,
        backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
        weights: "str | os.PathLike[str] | None" = "as saved",
        device: "str | torch.device | None" = None,
        progress: bool = False,
    ) -> "Extractor":
        """Build again what made the features that `spec` describes.

        Parameters
        ----------
        spec : FeatureSpec
        backbone, weights : optional
            Where to find them now, if elsewhere than `spec` says; a module of one's own must be
            given.

        Raises
        ------
        ValueError
            If these are not the weights that `spec` was made with.
        """
        from pydfm.backbone import Backbone
        from pydfm.networks import load_network

        if backbone is None:
            if spec.backbone.startswith("module:"):
                raise ValueError(
                    f"backbone is needed: the model was fitted with a module of the class "
                    f"{spec.backbone.removeprefix('module:')}, which is not in the file; pass it"
                )
            backbone = spec.backbone
        chosen = spec.weights if weights == "as saved" else weights
        network = load_network(
            backbone,
            chosen,
            spec.layers,
            random_state=spec.random_state,
            progress=progress,
        )
        if network.sha256 != spec.sha256:
            raise ValueError(
                f"weights: those of {network.name} ({network.weights or 'random or its own'}) are "
                f"not the ones the model was fitted with (sha256 {network.sha256[:12]}, not "
                f"{spec.sha256[:12]}); pass those, or fit again"
            )
        ready = Backbone(
            network,
            spec.preprocessing,
            spatial=spec.spatial,
            pool=spec.pool,
            device=device,
            precision=spec.precision,
        )
        return cls(ready, spec)

    def batches(
        self, source: ImageSource, batch_size: int, n_threads: int
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Yield the places in `source` and the features (B, D) of the images there."""
        for batch in source.batches(self.spec.preprocessing, batch_size, n_threads):
            yield batch.indices, self._backbone(batch.pixels)
