import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pydfm.features.inputs.arrays import FeatureSource, as_features, blocks, check_finite

X = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    "given",
    [
        X,
        X.astype(np.float32),
        X.astype(np.float16),
        X.astype(np.uint8),
        X.astype(np.int64),
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X[::-1][::-1],
        X.astype(">f4"),
        X.astype(object),
        X.tolist(),
        tuple(map(tuple, X)),
        torch.from_numpy(X),
        torch.from_numpy(X).half(),
        torch.from_numpy(X).bfloat16(),
        torch.from_numpy(X).T.contiguous().T,
        torch.from_numpy(X).requires_grad_(),
    ],
)
def test_values_survive_any_type_and_layout(given):
    parts = [rows for _, rows in blocks(as_features(given))]
    assert all(rows.flags.c_contiguous and rows.dtype in (np.float32, np.float64) for rows in parts)
    assert np.array_equal(np.concatenate(parts), X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_the_core_takes_is_not_copied(dtype):
    array = X.astype(dtype)
    ((first, rows),) = blocks(as_features(array))
    assert first == 0
    assert rows is array
    tensor = torch.from_numpy(array)
    ((_, rows),) = blocks(as_features(tensor))
    assert np.shares_memory(rows, array)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (np.float16, np.float32),
        (np.uint8, np.float32),
        (np.int16, np.float32),
        (np.bool_, np.float32),
        (np.int32, np.float64),
        (np.uint64, np.float64),
        (np.longdouble, np.float64),
    ],
)
def test_types_widen_to_the_smallest_that_holds_them(dtype, wanted):
    assert all(rows.dtype == wanted for _, rows in blocks(np.ones((3, 2), dtype=dtype)))


def test_conversion_goes_block_by_block():
    array = np.ones((5000, 4096), dtype=np.float16)
    firsts = []
    seen = 0
    for first, rows in blocks(array):
        assert first == seen
        assert rows.nbytes <= 32 << 20
        firsts.append(first)
        seen += len(rows)
    assert seen == 5000
    assert len(firsts) > 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.ones(3), ValueError, r"Expected 2D array, got 1D array.*\(3,\).*reshape\(1, -1\)"),
        (np.ones((2, 3, 4, 5, 6)), ValueError, "got 5D array"),
        (np.float64(3), ValueError, "got 0D array"),
        (np.ones((0, 3)), ValueError, r"0 sample\(s\)"),
        (np.ones((3, 0)), ValueError, r"0 feature\(s\)"),
        (np.ones((2, 2), dtype=complex), ValueError, "Complex data not supported"),
        (np.array([["a", "b"]]), TypeError, "features must be real numbers"),
        (np.array([[1.0, "b"]], dtype=object), ValueError, "does not hold numbers only"),
        ([[1.0], [1.0, 2.0]], ValueError, "cannot be made an array"),
        (np.array([["2020-01-01"]], dtype="M8[D]"), TypeError, "features must be real numbers"),
        (sparse.eye(3).tocsr(), TypeError, "Sparse data.*toarray"),
        (torch.eye(3).to_sparse(), TypeError, "Sparse data"),
    ],
)
def test_what_is_not_features_is_told(given, error, message):
    with pytest.raises(error, match=message):
        as_features(given)


def test_another_number_of_features_is_told():
    with pytest.raises(ValueError, match="X has 3 features, but DFM is expecting 5 features"):
        as_features(X, 5)


def test_batches_must_agree_in_their_number_of_features():
    batches = FeatureSource(iter([X, X[:, :2]])).batches()
    next(batches)
    with pytest.raises(ValueError, match="X has 2 features, but DFM is expecting 3"):
        next(batches)


def test_a_loader_may_reuse_its_memory():
    def loader():
        buffer = np.empty((2, 3))
        for value in (1.0, 2.0):
            buffer[:] = value
            yield buffer

    first, second = FeatureSource(loader()).batches()
    assert (first == 1).all()
    assert (second == 2).all()


def test_the_first_bad_value_is_named():
    rows = np.ones((4, 3))
    check_finite(rows)
    rows[2, 1] = np.nan
    rows[3, 0] = np.inf
    with pytest.raises(ValueError, match="NaN in row 12, column 1"):
        check_finite(rows, 10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_are_not_aligned_are_copied(dtype):
    rows = np.arange(12, dtype=dtype).reshape(4, 3)
    crooked = np.zeros(rows.nbytes + 1, np.uint8)[1:].view(dtype).reshape(rows.shape)
    crooked[...] = rows
    assert not crooked.flags.aligned
    ((first, got),) = blocks(crooked)
    assert (first, got.flags.aligned, got.flags.c_contiguous) == (0, True, True)
    assert np.array_equal(got, rows)


def test_missing_values_are_named_by_their_place_in_all_of_x():
    rows = np.random.default_rng(0).random((6, 3))
    holes = np.ma.masked_array(rows, np.zeros(rows.shape, dtype=bool))
    holes.mask[4, 2] = True
    frame = pd.DataFrame(rows).convert_dtypes()
    frame.iloc[4, 2] = pd.NA
    for X, says in ((holes, "X is masked in row 4, column 2"), (frame, "NA in row 4, column 2")):
        for arrays in ([X], [X[:3], X[3:]], iter([X[:3], X[3:]])):
            with pytest.raises(ValueError, match=says):
                list(FeatureSource(arrays).batches())
    with pytest.raises(ValueError, match="X is masked in row 4, column 2"):
        as_features(list(holes))
    holes.mask[4, 2] = False
    assert np.array_equal(as_features(holes), rows)
