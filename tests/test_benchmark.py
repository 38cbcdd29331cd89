import csv
import re
from statistics import mean

import numpy as np
import pytest
from PIL import Image

from pydfm import DFM, cli
from pydfm.benchmark.category import measure_category
from pydfm.benchmark.configuration import Configuration, read_configurations
from pydfm.benchmark.mvtec import DEFAULTS, mvtec_table, run_mvtec
from pydfm.benchmark.outliers import (
    DataSet,
    default_configurations,
    outliers_table,
    read_data_set,
    run_outliers,
)
from pydfm.benchmark.published import _TABLES, PUBLISHED
from pydfm.benchmark.record import Record
from pydfm.datasets import load_category, load_masks
from pydfm.evaluation import aupro, evaluate, pixel_auroc

FAST = {"weights": None, "layers": ("layer1",), "pool": 4, "image_size": 32}

TOML = """
[small]
weights = "none"
layers = ["layer1"]
pool = 4
image_size = 32
n_components = "all"

[few]
weights = "none"
layers = ["layer1"]
pool = 4
image_size = 32
n_components = 2
"""


def surface(rng, spotted=False):
    pixels = rng.integers(90, 130, (32, 32, 3), dtype=np.uint8)
    if spotted:
        pixels[8:16, 8:20] = 250
    return pixels


@pytest.fixture
def root(tmp_path):
    """Two categories, one of which has a mask missing, and one that cannot be measured."""
    rng = np.random.default_rng(0)
    for name in ("carpet", "more/own"):
        category = tmp_path / "data" / name
        for part, count in {"train/good": 6, "test/good": 4, "test/cut": 4}.items():
            (category / part).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(surface(rng, spotted=part == "test/cut"))
                picture.save(category / part / f"{i}.png")
        (category / "ground_truth" / "cut").mkdir(parents=True)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[8:16, 8:20] = 255
        for i in range(3):
            Image.fromarray(mask).save(category / "ground_truth" / "cut" / f"{i}_mask.png")
    (tmp_path / "data" / "broken" / "test" / "good").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def fits(monkeypatch):
    """What was fitted, by the first of its pictures or the shape of its features."""
    seen = []
    fit = DFM.fit

    def spy(self, X, y=None):
        seen.append(X)
        return fit(self, X, y)

    monkeypatch.setattr(DFM, "fit", spy)
    return seen


# Configurations


def test_configurations_come_from_a_file(config):
    small, few = read_configurations(config)
    assert small == Configuration("small", {**FAST, "n_components": None})
    assert few.build(n_threads=1).get_params()["n_components"] == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a", "is not TOML"),
        ("", "must hold a table"),
        ("pool = 2", "must hold a table"),
        ("[a]\npools = 2", "'a' has 'pools', which is no parameter of DFM; those are"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, says):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        read_configurations(path)


def test_settings_are_what_a_result_depends_on():
    one = Configuration("a", {"pool": 2, "n_threads": 1, "layers": ("x",)})
    assert one.settings() == '{"layers": ["x"], "pool": 2}'
    assert Configuration("a", {"layers": ("x",), "pool": 2}).settings() == one.settings()
    assert Configuration("a", {"layers": ("x",), "pool": 3}).settings() != one.settings()


def test_defaults_are_parameters_that_there_are():
    for configuration in (*DEFAULTS, *default_configurations(labelled=True)):
        assert configuration.build().get_params()["layers"]


# Records


def test_a_record_resumes(tmp_path):
    path = tmp_path / "results.csv"
    keys = {"who": "a,b"}
    record = Record(path, ("who",), ("x", "y"))
    assert record.find(keys, "s") is None
    row = record.add(keys, "s", {"x": 1 / 3, "y": None})
    assert row == {"who": "a,b", "settings": "s", "x": "0.333333", "y": ""}
    again = Record(path, ("who",), ("x", "y"))
    assert again.find(keys, "s") == row
    with pytest.raises(ValueError, match=r"has a,b with the settings s, not t; pass another file"):
        again.find(keys, "t")


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_short_is_removed(tmp_path, cut):
    path = tmp_path / "results.csv"
    record = Record(path, ("who",), ("x",))
    for who in "ab":
        record.add({"who": who}, "{settings with, commas}", {"x": 0.5})
    whole = path.read_text()
    path.write_text(whole[:-cut])
    again = Record(path, ("who",), ("x",))
    for who in "ab":
        if again.find({"who": who}, "{settings with, commas}") is None:
            again.add({"who": who}, "{settings with, commas}", {"x": 0.5})
    assert path.read_text() == whole


def test_another_table_is_not_written_to(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("path,score\n1.png,2\n")
    with pytest.raises(ValueError, match="has other columns"):
        Record(path, ("who",), ("x",))
    assert path.read_text() == "path,score\n1.png,2\n"


# MVTec


def test_every_category_is_measured_under_every_configuration(root, config, fits):
    with pytest.warns(UserWarning, match="broken, .*: .*; left out"):
        results = run_mvtec(root, read_configurations(config))
    names = [(row["category"], row["configuration"]) for row in results]
    assert names == [(c, n) for c in ("carpet", "more/own") for n in ("small", "few")]
    assert len(fits) == 4
    category = load_category(root / "carpet")
    dfm = DFM(**FAST, n_components=2).fit(category.train)
    expected = evaluate(dfm.score(category.test), category.labels)
    row = results[1]
    assert (row["n_train"], row["n_test"], row["n_masks"]) == ("6", "8", "3")
    assert float(row["image_auroc"]) == pytest.approx(expected["auroc"], abs=1e-6)
    for name in ("aupr", "f1_max", "fpr95"):
        assert float(row[name]) == pytest.approx(expected[name], abs=1e-6)


def test_pixel_metrics_leave_out_pictures_without_a_mask(root, monkeypatch):
    maps = np.random.default_rng(0).random((7, 32, 32)).astype(np.float32)
    monkeypatch.setattr(DFM, "score_map", lambda self, X, score_type: maps[: len(X)])
    (row,) = run_mvtec(root / "carpet", [Configuration("small", FAST)])
    category = load_category(root / "carpet")
    kept = [path not in category.without_mask for path in category.test]
    assert sum(kept) == 7
    masks = load_masks(category, (32, 32))[kept]
    assert float(row["pixel_auroc"]) == pytest.approx(pixel_auroc(maps, masks), abs=1e-6)
    assert float(row["aupro"]) == pytest.approx(aupro(maps, masks), abs=1e-6)


def test_configurations_may_take_several_layers_and_patches(root):
    layers = {**FAST, "layers": ("layer1", "layer2"), "pool": None, "spatial": "patch"}
    configurations = [
        Configuration("patches", {**layers, "n_components": 4, "combine": "max"}),
        Configuration("no maps", {**FAST, "score_type": "ppca"}),
    ]
    patches, no_maps = run_mvtec(root / "carpet", configurations)
    category = load_category(root / "carpet")
    dfm = configurations[0].build().fit(category.train)
    expected = evaluate(dfm.score(category.test), category.labels)["auroc"]
    assert float(patches["image_auroc"]) == pytest.approx(expected, abs=1e-6)
    assert float(patches["pixel_auroc"]) > 0.5
    assert (no_maps["pixel_auroc"], no_maps["aupro"]) == ("", "")
    assert float(no_maps["image_auroc"]) >= 0


def test_metrics_are_of_one_score_type(root):
    category = load_category(root / "carpet")
    dfm = DFM(score_type=("fre", "ppca"), **FAST).fit(category.train)
    with pytest.raises(ValueError, match=r"score_type is \('fre', 'ppca'\); metrics are of one"):
        measure_category(dfm, category)
    metrics = measure_category(dfm, category, "fre")
    assert set(metrics.pixel) == {"pixel_auroc", "aupro"}
    assert metrics.no_pixels == ""


@pytest.mark.filterwarnings("ignore:1 of . images were skipped")
def test_pictures_that_cannot_be_read_may_be_left_out(root):
    category = root / "carpet"
    for broken in ("train/good/0.png", "test/cut/0.png"):
        (category / broken).write_bytes(b"no picture")
    (row,) = run_mvtec(category, [Configuration("small", {**FAST, "on_error": "skip"})])
    assert (row["n_train"], row["n_test"]) == ("5", "7")
    with (
        pytest.warns(UserWarning, match=r"carpet, small: cannot read image .*; left out"),
        pytest.raises(ValueError, match="none of the 1 categories"),
    ):
        run_mvtec(category, [Configuration("small", FAST)])


@pytest.mark.filterwarnings("ignore:broken")
def test_a_run_that_was_stopped_goes_on(root, config, fits, tmp_path, monkeypatch):
    configurations = read_configurations(config)
    output = tmp_path / "results.csv"
    fit = DFM.fit

    def stop(self, X, y=None):
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fit(self, X, y)

    with monkeypatch.context() as context:
        context.setattr(DFM, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            run_mvtec(root, configurations, output)
    stopped = output.read_text()
    assert len(list(csv.DictReader(stopped.splitlines()))) == 3
    fits.clear()
    results = run_mvtec(root, configurations, output)
    assert len(fits) == 1
    assert output.read_text().startswith(stopped)
    fits.clear()
    assert run_mvtec(root, configurations, output) == results
    assert not fits
    with pytest.raises(ValueError, match=r"carpet small with the settings .*pass another file"):
        run_mvtec(root, [Configuration("small", {**FAST, "n_components": 3})], output)


def test_nothing_measured_is_an_error(root):
    with (
        pytest.warns(UserWarning, match="broken"),
        pytest.raises(ValueError, match="none of the 1 categories"),
    ):
        run_mvtec(root / "broken", [Configuration("small", FAST)])


def test_the_table_stands_beside_the_published_figures():
    base = dict.fromkeys(("n_train", "n_test", "n_masks", "pixel_auroc", "aupro", "seconds"), "")
    rows = [
        {
            **base,
            "category": category,
            "configuration": "mine",
            "settings": '{"backbone": "resnet18"}',
            **dict.fromkeys(("image_auroc", "aupr", "f1_max", "fpr95"), value),
        }
        for category, value in (("mvtec/carpet", "0.900000"), ("own", "0.700000"))
    ]
    lines = mvtec_table(rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    header = ["category", "image AUROC", "anomalib current", "anomalib old"]
    assert cells[0][:4] == header
    assert "AUPRO" not in cells[0]
    assert cells[2][:4] == ["mvtec/carpet", "0.900", "0.817", "0.864"]
    assert cells[3][:4] == ["own", "0.700", "", ""]
    assert cells[4][:4] == ["mean of 2", "0.800", "0.817", "0.864"]


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_categories_average_to_the_published_average(key):
    published = float(_TABLES[key].split()[0])
    known_error = key == ("wide_resnet50_2", "old", "f1_max")
    assert (abs(mean(PUBLISHED[key].values()) - published) < 6e-4) != known_error


# Out-of-distribution data


@pytest.fixture
def sets():
    """Features in a subspace, others with noise all around, and labels."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(3, 10))
    inside = rng.normal(size=(60, 3)) @ basis
    return (
        DataSet("train", inside[:40], np.arange(40) % 2),
        DataSet("test", inside[40:], None),
        DataSet("noise", rng.normal(size=(15, 10)) * 3, None),
        DataSet("same", rng.normal(size=(15, 3)) @ basis, None),
    )


def test_features_are_told_apart(sets, tmp_path):
    train, test, noise, same = sets
    output = tmp_path / "ood.csv"
    configurations = [Configuration("two", {"n_components": 2}), Configuration("three", {})]
    results = run_outliers(train, test, [noise, same], configurations, output)
    found = {
        (row["outliers"], row["configuration"], row["layer"], row["score_type"]): row
        for row in results
    }
    assert len(found) == len(results)
    row = found["noise", "three", "features", "fre"]
    dfm = DFM().fit(train.images, train.labels)
    scores = np.concatenate([dfm.score(test.images), dfm.score(noise.images)])
    expected = evaluate(scores, np.repeat([0, 1], [20, 15]))
    for name in ("auroc", "aupr", "aupr_in", "fpr95"):
        assert float(row[name]) == pytest.approx(expected[name], abs=1e-6)
    assert (row["n_train"], row["n_test"], row["n_outliers"]) == ("40", "20", "15")
    table = outliers_table(results)
    assert table.count("## ") == 2
    assert re.search(rf"\| three +\| features \| fre +\| {expected['auroc']:.3f}", table)


def test_results_that_are_there_are_not_measured_again(sets, tmp_path, fits):
    train, test, *others = sets
    output = tmp_path / "ood.csv"
    results = run_outliers(train, test, others, [Configuration("a", {})], output)
    lines = output.read_text().splitlines(keepends=True)
    output.write_text("".join(lines[:4]))
    fits.clear()
    assert run_outliers(train, test, others, [Configuration("a", {})], output) == results
    assert output.read_text() == "".join(lines)
    assert len(fits) == 1
    assert run_outliers(train, test, others, [Configuration("a", {})], output) == results
    assert len(fits) == 1


def test_every_layer_of_images_is_measured_by_itself(tmp_path):
    rng = np.random.default_rng(0)
    train, test, other = (
        DataSet(name, rng.integers(0, high, (8, 3, 32, 32), dtype=np.uint8), None)
        for name, high in (("train", 128), ("test", 128), ("bright", 256))
    )
    parameters = {**FAST, "layers": ("layer1", "layer2")}
    results = run_outliers(train, test, [other], [Configuration("a", parameters)])
    row = next(r for r in results if (r["layer"], r["score_type"]) == ("layer2", "fre"))
    dfm = DFM(**{**FAST, "layers": "layer2"}).fit(train.images)
    scores = np.concatenate([dfm.score(test.images), dfm.score(other.images)])
    expected = evaluate(scores, np.repeat([0, 1], [8, 8]))["auroc"]
    assert float(row["auroc"]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="configuration 'b' names no layers"):
        run_outliers(train, test, [other], [Configuration("b", {"weights": None})])
    patches = Configuration("c", {**FAST, "spatial": "patch"})
    with pytest.raises(ValueError, match="configuration 'c' has spatial = 'patch'"):
        run_outliers(train, test, [other], [patches])


def test_data_sets_come_from_npz_files(tmp_path):
    path = tmp_path / "data.npz"
    pixels = np.zeros((4, 5, 6, 3), dtype=np.uint8)
    np.savez(path, train_x=pixels, train_y=[0, 1, 0, 1], odd_x=pixels, odd_y=[1], x=np.eye(3))
    train = read_data_set(f"{path}#train")
    assert (train.name, train.images.shape) == ("train", (4, 3, 5, 6))
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert read_data_set(str(path)).labels is None
    assert read_data_set(str(path)).images.shape == (3, 3)
    with pytest.raises(ValueError, match=r"has no array 'none_x'; it has train_x, "):
        read_data_set(f"{path}#none")
    with pytest.raises(ValueError, match="has 4 images in 'odd_x' and labels of the shape"):
        read_data_set(f"{path}#odd")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_data_set("nothing.npz#x")
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"data.npz' is not an npz file"):
        read_data_set(f"{path}#train")


def test_subfolders_are_the_classes(root, picture_folder):
    data = read_data_set(str(root / "carpet" / "test"))
    assert data.labels.tolist() == ["cut"] * 4 + ["good"] * 4
    assert read_data_set(str(picture_folder)).labels is None


# The command line


@pytest.mark.filterwarnings("always:broken")
def test_mvtec_on_the_command_line(root, config, tmp_path, capsys):
    output, table = tmp_path / "r.csv", tmp_path / "r.md"
    arguments = ["benchmark", "mvtec", str(root), "--config", str(config), "-o", str(output)]
    assert cli.main([*arguments, "--markdown", str(table)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "warning: broken, small: " in printed.err
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.strip() == table.read_text().strip()
    assert len(output.read_text().splitlines()) == 5


def test_ood_on_the_command_line(sets, tmp_path, capsys):
    path, config = tmp_path / "data.npz", tmp_path / "c.toml"
    train, test, noise, _ = sets
    np.savez(path, a_x=train.images, a_y=train.labels, b_x=test.images, c_x=noise.images)
    config.write_text("[all]\nn_components = 'all'\n")
    sources = [f"{path}#{name}" for name in "abc"]
    assert cli.main(["benchmark", "ood", *sources, "--config", str(config)]) == 0
    assert "20 in-distribution, 15 out-of-distribution" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["mvtec", "nowhere"], "there is no folder 'nowhere'"),
        (["mvtec", ".", "--config", "no.toml"], "there is no file 'no.toml'"),
        (["mvtec", ".", "-o", "no/r.csv"], "--output: there is no folder 'no'"),
        (["mvtec", ".", "--markdown", "no/r.md"], "--markdown: there is no folder 'no'"),
        (["mvtec", ".", "--markdown", "."], "--markdown: '.' is a folder; name a file to write"),
        (["mvtec", "."], "no folder below '.' has a 'train' or a 'test'"),
        (["ood", "a", "b"], "OOD"),
        (["ood", "a", "b", "c"], "there is no file or folder 'a'"),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", *arguments]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_the_command_line_starts_without_what_is_heavy(run_python):
    code = "import sys, pydfm.cli; print({'torch', 'sklearn', 'scipy', 'tqdm'} & set(sys.modules))"
    assert run_python(code).stdout.strip() == "set()"
