"""Model files taken apart and written again, for tests that change what is in them."""

import json

import safetensors
from safetensors.numpy import save_file

from pydfm.io import model_file


def parts(path):
    """Return the tensors and the header of a model file."""
    with safetensors.safe_open(path, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["pydfm"])
    del header["sha256"]
    return tensors, header


def write(path, tensors, header):
    """Write a model file whose checksum is right, whatever is in it."""
    text = json.dumps({**header, "sha256": model_file._digest(header, tensors)})
    save_file(tensors, path, {"pydfm": text})
