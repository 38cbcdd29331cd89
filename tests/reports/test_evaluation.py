import itertools
import json
import re

import numpy as np
import pytest

import pydfm
from pydfm.datasets.category import load_category
from pydfm.datasets.measure import measure_category
from pydfm.features.transforms import Preprocessing
from pydfm.reports.evaluation import write_evaluation

from .conftest import calm_pictures, small_network, with_defect


@pytest.fixture
def category(tmp_path):
    from PIL import Image

    root = tmp_path / "parts"
    for name, count, seed in (("train/good", 2, 3), ("test/good", 6, 4), ("test/cut", 4, 5)):
        (root / name).mkdir(parents=True)
        for i, picture in enumerate(calm_pictures(count, seed)):
            own = with_defect(picture) if name == "test/cut" and i < 3 else picture
            own.save(root / name / f"{i}.png")
    (root / "ground_truth" / "cut").mkdir(parents=True)
    for i in range(4):
        mask = np.zeros((48, 60), dtype=np.uint8)
        mask[10:20, 30:42] = 255
        Image.fromarray(mask).save(root / "ground_truth" / "cut" / f"{i}_mask.png")
    return load_category(root)


def read(path):
    page = path.read_text()
    return page, json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


def test_the_page_has_the_figures_and_the_mistakes(dfm, category, tmp_path):
    found = write_evaluation(dfm, category, tmp_path / "x.html")
    want = measure_category(dfm, category)
    assert found.image == pytest.approx(want.image)
    assert found.pixel == pytest.approx(want.pixel)
    page, data = read(tmp_path / "x.html")
    assert f"<strong>{want.image['auroc']:.3f}</strong> AUROC" in page
    assert f"AUROC {want.pixel['pixel_auroc']:.3f}, AUPRO {want.pixel['aupro']:.3f}" in page
    anomalous = dfm.predict(category.test) == -1
    labels = np.array(category.labels)
    n_found = (anomalous & labels).sum()
    n_missed, n_alarms = (~anomalous & labels).sum(), (anomalous & ~labels).sum()
    assert (n_found, n_missed) == (3, 1)  # the fourth has no defect
    assert (
        f"{n_found} of 4 defective images found, ▲ {n_missed} missed; {n_alarms} of 6 good" in page
    )
    groups = [card["group"] for card in data["cards"]]
    order = ["missed", "alarm", "found", "passed"]
    assert groups == sorted(groups, key=order.index)
    assert data["cards"][0]["path"].endswith("cut/3.png")
    assert "▲ missed: cut" in page
    assert re.search(r'<th scope="row">cut</th><td class="n">4</td><td class="n">3</td>', page)


def test_images_are_decoded_once(dfm, category, tmp_path, monkeypatch):
    decoded, from_pil = [], Preprocessing.from_pil
    monkeypatch.setattr(
        Preprocessing, "from_pil", lambda own, image: decoded.append(1) or from_pil(own, image)
    )
    write_evaluation(dfm, category, tmp_path / "x.html")
    assert len(decoded) == 10


def test_curves_begin_and_end_at_the_corners(dfm, category, tmp_path):
    write_evaluation(dfm, category, tmp_path / "x.html")
    page, _ = read(tmp_path / "x.html")
    roc, pr = (
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline points="([^"]*)"', page)
    )
    assert (roc[0], roc[-1]) == ((0, 400), (400, 0))
    assert pr[0][0] == 0
    assert pr[-1][0] == 400
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in itertools.pairwise(roc))


def test_without_maps_or_calibration(good, category, tmp_path):
    options = {"backbone": small_network(), "image_size": 32, "device": "cpu", "alpha": 0.1}
    flat = pydfm.DFM(3, spatial="mean", **options).fit(good)
    found = write_evaluation(flat, category, tmp_path / "x.html")
    assert "Not measured: features of" in read(tmp_path / "x.html")[0]
    assert found.pixel == {}
    none = pydfm.DFM(3, calibration=None, **options).fit(good)
    with pytest.raises(ValueError, match="fitted with calibration=None, and has no held-out"):
        write_evaluation(none, category, tmp_path / "y.html")
    assert not (tmp_path / "y.html").exists()


def test_the_page_in_a_browser(browser, dfm, category, tmp_path):
    write_evaluation(dfm, category, tmp_path / "x.html")
    browser.get((tmp_path / "x.html").as_uri())
    groups = "return visibleCards().map((card) => factsOf(card).group)"
    assert set(browser.execute_script(groups)) <= {"missed", "alarm"}
    change = """
        byId("filter").value = arguments[0];
        byId("filter").dispatchEvent(new Event("change"));"""
    browser.execute_script(change, "all")
    assert len(browser.execute_script(groups)) == 10
    sort = """
        byId("sort").value = arguments[0];
        byId("sort").dispatchEvent(new Event("change"));"""
    before = browser.execute_script(groups)
    browser.execute_script(sort, "worst")
    assert browser.execute_script(groups) != before
    browser.execute_script(sort, "given")
    assert browser.execute_script(groups) == before
