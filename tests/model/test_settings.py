import numpy as np
import pytest
from fits import settings_of

from pydfm.features.grid import Grid

MAPS = (Grid(4, 8, 8), Grid(8, 4, 4))
POINTS = (Grid(64, 1, 1),)


@pytest.mark.parametrize(
    ("parameters", "held_out"),
    [
        ({}, "loo"),
        ({"calibration": "kfold"}, "kfold"),
        ({"calibration": None}, None),
        ({"calibration": "split"}, None),
        ({"score_type": ("fre", "nll")}, "loo"),
        ({"score_type": ("fre", "relative_mahalanobis")}, "loo"),
        ({"max_memory": "1GB"}, "loo"),
        ({"density": "gmm", "calibration": "kfold"}, "kfold"),
        ({"density": "gmm", "calibration": "split"}, None),
        ({"regularization": 0.1}, "loo"),
        ({"regularization": "shrinkage"}, "loo"),
        ({"covariance": "tied"}, "loo"),
    ],
)
def test_folds_are_for_what_was_asked(parameters, held_out):
    found = settings_of(**parameters)
    assert found.held_out == held_out
    assert found.n_folds == (10 if held_out == "kfold" else 1)


@pytest.mark.parametrize(
    ("parameters", "how"),
    [
        ({}, "loo"),
        ({"calibration": "kfold"}, "kfold"),
        ({"calibration": "split"}, "split"),
        ({"calibration": "split", "density": "gmm"}, "split"),
        ({"calibration": None}, None),
    ],
)
def test_how_held_out_scores_are_made(parameters, how):
    assert settings_of(**parameters).how == how
    assert settings_of(**parameters).split == (how == "split")


def test_mixtures_are_held_out_in_folds_with_a_warning():
    says = r"density is 'gmm', .*: calibration is 'kfold' in place of 'loo', .* 10 scores more"
    with pytest.warns(UserWarning, match=says):
        found = settings_of(density="gmm")
    assert (found.held_out, found.how, found.n_folds) == ("kfold", "kfold", 10)
    # Also for what the fit itself needs, without a warning where nothing is to be decided.
    assert settings_of(MAPS, density="gmm", calibration=None).held_out == "kfold"
    assert settings_of(MAPS, density="gmm", calibration="split").how == "split"


def test_several_layers_are_combined_by_held_out_scores_in_any_case():
    found = settings_of(MAPS, calibration=None)
    assert (found.held_out, found.how) == ("loo", None)
    assert settings_of(MAPS, calibration=None, spatial="patch").held_out == "loo"
    assert settings_of(MAPS[:1], calibration="split").held_out == "loo"  # standardised maps


@pytest.mark.parametrize(
    ("grids", "parameters", "rule", "map_type"),
    [
        ((None,), {}, None, None),
        (MAPS, {}, None, "fre"),
        (MAPS, {"score_type": "nll"}, None, "fre"),
        (MAPS, {"image_score": "sum"}, "sum", "fre"),
        (MAPS, {"image_score": "calibrated"}, "calibrated", "fre"),
        (MAPS, {"combine": "max"}, "sum", "fre"),
        (MAPS, {"calibration": None}, None, None),
        (MAPS, {"spatial": "mean"}, None, None),
        (POINTS, {}, None, None),
        (MAPS, {"spatial": "patch"}, "top", "fre"),
        (MAPS, {"spatial": "patch", "score_type": ("nll", "fre")}, "top", "nll"),
        (MAPS, {"spatial": "patch", "image_score": "max"}, "max", "fre"),
        (MAPS, {"spatial": "patch", "image_score": "calibrated"}, "calibrated", "fre"),
        (MAPS, {"spatial": "patch", "calibration": None}, "top", None),
        (POINTS, {"spatial": "patch"}, "top", None),
    ],
)
def test_rules_of_maps(grids, parameters, rule, map_type):
    found = settings_of(grids, **parameters)
    assert (found.rule, found.map_type) == (rule, map_type)


@pytest.mark.parametrize("grids", [(None,), POINTS])
def test_standardised_maps_need_positions(grids):
    with pytest.raises(ValueError, match="image_score is 'calibrated', but the features have no"):
        settings_of(grids, image_score="calibrated")


def test_memory_is_shared_among_layers_folds_and_mixtures():
    assert settings_of().max_bytes is None
    assert settings_of().cell_bytes is None
    assert settings_of(max_memory=1000, calibration=None).cell_bytes == 1000
    assert settings_of(max_memory="1kB", calibration=None, density="gmm").cell_bytes == 500
    assert settings_of(max_memory=1000).cell_bytes == 1000
    folds = settings_of(max_memory=1000).in_folds()
    assert folds.cell_bytes == 1000 * 3 // 40
    assert settings_of(MAPS, max_memory=1000, calibration="kfold").max_bytes == 500
    # A quarter is for rows that are scored by the other folds.
    rows = np.zeros((500, 2))
    sample = folds.held_sample().add(rows, np.arange(500))
    assert sample.n_bytes <= 250 // 5  # of each fold


def test_the_first_difference_is_named():
    one = settings_of()
    assert one.difference(settings_of()) is None
    assert one.difference(settings_of(n_components=4)) == "n_components"
    assert one.difference(settings_of(covariance="tied", random_state=3)) == "covariance"
    assert one.difference(settings_of(alpha=0.5, n_threads=3, batch_size=1)) is None
    assert one.difference(settings_of(score_type="relative_mahalanobis")) is None
    assert one.difference(one.in_folds()) == "held_out"


def test_samples_hold_whole_images_within_their_memory():
    one = settings_of()
    assert (
        one.cell_sample(4, 1, of_class=False).add(np.zeros((6000, 4)), np.arange(6000)).n_rows
        == 5000
    )
    assert (
        one.cell_sample(4, 1, of_class=True).add(np.zeros((6000, 4)), np.arange(6000)).n_rows
        == 1000
    )
    # Of patches, as many images; within a limit of memory at least two.
    places = np.repeat(np.arange(3000), 9)
    patches = one.cell_sample(4, 9, of_class=True).add(np.zeros((27_000, 4)), places)
    assert len(np.unique(patches.take().places)) == 1000
    few = settings_of(max_memory=4000).cell_sample(4, 9, of_class=False)
    places = few.add(np.zeros((900, 4)), np.repeat(np.arange(100), 9)).take().places
    assert (np.bincount(places) == 9).sum() >= 2
    assert settings_of(calibration="kfold").cell_sample(4, 1, of_class=False) is None
    assert settings_of(calibration=None).cell_sample(4, 1, of_class=False) is None
    # Those of a split only tell whether rows are alike.
    some = settings_of(calibration="split").cell_sample(4, 1, of_class=False)
    assert some.add(np.zeros((6000, 4)), np.arange(6000)).n_rows == 500


@pytest.mark.parametrize(
    ("top_share", "calibrated", "patches"),
    [(None, (0.01, 0.1), 0.1), (0.2, (0.2,), 0.2), ([0.3, np.float32(0.5)], (0.3, 0.5), 0.5)],
)
def test_shares_of_positions_are_one_or_several(top_share, calibrated, patches):
    found = settings_of(MAPS, top_share=top_share)
    assert (found.calibrated_shares, found.patch_share) == (calibrated, patches)
    assert found.difference(settings_of(MAPS, top_share=top_share)) is None
