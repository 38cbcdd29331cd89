import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydfm import _core

SPECTRA = {
    "falling": lambda n: np.arange(1.0, n + 1) ** -1.3,
    "even": lambda n: np.linspace(1, 0, n),
    "clustered": lambda n: 1 + 1e-12 * np.arange(n),
    "repeated": lambda n: np.arange(n) % 3 - 1.0,
    "low rank": lambda n: np.where(np.arange(n) < 4, 1.0, 0.0),
    "graded": lambda n: 10.0 ** -np.linspace(0, 300, n),
    "zero": lambda n: np.zeros(n),
}


def symmetric(n, spectrum, seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    a = q * SPECTRA[spectrum](n) @ q.T
    return (a + a.T) / 2


@given(
    st.integers(1, 200),
    st.sampled_from(sorted(SPECTRA)),
    st.sampled_from([1e-200, 1.0, 1e200]),
    st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_eigenpairs_are_those_of_numpy(n, spectrum, scale, seed):
    a = symmetric(n, spectrum, seed)
    values, vectors = _core.eigh(scale * a, n_threads=2)
    size = n * max(np.abs(a).max(), 1e-300)
    np.testing.assert_allclose(
        values / scale, np.linalg.eigvalsh(a)[::-1], rtol=0, atol=1e-14 * size
    )
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(n), rtol=0, atol=2e-14)
    residual = vectors @ a - (values / scale)[:, None] * vectors
    np.testing.assert_allclose(residual, 0, rtol=0, atol=1e-14 * size)


@given(st.integers(1, 150), st.sampled_from(sorted(SPECTRA)), st.integers(0, 160), st.data())
@settings(max_examples=60, deadline=None)
def test_a_count_of_vectors_is_that_of_the_leading_ones(n, spectrum, count, data):
    a = symmetric(n, spectrum, data.draw(st.integers(0, 2**31)))
    all_values, _ = _core.eigh(a, n_threads=1)
    values, vectors = _core.eigh(a, count=count, n_threads=2)
    k = min(count, n)
    assert vectors.shape == (k, n)
    assert np.array_equal(values, all_values)
    size = n * max(np.abs(a).max(), 1e-300)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), rtol=0, atol=2e-14)
    np.testing.assert_allclose(vectors @ a, values[:k, None] * vectors, rtol=0, atol=1e-14 * size)


@given(st.integers(1, 150), st.floats(0.01, 0.999), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_share_takes_the_fewest_vectors_that_exceed_it(n, share, seed):
    a = symmetric(n, "falling", seed)
    values, vectors = _core.eigh(a, share=share, n_threads=1)
    shares = np.cumsum(values) / values.sum()
    assert len(vectors) == np.searchsorted(shares, share, side="right") + 1


def test_a_share_that_is_met_but_for_rounding_takes_one_more():
    values, vectors = _core.eigh(np.diag([0.25, 0.5, 0.125, 0.125]), share=0.75, n_threads=1)
    np.testing.assert_allclose(values, [0.5, 0.25, 0.125, 0.125], rtol=1e-15)
    assert len(vectors) == 3


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_what_has_no_variance_has_vectors_only_where_all_are_wanted(share):
    values, vectors = _core.eigh(np.zeros((5, 5)), share=share, n_threads=1)
    assert (values == 0).all()
    assert len(vectors) == (0 if share < 1 else 5)


@pytest.mark.parametrize("n", [300, 700])
def test_bits_do_not_depend_on_threads(n):
    a = symmetric(n, "falling", 1)
    for share in (0.9, 1.0):
        one = _core.eigh(a, share=share, n_threads=1)
        for n_threads in (2, 3, 8):
            more = _core.eigh(a, share=share, n_threads=n_threads)
            assert all(np.array_equal(x, y) for x, y in zip(one, more, strict=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 30, 200])
def test_what_is_not_finite_raises(n, bad):
    a = np.eye(n)
    a[-1, 0] = bad
    with pytest.raises(np.linalg.LinAlgError, match="NaN or infinite"):
        _core.eigh(a, n_threads=2)
