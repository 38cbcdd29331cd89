import json
import os
import shutil
import signal
from itertools import chain, islice

import numpy as np
import pytest

import pydfm
from pydfm.features.cache import Checkpoint, delete_checkpoint
from pydfm.features.extractor import Extractor, feature_batches
from pydfm.features.inputs import sources
from pydfm.features.inputs.sources import Skipped, open_source

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has the latter, which kills there
CODE = """
import os, sys
import pydfm
from pydfm.features import cache

write = cache.write_file
def kill_at_third(path, data, **options):
    if path.name == "00000002.safetensors":
        os.kill(os.getpid(), int(sys.argv[3]))
    write(path, data, **options)
cache.write_file = kill_at_third
pydfm.DFM(2, weights=None, layers="layer1", pool=4, image_size=32, batch_size=3, device="cpu",
          on_error="skip").fit(sys.argv[1], checkpoint=sys.argv[2])
"""


def new():
    settings = {"layers": "layer1", "pool": 4, "image_size": 32, "batch_size": 3, "device": "cpu"}
    return pydfm.DFM(2, weights=None, on_error="skip", **settings)


@pytest.fixture
def copied(picture_folder, tmp_path):
    """Copies of the pictures, which may be changed."""
    return shutil.copytree(picture_folder, tmp_path / "pictures")


@pytest.fixture
def counted(monkeypatch):
    """The pictures that are read, by name."""
    read = []
    plain = sources.read_image

    def counting(source, *how):
        read.append(source)
        return plain(source, *how)

    monkeypatch.setattr(sources, "read_image", counting)
    return read


@pytest.mark.filterwarnings("ignore:1 of 12 images were skipped")
def test_a_fit_that_was_killed_goes_on_from_its_last_batch(copied, tmp_path, run_python, counted):
    sorted(copied.iterdir())[4].write_bytes(b"This is text.")
    folder = tmp_path / "checkpoint"
    killed = run_python(CODE, str(copied), str(folder), str(int(KILL)), check=False)
    assert killed.returncode == (KILL if os.name == "nt" else -KILL)
    assert len(list(folder.glob("*.safetensors"))) == 2

    want = new().fit(copied)
    counted.clear()
    dfm = new().fit(copied, checkpoint=folder)
    assert len(counted) == 5  # of 12, six features and a broken one are there
    assert np.array_equal(dfm.score(copied), want.score(copied), equal_nan=True)
    counted.clear()
    again = new().fit(copied, checkpoint=folder)
    assert counted == []
    assert [one.index for one in again.skipped_] == [4]
    assert again.n_samples_ == 11
    delete_checkpoint(folder)
    assert not folder.exists()


def test_a_checkpoint_needs_files(textures, tmp_path):
    with pytest.raises(
        ValueError, match="checkpoint needs images that are files, and X holds none"
    ):
        new().fit(textures, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="checkpoint is for images, and X holds features"):
        new().fit(np.eye(4), checkpoint=tmp_path / "c")


# Without a model


@pytest.fixture
def extracted(tiny_network):
    """Read a folder batch by batch, with a checkpoint; return features, places and the source."""

    def read(images, folder, *, pool=4, most=None):
        extractor = Extractor.build(
            tiny_network,
            None,
            "block",
            spatial="flatten",
            pool=pool,
            image_size=32,
            mean=None,
            std=None,
            precision="float32",
            random_state=0,
            device="cpu",
            progress=False,
        )
        source = open_source(images, "skip")
        batches = feature_batches(
            source, extractor, batch_size=3, n_threads=1, task="", verbose=False, checkpoint=folder
        )
        found = [(features, places) for places, features, _ in islice(batches, most)]
        batches.close()
        features, places = zip(*found, strict=True)
        return np.concatenate(features), list(chain.from_iterable(places)), source

    return read


def test_batches_that_are_there_are_not_read_again(copied, tmp_path, extracted, counted):
    sorted(copied.iterdir())[4].write_bytes(b"This is text.")
    want, order, source = extracted(copied, None)
    extracted(copied, tmp_path / "c", most=2)
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == 2
    counted.clear()
    got, places, again = extracted(copied, tmp_path / "c")
    assert len(counted) == 5  # of 12, six features and a broken one are there
    assert np.array_equal(got, want)
    assert places == order == [i for i in range(12) if i != 4]
    assert again.skipped == source.skipped
    assert again.count == 12


def test_a_batch_that_is_damaged_is_made_again(copied, tmp_path, extracted, counted):
    want, _, _ = extracted(copied, tmp_path / "c")
    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:-3] + b"abc", lambda b: b""):
        file = tmp_path / "c" / "00000002.safetensors"
        file.write_bytes(damage(file.read_bytes()))
        counted.clear()
        got, _, _ = extracted(copied, tmp_path / "c")
        assert len(counted) == 6
        assert np.array_equal(got, want)


def test_a_checkpoint_of_something_else_is_told(copied, tmp_path, extracted):
    folder = tmp_path / "c"
    extracted(copied, folder)
    with pytest.raises(ValueError, match="was begun with other grids and pool; name another"):
        extracted(copied, folder, pool=2)
    sorted(copied.iterdir())[0].touch()
    with pytest.raises(ValueError, match="was begun with other pictures"):
        extracted(copied, folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; name an empty or new folder"):
        extracted(copied, tmp_path / "other")
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="was begun with something else"):
        extracted(copied, folder)


def test_the_settings_stay_readable_for_a_later_version(picture_folder, tmp_path, extracted):
    extracted(picture_folder, tmp_path / "c")
    settings = json.loads((tmp_path / "c" / "settings.json").read_text())
    assert list(settings) == [
        *("backbone", "weights", "layers", "grids", "spatial", "pool", "precision"),
        *("random_state", "preprocessing", "sha256", "layout", "tokens", "pictures"),
    ]


def test_batches_come_back_with_what_was_skipped(picture_folder, tmp_path):
    folder = tmp_path / "c"
    source = open_source(picture_folder, "skip")
    cache = Checkpoint(folder, {"pool": 2}, source)
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    cache.write([0, 2, 3], rows, [Skipped(1, "broken")], 4)
    cache.write([4], rows[:1], [], 5)

    source = open_source(picture_folder, "skip")
    again = Checkpoint(folder, {"pool": 2}, source)
    (places, features), (more, _) = again.read(source)
    assert (places, more) == ([0, 2, 3], [4])
    assert np.array_equal(features, rows)
    assert source.count == 5
    assert source.skipped == [Skipped(1, "broken")]
    with pytest.raises(ValueError, match="was begun with other pool; name another folder"):
        Checkpoint(folder, {"pool": 3}, source)
    delete_checkpoint(folder)
    assert not folder.exists()


def test_other_files_stay_when_a_checkpoint_is_deleted(picture_folder, tmp_path):
    folder = tmp_path / "c"
    Checkpoint(folder, {}, open_source(picture_folder, "raise"))
    (folder / "notes.txt").write_text("mine")
    delete_checkpoint(folder)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]


def test_arrays_have_no_checkpoint(textures, tmp_path):
    with pytest.raises(ValueError, match="checkpoint needs images that are files"):
        Checkpoint(tmp_path / "c", {}, open_source(textures, "raise"))


def test_what_a_killed_write_left_does_not_stop_a_checkpoint(picture_folder, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / ".pydfm-0123456789abcdef").write_bytes(b"half of settings")
    Checkpoint(folder, {}, open_source(picture_folder, "raise"))
    assert [file.name for file in folder.iterdir()] == ["settings.json"]
    (folder / ".pydfm-0123456789abcdef").write_bytes(b"half of a batch")
    delete_checkpoint(folder)
    assert not folder.exists()


def test_what_a_write_of_a_batch_left_when_killed_is_gone_after_the_next_fit(copied, tmp_path):
    folder = tmp_path / "checkpoint"
    new().fit(copied, checkpoint=folder)
    litter = folder / (".pydfm-" + "0" * 16)
    litter.touch()
    new().fit(copied, checkpoint=folder)  # begins after the last batch, and writes none
    assert not litter.exists()


def test_a_checkpoint_that_cannot_be_made_is_told(picture_folder, tmp_path):
    (tmp_path / "file").touch()
    says = r"^cannot make the folder '.*file.x': Not a directory; name another$"
    with pytest.raises(NotADirectoryError, match=says):
        new().fit(picture_folder, checkpoint=tmp_path / "file" / "x")
