"""The registry: every score from the core's, its bound, and what a new one takes."""

import dataclasses

import numpy as np
import pytest
from reference import SCORE_TYPES as CORE
from reference import falling_rows, fit_reference, labelled_rows, references

import pydfm
from pydfm.stats.density import possible_scores
from pydfm.stats.scores import (
    CORE_ERROR,
    CORE_SCORES,
    SCORE_TYPES,
    SCORES,
    Score,
    check_score_types,
)


def test_the_registry_describes_each_score():
    assert tuple(SCORES) == SCORE_TYPES
    assert CORE_SCORES == CORE
    for name, score in SCORES.items():
        assert score.name == name
        assert score.formula
        assert set(score.inputs) <= set(CORE_SCORES)
    for name in CORE_SCORES:
        assert SCORES[name].inputs == (name,)
        assert SCORES[name].value(name) == name  # as it is
    assert [name for name, score in SCORES.items() if score.has_maps] == ["fre"]
    assert [name for name, score in SCORES.items() if not score.needs_variance] == ["fre"]
    relative = SCORES["relative_mahalanobis"]
    assert relative.background
    with pytest.raises(dataclasses.FrozenInstanceError):
        relative.background = False


def test_the_documentation_names_each_score():
    for name in SCORE_TYPES:
        assert f'"{name}"' in pydfm.DFM.__doc__


@pytest.mark.parametrize(
    ("given", "want"),
    [("fre", ["fre"]), (("nll", "fre"), ["nll", "fre"]), (["ppca"], ["ppca"])],
)
def test_types_are_named_alone_or_in_a_sequence(given, want):
    assert check_score_types(given) == want


@pytest.mark.parametrize("given", ["mse", "", None, (), [], ("fre", "mse"), (None,), {"fre"}, 3])
def test_types_that_there_are_not_are_told(given):
    with pytest.raises(ValueError, match=r"^kinds is .*; it must be one of 'fre', 'mahalanobis'"):
        check_score_types(given, "kinds")


def test_what_cannot_be_computed_is_left_out():
    def check(kinds):
        if kinds[0] in ("nll", "relative_mahalanobis"):
            raise ValueError

    assert possible_scores(check) == ["fre", "mahalanobis", "ppca"]


# Bounds


def relative_rows(n_features, spread):
    rows, labels = labelled_rows((200, 200, 200), n_features, spread=spread)
    return rows, labels


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("shape", [(300, 40), (60, 400)])
def test_the_bound_of_fre_holds(shape, offset):
    rows = falling_rows(shape[0] + 200, shape[1], offset=offset).astype(np.float32)
    dfm = pydfm.DFM(10, calibration=None).fit(rows[: shape[0]])
    others = rows[shape[0] :]
    want = fit_reference(rows[: shape[0]], 10).scores(others)["fre"]
    bound = SCORES["fre"].error_bound(want)
    np.testing.assert_allclose(bound, CORE_ERROR * want)
    assert (np.abs(dfm.score(others) - want) <= bound).all()


@pytest.mark.parametrize("covariance", ["class", "tied"])
@pytest.mark.parametrize("spread", [0.5, 10.0])
def test_the_bound_of_relative_mahalanobis_holds_where_two_of_like_size_are_subtracted(
    covariance, spread
):
    rows, labels = labelled_rows((200, 200, 200), 60, spread=spread)
    rows = rows.astype(np.float32)
    others = labelled_rows((50, 50, 50), 60, seed=9, spread=spread)[0].astype(np.float32)
    kind = "relative_mahalanobis"
    dfm = pydfm.DFM(20, kind, covariance=covariance, calibration=None).fit(rows, labels=labels)

    def mahalanobis(subspace):
        z = (others.astype(np.float64) - subspace.mean) @ subspace.components.T
        return (np.square(z) / subspace.explained_variance).sum(axis=1)

    density = dfm.model_.layers[0].density
    each = np.stack([mahalanobis(subspace) for subspace in density.subspaces])
    background = mahalanobis(density.background)
    bound = SCORES[kind].error_bound(each.min(axis=0), background)
    # Both are computed in float64, so that the difference is within the promise itself.
    np.testing.assert_allclose(bound, CORE_ERROR * np.abs(each.min(axis=0) - background), rtol=1e-9)
    error = np.abs(dfm.score(others) - (each.min(axis=0) - background))
    assert (error <= bound).all()
    for c in range(3):
        error = np.abs(dfm.score(others, labels=np.full(len(others), c)) - (each[c] - background))
        assert (error <= SCORES[kind].error_bound(each[c], background)).all()


def test_a_bound_is_that_of_first_order():
    product = Score("x", "", ("fre", "mahalanobis"), np.multiply)
    a, b = np.array([2.0, -3.0]), np.array([5.0, 0.0])
    np.testing.assert_allclose(product.error_bound(a, b), 2 * CORE_ERROR * np.abs(a * b))


# A new score type


ROOT = Score("root_fre", "the square root of the fre", ("fre",), np.sqrt, needs_variance=False)
# The log-density beside the residual: of two inputs, and under the nearest class.
BOTH = Score("both", "nll and fre", ("nll", "fre"), lambda nll, fre: nll + fre)


@pytest.fixture
def registered(monkeypatch):
    """Two scores that are in the registry, and nowhere else."""
    for score in (ROOT, BOTH):
        monkeypatch.setitem(SCORES, score.name, score)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
def test_a_new_score_works_from_end_to_end(labelled, calibration, tmp_path):
    rows, labels = labelled_rows((60, 50), 12)
    labels = labels if labelled else None
    fresh = labelled_rows((40, 40), 12, seed=5)[0]
    dfm = pydfm.DFM(3, ("root_fre", "both"), calibration=calibration, alpha=0.2).fit(
        rows, labels=labels
    )
    plain = pydfm.DFM(3, "fre", calibration=calibration, alpha=0.2).fit(rows, labels=labels)
    root, both = dfm.score(fresh)
    np.testing.assert_allclose(root, np.sqrt(plain.score(fresh)), rtol=1e-6)
    assert np.array_equal(dfm.score(fresh, score_type="root_fre"), root)
    if labels is None:
        nll, fre = plain.score(fresh, score_type=("nll", "fre"))
        np.testing.assert_allclose(both, nll + fre, rtol=1e-5)
    # Since it grows with fre, its decisions are those of fre.
    assert np.array_equal(dfm.p_value(fresh, score_type="root_fre"), plain.p_value(fresh))
    assert np.array_equal(dfm.predict(fresh), plain.predict(fresh))
    if calibration == "kfold":
        with pytest.raises(AttributeError, match="there is no one threshold"):
            _ = dfm.threshold_
    else:
        np.testing.assert_allclose(dfm.threshold_, np.sqrt(plain.threshold_), rtol=1e-6)
    p = dfm.p_value(fresh, score_type="both")
    assert ((p > 0) & (p <= 1)).all()
    assert dfm.drift(fresh).p_value == pytest.approx(plain.drift(fresh).p_value)
    if labels is not None:
        assert np.array_equal(dfm.predict_class(fresh), plain.predict_class(fresh))
        under = [dfm.score(fresh, labels=np.full(len(fresh), c)) for c in (0, 1)]
        np.testing.assert_allclose(np.min(under, axis=0), dfm.score(fresh), rtol=1e-6)
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model")
    assert np.array_equal(loaded.score(fresh), dfm.score(fresh))
    assert np.array_equal(loaded.p_value(fresh), dfm.p_value(fresh))
    assert np.array_equal(loaded.predict(fresh), dfm.predict(fresh))


@pytest.mark.usefixtures("registered")
def test_a_new_score_is_scored_without_each_row_exactly():
    rows = falling_rows(30, 12)
    dfm = pydfm.DFM(3, "root_fre").fit(rows)
    assert dfm.calibration_ == "loo"
    naive = [
        pydfm.DFM(3, "root_fre", calibration=None).fit(np.delete(rows, i, 0)).score(rows[[i]])[0]
        for i in range(30)
    ]
    np.testing.assert_allclose(dfm.held_out_scores_, naive, rtol=1e-5)


@pytest.mark.usefixtures("registered")
def test_a_new_score_is_known_where_a_model_is_asked():
    with pytest.raises(ValueError, match="'root_fre', 'both'"):
        pydfm.DFM(score_type="none").fit(np.eye(3))
    with pytest.warns(UserWarning, match="all rows of X are equal"):
        dfm = pydfm.DFM(score_type="root_fre").fit(np.ones((5, 3)))
    np.testing.assert_allclose(dfm.score(np.zeros((1, 3))), np.sqrt(3), rtol=1e-6)
    with pytest.raises(ValueError, match="score_type is 'both', which needs variance"):
        dfm.score(np.zeros((1, 3)), score_type="both")


@pytest.mark.usefixtures("registered")
def test_a_new_score_of_layers_is_combined(tiny_network, textures):
    options = {"layers": ("stem", "block"), "pool": 4, "image_size": (40, 48), "device": "cpu"}
    dfm = pydfm.DFM(2, ("root_fre", "fre"), backbone=tiny_network, image_score="sum", **options)
    dfm.fit(textures)
    each = dfm.layer_scores(textures, score_type=("root_fre", "fre"))
    for own in each.values():
        np.testing.assert_allclose(own[0], np.sqrt(own[1]), rtol=1e-6)
    rule = dfm.model_.combinations["root_fre"]
    want = rule.combine(np.stack([own[0] for own in each.values()]))
    np.testing.assert_allclose(dfm.score(textures)[0], want, rtol=1e-5)
    with pytest.raises(ValueError, match="'root_fre', of which a whole image has no map"):
        dfm.score_map(textures, score_type="root_fre")


def test_references_are_those_of_the_classes():
    rows, labels = labelled_rows((30, 40), 12)
    dfm = pydfm.DFM(3, calibration=None).fit(rows, labels=labels)
    want = [own.scores(rows)["fre"] for own in references(rows, labels, 3)]
    np.testing.assert_allclose(dfm.score(rows), np.min(want, axis=0), rtol=1e-4)
