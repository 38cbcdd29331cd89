"""What an estimator holds is never stale, and travels: attributes, pickles, copies, clones."""

import copy
import pickle

import numpy as np
import pytest
import torch
from fits import maps_dfm
from reference import falling_rows, named_rows
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.exceptions import NotFittedError

import pydfm
from pydfm.model import fitting
from pydfm.model.fitting import FittedDFM
from pydfm.model.training import TrainingState

ROWS = falling_rows(80, 12, offset=1.0)
ATTRIBUTES = (
    "threshold_",
    "offset_",
    "smallest_alpha_",
    "n_samples_",
    "mean_",
    "explained_variance_",
    "noise_variance_",
)
COPIES = [copy.copy, copy.deepcopy, lambda dfm: pickle.loads(pickle.dumps(dfm))]


def new(**parameters):
    return pydfm.DFM(4, alpha=0.1, **parameters)


def assert_fresh(dfm, want, rows=ROWS):
    """Every attribute and decision is that of a model that was fitted on the rows there are."""
    for name in ATTRIBUTES:
        # The attributes first: none of them may wait for a score.
        if name in ("threshold_", "offset_") and want.calibration_ == "kfold":
            continue  # each fold has its own
        np.testing.assert_allclose(getattr(dfm, name), getattr(want, name), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(dfm.score(rows), want.score(rows), rtol=1e-5)
    np.testing.assert_allclose(dfm.p_value(rows), want.p_value(rows), atol=1e-9)
    assert np.array_equal(dfm.predict(rows), want.predict(rows))


# Never stale


def test_the_class_is_composed():
    assert pydfm.DFM.__bases__ == (OutlierMixin, BaseEstimator)
    assert {cls.__module__.split(".")[0] for cls in pydfm.DFM.__mro__} == {
        "pydfm",
        "sklearn",
        "builtins",
    }


@pytest.mark.parametrize("calibration", ["loo", "kfold"])
def test_attributes_follow_partial_fit(calibration):
    dfm = new(calibration=calibration).fit(ROWS[:40])
    first = dfm.decision_function(ROWS)
    dfm.partial_fit(2 * ROWS[40:])
    want = new(calibration=calibration).fit(np.concatenate([ROWS[:40], 2 * ROWS[40:]]))
    assert (dfm.decision_function(ROWS) != first).all()
    assert_fresh(dfm, want)
    # An object that was read before stays what it was.
    before = dfm.fitted_
    dfm.partial_fit(3 * ROWS)
    assert dfm.fitted_ is not before
    assert before.model.n_samples == 80


def test_attributes_follow_forget():
    dfm = new().fit(ROWS)
    first = dfm.threshold_
    dfm.forget(ROWS[:30])
    assert dfm.threshold_ != first
    assert_fresh(dfm, new().fit(ROWS[30:]))


def test_attributes_follow_a_merge():
    one, other = new().fit(ROWS[:40]), new().fit(2 * ROWS[40:])
    thresholds = one.threshold_, other.threshold_
    want = new().fit(np.concatenate([ROWS[:40], 2 * ROWS[40:]]))
    assert_fresh(one + other, want)
    assert_fresh(other.merge(one), want)
    assert (one.threshold_, other.threshold_) == thresholds


def test_attributes_follow_the_first_partial_fit():
    dfm = new().partial_fit(ROWS[:50])
    assert_fresh(dfm, new().fit(ROWS[:50]))
    assert_fresh(new().partial_fit(ROWS[:3]).partial_fit(ROWS[3:50]), new().fit(ROWS[:50]))


def test_attributes_follow_a_class_that_goes():
    rows, labels = named_rows(120, 12)
    dfm = new().fit(rows, labels=labels)
    assert dfm.threshold_.shape == (3,)
    dfm.forget(classes=["b"])
    want = new().fit(rows[labels != "b"], labels=labels[labels != "b"])
    np.testing.assert_allclose(dfm.threshold_, want.threshold_, rtol=1e-5)
    assert dfm.classes_.tolist() == ["a", "c"]


def test_what_is_set_counts_or_is_told():
    dfm = new().fit(ROWS)
    levels = [dfm.set_params(alpha=alpha).threshold_ for alpha in (0.05, 0.2)]
    assert levels[0] > levels[1]
    assert dfm.set_params(score_type="nll").threshold_ != levels[1]
    dfm.set_params(n_components=2)
    with pytest.warns(UserWarning, match="n_components changed after the fit"):
        dfm.score(ROWS)
    with pytest.raises(ValueError, match="n_components was 4 at the fit and is 2 now"):
        dfm.partial_fit(ROWS[:1])


@pytest.mark.parametrize("parameters", [{}, {"image_score": "sum"}, {"spatial": "patch"}])
def test_thresholds_of_maps_follow_what_is_fitted(parameters, noise):
    """The map threshold read first is that of a fresh fit, and the same after a score."""
    parameters = {**parameters, "n_threads": 2}
    images = noise / np.float32(255)
    darker = 0.9 * images**3

    def check(dfm, images_fitted):
        first = dfm.map_threshold_
        dfm.score(images[:1])
        assert dfm.map_threshold_ == first
        want = maps_dfm(**parameters).fit(images_fitted)
        np.testing.assert_allclose(first, want.map_threshold_, rtol=1e-3)
        np.testing.assert_allclose(dfm.threshold_, want.threshold_, rtol=1e-3)
        np.testing.assert_allclose(dfm.score(images), want.score(images), rtol=1e-3, atol=1e-3)

    dfm = maps_dfm(**parameters).fit(images[:20])
    before = dfm.map_threshold_
    dfm.partial_fit(darker[20:])
    assert dfm.map_threshold_ != before
    check(dfm, np.concatenate([images[:20], darker[20:]]))
    check(maps_dfm(**parameters).partial_fit(images[:20]), images[:20])
    one, other = (maps_dfm(**parameters).fit(part) for part in (images[:20], darker[20:]))
    assert one.map_threshold_ != other.map_threshold_
    check(one + other, np.concatenate([images[:20], darker[20:]]))
    if "spatial" not in parameters:
        dfm.forget(images[:5])
        check(dfm, np.concatenate([images[5:20], darker[20:]]))


@pytest.mark.parametrize("n", [30, 120])
def test_images_are_forgotten_however_many_there_are(noise, n):
    """More images than features: they are recognised by their pixels."""
    images = np.random.default_rng(3).integers(0, 256, (n, 3, 16, 16), dtype=np.uint8)
    options = {"layers": "2", "pool": 4, "calibration": None, "image_score": "sum"}
    dfm = maps_dfm(**options).fit(images)
    assert dfm.n_features_in_ == 8
    dfm.forget(images[:10])
    want = maps_dfm(**options).fit(images[10:])
    assert dfm.n_samples_ == n - 10
    np.testing.assert_allclose(dfm.score(noise), want.score(noise), rtol=1e-3)
    for strange in (images[:1], noise[:1]):
        with pytest.raises(ValueError, match="image 0 of X is none of those the model was fitted"):
            dfm.forget(strange)
    assert dfm.n_samples_ == n - 10


# One fit


@pytest.fixture
def fits(monkeypatch):
    """How often a training state was turned into a model."""
    calls = []
    actual = fitting.freeze

    def freeze(state, **options):
        calls.append(state.n_samples)
        return actual(state, **options)

    monkeypatch.setattr("pydfm.estimator.freeze", freeze)
    return calls


def test_the_model_of_many_batches_is_fitted_once_when_it_is_used(fits):
    dfm = new()
    for part in np.array_split(ROWS, 8):
        dfm.partial_fit(part)
    assert dfm.n_samples_ == 80
    assert (dfm.n_features_in_, dfm.calibration_, dfm.feature_spec_) == (12, "loo", None)
    assert dfm.memory_ > 0
    dfm.training_  # noqa: B018
    assert fits == []
    dfm.score(ROWS)
    dfm.predict(ROWS)
    dfm.threshold_  # noqa: B018
    assert fits == [80]
    new().fit(ROWS).score(ROWS)
    assert fits == [80, 80]


def test_attributes_are_listed_without_computing_them(fits):
    dfm = new().partial_fit(ROWS)
    assert {"map_threshold_", "threshold_", "fit"} <= set(dir(dfm))
    assert fits == []
    assert "score" in dir(pydfm.DFM())


def test_nothing_is_there_before_the_fit():
    dfm = pydfm.DFM()
    names = [
        "fitted_",
        "training_",
        "model_",
        "memory_",
        "n_samples_",
        "threshold_",
        "classes_",
        "map_threshold_",
        "image_score_",
        "calibration_",
        "feature_spec_",
        "mean_",
    ]
    for name in names:
        with pytest.raises(NotFittedError, match=r"not fitted yet\. Call 'fit'"):
            getattr(dfm, name)
    assert not hasattr(dfm, "feature_names_in_")


def test_fitted_objects_have_their_types():
    dfm = new().fit(ROWS)
    assert isinstance(dfm.fitted_, FittedDFM)
    assert isinstance(dfm.training_, TrainingState)
    assert dfm.model_ is dfm.fitted_.model
    assert dfm.with_state(dfm.training_).n_samples_ == 80
    empty = dfm.with_state()
    assert empty.get_params() == dfm.get_params()
    with pytest.raises(NotFittedError):
        empty.score(ROWS)
    with pytest.raises(AttributeError):
        dfm.threshold_ = 3.0


# Copies


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("used", [False, True], ids=["before use", "after use"])
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split", None])
def test_a_copy_goes_on_where_the_model_was(copied, used, calibration):
    dfm = new(calibration=calibration).fit(ROWS[:50]).partial_fit(ROWS[50:])
    if used:
        dfm.score(ROWS)
    other = copied(dfm)
    assert np.array_equal(other.score(ROWS), dfm.score(ROWS))
    if calibration is not None:
        assert np.array_equal(other.decision_function(ROWS), dfm.decision_function(ROWS))
        assert np.array_equal(other.p_value(ROWS), dfm.p_value(ROWS))
    before = dfm.score(ROWS)
    n_samples = dfm.n_samples_
    other.partial_fit(3 * ROWS)
    assert other.n_samples_ > dfm.n_samples_ == n_samples
    assert np.array_equal(dfm.score(ROWS), before)
    again = copied(other)
    assert np.array_equal(again.score(ROWS), other.score(ROWS))


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_images_builds_its_network(copied, noise):
    dfm = maps_dfm().fit(noise[:30])
    other = copied(dfm)
    assert np.array_equal(other.score(noise), dfm.score(noise))
    assert other.map_threshold_ == dfm.map_threshold_
    other.partial_fit(noise[30:])
    assert (dfm.n_samples_, other.n_samples_) == (30, 40)


def test_a_pickle_before_the_fit_and_after_a_failed_one():
    dfm = pickle.loads(pickle.dumps(new()))
    with pytest.raises(NotFittedError):
        dfm.score(ROWS)
    with pytest.raises(ValueError, match="NaN"):
        dfm.fit(np.full((5, 12), np.nan))
    with pytest.raises(NotFittedError):
        pickle.loads(pickle.dumps(dfm)).score(ROWS)


@pytest.mark.parametrize("fit", ["fit", "partial_fit"])
def test_a_clone_has_the_parameters_alone(fit):
    dfm = getattr(new(layers=("layer3",), pool=2), fit)(ROWS)
    other = clone(dfm)
    assert other.get_params() == dfm.get_params()
    assert set(vars(other)) == set(dfm.get_params())
    with pytest.raises(NotFittedError):
        other.score(ROWS)
    # It is not bound to the fit before: other parameters are no change.
    other.set_params(n_components=2).partial_fit(ROWS)
    assert other.n_components_ == 2


def test_loaded_models_score_and_take_no_rows(tmp_path):
    new().fit(ROWS).save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model")
    assert loaded.memory_ == 0
    for use in (
        lambda: loaded.partial_fit(ROWS),
        lambda: loaded.forget(ROWS[:1]),
        lambda: loaded + loaded,
        lambda: loaded.training_,
    ):
        with pytest.raises(ValueError, match="does not hold the training state that rows are"):
            use()
    assert loaded.set_params(n_components=2).fit(ROWS).n_components_ == 2
    pickle.loads(pickle.dumps(loaded)).partial_fit(ROWS)


@pytest.mark.parametrize("copied", [copy.deepcopy, clone])
def test_a_copy_may_have_a_network_that_keeps_tensors(copied, tiny_network, textures):
    tiny_network.seen = tiny_network(torch.zeros(2, 3, 40, 48))
    dfm = pydfm.DFM(3, backbone=tiny_network, image_size=(40, 48), device="cpu").fit(textures)
    other = copied(dfm)
    assert type(other) is pydfm.DFM
    assert other.backbone is not tiny_network
    assert torch.equal(other.backbone.seen, tiny_network.seen)
    if copied is clone:
        other.fit(textures)
    assert np.array_equal(other.score(textures), dfm.score(textures))
