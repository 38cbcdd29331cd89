import numpy as np
import pytest
import torch

import pydfm
from pydfm.features.backbones import family_of, is_name, load_network
from pydfm.features.backbones.torchvision import torchvision_models
from pydfm.features.network import Backbone
from pydfm.features.presets import resolve_preset
from pydfm.features.transforms import Preprocessing
from pydfm.parameters import DEFAULTS

torchvision_models()
timm = pytest.importorskip("timm")

# timm's own networks for tests have a few layers of a few channels.
VIT, CONV = "test_vit3", "test_convnext"
SIZE = (64, 96)
RAW = Preprocessing(SIZE, None, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def of_timm(name, images, indices):
    """The maps of blocks by timm's own way, at this size of images."""
    network = load_network(f"timm:{name}", None, "output").module
    if hasattr(network, "num_prefix_tokens"):
        network.set_input_size(img_size=images.shape[2:])
    return network.forward_intermediates(images, indices=indices, intermediates_only=True)


def test_tokens_become_the_map_that_timm_makes_of_them(images):
    backbone = Backbone(load_network(VIT, None, ("1", "blocks.3")), RAW, device="cpu")
    wants = of_timm(VIT, images, [1, 3])
    assert [(g.channels, g.height, g.width) for g in backbone.grids] == [(96, 4, 6)] * 2
    got = backbone(images.numpy())
    want = torch.cat([want.flatten(1) for want in wants], dim=1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "blocks"), [("1-3", [1, 2, 3]), ("1+3", [1, 3])])
def test_blocks_may_be_averaged(images, layer, blocks):
    network = load_network(VIT, None, layer)
    assert network.layers == ("+".join(f"blocks.{n}" for n in blocks),)
    assert len(network.module.blocks) == 4  # those after the last are gone
    got = Backbone(network, RAW, device="cpu")(images.numpy())
    want = torch.stack(of_timm(VIT, images, blocks)).mean(dim=0).flatten(1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_maps_of_other_networks_are_those_of_timm(images):
    layers = family_of(CONV).map_layers(CONV)
    backbone = Backbone(load_network(CONV, None, layers), RAW, device="cpu")
    network = load_network(f"timm:{CONV}", None, "output").module
    with torch.inference_mode():
        wants = network.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    assert [g.height for g in backbone.grids] == [8, 4]
    want = torch.cat([want.flatten(1) for want in wants], dim=1)
    np.testing.assert_allclose(backbone(images.numpy()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers", "side"),
    [
        ("resnet18d", ("layer2", "layer3"), 256),
        ("timm:resnet18", ("layer2", "layer3"), 256),
        ("tf_efficientnet_lite0", ("blocks.2", "blocks.4"), 256),
        ("vit_small_patch14_dinov2", ("blocks.7",), 518),
        ("vit_small_patch16_dinov3", ("blocks.7",), 256),
        ("swin_tiny_patch4_window7_224", ("layers.1", "layers.2"), 224),
    ],
)
def test_layers_for_maps_are_known_without_building(name, layers, side):
    found = resolve_preset({**DEFAULTS, "backbone": name})
    assert (found["layers"], found["image_size"]) == (layers, side)


@pytest.mark.filterwarnings("ignore:the backbone could not be traced")
def test_channels_last_come_first():
    network = load_network("swin_tiny_patch4_window7_224", None, "layers.1")
    output = torch.zeros(2, 28, 14, 192)
    got = network.family.to_map(network.module, "layers.1", output, (224, 112))
    assert got.shape == (2, 192, 28, 14)


def test_a_bare_name_is_torchvision_s_where_it_has_one():
    assert type(family_of("resnet18")).__name__ == "TorchvisionFamily"
    assert type(family_of("timm:resnet18")).__name__ == "TimmFamily"
    assert load_network(VIT, None).backbone == f"timm:{VIT}"
    assert type(family_of(VIT)) is type(family_of(f"timm:{VIT}"))
    assert is_name("vit_base_patch14_dinov2.lvd142m")
    # What may be the name of a file is none.
    assert not is_name("resnet18d.pt")


def test_a_file_with_a_classifier_fits(tmp_path):
    whole = timm.create_model(VIT)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    network = load_network(f"timm:{VIT}", tmp_path / "w.pth")
    assert torch.equal(network.module.blocks[0].attn.qkv.weight, whole.blocks[0].attn.qkv.weight)


def test_the_file_of_dinov2_fits_as_its_makers_wrote_it(tmp_path):
    name = "vit_small_patch14_dinov2"
    theirs = dict(timm.create_model(name).state_dict())
    theirs["mask_token"] = torch.zeros(1, 384)  # timm's network has none
    torch.save(theirs, tmp_path / "dinov2_vits14_pretrain.pth")
    network = load_network(name, tmp_path / "dinov2_vits14_pretrain.pth", "0")
    assert torch.equal(network.module.cls_token, theirs["cls_token"])


def test_a_model_of_tokens_is_saved_and_loaded(images, tmp_path):
    dfm = pydfm.DFM(
        backbone=VIT, weights=None, layers=("1", "2-3"), image_size=SIZE, spatial="patch"
    )
    dfm.fit(images.numpy()).save(tmp_path / "m.pydfm")
    assert dfm.feature_spec_.layers == ("blocks.1", "blocks.2+blocks.3")
    again = pydfm.load(tmp_path / "m.pydfm")
    np.testing.assert_allclose(again.score(images), dfm.score(images), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"which timm does not have; it has .*vit_tiny"):
        load_network("timm:vit_tyny_patch16_224", None)
    with pytest.raises(ValueError, match=r"did you mean .*vit_tiny_patch16_224"):
        load_network("vit_tyny_patch16_224", None)
    with pytest.raises(ValueError, match=r"layers has 'blocks\.99'"):
        load_network(VIT, None, "99")
    with pytest.raises(ValueError, match="layers has '5-3'; the first block must come before"):
        load_network(VIT, None, "5-3")
    network = load_network(VIT, None)
    with pytest.raises(ValueError, match="image_size is 60 x 64, which patches of 16 x 16 do not"):
        Backbone(network, Preprocessing((60, 64), None), device="cpu")
    torch.save(network.module.state_dict(), tmp_path / "w.pth")
    assert load_network(VIT, tmp_path / "w.pth").sha256 == network.sha256
    with pytest.raises(ValueError, match="is not for timm:test_resnet"):
        load_network("test_resnet", tmp_path / "w.pth")
