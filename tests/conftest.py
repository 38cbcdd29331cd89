import os
import signal
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import nn

# A shell ignores Ctrl-C in what it runs in the background, which is inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, on machines of any speed.
settings.register_profile(
    "pydfm",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pydfm")


@pytest.fixture(scope="session", autouse=True)
def graphs(tmp_path_factory):
    """The folder of graphs that are exported, which the tests and their processes share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYDFM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def run_python(tmp_path):
    """Run code in an interpreter of its own, away from the source tree, which has no core."""

    def run(code, *arguments, check=True, timeout=120, **environment):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
        )

    return run


@pytest.fixture
def unprivileged():
    """A folder of a user who is not root, to whom permissions mean nothing."""
    if os.name != "posix":
        pytest.skip("needs the permissions of POSIX")
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "own"
        folder.mkdir()
        if user == 0:
            folder.parent.chmod(0o755)
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            folder.chmod(0o755)
            os.seteuid(user)


@pytest.fixture(scope="session")
def textures():
    """Smooth noise, uint8 (12, 3, 40, 48)."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 3, 10, 12), dtype=np.uint8)
    return noise.repeat(4, axis=2).repeat(4, axis=3)


@pytest.fixture(scope="session")
def noise():
    """Noise, uint8 (40, 3, 16, 16)."""
    return np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="session")
def pictures(textures):
    return [Image.fromarray(pixels.transpose(1, 2, 0)) for pixels in textures]


@pytest.fixture(scope="session")
def picture_folder(pictures, tmp_path_factory):
    """`pictures` as PNG files, in order."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def tiny_network():
    """A network with the parts that matter: maps, nesting, work in place, a head."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    layers = {
        "stem": nn.Conv2d(3, 8, 3, stride=2, padding=1),
        "relu": nn.ReLU(inplace=True),
        "block": block,
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(6, 5),
    }
    return nn.Sequential(OrderedDict(layers))
