import pickle
import re
from pathlib import Path

import pytest
import torch

from pydfm.features.backbones import load_network


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.safetensors"])
def test_weights_come_from_a_file(tiny_network, saved, name):
    path = saved(lambda state: {key: value + 1 for key, value in state.items()}, name)
    for given in (path, str(path)):
        network = load_network(tiny_network, given)
        assert network.weights == str(path)
        for key, value in tiny_network.named_parameters():
            assert torch.equal(network.module.state_dict()[key], value + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {f"backbone.model.{key}": value for key, value in state.items()},
        lambda state: {"epoch": 3, "model_state_dict": state},
        lambda state: {"net": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {"epoch": 3, "state_dict_ema": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
        lambda state: {key: value.double() for key, value in state.items()},
    ],
)
def test_a_state_dict_may_be_wrapped_as_trainers_do(tiny_network, saved, change):
    want = load_network(tiny_network, None).sha256
    assert load_network(tiny_network, saved(change)).sha256 == want


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {**state, "extra": torch.zeros(1)}, "has 'extra', which is not in it$"),
        (lambda state: {"stem.bias": state["stem.bias"]}, r"lacks 'block.0.bias' \(and \d+ more\)"),
        (lambda state: {**state, "stem.bias": torch.zeros(9)}, "size mismatch for stem.bias"),
        (lambda state: [1, 2], "does not hold a state dict of tensors"),
        (
            lambda state: {"epoch": 3, "best": 1},
            "of tensors: it holds 'epoch', 'best'; ",
        ),
        (
            lambda state: {f"encoder.{key}": value for key, value in state.items()},
            r"has 'encoder.block.0.bias' in place of 'block.0.bias' \(and \d+ more\)",
        ),
        (
            lambda state: {**state, "module.stem.bias": state["stem.bias"]},
            "has 'stem.bias' twice, once as 'module.stem.bias'",
        ),
    ],
)
def test_a_file_for_another_network_is_told_in_one_sentence(tiny_network, saved, change, says):
    path = saved(change)
    says = f"^weights is '{re.escape(str(path))}', which .*{says}"
    with pytest.raises(ValueError, match=says) as caught:
        load_network(tiny_network, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", None])
def test_a_file_that_is_no_state_dict_is_told(tiny_network, tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a state dict; it must be a .safeten"):
        load_network(tiny_network, path)


class Harmful:
    """What would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickled_object_is_refused_and_not_run(tiny_network, tmp_path, dump):
    path = tmp_path / "weights.pth"
    dump({"stem.weight": Harmful(tmp_path / "harm")}, path)
    with pytest.raises(ValueError, match="tensors only, no pickled objects"):
        load_network(tiny_network, path)
    assert not (tmp_path / "harm").exists()


def test_the_fingerprint_is_that_of_the_tensors_used(tiny_network):
    first = load_network(tiny_network).sha256
    tiny_network.block[1].num_batches_tracked += 1
    assert load_network(tiny_network).sha256 == first
    with torch.no_grad():
        tiny_network.head.bias[0] += 1e-3
    assert load_network(tiny_network).sha256 != first
