"""What the core's bindings refuse, and what they survive."""

import numpy as np
import pytest

from pydfm import _core

ROWS = np.random.default_rng(0).normal(size=(20, 6))
COUNT, MEAN, SCATTER = _core.moments(ROWS, n_threads=1)
VALUES, VECTORS = _core.eigh(SCATTER, count=2, n_threads=1)
SCORER = _core.Scorer(MEAN, VECTORS, VALUES[:2], noise_variance=1.0)


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    crooked = raw[1:].view(array.dtype).reshape(array.shape)
    crooked[...] = array
    return crooked


@pytest.mark.parametrize("n_rows", [0, 1, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_without_features_raise(n_rows, dtype):
    rows, nothing = np.zeros((n_rows, 0), dtype), np.zeros(0)
    calls = [
        lambda: _core.moments(rows, n_threads=1),
        lambda: _core.gram(rows, n_threads=1),
        lambda: _core.score(rows, SCORER, score_types=["fre"], n_threads=1),
        lambda: _core.score_nearest(rows, [SCORER], score_types=["fre"], n_threads=1),
        lambda: _core.coordinates(rows, nothing, np.zeros((0, 0)), n_threads=1),
        lambda: _core.Scorer(nothing, np.zeros((0, 0)), nothing, noise_variance=1.0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="no features"):
            call()


def test_misaligned_arrays_raise():
    types = ["fre"]
    calls = [
        lambda: _core.moments(misaligned(ROWS), n_threads=1),
        lambda: _core.gram(misaligned(ROWS.astype(np.float32)), n_threads=1),
        lambda: _core.score(misaligned(ROWS), SCORER, score_types=types, n_threads=1),
        lambda: _core.eigh(misaligned(SCATTER), n_threads=1),
        lambda: _core.Scorer(misaligned(MEAN), VECTORS, VALUES[:2], noise_variance=1.0),
        lambda: _core.merge_moments((COUNT, MEAN, misaligned(SCATTER)), (COUNT, MEAN, SCATTER)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="aligned"):
            call()


@pytest.mark.parametrize("name", ["merge_moments", "subtract_moments"])
@pytest.mark.parametrize(
    ("moments", "error"),
    [
        ((-3, MEAN, SCATTER), ValueError),
        ((COUNT, MEAN[:-1].copy(), SCATTER), ValueError),
        ((COUNT, MEAN, SCATTER[:-1].copy()), ValueError),
        ((COUNT, MEAN), TypeError),
        ((COUNT, MEAN.astype(np.float32), SCATTER), TypeError),
        ((COUNT, MEAN, np.asfortranarray(np.triu(SCATTER))), TypeError),
        ((0.5, MEAN, SCATTER), TypeError),
    ],
)
def test_moments_that_are_none_raise(name, moments, error):
    with pytest.raises(error):
        getattr(_core, name)(moments, (COUNT, MEAN, SCATTER))
    with pytest.raises(error):
        getattr(_core, name)((COUNT, MEAN, SCATTER), moments)


@pytest.mark.parametrize("scorers", [[None], [SCORER, 3], "ab"])
def test_what_is_no_scorer_raises(scorers):
    with pytest.raises(TypeError, match="Scorer"):
        _core.score_nearest(ROWS, scorers, score_types=["fre"], n_threads=1)
    with pytest.raises(TypeError, match="Scorer"):
        _core.Classes(scorers, n_threads=1)


def test_scorers_keep_their_arrays():
    expected = _core.score(ROWS, SCORER, score_types=["fre"], n_threads=1)
    scorer = _core.Scorer(MEAN.copy(), VECTORS.copy(), VALUES[:2].copy(), noise_variance=1.0)
    [np.full(6, np.nan) for _ in range(1000)]
    np.testing.assert_array_equal(
        _core.score(ROWS, scorer, score_types=["fre"], n_threads=1), expected
    )


DAEMON = """
import threading, time
import numpy as np
from pydfm import _core

rows = np.random.default_rng(0).normal(size=(2000, 64))

def work():
    while True:
        _core.moments(rows, n_threads=2)

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""


def test_a_program_ends_while_daemon_threads_are_in_the_core(run_python):
    for _ in range(5):
        result = run_python(DAEMON, check=False)
        assert (result.returncode, result.stderr) == (0, "")
