import pytest
import torch

from pydfm.features.backbones import backbone_names, family_of, load_network

MORE = (
    "efficientnet_b0",
    "efficientnet_v2_s",
    "convnext_tiny",
    "regnet_y_400mf",
    "regnet_x_400mf",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "densenet121",
)


@pytest.mark.parametrize("name", [*backbone_names(), *MORE])
def test_map_layers_have_strides_8_and_16(name):
    layers = family_of(name).map_layers(name)
    network = load_network(name, None, layers)
    sizes = {}
    for layer in layers:
        network.module.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: sizes.update({layer: output.shape[2:]})
        )
    # What follows the layers is gone, so the network itself may fail on what is left.
    with torch.inference_mode():
        network.module(torch.zeros(1, 3, 64, 64))
    assert [sizes[layer] for layer in layers] == [(8, 8), (4, 4)]
