import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, TensorDataset

import pydfm
from pydfm.features.grid import Grid
from pydfm.features.inputs.sources import list_images


@pytest.fixture
def dfm(tiny_network):
    """Not fitted yet; takes the textures as they are."""
    return pydfm.DFM(
        3,
        backbone=tiny_network,
        layers=("stem", "block"),
        image_size=(40, 48),
        batch_size=4,
        n_threads=2,
        device="cpu",
    )


@pytest.fixture
def bad_folder(pictures, tmp_path):
    """The first six pictures, of which 1 and 4 cannot be read."""
    for i, picture in enumerate(pictures[:6]):
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"This is text.")
    whole = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def stripes(n, seed, *, upright):
    """Noisy stripes, uint8 (n, 3, 48, 48), of random phase, upright or lying."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (n, 1, 1, 1))
    wave = np.sin(np.arange(48) / 2 + phase)
    wave = wave if upright else wave.swapaxes(2, 3)
    noise = rng.normal(scale=20, size=(n, 3, 48, 48))
    return np.clip(128 + 60 * wave + noise, 0, 255).astype(np.uint8)


# Scores


def test_foreign_textures_score_higher_than_normal_ones():
    dfm = pydfm.DFM(weights=None, layers="layer2", pool=3, image_size=48)
    dfm.fit(stripes(40, 0, upright=True))
    normal, foreign = stripes(20, 1, upright=True), stripes(20, 2, upright=False)
    scores = np.concatenate([dfm.score(normal), dfm.score(foreign)])
    assert roc_auc_score([0] * 20 + [1] * 20, scores) > 0.9


@pytest.mark.parametrize("score_type", ["fre", "mahalanobis", "nll", "ppca"])
def test_images_score_as_their_features_do(dfm, textures, score_type):
    dfm.set_params(score_type=score_type, layers="block", image_score="sum").fit(textures[:8])
    features = dfm.extract(textures)
    assert features.shape == (12, dfm.n_features_in_)
    assert features.dtype == np.float32
    scores = dfm.score(textures)
    assert scores.shape == (12,)
    assert scores.dtype == np.float32
    assert np.array_equal(dfm.score(features), scores)
    of_features = pydfm.DFM(3, score_type).fit(features[:8])
    np.testing.assert_allclose(of_features.score(features), scores, rtol=1e-4)


def test_a_picture_has_the_same_bits_however_it_comes(dfm, textures, pictures, picture_folder):
    want = dfm.fit(textures).score(textures)
    paths = list_images(picture_folder)
    tensor = torch.from_numpy(textures)
    for X in (
        picture_folder,
        paths,
        np.array(paths),
        pictures,
        tensor,
        tensor.contiguous(memory_format=torch.channels_last),
        list(textures),
        DataLoader(tensor, batch_size=4),
        DataLoader(TensorDataset(tensor, torch.arange(12)), batch_size=4),
        TensorDataset(tensor, torch.arange(12)),
    ):
        assert np.array_equal(dfm.score(X), want)
        assert np.array_equal(clone(dfm).fit(X).score(textures), want)
    assert np.array_equal(dfm.score(picture for picture in pictures), want)


def test_floats_score_close_to_bytes(dfm, textures):
    want = dfm.fit(textures[:8]).score(textures)
    for dtype in (np.float32, np.float64):
        np.testing.assert_allclose(dfm.score((textures / 255).astype(dtype)), want, rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 32])
def test_scores_do_not_depend_on_the_batch_size(dfm, textures, batch_size):
    want = dfm.fit(textures[:8]).score(textures)
    other = clone(dfm).set_params(batch_size=batch_size).fit(textures[:8])
    np.testing.assert_allclose(other.score(textures), want, rtol=1e-3)
    assert other.n_samples_ == 8


def test_scores_have_the_same_bits_on_any_number_of_threads(dfm, picture_folder):
    want = dfm.fit(picture_folder).score(picture_folder)
    for n_threads in (1, 3, 8):
        other = clone(dfm).set_params(n_threads=n_threads).fit(picture_folder)
        assert np.array_equal(other.score(picture_folder), want)


def test_a_single_picture_gets_the_score_it_has_among_others(dfm, textures, pictures):
    want = dfm.fit(textures).score(textures)[7:8]
    for one in (pictures[7], textures[7], textures[7:8]):
        np.testing.assert_allclose(dfm.score(one), want, rtol=1e-3)


def test_labels_come_from_arrays_folders_and_loaders(dfm, textures, pictures, tmp_path):
    labels = np.where(np.arange(12) % 2, "b", "a")
    dfm.set_params(layers="block", n_components=1)
    want = dfm.fit(textures, labels=labels).score(textures)
    assert dfm.classes_.tolist() == ["a", "b"]
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (tmp_path / label / "more").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / label / "more" / f"{i:02}.png")
    order = np.argsort(labels, kind="stable")
    folders = clone(dfm).fit(tmp_path, labels="folders")
    np.testing.assert_allclose(folders.score(tmp_path), want[order], rtol=1e-3)
    assert folders.predict_class(tmp_path).tolist() == dfm.predict_class(textures)[order].tolist()
    given = dfm.score(textures, labels=labels)
    np.testing.assert_allclose(folders.score(tmp_path, labels="folders"), given[order], rtol=1e-3)

    codes = torch.arange(12) % 2
    loader = DataLoader(TensorDataset(torch.from_numpy(textures), codes), batch_size=5)
    loaded = clone(dfm).fit(loader, labels="loader")
    np.testing.assert_allclose(loaded.score(textures), want, rtol=1e-3)
    assert loaded.classes_.tolist() == [0, 1]
    np.testing.assert_allclose(loaded.score(loader, labels="loader"), given, rtol=1e-3)
    np.testing.assert_allclose(loaded.score(loader.dataset, labels="loader"), given, rtol=1e-3)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("folders", "labels is 'folders', which needs X to be a folder"),
        ("loader", "labels is 'loader', but X is no loader"),
        ("folder", "labels is 'folder'; it must be one of 'folders', 'loader'"),
        (np.zeros(11, int), "labels has 11 labels, and X has more rows"),
        (np.zeros(13, int), "labels has 13 labels, and X has 12 rows or images"),
    ],
)
def test_labels_that_do_not_fit_are_told(dfm, textures, labels, says):
    with pytest.raises(ValueError, match=says):
        dfm.fit(textures, labels=labels)


def test_pictures_beside_the_folders_of_classes_are_told(dfm, picture_folder):
    with pytest.raises(ValueError, match="lies in no subfolder of"):
        dfm.fit(picture_folder, labels="folders")


def test_a_loader_without_labels_is_told(dfm, textures):
    loader = DataLoader(torch.from_numpy(textures), batch_size=5)
    with pytest.raises(ValueError, match="X yields no labels"):
        dfm.fit(loader, labels="loader")
    pairs = [(textures[:5], np.zeros(4, int))]
    with pytest.raises(ValueError, match=r"labels of the shape \(4,\) with a batch of 5"):
        dfm.fit(iter(pairs), labels="loader")


def test_many_threads_may_score_at_once(dfm, textures):
    want = dfm.fit(textures).score(textures)
    found = [None] * 4

    def score(i):
        found[i] = dfm.score(textures)

    threads = [threading.Thread(target=score, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(scores, want) for scores in found)


# Pictures that cannot be read


def test_a_picture_that_cannot_be_read_ends_the_fit_and_the_score(dfm, textures, bad_folder):
    with pytest.raises(pydfm.ImageError, match=r"cannot read image '.*1\.png'"):
        dfm.fit(bad_folder)
    with pytest.raises(NotFittedError):
        dfm.score(bad_folder)
    with pytest.raises(pydfm.ImageError, match=r"cannot read image '.*1\.png'"):
        dfm.fit(textures).score(bad_folder)


def test_pictures_that_cannot_be_read_can_be_skipped(dfm, textures, bad_folder):
    dfm.set_params(on_error="skip", layers="block")
    with pytest.warns(UserWarning, match=r"2 of 6 images were skipped; the first: .*1\.png"):
        dfm.fit(bad_folder)
    assert dfm.n_samples_ == 4
    assert [skipped.index for skipped in dfm.skipped_] == [1, 4]
    good = [0, 2, 3, 5]
    np.testing.assert_allclose(
        dfm.mean_, clone(dfm).fit(textures[good]).mean_, rtol=1e-3, atol=1e-4
    )

    with pytest.warns(UserWarning, match="2 of 6 images were skipped"):
        scores = dfm.score(bad_folder)
    assert np.isnan(scores[[1, 4]]).all()
    np.testing.assert_allclose(scores[good], dfm.score(textures[good]), rtol=1e-3, atol=1e-3)
    assert dfm.skipped_ == []

    with pytest.warns(UserWarning, match="2 of 6 images were skipped"):
        features = dfm.extract(bad_folder)
    assert np.isnan(features).all(axis=1).tolist() == [False, True, False, False, True, False]


def test_a_score_may_skip_all_and_a_fit_may_not(dfm, textures, bad_folder):
    dfm.set_params(on_error="skip").fit(textures)
    bad = [bad_folder / "1.png", bad_folder / "4.png"]
    with pytest.warns(UserWarning, match="2 of 2 images were skipped"):
        assert np.isnan(dfm.score(bad)).all()
    with pytest.raises(
        ValueError, match=r"X has 1 images that can be read, .* at least two; .*1\.p"
    ):
        dfm.fit([bad_folder / "0.png", *bad])


def test_a_fit_needs_two_images(dfm, pictures):
    with pytest.raises(ValueError, match=r"n_samples=1; fit needs at least two rows \(images\)"):
        dfm.fit(pictures[:1])


# Images and features


def test_images_need_a_model_of_images(textures):
    dfm = pydfm.DFM(2).fit(np.random.default_rng(0).normal(size=(20, 6)))
    for method in (dfm.score, dfm.extract):
        with pytest.raises(ValueError, match=r"fitted on features \(N, 6\); fit it on images"):
            method(textures)


def test_features_must_be_as_many_as_those_of_the_images_fitted(dfm, textures):
    dfm.fit(textures)
    with pytest.raises(ValueError, match="X has 7 features, but DFM is expecting"):
        dfm.score(np.zeros((3, 7)))


def test_the_kind_of_model_is_that_of_the_last_fit(dfm, textures):
    features = dfm.fit(textures).extract(textures)
    assert dfm.feature_spec_.layers == ("stem", "block")
    assert dfm.feature_spec_.grids == (Grid(8, 20, 24), Grid(6, 20, 24))
    assert dfm.fit(features).feature_spec_ is None
    with pytest.raises(ValueError, match="fitted on features"):
        dfm.extract(textures)


def test_a_fit_that_fails_leaves_the_earlier_model(dfm, textures, bad_folder):
    want = dfm.fit(textures).score(textures)
    floats = np.full((5, 3, 40, 48), np.nan)
    for X, changes in (
        (bad_folder, {}),
        (floats, {}),
        (textures[:1], {}),
        (textures, {"layers": "gone"}),
        (textures, {"layers": "head", "pool": 2}),
        (textures, {"n_components": 99}),
        (textures, {"batch_size": 0}),
    ):
        before = dfm.get_params(deep=False)
        for name, value in changes.items():
            setattr(dfm, name, value)
        with pytest.raises(ValueError, match=r"."):
            dfm.fit(X)
        assert np.array_equal(dfm.set_params(**before).score(textures), want)


# Parameters and copies


def test_the_module_of_the_user_stays_as_it_is(dfm, tiny_network, textures):
    tiny_network.train()
    before = copy.deepcopy(tiny_network.state_dict())
    dfm.set_params(precision="bfloat16").fit(textures).score(textures)
    assert dfm.backbone is tiny_network
    assert all(module.training for module in tiny_network.modules())
    assert not any(module._forward_hooks for module in tiny_network.modules())
    assert all(
        torch.equal(value, before[name]) for name, value in tiny_network.state_dict().items()
    )
    assert all(p.requires_grad and p.dtype == torch.float32 for p in tiny_network.parameters())


def test_a_change_of_the_module_after_the_fit_changes_no_score(dfm, tiny_network, textures):
    want = dfm.fit(textures).score(textures)
    with torch.no_grad():
        tiny_network.stem.weight.zero_()
    assert np.array_equal(dfm.score(textures), want)
    # A copy takes the network from the module, and tells that it is another one.
    with pytest.raises(ValueError, match="are not the ones the model was fitted with"):
        copy.deepcopy(dfm).score(textures)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))]
)
def test_copies_score_the_same_bits(dfm, textures, copied):
    dfm.fit(textures[:8])
    other = copied(dfm)
    assert np.array_equal(other.score(textures), dfm.score(textures))
    assert other.feature_spec_ == dfm.feature_spec_


def test_a_clone_has_the_parameters_but_not_the_fit(dfm, textures):
    dfm.fit(textures)
    other = clone(dfm)
    assert set(other.get_params()) == set(dfm.get_params())
    assert other.layers == ("stem", "block")
    with pytest.raises(NotFittedError):
        other.score(textures)
    assert np.array_equal(other.fit(textures).score(textures), dfm.score(textures))


def test_fit_leaves_parameters_and_images_as_they_are(dfm, textures):
    before, images = dfm.get_params(), textures.copy()
    dfm.fit(images).score(images)
    assert dfm.get_params() == before
    assert np.array_equal(images, textures)


def test_a_saved_model_scores_the_same_bits(dfm, tiny_network, textures, tmp_path):
    dfm.fit(textures[:8]).save(tmp_path / "own.pydfm")
    own = pydfm.load(tmp_path / "own.pydfm", backbone=tiny_network, device="cpu")
    assert np.array_equal(own.score(textures), dfm.score(textures))
    assert own.feature_spec_ == dfm.feature_spec_
    with pytest.raises(ValueError, match="backbone is needed"):
        pydfm.load(tmp_path / "own.pydfm")

    named = pydfm.DFM(2, weights=None, layers="layer1", pool=4, image_size=32, random_state=3)
    named.fit(textures).save(tmp_path / "named.pydfm")
    loaded = pydfm.load(tmp_path / "named.pydfm")
    assert np.array_equal(loaded.score(textures), named.score(textures))
    assert loaded.extract(textures).shape == (12, 64 * 2 * 2)


def test_images_are_let_go_after_the_fit(dfm, pictures):
    picture = Image.new("RGB", (48, 40))
    gone = weakref.ref(picture)
    dfm.fit([picture, *pictures])
    del picture
    gc.collect()
    assert gone() is None


# Features that are not finite


class DividesByContrast(torch.nn.Module):
    """Gives NaN for an image of one colour."""

    def forward(self, batch):
        return (batch / batch.std((2, 3), keepdim=True)).amax((2, 3))


@pytest.fixture
def by_contrast(textures):
    dfm = pydfm.DFM(2, backbone=DividesByContrast(), image_size=(40, 48), batch_size=4)
    return dfm.fit(textures)


@pytest.mark.parametrize("method", ["score", "fit", "partial_fit", "extract"])
def test_an_image_of_which_the_network_makes_nan_is_named_or_skipped(
    by_contrast, textures, pictures, tmp_path, method
):
    black = textures.copy()
    black[9] = 0
    with pytest.raises(pydfm.ImageError, match=r"^the network gives NaN or infinity for image 9 "):
        getattr(by_contrast, method)(black)
    for i, picture in enumerate(pictures):
        (picture if i != 9 else Image.new("RGB", picture.size)).save(tmp_path / f"{i:02}.png")
    with pytest.raises(pydfm.ImageError, match=r"gives NaN or infinity for image '.*09\.png'$"):
        getattr(by_contrast, method)(tmp_path)
    by_contrast.set_params(on_error="skip")
    with pytest.warns(UserWarning, match=r"1 of 12 images were skipped; .* gives NaN"):
        found = getattr(by_contrast, method)(tmp_path)
    assert [one.index for one in by_contrast.skipped_] == [9]
    if method == "score":
        assert np.isnan(found).nonzero()[0].tolist() == [9]
