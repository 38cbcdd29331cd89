import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from pydfm.conformal.martingale import POWERS, ChangeMartingale, ScoreRanks, uniform


def reference_evidence(p, q):
    """M_n by its definition, start by start, in float64."""
    n = len(p)
    waiting = [math.log(2) / math.log(k + 2) for k in range(n + 1)]
    each = []
    for side in (p, q):
        for power in POWERS:
            gains = power * np.asarray(side) ** (power - 1)
            products = [np.prod(gains[k:]) for k in range(n)]
            weights = -np.diff(waiting)
            each.append(weights @ products + waiting[-1])
    return np.mean(each)


def test_the_recursion_is_the_mixture_over_starts():
    p = np.random.default_rng(0).beta(0.6, 1, size=60)
    martingale = ChangeMartingale()
    assert abs(martingale.log_evidence) < 1e-12
    for i, own in enumerate(p):
        martingale.bet(own, 1 - own, i + 1)
        want = reference_evidence(p[: i + 1], 1 - p[: i + 1])
        assert math.isclose(math.exp(martingale.log_evidence), want, rel_tol=1e-10)


def test_a_bet_is_fair():
    # The integral over the next p-value is what there was: a martingale.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    martingale = ChangeMartingale()
    for i, own in enumerate((0.3, 0.02, 0.6)):
        martingale.bet(own, 1 - own, i + 1)
    before, state = math.exp(martingale.log_evidence), martingale.state()
    total = 0.0
    # p = t^8 on the lower half, and its mirror image, smooth the integrable poles.
    for side in (0, 1):
        top = 0.5 ** (1 / 8)
        t = (nodes + 1) / 2 * top
        for own, weight in zip(t, weights * top / 2, strict=True):
            small, other = own**8, 1 - own**8
            martingale.restore(state)
            martingale.bet(*((small, other) if side == 0 else (other, small)), 4)
            total += weight * 8 * own**7 * math.exp(martingale.log_evidence)
    assert math.isclose(total, before, rel_tol=1e-6)


SCORES = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=80
)


@settings(deadline=None)
@given(SCORES, st.integers(2, 12), st.randoms(use_true_random=False))
def test_the_grid_depends_on_the_scores_and_not_on_their_order(scores, capacity, random):
    one, other = ScoreRanks(capacity), ScoreRanks(capacity)
    one.add(np.array(scores))
    shuffled = list(scores)
    random.shuffle(shuffled)
    for own in shuffled:
        higher, equal, lower = other.rank(own)
        assert equal >= 1
        assert higher + equal + lower == other.total
    assert one.state() == other.state()
    assert len(one.values) <= capacity
    assert one.total == len(scores)


@settings(deadline=None)
@given(SCORES)
def test_ranks_are_exact_while_scores_fit(scores):
    ranks = ScoreRanks(100)
    for i, own in enumerate(np.array(scores, dtype=np.float32)):
        seen = np.array(scores[: i + 1], dtype=np.float32)
        want = ((seen > own).sum(), (seen == own).sum(), (seen < own).sum())
        assert ranks.rank(own) == want


@pytest.mark.parametrize("capacity", [8, 1024])
def test_p_values_of_a_sequence_are_independent_and_uniform(capacity):
    # Many short sequences: the p-values at two places of each, and their product.
    rng, found = np.random.default_rng(0), []
    for s in range(2000):
        ranks = ScoreRanks(capacity)
        ranks.add(rng.standard_t(3, size=10))
        own = []
        for i, score in enumerate(rng.standard_t(3, size=6)):
            higher, equal, lower = ranks.rank(score)
            own.append((higher + uniform(s, i) * equal) / (higher + equal + lower))
        found.append(own)
    p = np.array(found)
    for column in p.T:
        assert kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(p.T) - np.eye(6)).max() < 0.08
    assert kstest(p[:, -1][p[:, -2] < 0.2], "uniform").pvalue > 1e-3


def test_evidence_is_rarely_high_without_a_change():
    rng, highest = np.random.default_rng(1), []
    for _ in range(300):
        martingale, most = ChangeMartingale(), 0.0
        for i, p in enumerate(rng.uniform(size=400).tolist()):
            martingale.bet(p, 1 - p, i + 1)
            most = max(most, martingale.log_evidence)
        highest.append(most)
    for level in (5, 20, 100):
        bound = 300 / level
        assert (np.array(highest) >= math.log(level)).sum() <= bound + 3 * math.sqrt(bound)


@pytest.mark.parametrize("higher", [True, False])
def test_the_place_and_the_side_of_a_change_are_found(higher):
    rng, martingale = np.random.default_rng(2), ChangeMartingale()
    for i in range(600):
        p = rng.beta(0.4, 1) if i >= 500 else rng.uniform()
        p = p if higher else 1 - p
        martingale.bet(p, 1 - p, i + 1)
    assert martingale.log_evidence > math.log(1e4)
    assert abs(martingale.start - 501) < 15
    assert martingale.higher is higher


def test_a_state_goes_through_json():
    rng = np.random.default_rng(3)
    martingale, ranks = ChangeMartingale(), ScoreRanks(16)
    other, theirs = ChangeMartingale(), ScoreRanks(16)
    other.restore(json.loads(json.dumps(martingale.state())))  # before the first image, too
    for part in range(2):
        for i in range(30):
            p, score = rng.uniform(), rng.normal()
            martingale.bet(p, 1 - p, i)
            assert part == 0 or ranks.total == theirs.total
            got = ranks.rank(score)
            if part:
                other.bet(p, 1 - p, i)
                assert theirs.rank(score) == got
        if part == 0:
            other.restore(json.loads(json.dumps(martingale.state())))
            theirs.restore(json.loads(json.dumps(ranks.state())))
    assert other.state() == martingale.state()
    assert theirs.state() == ranks.state()


def test_uniform_numbers_are_inside_and_repeatable():
    found = np.array([uniform(5, i) for i in range(5000)])
    assert found.min() > 0
    assert found.max() < 1
    assert kstest(found, "uniform").pvalue > 1e-3
    assert uniform(5, 7) == found[7]
    assert uniform(6, 7) != found[7]
