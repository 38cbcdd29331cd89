"""The command line: pydfm fit | score | eval | benchmark | demo | config.

Exit codes: 0 done, 2 wrong usage or input (one line on stderr), 130 stopped by Ctrl-C. Nothing
heavy is imported before a command runs.
"""

import csv
import os
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from pydfm import cli_benchmark

app = typer.Typer(
    name="pydfm",
    help="How far is an image from what a model knows?",
    add_completion=False,
    no_args_is_help=True,
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
_Moved = Annotated[
    str | None,
    typer.Option("--weights", help="Where the weights lie now, if elsewhere than at the fit."),
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

    if is_category(folder):
        raise ValueError(
            f"'{folder}' holds train/good and test, normal and defective pictures together; fit "
            f"on the normal ones: {folder / 'train' / 'good'}"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder '{output.parent}'")
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
    typer.echo(
        f"{output}: {dfm.n_samples_} images, {dfm.n_components_} of {dfm.n_features_in_} "
        f"components; next: pydfm score {output} FOLDER"
    )


@app.command()
def score(
    model: _Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder, or one picture.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file; default: standard output.")
    ] = None,
    weights: _Moved = None,
    device: _Device = None,
    batch_size: _BatchSize = 32,
    threads: _Threads = None,
    skip_unreadable: _Skip = False,
) -> None:
    """Score pictures: CSV with path and score, larger = more anomalous."""
    from pydfm.images import list_images

    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder '{output.parent}'")
    dfm = _load(model, weights, device, batch_size, threads, skip_unreadable)
    paths = list_images(folder)
    scores = dfm.score(paths)
    if output is None:
        _write_csv(sys.stdout, paths, scores)
    else:
        with output.open("w", newline="", encoding="utf-8") as file:
            _write_csv(file, paths, scores)


@app.command("eval")
def evaluate_category(
    model: _Model,
    category: Annotated[
        Path,
        typer.Argument(metavar="CATEGORY", help="A folder with test/good and test/DEFECT."),
    ],
    weights: _Moved = None,
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
    dfm = _load(model, weights, device, batch_size, threads, skip_unreadable)
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

    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder '{output.parent}'")
    run_demo(output, _weights(weights), typer.echo)


@app.command()
def config() -> None:
    """Print versions, instruction set, threads and GPU, for bug reports."""
    from pydfm.config import show_config

    show_config()


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from pydfm._version import __version__

        typer.echo(f"pydfm {__version__}")
        raise typer.Exit


def main(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code: Any = app(args, prog_name="pydfm", standalone_mode=False)
        except KeyboardInterrupt:
            code = 130
        except Exception as error:
            if os.environ.get("PYDFM_DEBUG"):
                raise
            usage = getattr(error, "format_message", None)  # what typer says of wrong usage
            message = usage() if usage else str(error) or type(error).__name__
            print("pydfm: " + " ".join(message.split()), file=sys.stderr)
            return 2
    if code == 130:
        print("pydfm: stopped", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"pydfm: warning: {message}", file=sys.stderr)


def _load(
    model: Path,
    weights: str | None,
    device: str | None,
    batch_size: int,
    threads: int | None,
    skip_unreadable: bool,
) -> Any:
    from pydfm.modelfile import load

    moved = {} if weights is None else {"weights": _weights(weights)}
    dfm = load(model, device=device, n_threads=threads, **moved)
    if dfm.feature_spec_ is None:
        raise ValueError(f"'{model}' was fitted on features, not on images; use it from Python")
    return dfm.set_params(
        batch_size=batch_size, on_error="skip" if skip_unreadable else "raise", verbose=True
    )


def _write_csv(file: IO[str], paths: list[str], scores: Any) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("path", "score"))
    writer.writerows((path, f"{value:.9g}") for path, value in zip(paths, scores, strict=True))


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
