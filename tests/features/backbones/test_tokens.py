import numpy as np
import pytest
import torch
from torch import nn

import pydfm
from pydfm.features.backbones import load_network
from pydfm.features.backbones.tokens import as_map, check_patches, patch_of, token_grid
from pydfm.features.network import Backbone
from pydfm.features.transforms import Preprocessing

RAW = Preprocessing((32, 48), None, mean=(0.0,) * 3, std=(1.0,) * 3)


class Tokens(nn.Module):
    """Mean colours of squares of 8 pixels as tokens, after `prefix` others."""

    def __init__(self, prefix, *, visible):
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 8, stride=8) if visible else nn.AvgPool2d(8)
        self.prefix = prefix

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :1]] * self.prefix + [tokens], dim=1)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_are_arranged_by_the_patches_that_are_seen(prefix):
    torch.manual_seed(0)
    module = Tokens(prefix, visible=True).eval()
    backbone = Backbone(load_network(module, None, "output"), RAW, device="cpu")
    (grid,) = backbone.grids
    assert (grid.channels, grid.height, grid.width) == (4, 4, 6)
    images = torch.rand(2, 3, 32, 48)
    with torch.inference_mode():
        want = module.embed(images).flatten(1)
    np.testing.assert_allclose(backbone(images.numpy()), want, rtol=1e-5, atol=1e-6)


def test_tokens_whose_grid_cannot_be_seen_need_to_be_told(textures, tmp_path):
    module = Tokens(1, visible=False)
    with pytest.raises(ValueError, match=r"gives 31 tokens per image, whose grid cannot be seen"):
        pydfm.DFM(backbone=module, image_size=(40, 48)).fit(textures)
    dfm = pydfm.DFM(3, backbone=module, image_size=(40, 48), tokens=1, alpha=0.1).fit(textures)
    assert dfm.score_map(textures).shape == (12, 40, 48)
    (grid,) = dfm.feature_spec_.grids
    assert (grid.channels, grid.height, grid.width) == (3, 5, 6)
    dfm.save(tmp_path / "m.pydfm")
    again = pydfm.load(tmp_path / "m.pydfm", backbone=module)
    assert again.feature_spec_.tokens == 1
    assert np.array_equal(again.score(textures), dfm.score(textures))
    with pytest.raises(ValueError, match=r"without the first 3 they fill no grid"):
        pydfm.DFM(backbone=module, image_size=(40, 48), tokens=3).fit(textures)


def test_a_grid_is_that_of_the_patches_or_of_the_aspect_ratio():
    hidden = nn.Identity()
    assert token_grid(hidden, "x", 24, (32, 48), 0) == (0, 4, 6)
    assert token_grid(hidden, "x", 7, (32, 48), 1) == (1, 2, 3)
    assert token_grid(hidden, "x", 5, (64, 64), 1) == (1, 2, 2)
    # Tokens that were merged since are fewer than the patches.
    assert token_grid(nn.Conv2d(3, 1, 4, 4), "x", 24, (32, 48), 0) == (0, 4, 6)
    with pytest.raises(ValueError, match="they fill no grid"):
        token_grid(hidden, "x", 1, (32, 32), 1)


def test_patches_are_those_of_the_first_convolution():
    assert patch_of(nn.Sequential(nn.Conv2d(3, 4, 14, 14), nn.Conv2d(4, 4, 2, 2))) == (14, 14)
    assert patch_of(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 2, 2))) is None
    assert patch_of(nn.Identity()) is None


def test_sizes_that_patches_do_not_divide_are_refused():
    check_patches(None, (7, 7))
    check_patches((14, 14), (28, 42))
    with pytest.raises(ValueError, match=r"image_size is 30 x 42.*such as 28 x 42$"):
        check_patches((14, 14), (30, 42))


def test_a_map_has_the_tokens_in_their_order():
    tokens = torch.arange(2 * 7 * 2).reshape(2, 7, 2)
    got = as_map(tokens, 1, 2, 3)
    assert got.shape == (2, 2, 2, 3)
    assert torch.equal(got[0, 1], torch.tensor([[3, 5, 7], [9, 11, 13]]))


def test_layers_that_are_averaged_must_be_alike(tiny_network):
    images = np.random.default_rng(0).random((2, 3, 32, 48), dtype=np.float32)
    got = Backbone(load_network(tiny_network, None, "block.1+block.2"), RAW, device="cpu")(images)
    both = Backbone(load_network(tiny_network, None, ("block.1", "block.2")), RAW, device="cpu")
    want = both(images).reshape(2, 2, -1).mean(axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"'stem\+block', whose parts cannot be averaged"):
        Backbone(load_network(tiny_network, None, "stem+block"), RAW, device="cpu")
    with pytest.raises(ValueError, match=r"layers has 'gone', which this backbone does not have"):
        load_network(tiny_network, None, "stem+gone")
    with pytest.raises(ValueError, match="each part of a mean may be named once"):
        load_network(tiny_network, None, "stem+stem")
