import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter
from torch import nn

import pydfm
from pydfm.conformal.checks.audit import groups_option


def calm(seed):
    """A picture that is like the others of other seeds: weak smooth noise around grey."""
    noise = np.random.default_rng(seed).integers(90, 166, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC)


def odd(seed):
    picture = calm(seed)
    x, y = np.random.default_rng(seed).integers(0, 28, 2).tolist()
    picture.paste([(255, 20, 0), (0, 0, 0), (255, 255, 255)][seed % 3], (x, y, x + 24, y + 20))
    return picture


@pytest.fixture
def dfm(tiny_network):
    network = nn.Sequential(tiny_network.stem, tiny_network.relu, tiny_network.block)
    return pydfm.DFM(0.9, backbone=network, image_size=32, device="cpu", alpha=0.1)


@pytest.fixture
def folder(tmp_path):
    """Forty good pictures and what goes wrong with them."""
    root = tmp_path / "good"
    root.mkdir()
    for i in range(40):
        calm(i).save(root / f"part{i:02}_1.png")
    for i in range(3):
        odd(100 + i).save(root / f"part{50 + i}_1.png")
    calm(5).save(root / "part05_2.png")
    calm(6).resize((60, 45)).resize((64, 48)).save(root / "part06_2.png")
    calm(60).convert("L").save(root / "part60_1.png")
    calm(61).resize((32, 24)).save(root / "part61_1.png")
    calm(62).point(lambda v: v // 4).save(root / "part62_1.png")
    calm(63).filter(ImageFilter.GaussianBlur(8)).save(root / "part63_1.png")
    (root / "part64_1.png").write_bytes(b"text")
    return root


def by_name(audit):
    return {row.name.rpartition("/")[2]: row for row in audit.rows}


def test_an_audit_finds_what_is_wrong(dfm, folder):
    audit = dfm.audit(folder)
    rows = by_name(audit)
    assert len(rows) == 50
    flagged = {name for name, row in rows.items() if row.flagged}
    assert {"part50_1.png", "part51_1.png", "part52_1.png"} <= flagged
    assert len(flagged) <= 6
    assert [name.rpartition("/")[2] for name in audit.flagged] == [
        row.name.rpartition("/")[2] for row in audit.rows if row.flagged
    ]
    groups = [[name.rpartition("/")[2] for name in group] for group in audit.groups]
    assert ["part05_1.png", "part05_2.png"] in groups
    assert ["part06_1.png", "part06_2.png"] in groups
    assert [name.rpartition("/")[2] for name in rows["part05_2.png"].copies] == ["part05_1.png"]
    assert [name.rpartition("/")[2] for name in rows["part06_2.png"].near] == ["part06_1.png"]
    assert "cannot be read" in rows["part64_1.png"].notes[0]
    assert rows["part60_1.png"].notes[0] == "its mode is L; 48 of 49 have RGB"
    assert rows["part61_1.png"].notes[0] == "its size is 32 x 24 px; 48 of 49 have 64 x 48 px"
    assert any("darker than the others" in note for note in rows["part62_1.png"].notes)
    assert audit.n_units == 48  # copies count once
    assert audit.missing == 999 - 48
    assert audit.threshold > audit.threshold_without
    assert not dfm.__sklearn_is_fitted__()


def test_p_values_and_thresholds_are_those_of_a_fit(dfm, folder):
    (folder / "part64_1.png").unlink()
    audit = dfm.audit(folder)
    groups = {str(p): p.name for p in folder.iterdir()} | {
        str(folder / "part05_2.png"): "part05_1.png"
    }
    fitted = dfm.fit(folder, groups=groups.__getitem__)
    want = dict(zip(fitted.held_out_names_.tolist(), fitted.held_out_scores_, strict=True))
    p = dict(zip(fitted.held_out_names_.tolist(), fitted.held_out_p_values_, strict=True))
    for row in audit.rows:
        assert row.score == pytest.approx(want[row.name], rel=1e-5)
        assert row.p_value == pytest.approx(p[row.name])
    assert audit.threshold == pytest.approx(fitted.threshold_)
    left = np.sort(fitted.held_out_scores_)[:-2]
    assert audit.threshold_without in left


def test_after_a_fit_the_fitted_images_are_audited(dfm, folder, tmp_path):
    (folder / "part64_1.png").unlink()
    before = by_name(dfm.audit(folder))
    with pytest.warns(UserWarning, match="not independent"):
        dfm.fit(folder)
    after = by_name(dfm.audit())
    assert after.keys() == before.keys()
    assert after["part50_1.png"].flagged
    assert after["part60_1.png"].notes == before["part60_1.png"].notes
    dfm.save(tmp_path / "m")
    loaded = pydfm.load(tmp_path / "m", backbone=dfm.backbone, device="cpu")
    again = by_name(loaded.audit())
    assert [row.score for row in again.values()] == [row.score for row in after.values()]
    (folder / "part60_1.png").unlink()  # gone since
    assert by_name(loaded.audit())["part60_1.png"].facts is None


def test_the_table_is_a_data_frame_where_pandas_is_there(dfm, folder, monkeypatch):
    audit = dfm.audit(folder)
    table = audit.table()
    if importlib.util.find_spec("pandas"):
        assert list(table.image) == [row.name for row in audit.rows]
        assert table.flagged.sum() == len(audit.flagged)
        assert set(table["mode"].dropna()) == {"L", "RGB"}
    monkeypatch.setitem(sys.modules, "pandas", None)
    plain = audit.table()
    assert plain["image"] == [row.name for row in audit.rows]
    assert list(plain) == list(table)


def test_features_have_rows_and_no_facts():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 12)) + 0.1 * rng.normal(size=(60, 12))
    x[17] += 5 * rng.normal(size=12)
    audit = pydfm.DFM(3).audit(x, fdr=1e-6)
    assert audit.flagged == ["17 of X"]
    assert audit.rows[0].facts is None
    labelled = pydfm.DFM(3).audit(x, labels=np.arange(60) % 2, fdr=1e-6)
    assert labelled.flagged == ["17 of X"]
    assert np.isnan(labelled.threshold)


@pytest.mark.parametrize(
    ("names", "groups", "want"),
    [
        (["a/1.png", "a/2.png", "b/1.png", "b/2.png"], [["a/1.png", "a/2.png"]], "folders"),
        (["p1_a.png", "p1_b.png", "p2_a.png"], [["p1_a.png", "p1_b.png"]], "_-"),
        (["x1a.png", "x1b.png", "x2a.png"], [["x1a.png", "x1b.png"]], "[0-9]"),
        (["a.png", "b.png", "c.png"], [["a.png", "b.png"]], None),
        (["a.png", "b.png"], [], None),
    ],
)
def test_groups_are_guessed_from_names(names, groups, want):
    found = groups_option(names, groups)
    if want is None or want == "folders":
        assert found == want
    else:
        assert want in found
        from pydfm.cli.options import parse_groups

        key = parse_groups(found)
        assert len({key(name) for name in groups[0]}) == 1
        assert len({key(name) for name in names}) == 2


def test_a_clean_fit_is_one_without_what_it_left_out(dfm, folder, tmp_path):
    for name in ("part64_1", "part05_2", "part06_2"):
        (folder / f"{name}.png").unlink()
    with pytest.warns(UserWarning, match=r"\d of 47 images are unlike the others and were left"):
        dfm.fit(folder, clean=0.05)
    left_out = set(dfm.left_out_)
    assert {str(folder / f"part{i}_1.png") for i in (50, 51, 52)} <= left_out
    rest = [str(path) for path in sorted(folder.iterdir()) if str(path) not in left_out]
    assert dfm.n_samples_ == len(rest)
    other = pydfm.DFM(**dfm.get_params(deep=False)).fit(rest)
    np.testing.assert_allclose(dfm.held_out_scores_, other.held_out_scores_, rtol=1e-4, atol=1e-4)
    assert sorted(dfm.held_out_names_) == rest
    # Nothing more would be left out.
    again = pydfm.DFM(**dfm.get_params(deep=False)).fit(rest, clean=0.05)
    assert again.left_out_ == []
    dfm.save(tmp_path / "m")
    loaded = pydfm.load(tmp_path / "m", backbone=dfm.backbone, device="cpu")
    assert loaded.left_out_ == dfm.left_out_
    assert other.left_out_ == []


def test_clean_takes_features_groups_and_labels():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3)) @ rng.normal(size=(3, 12)) + 0.1 * rng.normal(size=(80, 12))
    x[[17, 44]] += 5 * rng.normal(size=(2, 12))
    labels, groups = np.arange(80) % 2, np.arange(80) // 4
    with pytest.warns(UserWarning, match="2 of 80 images are unlike the others"):
        dfm = pydfm.DFM(3, alpha=0.2).fit(x, labels=labels, groups=groups, clean=1e-6)
    assert sorted(dfm.left_out_) == ["17 of X", "44 of X"]
    keep = np.delete(np.arange(80), [17, 44])
    want = pydfm.DFM(3, alpha=0.2).fit(x[keep], labels=labels[keep], groups=groups[keep])
    np.testing.assert_allclose(dfm.held_out_scores_, want.held_out_scores_, rtol=1e-4)


def test_what_clean_cannot_do_is_refused():
    x = np.random.default_rng(0).normal(size=(40, 6))
    with pytest.raises(ValueError, match="clean is 2; it must be a number above 0"):
        pydfm.DFM(2).fit(x, clean=2)
    with pytest.raises(ValueError, match="clean is given, but calibration is None"):
        pydfm.DFM(2, calibration=None).fit(x, clean=0.1)
    with pytest.raises(ValueError, match="fdr is 0; it must be"):
        pydfm.DFM(2).audit(x, fdr=0)
