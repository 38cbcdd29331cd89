"""Classes, score types, layers, spatial forms and maps of the estimator."""

import copy
import pickle

import numpy as np
import pytest
import torch
from reference import SCORE_TYPES, assert_scores_close, falling_rows, fit_reference
from sklearn.base import clone
from torch.utils.data import DataLoader, TensorDataset

import pydfm
from pydfm.model.anomaly_map import pool_positions
from pydfm.parameters import COMBINATIONS, PATCH_RULES

LABELS = np.arange(300) % 3
ROWS = falling_rows(300, 20) + 2.0 * LABELS[:, None]
NAMES = np.array(["cat", "dog", "eel"])
OTHERS = falling_rows(40, 20, seed=1) + 2.0 * (np.arange(40) % 3)[:, None]
KINDS = (*SCORE_TYPES, "relative_mahalanobis")

IMAGE_LABELS = np.array(["a", "b"])[np.arange(12) % 2]


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


# Score types


@pytest.mark.parametrize("kinds", [("fre",), ("ppca", "fre"), list(SCORE_TYPES)])
def test_several_score_types_come_at_once(kinds):
    dfm = pydfm.DFM(5).fit(ROWS)
    got = dfm.score(OTHERS, score_type=kinds)
    assert (got.shape, got.dtype) == ((len(kinds), 40), np.float32)
    for row, kind in zip(got, kinds, strict=True):
        assert np.array_equal(row, dfm.score(OTHERS, score_type=kind))
    several = pydfm.DFM(5, kinds).fit(ROWS)
    assert np.array_equal(several.score(OTHERS), got)
    assert clone(several).score_type == kinds
    assert several.score(OTHERS, score_type="nll").shape == (40,)


@pytest.mark.parametrize("kinds", [(), [], ("fre", "mse"), (None,), {"fre"}, ("fre", ("nll",))])
def test_score_types_that_there_are_not_are_told(kinds):
    with pytest.raises(
        ValueError, match=r"score_type is .*; it must be one of 'fre', 'mahalanobis"
    ):
        pydfm.DFM(5, kinds).fit(ROWS)
    with pytest.raises(
        ValueError, match=r"score_type is .*; it must be one of 'fre', 'mahalanobis"
    ):
        pydfm.DFM(5).fit(ROWS).score(OTHERS, score_type=kinds)


# Classes


@pytest.mark.parametrize("labels", [LABELS, NAMES[LABELS], NAMES[LABELS].tolist(), LABELS - 7])
def test_classes_have_models_of_their_own(labels):
    dfm = pydfm.DFM(4).fit(ROWS, labels=labels)
    assert dfm.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))
    each = [fit_reference(ROWS[c == LABELS], 4).scores(OTHERS) for c in range(3)]
    for kind in SCORE_TYPES:
        want = np.stack([scores[kind] for scores in each])
        assert_scores_close(dfm.score(OTHERS, score_type=kind), want.min(axis=0))
        nearest = dfm.set_params(score_type=kind).predict_class(OTHERS)
        assert np.array_equal(nearest, dfm.classes_[want.argmin(axis=0)])
        given = np.arange(40) % 3
        scores = dfm.score(OTHERS, labels=dfm.classes_[given], score_type=kind)
        assert_scores_close(scores, want[given, np.arange(40)])


def test_classes_may_be_ignored_or_share_a_subspace():
    plain = pydfm.DFM(4).fit(ROWS)
    ignored = pydfm.DFM(4, covariance="global").fit(ROWS, labels=LABELS)
    assert np.array_equal(ignored.score(OTHERS), plain.score(OTHERS))
    with pytest.raises(ValueError, match="the model has no classes; fit it with labels"):
        ignored.predict_class(OTHERS)
    tied = pydfm.DFM(4, covariance="tied").fit(ROWS, labels=LABELS)
    assert (tied.predict_class(ROWS) == LABELS).mean() > 0.9
    maha, relative = tied.score(OTHERS, score_type=("mahalanobis", "relative_mahalanobis"))
    want = fit_reference(ROWS, 4).scores(OTHERS)["mahalanobis"]
    np.testing.assert_allclose(maha - relative, want, rtol=1e-3, atol=1e-3)


def test_attributes_of_one_subspace_are_refused_to_several():
    dfm = pydfm.DFM(4).fit(ROWS, labels=LABELS)
    with pytest.raises(AttributeError, match=r"1 layer\(s\) and 3 class\(es\), each with a"):
        _ = dfm.components_
    assert not hasattr(pydfm.DFM(4).fit(ROWS), "classes_")
    assert dfm.n_features_in_ == 20


@pytest.mark.parametrize(
    ("labels", "error", "says"),
    [
        (LABELS[:-1], ValueError, "labels has 299 labels"),
        (LABELS + 0.5, ValueError, r"labels has 0\.5; they must be integers or strings"),
        (np.where(LABELS == 0, np.nan, LABELS), ValueError, "labels has nan"),
        (LABELS[:, None].repeat(2, 1), ValueError, r"labels has the shape \(300, 2\)"),
        (np.full(300, None), TypeError, "labels is of the type object"),
        ([["a"], ["b", "c"]], ValueError, "labels cannot be made an array"),
    ],
)
def test_labels_that_are_wrong_are_told(labels, error, says):
    with pytest.raises(error, match=says):
        pydfm.DFM(4).fit(ROWS, labels=labels)


def test_scores_under_classes_that_are_not_there_are_told():
    dfm = pydfm.DFM(4).fit(ROWS, labels=NAMES[LABELS])
    with pytest.raises(
        ValueError, match=r"labels has 'ant', which is none of the classes .* 'cat'"
    ):
        dfm.score(OTHERS, labels=np.full(40, "ant"))
    with pytest.raises(ValueError, match="labels has 1, which is none of the classes"):
        dfm.score(OTHERS, labels=np.full(40, 1))
    with pytest.raises(ValueError, match="labels has 39 labels"):
        dfm.score(OTHERS, labels=np.full(39, "cat"))
    with pytest.raises(ValueError, match="labels are given, but the model has no classes"):
        pydfm.DFM(4).fit(ROWS).score(OTHERS, labels=np.zeros(40, int))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"covariance": "full"}, "covariance is 'full'; it must be one of 'class', 'tied', 'glob"),
        ({"density": "kde"}, "density is 'kde'; it must be one of 'gaussian', 'gmm'"),
        ({"regularization": "ridge"}, "regularization is 'ridge'"),
        ({"regularization": -0.1}, r"regularization is -0\.1"),
        ({"combine": "mean"}, "combine is 'mean'; it must be one of 'sum', 'max', 'logistic'"),
        ({"spatial": "patches"}, "spatial is 'patches'; it must be one of 'flatten', 'mean', 'pat"),
        ({"image_score": "median"}, "image_score is 'median'; it must be one of"),
        ({"top_share": 1.5}, r"top_share is 1\.5; it must be a number of at least 0 and at most 1"),
        ({"top_share": np.nan}, "top_share is nan"),
        ({"top_share": (0.1, 2)}, "top_share is 2; it must be a number of at least 0 and at most"),
        ({"top_share": ()}, r"top_share is \(\), without a share; give one, several, or None"),
        (
            {"top_share": [0.01, 0.1], "spatial": "patch"},
            r"top_share is \[0\.01, 0\.1\], but image_score is None, which averages one share of",
        ),
        ({"calibration": "jackknife"}, "calibration is 'jackknife'"),
        ({"density": "gmm", "covariance": "tied"}, "a mixture is of one class"),
    ],
)
def test_a_parameter_out_of_range_is_named(parameters, says):
    with pytest.raises(ValueError, match=says):
        pydfm.DFM(**parameters).fit(ROWS)


# Layers


@pytest.mark.parametrize("combine", ["sum", "max"])
def test_scores_of_layers_are_combined(dfm, textures, combine):
    dfm.set_params(combine=combine).fit(textures)
    stem, block = dfm.layer_scores(textures, score_type=SCORE_TYPES).values()
    got = dfm.score(textures, score_type=SCORE_TYPES)
    features = dfm.extract(textures).astype(np.float64)
    columns = (slice(0, 240), slice(240, 420))
    for layer, scores in zip(columns, (stem, block), strict=True):
        want = fit_reference(features[:, layer], 2).scores(features[:, layer])
        for kind, row in zip(SCORE_TYPES, scores, strict=True):
            assert_scores_close(row, want[kind], atol=1e-5)
    for t, kind in enumerate(SCORE_TYPES):
        standardised = []
        for layer, scores in zip(columns, (stem, block), strict=True):
            left_out = np.array(
                [
                    fit_reference(np.delete(features[:, layer], i, axis=0), 2).scores(
                        features[[i], layer]
                    )[kind][0]
                    for i in range(12)
                ]
            )
            standardised.append((scores[t] - left_out.mean()) / left_out.std())
        want = np.sum(standardised, axis=0) if combine == "sum" else np.max(standardised, axis=0)
        np.testing.assert_allclose(got[t], want, rtol=1e-3, atol=1e-3)


def test_layers_are_named_in_their_scores(dfm, textures):
    dfm.fit(textures)
    one = dfm.layer_scores(textures)
    assert list(one) == ["stem", "block"]
    assert {scores.shape for scores in one.values()} == {(12,)}
    several = dfm.layer_scores(textures, score_type=("fre", "nll"))
    assert {scores.shape for scores in several.values()} == {(2, 12)}
    assert np.array_equal(several["block"][0], one["block"])
    alone = clone(dfm).set_params(layers="block").fit(textures)
    np.testing.assert_allclose(alone.score(textures), one["block"], rtol=1e-3)
    assert list(alone.layer_scores(textures)) == ["block"]
    features = pydfm.DFM(4).fit(ROWS)
    assert np.array_equal(features.layer_scores(OTHERS)["features"], features.score(OTHERS))


def test_classes_and_layers_go_together(dfm, textures):
    dfm.fit(textures, labels=IMAGE_LABELS)
    given = dfm.score(textures, labels=IMAGE_LABELS)
    each = dfm.layer_scores(textures, labels=IMAGE_LABELS)
    rule = dfm.model_.combinations["fre"]
    np.testing.assert_allclose(given, rule.combine(np.stack(list(each.values()))), rtol=1e-4)
    under = np.stack([dfm.score(textures, labels=np.full(12, c)) for c in "ab"])
    assert np.array_equal(dfm.predict_class(textures), np.array(["a", "b"])[under.argmin(axis=0)])
    assert np.array_equal(dfm.predict_class(dfm.extract(textures)), dfm.predict_class(textures))
    loader = DataLoader(TensorDataset(torch.from_numpy(textures), torch.arange(12) % 2), 5)
    assert dfm.fit(loader, labels="loader").classes_.tolist() == [0, 1]
    np.testing.assert_allclose(dfm.score(loader, labels="loader"), given, rtol=1e-3, atol=1e-3)


def test_relative_scores_of_layers_are_combined_where_they_are_asked_for(dfm, textures):
    kinds = ("mahalanobis", "relative_mahalanobis")
    dfm.set_params(score_type=kinds, covariance="tied").fit(textures, labels=IMAGE_LABELS)
    assert dfm.calibration_ == "loo"
    assert np.isfinite(dfm.score(textures)).all()
    dfm.set_params(score_type="fre").fit(textures, labels=IMAGE_LABELS)
    assert dfm.calibration_ == "loo"
    with pytest.raises(ValueError, match="for which the layers' scores cannot be combined"):
        dfm.score(textures, score_type="relative_mahalanobis")
    assert set(dfm.layer_scores(textures, score_type=kinds)) == {"stem", "block"}


def test_a_logistic_combination_learns_from_outliers(dfm, textures):
    noise = np.random.default_rng(0).integers(0, 256, (6, 3, 40, 48), dtype=np.uint8)
    noise[:, :, 8:32] = 255
    dfm.set_params(combine="logistic").fit(textures, outliers=noise)
    assert dfm.score(noise).min() > 0
    assert dfm.score(noise).min() > dfm.score(textures).max()
    features = dfm.extract(noise)
    of_features = clone(dfm).fit(textures, outliers=features)  # of a fit before, or none at all
    np.testing.assert_allclose(of_features.score(textures), dfm.score(textures), rtol=1e-4)
    with pytest.raises(ValueError, match="X has 7 features, but DFM is expecting 420"):
        clone(dfm).fit(textures, outliers=np.zeros((3, 7)))


def test_outliers_that_are_missing_or_of_no_use_are_told(dfm, textures, tmp_path):
    dfm.set_params(combine="logistic")
    with pytest.raises(ValueError, match=r"pass fit\(X, outliers=\.\.\.\)"):
        dfm.fit(textures)
    with pytest.raises(ValueError, match=r"outliers is given, but the model has one layer"):
        clone(dfm).set_params(layers="stem").fit(textures, outliers=textures)
    with pytest.raises(ValueError, match=r"outliers is given, but the model has one layer"):
        pydfm.DFM(4, combine="logistic").fit(ROWS, outliers=OTHERS)
    with pytest.raises(ValueError, match="combine is 'sum', which does not use it"):
        dfm.set_params(combine="sum").fit(textures, outliers=textures)
    one = clone(dfm).set_params(combine="logistic", layers="stem").fit(textures)
    assert np.array_equal(one.score(textures), clone(one).fit(textures).score(textures))

    (tmp_path / "bad.png").write_bytes(b"text")
    dfm.set_params(combine="logistic", on_error="skip")
    with pytest.raises(ValueError, match=r"outliers holds no image that can be read; .*bad\.png"):
        dfm.fit(textures, outliers=[tmp_path / "bad.png"])
    from PIL import Image

    Image.new("RGB", (48, 40)).save(tmp_path / "good.png")
    with pytest.warns(UserWarning, match=r"1 of 2 outliers were skipped; the first: .*bad\.png"):
        dfm.fit(textures, outliers=tmp_path)


def test_one_layer_takes_its_own_kernel(dfm, textures):
    dfm.set_params(pool=(5, 4)).fit(textures)
    assert [(g.height, g.width) for g in dfm.feature_spec_.grids] == [(4, 4), (5, 6)]
    assert dfm.feature_spec_.grids[0].reach == (1.0, 20 / 24)


# Spatial forms


def test_the_mean_over_positions_is_a_feature_for_each_channel(dfm, textures):
    dfm.set_params(pool=None).fit(textures)
    maps = dfm.extract(textures)
    means = np.concatenate(
        [
            part.reshape(12, grid.channels, -1).mean(axis=2)
            for part, grid in zip(
                np.split(maps, [8 * 480], axis=1), dfm.feature_spec_.grids, strict=True
            )
        ],
        axis=1,
    )
    mean = clone(dfm).set_params(spatial="mean").fit(textures)
    assert mean.n_features_in_ == 14
    np.testing.assert_allclose(mean.extract(textures), means, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="pool is 2, and spatial is 'mean'"):
        clone(mean).set_params(pool=2).fit(textures)


@pytest.mark.parametrize("rule", PATCH_RULES)
def test_patches_are_rows_of_one_model(dfm, textures, rule):
    dfm.set_params(layers="block", spatial="patch", image_score=rule, top_share=0.2)
    dfm.fit(textures[:8])
    grid = dfm.feature_spec_.grids[0]
    assert (grid.channels, grid.height, grid.width) == (6, 5, 6)
    maps = dfm.extract(textures).astype(np.float64).reshape(12, 6, 30)
    patches = maps.transpose(0, 2, 1).reshape(-1, 6)
    want = fit_reference(patches[: 8 * 30], 2).scores(patches)
    for kind in SCORE_TYPES:
        positions = want[kind].reshape(12, 30)
        pooled = pool_positions(positions, rule, 0.2)
        assert_scores_close(dfm.score(textures, score_type=kind), pooled, atol=1e-4)
    assert dfm.calibration_ == "loo"
    assert dfm.components_.shape == (2, 6)
    assert dfm.n_samples_ == 8


def test_patches_of_classes(dfm, textures):
    dfm.set_params(layers="block", spatial="patch", image_score="mean").fit(
        textures, labels=IMAGE_LABELS
    )
    under = np.stack([dfm.score(textures, labels=np.full(12, c)) for c in "ab"])
    np.testing.assert_allclose(dfm.score(textures), under.min(axis=0), rtol=1e-6)
    assert np.array_equal(dfm.predict_class(textures), np.array(["a", "b"])[under.argmin(axis=0)])


# Copies and files


FORMS = [
    {"covariance": "class"},
    {"covariance": "tied", "score_type": ("relative_mahalanobis", "nll")},
    {"density": "gmm", "score_type": "nll", "calibration": "kfold"},
    {"regularization": "shrinkage", "score_type": "ppca"},
    {"regularization": 1e-3, "score_type": "ppca"},
    {"spatial": "patch", "image_score": "sum"},
    {"spatial": "patch", "density": "gmm", "layers": "block", "pool": 8, "calibration": None},
    {"spatial": "patch", "covariance": "tied", "combine": "max"},
    {"spatial": "mean", "pool": None, "calibration": "kfold"},
    {"layers": "block", "calibration": None},
    {"combine": "logistic"},
    {"pool": (5, 4), "combine": "max"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_form_is_kept_by_copies_and_files(dfm, tiny_network, textures, tmp_path, form):
    noise = np.random.default_rng(0).integers(0, 256, (6, 3, 40, 48), dtype=np.uint8)
    outliers = noise if form.get("combine") == "logistic" else None
    labels = IMAGE_LABELS if "covariance" in form else np.arange(12) % 2 - 5
    dfm.set_params(**form).fit(textures, labels=labels, outliers=outliers)
    dfm.save(tmp_path / "model")
    loaded = pydfm.load(tmp_path / "model", backbone=tiny_network, device="cpu")
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
    features = dfm.extract(noise)
    for other in (loaded, copy.deepcopy(dfm), pickle.loads(pickle.dumps(dfm))):
        assert other.classes_.dtype == dfm.classes_.dtype
        assert np.array_equal(other.classes_, dfm.classes_)
        assert np.array_equal(other.score(features), dfm.score(features))
        given = other.classes_[np.arange(6) % 2]
        assert np.array_equal(
            other.score(features, labels=given), dfm.score(features, labels=given)
        )
        assert np.array_equal(other.predict_class(features), dfm.predict_class(features))
        for name, scores in dfm.layer_scores(features).items():
            assert np.array_equal(other.layer_scores(features)[name], scores)
        if form.get("spatial") != "mean":
            maps = dfm.score_map(features, score_type="fre")
            assert np.array_equal(other.score_map(features, score_type="fre"), maps)
        assert other.calibration_ == dfm.calibration_
        assert other.feature_spec_ == dfm.feature_spec_
    assert np.array_equal(loaded.score(noise), dfm.score(noise))


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_scores_have_the_same_bits_on_any_number_of_threads(dfm, textures, combine):
    noise = np.random.default_rng(0).integers(0, 256, (6, 3, 40, 48), dtype=np.uint8)
    outliers = noise if combine == "logistic" else None
    found = []
    for n_threads in (1, 2, 5):
        own = clone(dfm).set_params(combine=combine, n_threads=n_threads, spatial="patch")
        own.fit(textures, labels=IMAGE_LABELS, outliers=outliers)
        found.append((own.score(noise), own.score_map(noise)))
    for scores, maps in found[1:]:
        assert np.array_equal(scores, found[0][0])
        assert np.array_equal(maps, found[0][1])
