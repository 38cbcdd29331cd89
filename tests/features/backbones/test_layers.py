import pytest

from pydfm.features.backbones import load_network


def test_an_unknown_layer_lists_those_there_are(tiny_network):
    with pytest.raises(ValueError, match=r"layers has 'layer9'.* it has conv1, bn1, .*'layer1.0'"):
        load_network("resnet18", None, ("layer1", "layer9"))
    with pytest.raises(
        ValueError, match=r"it has stem, .*, head, output, and .* such as 'block.0'"
    ):
        load_network(tiny_network, layers="")
    with pytest.raises(ValueError, match="each layer may be named once"):
        load_network(tiny_network, layers=["stem", "stem"])


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ("layer1", {"conv1", "bn1", "layer1"}),
        (("layer2.0.conv1", "layer1"), {"conv1", "bn1", "layer1", "layer2"}),
        (None, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("output", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}),
    ],
)
def test_nothing_is_kept_of_what_comes_after_the_last_layer(layers, kept):
    state = load_network("resnet18", None, layers).module.state_dict()
    assert {key.split(".")[0] for key in state} == kept
