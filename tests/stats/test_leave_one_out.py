import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SCORE_TYPES, Reference, disturbed, falling_rows, fit_reference

from pydfm import _core
from pydfm.stats.leave_one_out import LeaveOneOut, gram_coordinates

EPS = np.finfo(np.float64).eps
KINDS = list(SCORE_TYPES)


def decompose(rows, wide=None):
    """Mean, eigenvalues of the scatter above rounding, eigenvectors (r, D), coordinates."""
    n, d = rows.shape
    if n <= d if wide is None else wide:
        mean, gram = _core.gram(rows, n_threads=2)
        values, vectors = _core.eigh(gram, n_threads=2)
    else:
        _, mean, scatter = _core.moments(rows, n_threads=2)
        values, vectors = _core.eigh(scatter, n_threads=2)
    resolution = max(n, d) * EPS * max(values[0], 0)
    resolution = max(resolution, n * (2 * EPS * np.linalg.norm(mean)) ** 2)
    r = np.count_nonzero(values > resolution)
    values, vectors = values[:r].copy(), vectors[:r].copy()
    if n <= d if wide is None else wide:
        coordinates = gram_coordinates(values, vectors)
        if r:
            vectors = _core.components_from_gram(rows, mean, values, vectors, n_threads=2)
        else:
            vectors = np.empty((0, d))
    else:
        coordinates = _core.coordinates(rows, mean, vectors, n_threads=2)
    return mean, values, vectors, coordinates, resolution


def leave_one_out(rows, k, kinds=KINDS, n_threads=2, wide=None):
    """Scores (len(kinds), N) and residual vectors (N, D)."""
    n, d = rows.shape
    _, values, vectors, coordinates, resolution = decompose(rows, wide)
    model = LeaveOneOut.of_scatter(values, resolution, k, d, n)
    scores = model.scores(coordinates, n, kinds, n_threads)
    return scores, model.residuals(coordinates, n, n_threads) @ vectors


def refit(rows, i, k):
    """The reference without row i, with at most as many components as there are; None for none."""
    rest = np.delete(np.asarray(rows, dtype=np.float64), i, axis=0)
    centred = rest - rest.mean(axis=0)
    values = np.linalg.svd(centred - centred.mean(axis=0), compute_uv=False) ** 2
    rounding = max(rest.shape) * EPS * values[0] + (EPS * np.abs(rest).max()) ** 2 * rest.size
    k = min(k, np.count_nonzero(values > rounding))
    return (fit_reference(rest, k), np.append(values, 0.0)) if k else None


def check(rows, k, which, rtol=1e-8, wide=None):
    """All scores and residuals of rows `which` are those of the model fitted without them."""
    scores, residuals = leave_one_out(rows, k, wide=wide)
    # What directions hold whose variance is near the rounding of the scatter is not known well, the
    # less so where the row is much of what spans them.
    spectrum = np.linalg.svd(rows - rows.mean(axis=0, dtype=np.float64), compute_uv=False) ** 2
    unknown = 100 * spectrum[spectrum < 1e-9 * spectrum[0]].sum()
    checked = 0
    for i in which:
        fitted = refit(rows, i, k)
        if fitted is None:
            continue
        reference, values = fitted
        k_i = len(reference.variances)
        # The subspace is not defined where the cut is between equal variances.
        if values[k_i - 1] - values[k_i] < 3e-6 * values[0]:
            continue
        checked += 1
        row = np.asarray(rows[i], dtype=np.float64)
        d = row - reference.mean
        want = {kind: score[0] for kind, score in reference.scores(row[None]).items()}
        got = dict(zip(KINDS, scores[:, i], strict=True))
        # Below this a residual is the rounding error of float64 itself.
        rounding = 1e-26 * rows.shape[1] * (d @ d + row @ row) + unknown
        allowed = {kind: rtol * abs(value) for kind, value in want.items()}
        allowed["fre"] += rounding
        logs = k_i + np.abs(np.log(reference.variances)).sum()
        allowed["nll"] += rtol * (want["mahalanobis"] + logs)
        allowed["ppca"] += rtol * (want["mahalanobis"] + logs) + rounding / reference.noise_variance
        for kind in KINDS:
            assert abs(got[kind] - want[kind]) <= allowed[kind], (kind, i, got[kind], want[kind])
        residual = d - (d @ reference.components.T) @ reference.components
        error = np.linalg.norm(residuals[i] - residual)
        assert error <= rtol * np.sqrt(want["fre"]) + 1e-11 * np.linalg.norm(d) + np.sqrt(rounding)
    return checked


@st.composite
def problems(draw, most_rows, most_features):
    n_rows = draw(st.integers(3, most_rows))
    n_features = draw(st.integers(1, most_features))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    rank = draw(st.integers(1, min(n_rows, n_features)))
    decay = draw(st.sampled_from([0.0, 0.5, 1.5]))
    rows = falling_rows(n_rows, n_features, seed, decay, rank=rank)
    rows = disturbed(draw, rng, rows, n_rows)
    rows *= draw(st.sampled_from([1e-6, 1.0, 1e5]))
    rows = rows.astype(draw(st.sampled_from([np.float32, np.float64])))
    return rows, draw(st.integers(1, min(n_rows, n_features))), rng.permutation(n_rows)


@given(problems(60, 80))
@settings(max_examples=200)
def test_scores_are_those_of_fitting_again(problem):
    rows, k, order = problem
    check(rows, k, order[:6])


@given(problems(200, 500))
@settings(max_examples=15)
def test_scores_of_larger_problems_are_those_of_fitting_again(problem):
    rows, k, order = problem
    check(rows, k, order[:4])


@pytest.mark.parametrize("shape", [(30, 100), (100, 30), (40, 40), (41, 40), (40, 41), (3, 2)])
def test_every_number_of_components_and_either_route(shape):
    rows = falling_rows(*shape, seed=3, offset=1.0, rank=shape[1])
    which = range(0, shape[0], 7)
    for wide in (False, True):
        checked = [check(rows, k, which, wide=wide) for k in range(1, min(shape) + 1)]
        assert np.count_nonzero(checked) > 0.9 * len(checked)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("d", [1, 2, 20])
def test_three_rows(k, d):
    rows = np.random.default_rng(d).normal(size=(3, d))
    assert check(rows, k, range(3)) == 3


@pytest.mark.parametrize("d", [1, 5])
def test_two_rows_have_their_distance_for_fre_and_no_other_score(d):
    rows = np.random.default_rng(d).normal(size=(2, d))
    scores, residuals = leave_one_out(rows, 1, ["fre"])
    np.testing.assert_allclose(scores[0], np.square(rows[0] - rows[1]).sum(), rtol=1e-12)
    np.testing.assert_allclose(residuals[0], rows[0] - rows[1], rtol=1e-12)
    with pytest.raises(ValueError, match="without one of them the other has no variance"):
        leave_one_out(rows, 1, ["mahalanobis"])


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_equal_rows_have_no_residual(shape):
    scores, residuals = leave_one_out(np.full(shape, 3.0), 0)
    assert (scores[0] == 0).all()
    assert np.isinf(scores[1:]).all()
    assert residuals.shape == shape
    assert (residuals == 0).all()


def test_a_row_apart_from_equal_ones():
    rows = np.zeros((12, 5))
    rows[4] = [3.0, 0.0, 4.0, 0.0, 0.0]
    scores, residuals = leave_one_out(rows, 1)
    # Without the row no variance is left: it is infinitely far but for the fre.
    np.testing.assert_allclose(scores[0, 4], 25.0, rtol=1e-12)
    np.testing.assert_allclose(residuals[4], rows[4], rtol=1e-12)
    assert np.isinf(scores[1:, 4]).all()
    assert check(rows, 1, [0, 1, 11]) == 3


def test_a_direction_that_one_row_alone_fills_is_not_counted_without_it():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 8))
    rows[:, 5] = 0
    rows[7, 5] = 2.0
    scores, _ = leave_one_out(rows, 8)
    rest = np.delete(rows, 7, axis=0)
    np.testing.assert_allclose(scores[0, 7], 4.0, rtol=1e-10)
    others = fit_reference(np.delete(rest, 5, axis=1), 7).scores(np.delete(rows[7:8], 5, axis=1))
    np.testing.assert_allclose(scores[1, 7], others["mahalanobis"][0], rtol=1e-8)
    assert check(rows, 8, range(12)) == 12


@pytest.mark.parametrize("k", [1, 4, 5, 6, 9])
def test_equal_eigenvalues(k):
    # +-a along five axes, +-b along five others: two eigenvalues, each five times.
    a, b = 3.0, 1.0
    half = np.diag([a] * 5 + [b] * 5)
    rows = np.concatenate([half, -half])
    (fre, mahalanobis, nll, _), _ = leave_one_out(rows, k)
    # Without a row its axis is the last of the equal ones, by a little.
    c = 20 / 19
    variances = np.array([2 * a**2] * 5 + [2 * b**2] * 5) / 18
    for i, size in ((0, a), (7, b)):
        t = (2 * size**2 - c * size**2) / 18
        left = np.sort(np.append(np.delete(variances, i), t))[::-1]
        inside = k > np.flatnonzero(left == t)[0]
        np.testing.assert_allclose(fre[i], 0 if inside else (c * size) ** 2, atol=1e-12)
        m = (c * size) ** 2 / t if inside else 0
        np.testing.assert_allclose(mahalanobis[i], m, atol=1e-10)
        want = (m + np.log(left[:k]).sum() + k * np.log(2 * np.pi)) / 2
        np.testing.assert_allclose(nll[i], want, rtol=1e-12)


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
def test_a_cut_between_eigenvalues_that_nearly_meet(gap):
    # Without a row the two may cross: what the scores are then is told by the small matrix itself.
    rng = np.random.default_rng(1)
    values = np.array([5.0, 3.0, 2.0 * (1 + gap), 2.0, 1.0, 0.5])
    z = np.linalg.qr(rng.normal(size=(40, 6)))[0] * np.sqrt(values)
    rho = 40 / 39
    model = LeaveOneOut.of_scatter(values, 1e-14, 3, 6, 40)
    fre, mahalanobis, _, _ = model.scores(z, 40, KINDS, 1)
    for i in range(40):
        t, u = np.linalg.eigh(np.diag(values) - rho * np.outer(z[i], z[i]))
        energies = np.square(u.T @ z[i])[::-1]
        t = t[::-1]
        np.testing.assert_allclose(fre[i], rho**2 * energies[3:].sum(), rtol=1e-9)
        want = rho**2 * 38 * (energies[:3] / t[:3]).sum()
        np.testing.assert_allclose(mahalanobis[i], want, rtol=1e-9)


def test_rows_without_residual_beside_rows_with_one():
    # Sums too small to be told by means over a circle, among others that are not.
    rng = np.random.default_rng(2)
    rows = np.zeros((80, 12))
    rows[:, :6] = rng.normal(size=(80, 6))
    rows[0, 6:] = rng.normal(size=6)
    rows[1, 6:] = -rows[0, 6:]
    rows[2, 6:] = 1e-5 * rng.normal(size=6)
    for k in (6, 7):
        assert check(rows, k, range(20), rtol=1e-6) == 20


def test_an_outlier():
    rows = falling_rows(70, 30, seed=5)
    rows[3] *= 300
    for k in (1, 5, 29):
        assert check(rows, k, range(8), rtol=1e-6) > 0
    rows = falling_rows(30, 70, seed=5)
    rows[3] *= 300
    assert check(rows, 5, range(8), rtol=1e-6) > 0


def test_the_mean_over_rows_is_near_that_of_new_rows():
    everything = falling_rows(4000, 60, seed=6, decay=0.5)
    rows, others = everything[:80], everything[80:]
    scores, _ = leave_one_out(rows, 10)
    reference = fit_reference(rows, 10)
    for kind, left_out in zip(("fre", "mahalanobis"), scores[:2], strict=True):
        new = reference.scores(others)[kind].mean()
        trained = reference.scores(rows)[kind].mean()
        assert abs(left_out.mean() - new) < 0.25 * new
        assert abs(trained - new) > abs(left_out.mean() - new)


def test_many_rows():
    rows = falling_rows(30000, 40, offset=2.0).astype(np.float32)
    assert check(rows, 7, [0, 12345, 29999]) == 3


@pytest.mark.parametrize("shape", [(333, 77), (100, 300)])
@pytest.mark.parametrize("k", [1, 30, 500])
def test_results_have_the_same_bits_on_any_number_of_threads(shape, k):
    rows = falling_rows(*shape, offset=1.0)
    mean, values, vectors, _, resolution = decompose(rows)
    model = LeaveOneOut.of_scatter(values, resolution, k, shape[1], shape[0])

    def everything(n_threads):
        coordinates = _core.coordinates(rows, mean, vectors, n_threads=n_threads)
        return [
            coordinates,
            model.scores(coordinates, len(rows), KINDS, n_threads),
            model.residuals(coordinates, len(rows), n_threads),
        ]

    first = everything(1)
    for n_threads in (2, 3, 8):
        for one, other in zip(first, everything(n_threads), strict=True):
            assert np.array_equal(one, other)


def test_kinds_asked_for_alone_are_those_asked_for_together():
    rows = falling_rows(90, 200)
    together, _ = leave_one_out(rows, 10)
    for kind, scores in zip(KINDS, together, strict=True):
        np.testing.assert_allclose(leave_one_out(rows, 10, [kind])[0][0], scores, rtol=1e-9)


@pytest.mark.parametrize("shape", [(60, 20), (25, 90)])
@pytest.mark.parametrize("k", [1, 6])
def test_classes_that_share_a_scatter(shape, k):
    n, d = shape
    rng = np.random.default_rng(9)
    rows = falling_rows(n, d, seed=9)
    labels = rng.permutation(np.arange(n) % 3)
    labels[labels == 2] = rng.integers(0, 3, np.count_nonzero(labels == 2))
    rows += 5 * rng.normal(size=(3, d))[labels]
    sizes = np.bincount(labels)
    assert sizes.min() >= 2

    def within(rows, labels):
        means = np.stack([rows[labels == c].mean(axis=0) for c in range(3)])
        return means, rows - means[labels]

    _, v = within(rows, labels)
    _, singular, vectors = np.linalg.svd(v, full_matrices=False)
    r = np.count_nonzero(singular > 1e-7 * singular[0])
    resolution = 1e-13 * singular[0] ** 2
    model = LeaveOneOut.of_scatter(singular[:r] ** 2, resolution, k, d, n, n_classes=3)
    coordinates = np.ascontiguousarray(v @ vectors[:r].T)
    scores = model.scores(coordinates, sizes[labels], KINDS, 2)
    residuals = model.residuals(coordinates, sizes[labels], 2) @ vectors[:r]
    for i in range(n):
        means, rest = within(np.delete(rows, i, axis=0), np.delete(labels, i))
        _, s, axes = np.linalg.svd(rest, full_matrices=False)
        variances = s**2 / (n - 4)
        noise = variances[k:].sum() / (min(n - 3, d) - k)
        reference = Reference(means[labels[i]], axes[:k], variances[:k], noise)
        want = reference.scores(rows[i : i + 1])
        for kind, got in zip(KINDS, scores[:, i], strict=True):
            np.testing.assert_allclose(got, want[kind][0], rtol=1e-8)
        gap = rows[i] - reference.mean
        gap -= (gap @ axes[:k].T) @ axes[:k]
        np.testing.assert_allclose(residuals[i], gap, rtol=0, atol=1e-10)


def call(**changes):
    arguments = {
        "coordinates": np.ones((4, 2)),
        "eigenvalues": np.array([2.0, 1.0]),
        "rho": np.full(4, 4 / 3),
        "n_components": 1,
        "degrees_of_freedom": 2.0,
        "n_variances": 3,
        "n_features": 5,
        "resolution": 0.0,
        "score_types": ["fre"],
        "n_threads": 1,
    } | changes
    return _core.leave_one_out(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinates": np.ones(4)}, "1 dimensions; it must have 2"),
        ({"eigenvalues": np.ones(3)}, "length 2"),
        ({"rho": np.ones(3)}, "length 4"),
        ({"rho": np.array([1.0, 1.0, np.inf, 1.0])}, "positive and finite"),
        ({"n_components": 0}, "n_components is 0; .* from 1 to 2"),
        ({"n_components": 3}, "n_components is 3; .* from 1 to 2"),
        ({"eigenvalues": np.array([1.0, 2.0])}, "descending"),
        ({"eigenvalues": np.array([1.0, np.nan])}, "finite"),
        ({"resolution": 1.5}, "larger than resolution"),
        ({"resolution": np.nan}, "resolution must not be negative"),
        ({"score_types": ["mse"]}, "score_types has 'mse'"),
    ],
)
def test_wrong_arguments_raise_value_error(changes, message):
    with pytest.raises(ValueError, match=message):
        call(**changes)


def test_a_class_of_one_row_cannot_do_without_it():
    model = LeaveOneOut.of_scatter(np.array([2.0, 1.0]), 0.0, 1, 2, 10)
    with pytest.raises(ValueError, match="n_samples=1; leaving a row out needs at least two"):
        model.scores(np.ones((2, 2)), np.array([3, 1]), ["fre"], 1)


def test_what_is_not_finite_stays_so_and_does_not_hang():
    coordinates = np.array([[1.0, 0.5], [np.nan, 0.1], [np.inf, 0.1], [0.3, 0.2]])
    scores = call(coordinates=coordinates, score_types=KINDS)
    assert np.isfinite(scores[:, [0, 3]]).all()
    assert not np.isfinite(scores[:, 1:3]).any()
