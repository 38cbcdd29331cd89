"""Threads that share an estimator."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from reference import falling_rows
from sklearn.base import clone

import pydfm

ROWS = falling_rows(200, 12)


def test_no_rows_are_lost_where_threads_add_and_remove_them():
    dfm = pydfm.DFM(3, n_threads=1).fit(ROWS[:20])

    def add_and_forget(i):
        own = ROWS[20 + 20 * i :][:20]
        for part in np.split(own, 5):
            dfm.partial_fit(part)
            dfm.forget(part[:2])
            dfm.score(ROWS[:2])

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(add_and_forget, range(9)))
    assert dfm.n_samples_ == 20 + 9 * 10
    kept = np.concatenate([ROWS[:20], *(part[2:] for part in np.split(ROWS[20:], 45))])
    want = pydfm.DFM(3).fit(kept)
    np.testing.assert_allclose(dfm.score(ROWS), want.score(ROWS), rtol=1e-3, atol=1e-4)


def test_rows_that_come_while_the_model_is_computed_stay(monkeypatch):
    dfm = pydfm.DFM(3).partial_fit(ROWS[:50])
    freeze = pydfm.estimator.freeze

    def slow(*args, **options):
        monkeypatch.setattr(pydfm.estimator, "freeze", freeze)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(dfm.partial_fit, ROWS[50:]).result()
        return freeze(*args, **options)

    monkeypatch.setattr(pydfm.estimator, "freeze", slow)
    dfm.score(ROWS)
    assert dfm.n_samples_ == 200


def test_parameters_are_not_set_while_rows_are_added():
    dfm, waiting = pydfm.DFM(3).fit(ROWS[:50]), []

    def batches(pool):
        waiting.append(pool.submit(dfm.set_params, n_components=2))
        yield ROWS[50:]

    with ThreadPoolExecutor(1) as pool:
        dfm.partial_fit(batches(pool))
        waiting[0].result()
    with pytest.warns(UserWarning, match="n_components changed after the fit"):
        dfm.score(ROWS)


@pytest.mark.filterwarnings("ignore:1 of 1 images were skipped")
def test_images_that_were_skipped_are_those_of_the_thread(tmp_path):
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    dfm = pydfm.DFM(weights=None, layers="layer1", image_size=32, on_error="skip")
    assert not hasattr(dfm, "skipped_")
    dfm.fit(images)
    paths = [[str(tmp_path / name)] for name in "ab"]
    together = Barrier(2)

    def score(path):
        dfm.score(path)
        together.wait(60)
        return dfm.skipped_[0].reason

    dfm.score(paths[0])
    with ThreadPoolExecutor(2) as pool:
        reasons = list(pool.map(score, paths))
    for (path,), reason in zip(paths, reasons, strict=True):
        assert path in reason
    assert paths[0][0] in dfm.skipped_[0].reason
    for copied in (copy.copy(dfm), pickle.loads(pickle.dumps(dfm))):
        assert len(copied.skipped_) == 1
        copied.score(images)
        assert copied.skipped_ == []
        assert len(dfm.skipped_) == 1
    assert not hasattr(clone(dfm), "skipped_")
