import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fits import scripted
from measured import config, root, sets  # noqa: F401 (fixtures)

import pydfm
from pydfm.cli import main as cli

NETWORK_COMMANDS = ("score", "eval", "report", "add", "forget", "calibrate", "merge", "diff")


@pytest.fixture(scope="session")
def script(tmp_path_factory):
    """A small network in a TorchScript file."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.ReLU(), torch.nn.AvgPool2d(6)
    )
    path = tmp_path_factory.mktemp("network") / "network.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted(network.eval()).save(path)
    return path


@pytest.fixture(scope="session")
def model(script, picture_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pydfm"
    dfm = pydfm.DFM(3, backbone=script, image_size=40, device="cpu", n_threads=2, alpha=0.1)
    dfm.fit(picture_folder).save(path)
    return path


@pytest.fixture
def run(capfdbinary, script):
    """Run the command line here: its exit code, and the bytes on both of its outputs.

    `script` is passed to what loads a model that was fitted with it.
    """

    def run(*arguments):
        given = [os.fspath(argument) for argument in arguments]
        if given[:1] and given[0] in NETWORK_COMMANDS and given[1:] and "--backbone" not in given:
            file = Path(given[1])
            if file.is_file() and os.fsencode(script) in file.read_bytes():
                given[2:2] = ["--backbone", os.fspath(script)]
        code = cli.main(given)
        out, err = capfdbinary.readouterr()
        return SimpleNamespace(code=code, out=out, err=err.decode())

    return run


@pytest.fixture
def category(pictures, tmp_path):
    for name, own in {
        "train/good": pictures[:4],
        "test/good": pictures[4:7],
        "test/cut": pictures[7:9],
        "test/hole": pictures[9:],
    }.items():
        folder = tmp_path / "carpet" / name
        folder.mkdir(parents=True)
        for i, picture in enumerate(own):
            picture.save(folder / f"{i}.png")
    return tmp_path / "carpet"
