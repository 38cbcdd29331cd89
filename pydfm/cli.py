"""The command line: pydfm fit | score | eval | benchmark | demo | config.

Exit codes: 0 done, 2 wrong usage or input (one line on stderr), 130 stopped by Ctrl-C, 141 standard
output was closed by what reads it (`| head`). Nothing heavy is imported before a command runs.
"""

import io
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm import cli_benchmark, cli_fit, cli_score
from pydfm.cli_options import read_weights, tell

app = typer.Typer(
    name="pydfm",
    help="How far is an image from what a model knows?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(cli_fit.fit)
app.command()(cli_score.score)
app.command("eval")(cli_score.evaluate_category)
app.add_typer(cli_benchmark.app, name="benchmark")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path(
        "pydfm-demo.png"
    ),
    weights: Annotated[
        str, typer.Option(help="none for random ones, imagenet (downloaded once), or a file.")
    ] = "none",
) -> None:
    """Fit and score photographs that are already there; needs no network."""
    from pydfm.demo import run_demo

    run_demo(output, read_weights(weights), typer.echo)


@app.command()
def config() -> None:
    """Print versions, instruction set, threads and GPU, for bug reports."""
    from pydfm.config import show_config

    show_config()


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from pydfm._version import __version__

        typer.echo(f"pydfm {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise ValueError(
            "a command is needed: fit, score, eval, benchmark, demo or config (see pydfm --help)"
        )


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code; KeyboardInterrupt goes through."""
    # Paths may hold bytes that are no text; they go out as they came in.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors()
        )
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code: Any = app(args, prog_name="pydfm", standalone_mode=False)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (BrokenPipeError, SystemExit):  # which typer may make of the other
            _drop_stdout()
            return 141
        except Exception as error:
            if os.environ.get("PYDFM_DEBUG"):
                raise
            tell(_message(error))
            _drop_stdout()
            return 2
    if code == 130:  # what typer makes of it
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _message(error: Exception) -> str:
    usage = getattr(error, "format_message", None)  # wrong usage, as typer tells it
    if usage is None:
        return str(error) or type(error).__name__
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pydfm"
    return f"{usage().rstrip('.')} (see {command} --help)"


def _drop_stdout() -> None:
    """Forget what could not be written, which Python would try again and report at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    tell(f"warning: {message}")
