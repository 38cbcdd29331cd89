"""Every task of the project, each in an environment of its own: `nox -l` lists them."""

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
    session.install(*_PINNED, ".[test]")
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
