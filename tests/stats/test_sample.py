import numpy as np
import pytest

from pydfm.stats.sample import RowSample, find_rows


def sample_of(rows, size=100, batches=1, **limits):
    sample = RowSample(size, **limits)
    for places in np.array_split(np.arange(len(rows)), batches):
        sample = sample.add(rows[places], places)
    return sample


@pytest.mark.parametrize("batches", [2, 9, 400])
def test_batches_and_features_change_no_place(batches):
    rows = np.arange(400.0)[:, None]
    want = sample_of(rows).take()
    got = sample_of(rows, batches=batches).take()
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert np.array_equal(want[1][:, 0], want[0])
    assert np.array_equal(sample_of(rows.repeat(3, axis=1)).take()[0], want[0])


@pytest.mark.parametrize("sizes", [(20_000, 500), (500, 20_000), (3000, 2000, 1000), (90, 4000)])
@pytest.mark.parametrize("fresh", [False, True])
def test_rows_of_merged_samples_are_as_likely_as_others(sizes, fresh):
    # Rows hold the number of the sample that they come from.
    parts = [sample_of(np.full((n, 1), i), size=400) for i, n in enumerate(sizes)]
    merged = RowSample(400) if fresh else parts[0]
    first = 0 if fresh else sizes[0]
    for part, n in zip(parts[0 if fresh else 1 :], sizes[0 if fresh else 1 :], strict=True):
        merged = merged.merge(part, first)
        first += n
    counts = np.bincount(merged.take()[1][:, 0].astype(int), minlength=len(sizes))
    assert counts.sum() == 400
    expected = 400 * np.array(sizes) / sum(sizes)
    assert (np.abs(counts - expected) <= 4 * np.sqrt(expected) + 1).all()
    # A part that is merged holds no more of its rows for it, and rows that come are as likely.
    more = np.full((sum(sizes), 1), len(sizes))
    merged = merged.add(more, first + np.arange(len(more)))
    new = (merged.take()[1] == len(sizes)).sum()
    assert new == pytest.approx(200, abs=50)


def test_a_sample_that_holds_all_merges_as_if_it_had_come_in_batches():
    rows = np.arange(300.0)[:, None]
    merged = sample_of(rows[:90])
    merged = merged.merge(sample_of(rows[90:180]), 90, units=lambda tags, units: units + 90)
    merged = merged.add(rows[180:], np.arange(180, 300))
    assert np.array_equal(merged.take()[0], sample_of(rows).take()[0])


def test_samples_share_rows_and_go_their_own_ways():
    rows = np.arange(4000.0)[:, None]
    sample = sample_of(rows[:2000])
    grown = [sample] * 3
    for i in range(3):
        for first in range(2000 + i, 4000, 400):
            places = np.arange(first, first + 400)[: 4000 - first]
            grown[i] = grown[i].add(rows[first : first + 400], places)
            assert grown[i].n_rows == 100
            assert grown[i].n_bytes <= 150 * rows.itemsize
    assert np.array_equal(sample.take()[0], sample_of(rows[:2000]).take()[0])
    for one in grown:
        places, kept, *_ = one.take()
        assert np.array_equal(kept[:, 0], places)
    assert np.array_equal(grown[0].take()[0], sample_of(rows).take()[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_limit_in_bytes_counts_those_of_the_rows(dtype):
    rows = np.zeros((500, 7), dtype=dtype)
    sample = sample_of(rows, max_bytes=1000, batches=11)
    assert sample.n_rows == 1000 // rows[0].nbytes
    assert sample.n_bytes <= 1000
    assert sample_of(rows, max_bytes=1000, least=60).n_rows == 60
    again = sample.emptied().merge(sample_of(rows), 0)
    assert (sample.emptied().n_rows, again.n_rows) == (0, sample.n_rows)


def test_a_sample_without_some_rows_goes_on_as_before():
    rows = np.arange(1.0, 501.0)[:, None]
    sample = sample_of(rows)
    places, kept, *_ = sample.take()
    rest = sample.remove(kept[:10])
    assert np.array_equal(rest.take()[0], places[10:])
    assert (sample.n_rows, rest.n_rows) == (100, 90)
    assert sample.find(rows).sum() == 100
    sample.add(rows, 500 + np.arange(500))
    assert np.array_equal(sample.take()[0], places)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_found_once_each_with_their_tags(dtype):
    rng = np.random.default_rng(0)
    kept = (rng.normal(size=(200, 7)) + 100).astype(dtype)
    kept[50:60] = kept[40:50]  # twice
    tags = np.arange(200) % 3
    tags[50:60] = tags[40:50]
    which = rng.permutation(200)[:120]
    rows = kept[which].astype(np.float64)
    rows *= 1 + 1e-6 * rng.uniform(-1, 1, size=(120, 1))
    other = np.arange(120) % 5 == 0
    rows[other] += rng.normal(size=(24, 7))
    wrong = np.arange(120) % 7 == 1
    theirs = np.where(wrong, tags[which] + 1, tags[which])
    gone, missing = find_rows(kept, rows, tags, theirs)
    assert np.array_equal(missing, np.flatnonzero(other | wrong))
    same = np.sort(np.where((gone >= 50) & (gone < 60), gone - 10, gone))
    want = which[~(other | wrong)]
    assert np.array_equal(same, np.sort(np.where((want >= 50) & (want < 60), want - 10, want)))
    assert len(np.unique(gone)) == len(gone)
    # A row is there as often as it is kept.
    gone, missing = find_rows(kept, kept[[40, 40, 40]].astype(np.float64))
    assert sorted(gone) == [40, 50]
    assert missing.tolist() == [2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_offset_does_not_hide_that_rows_differ(dtype):
    rng = np.random.default_rng(0)
    kept = (rng.normal(size=(200, 7)) + 1e6).astype(dtype)
    other = (rng.normal(size=(5, 7)) + 1e6).astype(np.float64)
    gone, missing = find_rows(kept, np.concatenate([kept[:3], other]))
    assert (gone.tolist(), missing.tolist()) == ([0, 1, 2], [3, 4, 5, 6, 7])


def test_tags_follow_their_rows_and_are_removed():
    rows = np.arange(400.0)[:, None]
    tags = np.arange(400) % 3
    sample = RowSample(100).add(rows, np.arange(400), tags)
    places, _, kept, _ = sample.take()
    assert np.array_equal(kept, places % 3)
    rest = sample.remove_tag(1)
    assert np.array_equal(rest.take()[0], places[kept != 1])
    merged = RowSample(500).merge(rest, 0, np.array([5, 6, 7]))
    assert np.array_equal(merged.take().tags, 5 + places[kept != 1] % 3)
    nothing = RowSample(9)
    assert nothing.remove_tag(0) is nothing
    assert nothing.remove(rows) is nothing
    assert not nothing.find(rows).any()


@pytest.mark.parametrize("batches", [1, 7])
def test_units_stay_or_go_as_a_whole_but_for_the_last(batches):
    rng = np.random.default_rng(0)
    units = rng.permutation(np.repeat(np.arange(80), rng.integers(1, 9, 80)))
    rows = np.arange(len(units))[:, None]
    sample = RowSample(100)
    for part in np.array_split(np.arange(len(units)), batches):
        sample = sample.add(rows[part], part, units=units[part])
    places, kept, _, theirs = sample.take()
    assert np.array_equal(theirs, units[places])
    assert np.array_equal(kept[:, 0], places)
    counts, whole = np.bincount(theirs, minlength=80), np.bincount(units, minlength=80)
    assert ((counts > 0) & (counts < whole)).sum() <= 1
    # Another seed takes others.
    other = RowSample(100, seed=1).add(rows, rows[:, 0], units=units)
    assert not np.array_equal(other.take().places, places)


def test_units_are_renumbered_in_a_merge_by_the_tags_of_their_rows():
    rows = np.arange(30.0)[:, None]
    tags = np.arange(30) % 2
    one = RowSample(100).add(rows, np.arange(30), tags, np.arange(30) // 5)

    def renumber(tags, units):
        return units + np.where(tags == 1, 100, 50)

    merged = one.merge(one, 30, np.array([3, 4]), renumber)
    places, kept, found, units = merged.take()
    assert np.array_equal(places, np.arange(60))
    assert np.array_equal(kept[30:], rows)
    assert np.array_equal(found, np.append(tags, 3 + tags))
    theirs = np.arange(30) // 5
    assert np.array_equal(units, np.append(theirs, theirs + np.where(tags == 1, 100, 50)))


def test_rows_of_one_place_stay_in_their_order():
    # As the patches of an image, which share its place.
    rows = np.arange(60.0)[:, None]
    places = np.repeat(np.arange(20), 3)
    sample = RowSample(100)
    for part in (slice(30, 60), slice(0, 30)):
        sample = sample.add(rows[part], places[part])
    assert np.array_equal(sample.take().rows, rows)
    assert np.array_equal(sample.remove(rows[:3]).take().rows, rows[3:])
