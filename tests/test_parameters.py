"""The table of parameters is that of the class, of its documentation and of the command line."""

import ast
import dataclasses
import inspect
import re
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from reference import falling_rows
from sklearn.base import clone

import pydfm
from pydfm.benchmark.table import markdown
from pydfm.model.settings import Settings
from pydfm.parameters import (
    DEFAULTS,
    PARAMETERS,
    SAME,
    changed_since,
    check_parameters,
    is_same,
    none_or,
    table,
)

ROWS = falling_rows(60, 12)
SIGNATURE = {
    name: parameter
    for name, parameter in inspect.signature(pydfm.DFM.__init__).parameters.items()
    if name != "self"
}
AT_ONCE = {"score_type", "alpha", "device", "batch_size", "n_threads", "on_error", "verbose"} | {
    "max_pixels",
    "runtime",
}

# A value of each parameter that is none, and another one that is.
BAD = {
    "n_components": 1.5,
    "score_type": "mse",
    "covariance": "full",
    "density": "kde",
    "regularization": "ridge",
    "combine": "mean",
    "spatial": "patches",
    "preset": "best",
    "image_score": "median",
    "top_share": 1.5,
    "tokens": -1,
    "augment": "flip",
    "runtime": "tensorrt",
    "precision": "float64",
    "intensity": "11bit",
    "batch_size": 0,
    "n_threads": 0,
    "on_error": "ignore",
    "max_pixels": 0,
    "calibration": "jackknife",
    "max_memory": "2 bananas",
    "alpha": 1,
    "random_state": -1,
}
OTHER = {
    "n_components": 3,
    "covariance": "tied",
    "density": "gmm",
    "regularization": 0.1,
    "backbone": "resnet34",
    "preset": "paper",
    "weights": None,
    "layers": ("layer1",),
    "combine": "max",
    "spatial": "mean",
    "image_score": "sum",
    "top_share": (0.05, 0.2),
    "pool": 2,
    "layout": "channels_first",
    "tokens": 1,
    "augment": "rotate",
    "image_size": 32,
    "mean": 0.5,
    "std": [0.5, 0.5, 0.5],
    "runtime": "torch",
    "precision": "bfloat16",
    "intensity": "12bit",
    "calibration": "kfold",
    "max_memory": "1GB",
    "random_state": 1,
    "score_type": "nll",
    "alpha": 0.2,
    "device": "cpu",
    "batch_size": 8,
    "n_threads": 1,
    "on_error": "skip",
    "max_pixels": 10**9,
    "verbose": True,
}


# The class


def test_the_signature_is_the_table():
    assert list(SIGNATURE) == list(PARAMETERS)
    for name, parameter in SIGNATURE.items():
        assert parameter.default is PARAMETERS[name].default, name
        assert DEFAULTS[name] is PARAMETERS[name].default
        assert PARAMETERS[name].name == name
    kinds = [parameter.kind for parameter in SIGNATURE.values()]
    assert kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2 + [
        inspect.Parameter.KEYWORD_ONLY
    ] * (len(kinds) - 2)


def test_the_constructor_sets_each():
    assert pydfm.DFM().get_params() == DEFAULTS
    assert set(OTHER) == set(PARAMETERS)
    dfm = pydfm.DFM(**OTHER)
    for name, value in OTHER.items():
        assert getattr(dfm, name) is value


def test_the_docstring_names_each_with_its_default():
    text = inspect.getdoc(pydfm.DFM)  # Python 3.13 and newer strip what it is indented by
    section = re.search(r"\nParameters\n-+\n(.*?)\nAttributes\n", text, re.S)
    found = {}
    for names, kind in re.findall(r"^([a-z][a-z_, ]*) : (.*)$", section[1], re.MULTILINE):
        given = re.search(r"default=(.*)$", kind)
        for name in names.split(", "):
            assert given or kind.endswith("optional"), name
            found[name] = ast.literal_eval(given[1]) if given else None
    assert list(found) == list(DEFAULTS)
    assert found == DEFAULTS


def test_the_docstring_tells_what_counts_at_once():
    (told,) = re.findall(r"counts at once if it belongs to .*?\(([^)]*)\)", pydfm.DFM.__doc__, re.S)
    assert {name.strip() for name in told.split(",")} == AT_ONCE


# Checks


def test_defaults_pass_their_checks():
    check_parameters(DEFAULTS)
    for name, parameter in PARAMETERS.items():
        parameter.check(name, parameter.default)


@pytest.mark.parametrize("name", BAD)
def test_a_value_out_of_range_is_named(name):
    with pytest.raises(ValueError, match=rf"^{name} is {re.escape(repr(BAD[name]))}; it must be"):
        pydfm.DFM(**{name: BAD[name]}).fit(ROWS)
    with pytest.raises(ValueError, match=rf"^{name} is "):
        check_parameters({**DEFAULTS, name: BAD[name]})


def test_what_has_no_check_is_checked_at_the_fit():
    unchecked = set(PARAMETERS) - set(BAD)
    assert unchecked == {
        "backbone",
        "weights",
        "layers",
        "pool",
        "layout",
        "image_size",
        "mean",
        "std",
        "device",
        "verbose",
    }
    assert {PARAMETERS[name].role for name in unchecked} == {"features", "runtime"}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"density": "gmm", "covariance": "tied"}, "a mixture is of one class"),
        ({"image_score": "top"}, "which spatial='flatten' does not have; choose 'calibrated' or"),
        ({"image_score": "calibrated", "calibration": None}, "but calibration is None"),
        ({"image_score": "calibrated", "combine": "max"}, "and combine 'max'"),
    ],
)
def test_values_that_do_not_go_together_are_told(parameters, says):
    with pytest.raises(ValueError, match=says):
        check_parameters({**DEFAULTS, **parameters})


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (3, 3, True),
        (3, 4, False),
        (None, 0, False),
        (np.int64(3), 3, True),
        (np.int64(3), np.int64(3), True),
        (np.float32(0.5), 0.5, True),
        ("fre", "fre", True),
        (("fre",), ["fre"], True),
        (("fre", "nll"), ("nll", "fre"), False),
        (np.array([1.0, 2]), (1, 2), True),
        (np.array([1.0, 2]), None, False),
        ([0.2, 0.3], 0.2, False),
        ([[1], [2, 3]], 4, False),
        (torch.nn.ReLU, torch.nn.ReLU, True),
    ],
)
def test_values_are_compared(a, b, same):
    assert is_same(a, b) is same
    assert is_same(b, a) is same


# Roles


def test_roles_tell_what_counts_when():
    roles = {name: own.role for name, own in PARAMETERS.items()}
    assert set(roles.values()) == {"features", "model", "decision", "runtime"}
    at_once = {name for name, role in roles.items() if role in ("decision", "runtime")}
    assert at_once == AT_ONCE
    assert {name for name, role in roles.items() if role == "decision"} == {"score_type", "alpha"}
    # What belongs to the machine is not saved.
    unsaved = {name for name, own in PARAMETERS.items() if not own.saved}
    assert unsaved == {"device", "n_threads", "verbose"}
    assert {roles[name] for name in unsaved} == {"runtime"}
    assert changed_since(DEFAULTS, OTHER, ("decision",)) == ["score_type", "alpha"]
    assert changed_since(DEFAULTS, DEFAULTS, ("features", "model", "runtime")) == []


@pytest.fixture(scope="module")
def fitted():
    return pydfm.DFM().fit(ROWS)


@pytest.mark.parametrize("name", sorted(set(OTHER) - AT_ONCE))
def test_what_counts_at_the_next_fit_is_told_and_refused_to_more_rows(fitted, name):
    dfm = pydfm.DFM().fit(ROWS)
    want = dfm.score(ROWS)
    dfm.set_params(**{name: OTHER[name]})
    with pytest.warns(UserWarning, match=rf"^{name} changed after the fit: the fitted model stays"):
        assert np.array_equal(dfm.score(ROWS), want)
    assert dfm.n_samples_ == 60
    with pytest.raises(ValueError, match=rf"^{name} was .* at the fit and is .* now; rows can be"):
        dfm.partial_fit(ROWS)
    assert np.array_equal(dfm.score(ROWS), want)
    # Once it is set back, rows are welcome again.
    dfm.set_params(**{name: DEFAULTS[name]}).partial_fit(ROWS)
    assert dfm.n_samples_ == 120


@pytest.mark.parametrize("name", sorted(AT_ONCE))
def test_what_counts_at_once_gives_no_warning(name):
    dfm = pydfm.DFM().fit(ROWS).set_params(**{name: OTHER[name]})
    dfm.partial_fit(ROWS[:1])
    assert dfm.n_samples_ == 61
    if name == "score_type":
        assert np.array_equal(dfm.score(ROWS[:5]), dfm.score(ROWS[:5], score_type="nll"))
    if name == "alpha":
        assert dfm.threshold_ == dfm.set_params(alpha=0.2).threshold_


def test_several_are_named_and_those_that_are_as_they_were_are_not():
    dfm = pydfm.DFM(3).fit(ROWS)
    dfm.set_params(n_components=4, calibration=None, alpha=0.1, covariance="class")
    with pytest.warns(UserWarning, match=r"^n_components, calibration changed after the fit"):
        dfm.predict(ROWS)
    dfm.score(ROWS)  # once is enough
    dfm.set_params(n_components=3, calibration="loo")
    dfm.set_params(n_components=np.int64(3))
    pydfm.DFM().set_params(n_components=3)  # not fitted yet
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        dfm.set_params(colour="red")


def test_the_next_fit_takes_them():
    dfm = pydfm.DFM(3).fit(ROWS)
    dfm.set_params(n_components=5)
    assert dfm.n_components_ == 3
    assert dfm.fit(ROWS).n_components_ == 5
    dfm.partial_fit(2 * ROWS)
    assert dfm.n_components_ == 5


@pytest.mark.parametrize(
    "parameters",
    [
        {"n_components": np.int64(3)},
        {"n_components": np.float64(0.9)},
        {"layers": np.array(["a", "b"])},
        {"layers": ["a"], "mean": np.array([0.1, 0.2, 0.3])},
        {"backbone": torch.nn.Conv2d(3, 4, 3)},
        {"backbone": torch.nn.Conv2d(3, 4, 3), "score_type": ("fre", "nll")},
    ],
    ids=lambda parameters: ",".join(parameters),
)
def test_rows_are_added_to_what_was_merged_whatever_the_parameters_are(parameters):
    """Parameters that clone copies are those of the fit."""
    one, other = (pydfm.DFM(**parameters).fit(rows) for rows in np.split(ROWS, 2))
    merged = one + other
    merged.partial_fit(ROWS[:3])
    assert merged.n_samples_ == 63
    assert clone(merged).fit(ROWS).n_samples_ == 60


# Options of the command line


def test_options_are_named_apart_and_say_what_they_are():
    options = {name: own.option for name, own in PARAMETERS.items() if own.option is not None}
    names = [option.name or name.replace("_", "-") for name, option in options.items()]
    assert len(set(names)) == len(names)
    assert set(PARAMETERS) - set(options) == {"mean", "std", "verbose"}
    for name, option in options.items():
        assert (option.help or PARAMETERS[name].summary).endswith(".")


@pytest.mark.parametrize("name", [n for n, own in PARAMETERS.items() if own.option is not None])
def test_an_option_left_out_is_the_default(name):
    option, default = PARAMETERS[name].option, DEFAULTS[name]
    given = default if option.default is SAME else option.default
    if given is None and get_origin(option.kind) is list:
        given = []
    got = default if given is None else option.parse(given)
    assert got == default
    if get_origin(option.kind) is Literal:
        for choice in get_args(option.kind):
            PARAMETERS[name].check(name, option.parse(choice))


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("n_components", "all", None),
        ("n_components", "ALL", None),
        ("n_components", "0.5", 0.5),
        ("n_components", "7", 7),
        ("regularization", "none", None),
        ("regularization", "shrinkage", "shrinkage"),
        ("regularization", "1e-3", 1e-3),
        ("weights", "none", None),
        ("weights", "None", None),
        ("weights", "w.pth", "w.pth"),
        ("calibration", "none", None),
        ("layers", ["a", "b"], ("a", "b")),
        ("layers", [], None),
        ("pool", [2], 2),
        ("pool", [2, 3], (2, 3)),
        ("on_error", True, "skip"),
        ("on_error", False, "raise"),
    ],
)
def test_texts_become_values(name, text, want):
    got = PARAMETERS[name].option.parse(text)
    assert got == want
    assert type(got) is type(want)


@pytest.mark.parametrize("name", ["n_components", "regularization"])
def test_a_text_that_is_none_of_them_names_the_option(name):
    with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} is 'much'; it must be"):
        PARAMETERS[name].option.parse("much")


def test_none_is_written_in_any_case():
    assert none_or("NONE") is None
    assert none_or("nonesuch") == "nonesuch"


# The guide


def test_the_table_of_the_guide_has_a_row_for_each():
    lines = markdown(*table()).splitlines()
    assert len(lines) == len(PARAMETERS) + 2
    assert {len(line) for line in lines} == {len(lines[0])}
    for line, (name, own) in zip(lines[2:], PARAMETERS.items(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        counts = "at once" if name in AT_ONCE else "at the next fit"
        assert cells[:2] == [f"`{name}`", f"`{own.default!r}`"]
        assert cells[2].startswith(counts)
        assert cells[3] == own.summary
        assert own.summary.endswith(".")


def test_every_parameter_of_a_model_is_a_setting_of_its_fit():
    """What counts at a fit is what merges compare, and no parameter of the table is forgotten."""
    settings = {own.name for own in dataclasses.fields(Settings)}
    of_model = {name for name, own in PARAMETERS.items() if own.role == "model"}
    assert of_model <= settings
    assert settings - of_model - set(PARAMETERS) == {"held_out", "map_type", "rule", "max_bytes"}
