import sys

import numpy as np
import pytest

from pydfm.features import backbones
from pydfm.features.backbones import (
    backbone_names,
    describe_backbones,
    families,
    family_of,
    family_saved_as,
    load_network,
)
from pydfm.features.network import Backbone
from pydfm.features.transforms import Preprocessing

# A family whose layer returns tokens (B, N, C), as a transformer's does, in a tuple.
TOKENS = """
from pydfm.features.backbones.family import Family, Network


class Tokens(Family):
    names = ("tokens8",)
    default_layers = ("embed",)

    def load(self, backbone, weights, layers, *, random_state, progress):
        from torch import nn

        class Embed(nn.AvgPool2d):
            def forward(self, images):
                return (super().forward(images).flatten(2).transpose(1, 2), None)

        module = nn.Sequential()
        module.add_module("embed", Embed(8))
        return Network(
            module,
            layers,
            family=self,
            backbone=backbone,
            name=backbone,
            weights=None,
            sha256="0" * 64,
        )

    def to_map(self, module, layer, output, size):
        height, width = (side // 8 for side in size)
        return output[0].transpose(1, 2).unflatten(2, (height, width))


FAMILY = Tokens()
"""


@pytest.fixture
def _tokens(tmp_path, monkeypatch):
    """A family in one file of the package."""
    (tmp_path / "squares.py").write_text(TOKENS)
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
    yield
    sys.modules.pop("pydfm.features.backbones.squares", None)
    vars(backbones).pop("squares", None)


@pytest.mark.usefixtures("_tokens")
def test_a_family_is_one_file(textures):
    assert "tokens8" in backbone_names()
    assert "tokens8" in describe_backbones()
    network = load_network("tokens8")
    assert network.layers == ("embed",)
    assert not network.module.training
    assert family_saved_as(network.backbone) is family_of("tokens8") is network.family
    raw = Preprocessing((40, 48), None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    backbone = Backbone(network, raw, device="cpu")
    (grid,) = backbone.grids
    assert (grid.channels, grid.height, grid.width, grid.reach) == (3, 5, 6, (1.0, 1.0))
    want = textures.reshape(12, 3, 5, 8, 6, 8).mean(axis=(3, 5)).reshape(12, -1) / 255
    np.testing.assert_allclose(backbone(textures), want, rtol=1e-5)


def test_nothing_stays_of_a_family_that_is_gone():
    assert "tokens8" not in backbone_names()
    with pytest.raises(ValueError, match="backbone is 'tokens8'"):
        load_network("tokens8")


def test_the_names_are_known_without_torch(run_python):
    code = (
        "import sys; from pydfm.features.backbones import *; "
        "print(*backbone_names(), sep=','); print(describe_backbones(in_memory=False)); "
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    names, described = run_python(code).stdout.splitlines()
    assert names == ",".join(backbone_names())
    assert described.endswith(", or the path of an existing TorchScript file")


def test_families_are_asked_in_a_fixed_order():
    order = [type(family).__name__ for family in families()]
    assert order == [type(family).__name__ for family in families()]
    priorities = [family.priority for family in families()]
    assert priorities == sorted(priorities)
    assert order[-1] == "TorchScriptFamily"  # since any text may be a path


def test_no_two_families_have_the_same_name():
    names = backbone_names()
    assert len(set(names)) == len(names)
    assert names[:4] == ("resnet18", "resnet34", "resnet50", "wide_resnet50_2")
    for name in names:
        assert family_of(name) is family_saved_as(name)
        assert name in family_of(name).names


def test_what_a_backbone_may_be_is_described():
    described = describe_backbones()
    assert described.startswith(", ".join(backbone_names()))
    assert described.endswith(", the path of an existing TorchScript file, or a torch.nn.Module")


@pytest.mark.parametrize("backbone", ["resnet19", "missing.pt", 18, None])
def test_an_unknown_backbone_lists_those_there_are(backbone):
    with pytest.raises(ValueError, match="^backbone is .*" + ", ".join(backbone_names())):
        load_network(backbone, None)
