import numpy as np
import pytest
import torch
from torch import nn

import pydfm


@pytest.fixture
def few():
    """Three pictures of horizontal stripes."""
    rng = np.random.default_rng(0)
    stripes = rng.integers(40, 210, (3, 3, 32, 1)) + rng.integers(0, 10, (3, 3, 32, 32))
    return stripes.astype(np.uint8)


def dfm(**parameters):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4, bias=False))
    own = {"backbone": network, "layers": "0", "spatial": "patch", "image_size": 32, "alpha": 0.3}
    return pydfm.DFM(3, **{**own, **parameters}, device="cpu", augment="rotate")


def turned(images):
    return np.concatenate([np.rot90(images, k, axes=(2, 3)) for k in range(4)])


@pytest.mark.parametrize("spatial", ["patch", "flatten"])
@pytest.mark.filterwarnings("ignore:image_score")
def test_turned_copies_are_fitted_in_the_group_of_their_image(few, spatial):
    model = dfm(spatial=spatial, image_score="sum").fit(few)
    by_hand = pydfm.DFM(**{**model.get_params(), "augment": None})
    by_hand.fit(turned(few), groups=[0, 1, 2] * 4)
    assert model.n_samples_ == by_hand.n_samples_ == 12
    np.testing.assert_allclose(model.score(few), by_hand.score(few), rtol=1e-5)
    np.testing.assert_allclose(model.p_value(few), by_hand.p_value(few))
    assert model.smallest_alpha_ == by_hand.smallest_alpha_ == 0.25  # of three images
    np.testing.assert_allclose(model.held_out_scores_, by_hand.held_out_scores_, rtol=1e-5)


def test_a_direction_that_was_not_fitted_is_normal_too(few):
    plain = pydfm.DFM(**{**dfm().get_params(), "augment": None}).fit(few)
    other = np.rot90(few, 1, axes=(2, 3))
    assert plain.score(other).mean() > 1.5 * plain.score(few).mean()
    np.testing.assert_allclose(
        dfm().fit(few).score(other).mean(), dfm().fit(few).score(few).mean(), rtol=0.2
    )


def test_groups_and_batches_keep_copies_together(few):
    whole = dfm(calibration="loo").fit(few, groups=["a", "a", "b"])
    assert whole.smallest_alpha_ == pytest.approx(1 / 3)
    parts = dfm().partial_fit(few[:2]).partial_fit(few[2:])
    assert parts.smallest_alpha_ == 0.25
    np.testing.assert_allclose(parts.score(few), dfm().fit(few).score(few), rtol=1e-5)


def test_names_and_files_stay(few, tmp_path):
    model = dfm().fit(few)
    assert sorted(model.held_out_names_.tolist()) == sorted(["0", "1", "2"] * 4)
    model.save(tmp_path / "m.pydfm")
    again = pydfm.load(tmp_path / "m.pydfm", backbone=model.backbone, device="cpu")
    assert again.augment == "rotate"
    assert np.array_equal(again.score(few), model.score(few))


def test_what_cannot_be_turned_is_refused(few, tmp_path):
    with pytest.raises(ValueError, match="augment is 'rotate', but X holds features"):
        pydfm.DFM(augment="rotate").fit(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="but checkpoint is given"):
        dfm().fit(few, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="but fit_predict judges"):
        dfm().fit_predict(few)
    with pytest.raises(ValueError, match="but they have 24 x 32 pixels"):
        dfm(image_size=(24, 32)).fit(few)
    with pytest.raises(ValueError, match="forget does not know the turned copies"):
        dfm().fit(few).forget(few[:1])
