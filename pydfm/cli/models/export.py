"""The command ``pydfm export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    Model,
    MovedBackbone,
    MovedWeights,
    load_model,
    say,
)


def export(
    model: Model,
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Score these images by pydfm and by onnxruntime, and print how far they differ; "
            "exit code 1 unless they agree.",
        ),
    ] = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Write a model as one graph of ONNX, from pixels to scores, p-values, verdicts and maps."""
    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.io.onnx.export import check_export
    from pydfm.io.onnx.proof import prove
    from pydfm.io.onnx.session import check_onnxruntime
    from pydfm.parameters import none_or

    check_export(output)
    images: list[str] = []
    if check is not None:
        check_onnxruntime()
        images = with_pages(list_images(check))
    dfm = load_model(model, weights, backbone, parameters)
    moved: dict[str, Any] = {} if weights is None else {"weights": none_or(weights)}
    moved |= {} if backbone is None else {"backbone": backbone}
    dfm.to_onnx(output, **moved)
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    if check is None:
        return
    proof = prove(dfm, output, images)
    for line in proof.lines():
        say(line)
    if not proof.holds:
        raise typer.Exit(1)


COMMAND = Command("export", export, order=17, optional={**RUNTIME, "alpha": ""})
