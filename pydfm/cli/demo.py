"""The command ``pydfm demo``: the main job on images that are already there."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from pydfm.cli.command import Command
from pydfm.cli.options import say


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="The figure to write; a page of the same name beside it."
        ),
    ] = Path("pydfm-demo.png"),
    weights: Annotated[
        str,
        typer.Option(help="auto (those of the extra demo), none for random ones, or a file."),
    ] = "auto",
) -> None:
    """Fit and score photographs that are already there; needs no network connection."""
    import numpy as np

    from pydfm.datasets import load_demo
    from pydfm.estimator import DFM
    from pydfm.metrics import evaluate
    from pydfm.parameters import none_or
    from pydfm.reports.batch import report
    from pydfm.reports.demo import DemoFigure
    from pydfm.reports.page import check_page

    figure, page = DemoFigure(output), output.with_suffix(".html")
    check_page(page)
    images = load_demo()
    chosen = none_or(weights)
    dfm = DFM(backbone="efficientnet_lite0", weights=chosen, image_size=96)
    source = "random weights (seed 0)" if chosen is None else f"the weights {chosen}"
    if chosen in ("auto", "imagenet"):
        source = "ImageNet weights, from its package"
    typer.echo(f"backbone  EfficientNet-Lite0 with {source}")
    typer.echo("          maps of stride 8 and 16, averaged by 2, as pydfm fit takes them")

    start = time.perf_counter()
    dfm.fit(images.train)
    middle = time.perf_counter()
    # The page is of the wall, with and without stones; the other surfaces are only scored.
    scores = np.empty(len(images.test), dtype=np.float32)
    wall = np.char.startswith(images.kinds, "brick")
    places, others = np.flatnonzero(wall).tolist(), np.flatnonzero(~wall).tolist()
    names = [f"{images.kinds[i]} {i}" for i in places]
    shown = report(
        dfm, [images.test[i] for i in places], page, names=names, title="pydfm demo: a wall"
    )
    scores[wall] = shown.assessment.scores
    scores[~wall] = dfm.score([images.test[i] for i in others])
    end = time.perf_counter()
    typer.echo(
        f"fit       {len(images.train)} crops of a brick wall in {middle - start:.1f} s: "
        f"{dfm.model_.summary().partition(', ')[2]}"
    )
    typer.echo(f"score     {len(images.test)} other crops in {end - middle:.1f} s\n")
    typer.echo(f"{'kind':<18}{'images':>7}{'lowest':>10}{'median':>10}{'highest':>10}")
    kinds = np.asarray(images.kinds)
    for kind in dict.fromkeys(images.kinds):
        own = scores[kinds == kind]
        values = f"{own.min():>10.1f}{np.median(own):>10.1f}{own.max():>10.1f}"
        typer.echo(f"{kind:<18}{len(own):>7}{values}")
    auroc = evaluate(scores, images.labels)["auroc"]
    typer.echo(f"\nAUROC     {auroc:.3f}, brick against all others (0.5 is chance, 1 perfect)")
    figure.write(images.test, images.kinds, scores, auroc)
    say(f"figure    {os.fspath(output)}")
    typer.echo(f"page      {os.fspath(page)}: the report of the wall; open it in a browser\n")
    typer.echo("next      pydfm fit FOLDER_OF_GOOD_IMAGES -o model.pydfm")


COMMAND = Command("demo", demo, order=50)
