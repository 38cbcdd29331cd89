import numpy as np
import pytest
from fits import fit_subspaces
from reference import SCORE_TYPES, assert_scores_close, falling_rows, fit_reference

from pydfm.features.grid import Grid
from pydfm.model import layer as layer_module
from pydfm.model.anomaly_map import pool_positions
from pydfm.model.layer import LayerModel, take_columns
from pydfm.parameters import PATCH_RULES
from pydfm.stats.density import Density

GRID = Grid(5, 3, 4)
KINDS = list(SCORE_TYPES)


def pictures(n, seed=0, scale=1.0):
    """Features (n, 60) whose patches fall off in variance."""
    patches = falling_rows(n * 12, 5, seed, decay=1.5, offset=1.0) * scale
    return patches.reshape(n, 12, 5).transpose(0, 2, 1).reshape(n, 60).astype(np.float32)


def subspace_of(rows, k):
    return fit_subspaces(rows, k).subspaces[0]


def patch_layer(train, k=2, *, rule="top", share=0.1, columns=slice(0, 60)):
    density = Density(tuple(subspace_of(GRID.patches(rows), k) for rows in train))
    return LayerModel("a", columns, density, GRID, patch=True, rule=rule, top_share=share)


def patch_references(train, k=2):
    return [fit_reference(GRID.patches(rows), k) for rows in train]


@pytest.mark.parametrize("rule", PATCH_RULES)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_scores_of_pictures_are_those_of_their_patches(rule, share):
    train, others = pictures(30), pictures(7, 1, scale=1.5)
    model = patch_layer([train], rule=rule, share=share)
    want = patch_references([train])[0].scores(GRID.patches(others))
    scores, nearest = model.score(others, KINDS, 2)
    assert scores.shape == nearest.shape == (4, 7)
    assert scores.dtype == np.float32
    assert not nearest.any()
    for t, kind in enumerate(KINDS):
        positions = want[kind].reshape(7, 12)
        assert_scores_close(scores[t], pool_positions(positions, rule, share), atol=1e-5)
        maps = model.maps(others, kind, 2)
        assert_scores_close(maps, positions.reshape(7, 3, 4))


def test_all_positions_of_a_picture_are_of_one_class():
    train = [pictures(30), pictures(30, 5, scale=3.0)]
    others = np.concatenate([pictures(4, 8), pictures(4, 9, scale=3.0)])
    model = patch_layer(train, rule="mean")
    each = [r.scores(GRID.patches(others)) for r in patch_references(train)]
    scores, nearest = model.score(others, KINDS, 1)
    for t, kind in enumerate(KINDS):
        positions = np.stack([scores[kind].reshape(8, 12) for scores in each])
        means = positions.mean(axis=2)
        assert_scores_close(scores[t], means.min(axis=0), atol=1e-5)
        assert np.array_equal(nearest[t], means.argmin(axis=0))
        assert_scores_close(model.class_scores(others, kind, 1), means, atol=1e-5)
        want = positions[means.argmin(axis=0), np.arange(8)].reshape(8, 3, 4)
        assert_scores_close(model.maps(others, kind, 1), want)
    given = np.arange(8) % 2
    scores, whose = model.score(others, ["ppca"], 1, given)
    means = np.stack([scores["ppca"].reshape(8, 12).mean(axis=1) for scores in each])
    assert_scores_close(scores[0], means[given, np.arange(8)])
    assert np.array_equal(whose[0], given)


@pytest.mark.parametrize("patch", [False, True])
def test_pieces_change_nothing(monkeypatch, patch):
    train, others = pictures(80), pictures(23, 1)
    model = patch_layer([train, 2 * train])
    if not patch:
        density = Density((subspace_of(train, 9), subspace_of(2 * train, 9)))
        model = LayerModel("a", slice(0, 60), density, GRID)
    kinds = ["fre", "ppca"]
    want, maps = model.score(others, kinds, 2)[0], model.maps(others, "fre", 2)
    monkeypatch.setattr(layer_module, "_BLOCK_BYTES", 5 * 60 * 8)
    assert np.array_equal(model.score(others, kinds, 1)[0], want)
    # Maps of whole pictures are numpy's products, whose last bits depend on the rows beside.
    np.testing.assert_allclose(model.maps(others, "fre", 1), maps, rtol=0 if patch else 1e-9)


def test_maps_of_whole_pictures_sum_to_their_fre():
    train = [pictures(40), pictures(40, 3, scale=2.0)]
    others = pictures(9, 1, scale=1.4)
    density = Density(tuple(subspace_of(rows, 6) for rows in train))
    model = LayerModel("a", slice(0, 60), density, GRID)
    scores, nearest = model.score(others, ["fre"], 2)
    maps = model.maps(others, "fre", 2)
    assert (maps.shape, maps.dtype) == ((9, 3, 4), np.float64)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), scores[0], rtol=1e-4)
    references = [fit_reference(rows, 6) for rows in train]
    for i, row in enumerate(others.astype(np.float64)):
        own = references[nearest[0, i]]
        d = row - own.mean
        residual = d - own.components.T @ (own.components @ d)
        want = np.square(residual).reshape(5, 3, 4).sum(axis=0)
        np.testing.assert_allclose(maps[i], want, rtol=1e-4, atol=1e-9)


def test_a_layer_takes_its_own_columns():
    train, others = pictures(30), pictures(6, 1)
    beside = np.full((6, 7), 1e9, dtype=np.float32)
    wide = np.concatenate([beside, others, beside], axis=1)
    alone, among = patch_layer([train]), patch_layer([train], columns=slice(7, 67))
    for kind in KINDS:
        assert np.array_equal(among.score(wide, [kind], 2)[0], alone.score(others, [kind], 2)[0])
        assert np.array_equal(among.maps(wide, kind, 2), alone.maps(others, kind, 2))


@pytest.mark.parametrize("patch", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_picture_that_is_not_finite_is_told(patch, bad):
    train = pictures(30)
    model = patch_layer([train])
    if not patch:
        model = LayerModel("a", slice(0, 60), Density((subspace_of(train, 6),)), GRID)
    others = pictures(5, 1)
    others[3, 17] = bad
    with pytest.raises(ValueError, match=r"X contains (NaN|infinity) in row 3, column 17"):
        model.maps(others, "fre", 1)
    with pytest.raises(ValueError, match=r"X contains (NaN|infinity) in row 3, column 17"):
        model.score(others, ["fre"], 1)


def test_all_columns_are_no_copy():
    rows = np.zeros((3, 5))
    assert take_columns(rows, slice(0, 5)) is rows
    assert take_columns(rows, slice(1, 4)).shape == (3, 3)


@pytest.mark.parametrize("patch", [False, True])
def test_scores_and_maps_have_the_same_bits_in_any_batch(patch):
    train, others = pictures(40), pictures(37, 1)
    model = patch_layer([train])
    if not patch:
        model = LayerModel("a", slice(0, 60), Density((subspace_of(train, 6),)), GRID)
    scores, maps = model.score(others, ["fre"], 2)[0], model.maps(others, "fre", 2)
    for places in ([7], [0, 36], np.arange(36, 3, -1)):
        assert np.array_equal(model.score(others[places], ["fre"], 1)[0], scores[:, places])
        assert np.array_equal(model.maps(others[places], "fre", 1), maps[places])
