"""The command ``pydfm export``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import (
    RUNTIME,
    Classes,
    Groups,
    Model,
    MovedBackbone,
    MovedWeights,
    labels_of,
    load_model,
    parse_groups,
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
    int8: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Compute the network in integers of 8 bits, and fit the exported model again to "
            "these, all good images.",
        ),
    ] = None,
    classes: Classes = False,
    groups: Groups = None,
    weights: MovedWeights = None,
    backbone: MovedBackbone = None,
    **parameters: Any,
) -> None:
    """Write a model as one graph of ONNX, from pixels to scores, p-values, verdicts and maps."""
    from pydfm.features.inputs.images import list_images
    from pydfm.features.pictures.pages import with_pages
    from pydfm.io.onnx.export import check_export
    from pydfm.io.onnx.proof import compare
    from pydfm.io.onnx.session import OnnxModel, check_onnxruntime
    from pydfm.parameters import none_or
    from pydfm.reports.batch import threshold_text

    check_export(output)
    if output.exists() and model.exists() and output.samefile(model):
        raise ValueError(f"'{output}' is the model itself; name another file to write")
    if int8 is None and (classes or groups is not None):
        raise ValueError("--classes and --groups are of --int8, which is not given; leave them out")
    if check is not None or int8 is not None:
        check_onnxruntime()
    images = [] if check is None else with_pages(list_images(check))
    good = None if int8 is None else with_pages(list_images(int8))
    dfm = load_model(model, weights, backbone, parameters)
    if parameters["alpha"] is not None and dfm.calibration_ is None:
        raise ValueError(
            f"--alpha is given, and '{model}' was fitted without calibration and does not decide; "
            "leave it out, or fit with --calibration loo"
        )
    moved: dict[str, Any] = {} if weights is None else {"weights": none_or(weights)}
    moved |= {} if backbone is None else {"backbone": backbone}
    if good is not None and int8 is not None:
        moved |= {"int8": good, "labels": labels_of(int8, good, classes)}
        moved |= {"groups": parse_groups(groups)}
    held = dfm.to_onnx(output, **moved)
    say(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
    if good is not None:
        own = json.loads(OnnxModel(output).metadata["pydfm"])["network"]
        small, large = (own[name] / 1e6 for name in ("bytes", "bytes_in_float32"))
        say(f"network     {small:.1f} MB in int8, {large:.1f} MB in float32")
        say(f"features    differ by {own['error']:.2g} of their deviation from float32")
        say(f"fitted      again to {held.n_samples_} images; {threshold_text(held)}")
    if check is None:
        return
    proof, *others = compare([held] if good is None else [held, dfm], output, images)
    for line in proof.lines():
        say(line)
    for beside in others:
        say(f"beside {model} in float32:")
        for line in beside.figures():
            say(line)
    if not proof.holds:
        raise typer.Exit(1)


COMMAND = Command("export", export, order=17, optional={**RUNTIME, "alpha": ""})
