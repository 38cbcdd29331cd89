"""Ctrl-C during a long call: it ends at once, and leaves the model as it was.

Time is that of the processor, which other programs do not take; every call would take some seconds.
"""

import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

import pydfm
from pydfm import _core

SHAPE = (32000, 2048)
DELAY = 0.2
SLOWER = int(os.environ.get("PYDFM_TEST_SLOWER", "1"))  # how many times, with a sanitizer
SOON = 1.0 * SLOWER


@pytest.fixture(scope="module")
def many():
    few = np.random.default_rng(0).normal(size=(1000, SHAPE[1])).astype(np.float32)
    return np.tile(few, (SHAPE[0] // 1000, 1))


@pytest.fixture(scope="module")
def fitted(many):
    rows = np.random.default_rng(1).normal(size=(2100, SHAPE[1])).astype(np.float32)
    return pydfm.DFM(1900, n_threads=2).fit(rows)


@pytest.fixture
def ctrl_c():
    """A function that presses Ctrl-C during a call, and returns how long that then went on."""
    timers = []

    def press_during(call):
        pressed = []

        def press():
            pressed.append(time.process_time())
            signal.raise_signal(signal.SIGINT)

        timers.append(threading.Timer(DELAY, press))
        timers[-1].start()
        with pytest.raises(KeyboardInterrupt):
            call()
        return time.process_time() - pressed[0]

    yield press_during
    for timer in timers:
        timer.cancel()
        timer.join()


@pytest.fixture(scope="module")
def scorer():
    mean, components, variances = np.zeros(2048), np.eye(2000, 2048), np.ones(2000)
    return _core.Scorer(mean, components, variances, noise_variance=1.0)


CALLS = {
    "moments": lambda many, _, n: _core.moments(many, n_threads=n),
    "gram": lambda many, _, n: _core.gram(many.reshape(8000, -1), n_threads=n),
    "eigh": lambda many, _, n: _core.eigh(many[:2048].astype(np.float64), n_threads=n),
    "score": lambda many, scorer, n: _core.score(many, scorer, score_types=["fre"], n_threads=n),
    "score_nearest": lambda many, scorer, n: _core.score_nearest(
        many[:2000], [scorer] * 20, score_types=["fre"], n_threads=n
    ),
    "judge": lambda many, scorer, n: _core.judge(
        many[:2000],
        _core.Classes([scorer] * 20, n_threads=n),
        _core.HeldOutScores(
            scores=np.tile(np.arange(3, dtype=np.float32), 20),
            weights=np.tile(np.arange(3.0, -1, -1), 20),
            starts=np.arange(0, 61, 3),
            n_units=np.full(20, 3.0),
            thresholds=np.full(20, 1.0),
        ),
        score_type="fre",
        n_threads=n,
    ),
    "leave_groups_out": lambda many, _, n: _core.leave_groups_out(
        many[:1000, :1000].astype(np.float64),
        np.linspace(3e3, 1e3, 1000),
        np.arange(0, 1001, 100),
        np.full(10, 2000.0),
        n_components=500,
        degrees_of_freedom=np.full(10, 1899.0),
        n_variances=np.full(10, 1000),
        n_features=1000,
        resolution=0.0,
        score_types=["fre"],
        n_threads=n,
    ),
}


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_the_core_stops(name, n_threads, many, scorer, ctrl_c):
    assert ctrl_c(lambda: CALLS[name](many, scorer, n_threads)) < SOON


@pytest.mark.parametrize(
    "call",
    [
        lambda dfm, many: dfm.fit(many),
        lambda dfm, many: dfm.partial_fit(many),
        lambda dfm, many: dfm.merge(*[dfm] * 1000),
        lambda dfm, many: dfm.forget(many),
        lambda dfm, many: dfm.score(many),
    ],
    ids=["fit", "partial_fit", "merge", "forget", "score"],
)
def test_a_model_is_left_as_it_was(call, fitted, many, ctrl_c):
    scores = fitted.score(many[:50])
    fitted.merge(fitted)  # marks what copies share, which these calls begin with
    before = pickle.dumps(fitted)
    assert ctrl_c(lambda: call(fitted, many)) < SOON
    unchanged = pickle.dumps(fitted) == before
    assert unchanged
    assert np.array_equal(fitted.score(many[:50]), scores)


def test_a_handler_that_raises_nothing_lets_the_call_go_on(many):
    rows = many[: 8000 // SLOWER]
    want = _core.moments(rows, n_threads=2)
    within = []

    def handle(*_):
        within.append(_core.moments(rows[:100], n_threads=2)[0])

    previous = signal.signal(signal.SIGINT, handle)
    timer = threading.Timer(DELAY, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        got = _core.moments(rows, n_threads=1)
        assert within == [100]
    finally:
        timer.join()
        signal.signal(signal.SIGINT, previous)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_main_thread_of_a_forked_process_stops(run_python):
    code = """
import os, signal, threading, time
import numpy as np
from pydfm import _core

class Stopped(Exception): pass

def stop(*_): raise Stopped

def child():
    rows = np.ones((32000, 2048), dtype=np.float32)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    start = time.process_time()
    try:
        _core.moments(rows, n_threads=2)
    except Stopped:
        os._exit(int(time.process_time() - start > 1.2))
    os._exit(2)

def fork():
    pid = os.fork()
    if pid == 0: child()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

thread = threading.Thread(target=fork)
thread.start()
thread.join()
"""
    assert run_python(code).stdout.strip() == "0"
