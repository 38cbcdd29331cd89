"""Units: what is left out together, over batches, merges and removals; and their folds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pydfm.model.units import Units, draw_folds


def added(classes, groups=None, units=None, n_classes=None):
    """Units with rows added, and the unit of each row."""
    classes = np.asarray(classes)
    groups = None if groups is None else np.asarray(groups)
    return (units or Units()).add(classes, groups, n_classes or int(classes.max()) + 1)


@st.composite
def problems(draw):
    """Classes (n,) and groups (n,) or None of rows, and where their batches begin."""
    n = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    classes = rng.integers(0, draw(st.integers(1, 3)), n)
    groups = rng.choice(["p", "q", "r", "s", "t"], n) if draw(st.booleans()) else None
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return classes, groups, np.split(np.arange(n), cuts)


def at(groups, part):
    return None if groups is None else groups[part]


def in_batches(classes, groups, parts):
    units, found = Units(), []
    for part in parts:
        if len(part):
            units, own = units.add(classes[part], at(groups, part), 3)
            found.append(own)
    return units, np.concatenate(found)


def assert_same(one, other):
    assert np.array_equal(one.counts, other.counts)
    assert (one.grouped, dict(one.numbers)) == (other.grouped, dict(other.numbers))
    assert len(one.sizes) == len(other.sizes)
    for mine, theirs in zip(one.sizes, other.sizes, strict=True):
        assert np.array_equal(mine, theirs)


# Numbers


def test_rows_are_units_of_their_own_numbered_within_their_class():
    units, own = added([0, 1, 0, 0, 1])
    assert own.tolist() == [0, 0, 1, 2, 1]
    assert units.counts.tolist() == [3, 2]
    assert units.grouped is False
    _, more = added([1, 0], units=units, n_classes=3)
    assert more.tolist() == [2, 3]


def test_groups_are_units_within_each_class():
    units, own = added([0, 0, 1, 0, 1], ["film", "day", "film", "film", "film"])
    assert own.tolist() == [0, 1, 0, 0, 0]
    assert units.counts.tolist() == [2, 1]
    assert [sizes.tolist() for sizes in units.sizes] == [[2, 1], [2]]
    units, own = added([0, 0, 2], ["day", "night", "day"], units)
    assert own.tolist() == [1, 2, 0]
    assert [sizes.tolist() for sizes in units.sizes] == [[2, 2, 1], [2], [1]]
    assert [units.n_groups(c) for c in range(4)] == [3, 1, 1, 0]


@given(problems())
def test_batches_do_not_matter(problem):
    classes, groups, parts = problem
    want, own = added(classes, groups, n_classes=3)
    got, found = in_batches(classes, groups, parts)
    assert_same(got, want)
    assert np.array_equal(found, own)
    # Rows are of one unit where they share class and group.
    if groups is not None:
        keys = [(c, g) for c, g in zip(classes, groups, strict=True)]
        mine = list(zip(classes, own, strict=True))
        assert len(set(keys)) == len(set(mine)) == len(set(zip(keys, mine, strict=True)))


def test_groups_are_given_always_or_never():
    with pytest.raises(ValueError, match="fitted with groups, and none are given now"):
        added([0], units=added([0], ["p"])[0])
    with pytest.raises(ValueError, match="fitted without groups, and some are given now"):
        added([0], ["p"], added([0])[0])
    with pytest.raises(ValueError, match="fitted without groups, and some are given now"):
        added([0])[0].merge(added([0], ["p"])[0], np.arange(1))


# Merges


@given(problems(), st.sampled_from([[0, 1, 2], [2, 0, 1], [1, 2, 4]]))
def test_a_merge_numbers_the_units_of_both(problem, numbers):
    classes, groups, parts = problem
    numbers = np.array(numbers)
    left, rest = parts[0], np.concatenate([*parts[1:], np.zeros(0, int)]).astype(int)
    one, _ = added(classes[left], at(groups, left), n_classes=3) if len(left) else (Units(), [])
    if len(rest) == 0:
        assert one.merge(Units(), numbers) == (one, ())
        return
    other, theirs = added(classes[rest], at(groups, rest), n_classes=3)
    both, maps = one.merge(other, numbers)
    found = np.array([maps[c][u] for c, u in zip(classes[rest], theirs, strict=True)])
    # As if the rows of the other had come behind, in their classes here.
    start = one if len(left) else None
    want, own = added(numbers[classes[rest]], at(groups, rest), start, n_classes=5)
    if groups is None:
        # They keep their order within a class.
        assert np.array_equal(found, own)
    keys = list(zip(numbers[classes[rest]], found, strict=True))
    assert len(set(keys)) == len(set(zip(numbers[classes[rest]], own, strict=True)))
    assert both.grouped == want.grouped
    counts = np.zeros(5, int)
    counts[: len(both.counts)] = both.counts
    assert np.array_equal(counts, want.counts)
    for (c, group), unit in want.numbers.items():
        assert want.sizes[c][unit] == both.sizes[c][both.numbers[c, group]]
    # Nothing is neutral.
    if len(left):
        assert_same(Units().merge(one, np.arange(3))[0], one)


def test_shared_groups_become_one_unless_they_are_in_folds():
    one, other = (added([0, 0, 1], groups)[0] for groups in (["p", "q", "p"], ["q", "r", "s"]))
    both, (first, second) = one.merge(other, np.arange(2))
    assert (first.tolist(), second.tolist()) == ([1, 2], [1])
    assert [sizes.tolist() for sizes in both.sizes] == [[1, 2, 1], [1, 1]]
    with pytest.raises(ValueError, match=r"the group 'q' has rows in both models, which may be in"):
        one.merge(other, np.arange(2), 5)
    # In other classes it is another group.
    one.merge(other, np.array([2, 3]), 5)


@given(problems(), st.integers(0, 9))
@settings(max_examples=60)
def test_units_stay_in_their_folds_in_a_merge(problem, seed):
    classes, groups, parts = problem
    total, held = Units(), []
    for i, part in enumerate(parts):
        if len(part) == 0:
            continue
        # Groups of their own in each part.
        own = None if groups is None else np.char.add(groups[part], str(i))
        other, theirs = added(classes[part], own, n_classes=3)
        total, maps = total.merge(other, np.arange(3), 5, seed)
        found = np.array([maps[c][u] for c, u in zip(classes[part], theirs, strict=True)])
        assert np.array_equal(draw_folds(found, 5, seed), draw_folds(theirs, 5, seed))
        held += zip(classes[part], found, own if own is not None else found, strict=True)
        # Rows of a group that come later have its fold, and new rows a new unit.
        _, more = total.add(classes[part], own, 3)
        if own is not None:
            assert np.array_equal(more, found)
        else:
            assert not set(zip(classes[part], more, strict=True)) & {key[:2] for key in held}
    assert len({key[:2] for key in held}) == len(set(held))


# Removal


def test_rows_are_removed_from_their_units_and_no_number_changes():
    units, _ = added([0, 0, 0, 1], ["p", "q", "p", "p"])
    rest = units.remove(np.array([0, 1]), np.array(["p", "p"]))
    assert [sizes.tolist() for sizes in rest.sizes] == [[1, 1], [0]]
    assert [rest.n_groups(c) for c in (0, 1)] == [2, 0]
    _, own = added([0, 1, 0], ["p", "p", "z"], rest)
    assert own.tolist() == [0, 0, 2]
    with pytest.raises(
        ValueError, match="groups has 'p', and the model was fitted on no more rows"
    ):
        rest.remove(np.array([1]), np.array(["p"]))
    with pytest.raises(
        ValueError, match="groups has 'z', and the model was fitted on no more rows"
    ):
        units.remove(np.array([0]), np.array(["z"]))
    with pytest.raises(ValueError, match="fitted with groups, and groups is None; give those of X"):
        units.remove(np.array([0]), None)
    assert [sizes.tolist() for sizes in units.sizes] == [[2, 1], [1]]  # as it was
    none = units.remove_class(0)
    assert [none.n_groups(c) for c in (0, 1)] == [0, 1]
    plain, _ = added([0, 0])
    assert plain.remove(np.array([0]), None) is plain


# Samples


def test_units_are_complete_where_all_their_rows_are_there():
    classes, groups = np.array([0, 0, 0, 1, 1]), np.array(["p", "q", "p", "p", "p"])
    units, own = added(classes, groups)
    some = np.array([0, 1, 3, 4])
    assert units.complete(classes[some], own[some], 1).tolist() == [False, True, True, True]
    assert units.complete(classes, own, 1).all()
    # Of images with two positions each.
    twice = np.repeat(np.arange(5), 2)
    assert units.complete(classes[twice], own[twice], 2).all()
    assert units.complete(classes[twice[1:]], own[twice[1:]], 2).tolist() == [False] + [
        bool(c or g == "q") for c, g in zip(classes[twice[2:]], groups[twice[2:]], strict=True)
    ]
    plain, own = added(classes)
    assert plain.complete(classes[some], own[some], 1).all()
    assert plain.complete(classes[twice[1:]], own[twice[1:]], 2).tolist() == [False] + [True] * 8


# Folds


@pytest.mark.parametrize("n_folds", [2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_each_block_of_units_gives_one_to_each_fold(n_folds, seed):
    folds = draw_folds(np.arange(40 * n_folds), n_folds, seed).reshape(40, n_folds)
    assert np.array_equal(np.sort(folds, axis=1), np.tile(np.arange(n_folds), (40, 1)))
    assert len(np.unique(folds, axis=0)) > 1  # in an order of its own
    # A fold depends on its unit alone.
    some = np.array([7, 3, 3, 60])
    assert np.array_equal(draw_folds(some, n_folds, seed), folds.reshape(-1)[some])


def test_folds_depend_on_the_seed():
    units = np.arange(50)
    assert not np.array_equal(draw_folds(units, 5, 0), draw_folds(units, 5, 1))
    assert np.array_equal(draw_folds(units, 5, 3), draw_folds(units, 5, 3))
    assert (draw_folds(units, 1, 0) == 0).all()
