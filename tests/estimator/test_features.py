import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from reference import SCORE_TYPES, assert_scores_close, falling_rows, fit_reference
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import pydfm

ROWS = falling_rows(300, 40, offset=1.0)
OTHERS = falling_rows(50, 40, seed=1, offset=1.0, decay=0.0)


def test_the_usage_on_the_card_runs_as_written():
    x, y = ROWS, OTHERS
    scores = pydfm.DFM().fit(x).score(y)
    assert scores.shape == (50,)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("score_type", SCORE_TYPES)
def test_scores_are_those_of_the_definitions(score_type):
    dfm = pydfm.DFM(12, score_type).fit(ROWS)
    assert_scores_close(dfm.score(OTHERS), fit_reference(ROWS, 12).scores(OTHERS)[score_type])
    assert np.array_equal(dfm.score_samples(OTHERS), -dfm.score(OTHERS))


@pytest.mark.parametrize("score_type", SCORE_TYPES)
def test_what_is_farther_scores_higher(score_type):
    dfm = pydfm.DFM(12, score_type).fit(ROWS)
    distances = np.arange(1.0, 20.0)[:, np.newaxis]
    direction = np.random.default_rng(0).normal(size=40)
    assert (np.diff(dfm.score(dfm.mean_ + distances * direction)) > 0).all()


@pytest.mark.parametrize(
    "convert",
    [
        np.float32,
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x.tolist(),
        torch.from_numpy,
        lambda x: torch.from_numpy(x).float().T.contiguous().T,
        lambda x: torch.utils.data.DataLoader(torch.from_numpy(x), batch_size=7),
        lambda x: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(x), torch.zeros(len(x))), batch_size=9
        ),
        lambda x: (x[i : i + 13] for i in range(0, len(x), 13)),
    ],
)
def test_features_may_come_in_any_form(convert):
    want = pydfm.DFM(12).fit(ROWS).score(OTHERS)
    got = pydfm.DFM(12).fit(convert(ROWS)).score(convert(OTHERS))
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.int16, np.int64])
def test_features_may_be_of_any_type(dtype):
    rows, others = (100 * ROWS).astype(dtype), (100 * OTHERS).astype(dtype)
    want = fit_reference(rows, 5).scores(others)["fre"]
    assert_scores_close(pydfm.DFM(5).fit(rows).score(others), want)


def test_attributes_describe_the_model():
    dfm = pydfm.DFM(0.9).fit(ROWS)
    assert dfm.n_features_in_ == 40
    assert dfm.n_samples_ == 300
    assert dfm.components_.shape == (dfm.n_components_, 40)
    assert dfm.explained_variance_.shape == (dfm.n_components_,)
    assert dfm.explained_variance_ratio_.sum() > 0.9
    assert dfm.explained_variance_ratio_[:-1].sum() <= 0.9
    assert dfm.mean_ == pytest.approx(ROWS.mean(axis=0))
    assert dfm.noise_variance_ > 0
    assert dfm.feature_spec_ is None


def test_fit_leaves_its_input_and_parameters_as_they_are():
    rows = ROWS.copy()
    dfm = pydfm.DFM(n_components=0.9)
    before = dfm.get_params()
    assert dfm.fit(rows) is dfm
    dfm.score(rows)
    assert np.array_equal(rows, ROWS)
    assert dfm.get_params() == before


def test_a_second_fit_replaces_the_first():
    dfm = pydfm.DFM(5).fit(OTHERS).fit(ROWS)
    assert np.array_equal(dfm.score(OTHERS), pydfm.DFM(5).fit(ROWS).score(OTHERS))


def test_a_fit_that_fails_leaves_the_earlier_model():
    dfm = pydfm.DFM(5).fit(ROWS)
    before = dfm.score(OTHERS)
    with pytest.raises(ValueError, match="NaN"):
        dfm.fit(np.full((5, 40), np.nan))
    assert np.array_equal(dfm.score(OTHERS), before)


def test_score_type_may_change_after_the_fit():
    dfm = pydfm.DFM(5).fit(ROWS).set_params(score_type="nll")
    assert np.array_equal(dfm.score(OTHERS), pydfm.DFM(5, "nll").fit(ROWS).score(OTHERS))


def test_scores_have_the_same_bits_on_any_number_of_threads():
    want = pydfm.DFM(5, n_threads=1).fit(ROWS).score(OTHERS)
    for n_threads in (2, 3, 8):
        assert np.array_equal(pydfm.DFM(5, n_threads=n_threads).fit(ROWS).score(OTHERS), want)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))]
)
def test_copies_score_the_same(copied):
    dfm = pydfm.DFM(5).fit(ROWS)
    dfm.score(OTHERS)
    assert np.array_equal(copied(dfm).score(OTHERS), dfm.score(OTHERS))


def test_clone_keeps_parameters_and_forgets_the_fit():
    dfm = pydfm.DFM(5, "nll", layers=("layer3",), pool=2).fit(ROWS)
    copied = clone(dfm)
    assert copied.get_params() == dfm.get_params()
    with pytest.raises(NotFittedError):
        copied.score(ROWS)


def test_names_of_a_data_frame_are_kept_and_compared():
    rows = pd.DataFrame(ROWS[:, :3], columns=["red", "green", "blue"])
    dfm = pydfm.DFM(2).fit(rows)
    assert dfm.feature_names_in_.tolist() == ["red", "green", "blue"]
    assert np.array_equal(dfm.score(rows), pydfm.DFM(2).fit(ROWS[:, :3]).score(ROWS[:, :3]))
    with pytest.raises(ValueError, match="feature names should match"):
        dfm.score(rows[["green", "red", "blue"]])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        dfm.score(ROWS[:, :3])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "n_components is 0; it must be a share"),
        ({"n_components": -3}, "n_components is -3"),
        ({"n_components": 1.0}, r"n_components is 1\.0"),
        ({"n_components": 1.5}, r"n_components is 1\.5"),
        ({"n_components": 0.0}, r"n_components is 0\.0"),
        ({"n_components": np.nan}, "n_components is nan"),
        ({"n_components": True}, "n_components is True"),
        ({"n_components": "mle"}, "n_components is 'mle'"),
        ({"n_components": 41}, r"at most min\(N, D\) = 40"),
        ({"score_type": "mse"}, "score_type is 'mse'; it must be one of 'fre', 'mahalanobis'"),
        ({"score_type": None}, "score_type is None"),
        ({"n_threads": 0}, "n_threads is 0; it must be an integer of at least 1"),
        ({"n_threads": 2.0}, r"n_threads is 2\.0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'; it must be one of 'raise', 'skip'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_parameter_out_of_range_is_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        pydfm.DFM(**parameters).fit(ROWS)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.ones((1, 40)), ValueError, "n_samples=1; fit needs at least two rows"),
        ([], ValueError, "X is empty; it must be features"),
        (np.ones((0, 40)), ValueError, r"0 sample\(s\)"),
        (np.ones(40), ValueError, "Expected 2D array, got 1D"),
        (None, TypeError, "X is NoneType; it must be features"),
        (7, TypeError, "X is int; it must be features"),
        (iter([]), ValueError, "X is empty; it must be features"),
    ],
)
def test_bad_features_are_told(given, error, message):
    with pytest.raises(error, match=message):
        pydfm.DFM().fit(given)


def test_score_before_fit_is_told():
    for call in ("score", "score_samples", "extract"):
        with pytest.raises(NotFittedError, match=r"not fitted yet\. Call 'fit'"):
            getattr(pydfm.DFM(), call)(ROWS)
    with pytest.raises(NotFittedError):
        pydfm.DFM().save("model")


def test_another_number_of_features_is_told():
    with pytest.raises(ValueError, match="X has 39 features, but DFM is expecting 40"):
        pydfm.DFM().fit(ROWS).score(ROWS[:, 1:])


def test_the_row_that_is_not_finite_is_named():
    rows = OTHERS.copy()
    rows[13, 5] = np.inf
    with pytest.raises(ValueError, match="X contains infinity in row 13, column 5"):
        pydfm.DFM().fit(ROWS).score(rows)


def test_likelihoods_of_equal_rows_are_refused():
    rows = np.ones((5, 3))
    with (
        pytest.warns(UserWarning, match="all rows of X are equal"),
        pytest.raises(ValueError, match="score_type is 'nll', which needs variance"),
    ):
        pydfm.DFM(score_type="nll").fit(rows)
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        dfm = pydfm.DFM().fit(rows)
    assert dfm.score([[2.0, 1.0, 1.0]]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="all rows of X are equal; use score_type='fre'"):
        dfm.set_params(score_type="ppca").score(rows)


def test_many_threads_may_score_with_one_model():
    dfm = pydfm.DFM(5).fit(ROWS)
    want = dfm.score(OTHERS)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: dfm.score(OTHERS), range(40)):
            assert np.array_equal(got, want)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks workers")
def test_forked_loader_workers_score_the_same(run_python):
    # In a process of its own: pytest's may have threads, which Python warns to fork beside.
    code = """
import numpy as np, torch, pydfm
rows = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
dfm = pydfm.DFM(5).fit(rows)
class Scored(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return dfm.score(rows[50 * i : 50 * (i + 1)])
loader = torch.utils.data.DataLoader(
    Scored(), batch_size=None, num_workers=2, multiprocessing_context="fork"
)
assert np.array_equal(np.concatenate([s.numpy() for s in loader]), dfm.score(rows))
"""
    run_python(code)


def test_the_representation_shows_what_was_changed():
    assert repr(pydfm.DFM(5, "nll")) == "DFM(n_components=5, score_type='nll')"


def test_scores_near_zero_keep_their_digits_where_many_rows_are_fitted():
    # So many products that they might be float32; the scale puts half of the nll below zero.
    rows = falling_rows(9000, 500).astype(np.float32)
    middle = np.median(fit_reference(rows, 60).scores(rows[::40])["nll"])
    rows *= np.float32(np.exp(-middle / 60))
    want = fit_reference(rows, 60).scores(rows[::40])
    assert np.abs(want["nll"]).min() < 0.1
    dfm = pydfm.DFM(60).fit(rows)
    for kind in SCORE_TYPES:
        assert_scores_close(dfm.set_params(score_type=kind).score(rows[::40]), want[kind])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.filterwarnings("ignore:.*no row has a residual")
def test_rounding_is_no_distance(dtype, offset):
    # All directions have variance and are kept: rows have no residual, and are as normal as others.
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(400, 20)) + offset).astype(dtype)
    dfm = pydfm.DFM(n_components=None).fit(rows[:300])
    assert (dfm.score(rows) == 0).all()
    assert (dfm.predict(rows) == 1).all()
    constant = np.append(rows, np.full((400, 1), 3.7, dtype=dtype), axis=1)
    dfm = pydfm.DFM(n_components=20).fit(constant[:300])
    assert (dfm.predict(constant) == 1).all()
    constant[0, -1] += 1
    assert dfm.score(constant[:1])[0] == pytest.approx(1, rel=1e-4)
    assert dfm.predict(constant[:1])[0] == -1


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e20])
def test_a_scale_whose_squares_leave_float32_is_told(scale):
    rows = falling_rows(60, 12) * scale
    says = r"X varies by about .* in each feature, and squares of that .*; multiply all features by"
    with pytest.raises(ValueError, match=says):
        pydfm.DFM().fit(rows)
    with pytest.raises(ValueError, match="multiply all features by"):
        pydfm.DFM().fit(rows, labels=np.arange(60) % 2)


@pytest.mark.parametrize("scale", [1e-14, 1e-5, 1e5, 1e14])
def test_verdicts_do_not_depend_on_the_scale(scale):
    rows, others = falling_rows(60, 12), 9 * falling_rows(20, 12, seed=1, decay=0.0)
    for kind in ("fre", "nll"):
        want = pydfm.DFM(3, alpha=0.05, score_type=kind).fit(rows).p_value(others)
        got = pydfm.DFM(3, alpha=0.05, score_type=kind).fit(rows * scale).p_value(others * scale)
        np.testing.assert_allclose(got, want)
        assert want.min() < 0.05


def test_a_fit_whose_rows_have_no_residual_says_so():
    rows = np.random.default_rng(0).normal(size=(500, 10))
    with pytest.warns(UserWarning, match="all 10 directions .*no row has a residual"):
        pydfm.DFM().fit(rows)
    pydfm.DFM(score_type="mahalanobis").fit(rows)
    pydfm.DFM(9).fit(rows)


@pytest.mark.parametrize("kind", ["fre", "mahalanobis", "nll", "ppca"])
def test_finite_rows_however_large_are_anomalous(kind):
    dfm = pydfm.DFM(5, alpha=0.1, score_type=kind).fit(falling_rows(60, 12))
    far = np.repeat([[1e150], [1e155], [-1e300]], 12, axis=1)
    assert np.array_equal(dfm.score(far), np.full(3, np.finfo(np.float32).max))
    assert np.array_equal(dfm.predict(far), [-1, -1, -1])
