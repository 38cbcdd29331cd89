import csv
import errno
import io
import json
import os
import re
import sys
import weakref
from collections import Counter as Counts

import numpy as np
import pytest
import safetensors
from command_line import OPTIONS, assert_error, names, read_rows
from PIL import Image
from safetensors.numpy import save_file

import pydfm
from pydfm import _core
from pydfm.features.extractor import Extractor
from pydfm.features.inputs.images import list_images
from pydfm.features.transforms import Preprocessing
from pydfm.io.loading import LoadedModel
from pydfm.reports.drawing.scale import colours


def test_score_writes_paths_and_scores_and_nothing_else(
    run, model, picture_folder, tmp_path, script
):
    got = run("score", model, picture_folder)
    assert (got.code, got.err) == (0, "")
    want = pydfm.load(model, backbone=script).score(picture_folder)
    assert read_rows(got.out) == [
        (str(picture_folder / f"{i:02}.png"), float(f"{score:.9g}")) for i, score in enumerate(want)
    ]
    assert np.array_equal(np.float32([score for _, score in read_rows(got.out)]), want)

    file = run("score", model, picture_folder, "-o", tmp_path / "scores.csv")
    assert (file.code, file.out, file.err) == (0, b"", "")
    assert (tmp_path / "scores.csv").read_bytes() == got.out
    assert names(tmp_path) == ["scores.csv"]


def test_score_takes_one_picture_and_options(run, model, script, picture_folder, tmp_path):
    picture = picture_folder / "03.png"
    want = float(pydfm.load(model, backbone=script).score(picture)[0])
    moved = tmp_path / "moved.pt"
    moved.write_bytes(script.read_bytes())
    options = ("--batch-size", "1", "--threads", "1", "--device", "cpu", "--backbone", moved)
    for extra in ((), options):
        ((path, score),) = read_rows(run("score", model, picture, *extra).out)
        assert path == str(picture)
        assert score == pytest.approx(want)


@pytest.mark.filterwarnings("default:.*images were skipped", "default:.*are left out")
@pytest.mark.filterwarnings("ignore:alpha is 0.01")
def test_options_that_are_not_given_are_those_of_the_file(
    run, model, script, pictures, tmp_path, monkeypatch
):
    pictures[0].save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    dfm = pydfm.load(model, backbone=script).set_params(on_error="skip", batch_size=7)
    dfm.save(tmp_path / "kept.pydfm")
    used = []
    batches = LoadedModel.batches
    monkeypatch.setattr(
        LoadedModel,
        "batches",
        lambda model, *a, **k: used.append(model.parameters) or batches(model, *a, **k),
    )
    got = run("score", tmp_path / "kept.pydfm", tmp_path)
    assert (got.code, len(read_rows(got.out))) == (0, 2)
    assert (used[0]["batch_size"], used[0]["on_error"]) == (7, "skip")
    run("score", tmp_path / "kept.pydfm", tmp_path, "--batch-size", "2")
    assert (used[1]["batch_size"], used[1]["on_error"]) == (2, "skip")


@pytest.mark.filterwarnings("default:.*images were skipped")
@pytest.mark.filterwarnings("ignore:alpha is 0.01")
def test_classes_are_the_subfolders_and_a_column(run, script, pictures, tmp_path):
    for i, picture in enumerate(pictures):
        folder = tmp_path / "in" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{i:02}.png")
    options = ("--backbone", script, *OPTIONS, "--classes", "--spatial", "mean", "--n-components")
    tied = ("2", "--covariance", "tied", "--score-type", "relative_mahalanobis")
    got = run("fit", tmp_path / "in", "-o", tmp_path / "m", *options, *tied)
    assert (got.code, got.err) == (0, "")
    assert b"12 images, 2 classes, 2 of 6 components" in got.out
    dfm = pydfm.load(tmp_path / "m", backbone=script, device="cpu")
    assert (dfm.covariance, dfm.spatial) == ("tied", "mean")
    scores, predicted = dfm.score(tmp_path / "in"), dfm.predict_class(tmp_path / "in")
    header, *lines = csv.reader(
        io.StringIO(run("score", tmp_path / "m", tmp_path / "in").out.decode())
    )
    assert header == ["path", "score", "p_value", "verdict", "class"]
    assert [line[4] for line in lines] == predicted.tolist()
    assert {line[3] for line in lines} <= {"ok", "anomalous"}
    assert np.array_equal(np.float32([line[1] for line in lines]), scores)
    (tmp_path / "in" / "a" / "00.png").write_bytes(b"text")
    got = run("score", tmp_path / "m", tmp_path / "in", "--skip-unreadable")
    assert "warning: 1 of 12 images were skipped" in got.err
    first, second = got.out.decode().splitlines()[1:3]
    assert first.endswith("00.png,nan,nan,unreadable,")
    assert second == ",".join(lines[1])


def test_several_score_types_are_columns(run, model, picture_folder, script):
    types = ("--score-type", "fre", "--score-type", "ppca")
    got = run("score", model, picture_folder, *types, "--alpha", "0.1")
    assert (got.code, got.err) == (0, "")
    header, *lines = csv.reader(io.StringIO(got.out.decode()))
    assert header == ["path", "fre", "ppca", "p_value", "verdict"]
    lines = [line[:3] for line in lines]
    want = pydfm.load(model, backbone=script).score(picture_folder, score_type=("fre", "ppca"))
    assert np.array_equal(np.float32([line[1:] for line in lines]).T, want)
    assert_error(
        run("score", model, picture_folder, "--score-type", "mse"), "score_type is 'mse'; it must"
    )


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_pictures_that_cannot_be_read_are_skipped_and_reported(
    run, model, script, pictures, tmp_path
):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(4):
        pictures[i].save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"text")
    got = run("score", model, folder, "--skip-unreadable")
    assert got.code == 0
    assert re.fullmatch(
        r"pydfm: warning: 1 of 4 images were skipped; the first: .*1\.png': it is not an image\n",
        got.err,
    )
    assert [np.isnan(score) for _, score in read_rows(got.out)] == [False, True, False, False]

    output = ("-o", tmp_path / "m", "--backbone", script, *OPTIONS)
    got = run("fit", folder, *output, "--skip-unreadable")
    assert got.code == 0
    assert b": 3 images, " in got.out
    assert "warning: 1 of 4 images were skipped" in got.err


@pytest.fixture
def with_classes(script, pictures, tmp_path):
    """A model of two classes with maps, and the folder that it was fitted on."""
    for i, picture in enumerate(pictures):
        (tmp_path / "in" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "in" / "ab"[i % 2] / f"{i}.png")
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", alpha=0.2)
    dfm.fit(tmp_path / "in", labels="folders").save(tmp_path / "m")
    return tmp_path / "m", tmp_path / "in"


@pytest.mark.parametrize("options", [(), ("--score-type", "fre", "--score-type", "ppca"), "maps"])
def test_features_of_a_batch_or_two_are_in_memory(
    run, with_classes, tmp_path, monkeypatch, options
):
    """Of classes, several score types and maps too."""
    whole = run("score", *with_classes, "--batch-size", "64")
    made, alive, actual = [], [], Extractor.batches

    def batches(*arguments):
        for batch, features in actual(*arguments):
            made.append(weakref.ref(features))
            alive.append(sum(one() is not None for one in made))
            yield batch, features

    monkeypatch.setattr(Extractor, "batches", batches)
    options = ("--maps", tmp_path / "maps") if options == "maps" else options
    got = run("score", *with_classes, "--batch-size", "2", *options)
    assert (got.code, len(made)) == (0, 6)
    assert max(alive) <= 2
    if len(options) < 4:
        assert got.out == whole.out
    assert got.out.count(b"\n") == 13


class Counter:
    """Counts the images that are decoded, and the rows that functions of the core are given."""

    CORE = ("score", "score_nearest", "residuals")

    def __init__(self, monkeypatch):
        self.decoded = Counts()
        self.rows = Counts()
        from_pil = Preprocessing.from_pil

        def decode(preprocessing, image):
            self.decoded[os.path.basename(image.filename)] += 1  # noqa: PTH119
            return from_pil(preprocessing, image)

        monkeypatch.setattr(Preprocessing, "from_pil", decode)
        for name in self.CORE:
            monkeypatch.setattr(_core, name, self.counted(name, getattr(_core, name)))

    def counted(self, name, function):
        def call(rows, *arguments, **options):
            self.rows[(name, *options.get("score_types", ()))] += len(rows)
            return function(rows, *arguments, **options)

        return call


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("types", [(), ("fre", "ppca"), ("ppca", "nll", "mahalanobis")])
def test_no_image_is_decoded_twice_and_no_score_computed_twice(
    run, model, picture_folder, tmp_path, monkeypatch, types, maps
):
    options = [part for kind in types for part in ("--score-type", kind)]
    if maps:
        options = ["--maps", tmp_path / "maps"]
    counter = Counter(monkeypatch)
    got = run("score", model, picture_folder, "--batch-size", "5", *options)
    assert (got.code, got.err) == (0, "")
    assert counter.decoded == {path.name: 1 for path in picture_folder.iterdir()}
    computed = Counts()
    for (_, *kinds), count in counter.rows.items():
        computed.update(dict.fromkeys(kinds, count))
    assert max(computed.values(), default=0) <= 12
    assert counter.rows["residuals",] <= 12


@pytest.mark.filterwarnings("ignore:alpha is 0.01")
def test_classes_and_maps_take_what_the_scores_computed(run, with_classes, tmp_path, monkeypatch):
    counter = Counter(monkeypatch)
    got = run("score", *with_classes, "--maps", tmp_path / "maps", "--batch-size", "12")
    assert (got.code, got.err) == (0, "")
    assert set(counter.decoded.values()) == {1}
    # Scores are made of maps here: of the residuals of each image under each of two classes.
    assert set(counter.rows) == {("residuals",)}
    assert counter.rows["residuals",] == 2 * 12


def test_with_ray_images_are_read_once_here_for_heatmaps(
    run, model, pictures, tmp_path, monkeypatch
):
    """What the workers compute is computed here."""
    (tmp_path / "in").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / "in" / f"{i:02}.png")
    whole = run("score", model, tmp_path / "in", "--maps", tmp_path / "whole")

    def extract(data, dfm, *, batch_size, n_workers):
        assert (batch_size, n_workers) == (5, 2)
        return dfm.set_params(verbose=False).extract([row["path"] for row in data])

    monkeypatch.setattr("pydfm.cli.images.score.ray_data_set", lambda items, n_workers: items)
    monkeypatch.setattr("pydfm.parallel.ray.extract", extract)
    options = ("--ray", "2", "--batch-size", "5")
    got = run("score", model, tmp_path / "in", *options, "--maps", tmp_path / "maps")
    assert (got.code, got.err, got.out) == (0, "", whole.out)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "maps" / path.name).read_bytes()
    counter = Counter(monkeypatch)
    assert run("score", model, tmp_path / "in", *options).code == 0
    assert set(counter.decoded.values()) == {1}


def damaged(path, kind):
    data = path.read_bytes()
    if kind == "version":
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata()["pydfm"].replace('"format": 1', '"format": 9')
        return save_file({"mean": np.zeros(1)}, path, {"pydfm": header})
    return path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "random": np.random.default_rng(0).bytes(1000),
            "empty": b"",
            "flipped": data[:-9] + bytes([data[-9] ^ 64]) + data[-8:],
        }[kind]
    )


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "is not a model file of pydfm, or not a whole one"),
        ("random", "is not a model file of pydfm, or not a whole one"),
        ("empty", "is not a model file of pydfm, or not a whole one"),
        ("flipped", "its checksum is wrong"),
        ("version", "its format is 9, .* update pydfm"),
    ],
)
def test_a_model_file_that_is_damaged_is_reported(
    run, model, category, picture_folder, tmp_path, kind, says
):
    path = tmp_path / "m"
    path.write_bytes(model.read_bytes())
    damaged(path, kind)
    assert_error(run("score", path, picture_folder), says)
    assert_error(run("eval", path, category), says)


def test_what_is_no_model_is_reported(run, picture_folder, tiny_network, textures, tmp_path):
    picture = picture_folder / "00.png"
    assert_error(run("score", picture, picture), "'.*00.png' is not a model file of pydfm")
    assert_error(run("score", tmp_path / "gone", picture), "there is no model file '.*gone'")
    assert_error(run("score", tmp_path, picture), "there is no model file")
    path = tmp_path / "m"
    pydfm.DFM(2).fit(np.random.default_rng(0).normal(size=(9, 4))).save(path)
    assert_error(run("score", path, picture), "was fitted on features, not on images; use it from")
    pydfm.DFM(2, backbone=tiny_network, image_size=16, device="cpu").fit(textures).save(path)
    assert_error(
        run("score", path, picture), "backbone is needed: .* module of the class Sequentia"
    )


# Heatmaps


def png(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def test_maps_are_drawn_over_the_pictures(run, model, pictures, tmp_path, script):
    pictures_of = tmp_path / "in"
    (pictures_of / "deep").mkdir(parents=True)
    pictures[0].save(pictures_of / "0.png")
    pictures[1].save(pictures_of / "0.jpg")
    pictures[2].save(pictures_of / "deep" / "0.png")
    got = run("score", model, pictures_of, "--maps", tmp_path / "new" / "maps")
    assert (got.code, got.err) == (0, "")
    assert [score for _, score in read_rows(got.out)] == pytest.approx(
        pydfm.load(model, backbone=script).score(pictures_of), rel=1e-6
    )
    files = sorted(p for p in (tmp_path / "new" / "maps").rglob("*") if p.is_file())
    assert [str(p.relative_to(tmp_path / "new" / "maps")) for p in files] == [
        "0.jpg.png",
        "0.png.png",
        "deep/0.png.png",
    ]
    dfm = pydfm.load(model, backbone=script)
    paths = list_images(pictures_of)
    maps = dfm.score_map(paths).astype(np.float64)
    low, high = dfm.map_range_
    assert (low + high) / 2 == pytest.approx(dfm.map_threshold_)
    shares = ((maps - low) / (high - low)).clip(0, 1)
    for path, share, file in zip(paths, shares, files, strict=True):
        with Image.open(path) as image:
            seen = np.asarray(image.convert("RGB").resize((40, 40), Image.Resampling.BILINEAR))
        want = seen + 0.8 * share[:, :, None] * (colours(share) - seen)
        np.testing.assert_allclose(png(file), want, atol=1.01)


def test_maps_of_one_picture_and_smoothed(run, model, picture_folder, tmp_path):
    picture = picture_folder / "03.png"
    for folder, options in (("a", ()), ("b", ("--smoothing", "3"))):
        formats = ("--map-format", "npy", "--map-format", "png")
        got = run("score", model, picture, "--maps", tmp_path / folder, *options, *formats)
        assert (got.code, got.err) == (0, "")
        assert names(tmp_path / folder) == ["03.png.npy", "03.png.png"]
    rough, smoothed = (np.load(tmp_path / folder / "03.png.npy") for folder in "ab")
    assert smoothed.std() < 0.9 * rough.std()
    assert_error(
        run("score", model, picture, "--maps", tmp_path / "c", "--smoothing", "-1"),
        "--smoothing is -1.0; it must be a number of at least 0",
    )


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_pictures_that_were_skipped_have_no_map(run, model, pictures, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        pictures[i].save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "1.png").write_bytes(b"text")
    got = run("score", model, tmp_path / "in", "--maps", tmp_path / "maps", "--skip-unreadable")
    assert got.code == 0
    assert "1 of 3 images were skipped" in got.err
    assert [np.isnan(score) for _, score in read_rows(got.out)] == [False, True, False]
    assert names(tmp_path / "maps") == ["0.png.png", "2.png.png"]
    for i in (0, 2):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"text")
    got = run("score", model, tmp_path / "in", "--maps", tmp_path / "none", "--skip-unreadable")
    assert (got.code, names(tmp_path / "none")) == (0, [])


def test_maps_that_cannot_be_drawn_are_reported(
    run, model, script, picture_folder, tmp_path, monkeypatch
):
    maps = ("--maps", tmp_path / "maps")
    told = run("score", model, picture_folder, *maps, "--score-type", "nll")
    assert_error(told, "score_type is 'nll', of which a whole image has no map")
    both = ("--score-type", "fre", "--score-type", "ppca")
    told = run("score", model, picture_folder, *maps, *both)
    assert_error(
        told, "maps and regions are of one score type, and there are fre, ppca; name one with"
    )
    inside = ("--maps", picture_folder / "maps")
    assert_error(run("score", model, picture_folder, *inside), "the next run would score its")
    assert_error(run("score", model, picture_folder, "--maps", model), "is a file; name a folder")
    mean = ("--backbone", script, *OPTIONS, "--spatial", "mean")
    assert run("fit", picture_folder, "-o", tmp_path / "m", *mean).code == 0
    told = run("score", tmp_path / "m", picture_folder, *maps)
    assert_error(told, "features of 'output' have one position in an image")
    assert (
        run(
            "fit",
            picture_folder,
            "-o",
            tmp_path / "m",
            "--backbone",
            script,
            *OPTIONS,
            "--calibration",
            "none",
        ).code
        == 0
    )
    for option in ("--maps", "--masks", "--regions"):
        told = run("score", tmp_path / "m", picture_folder, option, tmp_path / "x")
        assert_error(told, "the model was fitted with calibration=None, and has no held-out scores")
        if (tmp_path / "x").exists():
            (tmp_path / "x").rmdir()
    raw = ("--maps", tmp_path / "raw", "--map-format", "npy")
    assert run("score", tmp_path / "m", picture_folder, *raw).code == 0
    assert_error(run("score", model, picture_folder, *raw[2:]), "--map-format is given without --")
    same = ("--maps", tmp_path / "x", "--masks", tmp_path / "x")
    assert_error(run("score", model, picture_folder, *same), "--maps and --masks name one folder")
    gif = (*maps, "--map-format", "gif")
    assert_error(run("score", model, picture_folder, *gif), "--map-format is 'gif'; it must be one")


def test_each_image_is_drawn_as_it_comes(run, model, picture_folder, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "pydfm.reports.drawing.heatmaps.MapFiles.write_maps",
        lambda files, paths, maps, pixels: written.append(len(maps)),
    )
    got = run("score", model, picture_folder, "--maps", tmp_path / "m", "--batch-size", "5")
    assert (got.code, written) == (0, [5, 5, 2])


def test_regions_and_masks_are_in_pixels_of_the_files(run, pictures, script, tmp_path):
    """Also of an image that lies on its side, and of one with a bright spot."""
    calm = [Image.blend(one, Image.new("RGB", one.size, "grey"), 0.8) for one in pictures]
    options = {"backbone": script, "image_size": 40, "device": "cpu", "alpha": 0.1}
    model = tmp_path / "m"
    pydfm.DFM(3, **options).fit(calm).save(model)
    folder = tmp_path / "in"
    folder.mkdir()
    calm[0].save(folder / "0.png")
    odd = np.asarray(calm[1].resize((96, 80))).copy()
    odd[50:70, 60:90] = 255
    Image.fromarray(odd).save(folder / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(odd).save(folder / "2.jpg", exif=exif)
    options = ("--regions", tmp_path / "r.json", "--masks", tmp_path / "masks")
    got = run("score", model, folder, *options)
    assert (got.code, got.err) == (0, "")
    found = json.loads((tmp_path / "r.json").read_text())
    sizes = [(one["file_name"], one["width"], one["height"]) for one in found["images"]]
    assert sizes == [("0.png", 48, 40), ("1.png", 96, 80), ("2.jpg", 80, 96)]
    dfm = pydfm.load(model, backbone=script)
    want = dfm.regions(folder)
    assert len(want[1]) >= 1
    assert found["info"]["map_threshold"] == dfm.map_threshold_
    for k, regions in enumerate(want):
        own = [one for one in found["annotations"] if one["image_id"] == k + 1]
        assert [one["score"] for one in own] == [region.peak for region in regions]
        for one, region in zip(own, regions, strict=True):
            assert one["bbox"] == pytest.approx(region.box, abs=0.01)
            assert np.reshape(one["segmentation"], (-1, 2)) == pytest.approx(
                region.polygon, abs=0.01
            )
        with Image.open(tmp_path / "masks" / f"{sizes[k][0]}.png") as mask:
            assert (mask.mode, mask.size) == ("L", sizes[k][1:])
            assert set(np.unique(np.asarray(mask))) <= {0, 255}
            assert (np.asarray(mask) > 0).any() == bool(regions)
    x, y, width, height = found["annotations"][0]["bbox"]
    assert x < 75 < x + width <= 96
    assert y < 60 < y + height <= 80
    (turned,) = (one["bbox"] for one in found["annotations"] if one["image_id"] == 3)
    assert turned[0] < 20 < turned[0] + turned[2]  # (75, 60) turned clockwise: (80 - 60, 75)
    assert turned[1] < 75 < turned[1] + turned[3]


# Names of files


ODD = [b"a,b.png", b"new\nline.png", b'quo"te.png', "größe 中.png".encode(), b"\xff\xfe.png"]


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a file system that takes any bytes")
@pytest.mark.filterwarnings("ignore:alpha is 0.01", "ignore:X holds rows that are not independent")
@pytest.mark.filterwarnings("ignore:.*are left out")
def test_paths_of_any_bytes_come_out_as_they_are(run, model, script, pictures, tmp_path):
    folder = tmp_path / os.fsdecode(b"in\xff")
    folder.mkdir()
    for picture, name in zip(pictures, ODD, strict=False):
        picture.save(folder / os.fsdecode(name))
    got = run("score", model, folder)
    assert (got.code, got.err) == (0, "")
    found = {os.fsencode(path).rpartition(b"/")[2] for path, _ in read_rows(got.out)}
    assert found == {name.replace(b"\n", rb"\n") for name in ODD}
    assert {os.fsencode(path).rpartition(b"/")[0] for path, _ in read_rows(got.out)} == {
        os.fsencode(folder)
    }
    assert run("score", model, folder, "-o", folder / "s.csv").code == 0
    assert (folder / "s.csv").read_bytes() == got.out
    # The model's own name as well, in what is printed of it.
    fitted = run("fit", folder, "-o", folder / "m", "--backbone", script, *OPTIONS)
    assert fitted.code == 0
    assert os.fsencode(folder / "m") in fitted.out
    assert run("score", folder / "m", folder).code == 0


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a file system that takes any bytes")
def test_errors_about_paths_of_any_bytes_are_one_line(run, model, tmp_path):
    for name in ODD:
        (tmp_path / os.fsdecode(name)).write_bytes(b"text")
        assert_error(run("score", model, tmp_path / os.fsdecode(name)), "it is not an image")
        assert_error(
            run("score", model, tmp_path / os.fsdecode(b"gone" + name)), "there is no file"
        )


# Images of all kinds


def test_odd_pictures_score(run, model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.crop((0, 0, 1, 1)).save(tmp_path / "one.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture.convert("P").save(tmp_path / "palette.png", transparency=bytes(range(256)))
    picture.save(tmp_path / "moving.gif", save_all=True, append_images=[picture.rotate(90)])
    Image.new("L", (2, 20000)).save(tmp_path / "strip.png")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    picture.save(tmp_path / "deep" / "er" / "x.PNG")
    (tmp_path / "folder.png").mkdir()
    got = run("score", model, tmp_path)
    assert (got.code, got.err) == (0, "")
    assert len(read_rows(got.out)) == 7  # two pages of the GIF
    assert all(np.isfinite(score) for _, score in read_rows(got.out))
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(tmp_path / "16bit.png")
    refused = run("score", model, tmp_path / "16bit.png")
    assert_error(refused, "16bit.png': it has more than 8 bits, and the model was fitted on")


@pytest.mark.filterwarnings("default:.*images were skipped")
def test_what_is_no_picture_is_skipped(run, model, picture_folder, tmp_path):
    whole = (picture_folder / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"text")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    count = len(names(tmp_path))
    for path in tmp_path.iterdir():
        assert_error(run("score", model, path), "cannot read image|there is no file or folder")
    (tmp_path / "whole.png").write_bytes(whole)
    got = run("score", model, tmp_path, "--skip-unreadable")
    assert got.code == 0
    assert f"{count} of {count + 1} images were skipped" in got.err
    assert [np.isfinite(score) for _, score in read_rows(got.out)] == [False] * count + [True]


@pytest.mark.filterwarnings("ignore:alpha is 0.01")
@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1.png", "'=1+1.png"),
        ("+x.png", "'+x.png"),
        ("-x.png", "'-x.png"),
        ("@x.png", "'@x.png"),
        ("a\nb,0,1,ok.png", "a\\nb,0,1,ok.png"),
        ("a\r\x1b[31m.png", "a\\r\\x1b[31m.png"),
        ("a\u202e.png", "a\\u202e.png"),
        ('a"b.png', 'a"b.png'),
    ],
)
def test_a_name_cannot_forge_a_row_a_formula_or_a_colour(
    run, model, pictures, tmp_path, monkeypatch, name, cell
):
    monkeypatch.chdir(tmp_path)
    pictures[0].save(tmp_path / name)
    target = ("--", name) if name.startswith("-") else (name,)
    got = run("score", model, *target)
    lines = list(csv.reader(io.StringIO(got.out.decode())))
    assert [line[0] for line in lines] == ["path", cell]
    (tmp_path / name).write_bytes(b"text")
    told = run("score", model, *target).err
    assert told.count("\n") == 1
    assert told.strip("\n").isprintable()


@pytest.mark.filterwarnings("ignore:alpha is 0.01")
def test_max_pixels_is_an_option(run, model, picture_folder):
    picture = picture_folder / "03.png"
    assert_error(run("score", model, picture, "--max-pixels", "99"), "more than max_pixels, 99")
    assert run("score", model, picture, "--max-pixels", "99999").code == 0


@pytest.mark.filterwarnings("ignore:alpha is 0.01")
def test_a_full_disk_keeps_the_table_that_was_there(
    run, model, picture_folder, tmp_path, monkeypatch
):
    table = tmp_path / "table.csv"
    table.write_text("old")

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    got = run("score", model, picture_folder, "-o", table)
    assert_error(got, "table.csv' of .* bytes: No space left on device; the file that was there is")
    assert table.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
