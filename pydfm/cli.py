"""The command line: pydfm fit | score | eval | benchmark | demo | config.

Exit codes: 0 done, 2 wrong usage or input (one line on stderr), 130 stopped by Ctrl-C, 141 standard
output was closed by what reads it (`| head`). Nothing heavy is imported before a command runs.
"""

import csv
import io
import math
import os
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm import cli_benchmark

app = typer.Typer(
    name="pydfm",
    help="How far is an image from what a model knows?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_benchmark.app, name="benchmark")


class ScoreType(str, Enum):
    """Kinds of scores."""

    fre = "fre"
    mahalanobis = "mahalanobis"
    nll = "nll"
    ppca = "ppca"


class Precision(str, Enum):
    """Precisions of the network."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


_Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that `pydfm fit` wrote.")]
_Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; default: a GPU where there is one.")
]
_BatchSize = Annotated[int, typer.Option(help="Images per batch.")]
_Threads = Annotated[
    int | None, typer.Option(help="Threads; default: the cores this process may use.")
]
_Skip = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read.")
]
_Weights = Annotated[
    str | None, typer.Option(help="Where the weights lie now, if elsewhere than at the fit.")
]
_Backbone = Annotated[
    str | None,
    typer.Option(help="Where the TorchScript file lies now, if elsewhere than at the fit."),
]


@app.command()
def fit(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Normal pictures, searched in depth.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The model file to write.")],
    n_components: Annotated[
        str, typer.Option(help="A share of variance such as 0.97, a number such as 50, or all.")
    ] = "0.97",
    score_type: Annotated[ScoreType, typer.Option(help="What `score` gives.")] = ScoreType.fre,
    backbone: Annotated[
        str,
        typer.Option(help="resnet18, resnet34, resnet50, wide_resnet50_2 or a TorchScript file."),
    ] = "resnet18",
    weights: Annotated[
        str, typer.Option(help="imagenet (downloaded once), a file, or none for random ones.")
    ] = "imagenet",
    layer: Annotated[
        list[str] | None, typer.Option(help="A layer to take features from; may be repeated.")
    ] = None,
    pool: Annotated[
        int | None, typer.Option(help="Kernel of the average pooling of layers.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side that pictures are resized to; default: 256, cut 224.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of the network.")] = Precision.float32,
    random_state: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    device: _Device = None,
    batch_size: _BatchSize = 32,
    threads: _Threads = None,
    skip_unreadable: _Skip = False,
) -> None:
    """Learn what normal pictures look like."""
    from pydfm.datasets import is_category
    from pydfm.dfm import DFM
    from pydfm.files import check_output

    if is_category(folder):
        raise ValueError(
            f"'{folder}' holds train/good and test, normal and defective pictures together; fit "
            f"on the normal ones: {folder / 'train' / 'good'}"
        )
    check_output(output)
    dfm = DFM(
        _n_components(n_components),
        score_type.value,
        backbone=backbone,
        weights=_weights(weights),
        layers=tuple(layer) if layer else None,
        pool=pool,
        image_size=image_size,
        precision=precision.value,
        random_state=random_state,
        device=device,
        batch_size=batch_size,
        n_threads=threads,
        on_error="skip" if skip_unreadable else "raise",
        verbose=True,
    )
    dfm.fit(folder).save(output)
    typer.echo(f"{output}: {dfm.model_.summary()}; next: pydfm score {output} FOLDER")


@app.command()
def score(
    model: _Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, or one picture.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file; default: standard output.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of good pictures that may be called anomalous; default: 0.01."),
    ] = None,
    fdr: Annotated[
        float | None,
        typer.Option(help="In place of it: share of good ones among those called anomalous."),
    ] = None,
    weights: _Weights = None,
    backbone: _Backbone = None,
    device: _Device = None,
    batch_size: _BatchSize = 32,
    threads: _Threads = None,
    skip_unreadable: _Skip = False,
) -> None:
    """Score pictures: CSV with path, score, p-value and verdict; larger = more anomalous."""
    from pydfm.files import check_output, write_file
    from pydfm.images import list_images

    if output is not None:
        check_output(output)
    elif sys.stdout is None:
        raise OSError("standard output is closed; name a file with --output")
    paths = list_images(folder)
    dfm = _load(model, weights, backbone, device, batch_size, threads, skip_unreadable)
    table = _csv(paths, _judge(dfm, paths, alpha, fdr))
    if output is None:
        sys.stdout.write(table)
    else:
        write_file(output, table.encode("utf-8", "surrogateescape"))


@app.command("eval")
def evaluate_category(
    model: _Model,
    category: Annotated[
        Path,
        typer.Argument(metavar="CATEGORY", help="A folder with test/good and test/DEFECT."),
    ],
    weights: _Weights = None,
    backbone: _Backbone = None,
    device: _Device = None,
    batch_size: _BatchSize = 32,
    threads: _Threads = None,
    skip_unreadable: _Skip = False,
) -> None:
    """Measure a model on a category in MVTec AD's layout."""
    import numpy as np

    from pydfm.datasets import load_category
    from pydfm.evaluation import evaluate

    test = load_category(category)
    dfm = _load(model, weights, backbone, device, batch_size, threads, skip_unreadable)
    scores = dfm.score(test.test)
    read = np.isfinite(scores)
    metrics = evaluate(scores[read], np.asarray(test.labels)[read])
    kinds = np.asarray(test.defects)[read]
    counts = ", ".join(f"{(kinds == kind).sum()} {kind}" for kind in dict.fromkeys(test.defects))
    typer.echo(f"category     {test.name} ({counts})")
    typer.echo(f"image AUROC  {metrics['auroc']:.4f}")
    typer.echo(f"AUPR         {metrics['aupr']:.4f}")
    typer.echo(f"F1-max       {metrics['f1_max']:.4f} at score >= {metrics['threshold']:.6g}")
    typer.echo(f"FPR95        {metrics['fpr95']:.4f}")


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

    run_demo(output, _weights(weights), typer.echo)


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
        raise ValueError("a command is needed: fit, score, eval, demo or config (see pydfm --help)")


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
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
        except KeyboardInterrupt:
            code = 130
        except (BrokenPipeError, SystemExit):  # which typer may make of the other
            _drop_stdout()
            return 141
        except Exception as error:
            if os.environ.get("PYDFM_DEBUG"):
                raise
            _tell(_message(error))
            _drop_stdout()
            return 2
    if code == 130:
        if sys.stderr is not None and sys.stderr.isatty():
            print(file=sys.stderr)  # a bar that was being drawn, or ^C, stands on the line
        _tell("stopped")
    return code if isinstance(code, int) else 0


def _message(error: Exception) -> str:
    usage = getattr(error, "format_message", None)  # wrong usage, as typer tells it
    if usage is None:
        return str(error) or type(error).__name__
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "pydfm"
    return f"{usage().rstrip('.')} (see {command} --help)"


def _tell(message: str) -> None:
    """Write one line to stderr, whatever is in the message."""
    if sys.stderr is not None:  # or print would take stdout
        print("pydfm: " + " ".join(message.split()), file=sys.stderr)


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
    _tell(f"warning: {message}")


def _load(
    model: Path,
    weights: str | None,
    backbone: str | None,
    device: str | None,
    batch_size: int,
    threads: int | None,
    skip_unreadable: bool,
) -> Any:
    from pydfm.modelfile import load

    moved = {} if weights is None else {"weights": _weights(weights)}
    dfm = load(model, backbone=backbone, device=device, n_threads=threads, **moved)
    if dfm.feature_spec_ is None:
        raise ValueError(f"'{model}' was fitted on features, not on images; use it from Python")
    return dfm.set_params(
        batch_size=batch_size, on_error="skip" if skip_unreadable else "raise", verbose=True
    )


def _judge(dfm: Any, paths: list[str], alpha: float | None, fdr: float | None) -> Any:
    """Return score, p-value and verdict of each picture, as text."""
    verdicts = {1: "ok", -1: "anomalous", 0: "unreadable"}
    if dfm.calibration_ is None and alpha is None and fdr is None:
        return [(f"{score:.9g}", "", "") for score in dfm.score(paths)]
    if alpha is None and fdr is None and dfm.smallest_alpha_ > dfm.alpha:
        least = dfm.smallest_alpha_
        alpha = math.ceil(least * 1e4) / 1e4
        _tell(
            f"warning: verdicts are at alpha = {alpha:.4g}, the smallest that is possible with "
            f"{round(1 / least) - 1} normal pictures"
        )
    found = dfm.assess(paths, alpha=alpha, fdr=fdr)
    return [
        (f"{score:.9g}", f"{p:.6g}", verdicts[int(verdict)])
        for score, p, verdict in zip(found.scores, found.p_values, found.verdicts, strict=True)
    ]


def _csv(paths: list[str], judged: Any) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("path", "score", "p_value", "verdict"))
    writer.writerows((path, *texts) for path, texts in zip(paths, judged, strict=True))
    return table.getvalue()


def _weights(text: str) -> str | None:
    return None if text.lower() == "none" else text


def _n_components(text: str) -> float | int | None:
    if text.lower() == "all":
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise ValueError(
                f"--n-components is {text!r}; it must be a share of variance between 0 and 1, a "
                "number of components, or all"
            ) from None
