import numpy as np
import pytest
from fits import maps_dfm
from reference import falling_rows

import pydfm
from pydfm.conformal.calibration import Calibration
from pydfm.conformal.drift import Drift, DriftTest, uniformity


def test_a_drift_is_told_and_a_fresh_batch_is_not():
    rows = falling_rows(900, 40)
    fresh = [pydfm.DFM().fit(rows[s * 100 :][:300]) for s in range(3)]
    tests = [dfm.drift(rows[600:]) for dfm in fresh]
    assert [t.n_samples for t in tests] == [300] * 3
    assert min(t.p_value for t in tests) > 0.01
    moved = fresh[0].drift(rows[600:700] * 1.3)
    assert moved.p_value < 1e-4
    assert moved.moved() == ["features"]
    assert tests[0].moved(1e-3) == []
    # Too good to be new: the same row again and again.
    assert fresh[0].drift(np.tile(rows[:1], (60, 1))).p_value < 1e-6


def test_a_batch_larger_than_the_calibration_does_not_drift_by_itself():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        own = Calibration.of(rng.normal(size=60), np.zeros(60, dtype=int))
        p = own.p_values(rng.normal(size=(1, 3000)).astype(np.float32))
        found.append(uniformity(p, own.own_p_values(), one_sided=False))
    assert np.mean(np.array(found) <= 0.05) <= 0.12
    assert np.mean(np.array(found) <= 0.5) >= 0.3


@pytest.mark.parametrize("labelled", [False, True])
def test_a_drift_names_the_class(labelled):
    rows = np.concatenate([falling_rows(400, 12), falling_rows(400, 12, seed=2) + 50])
    labels = np.repeat([3, 8], 400)
    dfm = pydfm.DFM(3).fit(rows[::2], labels=labels[::2])
    batch, theirs = rows[1::2].copy(), labels[1::2]
    given_labels = theirs if labelled else None
    assert dfm.drift(batch, labels=given_labels).moved(1e-3) == []
    batch[theirs == 8] += np.random.default_rng(0).normal(size=(200, 12))
    found = dfm.drift(batch, labels=given_labels)
    assert set(found.classes) == {3, 8}
    assert found.moved() == [8, "features"]


def test_a_drift_names_the_layer(noise):
    dfm = maps_dfm().fit(noise)
    found = dfm.drift(noise[:20] // 2)
    assert list(found.layers) == ["0", "2"]
    assert set(found.moved()) <= {"0", "2"}
    assert found.moved()


def test_a_batch_may_be_measured_in_parts():
    rows = falling_rows(300, 12)
    dfm = pydfm.DFM(3).fit(rows[:200])
    test = DriftTest(dfm.fitted_, "fre", labelled=False)
    parts = [test.measure(dfm.fitted_.score(part, 2)) for part in np.array_split(rows[200:], 4)]
    assert {len(part) for part in parts} == {test.n_values}
    assert test.conclude(np.concatenate(parts, axis=1)) == dfm.drift(rows[200:])
    skipped = np.full((test.n_values, 3), np.nan)
    found = test.conclude(np.concatenate([*parts, skipped], axis=1))
    assert found.n_samples == 100
    with pytest.raises(ValueError, match="X holds no image that can be read; drift needs at least"):
        test.conclude(skipped)


def test_what_moved_is_corrected_for_the_number_of_tests():
    found = Drift(0.5, {"a": 0.004, "b": 0.5}, {"x": 0.002, "y": 1.0}, 9)
    assert found.moved() == ["x"]
    assert found.moved(0.02) == ["a", "x"]
    assert found.moved(0.001) == []
