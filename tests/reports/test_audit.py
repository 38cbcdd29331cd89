import json
import re

import pytest
from PIL import Image

from pydfm.reports.audit import audit_text, write_audit

from .conftest import HOSTILE, calm_pictures, small_network, with_defect

ODD = f"z_{HOSTILE}"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "good"
    root.mkdir()
    for i, picture in enumerate(calm_pictures(40)):
        picture.save(root / f"{i:02}_a.png")
    for i, picture in enumerate(calm_pictures(2, seed=5)):
        with_defect(picture, (5 + 20 * i, 5, 40 + 10 * i, 25)).save(root / f"x{i}_a.png")
    calm_pictures(40)[7].save(root / "07_b.png")
    calm_pictures(1, seed=9, size=(40, 32))[0].save(root / ODD)
    (root / "broken_a.png").write_bytes(b"text")
    return root


@pytest.fixture
def audit(folder):
    import pydfm

    dfm = pydfm.DFM(0.9, backbone=small_network(), image_size=32, device="cpu", alpha=0.1)
    return dfm.audit(folder)


def test_the_text_lists_everything(audit, folder):
    text = "\n".join(audit_text(audit))
    assert "images      44 read, 1 not" in text
    assert f"cannot read image '{folder}/broken_a.png'" in text
    assert re.search(
        r"unlike      \d are unlike the others, at a false discovery rate of 5 %:", text
    )
    assert f"{folder}/x0_a.png  score" in text
    assert "copies      2 are equal or nearly equal to others, in 1 group:" in text
    assert f"{folder}/07_a.png; {folder}/07_b.png" in text
    assert "--groups '" in text
    assert "its size is 40 x 32 px; 43 of 44 have 60 x 48 px" in text
    assert "956 more are needed for 0.001" in text
    assert "without the worst two scores it would be" in text


def test_the_page_shows_what_to_look_at(audit, tmp_path):
    write_audit(audit, tmp_path / "x.html", title="good", details=[("Network", "small")])
    page = (tmp_path / "x.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    names = [card["name"] for card in data["cards"]]
    assert set(names) >= {"x0_a.png", "x1_a.png", "07_a.png", "07_b.png", ODD}
    assert len(names) < 20
    groups = {card["name"]: card["group"] for card in data["cards"]}
    assert (groups["x0_a.png"], groups["07_b.png"], groups[ODD]) == ("flagged", "copies", "odd")
    assert "<strong>broken_a.png</strong>: cannot be read" in page
    assert "<img src=x" not in page
    assert page.count('class="photo"') == len(names)


def test_images_without_files_are_named(tmp_path):
    import pydfm

    dfm = pydfm.DFM(0.9, backbone=small_network(), image_size=32, device="cpu", alpha=0.1)
    pictures = [*calm_pictures(40), with_defect(Image.new("RGB", (60, 48), "grey"))]
    write_audit(dfm.audit(pictures), tmp_path / "x.html", title="good", details=[])
    page = (tmp_path / "x.html").read_text()
    assert "40 of X" in page
    assert "no picture of it" in page


def test_a_page_of_nothing_says_so(tmp_path, good, dfm):
    from dataclasses import replace

    rows = tuple(replace(row, flagged=False, notes=(), group=0) for row in dfm.audit().rows)
    write_audit(replace(dfm.audit(), rows=rows), tmp_path / "x.html", title="good", details=[])
    assert "Nothing stands out." in (tmp_path / "x.html").read_text()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_audit(dfm.audit(), tmp_path / "no" / "x.html", title="good", details=[])


def test_the_page_in_a_browser(browser, audit, tmp_path):
    write_audit(audit, tmp_path / "x.html", title="good", details=[])
    browser.get((tmp_path / "x.html").as_uri())
    shown = "return visibleCards().map((card) => card.querySelector('h3').textContent)"
    before = browser.execute_script(shown)
    assert before[0] in ("x0_a.png", "x1_a.png")
    browser.execute_script(
        """byId("filter").value = "copies"; byId("filter").dispatchEvent(new Event("change"));"""
    )
    assert sorted(browser.execute_script(shown)) == ["07_a.png", "07_b.png"]
    browser.execute_script("choose(visibleCards()[0]); mark(chosen, 'bad');")
    assert browser.execute_script("return marksAsCsv()").splitlines()[1].split(",")[1] == "bad"
