import os
import pickle
import re

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.features.inputs.images import ImageError, extensions, list_images, read_image


def write(path, *, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.new("RGB", (8, 8)).save(path)
    else:
        path.write_bytes(content)
    return str(path)


# Folders


def test_a_folder_is_searched_in_depth_and_sorted(tmp_path):
    wanted = ["a/10.PNG", "a/9.png", "b.jpg", "b/deep/er/x.tiff", "c.bmp"]
    for name in [*reversed(wanted), ".hidden.png", ".git/x.png", "a/.thumbs/y.png"]:
        write(tmp_path / name)
    assert list_images(tmp_path) == [str(tmp_path / name) for name in sorted(wanted)]


def test_links_are_followed_once_and_loops_end(tmp_path):
    inside, elsewhere = tmp_path / "inside", tmp_path / "elsewhere"
    write(inside / "x.png")
    write(elsewhere / "y.png")
    (inside / "link").symlink_to(elsewhere)
    (inside / "loop").symlink_to(inside)
    (elsewhere / "back").symlink_to(inside)
    assert list_images(inside) == [str(inside / "link/y.png"), str(inside / "x.png")]


def test_a_folder_that_cannot_be_read_is_told(unprivileged):
    write(unprivileged / "x.png")
    write(unprivileged / "closed" / "y.png")
    (unprivileged / "closed").chmod(0)
    with pytest.warns(UserWarning, match=r"a folder cannot be read and is skipped: .*closed'"):
        assert list_images(unprivileged) == [str(unprivileged / "x.png")]
    (unprivileged / "closed").chmod(0o755)


def test_a_single_file_is_taken_whatever_its_name(tmp_path):
    path = tmp_path / "picture"
    Image.new("RGB", (48, 40), (1, 2, 3)).save(path, "png")
    assert list_images(path) == [str(path)]
    assert (read_image(path, np.asarray) == (1, 2, 3)).all()


def test_what_is_not_there_is_told(tmp_path):
    gone = tmp_path / "gone"
    says = f"there is no file or folder '{re.escape(str(gone))}'"
    with pytest.raises(FileNotFoundError, match=says):
        list_images(gone)


def test_a_folder_without_pictures_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images; .*\.png"):
        list_images(tmp_path)
    write(tmp_path / "notes.txt", content=b"")
    write(tmp_path / "model.pth", content=b"")
    with pytest.raises(ValueError, match=r"holds no images \(only 2 other files\)"):
        list_images(str(tmp_path))


def test_every_ending_that_pillow_reads_is_searched(tmp_path):
    endings = {"png": "png", "tga": "tga", "jpe": "jpeg", "dib": "dib", "qoi": "qoi", "TIF": "tiff"}
    for ending, kind in endings.items():
        Image.new("RGB", (8, 8)).save(tmp_path / f"x.{ending}", kind)
    assert len(list_images(tmp_path)) == len(endings)
    assert not {".h5", ".eps", ".mpg", ".txt"} & extensions()


def test_files_that_are_no_images_are_counted_in_one_line(tmp_path):
    for name in ("a.txt", "sub/b.csv", "Thumbs.db", ".DS_Store"):
        write(tmp_path / name, content=b"x")
    write(tmp_path / "x.png")
    with pytest.warns(UserWarning, match=r"2 files in .* left out; the first: '.*a\.txt'") as told:
        assert list_images(tmp_path) == [str(tmp_path / "x.png")]
    assert len(told) == 1


# Files


def test_an_image_is_opened_from_a_path_or_taken_as_it_is(tmp_path):
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    image.save(tmp_path / "x.png")
    for source in (tmp_path / "x.png", str(tmp_path / "x.png"), image):
        assert (read_image(source, np.asarray) == (1, 2, 3)).all()


def test_an_error_of_the_conversion_is_an_image_error():
    def fail(image):
        raise ArithmeticError

    with pytest.raises(ImageError, match=r"^ArithmeticError$"):
        read_image(Image.new("L", (2, 2)), fail)


@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing", "text"])
def test_a_path_that_is_no_image_is_told(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs pipes")
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_bytes(b"This is text.")
    says = {"nothing": "^there is no such file$", "text": "^it is not an image$"}
    with pytest.raises(ImageError, match=says.get(kind, "^it is not a file$")):
        read_image(path, np.asarray)


def test_a_file_beyond_max_pixels_is_refused_with_its_remedy(tmp_path, monkeypatch):
    write(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"^it has 64 pixels, more than max_pixels, 63; pass"):
        read_image(tmp_path / "x.png", np.asarray, 63)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)  # Pillow raises beyond twice this
    with pytest.raises(ImageError, match="more than max_pixels, 62"):
        read_image(tmp_path / "x.png", np.asarray)
    assert read_image(tmp_path / "x.png", np.asarray, 64).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # and warns beyond once this
    assert read_image(tmp_path / "x.png", np.asarray).shape == (8, 8, 3)
    assert Image.MAX_IMAGE_PIXELS == 40


# Names


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_names_colour_no_message(tmp_path):
    write(tmp_path / "\x1b[31m\n1.png", content=b"no")
    write(tmp_path / "\x1b[32m.txt", content=b"no")
    with pytest.warns(UserWarning, match="1 files in") as told:
        found = list_images(tmp_path)
    assert str(told[0].message).isprintable()
    with pytest.raises(ImageError) as refused:
        pydfm.DFM(weights=None, layers="layer1", image_size=32).fit(found)
    assert str(refused.value).isprintable()
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
