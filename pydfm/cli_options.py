"""Options that several commands have, and how their text is read."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

ScoreType: TypeAlias = Literal["fre", "mahalanobis", "nll", "ppca", "relative_mahalanobis"]

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that `pydfm fit` wrote.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; default: a GPU where there is one.")
]
BatchSize = Annotated[int, typer.Option(help="Images per batch.")]
Threads = Annotated[
    int | None, typer.Option(help="Threads; default: the cores this process may use.")
]
Skip = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read.")
]
MovedWeights = Annotated[
    str | None, typer.Option(help="Where the weights lie now, if elsewhere than at the fit.")
]
MovedBackbone = Annotated[
    str | None,
    typer.Option(help="Where the TorchScript file lies now, if elsewhere than at the fit."),
]


def load_model(
    model: Path,
    weights: str | None,
    backbone: str | None,
    device: str | None,
    batch_size: int,
    threads: int | None,
    skip_unreadable: bool,
) -> Any:
    """Return the `DFM` of images in the file `model`."""
    from pydfm.modelfile import load

    moved = {} if weights is None else {"weights": read_weights(weights)}
    dfm = load(model, backbone=backbone, device=device, n_threads=threads, **moved)
    if dfm.feature_spec_ is None:
        raise ValueError(f"'{model}' was fitted on features, not on images; use it from Python")
    return dfm.set_params(
        batch_size=batch_size, on_error="skip" if skip_unreadable else "raise", verbose=True
    )


def read_weights(text: str) -> str | None:
    """Return what `DFM` takes for the option --weights."""
    return None if text.lower() == "none" else text


def tell(message: str) -> None:
    """Write one line to stderr, whatever is in the message."""
    if sys.stderr is not None:  # or print would take stdout
        print("pydfm: " + " ".join(message.split()), file=sys.stderr)
