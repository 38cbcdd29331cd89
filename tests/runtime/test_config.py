import json
import os

import pytest
import torch

import pydfm
from pydfm.runtime import config
from pydfm.runtime.threads import available_cores


def test_the_configuration_tells_what_runs_where():
    got = pydfm.show_config("dicts")
    assert set(got) == {
        "pydfm",
        "python",
        "platform",
        "core",
        "n_threads",
        "gpu",
        "runtime",
        "packages",
    }
    assert got["pydfm"] == pydfm.__version__
    assert got["core"]["instruction_set"] in got["core"]["supported"]
    assert got["core"]["supported"][0] == "baseline"
    assert got["core"]["eigen"].count(".") == 2
    assert got["core"]["compiler"]
    assert got["n_threads"] == available_cores()
    assert (got["gpu"] is None) == (not torch.cuda.is_available())
    assert got["runtime"] == ("onnx" if got["gpu"] is None else "torch")
    assert got["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert all(got["packages"].values())


def test_it_is_printed_as_json(capsys):
    assert pydfm.show_config() is None
    out, err = capsys.readouterr()
    assert json.loads(out) == pydfm.show_config("dicts")
    assert out.endswith("}\n")
    assert err == ""


def test_it_tells_nothing_of_the_user():
    told = json.dumps(pydfm.show_config("dicts"))
    assert os.path.expanduser("~") not in told or os.path.expanduser("~") == "/"  # noqa: PTH111
    assert os.getcwd() not in told  # noqa: PTH109


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    monkeypatch.setattr(config, "_PACKAGES", ("numpy", "no-such-package"))
    packages = pydfm.show_config("dicts")["packages"]
    assert packages["numpy"]
    assert packages["no-such-package"] is None


@pytest.mark.parametrize("mode", ["dict", "", None])
def test_another_mode_is_refused(mode):
    with pytest.raises(ValueError, match=r"^mode is .* 'stdout' or 'dicts'"):
        pydfm.show_config(mode)
