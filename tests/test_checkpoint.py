import shutil
import signal

import numpy as np
import pytest

import pydfm
from pydfm.checkpoint import delete_checkpoint

CODE = """
import os, signal, sys
import pydfm
from pydfm import checkpoint

write = checkpoint.write_file
def kill_at_third(path, data):
    if path.name == "00000002.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
checkpoint.write_file = kill_at_third
pydfm.DFM(2, weights=None, layers="layer1", pool=4, image_size=32, batch_size=3, device="cpu",
          on_error="skip").fit(sys.argv[1], checkpoint=sys.argv[2])
"""


def new(**options):
    settings = {"layers": "layer1", "pool": 4, "image_size": 32, "batch_size": 3, "device": "cpu"}
    return pydfm.DFM(2, weights=None, on_error="skip", **{**settings, **options})


@pytest.fixture
def copied(picture_folder, tmp_path):
    """Copies of the pictures, which may be changed."""
    return shutil.copytree(picture_folder, tmp_path / "pictures")


@pytest.fixture
def counted(monkeypatch):
    """The pictures that are read, by name."""
    from pydfm import images

    read = []
    plain = images.read_image

    def counting(source, convert):
        read.append(source)
        return plain(source, convert)

    monkeypatch.setattr(images, "read_image", counting)
    return read


@pytest.mark.filterwarnings("ignore:1 of 12 images were skipped")
def test_a_fit_that_was_killed_goes_on_from_its_last_batch(copied, tmp_path, run_python, counted):
    sorted(copied.iterdir())[4].write_bytes(b"This is text.")
    folder = tmp_path / "checkpoint"
    killed = run_python(CODE, str(copied), str(folder), check=False)
    assert killed.returncode == -signal.SIGKILL
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


def test_a_batch_that_is_not_whole_is_made_again(copied, tmp_path, counted):
    want = new().fit(copied, checkpoint=tmp_path / "c").score(copied)
    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:-3] + b"abc", lambda b: b""):
        file = tmp_path / "c" / "00000002.safetensors"
        file.write_bytes(damage(file.read_bytes()))
        counted.clear()
        dfm = new().fit(copied, checkpoint=tmp_path / "c")
        assert len(counted) == 6
        assert np.array_equal(dfm.score(copied), want)


def test_a_checkpoint_of_something_else_is_told(copied, tmp_path):
    folder = tmp_path / "c"
    new().fit(copied, checkpoint=folder)
    with pytest.raises(ValueError, match=r"was begun with other grids and pool; name another"):
        new(pool=2).fit(copied, checkpoint=folder)
    sorted(copied.iterdir())[0].touch()
    with pytest.raises(ValueError, match=r"was begun with other pictures"):
        new().fit(copied, checkpoint=folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files; name an empty or new folder"):
        new().fit(copied, checkpoint=tmp_path / "other")
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"was begun with something else"):
        new().fit(copied, checkpoint=folder)


def test_a_checkpoint_needs_files(textures, tmp_path):
    with pytest.raises(ValueError, match="checkpoint needs pictures that can be found again"):
        new().fit(textures, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="checkpoint is for images, and X holds features"):
        new().fit(np.eye(4), checkpoint=tmp_path / "c")
