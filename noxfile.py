"""Every task of the project, each in an environment of its own: `nox -l` lists them."""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types", "cpp", "demo"]

_PINNED = ("-c", "constraints.txt")
_BUILD = ("cmake", "ninja", "cmeel-eigen>=3.4,<4")
_SCRIPT_RULES = ("-D", "correctness", "-D", "suspicious", "-D", "perf")
_CPP = [str(path) for path in Path("csrc").rglob("*.[ch]pp")]


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The Python tests; arguments go to pytest."""
    session.install(*_PINNED, ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, clang-format, oxlint for the pages' script, and the imports between rooms."""
    session.install(*_PINNED, "ruff", "clang-format==23.1.5", "import-linter>=2.9", "oxlint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-logo")
    session.run("oxlint", *_SCRIPT_RULES, "pydfm/reports/assets")
    session.run("clang-format", "--dry-run", "--Werror", *_CPP)


@nox.session
def types(session: nox.Session) -> None:
    """mypy, and its stubtest, which holds the core's stub to the compiled module."""
    session.install(*_PINNED, ".[lint]")
    session.run("mypy")
    session.run(
        *("stubtest", "pydfm._core", "--mypy-config-file", "pyproject.toml"),
        *("--allowlist", "csrc/stubtest-allowlist.txt"),
    )


@nox.session
def cpp(session: nox.Session) -> None:
    """The C++ tests; sanitizers by `nox -s cpp -- asan tsan`."""
    session.install(*_BUILD)
    for preset in session.posargs or ["strict"]:
        session.run("cmake", "--workflow", "--preset", preset)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The whole campaign of malformed files, odd arrays and kills; takes some ten minutes."""
    session.install(*_PINNED, ".[test]")
    session.run("python", "-m", "fuzz", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
@nox.parametrize("sanitizer", ["asan", "tsan"])
def sanitized(session: nox.Session, sanitizer: str) -> None:
    """The core's Python tests on a module built with sanitizers (GCC or Clang on Linux)."""
    session.install(*_PINNED, *_BUILD, "pybind11", ".[test]")
    places = f"-DPython_EXECUTABLE={Path(session.bin) / 'python'}"
    found = session.run("python", "-m", "pybind11", "--cmakedir", silent=True)
    preset = f"{sanitizer}-module"
    session.run("cmake", "--preset", preset, places, f"-Dpybind11_DIR={str(found).strip()}")
    session.run("cmake", "--build", "--preset", preset)
    folder = Path(session.create_tmp()) / sanitizer
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("pydfm", folder / "pydfm", ignore=shutil.ignore_patterns("*.so"))
    for module in Path("build", preset, "csrc").glob("_core_baseline*.so"):
        shutil.copy(module, folder / "pydfm")
    # Python has neither sanitizer, so both libraries must be there first.
    libraries = [
        str(session.run("gcc", f"-print-file-name={name}", external=True, silent=True)).strip()
        for name in (f"lib{sanitizer}.so", "libstdc++.so")
    ]
    settings = {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(folder.resolve()),
        "PYDFM_INSTRUCTION_SET": "baseline",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has to the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy's library is not built with them
    }
    chosen = ["tests/core", "tests/estimator/test_sharing.py"]
    # Only one build of the core is there.
    left_out = "tests/core/test_core.py::test_every_instruction_set_gives_the_same_scores"
    session.run(
        *("python", "-m", "pytest", "--timeout", "3000", "--deselect", left_out),
        *(session.posargs or chosen),
        env=settings,
    )


@nox.session
def demo(session: nox.Session) -> None:
    """The demo, as a newcomer runs it."""
    session.install(*_PINNED, ".[demo]")
    session.run("pydfm", "demo", "-o", str(Path(session.create_tmp()) / "demo.png"))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Write the tables of docs/benchmarks.md anew; takes a quarter of an hour."""
    session.install(*_PINNED, ".[test]")
    session.run("python", "-m", "benchmarks", "--write", "docs/benchmarks.md", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """A wheel and a source distribution, in dist/."""
    session.install("build")
    session.run("python", "-m", "build")
