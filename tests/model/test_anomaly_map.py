import numpy as np
import pytest

from pydfm.features.grid import Grid
from pydfm.model.anomaly_map import (
    MapScale,
    PositionScale,
    TopShares,
    finest_of,
    pool_positions,
    scale_held_out,
    smooth,
    standardise_held_out,
    sum_of_layers,
)
from pydfm.parameters import PATCH_RULES

# Scores of images


def pooled(scores, rule, share):
    """The score of each image, from a sorted list of those of its positions."""
    values = []
    for row in scores:
        falling = sorted((float(value) for value in row), reverse=True)
        if rule == "max":
            values.append(falling[0])
        elif rule == "top":
            count = max(1, round(share * len(falling)))
            values.append(sum(falling[:count]) / count)
        elif rule == "mean":
            values.append(sum(falling) / len(falling))
        else:
            values.append(sum(falling))
    return np.array(values)


@pytest.mark.parametrize("rule", PATCH_RULES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_positions_make_one_score(rule, share):
    scores = np.random.default_rng(0).normal(size=(6, 12))
    got = pool_positions(scores, rule, share)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, pooled(scores, rule, share), rtol=1e-12)
    both = pool_positions(np.stack([scores, 2 * scores]), rule, share)
    np.testing.assert_allclose(both, [got, 2 * got], rtol=1e-12)
    assert pool_positions(scores[:, :1], rule, share) == pytest.approx(scores[:, 0])


# Standardised maps


def test_a_scale_is_mean_and_deviation_with_a_floor():
    rng = np.random.default_rng(0)
    maps = rng.random((9, 2, 5)) * np.array([1, 2, 3, 1e-9, 0])
    scale = PositionScale.fit(maps, np.zeros(9, dtype=int), 1)
    spread = maps.std(axis=0)
    floor = np.median(spread[:, :3])
    np.testing.assert_allclose(scale.mean[0], maps.mean(axis=0))
    np.testing.assert_allclose(scale.deviation[0], np.maximum(spread, floor))
    still = PositionScale.fit(np.ones((4, 2, 2)), np.zeros(4, dtype=int), 1)
    assert np.array_equal(still.deviation, np.ones((1, 2, 2)))


@pytest.mark.parametrize("per_unit", [1, 2])
def test_a_map_is_standardised_by_other_units_of_its_class(per_unit):
    rng = np.random.default_rng(0)
    maps = rng.gamma(1, size=(14, 3, 4))
    classes, units = np.array([0, 1] * 7), np.arange(14) // 2 // per_unit
    found = standardise_held_out(maps, classes, units)
    for i, own in enumerate(maps):
        same = classes == classes[i]
        floor = np.median(maps[same].std(axis=0))
        others = maps[same & (units != units[i])]
        want = (own - others.mean(axis=0)) / np.maximum(others.std(axis=0), floor)
        np.testing.assert_allclose(found[i], want)


def test_a_new_image_is_standardised_under_its_class():
    rng = np.random.default_rng(0)
    maps, classes = rng.gamma(1, size=(20, 3, 4)), np.arange(20) % 2
    scale = PositionScale.fit(maps, classes, 2)
    fresh = rng.gamma(1, size=(6, 3, 4))
    given = np.array([1, 0, 0, 1, 1, 0])
    found = scale.standardise(fresh, given)
    for i, c in enumerate(given):
        own = maps[classes == c]
        floor = np.median(own.std(axis=0))
        want = (fresh[i] - own.mean(axis=0)) / np.maximum(own.std(axis=0), floor)
        np.testing.assert_allclose(found[i], want)
    assert np.array_equal(scale.standardise(fresh, None), scale.standardise(fresh, 0 * given))


# Shares of the positions

CLASSES, UNITS = np.arange(20) % 2, np.arange(20) // 4


def means_of_largest(maps, shares):
    """The mean of the largest values of each map, by share, from sorted lists."""
    flat = maps.reshape(len(maps), -1)
    return np.stack([pooled(flat, "top", share) for share in shares], axis=1)


def test_means_of_several_shares_are_standardised_and_added():
    rng = np.random.default_rng(0)
    maps, fresh = rng.gamma(1, size=(20, 3, 4)), rng.gamma(1, size=(6, 3, 4))
    shares, given = (0.01, 0.25, 0.5), np.array([1, 0, 0, 1, 1, 0])
    top = TopShares.fit(shares, maps, CLASSES, 2)
    held, new = means_of_largest(maps, shares), means_of_largest(fresh, shares)
    want = np.empty(6)
    for i, c in enumerate(given):
        own = held[c == CLASSES]
        want[i] = ((new[i] - own.mean(axis=0)) / own.std(axis=0)).sum()
    np.testing.assert_allclose(top.score(fresh, given), want, rtol=1e-5)
    assert np.array_equal(top.score(fresh, None), top.score(fresh, 0 * given))
    one = top.of_classes(np.array([1]))
    assert np.array_equal(one.score(fresh, None), top.score(fresh, 0 * given + 1))


def test_an_image_has_its_shares_standardised_by_other_units():
    maps = np.random.default_rng(0).gamma(1, size=(20, 3, 4))
    shares = (0.1, 0.5)
    held = means_of_largest(maps, shares)
    found = TopShares.fit(shares, maps, CLASSES, 2).score_held_out(maps, CLASSES, UNITS)
    for i in range(20):
        others = held[(CLASSES[i] == CLASSES) & (UNITS[i] != UNITS)]
        want = (held[i] - others.mean(axis=0)) / others.std(axis=0)
        assert found[i] == pytest.approx(want.sum())


def test_the_mean_of_one_share_is_a_score_as_it_is():
    maps = np.random.default_rng(0).gamma(1, size=(20, 3, 4))
    top = TopShares.fit((0.25,), maps, CLASSES, 2)
    want = means_of_largest(maps, [0.25])[:, 0]
    np.testing.assert_allclose(top.score(maps, CLASSES), want, rtol=1e-6)
    np.testing.assert_allclose(top.score_held_out(maps, CLASSES, UNITS), want)


def test_means_that_never_vary_do_not_divide_by_zero():
    top = TopShares.fit((0.1, 1.0), np.ones((4, 2, 2)), np.zeros(4, dtype=int), 1)
    np.testing.assert_allclose(top.score(np.full((1, 2, 2), 3.0), None), 4.0)


# Scales of maps


@pytest.mark.parametrize("signed", [False, True])
def test_maps_have_the_scale_of_held_out_images_of_their_class(signed):
    rng = np.random.default_rng(0)
    maps, fresh = rng.normal(3, 1, size=(20, 3, 4)), rng.normal(size=(4, 3, 4))
    moments = np.stack([maps.mean(axis=(1, 2)), np.square(maps).mean(axis=(1, 2))], axis=1)
    scale = MapScale.fit(moments, CLASSES, 3, signed=signed)
    given = np.array([0, 1, 2, 0])
    found = scale.scale(fresh, given)
    for i, c in enumerate(given):
        own = maps[c == CLASSES] if c < 2 else maps  # the third class has no image
        want = (fresh[i] - own.mean()) / own.std() if signed else fresh[i] / own.mean()
        np.testing.assert_allclose(found[i], want)
    assert np.array_equal(scale.scale(fresh, None), scale.scale(fresh, 0 * given))
    held = scale_held_out(maps, moments, CLASSES, UNITS, signed=signed)
    for i, own in enumerate(maps):
        others = maps[(CLASSES[i] == CLASSES) & (UNITS[i] != UNITS)]
        want = (own - others.mean()) / others.std() if signed else own / others.mean()
        np.testing.assert_allclose(held[i], want)


def test_the_scale_of_maps_without_energy_is_one():
    scale = MapScale.fit(np.zeros((5, 2)), np.zeros(5, dtype=int), 1, signed=False)
    assert np.array_equal(scale.scale(np.ones((1, 2, 2)), None), np.ones((1, 2, 2)))


# Layers


def test_a_map_is_taken_to_the_positions_of_another_layer():
    coarse, fine = Grid(1, 2, 2), Grid(1, 4, 4, (0.8, 1.0))
    ramp = np.array([[[0.0, 0.0], [1.0, 1.0]]])
    found = coarse.resample(ramp, fine)
    centres = (np.arange(4) + 0.5) / 4 * 0.8  # of the finer cells, on the picture
    np.testing.assert_allclose(found[0, :, 0], np.clip(2 * centres - 0.5, 0, 1))
    assert np.array_equal(Grid(1, 4, 4).resample(np.eye(4)[None], Grid(1, 4, 4))[0], np.eye(4))


def test_layers_are_added_at_the_positions_of_the_finest():
    rng = np.random.default_rng(0)
    grids = [Grid(3, 2, 2), Grid(1, 4, 6), Grid(9, 4, 6)]
    assert finest_of(grids) is grids[1]  # the first of those with the most positions
    maps = [rng.normal(size=(5, grid.height, grid.width)) for grid in grids]
    want = grids[0].enlarge(maps[0], (4, 6)) + maps[1] + maps[2]
    np.testing.assert_allclose(sum_of_layers(maps, grids), want, rtol=1e-12)
    assert np.array_equal(sum_of_layers(maps[:1], grids[:1]), maps[0])


# Smoothing


def test_smoothing_keeps_constants_and_sums_within():
    np.testing.assert_allclose(smooth(np.full((2, 9, 7), 2.5), 3.0), 2.5, rtol=1e-12)
    point = np.zeros((2, 41, 41))
    point[0, 20, 20] = 1.0
    got = smooth(point, 2.0)
    assert got[0].sum() == pytest.approx(1.0)
    assert not got[1].any()  # maps of other images stay apart
    y, x = np.mgrid[-20:21, -20:21]
    want = np.exp(-(y**2 + x**2) / 8)
    np.testing.assert_allclose(got[0], want / want.sum(), atol=1e-4)
