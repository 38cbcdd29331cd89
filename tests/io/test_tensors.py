"""Models and held-out scores as named arrays and what JSON can hold, and back."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fits import maps_dfm
from reference import named_rows

import pydfm
from pydfm.io.tensors import (
    FOLD,
    HELD_OUT,
    LAYER,
    check_claims,
    grid_from,
    held_out_from_tensors,
    held_out_to_tensors,
    model_from_tensors,
    model_to_tensors,
)
from pydfm.model.settings import N_FOLDS

ROWS, LABELS = named_rows(60, 12)


def through_json(header):
    return json.loads(json.dumps(header, default=lambda value: value.tolist()))


def round_trip(model):
    header, tensors = model_to_tensors(model)
    return model_from_tensors(through_json(header), tensors)


def assert_same(a, b):
    """Two subspaces are the same to the bit."""
    for name, value in vars(b).items():
        if name != "scorer":
            assert np.array_equal(getattr(a, name), value), name


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"covariance": "tied"},
        {"density": "gmm", "score_type": "nll", "calibration": "kfold"},
        {"max_memory": 1500, "calibration": None, "covariance": "tied"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:max_memory leaves")
def test_a_model_of_classes_comes_back_to_the_bit(parameters):
    model = pydfm.DFM(2, **parameters).fit(ROWS, labels=LABELS).model_
    again = round_trip(model)
    assert (again.classes, again.n_samples) == (model.classes, model.n_samples)
    (one,), (other,) = again.layers, model.layers
    assert (one.name, one.columns, one.grid) == ("features", slice(0, 12), None)
    for a, b in zip(one.density.subspaces, other.density.subspaces, strict=True):
        assert_same(a, b)
    assert_same(one.density.background, other.density.background)
    for a, b in zip(one.density.mixtures or (), other.density.mixtures or (), strict=True):
        assert np.array_equal(a.weights, b.weights)
        assert a.n_samples == b.n_samples
        for mine, theirs in zip(a.gaussians, b.gaussians, strict=True):
            assert_same(mine, theirs)
    # Shared components are written once, and shared again.
    shared = parameters.get("covariance") == "tied"
    first, second, *_ = one.density.subspaces
    assert (first.components is second.components) == shared
    n_rows = len(model_to_tensors(model)[1]["layer.0.components"])
    counts = [len(subspace.components) for subspace in other.density.subspaces]
    assert n_rows == (counts[0] if shared else sum(counts))


@pytest.mark.parametrize(
    "parameters", [{}, {"combine": "max"}, {"spatial": "patch", "image_score": "mean"}], ids=str
)
def test_a_model_of_layers_comes_back_to_the_bit(parameters, noise):
    dfm = maps_dfm(**parameters).fit(noise)
    model, features = dfm.model_, dfm.extract(noise)
    again = round_trip(model)
    assert [layer.grid for layer in again.layers] == [layer.grid for layer in model.layers]
    assert again.image_score == model.image_score
    assert again.combinations.keys() == model.combinations.keys()
    for kind, rule in model.combinations.items():
        for name, value in vars(rule).items():
            assert np.array_equal(getattr(again.combinations[kind], name), value)
    for one, other in zip(again.layers, model.layers, strict=True):
        assert (one.patch, one.rule, one.top_share) == (other.patch, other.rule, other.top_share)
        assert np.array_equal(
            one.score(features, ["fre"], 1)[0], other.score(features, ["fre"], 1)[0]
        )
        assert (one.scale is None) == (other.scale is None)
        if other.scale is not None:
            assert np.array_equal(one.scale.deviation, other.scale.deviation)
        assert one.map_scales.keys() == other.map_scales.keys() != set()
        for kind, own in other.map_scales.items():
            assert np.array_equal(one.map_scales[kind].offset, own.offset)
            assert np.array_equal(one.map_scales[kind].divisor, own.divisor)
    assert (again.top is None) == (model.top is None) == (not model.calibrated)
    if model.top is not None:
        assert again.top.shares == model.top.shares
        assert np.array_equal(again.top.mean, model.top.mean)
        assert np.array_equal(again.top.deviation, model.top.deviation)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
def test_held_out_scores_come_back_to_the_bit(grouped, labelled, calibration):
    fitted = (
        pydfm.DFM(2, calibration=calibration)
        .fit(
            ROWS,
            labels=LABELS if labelled else None,
            groups=np.arange(60) // 2 if grouped else None,
        )
        .fitted_
    )
    held_out = fitted.held_out
    header, tensors = held_out_to_tensors(held_out, fitted.model)
    again = held_out_from_tensors(through_json(header), tensors, fitted.model)
    assert list(again.samples) == list(held_out.samples)
    assert again.map_maxima is None
    for kind, own in held_out.samples.items():
        found = again.samples[kind]
        for name in ("scores", "classes", "places", "folds"):
            assert np.array_equal(getattr(found, name), getattr(own, name)), name
            assert getattr(found, name).dtype == getattr(own, name).dtype
        # Units that are rows need no numbers of their own.
        assert own.grouped == grouped
        if grouped:
            assert np.array_equal(found.units, own.units)
        assert not found.grouped or grouped
    assert all(name.startswith((HELD_OUT, FOLD)) for name in tensors)
    for name, want in (
        ("classes", labelled),
        ("units", grouped),
        ("folds", calibration == "kfold"),
    ):
        assert any(tensor.endswith(f".{name}") for tensor in tensors) == want
    assert len(again.folds) == len(held_out.folds) == (N_FOLDS if calibration == "kfold" else 0)
    for one, other in zip(again.folds, held_out.folds, strict=True):
        assert np.array_equal(one.classes, other.classes)
        assert one.model.classes == other.model.classes
        got, want = (own.model.layers[0].score(ROWS, ["fre"], 1)[0] for own in (one, other))
        assert np.array_equal(got, want)


def test_a_fold_without_a_model_and_names_come_back():
    fitted = pydfm.DFM(1, calibration="kfold").fit(ROWS[:3]).fitted_
    held_out = replace(fitted.held_out, folds=(None, *fitted.held_out.folds[1:]))
    held_out = replace(held_out, names={0: "a.png", 2: "grün.png"})
    header, tensors = held_out_to_tensors(held_out, fitted.model)
    again = held_out_from_tensors(through_json(header), tensors, fitted.model)
    assert again.folds[0] is None
    assert [fold is None for fold in again.folds] == [fold is None for fold in held_out.folds]
    assert again.names == {0: "a.png", 2: "grün.png"}


def test_files_of_before_know_no_places_units_and_folds():
    fitted = pydfm.DFM(2).fit(ROWS, groups=np.arange(60) // 2).fitted_
    header, tensors = held_out_to_tensors(fitted.held_out, fitted.model)
    older = {n: t for n, t in tensors.items() if not n.endswith((".places", ".units"))}
    sample = held_out_from_tensors(through_json(header), older, fitted.model).samples["fre"]
    assert np.array_equal(sample.places, np.arange(60))
    assert not sample.grouped
    assert (sample.folds == 0).all()


def test_maxima_of_maps_come_back(noise):
    fitted = maps_dfm().fit(noise).fitted_
    header, tensors = held_out_to_tensors(fitted.held_out, fitted.model)
    again = held_out_from_tensors(header, tensors, fitted.model)
    assert np.array_equal(again.map_maxima, fitted.held_out.map_maxima)


def test_names_say_what_a_tensor_is_of():
    model = pydfm.DFM(2).fit(ROWS, labels=LABELS).model_
    _, tensors = model_to_tensors(model)
    assert all(name.startswith(LAYER) for name in tensors)
    assert {name.rpartition(".")[0] for name in tensors} == {"layer.0", "layer.0.background"}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype("f8"), np.dtype("i8")}


def wrong_held_out(fitted, change):
    header, tensors = held_out_to_tensors(fitted.held_out, fitted.model)
    change(tensors)
    held_out_from_tensors(header, tensors, fitted.model)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("fre.scores", np.zeros((2, 60)), "fre.scores is not float32 of 2 dimension"),
        ("fre.scores", np.zeros(60, np.float32), "fre.scores is not float32 of 2 dimension"),
        ("fre.scores", np.full((2, 60), np.nan, np.float32), "fre.scores is not .* or not finite"),
        ("fre.scores", np.zeros((2, 59), np.float32), "fre.classes: not 59 integers, or out of"),
        (
            "fre.scores",
            np.zeros((3, 60), np.float32),
            "fre: its scores are not those of all layers",
        ),
        ("fre.classes", np.full(60, 3), "fre.classes: not 60 integers, or out of their range"),
        ("fre.classes", np.full(60, -1), "fre.classes: not 60 integers, or out of their range"),
        ("fre.classes", np.zeros(60), "fre.classes: not 60 integers, or out of their range"),
        ("fre.places", np.zeros(60), "fre.places: not 60 integers, or out of their range"),
        ("fre.places", np.arange(59), "fre.places: not 60 integers, or out of their range"),
        ("fre.units", np.full(60, -1), "fre.units: not 60 integers, or out of their range"),
        ("fre.folds", np.full(60, N_FOLDS), "fre.folds: not 60 integers, or out of their range"),
        ("fre.folds", np.zeros((60, 1), int), "fre.folds: not 60 integers, or out of their range"),
    ],
)
def test_held_out_scores_that_are_wrong_are_told(name, value, says):
    fitted = pydfm.DFM(2, calibration="kfold").fit(ROWS, labels=LABELS).fitted_
    with pytest.raises(ValueError, match=says):
        wrong_held_out(fitted, lambda tensors: tensors.update({f"{HELD_OUT}{name}": value}))
    if not name.endswith((".places", ".units")):  # which files of before do not have
        with pytest.raises(KeyError, match=name):
            wrong_held_out(fitted, lambda tensors: tensors.pop(f"{HELD_OUT}{name}"))


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_the_classes_of_a_fold_are_some_of_the_model(classes):
    fitted = pydfm.DFM(2, calibration="kfold").fit(ROWS, labels=LABELS).fitted_
    header, tensors = held_out_to_tensors(fitted.held_out, fitted.model)
    header["folds"][3]["classes"] = classes
    with pytest.raises(ValueError, match=r"fold"):
        held_out_from_tensors(through_json(header), tensors, fitted.model)
    with pytest.raises(KeyError, match=r"layer\.0\.mean"):
        wrong_held_out(fitted, lambda tensors: tensors.pop("fold.2.layer.0.mean"))


@pytest.mark.parametrize("deviation", [np.zeros((1, 8, 8)), np.ones((1, 4, 4)), np.ones((2, 8, 8))])
def test_scales_of_maps_that_are_wrong_are_told(deviation, noise):
    header, tensors = model_to_tensors(maps_dfm().fit(noise).model_)
    tensors["layer.0.position_deviation"] = deviation
    with pytest.raises(ValueError, match=r"layer.0.position_deviation is not positive, or not of"):
        model_from_tensors(through_json(header), tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"offset": [0.0, 1.0]},
        {"divisor": [[1.0]]},
        {"divisor": [0.0]},
        {"divisor": [-1.0]},
        {"offset": [float("nan")]},
        {"divisor": [float("inf")]},
    ],
)
def test_scales_of_shown_maps_that_are_wrong_are_told(change, noise):
    header, tensors = model_to_tensors(maps_dfm().fit(noise).model_)
    header["layers"][1]["map_scales"]["fre"] |= change
    with pytest.raises(ValueError, match=r"^the scale of maps of layer\.1 is"):
        model_from_tensors(through_json(header), tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"shares": []},
        {"shares": [0.1, 1.5]},
        {"shares": [0.1]},
        {"mean": [[0.0, float("nan")]]},
        {"deviation": [[1.0, 0.0]]},
        {"deviation": [[1.0, float("inf")]]},
        {"deviation": [1.0, 1.0]},
    ],
)
def test_shares_that_are_wrong_are_told(change, noise):
    header, tensors = model_to_tensors(maps_dfm().fit(noise).model_)
    header["top_shares"] |= change
    with pytest.raises(ValueError, match=r"^(its top_shares|a top_share) (is|are)"):
        model_from_tensors(through_json(header), tensors)


def test_layers_must_be_standardised_together(noise):
    header, tensors = model_to_tensors(maps_dfm().fit(noise).model_)
    header["layers"][1]["standardised"] = False
    with pytest.raises(ValueError, match="some of its layers are standardised, and others are not"):
        model_from_tensors(through_json(header), tensors)


@pytest.mark.parametrize(
    "values", [[1.0], [1.0, 2.0, 3.0], [1.0, float("nan")], 3.0, None, [[1.0, 2.0]]]
)
def test_rules_of_layers_must_have_their_number(values, noise):
    header, tensors = model_to_tensors(maps_dfm(combine="max").fit(noise).model_)
    header = through_json(header)
    header["combinations"]["fre"]["scale"] = values
    with pytest.raises(ValueError, match=r"^the scale of its combination is .*numbers"):
        model_from_tensors(header, tensors)


def test_a_grid_is_read_with_its_reach():
    grid = grid_from({"channels": 3, "height": 2, "width": 4, "reach": [1, 0.5]})
    assert (grid.channels, grid.height, grid.width, grid.reach) == (3, 2, 4, (1.0, 0.5))


def test_equal_rows_have_no_components():
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        model = pydfm.DFM().fit(np.ones((5, 3))).model_
    assert round_trip(model).layers[0].density.subspaces[0].components.shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer.0.mean", (2, 2**40)),
        ("layer.0.mean", (2**40, 12)),
        ("layer.0.mean", ()),
        ("layer.0.components", (2**40, 12)),
        ("layer.0.components", (4, 2**40)),
        ("fold.3.layer.0.components", (1, 12)),  # without a mean
        ("held_out.fre.scores", (2, 2**40)),
        ("extra", (1,)),
    ],
)
def test_a_tensor_that_is_larger_than_a_model_has_it_is_refused_unread(name, shape):
    header, tensors = model_to_tensors(pydfm.DFM(2).fit(ROWS, labels=LABELS).model_)
    shapes = {own: tensor.shape for own, tensor in tensors.items()}
    check_claims(header, shapes, recalibrated=False)
    with pytest.raises(ValueError, match=rf"^it has no place for its tensor '{name}' of the shape"):
        check_claims(header, {**shapes, name: shape}, recalibrated=False)


def test_scores_of_later_rows_may_be_more_than_the_fitted_rows():
    header, _ = model_to_tensors(pydfm.DFM(2).fit(ROWS).model_)
    check_claims(header, {"held_out.fre.scores": (2, 10**6)}, recalibrated=True)
