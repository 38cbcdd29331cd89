"""What a release relies on, held together: versions, workflows, the changelog, the image."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pydfm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = ROOT / ".github" / "workflows"
CLASSIFIED = [
    name.rpartition(" ")[2]
    for name in PROJECT["project"]["classifiers"]
    if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", name)
]


def test_wheels_are_built_for_the_versions_that_pydfm_names():
    built = PROJECT["tool"]["cibuildwheel"]["build"]
    assert built == [f"cp{version.replace('.', '')}-*" for version in CLASSIFIED]
    assert PROJECT["project"]["requires-python"] == f">={CLASSIFIED[0]}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{CLASSIFIED[0].replace('.', '')}"
    # The classifiers are what nox reads.
    noxfile = (ROOT / "noxfile.py").read_text()
    assert 'nox.project.python_versions(nox.project.load_toml("pyproject.toml"))' in noxfile
    assert "@nox.session(python=_PYTHONS)\ndef tests(" in noxfile
    assert f"Python {CLASSIFIED[0]} to {CLASSIFIED[-1]}" in (ROOT / "README.md").read_text()


def test_every_wheel_that_can_be_tested_is():
    settings = PROJECT["tool"]["cibuildwheel"]
    assert "pytest" in settings["test-command"]
    assert "pydfm demo" in settings["test-command"]
    assert settings["test-extras"] == ["test"]
    assert "tests" in settings["test-sources"]
    assert all((ROOT / name).exists() for name in settings["test-sources"])
    # And what is skipped there, the workflow tests without torch.
    assert settings["test-skip"] == ["*-macosx_x86_64"]
    assert "tests/without_torch.py" in (WORKFLOWS / "release.yml").read_text()


def test_features_need_no_torch(tmp_path):
    script = Path(__file__).parent / "without_torch.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "without torch" in done.stdout


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_workflows_may_do_no_more_than_they_need(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert set(job.get("needs", ())) <= set(workflow["jobs"])
        assert (name == "publish") == ("id-token" in job.get("permissions", {}))
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
        for session in re.findall(r"nox -s (\w+)", str(job["steps"])):
            assert f"\ndef {session}(" in (ROOT / "noxfile.py").read_text()


def test_only_a_tag_publishes_and_only_what_was_tested():
    jobs = yaml.safe_load((WORKFLOWS / "release.yml").read_text())["jobs"]
    assert "github.ref_type == 'tag'" in jobs["publish"]["if"]
    assert set(jobs["publish"]["needs"]) == set(jobs) - {"publish"}
    assert jobs["publish"]["environment"] == "pypi"
    used = [step["uses"].partition("@")[0] for step in jobs["publish"]["steps"]]
    assert used[-3:] == [
        "actions/attest-build-provenance",
        "actions/attest-sbom",
        "pypa/gh-action-pypi-publish",
    ]
    assert {entry["platform"] for entry in jobs["wheels"]["strategy"]["matrix"]["include"]} == {
        *("linux-x86_64", "linux-aarch64", "macos-arm64", "macos-x86_64", "windows-amd64")
    }


def test_the_changelog_has_the_form_that_tools_read():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading), heading
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for part in text.split("\n## ")[1:]:
        found = re.findall(r"^### (.*)$", part, re.MULTILINE)
        assert found == [kind for kind in kinds if kind in found], "each kind once, in this order"
    assert not re.findall(r"^#{4,} ", text, re.MULTILINE)


def test_the_version_has_one_place():
    assert pydfm.__version__ == PROJECT["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", pydfm.__version__)
    # No other file of the package says it: they ask for it.
    for path in Path(pydfm.__file__).parent.rglob("*.py"):
        assert f'"{pydfm.__version__}"' not in path.read_text(), path


def test_the_image_scores_as_no_root():
    text = (ROOT / "Dockerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)
    last = dict(instructions)  # of those that are there several times
    assert last["ENTRYPOINT"] == '["pydfm"]'
    assert last["USER"] not in ("root", "0")
    bases = [rest for name, rest in instructions if name == "FROM"]
    assert all("-slim" in base for base in bases)
    assert "AS" not in bases[-1].split()  # it has no compiler: that stays in the first stage
    extras = re.search(r'"\$1\[([\w,]+)\]"', text)[1].split(",")
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {"!csrc", "!pydfm", "!CMakeLists.txt", "!pyproject.toml"} <= set(ignored)
