import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pydfm
from pydfm import cli, networks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def snippets(page, *languages):
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A working folder with the pictures that the pages speak of, and no hub in reach."""
    rng = np.random.default_rng(0)
    for name, count in {
        "parts/good": 10,
        "parts/incoming": 4,
        "carpet/train/good": 2,
        "carpet/test/good": 3,
        "carpet/test/cut": 3,
    }.items():
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")

    def download(name, weights, progress):
        torch.manual_seed(0)
        return networks._torchvision_models().get_model(name, weights=None).state_dict()

    monkeypatch.setattr(networks, "_download", download)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("parts")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:1 of 5 images were skipped")
def test_snippets_run_as_they_stand(page, capsys):
    namespace = {}
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            exec(compile(code, page.name, "exec"), namespace)
        elif language == "console":
            for line in code.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "pydfm"
                assert cli.main(arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_has_a_language_that_is_run(page):
    fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
    # What is marked sh installs or builds, and is run by continuous integration.
    assert set(fences[::2]) <= {"python", "console", "sh"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, target


def test_the_version_is_the_same_everywhere():
    assert f"version: {pydfm.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f'version = "{pydfm.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_readme_installs_the_extras_it_names():
    commands = "".join(snippets(ROOT / "README.md", "sh"))
    assert 'pip install -c constraints.txt ".[demo]" && pydfm demo' in commands
    assert 'pip install -c constraints.txt ".[test]" && pytest' in commands
