import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pydfm.features.grid import Grid


def random_maps(n, height, width, seed=0):
    return np.random.default_rng(seed).normal(size=(n, height, width))


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), st.integers(1, 70), st.integers(0, 99)
)
def test_maps_that_reach_the_borders_are_enlarged_as_torch_does(height, width, H, W, seed):
    maps = random_maps(2, height, width, seed)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None], (H, W), mode="bilinear", align_corners=False
    )[:, 0]
    got = Grid(3, height, width).enlarge(maps, (H, W))
    assert (got.shape, got.dtype) == ((2, H, W), np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("side", "cells", "kernel"), [(10, 3, 3), (16, 3, 5), (8, 8, 1), (7, 1, 4)]
)
def test_cells_stay_at_their_places_where_a_border_is_dropped(side, cells, kernel):
    # A map of `side` cells of 6 pixels, averaged by `kernel`: the last side - cells * kernel are
    # left out, and the others must not be stretched over them.
    size = 6 * side
    grid = Grid(1, cells, cells, reach=(kernel * cells / side,) * 2)
    maps = random_maps(1, cells, cells)
    enlarged = grid.enlarge(maps, (size, size))[0]
    centres = (np.arange(cells) + 0.5) * 6 * kernel - 0.5  # in pixels, between them where even
    low, high = np.floor(centres).astype(int), np.ceil(centres).astype(int)
    at = (enlarged[np.ix_(low, low)] + enlarged[np.ix_(high, high)]) / 2
    at = (at + (enlarged[np.ix_(low, high)] + enlarged[np.ix_(high, low)]) / 2) / 2
    # Between the four pixels about a centre the map bends, by what a pixel is of a cell.
    slack = 2 * np.ptp(maps) / (6 * kernel) if (low != high).any() else 1e-12
    np.testing.assert_allclose(at, maps[0], atol=slack)
    # Beyond the last centre the values are those of the nearest cell.
    np.testing.assert_allclose(enlarged[high[-1] :, high[-1] :], maps[0, -1, -1], atol=1e-12)
    np.testing.assert_allclose(enlarged[: low[0] + 1, : low[0] + 1], maps[0, 0, 0], atol=1e-12)


def test_a_dropped_border_is_not_stretched():
    # 5 cells of 4 pixels, averaged by 2: cell 0 covers pixels 0 to 7, cell 1 pixels 8 to 15.
    grid = Grid(1, 1, 2, reach=(1.0, 0.8))
    got = grid.enlarge(np.array([[[0.0, 1.0]]]), (1, 20))[0, 0]
    want = np.clip((np.arange(20) + 0.5 - 4) / 8, 0, 1)
    np.testing.assert_allclose(got, want, atol=1e-12)


@given(st.integers(1, 9), st.floats(0.3, 1.0), st.integers(1, 70))
def test_weights_of_the_cells_make_one(cells, reach, size):
    constant = Grid(1, cells, cells, (reach, 1.0)).enlarge(
        np.full((1, cells, cells), 3.5), (size,) * 2
    )
    np.testing.assert_allclose(constant, 3.5, rtol=1e-12)
    maps = random_maps(3, cells, cells)
    enlarged = Grid(1, cells, cells, (1.0, reach)).enlarge(maps, (size, size))
    assert enlarged.min() >= maps.min() - 1e-12
    assert enlarged.max() <= maps.max() + 1e-12


def test_patches_are_the_channels_of_each_position():
    grid = Grid(3, 2, 4)
    features = np.arange(2 * 24, dtype=np.float32).reshape(2, 24)
    maps = features.reshape(2, 3, 2, 4)
    patches = grid.patches(features)
    assert (grid.size, grid.positions) == (24, 8)
    assert patches.shape == (16, 3)
    assert patches.flags.c_contiguous
    for n in range(2):
        for y in range(2):
            for x in range(4):
                assert np.array_equal(patches[n * 8 + y * 4 + x], maps[n, :, y, x])


def test_energies_sum_to_the_squared_norm():
    residuals = np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32)
    energies = Grid(3, 2, 4).energies(residuals)
    want = np.square(residuals.astype(np.float64)).reshape(5, 3, 2, 4).sum(axis=1)
    np.testing.assert_allclose(energies, want, rtol=1e-6)
    np.testing.assert_allclose(energies.sum(axis=(1, 2)), (residuals**2).sum(axis=1), rtol=1e-5)
