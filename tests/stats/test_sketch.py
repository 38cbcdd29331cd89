import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import falling_rows

from pydfm.stats.sketch import FrequentDirections


def sketch_of(rows, size, batches=1):
    sketch = FrequentDirections.empty(size, rows.shape[1])
    for part in np.array_split(rows, batches):
        sketch = sketch.add(part, 2)
    return sketch


def check(sketch, rows):
    """The promise: in every direction nothing is too much, and at most `error` is missing."""
    missing = np.linalg.eigvalsh(rows.T @ rows - sketch.rows.T @ sketch.rows)
    energy = np.square(rows).sum()
    assert missing.min() >= -1e-10 * energy
    assert missing.max() <= sketch.error + 1e-10 * energy
    assert sketch.energy == pytest.approx(energy, rel=1e-12)
    assert len(sketch.rows) < 2 * sketch.size
    # Ghashami et al. 2016, theorem 1.1.
    tails = np.append(np.cumsum((np.linalg.svd(rows, compute_uv=False) ** 2)[::-1])[::-1], 0.0)
    bounds = [tails[min(k, len(tails) - 1)] / (sketch.size - k) for k in range(sketch.size)]
    assert sketch.error <= min(bounds) * (1 + 1e-9) + 1e-10 * energy


@given(
    st.integers(1, 120),
    st.integers(1, 30),
    st.integers(2, 20),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5, 2.0]),
)
@settings(max_examples=80)
def test_the_error_is_within_its_bound(n_rows, n_features, size, batches, decay):
    rows = falling_rows(n_rows, n_features, n_rows, decay)
    check(sketch_of(rows, size, batches), rows)


@pytest.mark.parametrize("sizes", [(100, 200), (3, 150), (150, 3)])
def test_merged_sketches_keep_the_bound(sizes):
    rows = falling_rows(sum(sizes), 40)
    one, other = (sketch_of(part, 8) for part in np.split(rows, [sizes[0]]))
    check(one.merge(other, 2), rows)
    check(other.merge(one, 2), rows)


def test_few_rows_are_kept_as_they_are():
    rows = falling_rows(9, 30)
    sketch = sketch_of(rows, 8)
    assert np.array_equal(sketch.rows, rows)
    assert sketch.error == 0
    before = sketch.rows.copy()
    sketch.add(falling_rows(50, 30, 1), 2)
    assert np.array_equal(sketch.rows, before)
