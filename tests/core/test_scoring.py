import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SCORE_TYPES, Reference, assert_scores_close, falling_rows

from pydfm import _core

KINDS = list(SCORE_TYPES)


def random_class(n_features, n_components, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(n_features, n_components)))
    variances = np.sort(rng.uniform(0.1, 2.0, n_components))[::-1].copy()
    mean = spread * rng.normal(size=n_features)
    return Reference(mean, np.ascontiguousarray(basis.T), variances, 0.05)


def scorer(model):
    return _core.Scorer(
        model.mean, model.components, model.variances, noise_variance=model.noise_variance
    )


def near(model, n_rows, size, seed):
    """Rows of the class, with noise of that size around its subspace."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_rows, len(model.variances))) * np.sqrt(model.variances)
    return model.mean + z @ model.components + size * rng.normal(size=(n_rows, len(model.mean)))


@given(
    st.integers(2, 300),
    st.integers(1, 12),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1e-6, 1e-3, 0.1, 3.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_the_nearest_class_is_that_of_the_definition(n_features, n_classes, dtype, size, seed):
    k = min(9, n_features - 1)
    classes = [random_class(n_features, k, seed + c) for c in range(n_classes)]
    rows = np.concatenate([near(model, 5, size, seed) for model in classes]).astype(dtype)
    scores, found = _core.score_nearest(
        rows, [scorer(model) for model in classes], score_types=KINDS, n_threads=2
    )
    for t, kind in enumerate(KINDS):
        each = np.stack([model.scores(rows)[kind] for model in classes])
        assert_scores_close(scores[t], each.min(axis=0))
        # Where two classes are as near as rounding, either may be found.
        chosen = each[found[t], np.arange(len(rows))]
        assert_scores_close(chosen, each.min(axis=0))


def test_one_class_scores_as_without_others():
    model = random_class(70, 8, 1)
    rows = near(model, 200, 0.1, 2).astype(np.float32)
    alone = _core.score(rows, scorer(model), score_types=KINDS, n_threads=2)
    scores, found = _core.score_nearest(rows, [scorer(model)], score_types=KINDS, n_threads=2)
    assert (scores == alone).all()
    assert (found == 0).all()


def test_of_equal_classes_the_first_is_found():
    model = random_class(20, 3, 1)
    rows = near(model, 10, 0.1, 2)
    _, found = _core.score_nearest(rows, [scorer(model)] * 3, score_types=["fre"], n_threads=2)
    assert (found == 0).all()


@pytest.mark.parametrize("n_features", [1, 63, 64, 65, 255, 256, 257, 1000])
def test_bits_do_not_depend_on_threads_batches_or_types(n_features):
    k = max(1, n_features // 3)
    model = random_class(n_features, k, 3)
    rows = falling_rows(500, n_features, 4).astype(np.float32)
    rows[::7] = near(model, len(rows[::7]), 1e-5, 5)  # scored again in float64
    whole = _core.score(rows, scorer(model), score_types=KINDS, n_threads=1)
    for n_threads in (2, 3, 8):
        again = _core.score(rows, scorer(model), score_types=KINDS, n_threads=n_threads)
        assert (again == whole).all()
    split = [
        _core.score(np.ascontiguousarray(part), scorer(model), score_types=KINDS, n_threads=2)
        for part in np.array_split(rows, 17)
    ]
    assert (np.concatenate(split, axis=1) == whole).all()
    for t, kind in enumerate(KINDS):
        alone = _core.score(rows, scorer(model), score_types=[kind], n_threads=2)
        assert (alone[0] == whole[t]).all()


def test_a_scorer_keeps_its_arrays():
    model = random_class(50, 5, 1)
    rows = near(model, 20, 0.1, 2)
    want = model.scores(rows)["fre"]
    kept = scorer(
        Reference(model.mean.copy(), model.components.copy(), model.variances.copy(), 0.05)
    )
    np.full(100_000, np.nan)  # would lie where the copies did
    assert_scores_close(_core.score(rows, kept, score_types=["fre"], n_threads=1)[0], want)


def both_ways(rows, scorers, kinds=KINDS, n_threads=2):
    """Nearest classes, found by going through all and by bounds, which must agree to the bit."""
    scores, found = _core.score_nearest(rows, scorers, score_types=kinds, n_threads=n_threads)
    classes = _core.Classes(scorers, n_threads=n_threads)
    again = _core.score_nearest(rows, classes, score_types=kinds, n_threads=n_threads)
    np.testing.assert_array_equal(again[0], scores)
    np.testing.assert_array_equal(again[1], found)
    return scores, found


@given(st.data())
@settings(max_examples=60)
def test_bounds_change_nothing(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    n_features = draw(st.integers(1, 150))
    spread = draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 30.0, 1e4]))
    models = []
    for _ in range(draw(st.integers(1, 30))):
        if models and draw(st.integers(0, 4)) == 0:  # a class that is there already
            models.append(models[rng.integers(len(models))])
            continue
        k = draw(st.integers(0, min(n_features, 20)))
        models.append(random_class(n_features, k, rng.integers(2**31), spread))
    size = draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 3.0, 1e3]))
    rows = np.concatenate([near(model, 9, size, rng.integers(2**31)) for model in models])
    rows[:: draw(st.integers(2, 40))] = rng.normal(size=n_features)  # of no class
    rows[rng.random(len(rows)) < 0.05, rng.integers(n_features)] = np.nan
    rows = rows.astype(draw(st.sampled_from([np.float32, np.float64])))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4, unique=True))
    scorers = [scorer(model) for model in models]
    scores, found = both_ways(rows, scorers, kinds, n_threads=draw(st.integers(1, 4)))

    each = np.stack([_core.score(rows, s, score_types=kinds, n_threads=1) for s in scorers])
    np.testing.assert_array_equal(scores, each.min(axis=0))
    finite = np.isfinite(rows).all(axis=1)
    assert (found[:, ~finite] == -1).all()
    chosen = np.take_along_axis(each, np.maximum(found, 0)[np.newaxis], axis=0)[0]
    np.testing.assert_array_equal(chosen[:, finite], scores[:, finite])


@given(st.integers(1, 100), st.integers(0, 12), st.integers(1, 40), st.integers(0, 2**31))
def test_bounds_change_nothing_where_classes_share_their_components(n_features, k, n_classes, seed):
    rng = np.random.default_rng(seed)
    model = random_class(n_features, min(k, n_features), seed)
    means = rng.choice([1e-3, 0.3, 3.0]) * rng.normal(size=(n_classes, n_features)) + model.mean
    models = [
        Reference(mean, model.components, model.variances, model.noise_variance) for mean in means
    ]
    rows = np.concatenate([near(m, 5, 0.1, seed) for m in models]).astype(np.float32)
    scores, _ = both_ways(rows, [scorer(m) for m in models])
    each = [_core.score(rows, scorer(m), score_types=KINDS, n_threads=1) for m in models]
    np.testing.assert_array_equal(scores, np.min(each, axis=0))


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_the_nearest_class_does_not_depend_on_threads_or_batches(spread):
    models = [random_class(130, 30, c, spread) for c in range(60)]
    rows = np.concatenate([near(model, 20, 0.2, 7) for model in models]).astype(np.float32)
    scorers = [scorer(model) for model in models]
    scores, found = both_ways(rows, scorers)
    classes = _core.Classes(scorers, n_threads=1)
    for n_threads, n_parts in ((1, 1), (3, 5), (8, 2), (2, 400)):
        parts = [
            _core.score_nearest(part, classes, score_types=KINDS, n_threads=n_threads)
            for part in np.array_split(rows, n_parts)
        ]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts], axis=1), scores)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts], axis=1), found)


def test_of_equal_classes_the_first_is_found_by_bounds_too():
    others = [random_class(20, 3, c, 5.0) for c in range(40)]
    model = random_class(20, 3, 99, 5.0)
    rows = near(model, 10, 0.1, 2)
    scorers = [scorer(m) for m in (*others, model, model, *others)]
    _, found = both_ways(rows, scorers, ["fre", "ppca"])
    assert (found == len(others)).all()


@pytest.mark.parametrize("scale", [1e-18, 1e-14, 1e14, 1e18])
def test_bounds_hold_at_the_ends_of_float(scale):
    models = [random_class(60, 10, c, 3.0) for c in range(12)]
    rows = np.concatenate([near(model, 5, 0.1, 2) for model in models]) * scale
    for model in models:
        model.mean *= scale
        model.variances *= scale**2
        model.noise_variance *= scale**2
    _, found = both_ways(rows, [scorer(model) for model in models])
    assert (found[0] == np.repeat(np.arange(12), 5)).all()


def test_classes_keep_their_scorers():
    models = [random_class(50, 5, c, 3.0) for c in range(3)]
    scorers = [scorer(model) for model in models]
    rows = near(models[2], 20, 0.1, 2)
    classes = _core.Classes(scorers, n_threads=1)
    scorers.clear()
    np.full(100_000, np.nan)
    _, found = _core.score_nearest(rows, classes, score_types=["fre"], n_threads=1)
    assert (found == 2).all()


def test_bad_classes_are_told():
    with pytest.raises(ValueError, match="at least one class"):
        _core.Classes([], n_threads=1)
    different = [scorer(random_class(n, 2, 1)) for n in (5, 6)]
    with pytest.raises(ValueError, match="same number of features"):
        _core.Classes(different, n_threads=1)
    classes = _core.Classes(different[:1], n_threads=1)
    with pytest.raises(ValueError, match="as many columns"):
        _core.score_nearest(np.zeros((3, 6)), classes, score_types=["fre"], n_threads=1)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(classes)


def test_bad_arguments_are_told():
    model = random_class(50, 5, 1)
    rows = near(model, 20, 0.1, 2)
    with pytest.raises(ValueError, match="as many columns"):
        _core.score(rows[:, :-1].copy(), scorer(model), score_types=["fre"], n_threads=1)
    with pytest.raises(ValueError, match="as many columns"):
        _core.score_nearest(rows[:, :-1].copy(), [scorer(model)], score_types=["fre"], n_threads=1)
    with pytest.raises(ValueError, match="variances must be positive"):
        _core.Scorer(model.mean, model.components, -model.variances, noise_variance=1.0)
    with pytest.raises(ValueError, match="length 50"):
        _core.Scorer(model.mean[1:], model.components, model.variances, noise_variance=1.0)
    with pytest.raises(ValueError, match="'fre', 'mahalanobis'"):
        _core.score(rows, scorer(model), score_types=["distance"], n_threads=1)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(scorer(model))


def worst_rows(model, n_features):
    """Rows less their mean whose rounding errors may agree: alike, of one feature, with signs."""
    rng = np.random.default_rng(1)
    odd = 1e-3 * rng.normal(size=n_features)
    odd[n_features // 3] = 1.1
    signs = np.sign(model.components[0])
    steps = np.where(np.arange(n_features) % 2 == 0, 1.1, 0.7)
    return np.stack([np.full(n_features, 1.1), np.full(n_features, 1 / 3), odd, signs / 3, steps])


@pytest.mark.parametrize("n_features", [512, 4096, 16384, 65536])
@pytest.mark.parametrize("n_components", [1, 24])
def test_errors_are_within_what_is_proven(n_features, n_components):
    model = random_class(n_features, n_components, n_features, spread=0.0)
    d = worst_rows(model, n_features).astype(np.float32).astype(np.float64)
    z = d @ model.components.T
    total, kept = np.square(d).sum(axis=1), np.square(z).sum(axis=1)
    residual = np.square(d - z @ model.components).sum(axis=1)
    distance = (np.square(z) / model.variances).sum(axis=1)
    unit = 2.0**-24
    g = 70 * unit / (1 - 70 * unit) * np.sqrt(n_components)
    bound = 2 * g * np.sqrt(total * kept) + g**2 * total
    of_squares = 5 * unit / (1 - 5 * unit) * total
    rows = d.astype(np.float32)
    for kinds in (["fre"], ["mahalanobis"]):
        got = _core.score(rows, scorer(model), score_types=kinds, n_threads=1)[0]
        if kinds == ["fre"]:
            want, most = residual, bound + of_squares
        else:
            want, most = distance, bound / model.variances.min()
        # The score itself is rounded to float32.
        assert (np.abs(got - want) <= most + unit * want).all()
