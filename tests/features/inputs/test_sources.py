import io
import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from pydfm.features.inputs.arrays import FeatureSource
from pydfm.features.inputs.images import ImageError, list_images
from pydfm.features.inputs.sources import (
    ImageSource,
    open_labelled,
    open_source,
    warn_of_skipped,
)
from pydfm.features.transforms import Preprocessing


class OnlyArray:
    """What xarray, h5py and zarr give: an array only by its interface."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class OnlyDlpack:
    """An array of a library that has only DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def masked(shape, *rows):
    array = np.ma.masked_array(np.full(shape, 0.5), np.zeros(shape, dtype=bool))
    for row in rows:
        array.mask[row] = True
    return array


SIZE = Preprocessing(resize=(40, 48), crop=None)  # that of the textures: pixels stay as they are


def read(X, batch_size=5, n_threads=2, on_error="raise", preprocessing=SIZE):
    """All pixels of X, their places, the sizes of the batches and the source."""
    source = open_source(X, on_error)
    assert isinstance(source, ImageSource)
    batches = list(source.batches(preprocessing, batch_size, n_threads))
    return SimpleNamespace(
        pixels=np.concatenate([batch.pixels for batch in batches]),
        indices=[index for batch in batches for index in batch.indices],
        sizes=[len(batch.pixels) for batch in batches],
        source=source,
    )


class Pairs:
    """What torch calls a map-style Dataset: without __iter__, and with no end to its indices."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index % len(self.images)], 0


def write(path, *, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.new("RGB", (8, 8)).save(path)
    else:
        path.write_bytes(content)
    return str(path)


def broken_files(folder):
    """A good picture, three bad ones, and another good one."""
    Image.effect_noise((64, 64), 50).save(folder / "0.png")
    whole = (folder / "0.png").read_bytes()
    write(folder / "1.png", content=whole[: len(whole) // 2])
    write(folder / "2.png", content=b"This is text.")
    write(folder / "3.png", content=b"")
    write(folder / "4.png")
    return folder


@pytest.fixture
def special_files(tmp_path):
    (tmp_path / "folder.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    else:
        (tmp_path / "pipe.png").mkdir()


# Forms


def as_dataset(x):
    return Pairs([torch.from_numpy(image) for image in x])


def as_pairs(x):
    return DataLoader(TensorDataset(torch.from_numpy(x), torch.arange(len(x))), batch_size=8)


def test_arrays_that_cannot_be_written_to_are_read(textures):
    for size in (SIZE, Preprocessing(resize=(20, 24), crop=None)):
        want = read(textures, preprocessing=size).pixels
        frozen = textures.copy()
        frozen.flags.writeable = False
        assert np.array_equal(read(frozen, preprocessing=size).pixels, want)
        pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in textures]
        assert np.array_equal(read(pictures, preprocessing=size).pixels, want)


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        np.asfortranarray,
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.repeat(x, 2, axis=3)[..., ::2],
        lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        torch.from_numpy,
        lambda x: torch.from_numpy(x).contiguous(memory_format=torch.channels_last),
        lambda x: DataLoader(torch.from_numpy(x), batch_size=7),
        as_pairs,
        as_dataset,
        list,
        lambda x: [x[0], x[1], x[2:7], *x[7:]],
        lambda x: (x[i : i + 4] for i in range(0, len(x), 4)),
        lambda x: ((image, "good") for image in x),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_may_come_in_any_form(textures, form, dtype):
    x = textures if dtype == np.uint8 else np.float32(textures / 255)
    got = read(form(x))
    assert got.pixels.dtype == dtype
    assert np.array_equal(got.pixels, x)
    assert got.indices == list(range(12))
    assert max(got.sizes) <= 5


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", torch.bfloat16])
def test_floats_may_be_of_any_type(textures, dtype):
    x = textures / 256  # which bfloat16 holds exactly
    given = torch.from_numpy(x).to(dtype) if isinstance(dtype, torch.dtype) else x.astype(dtype)
    assert np.array_equal(read(given).pixels, x.astype(np.float32))


def test_a_read_only_array_is_taken_without_a_warning(textures):
    x = np.float32(textures / 255)
    x.flags.writeable = False
    assert np.array_equal(read(x).pixels, x)


def test_a_single_picture_is_a_batch_of_one(textures, pictures):
    for one in (textures[0], torch.from_numpy(textures[0]), pictures[0], [pictures[0]]):
        assert np.array_equal(read(one).pixels, textures[:1])


def test_files_and_pictures_give_the_pixels_of_arrays(textures, pictures, picture_folder):
    paths = list_images(picture_folder)
    mixed = [paths[0], *pictures[1:]]
    generator = (path for path in paths)
    for X in (picture_folder, paths, tuple(paths), np.array(paths), pictures, mixed, generator):
        got = read(X)
        assert np.array_equal(got.pixels, textures)
        assert got.sizes == [5, 5, 2]


def test_names_are_known_of_files_only(pictures, picture_folder):
    assert open_source(picture_folder, "raise").names == list_images(picture_folder)
    assert open_source(pictures, "raise").names is None


@pytest.mark.parametrize(
    ("form", "total"),
    [
        (lambda x: x, 12),
        (list, 12),
        (lambda x: [x[:7], x[7:]], 12),
        (lambda x: DataLoader(torch.from_numpy(x), batch_size=5), 12),
        (as_dataset, 12),
        (iter, None),
    ],
)
def test_the_total_is_known_beforehand_where_it_can_be(textures, form, total):
    assert open_source(form(textures), "raise").total == total


def test_pictures_of_uneven_sizes_stay_in_order():
    sizes = [(40, 48), (40, 48), (30, 30), (64, 20), (64, 20), (64, 20), (40, 48)]
    images = [torch.full((3, *size), 10 * i, dtype=torch.uint8) for i, size in enumerate(sizes)]
    got = read(Pairs(images), batch_size=2)
    assert got.pixels[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert got.indices == list(range(7))
    assert max(got.sizes) <= 2


def test_features_are_told_from_images():
    rows = np.zeros((6, 4))
    for X in (rows, rows.tolist(), DataLoader(torch.zeros(6, 4)), iter([rows]), as_pairs(rows)):
        assert isinstance(open_source(X, "raise"), FeatureSource)


def as_is(rows):
    return rows


def both(form):
    return lambda rows: [form(rows[:4]), form(rows[4:])]


@pytest.mark.parametrize(
    "form",
    [
        OnlyArray,
        OnlyDlpack,
        both(as_is),
        both(OnlyArray),
        both(OnlyDlpack),
        both(lambda rows: (rows, [0] * len(rows))),
        both(torch.from_numpy),
        lambda rows: list(DataLoader(TensorDataset(torch.from_numpy(rows)), batch_size=4)),
        lambda rows: tuple(both(as_is)(rows)),
        lambda rows: iter(both(OnlyArray)(rows)),
        lambda rows: list(torch.from_numpy(rows).clone().requires_grad_()),
    ],
)
def test_all_forms_of_arrays_are_read(form):
    rng = np.random.default_rng(0)
    images, rows = rng.random((6, 3, 40, 48)).astype(np.float32), rng.random((6, 5))
    assert np.array_equal(read(form(images)).pixels, images)
    assert np.array_equal(np.concatenate(list(open_source(form(rows), "raise").batches())), rows)


def test_data_frames_are_batches_too():
    rows = np.random.default_rng(0).random((6, 5))
    frames = [pd.DataFrame(rows[:4]), pd.DataFrame(rows[4:])]
    for form in (frames, iter(frames)):
        assert np.array_equal(np.concatenate(list(open_source(form, "raise").batches())), rows)


@pytest.mark.parametrize(
    "form",
    [
        lambda paths: np.array(paths, dtype=object),
        lambda paths: np.array([Path(path) for path in paths]),
        np.array,
        pd.Series,
        pd.Index,
        lambda paths: pd.Series(paths, dtype="string"),
        lambda paths: pd.DataFrame({"path": paths}),
        lambda paths: OnlyArray(np.array(paths, dtype=object)),
    ],
)
def test_columns_of_paths_are_paths(form, tmp_path):
    paths = [write(tmp_path / f"{i}.png") for i in range(3)]
    names = open_source(form(paths), "raise").names
    assert names == paths


def test_pairs_of_a_path_and_a_label_are_read(tmp_path):
    pairs = [(write(tmp_path / f"{i}.png"), f"class {i}") for i in range(3)]
    assert read(pairs).indices == [0, 1, 2]


def test_a_tuple_of_two_images_is_never_an_image_and_its_label(tmp_path):
    paths = [write(tmp_path / f"{i}.png") for i in range(4)]
    opened = [Image.open(path) for path in paths]
    arrays = list(np.zeros((4, 3, 40, 48), dtype=np.uint8))
    for four in (paths, list(map(Path, paths)), opened, arrays):
        assert len(read(tuple(four)).indices) == 4
        assert len(read(iter([four[:2], four[2:]])).indices) == 4
        for X in ([tuple(four[:2]), tuple(four[2:])], iter([tuple(four[:3])])):
            with pytest.raises(TypeError, match=r"X yields a tuple of (paths|images); give a list"):
                open_source(X, "raise")
    # One that is not there, and one that cannot be told by its ending
    with pytest.raises(TypeError, match="X yields a tuple of paths"):
        open_source([(paths[0], str(tmp_path / "none.png"))], "raise")
    with pytest.raises(ImageError, match="there is no such file"):
        read(iter([[paths[0], str(tmp_path / "none.png")]]))
    # What no image can be is a label, or belongs to the image
    others = [(paths[0], "cut"), (opened[0], paths[0]), (arrays[0], np.zeros((1, 40, 48)))]
    for X in others:
        assert read(iter([X])).indices == [0]


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 40, 48)])
def test_two_batches_at_once_are_no_batch_and_its_labels(shape):
    batch = np.zeros(shape)
    for X in (
        [(batch, batch)],
        iter([[batch, batch]]),
        DataLoader(TensorDataset(*[torch.zeros(shape)] * 2)),
    ):
        with pytest.raises(TypeError, match="X yields two batches of the shape"):
            open_source(X, "raise")


def test_a_list_of_pairs_gives_its_labels():
    batches = [(np.zeros((4, 5)), np.zeros(4, int)), (np.ones((2, 5)), np.ones(2, int))]
    source, labels = open_labelled(batches, "raise", "loader")
    assert sum(map(len, source.batches())) == 6
    assert labels.take(slice(0, 6)).tolist() == [0, 0, 0, 0, 1, 1]


# What is no image


@pytest.mark.parametrize(
    ("X", "says"),
    [
        (np.zeros((2, 8, 8, 3)), r"\(2, 8, 8, 3\).*channels come last.*transpose\(0, 3, 1, 2\)"),
        (np.zeros((2, 1, 8, 8)), r"\(2, 1, 8, 8\).*repeat the grey channel"),
        (torch.zeros(2, 4, 8, 8), r"\(2, 4, 8, 8\); images must be \(N, 3, H, W\)"),
        (np.zeros((2, 3, 0, 8)), "must have pixels"),
        (np.zeros((0, 3, 8, 8)), "must have pixels"),
        ([np.zeros((2, 3, 8, 8)), np.zeros((2, 8, 8, 3))], "channels come last"),
        (np.full((2, 3, 8, 8), 255.0), r"values from 255 to 255; .*\[0, 1\].*uint8.*mean=0, std=1"),
        (iter([]), "X is empty"),
        ([], "X is empty"),
        (np.zeros((4, 5)).astype(str), r"X holds text, of the shape \(4, 5\)"),
        ([np.zeros((8, 8), dtype=np.uint8)] * 2, r"a grey picture or a batch of features"),
        ((np.zeros((4, 5)), np.zeros(4)), r"X\[0\] has the shape \(4, 5\) and X\[1\] \(4,\)"),
        (pd.Series(["a.png", None]), "X holds paths, but .* in row 1"),
        (masked((7, 3, 8, 8), 4), "X is masked in image 4"),
        (iter([masked((3, 3, 8, 8)), masked((4, 3, 8, 8), 1)]), "X is masked in image 4"),
        (list(masked((7, 3, 8, 8), 4)), "X is masked in image 4"),
    ],
)
def test_arrays_that_are_no_images_are_refused(X, says):
    with pytest.raises(ValueError, match=says):
        read(X)


@pytest.mark.parametrize(
    ("X", "says"),
    [
        (np.zeros((2, 3, 8, 8), dtype=np.int8), "type int8; they must be uint8, float"),
        (np.zeros((2, 3, 8, 8), dtype=complex), "type complex128"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bool), "type bool"),
        (iter([np.zeros(5)]), r"single rows or numbers of the shape \(5,\)"),
        (iter([np.zeros((2, 3, 8, 8)), np.zeros((2, 3))]), r"batches of the shape \(2, 3\)"),
        (iter([{"image": 1}]), "X yields dict"),
        (TensorDataset(torch.zeros(4, 5)), r"pass all rows as one array, np.stack"),
        ((row for row in np.zeros((4, 5))), r"pass all rows as one array, np.stack"),
        ({"a": 1}, r"X is dict; .*list\(X.values\(\)\)"),
        (b"a.png", "X is bytes"),
        (io.BytesIO(), "X is BytesIO; .*pass the path of the file"),
        ([Image.new("L", (8, 8)), None], "batches of NoneType"),
        (7, "X is int; it must be features"),
    ],
)
def test_types_that_are_no_images_are_refused(X, says):
    with pytest.raises(TypeError, match=says):
        read(X)


def test_floats_outside_of_the_range_are_taken_where_they_are_normalised_already():
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    raw = Preprocessing((8, 8), None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert np.array_equal(read(x, preprocessing=raw).pixels, x)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_named_by_their_place(value):
    x = np.zeros((9, 3, 8, 8), dtype=np.float32)
    x[7, 1, 2, 3] = value
    for X in (x, DataLoader(torch.from_numpy(x), batch_size=4), list(x)):
        with pytest.raises(ValueError, match="image 7 of X contains NaN or infinity"):
            read(X, batch_size=3)


# What cannot be read


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("1.png", "truncated|broken"),
        ("2.png", "it is not an image"),
        ("3.png", "it is not an image"),
        ("gone.png", "there is no such file"),
        ("folder.png", "it is not a file"),
        ("pipe.png", "it is not a file"),  # and does not wait for someone to write to it
    ],
)
@pytest.mark.usefixtures("special_files")
def test_a_picture_that_cannot_be_read_is_named(tmp_path, name, says):
    path = broken_files(tmp_path) / name
    with pytest.raises(ImageError, match=f"cannot read image '{re.escape(str(path))}': .*({says})"):
        read([tmp_path / "0.png", path])


def test_a_picture_in_memory_is_named_by_its_place(pictures):
    dark = Image.fromarray(np.full((8, 8), -1.0, dtype=np.float32))
    with pytest.raises(ImageError, match="cannot read image 2 of X: its values go from -1"):
        read([*pictures[:2], dark])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_pictures_that_cannot_be_read_can_be_skipped(tmp_path, batch_size):
    got = read(broken_files(tmp_path), batch_size, on_error="skip")
    assert got.indices == [0, 4]
    assert got.source.count == 5
    assert [skipped.index for skipped in got.source.skipped] == [1, 2, 3]
    assert all(
        f"{skipped.index}.png" in skipped.reason and "cannot read" in skipped.reason
        for skipped in got.source.skipped
    )


# Threads


def test_many_threads_keep_the_order(tmp_path):
    for i in range(60):  # large and small in turn, so that they end in another order
        side = 300 if i % 3 == 0 else 4
        Image.new("RGB", (side, side), (4 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    for n_threads in (1, 2, 16):
        got = read(tmp_path, batch_size=7, n_threads=n_threads)
        assert got.pixels[:, 0, 0, 0].tolist() == list(range(0, 240, 4))


def test_the_error_of_a_generator_comes_through(pictures):
    def failing():
        yield from pictures[:4]
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        read(failing(), batch_size=2)


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("pydfm-read")]


def test_a_reader_that_stops_early_leaves_no_threads(picture_folder):
    batches = open_source(picture_folder, "raise").batches(SIZE, 2, 4)
    next(batches)
    assert reading_threads()
    batches.close()
    assert not reading_threads()


def test_an_error_leaves_no_threads(tmp_path):
    with pytest.raises(ImageError):
        read(broken_files(tmp_path), n_threads=4)
    assert not reading_threads()


def test_reading_does_not_run_far_ahead(tmp_path, monkeypatch):
    opened = []
    actual = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or actual(path))
    for i in range(40):
        write(tmp_path / f"{i:02}.png")
    batches = open_source(tmp_path, "raise").batches(SIZE, 4, 2)
    next(batches)
    time.sleep(0.05)
    assert len(opened) <= 3 * 4
    batches.close()


def test_a_generator_is_not_drained_ahead(textures):
    left = iter(textures)
    next(open_source((image for image in left), "raise").batches(SIZE, 3, 2))
    assert len(list(left)) >= 12 - 2 * 3


# Labels


def labels_of(X, labels):
    """All labels of X, taken batch by batch."""
    source, row_labels = open_labelled(X, "raise", labels)
    if isinstance(source, FeatureSource):
        places = (slice(source.count - len(rows), source.count) for rows in source.batches())
    else:
        places = (batch.indices for batch in source.batches(SIZE, 5, 2))
    taken = [row_labels.take(some) for some in places]
    row_labels.check_count(source.count)
    return np.concatenate(taken).tolist()


def test_labels_come_from_arrays_folders_and_loaders(textures, pictures, tmp_path):
    codes = np.arange(12) % 2
    for X in (textures, np.eye(12), pictures):
        assert labels_of(X, codes) == codes.tolist()
        assert labels_of(X, codes.astype(str).tolist()) == codes.astype(str).tolist()
    for i, picture in enumerate(pictures):
        (tmp_path / "ab"[codes[i]] / "more").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "ab"[codes[i]] / "more" / f"{i:02}.png")
    assert labels_of(tmp_path, "folders") == ["a"] * 6 + ["b"] * 6
    for data in (torch.from_numpy(textures), torch.eye(12)):
        pairs = TensorDataset(data, torch.from_numpy(codes))
        assert labels_of(DataLoader(pairs, batch_size=5), "loader") == codes.tolist()
    assert labels_of(zip(pictures, codes, strict=True), "loader") == codes.tolist()
    assert open_labelled(textures, "raise", None)[1] is None


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("folders", "labels is 'folders', which needs X to be a folder"),
        ("loader", "labels is 'loader', but X is no loader"),
        ("folder", "labels is 'folder'; it must be one of 'folders', 'loader'"),
        (np.zeros(11, int), "labels has 11 labels, and X has more rows"),
        (np.zeros(13, int), "labels has 13 labels, and X has 12 rows or images"),
    ],
)
def test_labels_that_do_not_fit_are_told(textures, labels, says):
    with pytest.raises(ValueError, match=says):
        labels_of(textures, labels)


def test_images_beside_the_folders_of_classes_are_told(picture_folder):
    with pytest.raises(ValueError, match="lies in no subfolder of"):
        labels_of(picture_folder, "folders")


def test_a_loader_without_labels_is_told(textures, pictures):
    with pytest.raises(ValueError, match="X yields no labels"):
        labels_of(DataLoader(torch.from_numpy(textures), batch_size=5), "loader")
    with pytest.raises(ValueError, match=r"labels of the shape \(4,\) with a batch of 5"):
        labels_of(iter([(textures[:5], np.zeros(4, int))]), "loader")
    with pytest.raises(ValueError, match=r"labels of the shape \(4,\) with one image"):
        labels_of(iter([(pictures[0], np.zeros(4, int))]), "loader")


def test_the_warning_of_skipped_images_names_the_line_of_the_caller(tmp_path):
    source = read(broken_files(tmp_path), on_error="skip").source
    with pytest.warns(UserWarning, match=r"^3 of 5 parts were skipped; the first: .*1\.png") as got:
        warn_of_skipped(source, "parts")
    assert got[0].filename == __file__

    def method():
        warn_of_skipped(source, "parts", stacklevel=2)

    with pytest.warns(UserWarning, match="skipped") as got:
        method()
    assert got[0].lineno == method.__code__.co_firstlineno + 4


# One buffer, filled again and again


def _in_one_array(frames):
    buffer = np.empty_like(frames[0])
    for frame in frames:
        buffer[:] = frame
        yield buffer


def _in_one_tensor(frames):
    buffer = torch.empty(frames[0].shape, dtype=torch.uint8)
    for frame in frames:
        buffer.copy_(torch.from_numpy(frame))
        yield buffer


def _in_one_picture(frames):
    picture = Image.new("RGB", frames.shape[:1:-1])
    for frame in frames:
        picture.paste(Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))))
        yield picture


def _in_one_file(path):
    def write_anew(frames):
        for picture in _in_one_picture(frames):
            picture.save(path)
            yield path

    return write_anew


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("camera", ["array", "floats", "tensor", "picture", "file"])
def test_what_a_generator_yields_in_one_buffer_is_copied(tmp_path, camera, batch_size):
    frames = np.random.default_rng(0).integers(0, 255, (5, 3, 40, 48), dtype=np.uint8)
    if camera == "floats":
        frames = np.float32(frames / 255)
    cameras = {"tensor": _in_one_tensor, "picture": _in_one_picture}
    cameras["file"] = _in_one_file(tmp_path / "frame.png")
    found = read(cameras.get(camera, _in_one_array)(frames), batch_size).pixels
    assert np.array_equal(found, frames)


def test_a_loader_gives_the_label_of_a_path_to_each_of_its_pages(tmp_path):
    pages = [Image.new("L", (8, 8), 9 * i) for i in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "y.png")
    source, labels = open_labelled(
        [(tmp_path / "x.tif", "a"), (tmp_path / "y.png", "b")], "raise", "loader"
    )
    batches = list(source.batches(Preprocessing((8, 8), None), 2, 1))
    assert sum(len(batch.pixels) for batch in batches) == 4
    assert list(labels.take(slice(0, 4))) == ["a", "a", "a", "b"]


@pytest.mark.parametrize("form", ["paths", "pictures"])
def test_a_batch_that_is_a_list_of_paths_or_pictures_is_read_whole(tmp_path, form):
    pictures = [Image.new("L", (8, 8), 9 * i) for i in range(5)]
    items = pictures
    if form == "paths":
        items = [str(tmp_path / f"{i}.png") for i in range(5)]
        for picture, path in zip(pictures, items, strict=True):
            picture.save(path)
    loader = DataLoader(items, batch_size=2, collate_fn=list)
    batches = list(open_source(loader, "raise").batches(Preprocessing((8, 8), None), 3, 1))
    pixels = np.concatenate([batch.pixels for batch in batches])
    assert pixels[:, 0, 0, 0].tolist() == [0, 9, 18, 27, 36]
    if form == "paths":  # a path and a label stay a pair
        source = open_source(iter([[items[1], "good"], [items[2], "bad"]]), "raise")
        (batch,) = source.batches(Preprocessing((8, 8), None), 3, 1)
        assert batch.pixels[:, 0, 0, 0].tolist() == [9, 18]


def test_polars_columns_and_frames_are_taken(tmp_path):
    polars = pytest.importorskip("polars")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        Image.new("L", (8, 8)).save(path)
    for column in (polars.Series(paths), polars.DataFrame({"path": paths})):
        assert open_source(column, "raise").names == paths
    rows = np.random.default_rng(0).normal(size=(5, 3))
    (got,) = open_source(polars.DataFrame(rows), "raise").batches()
    assert np.array_equal(got, rows)
    with pytest.raises(ValueError, match=r"holds paths, but None in row 1; remove it"):
        open_source(polars.Series([paths[0], None]), "raise")
