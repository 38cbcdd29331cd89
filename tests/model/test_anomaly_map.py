import numpy as np
import pytest

from pydfm.features.grid import Grid
from pydfm.model.anomaly_map import (
    PositionScale,
    finest_of,
    pool_positions,
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
    floor = 0.1 * np.median(spread[:, :3])
    np.testing.assert_allclose(scale.mean[0], maps.mean(axis=0))
    np.testing.assert_allclose(scale.deviation[0], np.maximum(spread, floor))
    still = PositionScale.fit(np.ones((4, 2, 2)), np.zeros(4, dtype=int), 1)
    assert np.array_equal(still.deviation, np.ones((1, 2, 2)))


def test_a_map_is_standardised_by_the_others_of_its_class():
    rng = np.random.default_rng(0)
    maps = rng.gamma(1, size=(14, 3, 4))
    classes = np.array([0, 1] * 7)
    found = standardise_held_out(maps, classes)
    for i, own in enumerate(maps):
        same = classes == classes[i]
        floor = 0.1 * np.median(maps[same].std(axis=0))
        others = maps[same & (np.arange(14) != i)]
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
        floor = 0.1 * np.median(own.std(axis=0))
        want = (fresh[i] - own.mean(axis=0)) / np.maximum(own.std(axis=0), floor)
        np.testing.assert_allclose(found[i], want)
    assert np.array_equal(scale.standardise(fresh, None), scale.standardise(fresh, 0 * given))


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
