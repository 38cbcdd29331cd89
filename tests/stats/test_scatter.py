import numpy as np
import pytest
from reference import falling_rows, labelled_rows

from pydfm.stats.scatter import Scatter, class_means, fits_memory
from pydfm.stats.sketch import FrequentDirections


def of(rows, classes=None, **options):
    return Scatter.of(rows, np.zeros(len(rows), int) if classes is None else classes, 2, **options)


def plain(rows, classes):
    """Counts, means and products of deviations, in numpy."""
    means = np.zeros((classes.max() + 1, rows.shape[1]))
    for c in np.unique(classes):
        means[c] = rows[classes == c].mean(axis=0)
    deviations = rows - means[classes]
    return np.bincount(classes), means, deviations.T @ deviations


def assert_is(scatter, counts, means, products, rtol=1e-10):
    assert np.array_equal(scatter.counts, counts)
    np.testing.assert_allclose(scatter.means, means, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(scatter.products, products, atol=rtol * np.trace(products))


@pytest.mark.parametrize("sizes", [(50,), (20, 30), (7, 1, 9)])
def test_it_is_that_of_the_deviations_from_the_means(sizes):
    rows, classes = labelled_rows(sizes)
    assert_is(of(rows, classes), *plain(rows, classes))
    gaps = classes * 2  # the class 1 has no rows
    assert_is(of(rows, gaps), *plain(rows, gaps))
    assert of(rows, classes).n_bytes == 8 * (20 * 20 + 20 * len(sizes))


@pytest.mark.parametrize("numbers", [[0, 1], [1, 0], [2, 0], [1, 1]])
def test_merged_classes_take_their_new_numbers(numbers):
    rows, classes = labelled_rows((20, 30))
    numbers = np.array(numbers)
    got = of(rows[:15], classes[:15]).merged(of(rows[15:], classes[15:]), numbers, 2)
    assert_is(got, *plain(rows, np.where(np.arange(50) < 15, classes, numbers[classes])))
    renumbered = of(rows, classes).renumbered(numbers, 2)
    assert_is(renumbered, *plain(rows, numbers[classes]))


@pytest.mark.parametrize("sizes", [(60,), (25, 35)])
def test_rows_are_taken_away_again(sizes):
    rows, classes = labelled_rows(sizes)
    every = of(rows, classes)
    assert_is(every.without(rows[:40], classes[:40], 2), *plain(rows[40:], classes[40:]), rtol=1e-9)
    with pytest.raises(ValueError, match="X holds rows that the model was not fitted on"):
        every.without(rows[:4] + 100, classes[:4], 2)
    with pytest.raises(ValueError, match=r"more rows.* than the model was fitted on: \d+, where"):
        every.without(np.tile(rows, (2, 1)), np.tile(classes, 2), 2)


def test_digits_that_would_be_lost_are_told():
    rows = falling_rows(300, 10)
    rows[:20] *= 1e7
    with pytest.raises(ValueError, match="too small beside those of X to be exact; fit again"):
        of(rows).without(rows[:20], np.zeros(20, int), 2)


def test_means_are_exact_where_the_rows_are_far_from_zero():
    rows = falling_rows(4000, 5).astype(np.float32) + np.float32(1e4)
    classes = np.arange(4000) % 3
    want = np.stack([rows[classes == c].astype(np.longdouble).mean(axis=0) for c in range(3)])
    np.testing.assert_allclose(class_means(rows, classes), want.astype(float), rtol=1e-15)


def test_a_limit_of_memory_makes_a_sketch():
    assert fits_memory(10, None)
    assert fits_memory(10, 1600)
    assert not fits_memory(10, 1599)
    rows, classes = labelled_rows((400, 500), 60)
    got = of(rows, classes, max_bytes=20_000)
    assert isinstance(got.products, FrequentDirections)
    assert got.n_bytes <= 20_000 + got.means.nbytes
    _, means, products = plain(rows, classes)
    np.testing.assert_allclose(got.means, means, rtol=1e-10)
    missing = products - got.products.rows.T @ got.products.rows
    values = np.linalg.eigvalsh(missing)
    assert values.min() >= -1e-9 * np.trace(products)
    assert values.max() <= got.products.error * (1 + 1e-9)
    turned = got.renumbered(np.array([1, 0]), 2)
    np.testing.assert_allclose(turned.means, means[::-1], rtol=1e-10)
    with pytest.raises(ValueError, match="cannot be removed from a sketch"):
        got.without(rows[:1], classes[:1], 1)
    with pytest.raises(ValueError, match="one is a sketch and the other is not"):
        got.merged(of(rows, classes), np.arange(2), 1)
