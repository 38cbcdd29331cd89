"""Sources of features or images, read in batches: folders, files, PIL images, arrays, loaders."""

import io
import os
import warnings
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.features.inputs.arrays import FeatureSource, as_array, check_unmasked, is_array, plain
from pydfm.features.inputs.images import ImageError, extensions, list_images, read_image
from pydfm.features.inputs.labels import RowLabels
from pydfm.features.pictures.intensity import is_integer
from pydfm.features.pictures.pages import split_page, with_pages
from pydfm.features.transforms import Preprocessing, stack
from pydfm.runtime.checks import check_choice

_FORMS = (
    "features (N, D), images (N, 3, H, W), a folder, a path or a list of paths, a list of PIL "
    "images, or a DataLoader"
)

# What is called with the index of an image and what was decoded: a picture, or levels (H, W, 3).
Look: TypeAlias = Callable[[int, Image.Image | NDArray[Any]], None]


@dataclass(frozen=True)
class Skipped:
    """An image left out under ``on_error="skip"``.

    Attributes
    ----------
    index : int
        Its index in the source.
    reason : str
        Why it cannot be read, with its path where it has one.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """Some images, preprocessed.

    Attributes
    ----------
    pixels : array of shape (B, 3, h, w)
        uint8, or float32 in [0, 1].
    indices : list of int
        Indices of the B images in their source.
    """

    pixels: NDArray[Any]
    indices: list[int]


class ImageSource:
    """Images of any form, read in batches, once.

    Parameters
    ----------
    X : sequence of paths or of PIL images, array, tensor, or iterable of batches or images
        The images.
    on_error : {"raise", "skip"}
        Whether an image that cannot be read raises an error or is skipped.
    total : int, optional
        Number of images, where it is known beforehand and X has no length.
    known : sequence
        Images of an iterable that are known beforehand, which are in X too.

    Attributes
    ----------
    names : list of str or None
        Paths, where the images are files.
    total : int or None
        Number of images, where it is known beforehand.
    count : int
        Number of images read or skipped so far; files are read from there on.
    skipped : list of Skipped
        Images skipped so far.
    max_pixels : int or None
        Largest number of pixels of a file; None for Pillow's bound.
    look : callable or None
        Called with the index and the PIL image of each image that is decoded, by the thread that
        decodes it, so that what else is wanted of an image needs no second read.
    """

    def __init__(
        self,
        X: Any,
        on_error: str = "raise",
        total: int | None = None,
        known: Sequence[Any] = (),
    ) -> None:
        self._known = known
        self.names: list[str] | None = None
        self.total = total
        self.count = 0
        self.skipped: list[Skipped] = []
        self.max_pixels: int | None = None
        self.look: Look | None = None
        self._skip = on_error == "skip"
        if is_array(X):
            X = X[None] if X.ndim == 3 else X
            _check_images(X)
            self.total = len(X)
            X = [X]
        elif isinstance(X, list | tuple):
            self.total = sum(len(x) if getattr(x, "ndim", 0) == 4 else 1 for x in X)
            if all(isinstance(path, str | os.PathLike) for path in X):
                self.names = with_pages(os.fspath(path) for path in X)
                self.total = len(self.names)
            _check_frames(X)
        self._elements: Iterable[Any] = X
        if self.total == 0:
            raise ValueError(f"X is empty; it must be {_FORMS}")

    def batches(
        self, preprocessing: Preprocessing, batch_size: int, n_threads: int
    ) -> Iterator[Batch]:
        """Yield the images in order, at most `batch_size` at a time, decoded on `n_threads`.

        Raises
        ------
        ImageError
            If an image cannot be read, unless such images are skipped.
        ValueError, TypeError
            If an array does not contain images.
        """
        if self.names is not None:
            yield from self._read(self.names[self.count :], preprocessing, batch_size, n_threads)
            return
        # What a generator yields may be one buffer, filled anew for the next image.
        lasting = isinstance(self._elements, list | tuple)
        for group in _grouped(self._elements, batch_size, self.max_pixels, copy=not lasting):
            if isinstance(group, list):
                yield from self._read(group, preprocessing, batch_size, n_threads)
                continue
            for begin in range(0, len(group), batch_size):
                part = group[begin : begin + batch_size]
                yield from self._convert(part, preprocessing, batch_size, n_threads)

    def look_at(self) -> list[Any]:
        """Return what can be looked at before reading: a list, or the first of an iterable."""
        if self.names is not None:
            return list(self.names)
        known = self._elements if isinstance(self._elements, list | tuple) else self._known
        return [
            one
            for one in known
            if isinstance(one, str | os.PathLike | Image.Image) or is_array(one)
        ]

    def check_there(self) -> None:
        """Raise ImageError if the images are files, and none of them is there."""
        if self.names is not None and not any(Path(split_page(n)[0]).exists() for n in self.names):
            raise ImageError(f"cannot read image {self.place(0)}: there is no such file")

    def place(self, index: int) -> str:
        """Return an image's name for messages: its path, or its number."""
        return f"'{self.names[index]}'" if self.names is not None else f"{index} of X"

    def skip(self, index: int, reason: str, cause: Exception | None = None) -> None:
        """Skip the image `index`, or raise ImageError if images are not skipped."""
        if not self._skip:
            raise ImageError(reason) from cause
        insort(self.skipped, Skipped(index, reason), key=lambda one: one.index)

    def _convert(
        self, part: Any, preprocessing: Preprocessing, batch_size: int, n_threads: int
    ) -> Iterator[Batch]:
        array = _to_numpy(part, self.count)
        _check_images(array)
        if array.dtype == np.uint8 and preprocessing.keeps(*array.shape[2:]):
            # torch warns of arrays that are not writeable.
            pixels = np.require(array, requirements=("C_CONTIGUOUS", "WRITEABLE"))
            indices = self._next_indices(len(pixels))
            self._look_at_arrays(indices, array)
            yield Batch(pixels, indices)
        elif array.dtype.kind in "iu" and array.dtype != np.uint8:
            levels = [image.transpose(1, 2, 0) for image in array]
            yield from self._read(levels, preprocessing, batch_size, n_threads)
        elif array.dtype == np.uint8:
            # Through PIL, as files, so that an image scores the same in either form.
            images = [Image.fromarray(image.transpose(1, 2, 0)) for image in array]
            yield from self._read(images, preprocessing, batch_size, n_threads)
        else:
            # torch warns of arrays that are not writeable.
            floats = np.require(array, np.float32, ("C_CONTIGUOUS", "WRITEABLE"))
            preprocessing.check_range(floats, self.count)
            indices = self._next_indices(len(part))
            self._look_at_arrays(indices, floats)
            yield Batch(preprocessing.from_floats(floats), indices)

    def _look_at_arrays(self, indices: Sequence[int], images: NDArray[Any]) -> None:
        """Call `look` with `images` (B, 3, H, W), uint8 or float in [0, 1], if there is one."""
        if self.look is None:
            return
        for index, image in zip(indices, images, strict=True):
            levels = image
            if image.dtype != np.uint8:
                levels = np.rint(255 * image.clip(0, 1)).astype(np.uint8)
            self.look(index, Image.fromarray(levels.transpose(1, 2, 0)))

    def _next_indices(self, n: int) -> list[int]:
        """Count `n` images as read, and return their indices."""
        self.count += n
        return list(range(self.count - n, self.count))

    def _read(
        self, items: Sequence[Any], preprocessing: Preprocessing, batch_size: int, n_threads: int
    ) -> Iterator[Batch]:
        pixels: list[NDArray[Any]] = []
        indices: list[int] = []
        look = self.look

        def read(numbered: tuple[int, Any]) -> NDArray[Any]:
            index, item = numbered

            def convert(image: Image.Image | NDArray[Any]) -> NDArray[Any]:
                own = preprocessing.from_pil(image)
                if look is not None:
                    look(index, image)
                return own

            return _read_one(item, convert, self.max_pixels)

        for result in _ahead(read, enumerate(items, self.count), n_threads, 2 * batch_size):
            (index,) = self._next_indices(1)
            try:
                pixels.append(result())
                indices.append(index)
            except ImageError as error:
                self.skip(index, f"cannot read image {self.place(index)}: {error}", error)
            if len(pixels) == batch_size:
                yield Batch(stack(pixels), indices)
                pixels, indices = [], []
        if pixels:
            yield Batch(stack(pixels), indices)


def open_source(
    X: Any, on_error: str, labels: list[Any] | None = None
) -> "FeatureSource | ImageSource":
    """Find out whether `X` has features or images, and open it for reading in batches.

    Parameters
    ----------
    X : array, tensor, folder, path, list, PIL image, loader or iterable
        Features (N, D), or images of any form.
    on_error : {"raise", "skip"}
        Whether an image that cannot be read raises an error or is skipped.
    labels : list, optional
        List to which the labels of a loader's batches are added as they are read.

    Returns
    -------
    FeatureSource or ImageSource

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If X is empty, does not exist, or has neither features nor images; or if it yields no
        labels where `labels` is given.
    """
    if isinstance(X, Image.Image):
        X = [X]
    elif isinstance(X, str | os.PathLike):
        X = list_images(X)
    _check_form(X)
    X = _paths_of(plain(X))
    if isinstance(X, list | tuple):
        X = [plain(element, frames=True) for element in X]
    pairs = isinstance(X, list) and _has_pairs(X)
    loader = pairs or not (
        is_array(X) or isinstance(X, list) or hasattr(X, "columns") or hasattr(X, "toarray")
    )
    if labels is not None and not loader:
        raise ValueError(
            "labels is 'loader', but X is no loader; pass the labels themselves, an array (N,)"
        )
    if is_array(X):
        return ImageSource(X, on_error) if X.ndim in (3, 4) else FeatureSource([X])
    if isinstance(X, list) and not pairs:
        return _open_list(X, on_error)
    if not loader:  # data frames, sparse matrices
        return FeatureSource([X])
    if isinstance(X, Iterable):
        elements = iter(X)
    elif hasattr(X, "__getitem__") and hasattr(X, "__len__"):  # a Dataset, which may lack an end
        elements = map(X.__getitem__, range(len(X)))
    else:
        raise TypeError(f"X is {type(X).__name__}; it must be {_FORMS}")
    elements = chain.from_iterable(map(_images_of, elements))
    first = next(elements, None)
    if first is None:
        raise ValueError(f"X is empty; it must be {_FORMS}")
    everything: Iterable[Any] = chain([first], elements)
    if labels is not None:
        everything = _with_labels_kept(everything, labels)
    data = without_labels(first)
    if is_array(data) and data.ndim == 2:
        return FeatureSource(map(without_labels, everything))
    _check_yields(data)
    total = _length(getattr(X, "dataset", X))
    if pairs and is_array(data) and data.ndim == 4:
        total = sum(len(without_labels(pair)) for pair in X)
    known = [without_labels(pair) for pair in X] if pairs else [data]
    return ImageSource(everything, on_error, total=total, known=known)


def _images_of(element: Any) -> Sequence[Any]:
    """Return the images of a batch that a loader yields as a list, else the element alone.

    Raises
    ------
    TypeError
        If it is a tuple whose second part may be an image or a label, or if it is two batches.
    """
    if not isinstance(element, list | tuple) or len(element) < 2:
        return (element,)
    shapes = [tuple(getattr(one, "shape", ())) for one in element[:2]]
    if len(shapes[0]) in (2, 4) and shapes[0] == shapes[1] and shapes[0][1] > 1:
        raise TypeError(
            f"X yields two batches of the shape {shapes[0]} at once, of which the second cannot be "
            "labels; yield one after the other, or the first alone"
        )
    kind = _kind_of_image(element[0])
    if kind is None or not any(_kind_of_image(one) == kind for one in element[1:]):
        return (element,)
    if isinstance(element, list):
        return element
    raise TypeError(
        f"X yields a tuple of {kind}; give a list, [a, b], if each is an image to take, or the "
        "first alone if the second is none: in a tuple (image, label) the label is no image"
    )


def _kind_of_image(value: Any) -> str | None:
    """Return in a word what a single image comes as; None where it is none, such as a label."""
    if isinstance(value, Image.Image):
        return "images"
    if isinstance(value, os.PathLike):
        return "paths"
    if isinstance(value, str):
        known = Path(value).suffix.lower() in extensions()
        return "paths" if known or Path(split_page(value)[0]).is_file() else None
    if is_array(value) and value.ndim == 3 and value.shape[0] == 3:
        return "images"
    return None


def _check_form(X: Any) -> None:
    """Raise TypeError, or ValueError if X is empty, where X is nothing that can be read."""
    if isinstance(X, list | tuple) and not X:
        raise ValueError(f"X is empty; it must be {_FORMS}")
    odd = isinstance(X, Mapping | bytes | bytearray | memoryview | int | float | type | np.generic)
    sparse = hasattr(X, "tocsr")  # of which some are dictionaries: told of later, by that name
    if (odd and not sparse) or X is None or hasattr(X, "read"):
        hint = ""
        if isinstance(X, Mapping):
            hint = "; pass its values, list(X.values())"
        elif hasattr(X, "read"):
            hint = "; pass the path of the file, or the PIL image that is read from it"
        raise TypeError(f"X is {type(X).__name__}; it must be {_FORMS}{hint}")


def _paths_of(X: Any) -> Any:
    """Return X, or a list of its paths where it is an array or a column of them."""
    if isinstance(X, list | tuple) or not (isinstance(X, np.ndarray) or hasattr(X, "columns")):
        return X
    if hasattr(X, "columns"):
        if len(X.columns) != 1:
            return X
        column = as_array(X)
    else:
        column = X
    if column.dtype.kind not in "OUT" or column.size == 0:
        return X
    first = column.flat[0]
    if not isinstance(first, str | os.PathLike):
        return X
    if column.ndim not in (1, 2) or (column.ndim == 2 and column.shape[1] != 1):
        raise ValueError(
            f"X holds text, of the shape {column.shape}; paths must be (N,), and features numbers"
        )
    paths = column.ravel().tolist()
    for i, path in enumerate(paths):
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"X holds paths, but {path!r} in row {i}; remove it")
    return paths


def _has_pairs(X: list[Any]) -> bool:
    """Whether the list X holds pairs of a batch, an image or a path, and labels."""
    first = X[0]
    if not isinstance(first, list | tuple) or not first:
        return False
    data = plain(first[0])
    if isinstance(first, tuple):
        _images_of(first)  # which refuses two images at once
    if len(first) > 1 and getattr(first[1], "ndim", 0) > 1:
        return False
    if isinstance(data, str | os.PathLike | Image.Image):
        return isinstance(first, tuple) and len(first) == 2
    return is_array(data) and data.ndim in (2, 3, 4)


def _open_list(X: list[Any], on_error: str) -> "FeatureSource | ImageSource":
    """Open a list of paths, of images, of batches or of rows."""
    first = X[0]
    if isinstance(first, str | os.PathLike | Image.Image):
        return ImageSource(X, on_error)
    ndim = getattr(first, "ndim", 0)
    if ndim < 2:  # rows
        return FeatureSource([X])
    allowed = (2,) if ndim == 2 else (3, 4)
    wrong = next((i for i, one in enumerate(X) if getattr(one, "ndim", ndim) not in allowed), None)
    if wrong is not None and wrong > 0:
        found = getattr(X[wrong], "shape", type(X[wrong]).__name__)
        raise ValueError(
            f"X[0] has the shape {tuple(first.shape)} and X[{wrong}] {found}; all must be batches "
            "(B, D), or all images; pass labels as labels"
        )
    if ndim > 2:
        return ImageSource(X, on_error)
    if str(first.dtype).endswith("uint8"):
        raise ValueError(
            f"X[0] has the shape {tuple(first.shape)} and the type uint8, which may be a grey "
            "picture or a batch of features; pass pictures as PIL images (Image.fromarray), and "
            "features in one array (np.concatenate)"
        )
    return FeatureSource(X)


def _check_yields(data: Any) -> None:
    """Raise TypeError if the first thing that an iterable yields is no image."""
    if isinstance(data, str | os.PathLike | Image.Image) or (
        is_array(data) and data.ndim in (3, 4)
    ):
        return
    if isinstance(data, int | float | np.number) or (is_array(data) and data.ndim < 2):
        shape = f" of the shape {tuple(data.shape)}" if is_array(data) else ""
        raise TypeError(
            f"X yields single rows or numbers{shape}; it must yield batches (B, D), so pass all "
            "rows as one array, np.stack(list(X))"
        )
    found = f"the shape {tuple(data.shape)}" if is_array(data) else type(data).__name__
    raise TypeError(f"X yields {found}; it must yield images, batches of them or of features")


def open_labelled(
    X: Any, on_error: str, labels: Any
) -> tuple[FeatureSource | ImageSource, RowLabels | None]:
    """Open `X`, and its labels where there are any.

    Parameters
    ----------
    X, on_error
        See `open_source`.
    labels : array-like of shape (N,), "folders", "loader" or None
        One label for each row or image; the subfolders of the folder X; or the second element of
        what the loader X yields.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        If X cannot be opened, or does not have such labels.
    """
    if labels is None:
        return open_source(X, on_error), None
    if isinstance(labels, str):
        check_choice("labels", labels, ("folders", "loader"))
        if labels == "loader":
            growing: list[Any] = []
            return open_source(X, on_error, growing), RowLabels.of_loader(growing)
        source = open_source(X, on_error)
        names = source.names if isinstance(source, ImageSource) else None
        return source, RowLabels.of_folders(X, names)
    return open_source(X, on_error), RowLabels(labels)


def open_groups(source: FeatureSource | ImageSource, groups: Any) -> RowLabels | None:
    """Return the groups of a source's rows; `groups` as in `RowLabels.of_groups`, or None."""
    if groups is None:
        return None
    return RowLabels.of_groups(groups, source.names if isinstance(source, ImageSource) else None)


def warn_of_skipped(source: ImageSource, what: str, *, stacklevel: int = 1) -> None:
    """Warn that `source` skipped images, and call them `what`.

    Parameters
    ----------
    stacklevel : int
        The line that the warning names: 1 is the line that calls this function, 2 the line that
        calls the caller, and so on.
    """
    warnings.warn(
        f"{len(source.skipped)} of {source.count} {what} were skipped; the first: "
        f"{source.skipped[0].reason}",
        stacklevel=stacklevel + 1,
    )


def _ahead(
    function: Callable[[Any], Any], items: Iterable[Any], n_threads: int, depth: int
) -> Iterator[Callable[[], Any]]:
    """Yield the results of `function` in order, computed up to `depth` items ahead on threads.

    They come as functions, which return the result or raise its error.
    """
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
    """Return the data of an element of a loader: data alone, or a pair of data and labels."""
    data = element[0] if isinstance(element, list | tuple) and len(element) else element
    return plain(data, frames=True)


def _with_labels_kept(elements: Iterable[Any], labels: list[Any]) -> Iterator[Any]:
    """Yield the data of the elements of a loader, and add their labels to `labels`."""
    for element in elements:
        if not isinstance(element, list | tuple) or len(element) < 2:
            raise ValueError(
                "labels is 'loader', but X yields no labels; it must yield pairs (batch, labels)"
            )
        data, theirs = without_labels(element), as_array(element[1], "labels", len(labels))
        batch = is_array(data) and data.ndim in (2, 4)
        pages = len(with_pages([os.fspath(data)])) if isinstance(data, str | os.PathLike) else 1
        if theirs.shape != ((len(data),) if batch else ()):
            raise ValueError(
                f"labels is 'loader', but X yields labels of the shape {theirs.shape} with "
                + (f"a batch of {len(data)}; give one for each" if batch else "one image")
            )
        labels.extend(theirs.tolist() if batch else [theirs.item()] * pages)
        yield data


def _read_one(
    item: Any, convert: Callable[[Image.Image], Any], max_pixels: int | None
) -> NDArray[Any]:
    """Return the pixels of an image, which may be the error that came when it was taken."""
    if isinstance(item, ImageError):
        raise item
    return np.asarray(read_image(item, convert, max_pixels))


def _taken(data: Any, max_pixels: int | None) -> Any:
    """Return a copy of a path's file or of a PIL image, or the ImageError at that."""
    try:
        if isinstance(data, Image.Image) or split_page(data)[1] is not None:
            return read_image(data, lambda image: image.copy(), max_pixels)
        path = Path(data)
        return io.BytesIO(path.read_bytes()) if path.is_file() else data
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError(str(error))


def _grouped(
    batches: Iterable[Any], batch_size: int, max_pixels: int | None, *, copy: bool
) -> Iterator[Any]:
    """Yield a loader's images as arrays (B, 3, H, W), or as lists of paths and PIL images.

    With `copy`, each single image is copied before the next is asked for.
    """
    singles: list[Any] = []
    kind: Any = None
    count = 0

    def flush() -> Iterator[Any]:
        nonlocal count
        if singles:
            count += len(singles)
            yield list(singles) if kind == "to decode" else np.stack(singles)
            singles.clear()

    for element in batches:
        data = without_labels(element)
        if isinstance(data, str | os.PathLike | Image.Image):
            new_kind: Any = "to decode"
            if isinstance(data, str | os.PathLike):
                pages = with_pages([os.fspath(data)])
                if len(pages) > 1:
                    yield from flush()
                    yield [_taken(page, max_pixels) for page in pages]
                    continue
                data = pages[0]
            data = _taken(data, max_pixels) if copy else data
        elif is_array(data) and data.ndim == 4:
            yield from flush()
            count += len(data)
            yield data
            continue
        elif is_array(data) and data.ndim == 3:
            check_unmasked(data[None], first=count + len(singles))
            data = np.array(_to_numpy(data)) if copy else _to_numpy(data)
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


def _check_frames(images: Sequence[Any]) -> None:
    """Raise ValueError if one open file of several pages stands for several images."""
    counts = Counter(id(image) for image in images if isinstance(image, Image.Image))
    for image in images:
        count = counts[id(image)]
        if count < 2 or getattr(image, "n_frames", 1) < 2:
            continue
        raise ValueError(
            f"X holds one open file {count} times, and it is at one page only; pass the path, "
            "which stands for all its pages, or copies of the pages (image.copy())"
        )


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
    if dtype != "uint8" and "float" not in dtype and not is_integer(array):
        raise TypeError(
            f"X has images of type {dtype}; they must be uint8, float in [0, 1], or integers of "
            "more bits (see intensity)"
        )


def _to_numpy(image: Any, first: int = 0) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        check_unmasked(image, first=first)
        return np.asarray(image)
    tensor = image.detach().cpu()
    return np.asarray(tensor.float() if tensor.is_floating_point() else tensor)


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:
        return None
