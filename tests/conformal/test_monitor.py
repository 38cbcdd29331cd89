import json

import numpy as np
import pytest
from fits import maps_dfm
from reference import falling_rows

import pydfm
from pydfm.conformal.monitor import Monitor


@pytest.fixture(scope="module")
def rows():
    return falling_rows(1500, 24)


@pytest.fixture(scope="module")
def dfm(rows):
    return pydfm.DFM(4).fit(rows[:200])


def test_a_change_is_told_where_it_was(dfm, rows):
    monitor = dfm.monitor()
    assert monitor.update(rows[200:900]) is False
    assert monitor.changed_at is None
    assert monitor.sentence.startswith("no change in 700 images (evidence 0.")
    verdicts = dfm.predict(rows[900:1000])
    assert monitor.update(rows[900:1000] * 1.5)
    assert abs(monitor.changed_at - 701) < 5
    assert monitor.sentence.startswith(f"the line has changed at image {monitor.changed_at} (evid")
    assert "scores are higher than before; seen at image 7" in monitor.sentence
    assert monitor.highest >= monitor.level == 100
    assert repr(monitor) == f"<Monitor: {monitor.sentence}>"
    assert (dfm.predict(rows[900:1000]) == verdicts).all()
    # It stays, and its place is that of the alarm.
    at = monitor.changed_at
    assert monitor.update(rows[1000:1100])
    assert monitor.changed_at == at
    monitor.reset()
    assert monitor.n_images == 0
    assert monitor.change is None
    assert not monitor.update(rows[200:700])


def test_lower_scores_are_a_change_too(dfm, rows):
    monitor = dfm.monitor()
    assert monitor.update(rows[200:400] * 0.6)
    assert not monitor.change.higher
    assert "lower than before" in monitor.sentence


def test_images_may_come_in_any_parts(dfm, rows):
    together, apart = dfm.monitor(seed=3), dfm.monitor(seed=3)
    together.update(rows[200:300])
    for part in np.array_split(rows[200:300], 7):
        apart.update(dfm.fitted_.score(part, 1))  # RowScores, as the command has them
    assert apart.state() == together.state()
    other = dfm.monitor(seed=4)
    other.update(rows[200:300])
    assert other.evidence != together.evidence


def test_it_goes_on_in_the_next_process(dfm, rows, tmp_path):
    whole, first = dfm.monitor(evidence=20), dfm.monitor(evidence=20)
    first.update(rows[200:600])
    whole.update(rows[200:600])
    dfm.save(tmp_path / "a.pydfm")
    kept = json.loads(json.dumps(first.state()))
    second = pydfm.load(tmp_path / "a.pydfm").monitor(evidence=20, state=kept)
    for monitor in (whole, second):
        monitor.update(rows[600:900] * 1.4)
    assert second.state() == whole.state()
    assert second.sentence == whole.sentence
    assert second.changed_at is not None
    again = dfm.monitor(evidence=20, state=json.loads(json.dumps(second.state())))
    assert again.change == second.change


def test_a_state_of_another_model_is_refused(dfm, rows):
    state = dfm.monitor().state()
    other = pydfm.DFM(4).fit(rows[:190])
    with pytest.raises(ValueError, match="state is of a monitor of another model, calibration or"):
        other.monitor(state=state)
    with pytest.raises(ValueError, match="another model"):
        dfm.monitor(reference="stream", state=state)
    with pytest.raises(ValueError, match="state is not that of a monitor of this version"):
        dfm.monitor(state={})
    recalibrated = pydfm.DFM(4).fit(rows[:200])
    recalibrated.recalibrate(rows[200:300])
    with pytest.raises(ValueError, match="another model, calibration"):
        recalibrated.monitor(state=state)


def test_skipped_images_count_and_say_nothing(dfm, rows):
    monitor, other = dfm.monitor(), dfm.monitor()
    measured = monitor.measure(dfm.fitted_.score(rows[200:300], 1))
    other.add(measured)
    monitor.add(np.insert(measured, [0, 50], np.nan, axis=1))
    assert monitor.n_images == 102
    assert monitor.n_images - other.n_images == 2
    counts = [own._martingales[0].count for own in (monitor, other)]
    assert counts == [100, 100]


def test_infinite_scores_are_ranked(dfm):
    monitor = dfm.monitor(reference="stream")
    monitor.add(np.array([[1.0, np.inf, -np.inf, 2.0], [0, 0, 0, 0]]))
    assert np.isfinite(monitor.evidence)
    json.dumps(monitor.state(), allow_nan=False)


def test_layers_have_evidence_of_their_own(noise):
    dfm = maps_dfm().fit(noise)
    monitor = dfm.monitor()
    assert monitor.names == ("all layers", "0", "2")
    assert list(monitor.layers) == ["all layers", "0", "2"]
    rng = np.random.default_rng(0)
    monitor.update(np.clip(noise + rng.normal(scale=60, size=noise.shape), 0, 255).astype("uint8"))
    # The first tracker has half of the stake, each layer a quarter.
    first, *others = monitor.layers.values()
    assert np.isclose(monitor.evidence, max(first / 2, *(own / 4 for own in others)))
    assert monitor.n_images == len(noise)


def test_classes_are_ranked_apart():
    rows = np.concatenate([falling_rows(300, 12), falling_rows(300, 12, seed=2) + 50])
    labels = np.repeat([0, 1], 300)
    dfm = pydfm.DFM(2).fit(rows[::2], labels=labels[::2])
    monitor = dfm.monitor()
    assert monitor.reference == "stream"
    assert monitor.n_reference == 0
    # One class after the other is no change.
    later, theirs = rows[1::2], labels[1::2]
    assert not monitor.update(later[np.argsort(theirs, kind="stable")])
    assert len(monitor._ranks[0]) == 2
    assert json.loads(json.dumps(monitor.state()))["trackers"][0]["ranks"].keys() == {"0", "1"}
    with pytest.raises(ValueError, match="reference is 'calibration', but the model has several"):
        dfm.monitor(reference="calibration")


def test_what_is_proven_is_said(rows):
    assert "is measured and not proven" in pydfm.DFM(4).fit(rows[:60]).monitor().validity
    split = pydfm.DFM(4, calibration="split").fit(rows[:100])
    assert "is proven: the model was not fitted" in split.monitor().validity
    assert split.monitor().n_reference == 20
    assert "is proven: images are compared" in split.monitor(reference="stream").validity
    folds = pydfm.DFM(4, calibration="kfold").fit(rows[:60])
    assert folds.monitor().reference == "stream"
    with pytest.raises(ValueError, match="but calibration is 'kfold', whose held-out scores"):
        folds.monitor(reference="calibration")
    none = pydfm.DFM(4, calibration=None).fit(rows[:60])
    assert none.monitor().reference == "stream"
    with pytest.raises(ValueError, match="but the model was fitted with calibration=None"):
        none.monitor(reference="calibration")


def test_half_of_what_is_left_out_one_by_one_is_compared_with(rows):
    for count, want in ((20, 20), (50, 30), (100, 50)):
        dfm = pydfm.DFM(4).fit(rows[:count])
        monitor = dfm.monitor(seed=1)
        assert monitor.n_reference == want
        assert np.isin(monitor._start[0][0], dfm.held_out_scores_).all()
        assert np.array_equal(monitor._start[0][0], dfm.monitor(seed=1)._start[0][0])
    assert not np.array_equal(monitor._start[0][0], dfm.monitor(seed=2)._start[0][0])


def test_one_image_of_each_group_is_compared_with(rows):
    dfm = pydfm.DFM(4).fit(rows[:90], groups=np.arange(90) // 3)
    with pytest.warns(UserWarning, match="are in groups, or turned copies of each other: one of"):
        monitor = dfm.monitor()
    assert monitor.n_reference == 30


def test_bad_arguments(dfm):
    with pytest.raises(ValueError, match=r"evidence is 0.5; it must be a number of at least 1"):
        dfm.monitor(evidence=0.5)
    with pytest.raises(ValueError, match="reference is 'fit'; it must be one of 'calibration', "):
        dfm.monitor(reference="fit")
    with pytest.raises(TypeError, match="this monitor has no model to score it by"):
        Monitor(dfm.fitted_, "fre").update(np.zeros((1, 24)))
