"""Any source of images -> batches of pixels: folders, files, PIL pictures, arrays, loaders."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features import FeatureSource, as_array, is_array
from pydfm.preprocessing import Preprocessing

EXTENSIONS: Final = frozenset(
    {".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm"}
    | {".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)

_FORMS = (
    "features (N, D), images (N, 3, H, W), a folder, a path or a list of paths, a list of PIL "
    "images, or a DataLoader"
)


class ImageError(ValueError):
    """A picture that cannot be read; the message names it and says why."""


@dataclass(frozen=True)
class Skipped:
    """A picture left out under ``on_error="skip"``.

    Attributes
    ----------
    index : int
        Its place in the source, from 0.
    reason : str
        What is wrong with it, with its path where it has one.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """Pixels (B, 3, h, w), uint8 or float32 in [0, 1], and the places of the pictures."""

    pixels: NDArray[Any]
    indices: list[int]


class ImageSource:
    """Pictures of one kind or other, read in batches, once.

    Parameters
    ----------
    X : sequence of paths or of PIL images, array, tensor, or iterable of batches or pictures
    on_error : {"raise", "skip"}
        What to do about a picture that cannot be read.
    total : int, optional
        How many pictures there are, where that is known beforehand and X does not tell.

    Attributes
    ----------
    names : list of str or None
        Paths, where the pictures are files.
    total : int or None
    count : int
        How many were read or skipped so far; files are read from there on.
    skipped : list of Skipped
        Those left out so far.
    """

    def __init__(self, X: Any, on_error: str = "raise", total: int | None = None) -> None:
        self.names: list[str] | None = None
        self.total = total
        self.count = 0
        self.skipped: list[Skipped] = []
        self._skip = on_error == "skip"
        if is_array(X):
            X = X[None] if X.ndim == 3 else X
            _check_images(X)
            self.total = len(X)
            X = [X]
        elif isinstance(X, list | tuple):
            self.total = sum(len(x) if getattr(x, "ndim", 0) == 4 else 1 for x in X)
            if all(isinstance(path, str | os.PathLike) for path in X):
                self.names = [os.fspath(path) for path in X]
        self._elements: Iterable[Any] = X
        if self.total == 0:
            raise ValueError(f"X is empty; it must be {_FORMS}")

    def batches(
        self, preprocessing: Preprocessing, batch_size: int, n_threads: int
    ) -> Iterator[Batch]:
        """Yield the pictures in order, at most `batch_size` at a time, read on `n_threads`.

        Raises
        ------
        ImageError
            At a picture that cannot be read, unless it is to be skipped.
        ValueError, TypeError
            At arrays that are not images.
        """
        if self.names is not None:
            yield from self._read(self.names[self.count :], preprocessing, batch_size, n_threads)
            return
        for group in _grouped(self._elements, batch_size):
            if isinstance(group, list):
                yield from self._read(group, preprocessing, batch_size, n_threads)
                continue
            for begin in range(0, len(group), batch_size):
                part = group[begin : begin + batch_size]
                yield from self._convert(part, preprocessing, batch_size, n_threads)

    def _convert(
        self, part: Any, preprocessing: Preprocessing, batch_size: int, n_threads: int
    ) -> Iterator[Batch]:
        array = _to_numpy(part)
        _check_images(array)
        if array.dtype == np.uint8:
            # As files are: through PIL, so that a picture scores the same however it comes.
            pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in array]
            yield from self._read(pictures, preprocessing, batch_size, n_threads)
        else:
            # Writeable, or torch warns.
            floats = np.require(array, np.float32, ("C_CONTIGUOUS", "WRITEABLE"))
            preprocessing.check_range(floats, self.count)
            yield Batch(preprocessing.from_floats(floats), self._places(len(part)))

    def _places(self, n: int) -> list[int]:
        self.count += n
        return list(range(self.count - n, self.count))

    def _read(
        self, items: Sequence[Any], preprocessing: Preprocessing, batch_size: int, n_threads: int
    ) -> Iterator[Batch]:
        pixels: list[NDArray[np.uint8]] = []
        indices: list[int] = []
        for result in _ahead(
            lambda item: read_image(item, preprocessing.from_pil), items, n_threads, 2 * batch_size
        ):
            (index,) = self._places(1)
            try:
                pixels.append(result())
                indices.append(index)
            except ImageError as error:
                place = f"'{self.names[index]}'" if self.names is not None else f"{index} of X"
                reason = f"cannot read image {place}: {error}"
                if not self._skip:
                    raise ImageError(reason) from error
                self.skipped.append(Skipped(index, reason))
            if len(pixels) == batch_size:
                yield Batch(np.stack(pixels), indices)
                pixels, indices = [], []
        if pixels:
            yield Batch(np.stack(pixels), indices)


def open_source(
    X: Any, on_error: str, labels: list[Any] | None = None
) -> "FeatureSource | ImageSource":
    """Tell what `X` holds, features or images, and open it for reading in batches.

    Parameters
    ----------
    labels : list, optional
        What the labels of a loader's batches are added to as they are read.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If it is empty, not there, or neither; or yields no labels where they are asked for.
    """
    if isinstance(X, Image.Image):
        X = [X]
    elif isinstance(X, str | os.PathLike):
        X = list_images(X)
    elif isinstance(X, np.ndarray) and X.dtype.kind == "U":
        X = X.ravel().tolist()
    loader = not (isinstance(X, list | tuple) or hasattr(X, "__array__") or hasattr(X, "toarray"))
    if labels is not None and (not loader or is_array(X)):
        raise ValueError(
            "labels is 'loader', but X is no loader; pass the labels themselves, an array (N,)"
        )
    if is_array(X):
        return ImageSource(X, on_error) if X.ndim in (3, 4) else FeatureSource([X])
    if isinstance(X, list | tuple):
        first = X[0] if X else None
        pictures = isinstance(first, str | os.PathLike | Image.Image)
        if pictures or getattr(first, "ndim", 0) >= 3:
            return ImageSource(X, on_error)
        return FeatureSource([X])
    if not loader:  # data frames, sparse matrices
        return FeatureSource([X])
    if isinstance(X, Iterable):
        elements = iter(X)
    elif hasattr(X, "__getitem__") and hasattr(X, "__len__"):  # a Dataset, which may lack an end
        elements = map(X.__getitem__, range(len(X)))
    else:
        raise TypeError(f"X is {type(X).__name__}; it must be {_FORMS}")
    first = next(elements, None)
    if first is None:
        raise ValueError(f"X is empty; it must be {_FORMS}")
    everything: Iterable[Any] = chain([first], elements)
    if labels is not None:
        everything = _with_labels_kept(everything, labels)
    data = without_labels(first)
    if is_array(data) and data.ndim == 2:
        return FeatureSource(map(without_labels, everything))
    return ImageSource(everything, on_error, total=_length(getattr(X, "dataset", X)))


def list_images(path: str | os.PathLike[str]) -> list[str]:
    """Paths of the pictures in the folder `path`, searched in depth and sorted, or just `path`.

    Hidden files and folders are left out, links are followed, and a picture is known by its
    extension.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If the folder holds no pictures.
    """
    root = Path(path)
    if root.is_file():
        return [str(root)]
    if not root.is_dir():
        raise FileNotFoundError(f"there is no file or folder '{root}'")
    found: list[str] = []
    others = 0
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, onerror=_warn_of, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in EXTENSIONS:
                found.append(str(Path(folder) / name))
            else:
                others += 1
    if not found:
        beside = f" (only {others} other files)" if others else ""
        raise ValueError(
            f"the folder '{root}' holds no images{beside}; it must hold files that end in "
            + ", ".join(sorted(EXTENSIONS))
        )
    return sorted(found)


def _warn_of(error: OSError) -> None:
    warnings.warn(f"a folder is left out, which cannot be read: {error}", stacklevel=3)


def read_image(source: Any, convert: Callable[[Image.Image], Any]) -> Any:
    """Open `source` (a path or a PIL image) and return what `convert` makes of it.

    Raises
    ------
    ImageError
        If it cannot be opened or decoded.
    """
    try:
        if isinstance(source, Image.Image):
            return convert(source)
        if Path(source).exists() and not Path(source).is_file():  # a pipe may wait for ever
            raise ImageError("it is not a file")
        with Image.open(source) as image:
            return convert(image)
    except Exception as error:  # PIL raises nearly everything for one broken file or another
        reason = "it is not an image" if "cannot identify" in str(error) else str(error)
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else reason
        raise ImageError(reason or type(error).__name__) from error


def _ahead(
    function: Callable[[Any], Any], items: Iterable[Any], n_threads: int, depth: int
) -> Iterator[Callable[[], Any]]:
    """Call `function` on `n_threads`, up to `depth` items ahead of the reader; yield in order."""
    executor = ThreadPoolExecutor(n_threads, thread_name_prefix="pydfm-read")
    coming = iter(items)
    waiting = deque(executor.submit(function, item) for item in islice(coming, depth))
    try:
        while waiting:
            yield waiting.popleft().result
            waiting.extend(executor.submit(function, item) for item in islice(coming, 1))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def without_labels(element: Any) -> Any:
    """Return the data of what a loader yields: data alone, or a pair of data and labels."""
    return element[0] if isinstance(element, list | tuple) and len(element) else element


def _with_labels_kept(elements: Iterable[Any], labels: list[Any]) -> Iterator[Any]:
    """Yield the data of what a loader yields, adding their labels to `labels`."""
    for element in elements:
        if not isinstance(element, list | tuple) or len(element) < 2:
            raise ValueError(
                "labels is 'loader', but X yields no labels; it must yield pairs (batch, labels)"
            )
        data, theirs = element[0], as_array(element[1])
        batch = is_array(data) and data.ndim in (2, 4)
        if theirs.shape != ((len(data),) if batch else ()):
            raise ValueError(
                f"labels is 'loader', but X yields labels of the shape {theirs.shape} with "
                + (f"a batch of {len(data)}; give one for each" if batch else "one picture")
            )
        labels.extend(theirs.tolist() if batch else [theirs.item()])
        yield data


def _grouped(batches: Iterable[Any], batch_size: int) -> Iterator[Any]:
    """Yield what a loader does as arrays (B, 3, H, W), and single pictures in lists."""
    singles: list[Any] = []
    kind: Any = None

    def flush() -> Iterator[Any]:
        if singles:
            yield list(singles) if kind == "picture" else np.stack(singles)
            singles.clear()

    for element in batches:
        data = without_labels(element)
        if isinstance(data, str | os.PathLike | Image.Image):
            new_kind: Any = "picture"
        elif is_array(data) and data.ndim == 4:
            yield from flush()
            yield data
            continue
        elif is_array(data) and data.ndim == 3:
            data = _to_numpy(data)
            new_kind = (data.shape, data.dtype)
        else:
            found = f"the shape {tuple(data.shape)}" if is_array(data) else type(data).__name__
            raise TypeError(
                f"X yields batches of {found}; they must all be images (B, 3, H, W) or pairs of "
                "images and labels, or all be features (B, D)"
            )
        if new_kind != kind or len(singles) == batch_size:
            yield from flush()
            kind = new_kind
        singles.append(data)
    yield from flush()


def _check_images(array: Any) -> None:
    shape = tuple(array.shape)
    dtype = str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")
    if len(shape) != 4 or shape[1] != 3:
        hint = ""
        if len(shape) == 4 and shape[3] == 3:
            hint = "; the channels come last here: pass X.transpose(0, 3, 1, 2)"
        elif len(shape) == 4 and shape[1] == 1:
            hint = "; repeat the grey channel: np.repeat(X, 3, axis=1)"
        raise ValueError(f"X has the shape {shape}; images must be (N, 3, H, W){hint}")
    if 0 in shape:
        raise ValueError(f"X has the shape {shape}; images must have pixels")
    if dtype != "uint8" and "float" not in dtype:
        raise TypeError(f"X has images of type {dtype}; they must be uint8, or float in [0, 1]")


def _to_numpy(image: Any) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        return image
    tensor = image.detach().cpu()
    return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:
        return None
