import math

import numpy as np
import pytest
from scipy import stats

from pydfm.conformal.checks.outliers import LEAST, chances, discovery_rates, outliers
from pydfm.model.held_out import HeldOutSample


def sample(scores, classes=None):
    n = len(scores)
    classes = np.zeros(n, dtype=np.intp) if classes is None else np.asarray(classes)
    numbers = np.arange(n)
    return HeldOutSample(
        np.float32(scores)[None], classes, numbers, numbers, np.zeros_like(numbers)
    )


def test_the_chances_are_those_of_the_distribution_with_that_quartile_and_median():
    scores = stats.gumbel_r.ppf((np.arange(2000) + 0.5) / 2000, loc=3, scale=2)
    want = stats.gumbel_r.sf(scores, loc=3, scale=2)
    np.testing.assert_allclose(chances(scores), want, rtol=5e-3)
    # Whatever is in the upper half does not change what a score means.
    moved = scores.copy()
    moved[1500:] += 100
    np.testing.assert_allclose(chances(moved)[:1500], chances(scores)[:1500])


def test_scores_of_one_value_have_no_outliers_but_those_above_it():
    p = chances(np.array([1.0] * 30 + [2.0]))
    assert p.tolist() == [1.0] * 30 + [0.0]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2])
def test_bad_images_are_found_at_the_false_discovery_rate(share):
    rng = np.random.default_rng(0)
    n, found, false = 200, 0, []
    n_bad = int(share * n)
    for _ in range(40):
        scores = rng.gumbel(0, 1, n)
        scores[:n_bad] += 12
        which = outliers(sample(scores), 0.05)
        found += which[:n_bad].sum()
        false.append(which[n_bad:].sum() / max(which.sum(), 1))
    assert found == 40 * n_bad
    # The quartiles of 200 scores are uncertain, which costs some of the guarantee.
    assert np.mean(false) < 0.12


def test_each_class_has_its_own_scale_and_small_classes_say_nothing():
    rng = np.random.default_rng(0)
    first, second = rng.gumbel(0, 1, 50), rng.gumbel(1000, 1, 50)
    first, second = np.minimum(first, 3), np.minimum(second, 1003)
    first[7] += 30
    scores = np.concatenate([first, second, rng.gumbel(0, 1, LEAST - 1) + 1e6])
    classes = np.repeat([0, 1, 2], [50, 50, LEAST - 1])
    assert np.flatnonzero(outliers(sample(scores, classes), 0.05)).tolist() == [7]
    assert (discovery_rates(sample(scores, classes))[100:] == 1).all()


@pytest.mark.parametrize("fdr", [0, 1, -0.1, math.nan])
def test_a_rate_out_of_its_range_is_refused(fdr):
    with pytest.raises(ValueError, match=r"fdr is .*; it must be a number above 0 and below 1"):
        outliers(sample(np.arange(30.0)), fdr)
