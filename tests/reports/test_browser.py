"""Pages in headless Chromium: that they load, decide again, sort, filter, mark and save."""

import csv
import io
import time

import numpy as np
import pytest

from pydfm.reports.batch import report


@pytest.fixture
def page(browser, dfm, batch, tmp_path):
    """The page of the batch, opened from its file."""
    report(dfm, batch, tmp_path / "today.html")
    browser.get((tmp_path / "today.html").as_uri())
    browser.execute_script("localStorage.clear()")
    return browser


def cards(page):
    """Names of the cards, in their order."""
    script = """
        return [...document.querySelectorAll(".card")]
            .filter((card) => !card.hidden)
            .map((card) => card.querySelector("h3").textContent)"""
    return page.execute_script(script)


def anomalous(page):
    script = """
        return [...document.querySelectorAll(".card.anomalous")]
            .map((card) => card.querySelector("h3").textContent)"""
    return set(page.execute_script(script))


def text(page, name):
    return page.execute_script("return document.getElementById(arguments[0]).textContent", name)


def change(page, name, value, event="input"):
    page.execute_script(
        """const one = document.getElementById(arguments[0]);
        one.value = arguments[1];
        one.dispatchEvent(new Event(arguments[2], { bubbles: true }));""",
        name,
        value,
        event,
    )


def press(page, key):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(key).perform()


def keys():
    from selenium.webdriver.common.keys import Keys

    return Keys


def test_the_slider_decides_as_predict_does_at_every_level(page, dfm, batch):
    levels = page.execute_script("return data.levels")
    assert len(levels) == 40
    names = sorted(path.name for path in batch.iterdir())
    for k, level in enumerate(levels):
        change(page, "level", k)
        found = dfm.predict(batch, alpha=float(level["text"])) == -1
        assert anomalous(page) == {name for name, own in zip(names, found, strict=True) if own}
        assert text(page, "count") == str(found.sum())
        assert text(page, "command") == f"dfm.predict(X, alpha={level['text']})"
        assert text(page, "alpha") == level["text"]


def test_the_threshold_is_dragged(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    def drag_to(share):
        """Drag the threshold to a share of the chart's width, from the middle of it."""
        chart = page.find_element(By.ID, "chart")
        handle = page.find_element(By.CSS_SELECTOR, "#threshold .grip")
        actions = ActionChains(page).click_and_hold(handle)
        actions.move_to_element_with_offset(chart, int((share - 0.5) * chart.rect["width"]), 0)
        actions.release().perform()
        level = page.find_element(By.ID, "level").get_property("value")
        return int(level), int(text(page, "count"))

    assert drag_to(0.01) == (39, 8)
    middle, count = drag_to(0.5)
    assert (0 <= middle < 39, 3 <= count < 8) == (True, True)
    assert drag_to(0.99)[0] == 0


def test_cards_are_sorted_and_filtered(page):
    worst = cards(page)
    assert {name[:3] for name in worst[:3]} == {"cut", "<im"}
    change(page, "sort", "name", "change")
    by_name = cards(page)
    assert by_name.index("cut9.png") < by_name.index("cut10.png") < by_name.index("part0.png")
    change(page, "sort", "order", "change")
    assert cards(page) == sorted(worst)
    change(page, "sort", "worst", "change")
    assert cards(page) == worst
    change(page, "search", "CUT")
    assert sorted(cards(page)) == ["cut10.png", "cut9.png"]
    assert text(page, "shown") == "2 of 8 shown"
    change(page, "search", "no such")
    assert cards(page) == []
    assert page.execute_script("return !document.getElementById('nothing').hidden")
    change(page, "search", "")
    change(page, "filter", "anomalous", "change")
    assert set(cards(page)) == anomalous(page)
    change(page, "filter", "normal", "change")
    assert set(cards(page)) == set(worst) - anomalous(page)


def test_keys_move_mark_and_enlarge(page):
    where = "return document.querySelector('.card.chosen')?.querySelector('h3').textContent"
    names = cards(page)
    press(page, keys().ARROW_RIGHT)
    assert page.execute_script(where) == names[0]
    press(page, keys().ARROW_RIGHT)
    press(page, keys().ARROW_RIGHT)
    press(page, keys().ARROW_LEFT)
    assert page.execute_script(where) == names[1]
    columns = page.execute_script("return columns(visibleCards())")
    assert 2 <= columns <= 6
    press(page, keys().ARROW_DOWN)
    assert page.execute_script(where) == names[1 + columns]
    press(page, keys().ARROW_UP)
    assert page.execute_script(where) == names[1]
    press(page, "b")
    marked = "return document.querySelector('.card.chosen').dataset.mark"
    assert page.execute_script(marked) == "bad"
    press(page, "g")
    assert page.execute_script(marked) == "good"
    press(page, "u")
    assert page.execute_script(marked) == ""
    press(page, keys().ENTER)
    assert page.execute_script("return document.querySelectorAll('.card.large').length") == 1
    press(page, "o")
    assert page.execute_script("return document.body.classList.contains('no-overlays')")
    press(page, "/")
    press(page, "gb")  # in the field, not marks
    assert page.execute_script("return document.getElementById('search').value") == "gb"
    assert page.execute_script("return marks.size") == 0


def test_marks_are_saved_as_csv_and_kept(page, dfm, batch):
    from selenium.webdriver.common.by import By

    names = cards(page)
    save = page.find_element(By.ID, "save")
    assert not save.is_enabled()
    press(page, keys().ARROW_RIGHT)
    press(page, "b")
    page.find_elements(By.CSS_SELECTOR, ".card:nth-child(5) [data-mark=good]")[0].click()
    hostile = next(k for k, name in enumerate(names) if name.startswith("<"))
    page.execute_script("mark(document.querySelectorAll('.card')[arguments[0]], 'bad')", hostile)
    change(page, "filter", "bad", "change")
    assert set(cards(page)) == {names[0], names[hostile]}
    change(page, "filter", "all", "change")
    save.click()
    file = page.downloads / "today-marks.csv"
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.05)
    rows = list(csv.reader(io.StringIO(file.read_text())))
    file.unlink()
    assert rows[0] == ["path", "mark", "verdict", "score", "p_value"]
    want = {str(batch / names[0]): "bad", str(batch / names[4]): "good"}
    want[str(batch / names[hostile])] = "bad"
    assert {row[0]: row[1] for row in rows[1:]} == want
    known = dfm.assess([row[0] for row in rows[1:]])
    assert [float(row[3]) for row in rows[1:]] == pytest.approx(known.scores.tolist())
    assert [float(row[4]) for row in rows[1:]] == pytest.approx(known.p_values.tolist())
    verdicts = {-1: "anomalous", 1: "ok"}
    assert [row[2] for row in rows[1:]] == [verdicts[v] for v in known.verdicts.tolist()]
    page.refresh()
    assert page.execute_script("return marks.size") == 3


def test_cells_cannot_be_formulas(page):
    cell = "return cell(arguments[0])"
    assert page.execute_script(cell, "=1+1.png") == "'=1+1.png"
    assert page.execute_script(cell, '@a"b,c') == '"\'@a""b,c"'
    assert page.execute_script(cell, "-0.5") == "-0.5"
    assert page.execute_script(cell, "a\nb") == '"a\nb"'


def test_a_hostile_name_is_shown_and_not_run(page):
    """`browser` checks that the console stays empty; an alert would raise at the next call."""
    assert any(name.startswith("<img src=x onerror") for name in cards(page))
    assert page.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    # Even if it were in the page, the policy would not run it.
    page.execute_script(
        """document.body.insertAdjacentHTML('beforeend', '<p onclick="window.ran = 1">x</p>');
        document.body.lastElementChild.click();"""
    )
    assert page.execute_script("return window.ran") is None
    said = page.get_log("browser")
    assert len(said) == 1
    assert "Content Security Policy" in said[0]["message"]


def test_light_and_dark(page):
    back = "return getComputedStyle(document.body).backgroundColor"
    first = page.execute_script(back)
    press(page, "t")
    second = page.execute_script(back)
    press(page, "t")
    assert first == page.execute_script(back) != second


def test_a_print_has_no_controls_and_all_cards(page):
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        height = "return document.querySelector(arguments[0]).offsetHeight"
        assert page.execute_script(height, ".tools") == 0
        assert page.execute_script(height, ".card:last-child") > 50
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_overlays_lie_on_the_defects(page):
    """The brightest overlay is where the defect was pasted: resize and crop are undone."""
    script = """
        const card = document.querySelector(".card");
        const [photo, map] = ["photo", "map"].map((c) => card.querySelector(`.${c}`));
        const [a, b] = [photo, map].map((one) => one.getBoundingClientRect());
        const canvas = document.createElement("canvas");
        canvas.width = map.naturalWidth;
        canvas.height = map.naturalHeight;
        const paint = canvas.getContext("2d");
        paint.drawImage(map, 0, 0);
        const rgba = [...paint.getImageData(0, 0, canvas.width, canvas.height).data];
        return [canvas.width, canvas.height, a.x, a.y, a.width, a.height, b.x, b.y, b.width,
            b.height, rgba]"""
    width, height, *frame, rgba = page.execute_script(script)
    assert frame[:4] == pytest.approx(frame[4:])  # without a crop
    opacity = np.reshape(rgba, (height, width, 4))[:, :, 3]
    y, x = np.argwhere(opacity == opacity.max()).mean(axis=0)
    assert x / width * 60 == pytest.approx(36, abs=5)
    assert y / height * 48 == pytest.approx(15, abs=5)


def test_the_script_is_short_and_sets_no_html():
    from importlib import resources

    script = (resources.files("pydfm.reports") / "assets" / "page.js").read_text()
    lines = script.splitlines()
    assert script.startswith('"use strict";')
    assert len(lines) < 400
    assert max(map(len, lines)) <= 100
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "var "):
        assert word not in script, word
