import numpy as np
import pytest
from reference import SCORE_TYPES, falling_rows
from scipy.ndimage import gaussian_filter

from pydfm import model as model_module
from pydfm.combination import Combination
from pydfm.density_fitter import DensityFitter
from pydfm.layer import LayerModel
from pydfm.maps import Grid
from pydfm.model import Model

GRIDS = (Grid(4, 4, 4), Grid(8, 2, 2))  # 64 and 32 columns
KINDS = [*SCORE_TYPES]


def density(rows, labels):
    fitter = DensityFitter(
        3, covariance="class", density="gaussian", regularization=None, random_state=0, n_threads=1
    )
    fitter.add(rows, labels)
    return fitter.fit(None if labels is None else range(labels.max() + 1))


def layers_of(rows, labels=None, patch=False):
    found, end = [], 0
    for name, grid in zip("ab", GRIDS, strict=True):
        own = np.ascontiguousarray(rows[:, end : end + grid.size])
        theirs = labels
        if patch:
            own = grid.patches(own)
            theirs = None if labels is None else np.repeat(labels, grid.positions)
        columns = slice(end, end + grid.size)
        found.append(LayerModel(name, columns, density(own, theirs), grid, patch=patch))
        end += grid.size
    return tuple(found)


def rule(name="sum", weights=(1.0, 1.0), offset=0.0):
    mean, scale = np.array([2.0, 30.0]), np.array([0.5, 7.0])
    return Combination(name, mean, scale, np.array(weights), offset)


def model_of(rows, labels=None, combination=None, patch=False):
    classes = None if labels is None else [f"class {c}" for c in range(labels.max() + 1)]
    rules = dict.fromkeys(KINDS, combination or rule())
    return Model(layers_of(rows, labels, patch), classes, rules, len(rows))


ROWS = falling_rows(50, 96, decay=1.5)
LABELS = np.arange(50) % 3
CLASSED = ROWS + 3.0 * LABELS[:, None]
OTHERS = falling_rows(11, 96, seed=1, decay=1.0)


@pytest.mark.parametrize("name", ["sum", "max"])
def test_scores_are_those_of_the_layers_combined(name):
    model = model_of(ROWS, combination=rule(name))
    each = model.layer_scores(OTHERS, KINDS, 2)
    assert each.shape == (2, 4, 11)
    for i, layer in enumerate(model.layers):
        assert np.array_equal(each[i], layer.score(OTHERS, KINDS, 1)[0])
    t = (each - np.array([2.0, 30.0])[:, None, None]) / np.array([0.5, 7.0])[:, None, None]
    want = t.sum(axis=0) if name == "sum" else t.max(axis=0)
    got = model.score(OTHERS, KINDS, 2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_one_layer_is_scored_as_it_is():
    layers = layers_of(ROWS)[:1]
    model = Model(layers, None, {}, 50)
    want = layers[0].score(OTHERS[:, :64], KINDS, 1)[0]
    assert np.array_equal(model.score(OTHERS[:, :64], KINDS, 1), want)
    assert model.n_features == 64


@pytest.mark.parametrize("patch", [False, True])
def test_the_nearest_class_has_the_least_combined_score(patch):
    model = model_of(CLASSED, LABELS, patch=patch)
    for kind in KINDS:
        given = [model.score(OTHERS, [kind], 1, np.full(11, c, dtype=np.intp))[0] for c in range(3)]
        assert np.array_equal(model.nearest(OTHERS, kind, 1), np.argmin(given, axis=0))
    assert (model.nearest(CLASSED, "fre", 1) == LABELS).mean() > 0.9
    one = Model(model.layers[:1], model.classes, {}, 50)
    want = model.layers[0].class_scores(OTHERS[:, :64], "fre", 1).argmin(axis=0)
    assert np.array_equal(one.nearest(OTHERS[:, :64], "fre", 1), want)


def test_maps_of_layers_are_added_in_units_of_their_means():
    model = model_of(ROWS)
    want = 0
    for layer, mean in zip(model.layers, (2.0, 30.0), strict=True):
        want = want + layer.grid.enlarge(layer.maps(OTHERS, "fre", 1), (20, 24)) / mean
    got = model.maps(OTHERS, "fre", 2, (20, 24), 0.0)
    assert (got.shape, got.dtype) == ((11, 20, 24), np.float32)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    smoothed = model.maps(OTHERS, "fre", 2, (20, 24), 1.5)
    for i in range(11):
        want_i = gaussian_filter(want[i], 1.5, mode="nearest")
        np.testing.assert_allclose(smoothed[i], want_i, rtol=1e-4)


def test_maps_of_one_layer_are_in_the_units_of_its_scores():
    layer = layers_of(ROWS)[0]
    model = Model((layer,), None, {}, 50)
    maps = model.maps(OTHERS[:, :64], "fre", 1, (4, 4), 0.0)
    np.testing.assert_allclose(maps, layer.maps(OTHERS[:, :64], "fre", 1), rtol=1e-6)


def test_pieces_of_maps_change_no_bit(monkeypatch):
    model = model_of(ROWS, patch=True)
    want = model.maps(OTHERS, "ppca", 2, (20, 24), 1.0)
    monkeypatch.setattr(model_module, "_MAPS_AT_ONCE", 4)
    assert np.array_equal(model.maps(OTHERS, "ppca", 1, (20, 24), 1.0), want)


def test_what_has_no_map_is_told():
    model = model_of(ROWS)
    model.check_maps("fre")
    model_of(ROWS, patch=True).check_maps("nll")
    with pytest.raises(ValueError, match="score_type is 'nll', of which a whole picture has no"):
        model.check_maps("nll")
    flat = LayerModel("features", slice(0, 64), model.layers[0].density, None)
    with pytest.raises(ValueError, match="fitted on features, which have no place on a picture"):
        Model((flat,), None, {}, 50).check_maps("fre")
    single = LayerModel("pool", slice(0, 64), model.layers[0].density, Grid(64, 1, 1))
    with pytest.raises(ValueError, match="'pool' have one position in a picture"):
        Model((single,), None, {}, 50).check_maps("fre")


def test_a_score_that_cannot_be_combined_is_told():
    model = Model(layers_of(ROWS), None, {"fre": rule()}, 50)
    model.check_scores(["fre"])
    model.check_layer_scores(["fre", "nll"])
    with pytest.raises(ValueError, match="score_type is 'nll', of which the layers' scores cannot"):
        model.check_scores(["fre", "nll"])


def test_the_summary_counts_images_classes_and_components():
    assert model_of(ROWS).summary() == ("50 images, a: 3 of 64 components, b: 3 of 32 components")
    assert model_of(CLASSED, LABELS).summary().startswith("50 images, 3 classes, a: 3 of 64")
    assert Model(layers_of(ROWS)[:1], None, {}, 9).summary() == "9 images, 3 of 64 components"
