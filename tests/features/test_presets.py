import numpy as np
import pytest
from sklearn.base import clone
from torch import nn

import pydfm
from pydfm.benchmark.table import markdown
from pydfm.features.presets import PRESETS, resolve_preset, table
from pydfm.parameters import DEFAULTS

FILLED = ("layers", "pool", "image_size", "image_score")


def resolved(**changes):
    """What the four parameters are that a preset fills."""
    found = resolve_preset({**DEFAULTS, **changes})
    return tuple(found[name] for name in FILLED)


@pytest.mark.parametrize(
    ("preset", "backbone", "want"),
    [
        ("defects", "resnet18", (("layer2", "layer3"), 2, 256, None)),
        ("defects", "efficientnet_lite0", (("stage3", "stage5"), 2, 256, None)),
        ("defects", "convnext_tiny", (("features.3", "features.5"), 2, 256, None)),
        ("paper", "resnet18", (None, None, None, None)),
        ("anomalib", "resnet18", (("layer3",), 2, 256, "sum")),
        ("anomalib", "resnet50", (("layer3",), 4, 256, "sum")),
        ("anomalib", "efficientnet_lite0", (("stage5",), 4, 256, "sum")),
    ],
)
def test_a_preset_is_what_is_not_given(preset, backbone, want):
    assert resolved(preset=preset, backbone=backbone) == want


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"layers": "layer1"}, ("layer1", None, 256, None)),
        ({"pool": (4, 2)}, (("layer2", "layer3"), (4, 2), 256, None)),
        ({"image_size": 64}, (("layer2", "layer3"), 2, 64, None)),
        ({"image_score": "sum"}, (("layer2", "layer3"), 2, 256, "sum")),
        ({"spatial": "patch"}, (("layer2", "layer3"), None, 256, None)),
        ({"spatial": "mean"}, (("layer2", "layer3"), None, 256, None)),
        ({"preset": "anomalib", "image_score": "calibrated"}, (("layer3",), 2, 256, "calibrated")),
    ],
)
def test_what_is_given_wins(given, want):
    assert resolved(**given) == want


def test_other_parameters_stay():
    values = {**DEFAULTS, "preset": "anomalib", "n_components": 5}
    found = resolve_preset(values)
    assert {n: v for n, v in found.items() if n not in FILLED} == {
        n: v for n, v in values.items() if n not in FILLED
    }
    assert values["layers"] is None


def test_networks_of_ones_own_stay_as_they_are():
    assert resolved(backbone=nn.Identity()) == (None, None, None, None)
    with pytest.raises(ValueError, match=r"preset is 'anomalib', but the layers of backbone 'Id"):
        resolved(backbone=nn.Identity(), preset="anomalib")
    given = resolved(backbone=nn.Identity(), preset="anomalib", layers="0")
    assert given == ("0", None, None, "sum")


def test_a_contradiction_is_told(textures):
    dfm = pydfm.DFM(preset="anomalib", weights=None, top_share=0.1, image_size=32)
    with pytest.raises(ValueError, match=r"top_share is 0\.1, and preset='anomalib' scores images"):
        dfm.fit(textures)
    with pytest.raises(ValueError, match="but the features have no positions"):
        pydfm.DFM(preset="paper", weights=None, image_score="calibrated").fit(textures)
    with pytest.raises(ValueError, match="preset is 'best'; it must be one of"):
        pydfm.DFM(preset="best").fit(textures)


def test_the_default_takes_whole_images_and_both_maps(textures, tmp_path):
    few = textures[:4]
    dfm = pydfm.DFM(weights=None, device="cpu", alpha=0.2).fit(few)
    spec = dfm.feature_spec_
    assert spec.layers == ("layer2", "layer3")
    assert [(g.channels, g.height, g.width) for g in spec.grids] == [(128, 16, 16), (256, 8, 8)]
    assert (spec.preprocessing.size, spec.preprocessing.crop) == ((256, 256), None)
    assert dfm.image_score_ == "calibrated"
    assert spec.summary() == "resnet18, layer2 + layer3, pool 2, 256 x 256 pixels"
    # Parameters stay as they were given, also in copies and files.
    assert all(dfm.get_params()[name] is None for name in FILLED)
    assert clone(dfm).get_params() == dfm.get_params()
    dfm.save(tmp_path / "m.pydfm")
    again = pydfm.load(tmp_path / "m.pydfm", device="cpu")
    assert (again.preset, again.layers) == ("defects", None)
    assert np.array_equal(again.score(few), dfm.score(few))


def test_the_paper_s_features_are_as_before(textures):
    few = textures[:4]
    dfm = pydfm.DFM(preset="paper", weights=None, device="cpu", alpha=0.2).fit(few)
    spec = dfm.feature_spec_
    assert (spec.layers, spec.preprocessing.size, dfm.image_score_) == (
        ("avgpool",),
        (224, 224),
        "sum",
    )


def test_features_in_an_array_stay_as_they_are():
    x = np.random.default_rng(0).normal(size=(40, 9))
    scores = [pydfm.DFM(3, preset=preset).fit(x).score(x) for preset in PRESETS]
    assert all(np.array_equal(scores[0], other) for other in scores)


def test_the_table_has_all_presets():
    lines = markdown(*table()).splitlines()
    assert len(lines) == 2 + len(PRESETS)
    assert len({len(line) for line in lines}) == 1
    assert "| 4; 2 for resnet18, 2 for resnet34 |" in lines[-1]
