"""Rows added, merged and removed: the laws that training states are built on."""

import dataclasses
import pickle

import numpy as np
import pytest
from fits import accumulated
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import falling_rows, labelled_rows

from pydfm.stats import accumulator as accumulator_module
from pydfm.stats.accumulator import Accumulator
from pydfm.stats.sample import RowSample
from pydfm.stats.subspace import Spectrum


@st.composite
def problems(draw):
    """Rows of classes that share a scatter, and where their batches begin."""
    n = draw(st.integers(8, 90))
    rows, classes = labelled_rows((n // 2, n - n // 2), draw(st.sampled_from([3, 12, 60])), n)
    rows = rows.astype(draw(st.sampled_from([np.float32, np.float64])))
    cuts = sorted(draw(st.lists(st.integers(1, n - 1), max_size=5, unique=True)))
    return rows, classes, np.split(np.arange(n), cuts)


def moments(cell):
    """Counts (C,), means (C, D) and the scatter (D, D) of accumulated rows."""
    scatter = cell.folded(2).scatter
    return scatter.counts, scatter.means, scatter.products


def places_of(cell):
    """Places of all rows, of a cell whose sample has room for them."""
    return cell.folded(1).sample.take().places


def assert_same(got, want):
    counts, means, products = moments(want)
    scale = np.trace(products) + 1e-300
    found = moments(got)
    assert np.array_equal(found[0], counts)
    np.testing.assert_allclose(found[1], means, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[2], products, atol=1e-9 * scale)
    assert (got.n_samples, got.n_kept) == (want.n_samples, want.n_kept)


@given(problems())
@settings(max_examples=60)
def test_batches_do_not_matter(problem):
    rows, classes, parts = problem
    got = Accumulator(RowSample(1000))
    for part in parts:
        got = got.add(rows[part], classes[part], n_threads=2)
    want = Accumulator(RowSample(1000)).add(rows, classes, n_threads=2)
    counts, means, products = moments(got)
    assert np.array_equal(counts, np.bincount(classes))
    each = np.stack([rows[classes == c].mean(axis=0, dtype=np.float64) for c in (0, 1)])
    deviations = rows.astype(np.float64) - each[classes]
    np.testing.assert_allclose(means, each, rtol=1e-9, atol=1e-9)
    scale = np.square(deviations).sum()
    np.testing.assert_allclose(products, deviations.T @ deviations, atol=1e-9 * scale)
    assert got.n_samples == want.n_samples == len(rows)
    assert np.array_equal(places_of(got), np.arange(len(rows)))
    assert np.array_equal(places_of(want), np.arange(len(rows)))


@given(problems())
@settings(max_examples=60)
def test_a_merge_is_the_accumulator_of_the_rows_of_both(problem):
    rows, classes, parts = problem
    same = np.arange(2)
    got = Accumulator()
    for part in parts:
        own = Accumulator().add(rows[part], classes[part], n_threads=2)
        got = got.merge(own, same, n_threads=2)
    want = Accumulator().add(rows, classes, n_threads=2)
    assert got.n_samples == len(rows)
    for a, b in zip(moments(got), moments(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.abs(b).max())
    # Nothing is neutral, on either side.
    empty = Accumulator()
    assert_same(empty.merge(want, same, n_threads=2), want)
    assert_same(want.merge(empty, same, n_threads=2), want)


@given(problems())
@settings(max_examples=60)
def test_merges_commute_and_associate_but_for_rounding(problem):
    rows, classes, parts = problem
    parts = (parts * 3)[:3]
    same = np.arange(2)
    a, b, c = (Accumulator().add(rows[part], classes[part], n_threads=2) for part in parts)
    left = a.merge(b, same, n_threads=2).merge(c, same, n_threads=2)
    right = a.merge(b.merge(c, same, n_threads=2), same, n_threads=2)
    turned = c.merge(b, same, n_threads=2).merge(a, same, n_threads=2)
    for other in (right, turned):
        for one, two in zip(moments(left), moments(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9 * np.abs(one).max())


@given(problems())
@settings(max_examples=60)
def test_remove_undoes_add(problem):
    rows, classes, parts = problem
    before = Accumulator(RowSample(500)).add(rows, classes, n_threads=2)
    more = rows[::2] + 0.5
    grown = before.add(more, classes[::2], n_threads=2)
    again = grown.remove(more, classes[::2], n_threads=2)
    assert again.n_samples == before.n_samples
    for one, two in zip(moments(again), moments(before), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8 * np.abs(two).max())
    nothing = grown
    for part in parts:
        nothing = nothing.remove(rows[part], classes[part], n_threads=2)
    nothing = nothing.remove(more, classes[::2], n_threads=2)
    assert nothing.n_samples == 0
    assert nothing.scatter is None
    assert nothing.kept == ()


def test_several_classes_may_become_one():
    rows, classes = labelled_rows((20, 30))
    both = accumulated(rows, classes, batches=4)
    together = Accumulator().merge(both, np.zeros(2, dtype=np.intp), n_threads=2)
    assert_same(together, accumulated(rows))
    assert together.counts().tolist() == [50]


def test_an_update_leaves_the_value_as_it_was():
    rows, classes = labelled_rows((40, 30), 12)
    before = accumulated(rows[:10], classes[:10], sample=RowSample(20))
    state = pickle.dumps(before)
    before.add(rows[10:], classes[10:], n_threads=2)
    before.merge(accumulated(rows, classes), np.arange(2), n_threads=2)
    before.remove(rows[:3], classes[:3], n_threads=2)
    before.folded(2)
    before.compact()
    with pytest.raises(ValueError, match="NaN"):
        before.add(np.full((40, 12), np.nan), n_threads=2)
    assert pickle.dumps(before) == state
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.n_samples = 3


@pytest.mark.parametrize("n_features", [5, 40])
def test_rows_are_kept_until_there_are_more_than_features(n_features):
    cell = Accumulator()
    for i, row in enumerate(falling_rows(60, n_features)):
        cell = cell.add(row[None], n_threads=1)
        assert cell.n_kept <= n_features
        assert (cell.scatter is None) == (i < n_features)
        kept = sum(array.nbytes for part in cell.kept for array in part)
        assert cell.n_bytes >= kept
    assert cell.n_bytes <= 8 * n_features * (n_features + 1) + n_features * (8 * n_features + 16)


def test_a_limit_of_memory_bounds_rows_and_scatter():
    rows = falling_rows(900, 100)
    cell = accumulated(rows, max_bytes=40_000, batches=30)
    assert cell.n_bytes <= 40_000
    assert cell.scatter.products.error > 0
    assert accumulated(rows, max_bytes=160_000, batches=30).scatter.products.shape == (100, 100)


def test_folded_rows_leave_a_sample():
    rows = falling_rows(300, 7)
    cell = accumulated(rows, sample=RowSample(20), batches=9).folded(2)
    places, kept, _, units = cell.sample.take()
    assert len(kept) == 20
    assert np.array_equal(units, places)
    assert np.array_equal(kept, rows[places])
    assert cell.emptied().sample.n_rows == 0
    assert accumulated(rows).folded(2).sample is None


def test_borrowed_rows_are_copied_at_last():
    rows = falling_rows(9, 20)
    given_rows = rows.copy()
    cell = Accumulator().add(given_rows, n_threads=1, borrowed=True)
    assert np.shares_memory(cell.kept[0].rows, given_rows)  # no copy while the caller waits
    own = cell.compact()
    given_rows[:] = 1e9
    assert np.array_equal(own.kept[0].rows, rows)
    assert own.compact() is own
    assert Accumulator().compact().kept == ()
    # Batches of several types become the widest.
    mixed = own.add(rows.astype(np.float32), n_threads=1).compact()
    assert len(mixed.kept) == 1
    assert mixed.kept[0].rows.dtype == np.float64


@pytest.mark.parametrize("n_features", [3, 60])
def test_rows_that_are_not_there_cannot_be_removed(n_features):
    rows = falling_rows(40, n_features)
    cell = accumulated(rows, sample=RowSample(500))
    with pytest.raises(ValueError, match="row 1 of X is none of those the model was fitted on"):
        cell.remove(np.stack([rows[0], rows[0] + 30]), n_threads=1)
    with pytest.raises(ValueError, match=r"row 40 of X is none of those|row \d+ of X is none"):
        cell.remove(np.concatenate([rows, rows]), n_threads=1)
    with pytest.raises(ValueError, match="X contains NaN in row 1, column 0"):
        cell.remove(np.stack([rows[0], np.full(n_features, np.nan)]), n_threads=1)


@pytest.mark.parametrize("sample", [None, RowSample(20)])
def test_folded_rows_are_removed_only_where_they_are_known(sample):
    rows = falling_rows(60, 5)
    cell = accumulated(rows, sample=sample)
    with pytest.raises(ValueError, match=r"row 0 of X cannot be recognised: .* fit again without"):
        cell.remove(rows[:7], n_threads=1)
    assert_same(
        cell.remove(rows[:7], n_threads=1, known=True).folded(1), accumulated(rows[7:]).folded(1)
    )
    with pytest.raises(ValueError, match="holds rows that the model was not fitted on"):
        cell.remove(rows[:7] + 50, n_threads=1, known=True)


def test_rows_are_removed_in_blocks(monkeypatch):
    rows = falling_rows(400, 5)
    want = accumulated(rows[200:]).folded(2)
    monkeypatch.setattr(accumulator_module, "_REMOVED_ROWS", 7)
    cell = accumulated(rows, sample=RowSample(500))
    assert_same(cell.remove(rows[:200], n_threads=2).folded(2), want)
    with pytest.raises(ValueError, match="NaN in row 201"):
        cell.remove(np.append(rows[:201], np.full((1, 5), np.nan), 0), n_threads=2)
    with pytest.raises(ValueError, match="row 201 of X is none of those"):
        cell.remove(np.append(rows[:201], rows[:1] + 50, 0), n_threads=2)


def test_a_sketch_gives_no_row_back():
    cell = accumulated(falling_rows(500, 100), max_bytes=40_000).folded(1)
    with pytest.raises(ValueError, match="cannot be removed from a sketch"):
        cell.remove(falling_rows(500, 100)[:3], n_threads=1, known=True)


def test_the_row_that_is_not_finite_is_counted_over_batches():
    rows = falling_rows(400, 20)
    rows[333, 3] = np.nan
    with pytest.raises(ValueError, match="NaN in row 333, column 3"):
        accumulated(rows, batches=9).folded(1)
    wide = falling_rows(40, 100)
    wide[33, 3] = np.inf
    with pytest.raises(ValueError, match="infinity in row 33, column 3"):
        Spectrum.of(accumulated(wide, batches=9), 1)


@pytest.mark.parametrize("shape", [(30, 10), (10, 30)])
def test_values_whose_squares_overflow_are_told(shape):
    with pytest.raises(ValueError, match="beyond float64; divide the features"):
        Spectrum.of(accumulated(1e200 * falling_rows(*shape)), 1)


@given(problems())
@settings(max_examples=30)
def test_places_and_units_follow_their_rows(problem):
    rows, classes, parts = problem
    n = len(rows)
    units = np.arange(n) // 3

    def of(which):
        return Accumulator(RowSample(1000)).add(
            rows[which], classes[which], n_threads=2, places=which, units=units[which]
        )

    def check(cell, order):
        """The cell has the rows of these numbers, whether they are kept or folded."""
        found = cell.folded(2).sample.take()
        assert np.array_equal(found.places, np.sort(order))
        assert np.array_equal(found.rows, rows[np.sort(order)])
        assert np.array_equal(found.units, units[np.sort(order)])
        for part in cell.kept:
            assert np.array_equal(part.rows, rows[part.places])
            assert np.array_equal(part.classes, classes[part.places])
            assert np.array_equal(part.units, units[part.places])

    every = of(np.arange(n))
    check(every, np.arange(n))
    gone = parts[0]
    rest = every.remove(rows[gone], classes[gone], n_threads=2)
    if rest.n_samples:
        check(rest, np.setdiff1d(np.arange(n), gone))
    # In a merge places are counted on, and units become others by their classes.
    asked = []

    def renumber(tags, own):
        asked.append(tags)
        return own + np.where(tags == 1, 1000, 500)

    both = every.merge(every, np.arange(2), n_threads=2, first=n, units=renumber)
    found = both.folded(2).sample.take()
    assert np.array_equal(found.places, np.arange(2 * n))
    theirs = units + np.where(classes == 1, 1000, 500)
    assert np.array_equal(found.units, np.append(units, theirs))
    assert set(np.concatenate(asked)) == set(classes)
