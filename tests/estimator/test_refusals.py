"""What would leave an estimator half changed is refused, and changes nothing."""

import threading

import numpy as np
import pandas as pd
import pytest
from reference import falling_rows

import pydfm
from pydfm import estimator as estimator_module
from pydfm.features.extractor import Extractor

ROWS = falling_rows(60, 8)
NAMES = list("abcdefgh")


def new(**options):
    return pydfm.DFM(4, **{"alpha": 0.1, "n_threads": 1, **options})


def test_rows_that_are_not_finite_are_not_added():
    dfm = new().fit(ROWS)
    want, bad = dfm.score(ROWS), ROWS[:2].copy()
    bad[1, 3] = np.nan
    with pytest.raises(ValueError, match="X contains NaN in row 1, column 3"):
        dfm.partial_fit(bad)
    assert dfm.n_samples_ == 60
    assert np.array_equal(dfm.score(ROWS), want)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_whose_sum_overflows_are_finite_all_the_same(dtype):
    rows = (ROWS / np.abs(ROWS).max() + 1) * (
        np.finfo(dtype).max / 8 if dtype == np.float16 else 1e4
    )
    dfm = new().partial_fit(rows.astype(dtype))
    assert dfm.n_samples_ == 60
    bad = rows.astype(dtype)
    bad[:2, 0] = np.inf, -np.inf
    with pytest.raises(ValueError, match="X contains infinity in row 0, column 0"):
        dfm.partial_fit(bad)


def test_two_rows_at_least_remain():
    dfm = new().fit(ROWS)
    with pytest.raises(ValueError, match="would leave 1 of 60 rows or images"):
        dfm.forget(ROWS[:59])
    assert dfm.n_samples_ == 60
    labelled = new().fit(ROWS, labels=np.repeat(["a", "b"], 30))
    with pytest.raises(ValueError, match="would leave 0 of 60 rows or images"):
        labelled.forget(classes=["a", "b"])
    assert labelled.n_samples_ == 60


class WithMore(pydfm.DFM):
    """A subclass that has a parameter of its own, and hides those of `DFM`."""

    def __init__(self, extra=1):
        super().__init__(4, alpha=0.1, n_threads=1)
        self.extra = extra


def test_a_subclass_may_have_parameters_of_its_own(tmp_path):
    dfm = WithMore(3).fit(ROWS)
    merged = dfm.merge(dfm)
    assert (type(merged), merged.extra, merged.n_samples_) == (WithMore, 3, 120)
    assert merged.partial_fit(ROWS).n_samples_ == 180
    dfm.save(tmp_path / "model.pydfm")
    assert np.array_equal(pydfm.load(tmp_path / "model.pydfm").score(ROWS), dfm.score(ROWS))


def test_labels_beside_classes_are_refused():
    dfm = new().fit(ROWS, labels=np.arange(60) % 3)
    with pytest.raises(ValueError, match="labels are given, and classes too"):
        dfm.forget(classes=[0], labels=[1])


def test_rows_of_other_names_are_neither_merged_nor_forgotten():
    frame = pd.DataFrame(ROWS, columns=NAMES)
    turned = pd.DataFrame(ROWS, columns=NAMES[::-1])
    dfm = new().fit(frame)
    with pytest.raises(ValueError, match="the names of the features differ in the two models"):
        dfm.merge(new().fit(turned))
    with pytest.raises(ValueError, match="feature names should match"):
        dfm.forget(turned[:3])
    assert dfm.merge(new().fit(frame)).n_samples_ == 120


@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
def test_a_saved_model_has_the_parameters_of_its_fit(tmp_path):
    dfm = new().fit(ROWS).set_params(n_components=2, score_type="nll")
    dfm.save(tmp_path / "model.pydfm")
    loaded = pydfm.load(tmp_path / "model.pydfm")
    assert (loaded.n_components, loaded.n_components_, loaded.score_type) == (4, 4, "nll")
    merged = dfm.merge(new().fit(ROWS))
    assert (merged.n_components, merged.n_components_) == (4, 4)
    with pytest.raises(ValueError, match="alpha is 2"):
        dfm.set_params(alpha=2).save(tmp_path / "other.pydfm")
    assert not (tmp_path / "other.pydfm").exists()


def test_a_state_comes_with_the_parameters_it_is_given_to():
    template = new().fit(ROWS).set_params(n_components=3)
    dfm = template.with_state(pydfm.DFM(3, alpha=0.1).fit(ROWS).training_)
    assert dfm.partial_fit(ROWS).n_samples_ == 120


@pytest.mark.parametrize("change", ["merge", "forget", "partial_fit"])
def test_a_model_fitted_to_outliers_is_not_changed(change, tiny_network, textures):
    options = {"backbone": tiny_network, "layers": ("stem", "block"), "image_size": (40, 48)}
    dfm = new(combine="logistic", device="cpu", **options)
    dfm.fit(textures, outliers=255 - textures[:4])
    given = dfm if change == "merge" else textures[:1]
    with pytest.raises(ValueError, match="combine is 'logistic', which needs known outliers"):
        getattr(dfm, change)(given)
    assert dfm.score(textures[:1]).shape == (1,)


@pytest.mark.filterwarnings("ignore:X holds rows that are not independent")  # copies
def test_rows_that_come_while_a_model_is_fitted_are_not_lost(monkeypatch):
    dfm = new().partial_fit(ROWS)
    begun, added = threading.Event(), threading.Event()
    freeze = estimator_module.freeze

    def slow(*arguments, **options):
        begun.set()
        assert added.wait(60)
        return freeze(*arguments, **options)

    monkeypatch.setattr(estimator_module, "freeze", slow)
    reader = threading.Thread(target=dfm.score, args=(ROWS[:1],))
    reader.start()
    assert begun.wait(60)
    dfm.partial_fit(ROWS[:10])
    added.set()
    reader.join()
    assert dfm.n_samples_ == 70
    monkeypatch.undo()
    assert np.array_equal(
        dfm.score(ROWS), new().partial_fit(ROWS).partial_fit(ROWS[:10]).score(ROWS)
    )


def test_a_network_is_not_given_to_a_model_of_features(tmp_path):
    new().fit(ROWS).save(tmp_path / "model.pydfm")
    with pytest.raises(ValueError, match="was fitted on features and has no network"):
        pydfm.load(tmp_path / "model.pydfm", weights="some.pth")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_has_its_number_in_all_of_x(value):
    hole, labels = ROWS.astype(np.float64), np.arange(60) % 3
    hole[41, 3] = value
    dfm = pydfm.DFM(3).fit(ROWS, labels=labels)
    for call in (
        lambda: pydfm.DFM(3).fit(hole),
        lambda: pydfm.DFM(3).fit(hole, labels=labels),
        lambda: pydfm.DFM(3).fit(iter(np.split(hole, 3))),
        lambda: pydfm.DFM(3, calibration="split").fit(iter(np.split(hole, 3)), labels=labels),
        lambda: pydfm.DFM(3).partial_fit(iter(np.split(hole, 3))),
        lambda: dfm.score(iter(np.split(hole, 3))),
        lambda: dfm.score(hole, labels=labels),
        lambda: dfm.predict(iter(np.split(hole, 3)), labels=labels, alpha=0.3),
    ):
        with pytest.raises(ValueError, match=r"^X contains (NaN|infinity) in row 41, column 3;"):
            call()


@pytest.mark.parametrize(
    ("X", "error", "says"),
    [
        (np.array("text"), ValueError, "X holds text, of the shape"),
        (np.ma.masked_array("0.8"), ValueError, "X holds text, of the shape"),
        (ROWS.astype(str), ValueError, "X holds text, of the shape"),
        ({"x": ROWS}, TypeError, "X is dict"),
        ({1, 2}, TypeError, "X yields single rows or numbers"),
        (b"bytes", TypeError, "X is bytes"),
        (
            ["gone.png", "lost.png"],
            ValueError,
            "cannot read image 'gone.png': there is no such file",
        ),
        (
            pd.Series(["gone.png"]),
            ValueError,
            "cannot read image 'gone.png': there is no such file",
        ),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_is_no_image_is_told_before_anything_is_downloaded(
    monkeypatch, tmp_path, X, error, says, on_error
):
    def download(*_arguments, **_options):
        raise AssertionError("weights would be downloaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Extractor, "build", download)
    with pytest.raises(error, match=f"^{says}"):
        pydfm.DFM(on_error=on_error).fit(X)
