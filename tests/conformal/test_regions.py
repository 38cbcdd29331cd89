import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pydfm.conformal.regions import RegionFinder, brightest, outline

WHOLE = (0.0, 0.0, 10.0, 8.0)


def area_of(corners):
    """The area that a polygon encloses, by the shoelace formula."""
    x, y = corners.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def test_a_region_is_measured():
    values = np.zeros((8, 10))
    values[2:4, 3:8] = 5
    values[2, 4] = 7
    (region,) = RegionFinder(4.0, 4.0).find(values, WHOLE, (8, 10))
    assert region.box == (3, 2, 5, 2)
    assert (region.area, region.peak, region.peak_at) == (10, 7, (4.5, 2.5))
    assert region.mean == pytest.approx(5.2)
    assert region.polygon.tolist() == [[8, 2], [8, 4], [3, 4], [3, 2]]


def test_a_resize_and_a_crop_are_undone():
    values = np.zeros((8, 10))
    values[0:2, 5:10] = 5
    # The map shows the image of 40 x 30 pixels from (10, 4) to (30, 20).
    (region,) = RegionFinder(4.0, 4.0).find(values, (10.0, 4.0, 30.0, 20.0), (30, 40))
    assert region.box == (20, 4, 10, 4)
    assert region.area == 40
    mask = RegionFinder(4.0, 4.0).mask(values, (10.0, 4.0, 30.0, 20.0), (30, 40))
    assert mask.shape == (30, 40)
    assert np.array_equal(np.argwhere(mask).min(axis=0), [4, 20])
    assert np.array_equal(np.argwhere(mask).max(axis=0), [7, 29])
    assert mask.sum() == 40


def test_a_crop_beyond_the_image_is_cut_off():
    values = np.full((8, 10), 9.0)
    (region,) = RegionFinder(4.0, 4.0).find(values, (-5.0, -4.0, 15.0, 12.0), (8, 10))
    assert region.box == (0, 0, 10, 8)


def test_hysteresis_keeps_weak_borders_and_drops_weak_islands():
    values = np.zeros((8, 10))
    values[1:4, 1:4] = 3
    values[2, 2] = 6
    values[6, 7] = 3
    one = RegionFinder.between(0.0, 5.0, spread=0.5, least_area=0).find(values, WHOLE, (8, 10))
    assert [region.area for region in one] == [9]
    assert RegionFinder.between(0.0, 5.0, spread=0).find(values, WHOLE, (8, 10))[0].area == 1


def test_small_regions_are_dropped_by_area_and_the_highest_comes_first():
    values = np.zeros((8, 10))
    values[0, 0] = 9
    values[3:5, 3:5] = 6
    values[6, 6:9] = 7
    finder = RegionFinder(5.0, 5.0)
    assert [r.peak for r in finder.find(values, WHOLE, (8, 10))] == [9, 7, 6]
    finder = RegionFinder(5.0, 5.0, 3 / 80)
    assert [r.peak for r in finder.find(values, WHOLE, (8, 10))] == [7, 6]


def test_the_threshold_itself_is_not_above_it():
    values = np.full((4, 4), 5.0)
    assert RegionFinder(5.0, 5.0).find(values, (0, 0, 4, 4), (4, 4)) == []
    assert RegionFinder(5.0, 2.0).find(values, (0, 0, 4, 4), (4, 4)) == []


@pytest.mark.parametrize(("spread", "least"), [(-0.1, 0), (1.1, 0), (0.5, 2)])
def test_parameters_out_of_range_are_refused(spread, least):
    with pytest.raises(ValueError, match=r"(spread|least_area) is .*; it must be a number"):
        RegionFinder.between(0.0, 1.0, spread=spread, least_area=least)


def test_the_brightest_part_is_around_the_peak_whatever_the_threshold():
    values = np.zeros((8, 10))
    values[5, 5:8] = (0.6, 1.0, 0.6)
    found = brightest(values, 0.0, WHOLE, (8, 10))
    assert (found.box, found.peak) == ((5, 5, 3, 1), 1)
    assert brightest(values, 50.0, WHOLE, (8, 10)).peak_at == (6.5, 5.5)
    assert brightest(np.zeros((8, 10)), 0.0, WHOLE, (8, 10)).box == (0, 0, 10, 8)


@given(st.integers(0, 2**20))
def test_the_outline_encloses_the_region_and_its_holes(seed):
    inside = np.random.default_rng(seed).random((6, 7)) < 0.6
    labels, count = ndimage.label(inside, structure=np.ones((3, 3)))
    for k in range(1, count + 1):
        own = labels == k
        corners = outline(own)
        # A hole is filled where no corner leads out of it.
        outside, _ = ndimage.label(np.pad(~own, 1, constant_values=True))
        filled = outside[1:-1, 1:-1] != outside[0, 0]
        assert area_of(corners) == filled.sum()
        steps = np.abs(np.roll(corners, -1, axis=0) - corners)
        assert ((steps == 0).sum(axis=1) == 1).all()
