import builtins
import importlib.util

import pytest
import torch

from pydfm.features.onnx import choice
from pydfm.features.onnx.choice import is_installed, on_cpu, takes_onnx


@pytest.fixture
def without_onnxruntime(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(choice, "_has_gpu", lambda: True)


def test_auto_takes_it_on_cpus_in_float32_for_networks_with_names():
    assert is_installed()
    assert takes_onnx("auto", "cpu", "float32", named=True)
    assert takes_onnx("auto", torch.device("cpu"), "float32", named=True)
    assert not takes_onnx("auto", "cpu", "float32", named=False)
    assert not takes_onnx("auto", "cpu", "bfloat16", named=True)
    assert not takes_onnx("auto", "cuda", "float32", named=True)
    assert not takes_onnx("auto", "cuda:1", "float32", named=True)


def test_a_gpu_that_is_there_is_taken_before_it(with_gpu):
    assert not takes_onnx("auto", None, "float32", named=True)
    assert takes_onnx("onnx", None, "float32", named=True)
    assert takes_onnx("auto", "cpu", "float32", named=True)


def test_torch_is_torch():
    assert not takes_onnx("torch", "cpu", "float32", named=True)


def test_without_the_package_auto_is_torch(without_onnxruntime):
    assert not takes_onnx("auto", "cpu", "float32", named=True)


@pytest.mark.parametrize(
    ("device", "precision", "says"),
    [
        ("cuda", "float32", "^runtime is 'onnx', which runs on CPUs, and device is 'cuda'; pass"),
        ("cuda:1", "float32", "and device is 'cuda:1'; pass device='cpu', or runtime='torch'$"),
        ("cpu", "float16", "which computes in float32, and precision is 'float16'; pass"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(device, precision, says):
    with pytest.raises(ValueError, match=says):
        takes_onnx("onnx", device, precision, named=True)


def test_without_the_package_onnx_names_the_extra(without_onnxruntime):
    with pytest.raises(ImportError, match=r"which needs onnxruntime; install .*pydfm\[onnx\]"):
        takes_onnx("onnx", "cpu", "float32", named=True)


def test_a_runtime_that_is_none_is_told():
    with pytest.raises(ValueError, match=r"^runtime is 'tpu'; it must be one of 'auto', 'torch'"):
        takes_onnx("tpu", "cpu", "float32", named=True)


@pytest.mark.parametrize(
    ("version", "system", "files", "may"),
    [
        ("2.13.0+cpu", "Linux", ["nvidiactl"], False),
        ("2.13.0", "Linux", [], False),
        ("2.13.0", "Linux", ["null", "nvme0"], False),
        ("2.13.0", "Linux", ["nvidiactl"], True),
        ("2.13.0", "Linux", ["nvhost-gpu"], True),
        ("2.13.0", "Linux", ["dxg"], True),
        ("2.13.0", "Darwin", [], False),
        ("2.13.0", "Windows", [], True),
    ],
)
def test_a_gpu_is_looked_for_without_torch(monkeypatch, tmp_path, version, system, files, may):
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(choice, "version", lambda name: version)
    monkeypatch.setattr(choice.platform, "system", lambda: system)
    monkeypatch.setattr(choice, "Path", lambda place: tmp_path)
    assert choice._may_have_gpu.__wrapped__() is may


def test_torch_is_not_imported_where_there_can_be_no_gpu(monkeypatch):
    actual = builtins.__import__

    def imported(name, *arguments, **options):
        assert name != "torch"
        return actual(name, *arguments, **options)

    monkeypatch.setattr(choice, "_may_have_gpu", lambda: False)
    monkeypatch.setattr(choice.sys, "modules", {})
    monkeypatch.setattr(builtins, "__import__", imported)
    found = on_cpu(None)
    monkeypatch.undo()
    assert found


def test_a_torch_that_is_here_is_asked():
    assert on_cpu(None) is not torch.cuda.is_available()
