import json
import re

import numpy as np
import pytest

import pydfm
from pydfm.reports.change import write_change

from .conftest import calm_pictures, small_network, with_defect


@pytest.fixture
def paths(tmp_path):
    """Four calm pictures, and two with a defect."""
    found = []
    for i, picture in enumerate(calm_pictures(6, seed=8)):
        found.append(tmp_path / f"{i}.png")
        (with_defect(picture) if i > 3 else picture).save(found[-1])
    return [str(path) for path in found]


def read(path):
    page = path.read_text()
    return page, json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
def test_images_that_are_judged_otherwise_come_first(dfm, paths, tmp_path):
    after = dfm.with_state(training=dfm.training_).partial_fit(paths[4:5] * 4)
    a, b = dfm.assess(paths), after.assess(paths)
    changed = a.verdicts != b.verdicts
    assert 0 < changed.sum() < len(paths)
    write_change(dfm, after, paths, tmp_path / "x.html", title="m", done="4 added", note="so")
    page, data = read(tmp_path / "x.html")
    groups = {card["index"]: card["group"] for card in data["cards"]}
    assert [card["index"] for card in data["cards"]][: changed.sum()] == np.flatnonzero(
        changed
    ).tolist()
    assert all((groups[i] == "changed") == own for i, own in enumerate(changed.tolist()))
    assert f"<strong>{changed.sum()}</strong> of 6 images" in page
    assert "before: ▲ anomalous, p = " in page
    assert f"{dfm.n_samples_} images; alpha 0.1: anomalous above {dfm.threshold_:.4g}" in page
    assert f"{after.n_samples_} images; alpha 0.1: anomalous above {after.threshold_:.4g}" in page
    assert 'class="these"' in page
    assert "<p>so</p>" in page


def test_models_on_other_scales_have_no_chart_and_none_need_images(dfm, good, paths, tmp_path):
    other = pydfm.DFM(
        3, backbone=small_network(), image_size=24, device="cpu", alpha=0.1, score_type="nll"
    ).fit(good)
    write_change(dfm, other, [], tmp_path / "x.html", title="m", done="d", names=("A", "B"))
    page, data = read(tmp_path / "x.html")
    assert data["cards"] == []
    assert 'class="these"' not in page
    assert "<h2>A</h2>" in page
    assert "<h2>B</h2>" in page
    assert re.search(r"Score</th><td>fre, \w+</td><td>nll", page)


def test_what_cannot_be_read_is_named(dfm, paths, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    dfm = dfm.with_state(training=dfm.training_, fitted=dfm.fitted_).set_params(on_error="skip")
    images = [*paths, str(tmp_path / "torn.png")]
    with pytest.warns(UserWarning, match=r"1 of 7 images were skipped.*torn\.png"):
        write_change(dfm, dfm, images, tmp_path / "x.html", title="m", done="d")
    page, data = read(tmp_path / "x.html")
    assert len(data["cards"]) == 6
    assert "1 image could not be read" in page
    assert "torn.png</strong>" in page


@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
def test_the_page_in_a_browser(browser, dfm, paths, tmp_path):
    after = dfm.with_state(training=dfm.training_).partial_fit(paths[4:5] * 4)
    write_change(dfm, after, paths, tmp_path / "x.html", title="m", done="4 added")
    browser.get((tmp_path / "x.html").as_uri())
    change = """
        byId("filter").value = arguments[0];
        byId("filter").dispatchEvent(new Event("change"));
        return visibleCards().map((card) => factsOf(card).group);"""
    assert set(browser.execute_script(change, "changed")) == {"changed"}
    assert len(browser.execute_script(change, "all")) == 6
