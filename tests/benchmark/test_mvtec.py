import csv

import numpy as np
import pytest
from measured import FAST

from pydfm import DFM
from pydfm.benchmark.configuration import Configuration, read_configurations
from pydfm.benchmark.mvtec import mvtec_table, run_mvtec
from pydfm.datasets import load_category, load_masks
from pydfm.metrics import aupro, evaluate, pixel_auroc


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

    def stop(self, X):
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fit(self, X)

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
    # Other parameters or other pictures are measured anew, under the same name.
    small = configurations[0]
    run_mvtec(root, [Configuration("small", {**FAST, "n_components": 3})], output)
    assert len(fits) == 2
    picture = root / "carpet" / "test" / "good" / "0.png"
    picture.write_bytes((root / "carpet" / "test" / "cut" / "0.png").read_bytes())
    fits.clear()
    again = run_mvtec(root, [small], output)
    assert len(fits) == 1
    assert again[0]["image_auroc"] != results[0]["image_auroc"]
    assert len(list(csv.DictReader(output.read_text().splitlines()))) == 7


def test_a_picture_that_has_no_score_is_an_error(root, overflow):
    with (
        pytest.warns(UserWarning, match=r"carpet, small: 1 of 8 images .* the first is '.*2.png'"),
        pytest.raises(ValueError, match="none of the 1 categories"),
    ):
        run_mvtec(root / "carpet", [Configuration("small", FAST)])


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
