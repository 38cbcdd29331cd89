"""Every task of the project, each in an environment of its own: `nox -l` lists them."""

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types", "cpp", "demo"]

_PINNED = ("-c", "constraints.txt")
_BUILD = ("cmake", "ninja", "cmeel-eigen>=3.4,<4")
_CPP = [str(path) for path in Path("csrc").rglob("*.[ch]pp")]


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The Python tests; arguments go to pytest."""
    session.install(*_PINNED, ".[test]", "polars>=1")  # of 180 MB: not what others need
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, clang-format, and the imports between rooms."""
    session.install(*_PINNED, "ruff", "clang-format==23.1.5", "import-linter>=2.9")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-logo")
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
    with session.chdir("tests"):  # since Python would import the package of this folder first
        session.run("python", "-m", "fuzz", *session.posargs)


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
        # A fork of a test starts threads. A report that pytest hides makes the exit status 66.
        "TSAN_OPTIONS": "die_after_fork=0",
        "PYDFM_TEST_SLOWER": "32",
        "OPENBLAS_NUM_THREADS": "1",  # numpy's library is not built with them
    }
    # `python -m pytest` would import the package of this folder, whose core has no sanitizer.
    check = "import pydfm._core_baseline as core; print(core.__file__)"
    with session.chdir(folder):
        session.run("python", "-c", check, env=settings)
    chosen = ["tests/core", "tests/estimator/test_sharing.py"]
    left_out = (
        # Only one build of the core is there.
        "tests/core/test_core.py::test_every_instruction_set_gives_the_same_scores",
        # Of 2,048 features, which takes minutes with a sanitizer; the core's own calls, which it
        # interrupts too, are left in.
        "tests/core/test_interruption.py::test_a_model_is_left_as_it_was",
    )
    session.run(
        *("pytest", "--timeout", "3000", "--durations", "5"),
        *(f"--deselect={test}" for test in left_out),
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
