"""Verdicts of `DFM`: groups, fitted rows, small levels, small classes, later images."""

import numpy as np
import pytest
from fits import maps_dfm
from reference import falling_rows

import pydfm
from pydfm.conformal.calibration import calibration_of

RNG = np.random.default_rng(0)
PARTS = np.repeat(np.arange(20), 3)
SHOTS = np.repeat(falling_rows(20, 30), 3, axis=0) + 0.1 * falling_rows(60, 30, seed=1)
ROWS = falling_rows(60, 30)


def of_images(network):
    return pydfm.DFM(3, backbone=network, image_size=32, device="cpu", alpha=0.25)


# Groups


@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
def test_shots_of_a_part_are_held_out_together(calibration):
    drawn = RNG.normal(size=(1000, 64)) / np.sqrt(np.arange(1, 65))
    shots, parts = np.repeat(drawn[:100], 3, axis=0), np.repeat(np.arange(100), 3)
    shots, new = shots + 0.1 * drawn[100:400], drawn[400:700] + 0.1 * drawn[700:]
    dfm = pydfm.DFM(alpha=0.1, calibration=calibration).fit(shots, groups=parts)
    assert (dfm.predict(new) == -1).mean() < 0.35
    with pytest.warns(UserWarning, match=r"much nearer to one another .*, such as row \d+ and row"):
        alone = pydfm.DFM(alpha=0.1, calibration=calibration).fit(shots)
    assert (alone.predict(new) == -1).mean() > 0.7


def test_a_group_is_left_out_as_by_a_fit_without_it():
    dfm = pydfm.DFM(4).fit(SHOTS, groups=PARTS)
    for part in (0, 7, 19):
        rest = pydfm.DFM(4, calibration=None).fit(SHOTS[part != PARTS])
        np.testing.assert_allclose(
            dfm.held_out_scores_[part == PARTS], rest.score(SHOTS[part == PARTS]), rtol=1e-5
        )
    assert dfm.held_out_names_.tolist() == list(range(60))
    assert dfm.smallest_alpha_ == 1 / 21


def test_groups_come_in_batches_in_any_order():
    want = pydfm.DFM(4).fit(SHOTS, groups=PARTS)
    order = RNG.permutation(60)
    dfm = pydfm.DFM(4)
    for some in np.array_split(order, 7):
        dfm.partial_fit(SHOTS[some], groups=PARTS[some])
    found = dfm.held_out_scores_[np.argsort(order[dfm.held_out_names_])]
    np.testing.assert_allclose(found, want.held_out_scores_, rtol=1e-5)
    np.testing.assert_allclose(dfm.p_value(ROWS), want.p_value(ROWS))
    with pytest.raises(ValueError, match="fitted with groups, and none are given now"):
        dfm.partial_fit(SHOTS)
    left, right = (
        pydfm.DFM(4).fit(SHOTS[part], groups=PARTS[part]) for part in (slice(0, 31), slice(31, 60))
    )
    both = left + right  # the shots of part 10 are in both
    np.testing.assert_allclose(both.p_value(ROWS), want.p_value(ROWS))
    both.forget(SHOTS[PARTS == 3], groups=PARTS[PARTS == 3])
    rest = pydfm.DFM(4).fit(SHOTS[PARTS != 3], groups=PARTS[PARTS != 3])
    np.testing.assert_allclose(both.p_value(ROWS), rest.p_value(ROWS))
    with pytest.raises(ValueError, match="groups is None; give those of X"):
        both.forget(SHOTS[:3])


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        (PARTS[:50], "groups has 50 groups, and X"),
        (np.zeros(60), "groups puts all rows into one group"),
        (np.where(PARTS == 3, np.nan, PARTS), "groups has nan; they must be integers or strings"),
        ("folders", "groups is 'folders', which needs X to be files"),
        ("parts", "groups is 'parts'; it must be one of 'folders'"),
        (lambda path: path, "groups is a function of the path, which needs X to be files"),
        ([None] * 60, "groups is of the type object; they must be integers or strings"),
    ],
)
def test_groups_that_cannot_be_are_told(groups, says):
    dfm = pydfm.DFM(4).fit(ROWS)
    want = dfm.score(ROWS)
    with pytest.raises((ValueError, TypeError), match=says):
        dfm.fit(SHOTS, groups=groups)
    assert np.array_equal(dfm.score(ROWS), want)


def test_a_class_of_one_group_is_named():
    labels = np.repeat(["a", "b"], 30)
    with pytest.raises(ValueError, match="the rows of the class 'b' into one group"):
        pydfm.DFM(4).fit(SHOTS, labels=labels, groups=np.minimum(PARTS, 10))


def test_groups_of_files_are_their_folders_or_named_by_a_function(pictures, tmp_path):
    for i, picture in enumerate(pictures):
        folder = tmp_path / f"part{i // 2}"
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{i}.png")
    options = {"weights": None, "layers": "layer1", "pool": 4, "image_size": 32, "device": "cpu"}
    by_folder = pydfm.DFM(2, **options).fit(tmp_path, groups="folders")
    by_name = pydfm.DFM(2, **options).fit(tmp_path, groups=lambda path: path.split("part")[1][0])
    numbers = pydfm.DFM(2, **options).fit(
        tmp_path, groups=np.array([0, 0, 5, 5, 1, 1, 2, 2, 3, 3, 4, 4])
    )
    assert by_folder.smallest_alpha_ == 1 / 7
    for other in (by_name, numbers):
        assert np.array_equal(other.held_out_scores_, by_folder.held_out_scores_)
    assert by_folder.held_out_names_[0] == str(tmp_path / "part0" / "0.png")


# Fitted rows


def test_fitted_rows_are_judged_without_themselves():
    rows = ROWS.copy()
    rows[17] *= 30
    dfm = pydfm.DFM(4, "mahalanobis", alpha=0.05)
    verdicts = dfm.fit_predict(rows)
    assert verdicts[17] == -1
    assert (verdicts == -1).sum() == 3
    assert dfm.held_out_p_values_[17] == dfm.held_out_p_values_.min() == 1 / 60
    # Copies of a row are left out with it.
    rows = np.concatenate([ROWS[:55], np.full((5, 30), 20.0)])
    with pytest.warns(UserWarning, match="X holds rows that are not independent"):
        hidden = pydfm.DFM(0.9, alpha=0.1).fit(rows)
    assert (hidden.held_out_p_values_[55:] > 0.1).all()
    assert (pydfm.DFM(0.9, alpha=0.1).fit_predict(rows)[55:] == -1).all()


def test_rows_beyond_the_sample_are_judged_too(monkeypatch):
    monkeypatch.setattr("pydfm.model.settings._SAMPLE", 30)
    rows = falling_rows(400, 8)
    verdicts = pydfm.DFM(3, alpha=0.1).fit_predict(rows)
    assert set(verdicts) == {1, -1}
    assert 0.03 < (verdicts == -1).mean() < 0.25
    with pytest.raises(ValueError, match="X is an iterator, and 370 of its rows have no held-out"):
        pydfm.DFM(3, alpha=0.1).fit_predict(iter([rows]))


def test_images_that_are_copies_are_named(noise, tmp_path):
    images = noise.copy()
    images[9] = images[4]
    with pytest.warns(UserWarning, match="1 of 40 images are copies of others, such as row 4 and"):
        maps_dfm().fit(images)
    maps_dfm().fit(images, groups=np.r_[:9, 4, 10:40])


# Levels


def test_a_level_below_the_smallest_is_the_smallest_with_a_warning():
    dfm = pydfm.DFM(4, alpha=0.001).fit(ROWS)
    asked = r"alpha is 0.001, and 60 held-out .* 1 / 61 = 0.0164: that level is used; 939 more are"
    with pytest.warns(UserWarning, match=asked):
        verdicts = dfm.predict(3 * ROWS)
    p = dfm.p_value(3 * ROWS)
    assert np.array_equal(verdicts == -1, p == 1 / 61)
    with pytest.warns(UserWarning, match=asked):
        threshold = dfm.threshold_
    assert threshold == dfm.held_out_scores_.max()
    with pytest.warns(UserWarning, match=asked):
        assert dfm.offset_ == -threshold
    with pytest.warns(UserWarning, match=asked):
        margins = dfm.decision_function(3 * ROWS)
    assert np.array_equal(margins < 0, verdicts == -1)


def test_a_small_class_does_not_stop_the_others():
    labels = np.r_[np.zeros(59, int), 1]
    with pytest.warns(UserWarning, match="the rows of 1 of 2 classes are all equal"):
        dfm = pydfm.DFM(alpha=0.1).fit(ROWS, labels=labels)
    with pytest.warns(UserWarning, match="the class 1 has no held-out scores"):
        verdicts = dfm.predict(ROWS)
    alone = pydfm.DFM(alpha=0.1).fit(ROWS[:59])
    assert np.array_equal(verdicts, alone.predict(ROWS))
    with (
        pytest.warns(UserWarning, match="the class 1 has no held-out scores"),
        pytest.raises(ValueError, match="labels names a class that has no held-out scores"),
    ):
        dfm.predict(ROWS, labels=labels)


# Another day


def test_later_images_take_the_place_of_held_out_ones(tmp_path):
    dfm = pydfm.DFM(4, alpha=0.1).fit(ROWS)
    later = 1.5 * falling_rows(200, 30, seed=3)
    assert (dfm.predict(later) == -1).mean() > 0.3
    scores, found = dfm.score(later), dfm.recalibrate(later)
    assert np.array_equal(dfm.score(later), scores)
    assert (found.alpha, found.n_units) == (0.1, 200)
    assert found.found > 0.3
    assert found.p_value < 0.01
    assert dfm.calibration_ == "recalibrated"
    more = 1.5 * falling_rows(500, 30, seed=4)
    assert 0.05 < (dfm.predict(more) == -1).mean() < 0.15
    dfm.save(tmp_path / "m")
    again = pydfm.load(tmp_path / "m")
    assert again.calibration_ == "recalibrated"
    assert np.array_equal(again.p_value(more), dfm.p_value(more))
    same = dfm.recalibrate(more, groups=np.arange(500) // 5)
    assert same.n_units == 100
    assert same.p_value > 0.001
    with pytest.warns(UserWarning, match="held-out scores come from the fitted rows again"):
        dfm.partial_fit(ROWS[:1])
    assert dfm.calibration_ == "loo"


def test_later_images_come_beside_those_that_are_held_out(tmp_path):
    dfm = pydfm.DFM(4, alpha=0.1, calibration="split").fit(ROWS)
    held_out, later = dfm.held_out_scores_, falling_rows(50, 30, seed=3)
    dfm.recalibrate(later[:20], extend=True, groups=np.arange(20) // 2)
    dfm.recalibrate(later[20:], extend=True, groups=np.arange(30) // 3)
    assert np.array_equal(
        np.sort(dfm.held_out_scores_), np.sort(np.concatenate([held_out, dfm.score(later)]))
    )
    # Groups of the same number in two calls are others.
    calibration = calibration_of(dfm.fitted_, "fre")
    assert calibration.n_units.tolist() == [len(held_out) + 10 + 10]
    dfm.save(tmp_path / "m")
    again = pydfm.load(tmp_path / "m")
    assert np.array_equal(again.p_value(ROWS), dfm.p_value(ROWS))
    with pytest.warns(
        UserWarning, match="X has 50 of 50 rows .*sample already, such as row 0 of X"
    ):
        assert again.recalibrate(later, extend=True).n_units == 50
    assert calibration_of(again.fitted_, "fre").n_units.tolist() == [len(held_out) + 20 + 50]


def test_images_that_were_fitted_do_not_recalibrate(tiny_network, textures, tmp_path):
    later = np.concatenate([255 - textures[:2], textures[7:8], 255 - textures[2:3]])
    dfm = of_images(tiny_network).fit(textures)
    dfm.save(tmp_path / "kept", keep=True)
    for own in (dfm, pydfm.load(tmp_path / "kept", backbone=tiny_network, device="cpu")):
        threshold = own.threshold_
        with pytest.raises(ValueError, match=r"X has 1 of 4 images .* such as image 2 of X, whose"):
            own.recalibrate(later)
        assert own.threshold_ == threshold
        own.forget(textures[7:8])
        own.recalibrate(later)


@pytest.mark.parametrize("groups", [None, np.arange(60) // 2])
def test_scores_as_low_as_those_of_fitted_rows_are_told(groups):
    dfm = pydfm.DFM(20, alpha=0.1).fit(ROWS, groups=groups)
    with pytest.warns(UserWarning, match="lower than the held-out ones, as are those of rows"):
        dfm.recalibrate(ROWS, groups=groups)
    dfm.recalibrate(falling_rows(60, 30, seed=3), groups=groups)


def test_new_rows_are_no_lower_than_those_held_out_in_folds():
    """Though the model itself, of more rows than those of the folds, gives lower scores."""
    rows = np.random.default_rng(0).normal(size=(1300, 200)).astype(np.float32)
    dfm = pydfm.DFM(calibration="kfold", alpha=0.1).fit(rows[:300])
    dfm.recalibrate(rows[300:])
    dfm.fit(rows[:300])
    with pytest.warns(UserWarning, match="lower than the held-out ones, as are those of rows"):
        dfm.recalibrate(rows[:300])


def test_later_rows_of_the_same_score_are_compared_without_warnings():
    rows = np.random.default_rng(0).normal(size=(650, 3)).astype(np.float32)
    with pytest.warns(UserWarning, match="every score is 0"):
        dfm = pydfm.DFM(3, alpha=0.1, calibration="split").fit(rows[:150])
    dfm.recalibrate(rows[150:])


def test_rows_that_calibrate_twice_are_told():
    dfm, later = pydfm.DFM(4, alpha=0.1).fit(ROWS), falling_rows(40, 30, seed=3)
    twice = later[[*range(20), 7, 7]]
    with pytest.warns(UserWarning, match="X has 2 of 22 rows .*such as row 20 of X; each counts"):
        dfm.recalibrate(twice)
    dfm.recalibrate(twice, groups=[*range(20), 7, 7])
    with pytest.warns(
        UserWarning, match="X has 1 of 21 rows .* such as row 3 of X.*leave them out$"
    ):
        dfm.recalibrate(np.insert(later[20:], 3, later[7], axis=0), extend=True)
    # Each class has a sample of its own.
    dfm.fit(ROWS, labels=np.arange(60) % 2)
    dfm.recalibrate(later[[*range(40), 8]], labels=[*np.arange(40) % 2, 1])
    with pytest.warns(UserWarning, match="X has 1 of 41 rows .*such as row 40 of X"):
        dfm.recalibrate(later[[*range(40), 8]], labels=[*np.arange(40) % 2, 0])


def test_copies_that_are_added_or_merged_are_told(tiny_network, textures):
    dfm = of_images(tiny_network).fit(textures[:10])
    dfm.partial_fit(textures[9:12])
    with pytest.warns(UserWarning, match="not independent: 1 of 13 images are copies of others"):
        dfm.score(textures)
    with pytest.warns(UserWarning, match="not independent: 14 of 26 images are copies of others"):
        dfm.merge(dfm).score(textures)


def test_what_does_not_go_with_later_images_is_not_extended():
    for settings, says in (
        ({}, "held-out scores are those of leave-one-out, each under a model of its own"),
        ({"calibration": "kfold"}, "held-out scores are under the models of ten folds"),
    ):
        dfm = pydfm.DFM(4, alpha=0.2, **settings).fit(ROWS)
        with pytest.raises(ValueError, match=f"extend is True, but {says}.*replace them"):
            dfm.recalibrate(ROWS, extend=True)


def test_what_cannot_recalibrate_is_told():
    dfm = pydfm.DFM(4, alpha=0.2).fit(ROWS, labels=np.arange(60) % 2)
    with pytest.raises(ValueError, match="labels is None, but the model has classes"):
        dfm.recalibrate(ROWS)
    with pytest.raises(ValueError, match="groups has 3 groups, and X"):
        dfm.recalibrate(ROWS, labels=np.arange(60) % 2, groups=[1, 2, 3])
    with pytest.raises(ValueError, match="fitted with calibration=None"):
        pydfm.DFM(4, calibration=None).fit(ROWS).recalibrate(ROWS)


# What is done is what was asked for, or it is said


def test_nothing_is_held_out_otherwise_in_silence():
    with pytest.warns(UserWarning, match="density is 'gmm', which has no exact held-out scores"):
        dfm = pydfm.DFM(4, density="gmm").fit(ROWS)
    assert dfm.calibration_ == "kfold"
    for parameters in (
        {"regularization": "shrinkage"},
        {"regularization": 1e-3},
        {"max_memory": "1MB"},
        {"covariance": "tied", "score_type": "relative_mahalanobis"},
    ):
        labels = None if "covariance" not in parameters else np.arange(60) % 2
        assert pydfm.DFM(4, **parameters).fit(ROWS, labels=labels).calibration_ == "loo"
    rows = falling_rows(300, 100)
    with (
        pytest.warns(UserWarning, match=r"exact scatter of its features takes 1.6e\+05"),
        pytest.warns(UserWarning, match="a sketch replaces it, whose variances are too low by"),
    ):
        dfm = pydfm.DFM(2, max_memory=100 * 16 * 60).fit(rows)
    assert dfm.calibration_ == "kfold"
    with pytest.raises(AttributeError, match=r"calibration is 'kfold': .* use predict"):
        dfm.threshold_  # noqa: B018
