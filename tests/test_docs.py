import importlib
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pydfm
from pydfm import parameters
from pydfm.benchmark.table import markdown
from pydfm.cli.command import commands
from pydfm.cli.main import main
from pydfm.features import presets
from pydfm.features.backbones import torchvision
from pydfm.stats.scores import SCORES

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# The first line of a snippet that is a whole new file of the package.
NEW_FILE = re.compile(r"# (pydfm/(?:\w+/)+)(\w+)\.py\n")
TABLES = {"parameters": parameters.table, "presets": presets.table}


def snippets(page, *languages):
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def with_tables(text):
    """Return `text` with the tables of parameters and presets as they are now."""
    for name, table in TABLES.items():
        begin, end = (f"<!-- {place} generated: {name} -->" for place in ("begin", "end"))
        before, rest = text.split(f"{begin}\n")
        text = f"{before}{begin}\n{markdown(*table())}\n{end}{rest.split(end)[1]}"
    return text


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A working folder with the images that the pages name, and no hub in reach."""
    rng = np.random.default_rng(0)
    for name, count in {
        "parts/good": 10,
        "parts/incoming": 4,
        "parts/monday": 10,
        "parts/tuesday": 10,
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
        return torchvision.torchvision_models().get_model(name, weights=None).state_dict()

    monkeypatch.setattr(torchvision, "_download", download)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def add_file(tmp_path, monkeypatch):
    """Add a new file to a room of the package, outside of its folder; undone after the test."""
    added = []

    def add(folder, name, code):
        package = importlib.import_module(folder.strip("/").replace("/", "."))
        module = f"{package.__name__}.{name}"
        assert importlib.util.find_spec(module) is None, f"{module} exists; rename the example"
        place = tmp_path / "added" / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.py").write_text(code)
        if str(place) not in package.__path__:
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(place)])
        importlib.invalidate_caches()
        commands.cache_clear()
        added.append((package, name))

    scores = dict(SCORES)
    yield add
    SCORES.clear()
    SCORES.update(scores)
    for package, name in added:
        sys.modules.pop(f"{package.__name__}.{name}", None)
        vars(package).pop(name, None)
    commands.cache_clear()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("parts")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:1 of 5 images were skipped")
# The pages' folders have a dozen pictures; shots of a part are copies of one.
@pytest.mark.filterwarnings("ignore:alpha is 0.01", "ignore:X holds rows that are not independent")
def test_snippets_run_as_they_stand(page, add_file, capsys):
    namespace = {}
    for language, code in FENCE.findall(page.read_text()):
        if language == "python" and (new := NEW_FILE.match(code)):
            add_file(new[1], new[2], code)
        elif language == "python":
            exec(compile(code, page.name, "exec"), namespace)
        elif language == "console":
            for line in code.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "pydfm"
                assert main(arguments) == 0, capsys.readouterr().err


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fre_is_spelled_out_at_its_first_use(page):
    text = FENCE.sub("", page.read_text())
    first = re.search(r"\bfre\b", text)
    if first is not None:
        around = text[max(first.start() - 60, 0) : first.end() + 60]
        assert "feature reconstruction error" in " ".join(around.split())


def test_the_tables_are_up_to_date():
    text = GUIDE.read_text()
    assert text == with_tables(text), "docs/guide.md is out of date; run: python tests/test_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_in_the_text_exists(page):
    text = FENCE.sub("", page.read_text())  # snippets are run
    for name in set(re.findall(r"(?<![\w./])pydfm(?:\.[A-Za-z_]\w*)+", text)):
        pkgutil.resolve_name(name)  # raises where there is none


def test_the_version_is_the_same_everywhere():
    assert f"version: {pydfm.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f'version = "{pydfm.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_the_readme_installs_the_extras_it_names():
    commands = "".join(snippets(ROOT / "README.md", "sh"))
    assert 'pip install -c constraints.txt ".[demo]" && pydfm demo' in commands
    assert 'pip install -c constraints.txt ".[test]" && pytest' in commands


if __name__ == "__main__":
    GUIDE.write_text(with_tables(GUIDE.read_text()))
