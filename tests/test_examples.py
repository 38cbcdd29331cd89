import csv
import importlib.util
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pydfm
from pydfm.cli.main import main

EXAMPLES = Path(__file__).parent.parent / "examples"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # foolbox imports a namespace that scipy will drop
    try:
        import foolbox
    except ImportError:
        foolbox = None


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(foolbox is None, reason='foolbox is not installed (the extra "attacks")')
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_attacks_are_separated_from_clean_images(capsys):
    combined = load("adversarial").main()
    assert set(combined) == {"FGSM", "PGD", "DeepFool"}
    assert min(combined.values()) > 0.95
    assert capsys.readouterr().out.count("%") >= 4


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A small model as a graph, images of several sizes, and what `pydfm score` says of them."""
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 6, 3, stride=2).eval()
    place, rng = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    dfm = pydfm.DFM(3, backbone=network, image_size=24, device="cpu", alpha=0.2)
    dfm.fit(rng.integers(0, 256, (20, 3, 24, 24), dtype=np.uint8)).to_onnx(place / "model.onnx")
    (place / "images").mkdir()
    for i, shape in enumerate([(24, 24, 3), (31, 40, 3), (20, 9, 3)]):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        pixels = pixels if i else pixels // 128 * 255  # of more contrast
        Image.fromarray(pixels).save(place / "images" / f"{i}.ppm")
    return place


def scores(export, *options):
    """Return the lines that a program should print, by `pydfm score`."""
    table = export / "scores.csv"
    given = [str(export / "model.onnx"), str(export / "images"), "-o", str(table), *options]
    assert main(["score", *given]) == 0
    return [
        f"{row['path']} score={float(row['score']):.6g} p_value={row['p_value']} "
        f"verdict={row['verdict']}"
        for row in csv.DictReader(table.read_text().splitlines())
    ]


def printed(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def images(export):
    return [str(path) for path in sorted(export.glob("images/*.ppm"))]


def test_a_program_of_python_scores_an_export(export):
    program = EXAMPLES / "onnx_score.py"
    got = printed(sys.executable, program, export / "model.onnx", *images(export))
    assert got == scores(export)
    assert {line.rpartition("=")[2] for line in got} == {"ok", "anomalous"}
    assert len(program.read_text().splitlines()) <= 30


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The program of C++, built with the headers of PYDFM_ONNXRUNTIME, or the system's.

    Where there is no library beside them, it is that of the Python package.
    """
    root = Path(os.environ.get("PYDFM_ONNXRUNTIME", "/usr"))
    if not any(root.glob("include/**/onnxruntime_cxx_api.h")):
        pytest.skip("no headers of onnxruntime; PYDFM_ONNXRUNTIME names the folder of a release")
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    build = tmp_path_factory.mktemp("build")
    settings = (f"-DONNXRUNTIME={root}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wconversion -Werror")
    # A package of headers has a link without its target.
    if not any(path.exists() for path in root.glob("lib/**/libonnxruntime.[sd]*")):
        package = Path(importlib.util.find_spec("onnxruntime").origin).parent
        (library,) = package.glob("capi/libonnxruntime.so*")
        named = build / "libonnxruntime.so.1"  # as it is looked for at run time
        named.symlink_to(library)
        settings += (f"-DONNXRUNTIME_LIBRARY={named}",)
    subprocess.run(["cmake", "-S", EXAMPLES / "cpp", "-B", build, *settings], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    return build / "onnx_score"


@pytest.mark.parametrize("options", [(), ("--alpha", "0.6")], ids=["its alpha", "given"])
def test_a_program_of_cpp_scores_an_export(compiled, options, export):
    got = printed(compiled, export / "model.onnx", *options, *images(export))
    assert got == scores(export, *options)


def test_a_program_of_cpp_says_what_is_wrong(compiled, export, tmp_path):
    (tmp_path / "text.ppm").write_text("text")
    for arguments, says in (
        ([], "usage: onnx_score MODEL.onnx"),
        ([export / "none.onnx", images(export)[0]], "none.onnx failed"),
        ([export / "model.onnx", "--alpha", "nan", images(export)[0]], "--alpha is 'nan'; it must"),
        ([export / "model.onnx", "--alpha", "0.1x", images(export)[0]], "--alpha is '0.1x'; it"),
        ([export / "model.onnx", tmp_path / "text.ppm"], "text.ppm' is no binary PPM of 8 bits"),
    ):
        got = subprocess.run([compiled, *arguments], capture_output=True, text=True, check=False)
        assert got.returncode == 2
        assert says in got.stderr
