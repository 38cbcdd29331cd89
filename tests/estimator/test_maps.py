"""Maps of the estimator, and the scores of images that standardised maps make."""

import numpy as np
import pytest
from fits import conformal_p_values, held_out_of, maps_dfm
from reference import falling_rows
from sklearn.base import clone

import pydfm
from pydfm.model.anomaly_map import standardise_held_out

LABELS = np.array(["a", "b"])[np.arange(12) % 2]
ROWS = falling_rows(60, 12, offset=1.0)


@pytest.fixture
def dfm(tiny_network):
    """Of two layers with maps, not fitted yet."""
    return pydfm.DFM(
        2,
        backbone=tiny_network,
        layers=("stem", "block"),
        pool=4,
        image_size=(40, 48),
        image_score="sum",
        n_threads=2,
        device="cpu",
    )


# Maps


@pytest.mark.parametrize("changes", [{}, {"pool": None}, {"layers": "block"}])
@pytest.mark.parametrize("spatial", ["flatten", "patch"])
def test_maps_have_the_size_of_the_input(dfm, textures, changes, spatial):
    dfm.set_params(spatial=spatial, **changes).fit(textures)
    maps = dfm.score_map(textures)
    assert (maps.shape, maps.dtype) == ((12, 40, 48), np.float32)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    np.testing.assert_allclose(dfm.score_map(dfm.extract(textures)), maps, rtol=1e-5)
    smoothed = dfm.score_map(textures, smoothing=2.0)
    assert smoothed.std() < maps.std()


def test_a_map_of_one_layer_sums_to_the_score(dfm, textures):
    # Without resampling: each position is a pixel.
    dfm.set_params(layers="stem", pool=None, image_size=(40, 48)).fit(textures)
    dfm.feature_spec_.grids[0]
    maps = dfm.model_.layers[0].maps(dfm.extract(textures), "fre", 1)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), dfm.score(textures), rtol=1e-4)
    assert dfm.score_map(textures).mean() == pytest.approx(maps.mean(), rel=1e-3)


def test_maps_show_where_a_picture_is_strange(dfm, textures):
    dfm.set_params(layers="block", pool=None, n_components=0.9)
    for spatial in ("flatten", "patch"):
        dfm = clone(dfm).set_params(spatial=spatial).fit(textures)
        spotted = textures[:1].copy()
        spotted[:, :, 8:16, 32:40] = 255 - spotted[:, :, 8:16, 32:40] // 8
        change = dfm.score_map(spotted)[0] - dfm.score_map(textures[:1])[0]
        place = np.unravel_index(change.argmax(), change.shape)
        assert 6 <= place[0] < 18
        assert 30 <= place[1] < 42


def test_patches_have_maps_of_every_type(dfm, textures):
    kinds = ("mahalanobis", "nll", "ppca", "relative_mahalanobis")
    dfm.set_params(spatial="patch", layers="block", score_type=kinds).fit(textures, labels=LABELS)
    for kind in kinds:
        assert np.isfinite(dfm.score_map(textures, score_type=kind)).all()


def patches_without_each(dfm, images, kind):
    """Scores of the positions of each image in the model of the others, by layer."""
    features = dfm.extract(images)
    found = [[] for _ in dfm.model_.layers]
    for i in range(len(images)):
        other = clone(dfm).set_params(calibration=None, backbone=dfm.backbone)
        other.fit(np.delete(images, i, axis=0))
        for own, layer in zip(found, other.model_.layers, strict=True):
            own.append(layer.patch_scores(features[[i]], kind, 1)[0])
    return [np.array(own) for own in found]


@pytest.mark.parametrize("kind", ["nll", "ppca"])
@pytest.mark.parametrize("other", ["fre", "nll", "ppca"])
def test_maps_of_layers_whose_scores_are_negative_have_one_scale(noise, kind, other):
    dfm = maps_dfm(spatial="patch", score_type=other)  # what decides has no say in it
    for parameter in dfm.backbone.parameters():
        parameter.data *= 0.01
    dfm.fit(noise)
    assert (dfm.model_.combinations[kind].mean < 0).all()
    fresh, want = dfm.extract(noise[:3]), 0
    finest = dfm.model_.layers[0].grid
    for layer, scores in zip(
        dfm.model_.layers, patches_without_each(dfm, noise, kind), strict=True
    ):
        own = (layer.maps(fresh, kind, 1) - scores.mean()) / scores.std()
        want = want + layer.grid.enlarge(own, (finest.height, finest.width))
    want = finest.enlarge(want, (16, 16))
    np.testing.assert_allclose(
        dfm.score_map(noise[:3], score_type=kind), want, rtol=1e-3, atol=1e-3
    )


@pytest.mark.filterwarnings("ignore:1 of 3 images were skipped")
def test_pictures_that_were_skipped_have_maps_of_nan(dfm, textures, pictures, tmp_path):
    dfm.set_params(on_error="skip").fit(textures)
    for i in range(3):
        pictures[i].save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"text")
    maps = dfm.score_map(tmp_path)
    assert np.isnan(maps[1]).all()
    np.testing.assert_allclose(maps[[0, 2]], dfm.score_map(textures[[0, 2]]), rtol=1e-3)
    with pytest.raises(ValueError, match="such an image has no class, so leave it out"):
        dfm.fit(textures, labels=LABELS).predict_class(tmp_path)


def test_maps_that_there_are_not_are_told(dfm, textures):
    dfm.fit(textures)
    with pytest.raises(ValueError, match="score_type is 'nll', of which a whole image has no"):
        dfm.score_map(textures, score_type="nll")
    with pytest.raises(ValueError, match="a map is of one type: pass score_type"):
        dfm.set_params(score_type=("fre", "nll")).score_map(textures)
    dfm.set_params(score_type="fre")
    # What counts is how it was fitted.
    with (
        pytest.warns(UserWarning, match="spatial changed after the fit"),
        pytest.raises(ValueError, match="of which a whole image has no map"),
    ):
        dfm.set_params(spatial="patch").score_map(textures, score_type="nll")
    for smoothing in (-1, np.inf, np.nan, "2", 49):
        with pytest.raises(ValueError, match=r"smoothing is .*; it must be a number of at least 0"):
            dfm.score_map(textures, smoothing=smoothing)
    features = dfm.extract(textures)
    features[3, 7] = np.nan
    with pytest.raises(ValueError, match="X contains NaN in row 3, column 7"):
        dfm.score_map(features)
    with pytest.raises(ValueError, match="fitted on features, which have no place in an image"):
        pydfm.DFM(4).fit(ROWS).score_map(ROWS)
    dfm = clone(dfm).set_params(layers="pool", spatial="flatten", pool=None).fit(textures)
    with pytest.raises(ValueError, match="features of 'pool' have one position in an image"):
        dfm.score_map(textures)


# Standardised maps


def naive_energies(features, grid, n_components):
    """Energies of each row of a layer under the model of the others."""
    energies = []
    for i, row in enumerate(features):
        others = np.delete(features, i, 0)
        _, _, axes = np.linalg.svd(others - others.mean(axis=0), full_matrices=False)
        axes, away = axes[:n_components], row - others.mean(axis=0)
        energies.append(away - away @ axes.T @ axes)
    return grid.energies(np.array(energies))


@pytest.mark.parametrize("pool", [1, (1, 2)])  # N < D in both layers; N > D in the second
def test_pictures_are_scored_by_standardised_maps(noise, pool):
    dfm = maps_dfm(pool=pool).fit(noise)
    assert dfm.image_score_ == "calibrated"
    features = dfm.extract(noise).astype(np.float64)
    grids = dfm.feature_spec_.grids
    parts = np.split(features, [grids[0].size], axis=1)
    energies = [naive_energies(*layer, 5) for layer in zip(parts, grids, strict=True)]

    def tops(maps):  # the means of 1 % and 10 % of 64 positions
        joined = maps[0] + grids[1].enlarge(maps[1], (8, 8))
        falling = -np.sort(-joined.reshape(len(joined), -1), axis=1)
        return np.stack([falling[:, 0], falling[:, :6].mean(axis=1)], axis=1)

    def shown(maps, scales):
        each = [own / scale for own, scale in zip(maps, scales, strict=True)]
        joined = each[0] + grids[1].enlarge(each[1], (8, 8))
        return grids[0].enlarge(joined, (16, 16))

    units = np.arange(40)
    held = tops([standardise_held_out(e, 0 * units, units) for e in energies])
    # A picture that was not fitted on.
    fresh = 255 - noise[:7]
    rows = np.split(dfm.extract(fresh).astype(np.float64), [grids[0].size], axis=1)
    raw, maps = [], []
    for layer, own, e, grid in zip(dfm.model_.layers, rows, energies, grids, strict=True):
        subspace = layer.density.subspaces[0]
        away = own - subspace.mean
        away -= away @ subspace.components.T @ subspace.components
        raw.append(grid.energies(away))
        deviation = np.maximum(e.std(axis=0), np.median(e.std(axis=0)))
        maps.append((raw[-1] - e.mean(axis=0)) / deviation)
    want = ((tops(maps) - held.mean(axis=0)) / held.std(axis=0)).sum(axis=1)
    np.testing.assert_allclose(dfm.score(fresh), want, rtol=1e-3, atol=1e-3)
    want = shown(raw, [e.mean() for e in energies])
    np.testing.assert_allclose(dfm.score_map(fresh), want, rtol=1e-4)
    # Those that were, without themselves.
    want, maxima = np.empty(40), np.empty(40)
    for i in range(40):
        others = units != i
        away = (held[i] - held[others].mean(axis=0)) / held[others].std(axis=0)
        want[i] = away.sum()
        scales = [e[others].mean() for e in energies]
        maxima[i] = shown([e[[i]] for e in energies], scales).max()
    np.testing.assert_allclose(held_out_of(dfm)[0], np.sort(want), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(dfm.map_threshold_, np.sort(maxima)[-4], rtol=1e-4)


def test_one_share_scores_by_its_mean_as_it_is(noise):
    dfm = maps_dfm(top_share=0.1).fit(noise)
    layers, features = dfm.model_.layers, dfm.extract(255 - noise[:7])
    each = [layer.scale.standardise(layer.maps(features, "fre", 1), None) for layer in layers]
    joined = each[0] + layers[1].grid.enlarge(each[1], (8, 8))
    want = np.sort(joined.reshape(7, -1), axis=1)[:, -6:].mean(axis=1)
    np.testing.assert_allclose(dfm.score(features), want, rtol=1e-5)


def test_maps_do_not_depend_on_how_images_are_scored(noise):
    maps = [
        maps_dfm(**own).fit(noise).score_map(noise[:3])
        for own in (
            {},
            {"image_score": "sum"},
            {"top_share": 0.5},
            {"combine": "max"},
            {"calibration": None},
        )
    ]
    for own in maps[1:]:
        np.testing.assert_allclose(own, maps[0], rtol=1e-5)


@pytest.mark.parametrize("parameters", [{}, {"image_score": "sum"}, {"spatial": "patch"}])
@pytest.mark.parametrize("labelled", [False, True])
def test_maps_of_a_split_have_a_threshold_from_what_is_held_out(noise, parameters, labelled):
    labels = np.array(["a", "b"] * 20) if labelled else None
    dfm = maps_dfm(calibration="split", **parameters).fit(noise, labels=labels)
    held = np.sort(dfm.held_out_names_)
    assert len(held) == 8  # one of each five of a class
    if labelled:
        assert (labels[held] == "a").sum() == 4
    dfm.set_params(alpha=0.25)
    maxima = np.sort(dfm.fitted_.held_out.map_maxima)
    assert dfm.map_threshold_ == maxima[-2]
    if not labelled:
        found = np.sort(dfm.score_map(noise[held]).max(axis=(1, 2)))
        np.testing.assert_allclose(found, maxima, rtol=1e-6)


@pytest.mark.parametrize("score_type", ["fre", "mahalanobis"])
@pytest.mark.parametrize("parameters", [{}, {"image_score": "sum"}])
def test_later_images_give_the_threshold_of_the_maps_that_there_are(noise, parameters, score_type):
    dfm = maps_dfm(score_type=score_type, **parameters).fit(noise[:20])
    dfm.recalibrate(noise[20:])
    maxima = dfm.score_map(noise[20:], score_type="fre").max(axis=(1, 2))
    np.testing.assert_allclose(dfm.fitted_.held_out.map_maxima, maxima, rtol=1e-6)
    assert dfm.fitted_.held_out.map_type == "fre"


def test_images_without_positions_have_no_threshold_of_maps(noise):
    dfm = maps_dfm(spatial="mean").fit(noise[:20])
    dfm.recalibrate(noise[20:])
    with pytest.raises(ValueError, match="has no maps of held-out images"):
        dfm.map_threshold_  # noqa: B018


def test_maps_of_one_score_type_are_not_held_to_those_of_another(noise, tmp_path):
    maps_dfm(spatial="patch").fit(noise[:20]).save(tmp_path / "m", keep=False)
    dfm = pydfm.load(tmp_path / "m", backbone=maps_dfm().backbone).set_params(alpha=0.25)
    level = dfm.map_threshold_
    dfm.set_params(score_type="mahalanobis")
    assert np.isfinite(dfm.score_map(noise)).all()
    says = "maps are of score_type='mahalanobis', and those of held-out images of 'fre'"
    for ask in (
        lambda: dfm.map_threshold_,
        lambda: dfm.map_range_,
        lambda: dfm.regions(noise[:1]),
    ):
        with pytest.raises(ValueError, match=says):
            ask()
    dfm.recalibrate(noise[20:])
    highest = dfm.score_map(noise[20:]).max(axis=(1, 2))
    np.testing.assert_allclose(np.sort(dfm.fitted_.held_out.map_maxima), np.sort(highest))
    assert dfm.map_threshold_ != level
    with pytest.raises(ValueError, match="maps of held-out images are of 'mahalanobis', while"):
        dfm.set_params(score_type="fre").recalibrate(noise[20:], extend=True)


def test_maps_of_good_pictures_seldom_pass_their_threshold():
    for parameters in ({}, {"image_score": "sum"}, {"spatial": "patch"}):
        shares = np.empty((6, 2))
        for seed, own in enumerate(shares):
            noise = np.random.default_rng(seed).integers(0, 256, (260, 3, 16, 16), dtype=np.uint8)
            dfm = maps_dfm(**parameters).fit(noise[:60])
            own[0] = np.mean(dfm.score_map(noise[60:]).max(axis=(1, 2)) > dfm.map_threshold_)
            own[1] = np.mean(dfm.p_value(noise[60:]) <= 0.1)
        # One fit to 60 images gives 0.1 with a deviation of 0.04.
        assert ((shares.mean(axis=0) > 0.05) & (shares.mean(axis=0) < 0.15)).all(), parameters


def test_classes_have_standardised_maps_of_their_own(noise):
    labels = np.array(["a", "b"] * 20)
    dfm = maps_dfm().fit(noise, labels=labels)
    under = np.stack([dfm.score(noise, labels=np.full(40, c)) for c in ("a", "b")])
    np.testing.assert_allclose(dfm.score(noise), under.min(axis=0))
    assert np.array_equal(dfm.predict_class(noise), np.array(["a", "b"])[under.argmin(axis=0)])
    p = np.stack(
        [conformal_p_values(s, own) for s, own in zip(under, held_out_of(dfm), strict=True)]
    )
    assert np.array_equal(dfm.p_value(noise), p.max(axis=0))


@pytest.mark.parametrize(
    ("parameters", "n", "want"),
    [
        ({}, 40, "calibrated"),
        ({}, 9, "calibrated"),
        ({}, 3, "calibrated"),
        ({"image_score": "calibrated"}, 3, "calibrated"),
        ({"image_score": "sum"}, 40, "sum"),
        ({"calibration": None}, 40, "sum"),
        ({"calibration": "kfold"}, 40, "calibrated"),
        ({"calibration": "split"}, 40, "calibrated"),
        ({"combine": "max"}, 40, "sum"),
        ({"spatial": "mean"}, 40, "sum"),
        ({"layers": "output", "pool": 4}, 40, "sum"),
        ({"spatial": "patch"}, 40, "top"),
        ({"spatial": "patch", "image_score": "max"}, 40, "max"),
        ({"spatial": "patch", "image_score": "calibrated"}, 40, "calibrated"),
        ({"regularization": "shrinkage"}, 40, "calibrated"),
    ],
)
@pytest.mark.filterwarnings("ignore:n_components is 5")
def test_which_score_a_picture_has(noise, parameters, n, want):
    dfm = maps_dfm(**parameters)
    if n < 5:
        dfm.set_params(n_components=2)
    assert dfm.fit(noise[:n]).image_score_ == want


@pytest.mark.parametrize("labels", [None, np.array([0, 1] * 20)])
def test_a_picture_scores_the_same_bits_in_any_batch(noise, labels):
    dfm = maps_dfm().fit(noise, labels=labels)
    features = dfm.extract(noise)
    scores, maps = dfm.score(features), dfm.score_map(features)
    for places in ([7], [0, 39], np.arange(5, 38)[::-1]):
        assert np.array_equal(dfm.score(features[places]), scores[places])
        assert np.array_equal(dfm.score_map(features[places]), maps[places])
    dfm.set_params(n_threads=1)
    assert np.array_equal(dfm.score(features), scores)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_other_score_types_are_those_of_whole_pictures(noise, n):
    kinds = ("ppca", "fre", "nll")[:n]
    both = maps_dfm().fit(noise).score(noise, score_type=kinds)
    plain = maps_dfm(image_score="sum").fit(noise).score(noise, score_type=kinds)
    for kind, own, want in zip(kinds, both, plain, strict=True):
        assert np.array_equal(own, want) == (kind != "fre")


def test_rules_that_do_not_fit_are_told(noise):
    for parameters, says in [
        ({"image_score": "top"}, "image_score is 'top', which spatial='flatten' does not have"),
        ({"image_score": "calibrated", "calibration": None}, "but calibration is None"),
        ({"image_score": "calibrated", "combine": "max"}, "and combine 'max'"),
        ({"image_score": "calibrated", "spatial": "mean"}, "but the features have no positions"),
    ]:
        with pytest.raises(ValueError, match=says):
            maps_dfm(**parameters).fit(noise)
    with pytest.raises(ValueError, match=r"needs 3 images .* the class 1 has 2; give it more"):
        maps_dfm(image_score="calibrated").set_params(n_components=None).fit(
            noise[:9], labels=[0] * 7 + [1] * 2
        )
    with pytest.raises(ValueError, match="but the features have no positions"):
        pydfm.DFM(image_score="calibrated").fit(ROWS)


@pytest.mark.filterwarnings("ignore:n_components is 5, but 6 of 6 classes")
@pytest.mark.parametrize("calibration", ["loo", "kfold", "split"])
def test_classes_of_one_picture_are_scored_and_saved_without(noise, tmp_path, calibration):
    dfm = maps_dfm(calibration=calibration, layers="0")
    with pytest.warns(UserWarning, match="the class 0 has 0: it is 'sum'; give more images"):
        dfm.fit(noise[:6], labels=np.arange(6))
    dfm.save(tmp_path / "model")
    other = pydfm.load(tmp_path / "model", backbone=dfm.backbone, device="cpu")
    assert np.array_equal(other.score(noise), dfm.score(noise))
    with pytest.raises(ValueError, match="of which there are no held-out scores; fit"):
        other.p_value(noise)
