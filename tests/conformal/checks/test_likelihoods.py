"""Whether ppca's false-alarm rate is told where its noise variance cannot hold it."""

import warnings

import numpy as np
import pytest
from fits import trained
from reference import falling_rows

import pydfm
from pydfm.conformal.checks.likelihoods import unsteady_likelihood
from pydfm.features.grid import Grid
from pydfm.model.fitting import freeze


def told(n_rows, n_features, **parameters):
    """Return what is warned of, and the false alarms on 2,000 new rows at a level of 10 %."""
    rows = falling_rows(n_rows + 2000, n_features, decay=0.5).astype(np.float32)
    dfm = pydfm.DFM(score_type="ppca", alpha=0.1, **parameters).fit(rows[:n_rows])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = (dfm.predict(rows[n_rows:]) < 0).mean()
    return [str(warning.message) for warning in caught], found


@pytest.mark.parametrize(
    ("shape", "n_components"), [((100, 2000), 0.9), ((30, 64), 27), ((40, 512), 37)]
)
def test_the_rate_is_told_where_few_rows_make_the_noise_variance(shape, n_components):
    (message,), found = told(*shape, n_components=n_components)
    assert "and the fitted variances change so much" in message
    expected = float(message.split(" that about ")[1].split(" %")[0]) / 100
    assert not 0.05 <= found <= 0.2
    assert expected == pytest.approx(found, abs=0.08)


@pytest.mark.parametrize("shape", [(200, 30), (200, 200)])
def test_nothing_is_told_where_the_rate_holds(shape):
    messages, found = told(*shape, n_components=0.9)
    assert messages == []
    assert 0.05 <= found <= 0.2


@pytest.mark.parametrize("calibration", ["kfold", "split"])
def test_models_that_score_new_rows_as_held_out_ones_are_not_told_of(calibration):
    messages, _ = told(100, 2000, n_components=0.9, calibration=calibration)
    assert messages == []


def test_the_layer_is_named():
    rows = falling_rows(100, 4000, decay=0.5).astype(np.float32)
    layers = (("one", Grid(2000, 1, 1)), ("two", Grid(2000, 1, 1)))
    state = trained(rows, layers=layers, image_score="sum", n_components=0.9)
    fitted = freeze(state, n_threads=2)
    (message,) = unsteady_likelihood(fitted, "ppca", 0.1)
    assert "fitted variances of the layer 'one' change so much" in message
    assert unsteady_likelihood(fitted, "fre", 0.1) == []
