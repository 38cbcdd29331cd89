from functools import lru_cache

import pytest

from benchmarks import score
from pydfm.runtime.threads import available_cores

bulk = lru_cache(maxsize=1)(score.bulk)


@pytest.mark.parametrize("name", score.NAMES)
@pytest.mark.parametrize("shape", score.QUICK, ids=str)
def test_score(timed, shape, name):
    timed(bulk(shape, available_cores()), name)


@pytest.mark.parametrize("name", ["pydfm", "scikit-learn score_samples"])
def test_ppca(timed, name):
    timed(score.ppca(score.SHAPES[0], available_cores()), name)


@pytest.mark.parametrize("name", ["pydfm, the core's call", "numpy, four lines"])
def test_one_row_in_the_core(timed, name):
    timed(score.one_row(score.ONE_ROW, 1, bare=True), name)


@pytest.mark.parametrize("name", ["pydfm, `DFM.score`", "numpy, four lines"])
def test_one_row(timed, name):
    timed(score.one_row(score.ONE_ROW, 1, bare=False), name)


@pytest.mark.parametrize("name", ["pydfm", "numpy, class by class"])
@pytest.mark.parametrize("kind", score.NEAREST_KINDS)
def test_class_conditional(timed, kind, name):
    timed(score.nearest(100, kind, available_cores()), name)
