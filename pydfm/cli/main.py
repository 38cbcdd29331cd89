"""The program: its commands, exit codes, errors and warnings.

Exit codes: 0 done, 1 what `pydfm score --fail-on` names was found, 2 wrong usage or input (one line
on stderr), 130 stopped by Ctrl-C, 141 standard output was closed by its reader (`| head`). Nothing
heavy is imported before a command runs.
"""

import inspect
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from pydfm.cli.command import Command, commands
from pydfm.cli.options import print_error

# What pydfm always comes with, by the names of imports.
_PACKAGES: Final = {
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "threadpoolctl": "threadpoolctl",
    "torch": "torch",
    "torchvision": "torchvision",
    "tqdm": "tqdm",
}


def build(words: Sequence[str]) -> Any:
    """Return the program, to be called with the arguments `words`.

    Only the commands that `words` name have their options, since those may need imports.
    """
    app = typer.Typer(
        name="pydfm",
        help="How far is an image from what a model knows?",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback(invoke_without_command=True)(_start)
    _add(app, commands(), words)
    program: Any = typer.main.get_command(app)
    # typer lists groups after commands.
    program.commands = {own.name: program.commands[own.name] for own in commands()}
    return program


def _add(app: typer.Typer, added: Sequence[Command], words: Sequence[str]) -> None:
    for command in added:
        if isinstance(command.run, tuple):
            group = typer.Typer(help=command.help, rich_markup_mode=None)
            _add(group, command.run, words)
            app.add_typer(group, name=command.name)
        else:
            function = command.function() if command.name in words else _never_called
            app.command(command.name, help=inspect.getdoc(command.run))(function)


def _never_called() -> None:
    """Stand for a command that the arguments do not name."""


def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from pydfm import __version__

        typer.echo(f"pydfm {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        *names, last = [command.name for command in commands()]
        raise ValueError(f"a command is needed: {', '.join(names)} or {last} (see pydfm --help)")


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code; KeyboardInterrupt goes through."""
    words = sys.argv[1:] if args is None else args
    # Paths may contain bytes that are not text; they are printed unchanged.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors()
        )
    with warnings.catch_warnings():
        warnings.showwarning = _shower()
        try:
            code: Any = build(words)(words, prog_name="pydfm", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit):  # typer turns the first into the second
            _drop_stdout()
            return 141
        except Exception as error:
            if os.environ.get("PYDFM_DEBUG"):
                raise
            print_error(_message(error))
            _drop_stdout()
            return 2
    if code == 130:  # typer's code for KeyboardInterrupt
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = _PACKAGES.get(error.name.partition(".")[0])
        if package is not None:  # they may be absent beside exports alone
            return f"this needs {package}, which is not installed; `pip install pydfm` brings it"
    usage = getattr(error, "format_message", None)  # typer's errors of usage have one
    if usage is None:
        return str(error) or type(error).__name__
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pydfm"
    return f"{usage().rstrip('.')} (see {command} --help)"


def _drop_stdout() -> None:
    """Discard what could not be written; Python would try again at exit, and report it."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shower() -> Any:
    """Return what shows warnings: each sentence once, whoever says it."""
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            print_error(f"warning: {message}")

    return show
