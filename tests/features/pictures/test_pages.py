import csv
import io
import struct

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.features.inputs.images import ImageError, list_images, read_image
from pydfm.features.inputs.sources import open_source
from pydfm.features.pictures.pages import split_page, with_pages

KINDS = {"tif": "tiff", "gif": "gif", "png": "png", "webp": "webp"}


def page(seed, size=(48, 40)):
    noise = np.random.default_rng(seed).integers(0, 255, size[::-1], dtype=np.uint8)
    return Image.fromarray(noise)


def write(path, pages, kind="tiff", **how):
    if kind == "webp":
        how["lossless"] = True
    pages[0].save(path, kind, save_all=True, append_images=pages[1:], **how)
    return str(path)


@pytest.mark.parametrize("ending", KINDS)
def test_each_page_is_an_image_of_its_own(tmp_path, ending):
    pages = [page(i) for i in range(3)]
    path = write(tmp_path / f"burst.{ending}", pages, KINDS[ending])
    names = [f"{path}#{i}" for i in (1, 2, 3)]
    assert with_pages(list_images(tmp_path)) == names
    assert with_pages(names) == names
    for name, want in zip(names, pages, strict=True):
        assert list_images(name) == [name]
        found = read_image(name, lambda image: np.asarray(image.convert("L")))
        assert np.array_equal(found, np.asarray(want))
    with pytest.raises(ImageError, match=r"^there is no page 4: the file has 3$"):
        read_image(f"{path}#4", np.asarray)


def dcx(pages):
    """Several PCX files in one."""
    files = []
    for own in pages:
        files.append(io.BytesIO())
        own.save(files[-1], "pcx")
    data = [file.getvalue() for file in files]
    begin = 4 + 4 * (len(data) + 1)
    places = [begin + sum(map(len, data[:i])) for i in range(len(data))]
    return struct.pack(f"<{len(data) + 2}I", 0x3ADE68B1, *places, 0) + b"".join(data)


def fli(pages):
    """An animation of whole frames, with the grey levels as its palette."""
    width, height = pages[0].size
    grey = b"".join(bytes([level] * 3) for level in range(256))
    colours = struct.pack("<IHHBB", 6 + 4 + 768, 4, 1, 0, 0) + grey
    frames = []
    for i, own in enumerate(pages):
        chunks = [colours] if i == 0 else []
        chunks.append(struct.pack("<IH", 6 + width * height, 16) + own.tobytes())
        body = b"".join(chunks)
        frames.append(struct.pack("<IHH8x", 16 + len(body), 0xF1FA, len(chunks)) + body)
    rest = b"".join(frames)
    head = struct.pack("<IHHHHHHI", 128 + len(rest), 0xAF12, len(pages), width, height, 8, 3, 100)
    return head.ljust(128, b"\0") + rest


@pytest.mark.parametrize(("ending", "form"), [("dcx", dcx), ("flc", fli), ("mpo", None)])
def test_rarer_formats_have_pages_too(tmp_path, ending, form):
    pages = [page(i) for i in range(3)]
    path = tmp_path / f"burst.{ending}"
    if form is None:
        write(path, [own.convert("RGB") for own in pages], "mpo", quality=100)
    else:
        path.write_bytes(form(pages))
    names = [f"{path}#{i}" for i in (1, 2, 3)]
    assert with_pages(list_images(tmp_path)) == names
    for name, want in zip(names, pages, strict=True):
        found = read_image(name, lambda image: np.asarray(image.convert("L"), dtype=int))
        assert np.abs(found - np.asarray(want)).max() <= (0 if form else 3)


def test_a_preview_behind_a_photograph_is_no_page(tmp_path):
    photograph = [page(0).convert("RGB"), page(1, (24, 20)).convert("RGB")]
    jpeg = write(tmp_path / "a.jpg", photograph, "mpo")
    assert with_pages([jpeg]) == [jpeg]
    mpo = write(tmp_path / "a.mpo", photograph, "mpo")
    with pytest.warns(UserWarning, match=r"1 pages are smaller .*; the first: '.*a\.mpo#2'"):
        assert with_pages([mpo]) == [mpo]


def test_pages_smaller_than_the_largest_are_left_out_in_one_warning(tmp_path):
    pyramid = write(tmp_path / "a.tif", [page(0), page(1, (24, 20)), page(2, (12, 10))])
    preview = write(tmp_path / "b.tif", [page(0, (24, 20)), page(1), page(2)])
    with pytest.warns(UserWarning, match=r"3 pages are smaller .*; the first: '.*a\.tif#2'") as w:
        assert with_pages([pyramid, preview]) == [pyramid, f"{preview}#2", f"{preview}#3"]
    assert len(w) == 1


def test_a_file_of_that_name_is_no_page(tmp_path):
    path = write(tmp_path / "a.tif", [page(0), page(1)])
    page(2).save(tmp_path / "a.tif#2", "png")
    assert split_page(f"{path}#2") == (f"{path}#2", None)
    assert split_page(f"{path}#1") == (path, 1)
    assert split_page(f"{path}#0") == (f"{path}#0", None)


def test_paths_of_a_generator_have_all_their_pages(tmp_path):
    burst = write(tmp_path / "a.tif", [page(0), page(1)])
    page(2).save(tmp_path / "b.png")
    source = open_source(iter([burst, tmp_path / "b.png"]), "raise")
    batch = source.batches(pydfm.Preprocessing((40, 48), None), 2, 1)
    found = np.concatenate([one.pixels for one in batch])
    assert np.array_equal(found[:, 0], [np.asarray(page(i)) for i in range(3)])


def test_one_open_file_in_place_of_its_pages_is_refused(tmp_path):
    film = Image.open(write(tmp_path / "a.tif", [page(0), page(1)]))
    with film, pytest.raises(ValueError, match="X holds one open file 2 times"):
        open_source([film, film], "raise")
    assert open_source([page(0)] * 2, "raise").total == 2


@pytest.mark.filterwarnings("ignore:alpha is 0.01")
def test_pages_have_a_score_a_row_and_a_map_each(tmp_path):
    from pydfm.cli.main import main

    pages = [page(i) for i in range(6)]
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "a.tif", pages)
    dfm = pydfm.DFM(2, weights=None, layers="layer1", pool=2, image_size=32, alpha=0.2)
    assert dfm.fit(tmp_path / "in").n_samples_ == 6
    assert dfm.held_out_names_.tolist() == [f"{path}#{i}" for i in range(1, 7)]
    np.testing.assert_allclose(dfm.score(path), dfm.score(pages), rtol=1e-4)
    np.testing.assert_allclose(dfm.score(f"{path}#3"), dfm.score(pages[2]), rtol=1e-4)
    groups = dfm.fit(tmp_path / "in", groups=lambda name: int(name.rpartition("#")[2]) // 2)
    groups.save(tmp_path / "m")
    args = ["score", tmp_path / "m", tmp_path / "in", "-o", tmp_path / "s.csv"]
    assert main([*map(str, args), "--maps", str(tmp_path / "maps")]) == 0
    rows = list(csv.reader(io.StringIO((tmp_path / "s.csv").read_text())))
    assert [row[0] for row in rows[1:]] == [f"{path}#{i}" for i in range(1, 7)]
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == [
        f"a.tif#{i}.png" for i in range(1, 7)
    ]
