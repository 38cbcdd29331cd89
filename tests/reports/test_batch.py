import html
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

import pydfm
from pydfm.conformal.drift import Drift
from pydfm.reports.batch import drift_in_words, examine, report

NAMES = re.compile(r"<h3>(.*?)</h3>")


def small(**options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=4), torch.nn.ReLU())
    given = {"backbone": network, "image_size": 32, "device": "cpu", "alpha": 0.1}
    return pydfm.DFM(3, **{**given, **options})


def read(path):
    page = path.read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    return page, json.loads(data[1])


def test_a_page_says_what_the_estimator_does(dfm, batch, tmp_path):
    result = pydfm.report(dfm, batch, tmp_path / "x.html")
    page, data = read(tmp_path / "x.html")
    want = dfm.assess(batch)
    paths = sorted(str(path) for path in batch.iterdir())
    assert np.array_equal(result.assessment.scores, want.scores)
    assert np.array_equal(result.assessment.p_values, want.p_values)
    assert np.array_equal(result.assessment.verdicts, want.verdicts)
    drift = dfm.drift(batch)
    assert result.drift == drift
    order = sorted(range(8), key=lambda i: (want.p_values[i], -want.scores[i]))
    assert [card["path"] for card in data["cards"]] == [paths[i] for i in order]
    shown = [html.unescape(name) for name in NAMES.findall(page)]
    assert shown == [str(paths[i]).removeprefix(f"{batch}/") for i in order]
    assert page.count("▲ anomalous</span>") == (want.verdicts == -1).sum() >= 3
    count = (want.verdicts == -1).sum()
    assert f'<strong id="count">{count}</strong> of 8 images' in page
    assert '<strong id="expected">0.8</strong>' in page
    assert dfm.feature_spec_.sha256 in page
    assert f"pydfm {pydfm.__version__}" in page


def test_each_image_is_decoded_and_scored_once(dfm, batch, tmp_path, monkeypatch):
    from pydfm.features.transforms import Preprocessing
    from pydfm.model.layer import LayerModel

    decoded, mapped = [], []
    from_pil, maps = Preprocessing.from_pil, LayerModel.maps
    monkeypatch.setattr(
        Preprocessing, "from_pil", lambda own, image: decoded.append(1) or from_pil(own, image)
    )
    monkeypatch.setattr(
        LayerModel,
        "maps",
        lambda own, rows, *rest: mapped.append(len(rows)) or maps(own, rows, *rest),
    )
    report(dfm, batch, tmp_path / "x.html")
    assert len(decoded) == 8
    assert sum(mapped) == 2 * 8  # of two layers


def test_a_page_needs_nothing_else(dfm, batch, tmp_path):
    report(dfm, batch, tmp_path / "x.html")
    page, _ = read(tmp_path / "x.html")
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page) == []
    assert "://" not in page
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.html"]


def test_reasons_name_the_place_and_the_layer(dfm, batch, tmp_path):
    result = examine(dfm, sorted(batch.iterdir()))
    worst = result.cards[0]
    assert re.fullmatch(
        r"Brightest region \d+ x \d+ px, near the (upper right|top|right|centre); residual \d+ "
        r"deviations above what good images have there \([02]\).*\.",
        worst.reason,
    )
    (mark, *_) = worst.marks
    assert mark.above
    left, top, width, height = mark.box
    assert left < 36 < left + width <= 60
    assert top < 15 < top + height <= 48
    assert not result.cards[-1].marks[0].above
    assert "below the threshold of maps" in result.cards[-1].reason


def test_a_level_in_place_of_the_models(dfm, batch, tmp_path):
    report(dfm, batch, tmp_path / "x.html", alpha=0.5)
    page, data = read(tmp_path / "x.html")
    assert page.count("▲ anomalous</span>") == (dfm.predict(batch, alpha=0.5) == -1).sum()
    assert data["levels"][data["start"]]["text"] == "0.5"


def test_images_of_any_form(dfm, good, textures, tmp_path):
    report(dfm, good[:3], tmp_path / "x.html")
    _, data = read(tmp_path / "x.html")
    assert sorted(card["path"] for card in data["cards"]) == ["image 0", "image 1", "image 2"]
    for images in (textures, textures.astype(np.float32) / 255, iter([textures])):
        result = report(dfm, images, tmp_path / "x.html", title="a <b>")
        assert len(result.cards) == 12
        assert {card.size for card in result.cards} == {(40, 48)}
    assert "<h1>a &lt;b&gt;</h1>" in read(tmp_path / "x.html")[0]


def test_links_lead_to_the_files(dfm, batch, tmp_path):
    (tmp_path / "pages").mkdir()
    report(dfm, batch, tmp_path / "pages" / "x.html", link=True)
    page, _ = read(tmp_path / "pages" / "x.html")
    assert '<a href="../today/part0.png"' in page
    assert page.count('<a href="../today/') == 8
    assert 'href="../today/%3Cimg%20src%3Dx' in page
    with pytest.raises(ValueError, match="link is True, but X holds no files"):
        report(dfm, [Image.new("RGB", (40, 40))] * 2, tmp_path / "x.html", link=True)


@pytest.mark.filterwarnings("ignore:.*images were skipped", "ignore:alpha is")
def test_images_that_cannot_be_read_are_listed(dfm, batch, tmp_path):
    (batch / "part1.png").write_bytes(b"text <b>")
    own = dfm.with_state(fitted=dfm.fitted_).set_params(on_error="skip")
    result = report(own, batch, tmp_path / "x.html")
    assert len(result.cards) == 7
    assert result.unreadable[0][0] == "part1.png"
    page, _ = read(tmp_path / "x.html")
    assert "1 image could not be read and has no verdict" in page
    assert "it is not an image" in page


def test_without_maps_the_page_says_why(good, batch, tmp_path):
    own = small(spatial="mean").fit(good)
    result = report(own, batch, tmp_path / "x.html")
    page, _ = read(tmp_path / "x.html")
    assert "There are no overlays: features of" in page
    assert all(not card.overlay and not card.marks for card in result.cards)
    assert 'class="photo"' in page


@pytest.mark.parametrize("how", ["classes", "kfold", "groups"])
@pytest.mark.filterwarnings("ignore:calibration is 'kfold'")
def test_models_without_one_threshold_decide_by_p_values(good, batch, tmp_path, how):
    options = {"calibration": "kfold"} if how == "kfold" else {}
    given = {
        "classes": {"labels": [i % 2 for i in range(40)]},
        "groups": {"groups": [i // 2 for i in range(40)]},
    }
    own = small(**options).fit(good, **given.get(how, {}))
    result = report(own, batch, tmp_path / "x.html")
    _, data = read(tmp_path / "x.html")
    assert np.array_equal(result.assessment.verdicts, own.predict(batch))
    assert (data["levels"][0]["threshold"] is None) == (how != "groups")
    for level in data["levels"][::5]:
        found = own.predict(batch, alpha=float(level["text"]))
        want = result.assessment.p_values <= level["alpha"] * (1 + 1e-9)
        assert np.array_equal(found == -1, want)


def test_a_page_of_many_images_stays_small(dfm, tmp_path):
    rng = np.random.default_rng(0)
    noisy = [
        Image.fromarray(rng.integers(0, 256, (500, 600, 3), dtype=np.uint8)) for _ in range(200)
    ]
    report(dfm, noisy, tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size < 15e6


def test_what_cannot_be_done_is_one_sentence(dfm, good, batch, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        report(dfm, batch, tmp_path / "gone" / "x.html")
    with pytest.raises(ValueError, match="fitted with calibration=None, and has no held-out"):
        report(small(calibration=None).fit(good), batch, tmp_path / "x.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        report(dfm, tmp_path / "empty", tmp_path / "x.html")
    features = np.random.default_rng(0).normal(size=(30, 6))
    with pytest.raises(ValueError, match="the model was fitted on features; a report shows images"):
        report(pydfm.DFM(2).fit(features), features, tmp_path / "x.html")
    with pytest.raises(ValueError, match="X holds features; a report shows images"):
        report(dfm, dfm.extract(good), tmp_path / "x.html")
    assert list(tmp_path.glob("*.html")) == []


def test_without_jinja_the_extra_is_named(dfm, batch, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pages need Jinja2; install it with .*'\.\[report\]'"):
        report(dfm, batch, tmp_path / "x.html")


def test_drift_in_words():
    assert drift_in_words(Drift(0.5, {}, {}, 5)).startswith("Too few images")
    assert "score as the good ones of the fit did (p = 0.5)" in drift_in_words(
        Drift(0.5, {}, {}, 50)
    )
    moved = drift_in_words(Drift(1e-9, {}, {"layer2": 0.4, "layer3": 1e-7}, 50))
    assert "most clearly in layer3" in moved
    assert "the line has changed" in moved
