import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import falling_rows

from pydfm import _core

THREADS = (1, 2, 3, 8)


def centred(rows):
    X = np.asarray(rows, dtype=np.float64)
    d = X - X.mean(axis=0)
    return d - d.mean(axis=0)


shapes = st.tuples(st.integers(1, 150), st.integers(1, 150))
dtypes = st.sampled_from([np.float32, np.float64])
offsets = st.sampled_from([0.0, -3.0, 1e4])


@given(shapes, dtypes, offsets, st.integers(0, 2**31))
@settings(max_examples=60)
def test_moments_are_those_of_numpy(shape, dtype, offset, seed):
    rows = (np.random.default_rng(seed).normal(size=shape) + offset).astype(dtype)
    count, mean, scatter = _core.moments(rows, n_threads=2)
    d = centred(rows)
    assert count == len(rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(scatter, d.T @ d, rtol=0, atol=2e-7 * max(np.trace(d.T @ d), 1e-9))
    assert np.array_equal(scatter, scatter.T)


@given(shapes, st.integers(1, 40), offsets, st.integers(0, 2**31))
@settings(max_examples=40)
def test_merged_moments_are_those_of_all_rows(shape, n_more, offset, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape) + offset
    b = rng.normal(size=(n_more, shape[1])) * 3 - offset
    count, mean, scatter = _core.merge_moments(
        _core.moments(a, n_threads=1), _core.moments(b, n_threads=1)
    )
    both = np.concatenate([a, b])
    d = centred(both)
    assert count == len(both)
    np.testing.assert_allclose(mean, both.mean(axis=0), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(scatter, d.T @ d, rtol=0, atol=2e-7 * max(np.trace(d.T @ d), 1e-9))


def population(n_rows, n_features, seed=0):
    return falling_rows(n_rows, n_features, seed, decay=1.8).astype(np.float32)


ADVERSARIAL = {
    "plain": lambda: population(3000, 70),
    "just above D": lambda: population(71, 70),
    "one block": lambda: population(5, 70),
    "offset of 1e6": lambda: population(3000, 70) + np.float32(1e6 * population(3000, 70).std()),
    "one feature 1e6 times larger": lambda: (
        population(3000, 70) * np.where(np.arange(70) == 3, 1e6, 1).astype(np.float32)
    ),
    "drift": lambda: population(3000, 70) + np.linspace(0, 100, 3000, dtype=np.float32)[:, None],
    "step after the first block": lambda: (
        population(3000, 70) + np.where(np.arange(3000) < 128, 0, 1e5).astype(np.float32)[:, None]
    ),
    "equal rows": lambda: np.repeat(population(50, 70), 60, axis=0),
    "repeated blocks": lambda: np.tile(population(64, 70), (50, 1)),
    "half zeros": lambda: np.maximum(population(3000, 70), 0),
    "constant": lambda: np.full((300, 70), 0.1, dtype=np.float32),
}


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_moments_keep_their_digits(case):
    rows = ADVERSARIAL[case]()
    d = centred(rows)
    exact = d.T @ d
    # What the mean's own rounding leaves, and that of the sums.
    floor = len(rows) * (4e-16 * np.abs(rows.astype(np.float64)).max()) ** 2
    _, mean, scatter = _core.moments(rows, n_threads=2)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-13, atol=1e-13)
    roots = np.sqrt(np.diag(exact))
    assert (np.abs(scatter - exact) <= 1e-12 * np.outer(roots, roots) + floor).all()


@given(
    shapes, st.integers(1, 40), offsets, st.sampled_from([1e-3, 1.0, 1e3]), st.integers(0, 2**31)
)
@settings(max_examples=40)
def test_subtraction_undoes_a_merge(shape, n_more, offset, scale, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape) + offset
    b = (rng.normal(size=(n_more, shape[1])) - offset) * scale
    all_rows = np.concatenate([a, b])
    whole, part = _core.moments(all_rows, n_threads=1), _core.moments(b, n_threads=1)
    count, mean, scatter = _core.subtract_moments(whole, part)
    assert count == len(a)
    # The rest keeps the error of the whole: eps of its trace, eps of its mean per row left.
    size = np.abs(all_rows).max()
    share = len(all_rows) / len(a)
    np.testing.assert_allclose(mean, a.mean(axis=0), rtol=0, atol=1e-14 * share * size)
    d = centred(a)
    np.testing.assert_allclose(
        scatter, d.T @ d, rtol=0, atol=1e-13 * share * max(np.trace(whole[2]), size**2)
    )
    assert np.array_equal(scatter, scatter.T)


def test_nothing_is_left_of_moments_without_themselves():
    whole = _core.moments(falling_rows(30, 7), n_threads=1)
    count, mean, scatter = _core.subtract_moments(whole, whole)
    assert count == 0
    assert not mean.any()
    assert not scatter.any()


def test_rows_that_are_not_there_cannot_be_subtracted():
    few, many = (_core.moments(falling_rows(n, 7), n_threads=1) for n in (10, 30))
    with pytest.raises(ValueError, match="b has 30 rows, a has 10; b's rows must be among"):
        _core.subtract_moments(few, many)
    other = _core.moments(10 * falling_rows(10, 7), n_threads=1)
    with pytest.raises(ValueError, match="negative variance; b's rows must be among"):
        _core.subtract_moments(many, other)


@given(shapes, dtypes, offsets, st.integers(0, 2**31))
@settings(max_examples=60)
def test_gram_matrix_is_that_of_numpy(shape, dtype, offset, seed):
    rows = (np.random.default_rng(seed).normal(size=shape) + offset).astype(dtype)
    mean, gram = _core.gram(rows, n_threads=2)
    d = centred(rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(gram, d @ d.T, rtol=0, atol=1e-11 * max(np.trace(d @ d.T), 1e-9))
    assert np.array_equal(gram, gram.T)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 129, 300])
def test_eigenpairs_are_those_of_the_matrix(n):
    rows = falling_rows(n + 5, n, seed=n)
    a = rows.T @ rows
    values, vectors = _core.eigh(a, n_threads=2)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a)[::-1], rtol=0, atol=1e-12 * values[0])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(
        vectors @ a, values[:, None] * vectors, rtol=0, atol=1e-12 * values[0]
    )


@pytest.mark.parametrize(
    "a",
    [
        np.zeros((20, 20)),
        np.eye(40),
        np.ones((70, 70)),
        np.diag(np.repeat([3.0, 1.0, 0.0], 30)),
        np.diag(10.0 ** -np.arange(0.0, 100.0)),
        1e-280 * np.diag(np.arange(1.0, 50.0)),
        1e280 * np.diag(np.arange(1.0, 50.0)),
    ],
    ids=["zero", "identity", "rank one", "equal values", "graded", "tiny", "huge"],
)
def test_eigenpairs_of_degenerate_matrices(a):
    values, vectors = _core.eigh(a, n_threads=2)
    scale = np.abs(a).max() or 1.0
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(a)), atol=1e-12)
    np.testing.assert_allclose(
        vectors @ (a / scale), (values / scale)[:, None] * vectors, rtol=0, atol=1e-12 * len(a)
    )
    assert (np.diff(values) <= 0).all()


def test_components_from_gram_are_orthonormal_principal_axes():
    rows = falling_rows(40, 300, offset=5.0)
    mean, gram = _core.gram(rows, n_threads=1)
    values, vectors = _core.eigh(gram, n_threads=1)
    components = _core.components_from_gram(rows, mean, values[:30], vectors[:30], n_threads=2)
    np.testing.assert_allclose(components @ components.T, np.eye(30), atol=1e-10)
    _, singular, axes = np.linalg.svd(centred(rows), full_matrices=False)
    np.testing.assert_allclose(np.abs((components * axes[:30]).sum(axis=1)), 1, atol=1e-9)
    np.testing.assert_allclose(values[:30], singular[:30] ** 2, rtol=1e-9)


def everything(rows, n_threads):
    moments = _core.moments(rows, n_threads=n_threads)
    gram = _core.gram(rows, n_threads=n_threads)
    values, vectors = _core.eigh(gram[1], n_threads=n_threads)
    components = _core.components_from_gram(
        rows, gram[0], values[:20], vectors[:20].copy(), n_threads=n_threads
    )
    return [*moments[1:], *gram, values, vectors, components]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residuals_are_those_of_numpy_whichever_rows_are_beside(dtype):
    rows = population(40, 90).astype(dtype)
    mean = rows.mean(axis=0, dtype=np.float64)
    components = np.linalg.qr(np.random.default_rng(0).normal(size=(90, 7)))[0].T.copy()
    d = rows - mean
    got = _core.residuals(rows, mean, components, n_threads=2)
    np.testing.assert_allclose(got, d - d @ components.T @ components, rtol=0, atol=1e-13)
    for some in (slice(3, 4), slice(1, 38), slice(39, None, -1)):
        own = np.ascontiguousarray(rows[some])
        assert np.array_equal(_core.residuals(own, mean, components, n_threads=1), got[some])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_same_bits_on_any_number_of_threads(dtype):
    rows = falling_rows(333, 777, offset=1.0).astype(dtype)
    first = everything(rows, 1)
    for n_threads in THREADS[1:]:
        for a, b in zip(first, everything(rows, n_threads), strict=True):
            assert np.array_equal(a, b)


def test_concurrent_calls_do_not_disturb_each_other():
    inputs = [falling_rows(100, 200, seed=seed) for seed in range(8)]
    alone = [everything(rows, 2) for rows in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda rows: everything(rows, 2), inputs))
    for a, b in zip(alone, together, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _core.moments(np.zeros(3), n_threads=1), "1 dimensions; it must have 2"),
        (lambda: _core.moments(np.zeros((0, 3)), n_threads=1), "empty"),
        (lambda: _core.gram(np.zeros((0, 3)), n_threads=1), "empty"),
        (lambda: _core.eigh(np.zeros((3, 2)), n_threads=1), "square"),
        (
            lambda: _core.components_from_gram(
                np.zeros((4, 3)), np.zeros(3), np.zeros(1), np.zeros((1, 4)), n_threads=1
            ),
            "positive",
        ),
        (
            lambda: _core.merge_moments(
                (1, np.zeros(2), np.zeros((2, 2))), (1, np.zeros(3), np.zeros((3, 3)))
            ),
            "different numbers of features",
        ),
        (
            lambda: _core.subtract_moments(
                (2, np.zeros(2), np.zeros((2, 2))), (1, np.zeros(3), np.zeros((3, 3)))
            ),
            "different numbers of features",
        ),
    ],
)
def test_wrong_shapes_raise_value_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.complex128])
def test_rows_of_other_types_are_not_converted(dtype):
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _core.moments(np.zeros((3, 2), dtype=dtype), n_threads=1)


def test_eigenpairs_of_what_is_not_finite_raise_and_do_not_hang():
    with pytest.raises(np.linalg.LinAlgError):
        _core.eigh(np.full((30, 30), np.nan), n_threads=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_the_same(run_python):
    # In a process of its own: pytest's may have threads, which Python warns to fork beside.
    code = """
import os
import shutil
import numpy as np
from pydfm import _core
rows = np.random.default_rng(0).normal(size=(500, 300))
before = _core.moments(rows, n_threads=4)[2]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(before, _core.moments(rows, n_threads=4)[2]) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    run_python(code)


ANSWERS = """
import sys
import numpy as np
import pydfm
from pydfm import _core
rng = np.random.default_rng(0)
rows = (rng.normal(size=(300, 20)) @ rng.normal(size=(20, 100))).astype(np.float32)
rows += rng.normal(size=rows.shape).astype(np.float32)
scores = [pydfm.DFM(15, kind).fit(rows).score(rows) for kind in ("fre", "mahalanobis", "ppca")]
np.save(sys.argv[1], np.stack(scores))
print(_core.instruction_set)
"""


def test_every_instruction_set_gives_the_same_scores(run_python, tmp_path):
    answers = []
    for name in _core.supported_instruction_sets():
        file = tmp_path / f"{name}.npy"
        result = run_python(ANSWERS, str(file), PYDFM_INSTRUCTION_SET=name)
        assert result.stdout.strip() == name
        answers.append(np.load(file))
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], rtol=1e-4)


def test_an_unknown_instruction_set_is_told(run_python):
    result = run_python("from pydfm import _core", check=False, PYDFM_INSTRUCTION_SET="v9")
    assert result.returncode != 0
    assert "PYDFM_INSTRUCTION_SET is 'v9'; this processor can run baseline" in result.stderr


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_no_symbol_of_one_build_is_reachable_from_another():
    package = Path(sys.modules["pydfm._core_baseline"].__file__).parent
    modules = sorted(package.glob("_core_*.so"))
    assert modules
    for module in modules:
        listing = subprocess.run(
            ["nm", "-D", "--defined-only", str(module)], capture_output=True, text=True, check=True
        ).stdout
        exported = [line.split()[-1] for line in listing.splitlines()]
        ours = [name for name in exported if "Eigen" in name or "pydfm" in name]
        assert ours == [], module.name
        assert [n for n in exported if n.startswith("PyInit_")] == [
            f"PyInit_{module.name.split('.')[0]}"
        ]
