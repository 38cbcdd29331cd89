"""Features of a network's layers for batches of pixels, traced with TorchScript."""

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pydfm.features.backbones import Network
from pydfm.features.grid import Grid
from pydfm.features.taps import Tapped, Taps, tap
from pydfm.features.transforms import Preprocessing
from pydfm.runtime.checks import check_choice

PRECISIONS: Final = ("float32", "bfloat16", "float16")
LAYOUTS: Final = ("auto", "channels_first", "channels_last")

_jit: Any = torch.jit  # most of it has no types

_process = os.getpid()


class Backbone:
    """A network ready to use: normalisation, features of its layers, device and precision.

    Parameters
    ----------
    network : Network
        Its module is changed: it is moved to the device and gets hooks.
    preprocessing : Preprocessing
        Size of the pixels, and their mean and standard deviation.
    spatial : {"mean", "flatten", "patch"}
        With "mean", a layer's map is averaged over all positions.
    pool : int or sequence of int, optional
        Kernel and stride of the average pooling of the layers' maps, one for all or one for each.
    device : str or torch.device, optional
        Default CUDA where there is a GPU, else the CPU.
    precision : {"float32", "bfloat16", "float16"}
        Type of the network's weights and activations; features are always float32.
    layout : {"auto", "channels_first", "channels_last"}
        Order of the sides of the layers' maps; "auto" tells it by the aspect ratio of the images,
        and where both orders have it, by images of half the width.
    known : sequence of Grid, optional
        Shapes of the layers' features that a fit found, whose channels tell their order.
    tokens : int, optional
        Number of tokens before those of patches, in layers that give tokens (B, N, C).

    Attributes
    ----------
    device : torch.device
        Device that the network runs on.
    grids : tuple of Grid
        Shape of each layer's features, in the order of their columns.
    runtime : str
        "torch".
    """

    runtime = "torch"
    n_threads = None  # torch's own, of the process

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        *,
        spatial: str = "flatten",
        pool: int | Sequence[int] | None = None,
        device: "str | torch.device | None" = None,
        precision: str = "float32",
        layout: str = "auto",
        known: Sequence[Grid] | None = None,
        tokens: int | None = None,
    ) -> None:
        _survive_fork()
        check_choice("layout", layout, LAYOUTS)
        check_choice("precision", precision, PRECISIONS)
        tapped = tap(
            network,
            preprocessing,
            spatial=spatial,
            pool=pool,
            device=resolve_device(device),
            dtype=getattr(torch, precision),
            layout=layout,
            known=known,
            tokens=tokens,
        )
        self._take(tapped)

    @classmethod
    def of(cls, tapped: Tapped) -> "Backbone":
        """Return a backbone of a network that has its taps already."""
        backbone = cls.__new__(cls)
        backbone._take(tapped)
        return backbone

    def _take(self, tapped: Tapped) -> None:
        _survive_fork()
        self.device = tapped.example.device
        self.grids = tapped.grids
        self._dtype = tapped.example.dtype
        self._copies = _stream(self.device)
        shape = (1, 3, 1, 1)
        preprocessing = tapped.preprocessing
        self._mean = torch.tensor(preprocessing.mean, device=self.device).view(shape)
        self._std = torch.tensor(preprocessing.std, device=self.device).view(shape)
        self._features = _traced(tapped.taps, tapped.example)
        # Hooks, and perhaps the network's own code, keep what they find in the module.
        self._alone = threading.RLock() if self._features is tapped.taps else nullcontext()

    def runs_on(self, device: "str | torch.device | None") -> bool:
        """Whether this is where a backbone built with `device` would run."""
        wanted = resolve_device(device)
        return wanted.type == self.device.type and wanted.index in (None, self.device.index)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the features (B, D) of `pixels` (B, 3, h, w), uint8 or float32 in [0, 1].

        Raises
        ------
        MemoryError
            If the device has too little memory for the batch.
        """
        return self.start(pixels)()[0]

    def start(self, pixels: NDArray[Any]) -> Callable[[], tuple[NDArray[np.float32], bool]]:
        """Begin with a batch, and return a function that waits for its features.

        A GPU works on it meanwhile; a CPU has done so when this returns.

        Returns
        -------
        callable
            Returns the features (B, D), and whether all of them are finite.

        Raises
        ------
        MemoryError
            If the device has too little memory for the batch.
        """
        _survive_fork()
        try:
            with torch.inference_mode():
                batch = self._to_device(torch.from_numpy(pixels))
                scaled = batch.float().div_(255) if pixels.dtype == np.uint8 else batch
                batch = ((scaled - self._mean) / self._std).to(self._dtype)
                batch = batch.contiguous(memory_format=torch.channels_last)
                with self._alone:
                    found = self._features(batch).float()
                finite = torch.isfinite(found).all()
                if self._copies is None:
                    features = cast("NDArray[np.float32]", found.cpu().numpy())
                    all_finite = bool(finite)
                    return lambda: (features, all_finite)
                return self._copied_back(found, finite)
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryError(
                f"{self.device} has too little memory for {len(pixels)} images at once; "
                "pass a smaller batch_size"
            ) from error

    def _to_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return `pixels` on the device; a GPU copies them while it works on what came before."""
        if self._copies is None:
            return pixels.to(self.device)
        pinned = pixels.pin_memory()
        work = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            there = pinned.to(self.device, non_blocking=True)
        work.wait_stream(self._copies)
        there.record_stream(work)
        return there

    def _copied_back(
        self, found: torch.Tensor, finite: torch.Tensor
    ) -> Callable[[], tuple[NDArray[np.float32], bool]]:
        """Begin to copy features from the GPU, and return a function that waits for them."""
        features = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        all_finite = torch.empty((), dtype=torch.bool, pin_memory=True)
        features.copy_(found, non_blocking=True)
        all_finite.copy_(finite, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> tuple[NDArray[np.float32], bool]:
            done.synchronize()
            # Memory that the system must not move is for the next batch, not for keeping.
            kept = torch.empty_like(features, pin_memory=False).copy_(features)
            return cast("NDArray[np.float32]", kept.numpy()), bool(all_finite)

        return wait


def tap_on_cpu(
    network: Network, preprocessing: Preprocessing, *, layout: str = "auto", **options: Any
) -> Tapped:
    """Return `network` with taps on the CPU, in float32; the options are those of `Backbone`."""
    _survive_fork()
    check_choice("layout", layout, LAYOUTS)
    return tap(
        network,
        preprocessing,
        device=torch.device("cpu"),
        dtype=torch.float32,
        layout=layout,
        **options,
    )


def _traced(taps: Taps, example: torch.Tensor) -> Any:
    """Return `taps` traced, frozen and optimised, or as they are if they cannot be traced.

    TorchScript is deprecated, but works in every torch from 2.4 on. Only this function has to
    change when something else (torch.export, torch.compile) replaces it.
    """
    try:
        with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", _jit.TracerWarning)
            module = _jit.freeze(_jit.trace(taps, example, check_trace=False))
            if example.device.type == "cpu" and example.dtype == torch.float32:
                module = _jit.optimize_for_inference(module)
            sizes = [module(example[:n]).shape[0] for n in (1, 2)]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
    else:
        # Python code that looks at values is traced along one of its branches only.
        if not caught and sizes == [1, 2]:
            return module
        reason = "its trace holds for one batch size only"
        if caught:
            reason = str(caught[0].message).split(". ")[0]
    warnings.warn(
        f"the backbone could not be traced with TorchScript ({reason}); it runs as it is",
        stacklevel=5,
    )
    return taps


def _stream(device: torch.device) -> "torch.cuda.Stream | None":
    """Return a queue for copies to a GPU, beside that of its work; None for other devices."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _survive_fork() -> None:
    """Limit torch to one thread in a forked process.

    OpenMP's threads do not exist after a fork, and torch would wait for them for ever. A DataLoader
    does the same for its workers.
    """
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()


def resolve_device(device: "str | torch.device | None") -> torch.device:
    """Return `device`, checked, or the default where it is None."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(
            f"device is {device!r}, which cannot be used here ({reason}); pass 'cpu', or None to "
            "take a GPU where there is one"
        ) from error
    return resolved
