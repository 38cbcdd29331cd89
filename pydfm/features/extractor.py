"""Features of images: preprocessing and backbone in one, described by a FeatureSpec."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pydfm.features.backbones import AS_SAVED, Family, Network, family_saved_as, load_network
from pydfm.features.grid import Grid
from pydfm.features.inputs.arrays import FeatureSource
from pydfm.features.inputs.sources import Batch, ImageSource, Look
from pydfm.features.onnx.choice import takes_onnx
from pydfm.features.onnx.network import OnnxBackbone
from pydfm.features.onnx.store import key_of, read_graph, write_graph
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_integer
from pydfm.runtime.threads import resolve_threads

if TYPE_CHECKING:
    import torch

    from pydfm.features.network import Backbone
    from pydfm.features.taps import Tapped

# Indices of rows in their source, their features (B, D), and the pixels of images.
FeatureBatch: TypeAlias = tuple[slice | list[int], NDArray[Any], NDArray[Any] | None]

# Batches that a GPU has been given beside the one that is used.
_AHEAD: Final = 2


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of an image depend on.

    Attributes
    ----------
    backbone : str
        Name of the network, the path of a TorchScript file, or ``"module:CLASS"``.
    weights : str or None
        Name of the weights, a path, or None where they are random or the module's own.
    layers : tuple of str
        Layers that the features are taken from.
    grids : tuple of Grid
        Shape of each layer's features, in the order of their columns.
    spatial : str
        Form of the features: averaged over positions, all of them, or by position.
    pool : int, tuple of int or None
        Kernel of the average pooling, one for all layers or one for each.
    precision : str
        Type of the network's weights and activations.
    random_state : int
        Seed of random weights.
    preprocessing : Preprocessing
        Preprocessing of the images.
    sha256 : str
        Hash of the tensors that the features depend on, or of the TorchScript file.
    layout : {"auto", "channels_first", "channels_last"}
        Order of the sides of the layers' maps.
    tokens : int or None
        Number of tokens before those of patches; None where it was seen.
    runtime : {"torch", "onnx"}
        What the network ran in at the fit. Specifications that differ in nothing else are equal,
        since features agree.
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
    layout: str = "auto"
    tokens: int | None = None
    runtime: str = field(default="torch", compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """How features are taken of the layers, by the names of the parameters."""
        return {name: getattr(self, name) for name in ("spatial", "pool", "layout", "tokens")}

    @property
    def n_features(self) -> int:
        """Number of features per row, of all layers together."""
        return sum(grid.size for grid in self.grids)

    def summary(self) -> str:
        """Return network, layers, pooling and size of the images in words."""
        height, width = self.preprocessing.size
        pool = "" if self.pool is None else f"pool {self.pool}, "
        return f"{self.backbone}, {' + '.join(self.layers)}, {pool}{height} x {width} pixels"

    @property
    def needs_module(self) -> bool:
        """Whether the backbone is a module of the caller's, which no file contains."""
        return family_saved_as(self.backbone).in_memory

    def needed_files(
        self,
        backbone: Any = None,
        weights: "str | os.PathLike[str] | None" = AS_SAVED,
    ) -> dict[str, str]:
        """Return the files that `Extractor.rebuild` reads, by the parameter that can name another.

        Parameters
        ----------
        backbone, weights : optional
            As for `Extractor.rebuild`.

        Returns
        -------
        dict
            Paths, at most one for each of "backbone" and "weights". They may not exist.
        """
        family = family_saved_as(self.backbone)
        return family.needed_files(self.backbone, self.weights, backbone, weights)


class Extractor:
    """A backbone with the preprocessing it needs.

    Attributes
    ----------
    spec : FeatureSpec
        Everything that the features depend on.
    """

    def __init__(
        self, backbone: "Backbone | OnnxBackbone", spec: FeatureSpec, runtime: str = "auto"
    ) -> None:
        self.spec = spec
        self._backbone = backbone
        self._asked = runtime

    @property
    def device(self) -> str:
        """Device that the backbone runs on, such as "cpu" or "cuda"."""
        return str(self._backbone.device)

    @property
    def runtime(self) -> str:
        """What the backbone runs in, "torch" or "onnx"."""
        return self._backbone.runtime

    def serves(
        self, runtime: str, device: "str | torch.device | None", n_threads: int | None
    ) -> bool:
        """Whether the backbone runs as these parameters of `DFM` say."""
        if runtime not in (self._asked, self.runtime) or not self._backbone.runs_on(device):
            return False
        own = self._backbone.n_threads
        return own is None or own == resolve_threads(n_threads)

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
        intensity: str | tuple[float, float] | None = None,
        layout: str = "auto",
        tokens: int | None = None,
        runtime: str = "auto",
        n_threads: int | None = None,
    ) -> "Extractor":
        """Build an extractor from the parameters of a `DFM`; see there."""
        # Wrong parameters raise before anything is downloaded.
        Preprocessing().with_changes(image_size, mean, std)
        network = load_network(
            backbone, weights, layers, random_state=random_state, progress=progress
        )
        preprocessing = replace(
            network.preprocessing.with_changes(image_size, mean, std), intensity=intensity
        )
        ready = _ready(
            network,
            preprocessing,
            {"spatial": spatial, "pool": pool, "layout": layout, "tokens": tokens},
            device=device,
            precision=precision,
            runtime=runtime,
            n_threads=n_threads,
        )
        return cls(
            ready,
            FeatureSpec(
                backbone=network.backbone,
                weights=network.weights,
                layers=network.layers,
                grids=ready.grids,
                spatial=spatial,
                pool=tuple(pool) if isinstance(pool, Sequence) else pool,
                precision=precision,
                random_state=random_state,
                preprocessing=preprocessing,
                sha256=network.sha256,
                layout=layout,
                tokens=tokens,
                runtime=ready.runtime,
            ),
            runtime,
        )

    @classmethod
    def rebuild(
        cls,
        spec: FeatureSpec,
        *,
        backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
        weights: "str | os.PathLike[str] | None" = AS_SAVED,
        device: "str | torch.device | None" = None,
        progress: bool = False,
        runtime: str = "auto",
        n_threads: int | None = None,
    ) -> "Extractor":
        """Build the extractor that `spec` describes once more.

        Where its graph is kept, neither torch nor the weights are needed.

        Parameters
        ----------
        spec : FeatureSpec
            Description of the features.
        backbone, weights : optional
            Their place today, if it is not the one in `spec`. A module of the caller's must be
            passed.
        device, progress, runtime, n_threads
            As for `build`.

        Raises
        ------
        ValueError
            If these are not the weights that `spec` was made with.
        """
        settings = spec.settings
        if backbone is None and weights == AS_SAVED:
            kept = _kept(spec, settings, device, runtime, n_threads)
            if kept is not None:
                return cls(kept, spec, runtime)
        network = _loaded(spec, backbone, weights, progress=progress)
        ready = _ready(
            network,
            spec.preprocessing,
            settings,
            device=device,
            precision=spec.precision,
            runtime=runtime,
            n_threads=n_threads,
            known=spec.grids,
        )
        if ready.grids != spec.grids:
            raise ValueError(
                f"backbone is {network.name}, whose layers give {_sizes(ready.grids)} per image, "
                f"and not {_sizes(spec.grids)} as at the fit; pass that of the fit, or fit again"
            )
        return cls(ready, spec, runtime)

    def with_rotations(
        self, features: NDArray[np.float32], pixels: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return images turned by 0, 90, 180 and 270 degrees, and their features.

        Parameters
        ----------
        features : ndarray of shape (B, D)
            Those of the images as they are.
        pixels : ndarray of shape (B, 3, h, h)

        Returns
        -------
        features : ndarray of shape (4 B, D)
        pixels : ndarray of shape (4 B, 3, h, h)
            The images as they are, then all turned by 90 degrees, and so on.

        Raises
        ------
        ValueError
            If the images are no squares, or the network gives NaN.
        """
        height, width = self.spec.preprocessing.size
        if height != width:
            raise ValueError(
                f"augment is 'rotate', which turns images by 90 degrees, but they have {height} x "
                f"{width} pixels; pass one number as image_size"
            )
        turned = [np.ascontiguousarray(np.rot90(pixels, k, axes=(2, 3))) for k in (1, 2, 3)]
        found = [features, *(self._backbone(copies) for copies in turned)]
        if not all(np.isfinite(own).all() for own in found):
            raise ValueError("augment is 'rotate', and the network gives NaN for a turned image")
        return np.concatenate(found), np.concatenate([pixels, *turned])

    def batches(
        self, source: ImageSource, batch_size: int, n_threads: int
    ) -> Iterator[tuple[Batch, NDArray[np.float32]]]:
        """Yield batches of B images, and their features (B, D).

        Parameters
        ----------
        source : ImageSource
            The images.
        batch_size : int
            Largest number of images in a batch.
        n_threads : int
            Number of threads that decode images.
        """
        computed = self._computed(source.batches(self.spec.preprocessing, batch_size, n_threads))
        for batch, features, all_finite in computed:
            if not all_finite:
                finite = np.isfinite(features).all(axis=1)
                for i in np.flatnonzero(~finite):
                    place = source.place(batch.indices[i])
                    source.skip(
                        batch.indices[i], f"the network gives NaN or infinity for image {place}"
                    )
                kept = np.flatnonzero(finite).tolist()
                features = features[kept]
                batch = Batch(batch.pixels[kept], [batch.indices[i] for i in kept])
            if batch.indices:
                yield batch, features

    def _computed(
        self, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, NDArray[np.float32], bool]]:
        """Yield batches, their features and whether these are finite.

        A GPU works on the next batches while one is used.
        """
        ahead = _AHEAD if self.device.startswith("cuda") else 0
        begun: deque[tuple[Batch, Callable[[], tuple[NDArray[np.float32], bool]]]] = deque()
        for batch in batches:
            begun.append((batch, self._backbone.start(batch.pixels)))
            if len(begun) > ahead:
                batch, wait = begun.popleft()
                yield batch, *wait()
        for batch, wait in begun:
            yield batch, *wait()


def _has_name(family: Family) -> bool:
    """Whether its networks are told by a name and their weights, so that a graph can be kept."""
    return not family.in_memory and not family.runs_code


def tapped_of(
    spec: FeatureSpec,
    *,
    backbone: "str | os.PathLike[str] | torch.nn.Module | None" = None,
    weights: "str | os.PathLike[str] | None" = AS_SAVED,
) -> "Tapped":
    """Return the network that `spec` describes, with taps, on the CPU and in float32.

    Parameters
    ----------
    spec, backbone, weights
        As for `Extractor.rebuild`.

    Raises
    ------
    ValueError
        If these are not the weights that `spec` was made with.
    """
    from pydfm.features.network import tap_on_cpu

    return tap_on_cpu(
        _loaded(spec, backbone, weights),
        spec.preprocessing,
        known=spec.grids,
        **spec.settings,
    )


def _loaded(spec: FeatureSpec, backbone: Any, weights: Any, *, progress: bool = False) -> Network:
    """Return the network of `spec`, once its weights are found to be those of the fit."""
    if backbone is None:
        backbone = family_saved_as(spec.backbone).restore(spec.backbone)
    if weights == AS_SAVED:
        # A file that contains its weights may have moved.
        own = isinstance(backbone, str | os.PathLike) and spec.weights == spec.backbone
        weights = os.fspath(backbone) if own else spec.weights
    network = load_network(
        backbone, weights, spec.layers, random_state=spec.random_state, progress=progress
    )
    if network.sha256 != spec.sha256:
        raise ValueError(
            f"weights: those of {network.name} ({network.weights or 'random or its own'}) are not "
            f"the ones the model was fitted with (sha256 {network.sha256[:12]}, not "
            f"{spec.sha256[:12]}); pass those, or fit again"
        )
    return network


def _ready(
    network: Network,
    preprocessing: Preprocessing,
    settings: dict[str, Any],
    *,
    device: "str | torch.device | None",
    precision: str,
    runtime: str,
    n_threads: int | None,
    known: Sequence[Grid] | None = None,
) -> "Backbone | OnnxBackbone":
    """Return `network` ready to use, in torch or onnxruntime."""
    named = _has_name(network.family)
    if not takes_onnx(runtime, device, precision, named=named):
        from pydfm.features.network import Backbone

        return Backbone(
            network, preprocessing, device=device, precision=precision, known=known, **settings
        )
    key = key_of(
        network.family,
        backbone=network.backbone,
        sha256=network.sha256,
        layers=network.layers,
        preprocessing=preprocessing,
        settings=settings,
    )
    graph = read_graph(key) if named else None
    if graph is None:
        from pydfm.features.network import Backbone, tap_on_cpu
        from pydfm.features.onnx.export import ExportError, export

        tapped = tap_on_cpu(network, preprocessing, known=known, **settings)
        try:
            graph = export(tapped)
        except ExportError as error:
            if runtime == "onnx":
                raise ValueError(
                    f"runtime is 'onnx', and {network.name} cannot be exported to ONNX ({error}); "
                    "pass runtime='torch', or 'auto'"
                ) from error
            warnings.warn(
                f"{network.name} could not be exported to ONNX ({error}); it runs in torch, as "
                "with runtime='torch'",
                stacklevel=5,
            )
            return Backbone.of(tapped)
        if named and not tapped.taps.unsure:
            write_graph(key, graph)
    return OnnxBackbone(graph, resolve_threads(n_threads), by_choice=runtime == "onnx")


def _kept(
    spec: FeatureSpec,
    settings: dict[str, Any],
    device: "str | torch.device | None",
    runtime: str,
    n_threads: int | None,
) -> OnnxBackbone | None:
    """Return the network of `spec` from its graph, if that is what is asked for and is kept."""
    family = family_saved_as(spec.backbone)
    named = _has_name(family)
    if not named or not takes_onnx(runtime, device, spec.precision, named=named):
        return None
    key = key_of(
        family,
        backbone=spec.backbone,
        sha256=spec.sha256,
        layers=spec.layers,
        preprocessing=spec.preprocessing,
        settings=settings,
    )
    graph = read_graph(key)
    if graph is None or graph.grids != spec.grids:
        return None
    return OnnxBackbone(graph, resolve_threads(n_threads), by_choice=runtime == "onnx")


def _sizes(grids: Sequence[Grid]) -> str:
    return ", ".join(f"{grid.channels} x {grid.height} x {grid.width}" for grid in grids)


def feature_batches(
    source: FeatureSource | ImageSource,
    extractor: Extractor | None,
    *,
    batch_size: int,
    n_threads: int | None,
    task: str,
    verbose: bool,
    n_features: int | None = None,
    checkpoint: "str | os.PathLike[str] | None" = None,
    max_pixels: int | None = None,
    look: "Look | None" = None,
) -> Iterator[FeatureBatch]:
    """Yield the features of a source, batch by batch.

    Parameters
    ----------
    source : FeatureSource or ImageSource
        The rows or images.
    extractor : Extractor or None
        Extractor of the features of images.
    batch_size : int
        Largest number of images in a batch. Features come in the batches of their source.
    n_threads : int or None
        Number of threads that decode images; None for all cores.
    task : str
        Name of the progress bar.
    verbose : bool
        Show a progress bar for images, where stderr is a terminal.
    n_features : int, optional
        Number of features per row that a fitted model expects of a `FeatureSource`.
    checkpoint : path, optional
        Folder of a `Checkpoint`, which keeps the features of images. Those that are there come
        first and are not computed again.
    max_pixels : int, optional
        Largest number of pixels of a file; None for Pillow's bound.
    look : callable, optional
        Called with the index and the PIL image of each image as it is decoded; see `ImageSource`.

    Yields
    ------
    places : slice or list of int
        Indices of the B rows or images in the source: a slice for rows, a list for images.
    features : array of shape (B, D)
        Of any type for rows; float32 for images.
    pixels : array of shape (B, 3, h, w), or None
        The images after preprocessing; None for rows, and for features from a checkpoint.

    Raises
    ------
    ImageError
        If the network gives NaN for an image, unless images are skipped.
    ValueError, TypeError
        If a row or image is wrong, or the checkpoint is of something else.
    """
    if isinstance(source, FeatureSource):
        for features in source.batches(n_features):
            yield slice(source.count - len(features), source.count), features, None
        return
    assert extractor is not None
    source.max_pixels = max_pixels
    source.look = look
    from tqdm import tqdm

    size = check_integer("batch_size", batch_size, 1)
    threads = resolve_threads(n_threads)
    # disable=None hides the bar where stderr is not a terminal.
    disable = None if verbose else True
    with tqdm(total=source.total, desc=task, unit="img", delay=1, disable=disable) as bar:
        for batch in _image_features(source, extractor, size, threads, checkpoint):
            yield batch
            bar.update(source.count - bar.n)


def _image_features(
    source: ImageSource,
    extractor: Extractor,
    batch_size: int,
    n_threads: int,
    checkpoint: "str | os.PathLike[str] | None",
) -> Iterator[FeatureBatch]:
    """Yield indices, features and pixels of images, those in the checkpoint first."""
    batches = extractor.batches(source, batch_size, n_threads)
    if checkpoint is None:
        for batch, features in batches:
            yield batch.indices, features, batch.pixels
        return
    from pydfm.features.cache import Checkpoint

    settings = asdict(extractor.spec)
    del settings["runtime"]  # features of one may be continued with those of the other
    cache = Checkpoint(checkpoint, settings, source)
    for places, features in cache.read(source):
        yield places, features, None
    n_skipped = len(source.skipped)
    for batch, features in batches:
        # The source may have read ahead: images that it skipped after this batch come with the
        # next one.
        end = batch.indices[-1] + 1
        skipped = [one for one in source.skipped[n_skipped:] if one.index < end]
        n_skipped += len(skipped)
        cache.write(batch.indices, features, skipped, end)
        yield batch.indices, features, batch.pixels
