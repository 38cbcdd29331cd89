"""The laws of training states: adding in batches, merging and removing make no difference."""

import pickle

import numpy as np
import pytest
from fits import settings_of, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import falling_rows, named_rows

from pydfm.features.grid import Grid
from pydfm.model import settings as settings_module
from pydfm.model.fitting import freeze
from pydfm.model.settings import N_FOLDS
from pydfm.model.training import TrainingState
from pydfm.stats.accumulator import Accumulator

TWO_LAYERS = (("a", Grid(4, 1, 2)), ("b", Grid(3, 1, 2)))  # 8 and 6 features
OPTIONS = [
    {},
    {"covariance": "tied"},
    {"calibration": None},
    {"calibration": "kfold"},
    {"covariance": "tied", "calibration": "kfold"},
    {"density": "gmm", "calibration": None},
    {"layers": TWO_LAYERS},
    {"layers": TWO_LAYERS, "spatial": "patch"},
    {"layers": TWO_LAYERS, "calibration": "kfold"},
]


@st.composite
def problems(draw, options=OPTIONS):
    """Rows, their labels, where to cut them, and how they are fitted."""
    n = draw(st.integers(12, 60))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    rows = falling_rows(n, 14, n) + 3 * rng.normal(size=(1, 14))
    labels = np.array(["x", "y", "z"])[rng.integers(0, 3, n)]
    if draw(st.booleans()):
        labels = None
    cuts = sorted(draw(st.lists(st.integers(1, n - 1), min_size=1, max_size=5, unique=True)))
    return rows, labels, np.split(np.arange(n), cuts), draw(st.sampled_from(options))


def at(labels, part):
    return None if labels is None else labels[part]


def parts_of(problem):
    """The states of the parts of the rows."""
    rows, labels, parts, options = problem
    return [trained(rows[part], at(labels, part), **options) for part in parts]


def added(state, rows, labels=None):
    return state.add(rows, labels, n_threads=2)


def merged(*states):
    total, *others = states
    for other in others:
        total = total.merge(other, n_threads=2)
    return total


def described(state):
    """By layer and class: number of rows, mean and scatter, of all folds together."""
    found = {}
    names, order = state.classes()
    folds = list(range(state.settings.n_folds))
    for i in range(len(state.layers)):
        cells = state.cells_of(i, folds, 2)
        scatters = {c: cell.folded(2).scatter for c, cell in cells.items() if cell.n_samples}
        for place, number in enumerate(order):
            name = None if names is None else names[place]
            scatter = scatters[0 if state.settings.tied else number]
            own = number if state.settings.tied else 0
            found[i, name] = scatter.counts[own], scatter.means[own], scatter.products
    return found


def assert_same(got, want, rtol=1e-8):
    assert got.n_samples == want.n_samples
    one, other = described(got), described(want)
    assert one.keys() == other.keys()
    for key, (count, mean, products) in other.items():
        assert one[key][0] == count
        np.testing.assert_allclose(one[key][1], mean, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(one[key][2], products, atol=rtol * (np.trace(products) + 1))


def rows_of(sample):
    """The rows of a sample, in an order of their own."""
    rows = sample.take().rows
    return rows[np.lexsort(rows.T)]


def all_folds_of(state, layer):
    """The rows of a layer that are held out in folds, in an order of their own."""
    parts = [sample.take().rows for (i, _), sample in state.fold_rows.items() if i == layer]
    rows = np.concatenate(parts)
    return rows[np.lexsort(rows.T)]


# Laws


@given(problems([*OPTIONS, {"calibration": "split"}]))
@settings(max_examples=60)
def test_batches_do_not_matter(problem):
    rows, labels, parts, options = problem
    want = trained(rows, labels, **options)
    got = want.emptied()
    for part in parts:
        got = added(got, rows[part], at(labels, part))
    assert_same(got, want)
    # To the row: the folds, and what is held out or kept.
    cells = {k: c.n_samples for k, c in got.cells.items()}
    # Numbers are those of the classes in the order they came.
    assert sorted(cells.values()) == sorted(c.n_samples for c in want.cells.values())
    assert got.n_seen == want.n_seen
    for mine, theirs in (
        (got.fold_rows, want.fold_rows),
        ({0: got.held} if got.held else {}, {0: want.held} if want.held else {}),
    ):
        assert mine.keys() == theirs.keys()
        for key, sample in theirs.items():
            assert np.array_equal(mine[key].take()[0], sample.take()[0])
            assert np.array_equal(mine[key].take()[1], sample.take()[1])
    assert got.mixture_rows.keys() == want.mixture_rows.keys()
    for key, sample in want.mixture_rows.items():
        assert np.array_equal(got.mixture_rows[key].take()[1], sample.take()[1])


@given(problems())
@settings(max_examples=60)
def test_a_sum_is_the_merge_of_parts(problem):
    rows, labels, _, options = problem
    got, want = merged(*parts_of(problem)), trained(rows, labels, **options)
    assert_same(got, want)
    assert got.classes()[0] == want.classes()[0]
    for key, sample in want.mixture_rows.items():
        assert np.array_equal(rows_of(got.mixture_rows[key]), rows_of(sample))
    # Each part has drawn folds of its own.
    for i in {layer for layer, _ in want.fold_rows}:
        assert np.array_equal(all_folds_of(got, i), all_folds_of(want, i))


@given(problems([*OPTIONS, {"calibration": "split"}]))
@settings(max_examples=60)
def test_merges_commute_and_associate_but_for_rounding(problem):
    a, b, c = (parts_of(problem) * 3)[:3]
    want = merged(a, b, c)
    for other in (merged(a, merged(b, c)), merged(c, b, a), merged(b, c, a)):
        assert_same(other, want)
        if want.held is not None and want.held.n_rows:
            assert np.array_equal(rows_of(other.held), rows_of(want.held))
    for other in (merged(a, a.emptied()), merged(a.emptied(), a)):
        assert_same(other, a)


@given(
    problems(
        [
            {},
            {"covariance": "tied"},
            {"layers": TWO_LAYERS},
            {"calibration": "split"},
            {"density": "gmm", "calibration": None},
        ]
    )
)
@settings(max_examples=60)
def test_remove_undoes_add(problem):
    rows, labels, parts, options = problem
    before = trained(rows, labels, **options)
    more = rows[parts[0]] + 0.25
    theirs = at(labels, parts[0])
    grown = added(before, more, theirs)
    got = grown.remove(more, theirs, n_threads=2)
    assert_same(got, before)
    if before.held is not None and before.held.n_rows:
        assert np.array_equal(rows_of(got.held), rows_of(before.held))
    for key, sample in before.mixture_rows.items():
        assert np.array_equal(rows_of(got.mixture_rows[key]), rows_of(sample))


@given(problems([{}, {"covariance": "tied"}, {"layers": TWO_LAYERS}]))
@settings(max_examples=30)
def test_the_rest_is_the_state_of_the_other_rows(problem):
    rows, labels, parts, options = problem
    gone, stay = parts[0], np.concatenate(parts[1:])
    got = trained(rows, labels, **options).remove(rows[gone], at(labels, gone), n_threads=2)
    assert_same(got, trained(rows[stay], at(labels, stay), **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"calibration": "kfold"},
        {"calibration": "split"},
        {"density": "gmm", "calibration": None},
    ],
)
def test_a_class_is_removed(options):
    rows, labels = named_rows(60, 14)
    state = trained(rows, labels, batches=3, **options)
    got = state.remove_class("b")
    stay = labels != "b"
    if options.get("calibration") != "split":
        assert_same(got, trained(rows[stay], labels[stay], **options))
    assert got.classes()[0] == ["a", "c"]
    assert got.n_samples == state.n_samples - state.counts()[state.codes.find(np.array(["b"]))[0]]
    samples = [*got.fold_rows.values(), *got.mixture_rows.values()]
    samples += [] if got.held is None else [got.held]
    wrong = rows[~stay].astype(np.float64)
    for sample in samples:
        assert sample.n_rows
        assert not sample.find(wrong).any()


@pytest.mark.parametrize("covariance", ["class", "tied"])
def test_folded_images_are_recognised_by_their_hashes(covariance):
    rows, labels = named_rows(60, 6)
    hashes = np.random.default_rng(0).integers(0, 2**63, 60).astype(np.uint64)
    options = {"covariance": covariance, "calibration": None}
    state = trained(rows[:1], labels[:1], **options).emptied()
    for part in np.split(np.arange(60), [13, 40]):
        state = state.add(rows[part], labels[part], n_threads=2, hashes=hashes[part])
    gone, stay = np.arange(0, 60, 4), np.setdiff1d(np.arange(60), np.arange(0, 60, 4))
    got = state.remove(rows[gone], labels[gone], n_threads=2, hashes=hashes[gone])
    assert_same(got, trained(rows[stay], labels[stay], **options))
    for strange in (hashes[gone], hashes[gone] + np.uint64(1)):
        with pytest.raises(ValueError, match=r"image 0 of X is none of those the model was fitted"):
            got.remove(rows[gone], labels[gone], n_threads=2, hashes=strange)
    with pytest.raises(
        ValueError, match=r"row \d+ of X cannot be recognised: .* fit again without"
    ):
        state.remove(rows[gone], labels[gone], n_threads=2)
    # A merge knows the images of both; with one image that is not known, none is.
    both = merged(state, state.emptied().add(rows, labels, n_threads=2, hashes=hashes))
    both = both.remove(rows, labels, n_threads=2, hashes=hashes)
    assert_same(both, state)
    mixed = added(state, rows, labels)
    with pytest.raises(ValueError, match="cannot be recognised"):
        mixed.remove(rows[gone], labels[gone], n_threads=2, hashes=hashes[gone])


# Values


def test_an_update_leaves_the_state_as_it_was():
    rows, labels = named_rows(40, 14)
    for options in OPTIONS:
        state = trained(rows, labels, **options)
        before = pickle.dumps(state)
        added(state, rows + 1, labels)
        added(state, rows[:3], np.array(["new"] * 3))
        state.merge(trained(rows + 2, labels, **options), n_threads=2)
        state.compact()
        if state.settings.held_out == "loo":
            state.remove(rows[:3], labels[:3], n_threads=2)
        if not state.settings.tied:
            state.remove_class("a")
        with pytest.raises(ValueError, match="NaN"):
            added(state, np.full((200, 14), np.nan), np.repeat("a", 200))
        assert pickle.dumps(state) == before


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_pickle_is_the_same_state(options):
    rows, labels = named_rows(40, 14)
    state = trained(rows, labels, batches=3, **options)
    again = pickle.loads(pickle.dumps(state))
    assert_same(again, state, rtol=0)
    assert again.n_bytes == state.n_bytes
    assert_same(added(again, rows, labels), added(state, rows, labels), rtol=0)


def test_a_state_begins_with_its_layers():
    settings = settings_of()
    state = TrainingState.begin(None, 7, settings)
    ((name, columns, grid),) = ((own.name, own.columns, own.grid) for own in state.layers)
    assert (name, columns, grid) == ("features", slice(0, 7), None)
    assert (state.n_features, state.n_samples, state.n_bytes) == (7, 0, 0)
    assert state.labelled is None
    rows, labels = named_rows(30, 7)
    grown = added(state, rows, labels)
    assert grown.counts().sum() == 30
    assert dict(zip(grown.classes()[0], grown.counts()[grown.classes()[1]], strict=True)) == {
        c: int((labels == c).sum()) for c in "abc"
    }
    assert grown.emptied().settings is settings


def test_images_of_patches_are_counted_whole():
    rows, labels = named_rows(30, 14)
    state = trained(rows, labels, layers=TWO_LAYERS, spatial="patch")
    assert state.counts().sum() == state.n_samples == 30
    cells = state.cells_of(0, list(range(N_FOLDS)), 1)
    assert sum(cell.n_samples for cell in cells.values()) == 30 * 2


class _Counted:
    """Counts how many rows accumulators are given at once, and how many they keep."""

    def __init__(self, monkeypatch):
        self.most_at_once = self.most_kept = self.rows = 0
        actual = Accumulator.add

        def add(cell, features, classes=None, **options):
            grown = actual(cell, features, classes, **options)
            self.rows += len(features)
            self.most_at_once = max(self.most_at_once, len(features))
            self.most_kept = max(self.most_kept, grown.n_kept)
            return grown

        monkeypatch.setattr(Accumulator, "add", add)


@pytest.mark.parametrize("calibration", ["kfold", None])
def test_patches_are_never_held_all_at_once(monkeypatch, calibration):
    counted = _Counted(monkeypatch)
    grid = Grid(4, 8, 8)
    rng = np.random.default_rng(0)
    options = {"spatial": "patch", "calibration": calibration}
    state = trained(np.empty((0, grid.size)), layers=[("a", grid)], **options).emptied()
    for _ in range(50):
        state = added(state, rng.normal(size=(10, grid.size)).astype(np.float32))
    freeze(state, n_threads=1)
    assert counted.rows == 500 * 64
    assert counted.most_at_once <= 10 * 64
    assert counted.most_kept <= 4  # rows that are not folded into moments yet: at most D


@pytest.mark.parametrize("covariance", ["class", "tied"])
def test_samples_keep_their_bytes_after_a_merge_and_a_class_removed(monkeypatch, covariance):
    monkeypatch.setattr(settings_module, "_SAMPLE", 100)
    monkeypatch.setattr(settings_module, "_CLASS_SAMPLE", 100)
    monkeypatch.setattr(settings_module, "_SAMPLE_BYTES", 30 * 4 * 12)
    rows, labels = named_rows(900, 12)
    a = trained(rows[:300], labels[:300], covariance=covariance)
    b = trained(rows[300:], labels[300:], covariance=covariance)
    grown = merged(b, a)
    if covariance == "class":
        a = trained(rows[:300], np.char.add(labels[:300], "2"))  # classes that b has not yet
        own = labels == "a"
        grown = merged(b, a).remove_class("a").remove_class("b2")
        grown = added(grown, rows[own], labels[own])
    again = added(merged(grown.emptied(), grown), rows, labels)
    for state in (grown, again):
        cells = [cell for cell in state.cells.values() if cell.n_samples]
        assert {cell.folded(1).sample.n_rows for cell in cells} == {30}
        assert all(cell.folded(1).sample.n_bytes <= 30 * 4 * 12 for cell in cells)


# Bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_components": 4}, "n_components is 3 in one model and 4 in the other"),
        ({"covariance": "tied"}, "covariance is 'class' in one model and 'tied'"),
        ({"calibration": None}, "calibration is 'loo' in one model and None"),
        ({"random_state": 3}, "random_state is 0 in one model and 3"),
    ],
)
def test_states_of_other_settings_are_not_merged(options, says):
    rows = falling_rows(20, 6)
    with pytest.raises(ValueError, match=says):
        merged(trained(rows), trained(rows, **options))


def test_what_cannot_be_added_or_removed_is_told():
    rows, labels = named_rows(30, 14)
    plain, classed = trained(rows), trained(rows, labels)
    with pytest.raises(ValueError, match="without labels, and some are given now"):
        added(plain, rows, labels)
    with pytest.raises(ValueError, match="with labels, and none are given now"):
        added(classed, rows)
    with pytest.raises(ValueError, match="one model was fitted with labels and the other without"):
        merged(classed, plain)
    with pytest.raises(ValueError, match="one model has 14 features and the other 5"):
        merged(plain, trained(rows[:, :5]))
    folds = trained(rows, calibration="kfold")
    with pytest.raises(ValueError, match=r"fold of a row is not known any more; fit again"):
        folds.remove(rows[:3], n_threads=1)
    with pytest.raises(ValueError, match="classes has 'q', which is none of the classes"):
        classed.remove_class("q")
    with pytest.raises(ValueError, match=r"covariance is 'tied', .* forget its rows"):
        trained(rows, labels, covariance="tied").remove_class("a")
    with pytest.raises(ValueError, match=r"none of those|was not fitted on"):
        plain.remove(rows[:2] + 40, n_threads=1)
    with pytest.raises(ValueError, match=r"max_memory leaves 2e\+03 bytes for the statistics of"):
        trained(rows, labels, max_memory=2000, calibration=None)


# Groups, and what is held out in folds


def units_of(state):
    """By place: the class, unit and fold of each row, -1 where it is not fitted at all."""
    found = {}
    for (layer, fold, c), cell in state.cells.items():
        if layer == 0:
            for part in cell.kept:
                own = part.classes if state.settings.tied else np.full_like(part.classes, c)
                found |= {
                    int(place): (int(k), int(unit), fold)
                    for place, k, unit in zip(part.places, own, part.units, strict=True)
                }
    if state.held is not None and state.held.n_rows:
        places, _, tags, units = state.held.take()
        found |= {
            int(place): (int(k), int(unit), -1)
            for place, k, unit in zip(places, tags, units, strict=True)
        }
    return [found[place] for place in sorted(found)]


@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
@pytest.mark.parametrize("covariance", ["class", "tied"])
@pytest.mark.parametrize("batches", [1, 7])
def test_a_group_stays_together_within_its_class(calibration, covariance, batches):
    rows, labels = named_rows(60, 100)  # of which all rows are kept
    groups = np.arange(60) // 4
    options = {"calibration": calibration, "covariance": covariance}
    state = trained(rows, labels, groups, batches=batches, **options)
    found = units_of(state)
    assert len(found) == 60
    keys = [(state.codes.find(labels[[i]])[0], groups[i]) for i in range(60)]
    pairs = set(zip(keys, found, strict=True))
    assert len(pairs) == len(set(keys)) == len(set(found))
    if calibration == "kfold":
        assert len({fold for *_, fold in found}) == N_FOLDS
    if calibration == "split":
        assert 0 < state.held.n_rows < 30
    with pytest.raises(ValueError, match="fitted with groups, and none are given now"):
        added(state, rows, labels)


@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
def test_rows_of_a_group_that_come_after_a_merge_are_held_out_with_it(calibration):
    rows, labels = named_rows(90, 100)
    groups = np.char.add(labels, (np.arange(90) // 3).astype(str))
    parts = np.split(np.arange(90), [21, 60])
    state = merged(
        *(trained(rows[p], labels[p], groups[p], calibration=calibration) for p in parts)
    )
    state = state.add(rows + 1, labels, n_threads=2, groups=groups)
    found = units_of(state)
    assert found[:90] == found[90:]
    assert len(set(zip(groups, found[:90], strict=True))) == len(set(groups))
    if calibration != "loo":
        both = trained(rows, labels, groups, calibration=calibration)
        with pytest.raises(ValueError, match=r"the group '.*' has rows in both models, which may"):
            merged(both, both)


def test_names_are_kept_with_their_places():
    rows = falling_rows(9, 4)
    state = trained(rows[:1]).emptied()
    for part in np.split(np.arange(9), [4, 7]):
        names = None if part[0] == 4 else [f"{i}.png" for i in part]
        state = state.add(rows[part], n_threads=1, names=names)
    assert state.names_of(np.array([8, 5, 0])) == {0: "0.png", 8: "8.png"}
    both = merged(state, state)
    assert both.names_of(np.array([9, 17, 14])) == {9: "0.png", 17: "8.png"}
