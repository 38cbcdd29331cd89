import pytest
import torch

import pydfm
from pydfm.features.backbones import load_network
from pydfm.features.backbones.torchvision import torchvision_models
from pydfm.features.network import Backbone
from pydfm.features.transforms import Preprocessing

torchvision_models()
pytest.importorskip("timm")


def test_tokens_become_the_map_that_timm_makes_of_them():
    network = load_network("timm:vit_tiny_patch16_224", None, ("6", "blocks.7"))
    images = torch.randn(2, 3, 96, 64)
    kept = {}
    network.module.blocks[6].register_forward_hook(lambda _m, _i, out: kept.update(out=out))
    with torch.inference_mode():
        network.module(images)
        got = network.family.to_map(network.module, "blocks.6", kept["out"], (96, 64))
        (want,) = network.module.forward_intermediates(images, indices=[6], intermediates_only=True)
    torch.testing.assert_close(got, want)
    assert got.shape == (2, 192, 6, 4)


def test_a_file_with_a_classifier_fits(tmp_path):
    whole = pytest.importorskip("timm").create_model("vit_tiny_patch16_224")
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    network = load_network("timm:vit_tiny_patch16_224", tmp_path / "w.pth")
    assert torch.equal(network.module.cls_token, whole.cls_token)


@pytest.mark.filterwarnings("ignore:the backbone could not be traced")
def test_a_model_of_tokens_is_saved_and_loaded(tmp_path):
    images = torch.rand(6, 3, 56, 42, generator=torch.Generator().manual_seed(0)).numpy()
    dfm = pydfm.DFM(
        backbone="timm:vit_small_patch14_dinov2",
        weights=None,
        layers=("6", "7"),
        image_size=(56, 42),
        spatial="patch",
    )
    dfm.fit(images).save(tmp_path / "m.pydfm")
    assert dfm.feature_spec_.layers == ("blocks.6", "blocks.7")
    assert [(g.channels, g.height, g.width) for g in dfm.feature_spec_.grids] == [(384, 4, 3)] * 2
    again = pydfm.load(tmp_path / "m.pydfm")
    torch.testing.assert_close(again.score(images), dfm.score(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("resnet18d", 64, (256, 4, 4)),
        ("vit_small_patch16_dinov3", 64, (384, 4, 4)),
        ("swin_tiny_patch4_window7_224", 224, (384, 14, 14)),
    ],
)
@pytest.mark.filterwarnings("ignore:the backbone could not be traced")
def test_other_networks_give_their_last_map_of_stride_16(name, size, grid):
    network = load_network(f"timm:{name}", None)
    backbone = Backbone(network, Preprocessing((size, size), None), device="cpu")
    (own,) = backbone.grids
    assert (own.channels, own.height, own.width) == grid


def test_what_cannot_be_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"which timm does not have; it has .*vit_"):
        load_network("timm:vit_tyny", None)
    with pytest.raises(ValueError, match=r"layers has 'blocks\.99'"):
        load_network("timm:vit_tiny_patch16_224", None, "99")
    network = load_network("timm:vit_tiny_patch16_224", None)
    with pytest.raises(ValueError, match="60 x 64"):
        Backbone(network, Preprocessing((60, 64), None), device="cpu")
    torch.save(network.module.state_dict(), tmp_path / "w.pth")
    assert load_network("timm:vit_tiny_patch16_224", tmp_path / "w.pth").sha256 == network.sha256
    with pytest.raises(ValueError, match="is not for timm:resnet18"):
        load_network("timm:resnet18", tmp_path / "w.pth")
