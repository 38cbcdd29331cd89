"""Products of matrices by the core, in as many threads as are allowed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydfm import _core

SIZES = st.sampled_from([1, 2, 7, 255, 256, 257, 520])


@given(SIZES, st.sampled_from([0, 1, 3, 40]), SIZES, st.booleans(), st.integers(0, 9))
def test_a_product_is_numpys_whatever_the_threads(n_rows, depth, n_columns, transposed, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n_rows, depth))
    b = rng.normal(size=(n_columns, depth) if transposed else (depth, n_columns))
    got = _core.product(a, b, transposed=transposed, n_threads=1)
    np.testing.assert_allclose(got, a @ (b.T if transposed else b), rtol=1e-12, atol=1e-12)
    again = _core.product(a, b, transposed=transposed, n_threads=3)
    assert np.array_equal(got, again)


def test_shapes_that_do_not_fit_are_refused():
    a, b = np.ones((3, 4)), np.ones((4, 5))
    with pytest.raises(ValueError, match="a must have as many columns as b has rows"):
        _core.product(b, a, n_threads=1)
    with pytest.raises(ValueError, match="as many columns as b, which is transposed"):
        _core.product(a, b, transposed=True, n_threads=1)
    with pytest.raises(TypeError):
        _core.product(a.astype(np.float32), b, n_threads=1)
