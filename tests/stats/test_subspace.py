import warnings

import numpy as np
import pytest
from fits import accumulated, fit_subspaces
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    SCORE_TYPES,
    assert_scores_close,
    disturbed,
    falling_rows,
    fit_reference,
    labelled_rows,
    references,
    tied_references,
)
from sklearn.covariance import oas
from sklearn.decomposition import PCA

from pydfm.stats.sample import RowSample
from pydfm.stats.subspace import Spectrum

KINDS = list(SCORE_TYPES)


def fit(rows, n_components, n_threads=2, **options):
    return fit_subspaces(rows, n_components, n_threads=n_threads, **options).subspaces[0]


def check_parity(rows, others, n_components, rtol=1e-4):
    """Scores of `others` under the model of `rows` beside the float64 reference."""
    reference = fit_reference(rows, n_components)
    scores = fit(rows, n_components).score(others, KINDS, 2)
    assert scores.dtype == np.float32
    assert scores.shape == (4, len(others))
    # Below this a residual is the rounding error of float64 itself.
    d = np.asarray(others, dtype=np.float64) - reference.mean
    scale = np.square(d).sum(axis=1).max() + np.square(reference.mean).sum()
    noise = 1e-26 * rows.shape[1] * scale
    floors = {"fre": noise, "ppca": noise / reference.noise_variance}
    for kind, got in zip(KINDS, scores, strict=True):
        want = reference.scores(others)[kind]
        assert_scores_close(got, want, rtol, atol=floors.get(kind, 0.0))


@st.composite
def problems(draw, most_rows, most_features):
    """Rows to fit on, other rows to score, and a number of components below the rank."""
    n_rows = draw(st.integers(3, most_rows))
    n_features = draw(st.integers(1, most_features))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    rank = draw(st.integers(1, min(n_rows - 1, n_features)))
    decay = draw(st.sampled_from([0.0, 0.5, 1.5]))
    offset = draw(st.sampled_from([0.0, 1.0, 1e4]))
    everything = falling_rows(n_rows + 20, n_features, seed, decay, offset, rank)
    everything = disturbed(draw, rng, everything, n_rows)
    rows, others = everything[:n_rows], everything[n_rows:]
    others = others + draw(st.sampled_from([0.0, 0.1, 10.0])) * rng.normal(size=others.shape)
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    rows, others = rows.astype(dtype), others.astype(dtype)
    # The cut must be between two variances that differ: the subspace is not defined otherwise.
    X = rows.astype(np.float64)
    values = np.linalg.svd(X - X.mean(axis=0), compute_uv=False) ** 2
    values = np.append(values, 0.0)
    clear = np.flatnonzero((values[:-1] - values[1:]) > 1e-4 * values[0])
    clear = clear[clear < min(n_rows - 1, n_features)]
    if len(clear) == 0:
        return None
    return rows, others, int(draw(st.sampled_from(clear.tolist()))) + 1


@given(problems(60, 80))
@settings(max_examples=150)
def test_scores_are_those_of_float64(problem):
    if problem is not None:
        check_parity(*problem)


@given(problems(2000, 3000))
@settings(max_examples=12)
def test_scores_of_large_problems_are_those_of_float64(problem):
    if problem is not None:
        check_parity(*problem)


@pytest.mark.parametrize("shape", [(2000, 30), (30, 3000), (500, 500), (2, 1), (2, 3000), (3, 2)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_of_shapes_at_the_edges(shape, offset, dtype):
    rows = falling_rows(shape[0] + 40, shape[1], offset=offset, rank=shape[1]).astype(dtype)
    check_parity(rows[: shape[0]], rows[shape[0] :], max(1, min(shape[0] - 1, shape[1]) // 2))


def test_tiny_residuals_keep_their_digits():
    # Residuals of 1e-9 of a row's length: subtraction in float32 would leave nothing.
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    sizes = np.where(np.arange(200) < 20, 1.0, 1e-9)
    rows = (rng.normal(size=(400, 200)) * sizes) @ basis
    check_parity(rows[:300], rows[300:], 20)


def many_rows():
    return falling_rows(9000, 500).astype(np.float32)


MANY_ROWS = {
    "plain": many_rows,
    "drift": lambda: many_rows() + np.linspace(0, 9, 9000, dtype=np.float32)[:, None],
    "offset": lambda: many_rows() + np.float32(1e3),
    "low rank": lambda: many_rows()[:, :100].repeat(5, axis=1),
    "no noise": lambda: many_rows()[:, np.arange(500) % 60],
    "one large feature": lambda: (
        many_rows() * np.where(np.arange(500) == 3, 1e4, 1).astype(np.float32)
    ),
}


@pytest.mark.parametrize("case", MANY_ROWS)
def test_scores_of_many_rows_are_those_of_float64(case):
    rows = MANY_ROWS[case]()
    check_parity(rows, rows[::40], 60)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_components", [5, 60, 300])
def test_scores_have_the_same_bits_in_any_batch_and_on_any_threads(dtype, n_components):
    rows = falling_rows(700, 301, decay=2.0).astype(dtype)
    subspace = fit(rows, n_components, n_threads=1)
    whole = subspace.score(rows, KINDS, 1)
    for n_threads in (2, 3, 8):
        assert np.array_equal(
            fit(rows, n_components, n_threads).score(rows, KINDS, n_threads), whole
        )
    for batch in (1, 2, 63, 64, 65, 300):
        parts = [
            subspace.score(rows[first : first + batch], KINDS, 2)
            for first in range(0, len(rows), batch)
        ]
        assert np.array_equal(np.concatenate(parts, axis=1), whole)
    shuffled = np.random.default_rng(0).permutation(len(rows))
    assert np.array_equal(subspace.score(rows[shuffled], KINDS, 2), whole[:, shuffled])


def test_kinds_asked_for_together_are_those_asked_for_alone():
    rows = falling_rows(200, 50)
    subspace = fit(rows, 10)
    together = subspace.score(rows, KINDS, 1)
    for kind, scores in zip(KINDS, together, strict=True):
        np.testing.assert_allclose(subspace.score(rows, [kind], 1)[0], scores, rtol=2e-5)
    assert np.array_equal(subspace.score(rows, KINDS[::-1], 1)[::-1], together)


@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([0.0, 50.0]))
@settings(max_examples=30)
def test_shift_rotation_and_scale_act_as_the_formulas_say(seed, scale, shift):
    rng = np.random.default_rng(seed)
    rows = falling_rows(60, 20, seed % 1000)
    rotation = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    plain = fit(rows, 6).score(rows, KINDS, 1).astype(np.float64)
    moved = (rows @ rotation) * scale + shift
    fre, mahalanobis, nll, ppca = fit(moved, 6).score(moved, KINDS, 1).astype(np.float64)
    np.testing.assert_allclose(fre, plain[0] * scale**2, rtol=2e-4)
    np.testing.assert_allclose(mahalanobis, plain[1], rtol=2e-4)
    np.testing.assert_allclose(nll, plain[2] + 6 * np.log(scale), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(ppca, plain[3] + 20 * np.log(scale), rtol=2e-4, atol=2e-3)


def test_training_rows_have_the_expected_mean_scores():
    rows = falling_rows(500, 40)
    subspace = fit(rows, 10)
    fre, mahalanobis = subspace.score(rows, ["fre", "mahalanobis"], 1).mean(axis=1)
    rest = subspace.total_variance - subspace.explained_variance.sum()
    np.testing.assert_allclose(fre, rest * 499 / 500, rtol=1e-4)
    np.testing.assert_allclose(mahalanobis, 10 * 499 / 500, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n_rows", [40, 400])
def test_the_row_that_is_not_finite_is_named(dtype, bad, n_rows):
    rows = falling_rows(n_rows, 100).astype(dtype)
    subspace = fit(rows, 10)
    rows[31, 17] = bad
    found = "NaN" if np.isnan(bad) else "infinity"
    with pytest.raises(ValueError, match=f"X contains {found} in row 31, column 17;"):
        fit(rows, 10)
    with pytest.raises(ValueError, match=f"X contains {found} in row 31, column 17;"):
        subspace.score(rows, ["fre"], 2)


def test_huge_distances_score_the_largest_float():
    subspace = fit(falling_rows(30, 10), 3)
    scores = subspace.score(np.full((1, 10), 1e30), KINDS, 1)
    assert np.isfinite(scores).all()
    assert (scores == np.finfo(np.float32).max).all()


def test_a_constant_column_changes_nothing():
    rows = falling_rows(100, 12)
    with_constant = np.insert(rows, 5, 1e6, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, other = fit(rows, 4), fit(with_constant, 4)
    assert_scores_close(other.score(with_constant, ["fre"], 1)[0], plain.score(rows, ["fre"], 1)[0])


def test_the_fit_leaves_its_input_as_it_is():
    rows = falling_rows(50, 20)
    before = rows.copy()
    fit(rows, 5).score(rows, KINDS, 1)
    assert np.array_equal(rows, before)


# Regularization


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (400, 25)])
def test_shrinkage_is_that_of_scikit_learn(shape):
    rows = falling_rows(*shape, offset=1.0)
    plain, shrunk = fit(rows, 4), fit(rows, 4, regularization="shrinkage")
    covariance, alpha = oas(rows)
    assert 0 < alpha < 1
    n = shape[0]
    values = np.linalg.eigvalsh(covariance)[::-1][:4] * n / (n - 1)
    np.testing.assert_allclose(shrunk.explained_variance, values, rtol=1e-9)
    assert np.array_equal(shrunk.components, plain.components)
    assert shrunk.noise_variance > plain.noise_variance


def test_a_floor_is_a_share_of_the_largest_variance():
    rows = falling_rows(300, 12, decay=4.0)
    plain, floored = (fit(rows, 8, regularization=r) for r in (None, 0.05))
    least = 0.05 * plain.explained_variance[0]
    np.testing.assert_allclose(
        floored.explained_variance, np.maximum(plain.explained_variance, least), rtol=1e-12
    )
    assert floored.noise_variance == least


# Fits


@pytest.mark.parametrize("shape", [(200, 30), (30, 200)])
@pytest.mark.parametrize("n_components", [3, 0.5, 0.97, 0.9999, None])
def test_model_is_that_of_scikit_learn(shape, n_components):
    rows = falling_rows(*shape, offset=2.0)
    subspace = fit(rows, n_components)
    # scikit-learn keeps a direction without variance where it is asked for all.
    most = min(shape[0] - 1, shape[1])
    pca = PCA(most if n_components is None else n_components, svd_solver="full").fit(rows)
    k = pca.n_components_
    assert len(subspace.components) == k
    np.testing.assert_allclose(subspace.mean, pca.mean_, rtol=1e-12)
    np.testing.assert_allclose(subspace.explained_variance, pca.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(
        np.abs((subspace.components * pca.components_).sum(axis=1)), 1, atol=1e-9
    )
    np.testing.assert_allclose(
        subspace.explained_variance / subspace.total_variance,
        pca.explained_variance_ratio_,
        rtol=1e-9,
    )
    if k < most:
        np.testing.assert_allclose(subspace.noise_variance, pca.noise_variance_, rtol=1e-9)
        ppca = subspace.score(rows, ["ppca"], 1)[0]
        assert_scores_close(ppca, -pca.score_samples(rows))


@pytest.mark.parametrize("shape", [(3000, 40), (120, 700), (300, 300)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_batches_give_the_model_of_all_rows(shape, offset):
    rows = falling_rows(*shape, offset=offset)
    whole = fit(rows, 10).score(rows, KINDS, 2)
    for batches in (2, 7, len(rows)):
        np.testing.assert_allclose(
            fit(rows, 10, batches=batches).score(rows, KINDS, 2), whole, rtol=2e-5
        )


@pytest.mark.parametrize("shape", [(200, 30), (40, 300)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_directions_without_variance_are_not_kept(shape, offset):
    rows = falling_rows(*shape, offset=offset, rank=4)
    subspace = fit(rows, 20)
    assert len(subspace.components) == 4
    assert len(fit(rows, None).components) == 4
    assert np.isfinite(subspace.score(rows, KINDS, 1)).all()


@pytest.mark.parametrize("n_rows", [3, 30])
def test_equal_rows_score_squared_distances(n_rows):
    rows = np.tile(np.arange(8.0), (n_rows, 1))
    subspace = fit(rows, 0.97)
    assert subspace.components.shape == (0, 8)
    scores = subspace.score(rows[:1] + 3.0, ["fre"], 1)[0]
    np.testing.assert_allclose(scores, 72.0, rtol=1e-6)


def test_a_whole_space_leaves_no_residual():
    rows = falling_rows(300, 20)
    fre, mahalanobis, nll, ppca = fit(rows, None).score(rows, KINDS, 1)
    assert (fre < 1e-20).all()
    assert_scores_close(mahalanobis, fit_reference(rows, 20).scores(rows)["mahalanobis"])
    np.testing.assert_allclose(ppca, nll, rtol=1e-6)


def test_the_row_that_is_not_finite_is_counted_over_batches():
    rows = falling_rows(400, 20)
    rows[333, 3] = np.nan
    with pytest.raises(ValueError, match="NaN in row 333, column 3"):
        fit(rows, 10, batches=9)


def test_values_whose_squares_overflow_are_told():
    with pytest.raises(ValueError, match="beyond float64; divide the features"):
        fit(1e200 * falling_rows(30, 10), 3)


@pytest.mark.parametrize("n_rows", [30, 300])
def test_what_is_decomposed_is_the_smaller_of_gram_matrix_and_scatter(n_rows):
    rows = falling_rows(n_rows, 100)
    spectrum = Spectrum.of(accumulated(rows), 2)
    assert spectrum.of_gram == (n_rows < 100)
    assert spectrum.products.shape == (min(n_rows, 100),) * 2
    assert np.linalg.eigvalsh(spectrum.products).max() == pytest.approx(
        np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False).max() ** 2
    )


def test_classes_that_share_a_scatter_share_components():
    rows, classes = labelled_rows((40, 9, 25))
    classes = classes * 2  # a class without rows between two others
    subspaces = fit_subspaces(rows, 3, classes).subspaces
    assert [subspace.n_samples for subspace in subspaces] == [40, 0, 9, 0, 25]
    assert all(s.components is subspaces[0].components for s in subspaces)


# Held out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", [(25, 30), (8, 7)])
def test_rows_are_scored_without_themselves(tied, sizes):
    rows, classes = labelled_rows(sizes)
    reference = tied_references if tied else references
    for c in (0,) if tied else (0, 1):
        own = np.arange(len(rows)) if tied else np.flatnonzero(classes == c)
        theirs = classes if tied else None
        fit = fit_subspaces(rows[own], 3, theirs, batches=3, sample=RowSample(100))
        kept, places, found, units, scores, reduced = fit.held_out(2)
        assert reduced is None
        assert np.array_equal(kept, rows[own][places])
        assert np.array_equal(units, places)
        assert np.array_equal(np.sort(places), np.arange(len(own)))
        for i in range(len(own)):
            row = own[places[i]]
            rest = np.delete(np.arange(len(rows)), row)
            assert classes[row] == (found[i] if tied else c)
            want = reference(rows[rest], classes[rest], 3)[classes[row]].scores(rows[[row]])
            for kind, got in zip(KINDS, scores[:, i], strict=True):
                np.testing.assert_allclose(got, want[kind][0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_a_sample_of_many_rows_is_scored_without_themselves(tied):
    rows, classes = labelled_rows((150, 90))
    theirs = classes if tied else None
    every = fit_subspaces(rows, 3, theirs, sample=RowSample(1000)).held_out(2)
    one, other = (
        fit_subspaces(rows, 3, theirs, sample=RowSample(40), batches=batches).held_out(2)
        for batches in (1, 11)
    )
    assert len(one.places) == 40
    assert np.array_equal(one.places, other.places)
    assert np.array_equal(one.classes, np.zeros(40) if theirs is None else classes[one.places])
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-8)
    np.testing.assert_allclose(one.scores, every.scores[:, one.places], rtol=1e-8)


@pytest.mark.parametrize("shape", [(20, 50), (200, 12)])
def test_pairs_that_are_kept_change_no_bit(shape):
    rows = falling_rows(*shape)
    cell = accumulated(rows, sample=RowSample(30))
    spectrum = Spectrum.of(cell, 2)
    whole = spectrum.fit(4, None, 2, whole=True)
    want = whole.held_out(2)
    for other in (whole.forget_pairs(), spectrum.fit(4, None, 2)):
        assert other._pairs is None
        assert all(
            np.array_equal(a, b) for a, b in zip(other.held_out(2)[:5], want[:5], strict=True)
        )


@pytest.mark.parametrize("shape", [(20, 50), (200, 12)])
def test_residuals_are_reduced_and_have_the_length_of_the_fre(shape):
    rows = falling_rows(*shape)
    fit = fit_subspaces(rows, 4, sample=RowSample(30))
    found = fit.held_out(2, reduce=lambda residuals: np.square(residuals).sum(axis=1))
    energies = found.reduced
    assert energies.dtype == np.float32
    np.testing.assert_allclose(energies, found.scores[0], rtol=1e-5)


def test_a_single_row_and_two_have_the_held_out_scores_that_there_are():
    rows = falling_rows(4, 5)
    classes = np.array([0, 0, 0, 1])
    _, _, found, _, scores, reduced = fit_subspaces(rows, 1, classes).held_out(
        1, reduce=lambda r: r
    )
    assert np.isnan(scores[:, found == 1]).all()
    assert np.isnan(reduced[found == 1]).all()
    assert np.isfinite(scores[:, found == 0]).all()
    scores = fit_subspaces(rows[:2], 1).held_out(1).scores
    np.testing.assert_allclose(scores[0], np.square(rows[0] - rows[1]).sum(), rtol=1e-9)
    assert np.isnan(scores[1:]).all()
