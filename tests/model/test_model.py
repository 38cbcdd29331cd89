from dataclasses import replace

import numpy as np
import pytest
from fits import GRIDS, layers_of, model_of, rule_of
from reference import falling_rows

from pydfm.features.grid import Grid
from pydfm.model.anomaly_map import MapScale, PositionScale, TopShares
from pydfm.model.layer import LayerModel
from pydfm.model.model import Model

ROWS = falling_rows(50, 96, decay=1.5)
LABELS = np.arange(50) % 3
CLASSED = ROWS + 3.0 * LABELS[:, None]
OTHERS = falling_rows(11, 96, seed=1, decay=1.0)


def standardised(model):
    """The model with maps that are standardised by a mean of 1 and a deviation of 2."""
    layers = []
    for layer in model.layers:
        shape = (model.n_classes, layer.grid.height, layer.grid.width)
        scale = PositionScale(np.ones(shape), np.full(shape, 2.0))
        layers.append(LayerModel(**{**vars(layer), "scale": scale}))
    return Model(tuple(layers), model.classes, model.combinations, model.n_samples)


def test_attributes_are_those_of_the_layers():
    model = model_of(CLASSED, LABELS)
    assert (model.n_features, model.n_classes, model.n_samples) == (96, 3, 50)
    assert model.grid is GRIDS[0]
    assert not model.calibrated
    assert model.image_score == "sum"
    assert model_of(ROWS, patch=True).image_score == "top"
    assert Model(model.layers[:1], None, {}, 9).n_features == 64
    calibrated = standardised(model)
    assert calibrated.calibrated
    assert calibrated.image_score == "calibrated"
    assert calibrated.by_maps("fre")
    assert not calibrated.by_maps("nll")
    assert not model.by_maps("fre")


def test_maps_without_scales_are_added_in_units_of_the_mean_scores():
    model = model_of(ROWS)
    maps = [layer.maps(OTHERS, "fre", 1) for layer in model.layers]
    want = 0
    for grid, own, mean in zip(GRIDS, maps, (2.0, 30.0), strict=True):
        want = want + grid.enlarge(own, (20, 24)) / mean
    got = model.join_maps(maps, "fre", (20, 24))
    assert (got.shape, got.dtype) == ((11, 20, 24), np.float64)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    one = Model(model.layers[:1], None, {}, 50)
    np.testing.assert_allclose(one.join_maps(maps[:1], "fre", (4, 4)), maps[0], rtol=1e-12)


def test_scaled_maps_are_added_at_the_finest_positions():
    model = model_of(ROWS)
    maps = [
        np.random.default_rng(i).normal(size=(5, g.height, g.width)) for i, g in enumerate(GRIDS)
    ]
    joined = model.add_layers(maps)
    np.testing.assert_allclose(joined, maps[0] + GRIDS[1].enlarge(maps[1], (4, 4)), rtol=1e-12)
    np.testing.assert_allclose(
        model.enlarge(joined, (20, 24)), GRIDS[0].enlarge(joined, (20, 24)), rtol=1e-12
    )
    # A tenth of 16 positions are two.
    want = np.sort(joined.reshape(5, -1), axis=1)[:, -2:].mean(axis=1)
    np.testing.assert_allclose(model.top_shares.score(joined, None), want, rtol=1e-6)
    top = TopShares((0.5,), np.array([[1.0]]), np.array([[2.0]]))
    assert replace(model, top=top).top_shares is top


def test_maps_have_scales_by_score_type():
    model = model_of(CLASSED, LABELS)
    assert not model.has_scaled_maps("fre")
    calibrated = standardised(model)
    assert calibrated.has_scaled_maps("fre")  # as files of before: those of the scores
    assert not calibrated.has_scaled_maps("nll")
    scales = {"nll": MapScale(np.array([1.0, 0.0, 2.0]), np.array([2.0, 1.0, 4.0]))}
    layers = tuple(replace(layer, map_scales=scales) for layer in calibrated.layers)
    scaled = replace(calibrated, layers=layers)
    assert scaled.has_scaled_maps("nll")
    maps, classes = np.random.default_rng(0).normal(size=(3, 4, 4)), np.array([2, 0, 1])
    want = (maps - np.array([2, 1, 0])[:, None, None]) / np.array([4, 2, 1])[:, None, None]
    np.testing.assert_allclose(layers[0].scaled(maps, "nll", classes), want)
    np.testing.assert_allclose(layers[0].scaled(maps, "fre", classes), (maps - 1) / 2)
    some = layers[0].with_density(layers[0].density, np.array([2, 0]))
    np.testing.assert_allclose(some.scaled(maps, "nll", np.array([0, 1, 1]))[:2], want[:2])


def test_what_has_no_map_is_told():
    model = model_of(ROWS)
    model.check_maps("fre")
    model_of(ROWS, patch=True).check_maps("nll")
    with pytest.raises(ValueError, match="score_type is 'nll', of which a whole image has no"):
        model.check_maps("nll")
    flat = LayerModel("features", slice(0, 64), model.layers[0].density, None)
    with pytest.raises(ValueError, match="fitted on features, which have no place in an image"):
        Model((flat,), None, {}, 50).check_maps("fre")
    single = LayerModel("pool", slice(0, 64), model.layers[0].density, Grid(64, 1, 1))
    with pytest.raises(ValueError, match="'pool' have one position in an image"):
        Model((single,), None, {}, 50).check_maps("fre")


def test_a_score_that_cannot_be_combined_is_told():
    model = Model(layers_of(ROWS), None, {"fre": rule_of()}, 50)
    model.check_scores(["fre"])
    model.check_layer_scores(["fre", "nll"])
    with pytest.raises(ValueError, match="'nll', for which the layers' scores cannot be combined"):
        model.check_scores(["fre", "nll"])
    # Standardised maps need no rule.
    standardised(Model(model.layers, None, {}, 50)).check_scores(["fre"])


def test_the_summary_counts_images_classes_and_components():
    assert model_of(ROWS).summary() == ("50 images, a: 3 of 64 components, b: 3 of 32 components")
    assert model_of(CLASSED, LABELS).summary().startswith("50 images, 3 classes, a: 3 of 64")
    assert Model(layers_of(ROWS)[:1], None, {}, 9).summary() == "9 images, 3 of 64 components"
