"""partial_fit, merge and forget of `DFM`: the model is that of one fit to the rows there are."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import falling_rows

import pydfm
from pydfm import _core
from pydfm.model import settings as model_settings

KINDS = ("fre", "mahalanobis", "nll", "ppca")


def labelled_rows(n, n_features, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, n_classes, n)
    return falling_rows(n, n_features, seed) * 3 + rng.normal(size=(n_classes, n_features))[
        classes
    ], classes


def assert_same_model(got, want, rows, rtol=1e-6):
    """Scores within `rtol`, but for what float32 and the ends of a cancellation allow."""
    assert got.n_samples_ == want.n_samples_
    kinds = KINDS
    if want.model_.classes is not None:
        assert got.classes_.tolist() == want.classes_.tolist()
        kinds = (*KINDS, "relative_mahalanobis") if len(want.classes_) > 1 else KINDS
    for kind, a, b in zip(
        kinds, got.score(rows, score_type=kinds), want.score(rows, score_type=kinds), strict=True
    ):
        scale = np.abs(b).max() if kind in ("nll", "ppca", "relative_mahalanobis") else np.abs(b)
        assert (np.abs(a.astype(float) - b) <= rtol * scale + 1e-20).all(), kind


@st.composite
def streams(draw):
    n = draw(st.integers(60, 150))
    n_features = draw(st.sampled_from([4, 15, 60, 150]))
    covariance = draw(st.sampled_from(["class", "tied", "global", None]))
    cuts = sorted(draw(st.lists(st.integers(1, n - 1), max_size=6, unique=True)))
    return n, n_features, covariance, cuts, draw(st.integers(0, 1000))


def parts_of(n, cuts):
    return np.split(np.arange(n), cuts)


def new(covariance, n_components=2, **options):
    return pydfm.DFM(n_components, covariance=covariance or "class", n_threads=2, **options)


def pick(classes, part, covariance):
    return None if covariance is None else classes[part]


@pytest.mark.parametrize("options", [{}, {"calibration": "split"}, {"covariance": "tied"}])
def test_an_unknown_row_is_told_by_its_number(options):
    rows, classes = labelled_rows(90, 200, 2)
    dfm = pydfm.DFM(3, **options).fit(rows, labels=classes)
    strange = rows[:40].copy()
    strange[33] += 100
    with pytest.raises(ValueError, match="row 33 of X is none of those the model was fitted on"):
        dfm.forget(strange, labels=classes[:40])


@given(streams())
@settings(max_examples=80)
def test_batches_give_the_model_of_one_fit(problem):
    n, n_features, covariance, cuts, seed = problem
    rows, classes = labelled_rows(n, n_features, seed=seed)
    want = new(covariance).fit(rows, labels=pick(classes, slice(None), covariance))
    got = new(covariance)
    for part in parts_of(n, cuts):
        got.partial_fit(rows[part], labels=pick(classes, part, covariance))
    assert_same_model(got, want, rows)


@given(streams())
@settings(max_examples=80)
def test_merged_models_are_the_model_of_one_fit(problem):
    n, n_features, covariance, cuts, seed = problem
    rows, classes = labelled_rows(n, n_features, seed=seed)
    want = new(covariance).fit(rows, labels=pick(classes, slice(None), covariance))
    models = [
        new(covariance).partial_fit(rows[part], labels=pick(classes, part, covariance))
        for part in parts_of(n, cuts)
    ]
    assert_same_model(models[0].merge(*models[1:]), want, rows)
    total = models[-1]
    for model in models[-2::-1]:
        total = total + model
    assert_same_model(total, want, rows)
    assert [model.n_samples_ for model in models] == [len(part) for part in parts_of(n, cuts)]


@given(streams())
@settings(max_examples=80)
def test_forgotten_rows_leave_the_model_of_the_others(problem):
    n, n_features, covariance, cuts, seed = problem
    rows, classes = labelled_rows(n, n_features, seed=seed)
    gone, stay = np.split(np.random.default_rng(seed).permutation(n), [n // 4])
    got = new(covariance)
    for part in parts_of(n, cuts):
        got.partial_fit(rows[part], labels=pick(classes, part, covariance))
    got.forget(rows[gone], labels=pick(classes, gone, covariance))
    want = new(covariance).fit(rows[np.sort(stay)], labels=pick(classes, np.sort(stay), covariance))
    assert_same_model(got, want, rows)


def test_one_row_at_a_time_and_new_classes_at_any_time():
    rows, classes = labelled_rows(90, 12, 4)
    order = np.argsort(classes, kind="stable")
    got = pydfm.DFM(3)
    for i in order:
        got.partial_fit(rows[[i]], labels=[f"class {classes[i]}"])
        if i % 10 == 0 and got.n_samples_ in (20, 40):
            got.score(rows[:3])
    want = pydfm.DFM(3).fit(rows[order], labels=[f"class {c}" for c in classes[order]])
    assert_same_model(got, want, rows)
    assert got.classes_.tolist() == [f"class {c}" for c in range(4)]


@pytest.mark.parametrize("covariance", ["class", "tied"])
@pytest.mark.parametrize("n_features", [10, 200])
def test_a_fit_goes_on_and_does_not_see_what_becomes_of_its_rows(covariance, n_features):
    rows, classes = labelled_rows(100, n_features)
    given = rows[:60].copy()
    dfm = pydfm.DFM(3, covariance=covariance).fit(given, labels=classes[:60])
    given[:] = 1e9
    more = rows[60:].copy()
    dfm.partial_fit(more, labels=classes[60:])
    more[:] = 1e9
    assert_same_model(dfm, pydfm.DFM(3, covariance=covariance).fit(rows, labels=classes), rows)


def test_classes_are_forgotten():
    rows, classes = labelled_rows(100, 20)
    dfm = pydfm.DFM(3).fit(rows, labels=classes).forget(classes=[1])
    assert_same_model(dfm, pydfm.DFM(3).fit(rows[classes != 1], labels=classes[classes != 1]), rows)
    assert dfm.classes_.tolist() == [0, 2]
    dfm.partial_fit(rows[classes == 1], labels=classes[classes == 1])
    assert_same_model(dfm, pydfm.DFM(3).fit(rows, labels=classes), rows)
    with pytest.raises(ValueError, match="classes has 9, which is none of the classes"):
        dfm.forget(classes=[9])
    with pytest.raises(ValueError, match="forget its rows"):
        pydfm.DFM(3, covariance="tied").fit(rows, labels=classes).forget(classes=[1])


@pytest.mark.parametrize("n_features", [8, 300])
@pytest.mark.parametrize("covariance", ["class", "tied"])
def test_rows_that_were_not_fitted_cannot_be_forgotten(n_features, covariance):
    rows, classes = labelled_rows(60, n_features)
    dfm = pydfm.DFM(2, covariance=covariance).fit(rows, labels=classes)
    before = dfm.score(rows)
    for strange in (rows[:1] + 50.0, np.repeat(rows[:1], 40, axis=0)):
        with pytest.raises(ValueError, match=r"not fitted on|none of those|more rows|rows, more"):
            dfm.forget(strange, labels=np.repeat(classes[:1], len(strange)))
    assert dfm.n_samples_ == 60
    assert np.array_equal(dfm.score(rows), before)


@pytest.mark.parametrize("shape", [(2000, 10), (50, 80)])
def test_rows_are_forgotten_in_blocks(shape, monkeypatch):
    rows = falling_rows(*shape).astype(np.float32)
    monkeypatch.setattr("pydfm.stats.accumulator._REMOVED_ROWS", 7)
    dfm = pydfm.DFM(3).fit(rows).forget(rows[: len(rows) // 2])
    assert_same_model(dfm, pydfm.DFM(3).fit(rows[len(rows) // 2 :]), rows)
    before = dfm.score(rows)
    strange = rows[len(rows) // 2 : -5].copy()
    strange[-1] = 1e3
    with pytest.raises(ValueError, match=r"not fitted on|row \d+ of X is none of those"):
        dfm.forget(strange)
    strange[-1] = np.nan
    with pytest.raises(ValueError, match=f"NaN in row {len(strange) - 1}"):
        dfm.forget(strange)
    assert np.array_equal(dfm.score(rows), before)


def test_digits_that_are_lost_are_told():
    rows = falling_rows(300, 10)
    rows[:20] *= 1e7
    dfm = pydfm.DFM(2).fit(rows)
    with pytest.raises(ValueError, match="too small beside those of X to be exact; fit again"):
        dfm.forget(rows[:20])


def test_any_order_and_grouping_of_merges_is_the_same():
    parts = [falling_rows(200, 30, seed).astype(np.float32) for seed in range(4)]
    a, b, c, d = (pydfm.DFM(5).fit(part) for part in parts)
    want = pydfm.DFM(5).fit(np.concatenate(parts))
    for merged in ((a + b) + (c + d), a + (b + (c + d)), d.merge(b, a, c), b + a + d + c):
        assert_same_model(merged, want, parts[0])
    one, other = (a + b) + (c + d), a.merge(b) + c.merge(d)
    assert np.array_equal(one.score(parts[0]), other.score(parts[0]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_components": 4}, "n_components is 3 in one model and 4 in the other"),
        ({"covariance": "tied"}, "covariance is 'class' in one model and 'tied'"),
        ({"regularization": "shrinkage"}, "regularization is None in one"),
    ],
)
def test_models_of_other_settings_are_not_merged(options, says):
    rows = falling_rows(40, 6)
    with pytest.raises(ValueError, match=says):
        pydfm.DFM(3).fit(rows).merge(pydfm.DFM(**{"n_components": 3, **options}).fit(rows))


def test_models_of_other_features_are_not_merged(tiny_network, textures, tmp_path):
    rows = falling_rows(40, 6)
    dfm = pydfm.DFM(3).fit(rows)
    with pytest.raises(ValueError, match="one model has 6 features and the other 5"):
        dfm.merge(pydfm.DFM(3).fit(rows[:, :5]))
    options = {"backbone": tiny_network, "layers": "stem", "image_size": (40, 48), "device": "cpu"}
    images = pydfm.DFM(3, **options).fit(textures)
    with pytest.raises(ValueError, match="the features of the two models differ, in their pool"):
        images.merge(pydfm.DFM(3, pool=2, **options).fit(textures))
    with pytest.raises(ValueError, match="features of the two models differ, in their features"):
        images.merge(dfm)
    other = pydfm.DFM(3, **{**options, "image_size": (32, 32)}).fit(textures)
    with pytest.raises(ValueError, match="the features of the two models differ, in their resize"):
        images.merge(other)
    with pytest.raises(ValueError, match="one model was fitted with labels and the other without"):
        dfm.merge(pydfm.DFM(3).fit(rows, labels=np.arange(40) % 2))
    with pytest.raises(TypeError, match="a DFM can be merged with another, not with int"):
        dfm.merge(3)
    dfm.save(tmp_path / "model")
    for grow in (lambda m: m.partial_fit(rows), lambda m: m.merge(dfm), lambda m: m.forget(rows)):
        with pytest.raises(
            ValueError, match="loaded from a file, which does not hold the training"
        ):
            grow(pydfm.load(tmp_path / "model"))


def test_images_are_added_merged_and_forgotten(tiny_network, textures):
    options = {
        "layers": ("stem", "block"),
        "image_size": (40, 48),
        "device": "cpu",
        "batch_size": 4,
    }
    new = lambda: pydfm.DFM(2, backbone=tiny_network, **options)  # noqa: E731
    want = new().fit(textures).score(textures)
    grown = new().partial_fit(textures[:4]).partial_fit(textures[4:])
    np.testing.assert_allclose(grown.score(textures), want, rtol=1e-3, atol=1e-3)
    merged = new().fit(textures[:4]) + new().fit(textures[4:])
    np.testing.assert_allclose(merged.score(textures), want, rtol=1e-3, atol=1e-3)
    fewer = new().fit(textures).forget(textures[8:])
    # The number is that among all images, not in their batch, and not after those held out.
    strange = np.concatenate([textures[:9], 255 - textures[:1]])
    with pytest.raises(ValueError, match="image 9 of X is none of those the model was fitted on"):
        new().set_params(batch_size=4).fit(textures).forget(strange)
    with pytest.raises(ValueError, match="image 9 of X is none of those the model was fitted on"):
        new().set_params(calibration="split").fit(textures).forget(strange)
    np.testing.assert_allclose(
        fewer.score(textures), new().fit(textures[:8]).score(textures), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(ValueError, match="the model was fitted on images, and X holds the other"):
        grown.partial_fit(np.zeros((3, grown.n_features_in_)))


def test_an_error_or_an_interruption_leaves_the_model_as_it_was():
    rows, classes = labelled_rows(60, 10)

    def batches(error):
        yield rows[:20], classes[:20]
        raise error

    dfm = pydfm.DFM(2).fit(rows, labels=classes)
    before = dfm.score(rows)
    for error in (RuntimeError("broken"), KeyboardInterrupt()):
        for grow in (dfm.partial_fit, dfm.fit):
            with pytest.raises(type(error)):
                grow(batches(error), labels="loader")
            assert dfm.n_samples_ == 60
            assert np.array_equal(dfm.score(rows), before)
    with pytest.raises(ValueError, match="with labels, and none are given now"):
        dfm.partial_fit(rows)
    with pytest.raises(ValueError, match="X has 9 features, but DFM is expecting 10"):
        dfm.partial_fit(rows[:, :9], labels=classes)
    assert np.array_equal(dfm.score(rows), before)


@pytest.mark.parametrize("covariance", ["class", "tied"])
@pytest.mark.parametrize("function", ["moments", "eigh"])
def test_an_interruption_of_the_first_score_loses_no_row(function, covariance, monkeypatch):
    rows, classes = labelled_rows(60, 10)
    dfm = pydfm.DFM(2, covariance=covariance).fit(rows[:50], labels=classes[:50])
    dfm.partial_fit(rows[50:], labels=classes[50:])

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_core, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            dfm.score(rows)
    again = pydfm.DFM(2, covariance=covariance).fit(rows[:50], labels=classes[:50])
    again.partial_fit(rows[50:], labels=classes[50:])
    assert np.array_equal(dfm.score(rows), again.score(rows))
    assert np.array_equal(dfm.p_value(rows), again.p_value(rows))


def test_memory_is_bounded_by_rows_or_moments():
    dfm = pydfm.DFM(3)
    for _ in range(40):
        dfm.partial_fit(np.random.default_rng(0).normal(size=(500, 50)).astype(np.float32))
    # Scatter, rows kept, and the sample that is scored without itself, half as much again as it is.
    assert dfm.memory_ <= 8 * 50 * 51 + 4 * 51 * 50 + 6 * 50 * model_settings._SAMPLE
    assert pickle.loads(pickle.dumps(dfm)).memory_ == dfm.memory_


# A limit of memory


@pytest.mark.filterwarnings("ignore:.*a sketch replaces it")
@pytest.mark.parametrize("covariance", ["class", "tied"])
def test_a_sketch_keeps_within_its_bound(covariance):
    rows, classes = labelled_rows(3000, 200, 2)
    y = classes if covariance == "tied" else None
    # Two matrices of 200 x 200 are 640 kB: which do not fit.
    exact = pydfm.DFM(5, covariance=covariance, calibration=None).fit(rows, labels=y)
    dfm = pydfm.DFM(5, covariance=covariance, calibration=None, max_memory=400_000)
    for part in np.array_split(np.arange(3000), 10):
        dfm.partial_fit(rows[part], labels=None if y is None else y[part])
    assert dfm.memory_ <= 400_000
    (subspace, *_), (want, *_) = (m.model_.layers[0].density.subspaces for m in (dfm, exact))
    assert 0 < subspace.variance_error < want.explained_variance[0]
    lost = want.explained_variance - subspace.explained_variance
    assert (lost >= -1e-9).all()
    assert (lost <= subspace.variance_error * (1 + 1e-9)).all()
    np.testing.assert_allclose(subspace.mean, want.mean, atol=1e-9)
    np.testing.assert_allclose(subspace.total_variance, want.total_variance, rtol=1e-9)
    np.testing.assert_allclose(dfm.score(rows), exact.score(rows), rtol=0.2)


def test_a_limit_that_moments_fit_into_changes_nothing():
    rows = falling_rows(500, 40)
    got = pydfm.DFM(5, max_memory="1MB").fit(rows)
    assert got.subspace_.variance_error == 0
    assert np.array_equal(got.score(rows), pydfm.DFM(5).fit(rows).score(rows))


@pytest.mark.filterwarnings("ignore:.*a sketch replaces it")
def test_sketches_merge_and_say_what_they_cannot():
    rows = falling_rows(2000, 300)
    options = {"max_memory": "300kB", "calibration": None}
    a, b = (pydfm.DFM(5, **options).fit(part) for part in np.array_split(rows, 2))
    merged = a + b
    assert merged.subspace_.variance_error > 0
    lost = pydfm.DFM(5).fit(rows).explained_variance_ - merged.explained_variance_
    assert (lost >= -1e-9).all()
    assert (lost <= merged.subspace_.variance_error).all()
    with pytest.raises(ValueError, match="rows cannot be removed from a sketch"):
        merged.forget(rows[:3])
    with pytest.warns(
        UserWarning, match=r"n_components is 0.999, but the sketch .* hold 0\.[0-9]+"
    ):
        pydfm.DFM(0.999, **options).fit(rows)
    with pytest.raises(ValueError, match=r"max_memory leaves 1e\+05 bytes for the statistics"):
        pydfm.DFM(5, max_memory=100_000, calibration=None).fit(rows, labels=np.arange(2000) % 20)


@pytest.mark.parametrize("value", ["2 bananas", "", 0, -5, True, [3]])
def test_limits_that_are_none_are_told(value):
    with pytest.raises(
        ValueError, match=r"max_memory is .*; it must be a number of bytes, or a text"
    ):
        pydfm.DFM(max_memory=value).fit(falling_rows(9, 3))


def two_blobs(n, dtype=np.float32):
    rows = falling_rows(n, 20, decay=2.0)
    rows[: n // 2, :2] += 4.0
    return rows[np.random.default_rng(0).permutation(n)].astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("calibration", ["kfold", None])
@pytest.mark.parametrize("labelled", [False, True])
def test_mixtures_are_fitted_on_what_rows_the_limit_has_room_for(
    dtype, calibration, labelled, tmp_path
):
    rows = two_blobs(6000, dtype)
    labels = np.arange(6000) % 2 if labelled else None
    options = {"score_type": "nll", "density": "gmm", "calibration": calibration}
    dfm = pydfm.DFM(4, max_memory="200kB", **options)
    for part in np.array_split(np.arange(6000), 5):
        dfm.partial_fit(rows[part], labels=None if labels is None else labels[part])
        assert dfm.memory_ <= 200_000
    with pytest.warns(UserWarning, match=r"max_memory leaves room for \d+ of 6000 rows") as told:
        mixtures = dfm.model_.layers[0].density.mixtures
    n_rows = sum(mixture.n_samples for mixture in mixtures)
    assert 0 < n_rows < 2000
    assert f"room for {n_rows} of 6000 rows" in str(told[0].message)
    assert f"mixtures on {n_rows} of 6000 rows" in dfm.model_.summary()
    # Of all rows: both classes and both blobs, which lie along the first axis, have their shares.
    for mixture in mixtures:
        assert mixture.n_samples == pytest.approx(n_rows / len(mixtures), rel=0.3)
        positive = np.array([gaussian.mean[0] > 0 for gaussian in mixture.gaussians])
        assert mixture.weights[positive].sum() == pytest.approx(0.5, abs=0.15)
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model").model_
    assert [m.n_samples for m in loaded.layers[0].density.mixtures] == [
        m.n_samples for m in mixtures
    ]


def test_a_limit_that_all_rows_fit_into_changes_no_mixture():
    rows = two_blobs(600)
    options = {"score_type": "nll", "density": "gmm", "calibration": None}
    got, want = (pydfm.DFM(4, max_memory=most, **options).fit(rows) for most in ("1MB", None))
    assert np.array_equal(got.score(rows), want.score(rows))
    assert got.model_.layers[0].density.mixtures[0].n_samples == 600
    assert "mixtures" not in got.model_.summary()


def test_a_limit_too_small_for_a_mixture_is_told():
    rare = (np.arange(6000) >= 5994).astype(int)
    dfm = pydfm.DFM(2, "nll", density="gmm", max_memory="60kB", calibration=None)
    with pytest.raises(ValueError, match=r"too few for a mixture; .* larger max_memory more rows"):
        dfm.fit(two_blobs(6000), labels=rare)


def test_rows_of_mixtures_are_forgotten():
    rows = two_blobs(300)
    options = {"score_type": "nll", "density": "gmm", "calibration": None}
    got = pydfm.DFM(4, **options).fit(rows).forget(rows[200:])
    assert got.model_.layers[0].density.mixtures[0].n_samples == 200
    np.testing.assert_allclose(
        got.score(rows), pydfm.DFM(4, **options).fit(rows[:200]).score(rows), rtol=1e-3
    )
    with pytest.raises(ValueError, match="row 1 of X is none of those the model was fitted on"):
        got.forget(rows[[0, 250]])
