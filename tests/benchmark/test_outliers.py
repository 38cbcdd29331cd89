import re

import numpy as np
import pytest
from measured import FAST

from pydfm import DFM
from pydfm.benchmark.configuration import Configuration
from pydfm.benchmark.outliers import DataSet, outliers_table, read_data_set, run_outliers
from pydfm.metrics import evaluate


def test_features_are_reported_apart(sets, tmp_path):
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
    dfm = DFM().fit(train.images, labels=train.labels)
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


def test_other_data_of_the_same_name_and_size_are_measured_anew(sets, tmp_path, fits):
    train, test, noise, same = sets
    output, configurations = tmp_path / "ood.csv", [Configuration("a", {})]
    run_outliers(train, test, [noise, same], configurations, output)
    fits.clear()
    other = DataSet("noise", same.images, None)
    found = run_outliers(train, test, [other, same], configurations, output)
    assert len(fits) == 1
    assert found == run_outliers(train, test, [other, same], configurations)
    relabelled = DataSet("train", train.images, train.labels[::-1].copy())
    run_outliers(relabelled, test, [same], configurations, output)
    assert len(fits) == 3


def test_an_image_that_has_no_score_is_an_error(overflow):
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    one, other = DataSet("one", images, None), DataSet("other", images, None)
    with pytest.raises(ValueError, match=r"1 of 8 images have .* the first is number 2"):
        run_outliers(one, one, [other], [Configuration("a", FAST)])


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
