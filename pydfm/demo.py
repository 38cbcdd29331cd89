"""The main job on pictures that are already there: fit, score, a table, a picture."""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pydfm.datasets import Demo, load_demo
from pydfm.dfm import DFM
from pydfm.evaluation import evaluate
from pydfm.files import check_output, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_demo(
    picture: "str | os.PathLike[str]",
    weights: "str | os.PathLike[str] | None",
    echo: Callable[[str], None],
) -> None:
    """Fit on crops of a brick wall, score others, print a table and write a picture.

    Parameters
    ----------
    picture : path
        Where to write the picture, in the format that its extension names, PNG if there is none.
    weights : path, str or None
        As for `DFM`.
    echo : callable
        Takes the lines to print.

    Raises
    ------
    ImportError
        If scikit-image or matplotlib is not installed.
    ValueError
        If the extension of `picture` names no format that matplotlib writes.
    OSError
        If `picture` cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the demo needs matplotlib; install it with `pip install -c constraints.txt '.[demo]'`"
        ) from error
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    extension = Path(picture).suffix[1:].lower() or "png"
    formats = figure.canvas.get_supported_filetypes()
    if extension not in formats:
        raise ValueError(
            f"the picture '{os.fspath(picture)}' cannot be written as {extension}; its "
            f"extension must be one of {', '.join(sorted(formats))}"
        )
    check_output(picture)
    demo = load_demo()
    dfm = DFM(weights=weights, layers="layer3", pool=2, image_size=96)
    source = "random weights (seed 0)" if weights is None else f"the weights {os.fspath(weights)}"
    echo(f"backbone  ResNet-18 with {source}, features of layer3")
    if weights is None:
        echo("          enough for textures; for objects pass --weights imagenet, or a file")

    start = time.perf_counter()
    dfm.fit(demo.train)
    middle = time.perf_counter()
    scores = dfm.score(demo.test)
    end = time.perf_counter()
    echo(
        f"fit       {len(demo.train)} crops of a brick wall in {middle - start:.1f} s: "
        f"{dfm.n_components_} of {dfm.n_features_in_} dimensions hold "
        f"{dfm.explained_variance_ratio_.sum():.0%} of the variance"
    )
    echo(f"score     {len(demo.test)} other crops in {end - middle:.1f} s")
    echo("")
    echo(f"{'kind':<18}{'images':>7}{'lowest':>10}{'median':>10}{'highest':>10}")
    kinds = np.asarray(demo.kinds)
    for kind in dict.fromkeys(demo.kinds):
        own = scores[kinds == kind]
        echo(f"{kind:<18}{len(own):>7}{own.min():>10.1f}{np.median(own):>10.1f}{own.max():>10.1f}")
    metrics = evaluate(scores, demo.labels)
    echo("")
    echo(f"AUROC     {metrics['auroc']:.3f}, brick against all others (0.5 is chance, 1 perfect)")

    _draw(figure, demo, scores, kinds, metrics["auroc"])
    drawn = io.BytesIO()
    figure.savefig(drawn, format=extension, dpi=110)
    write_file(picture, drawn.getvalue())
    echo(f"picture   {os.fspath(picture)}")
    echo("")
    echo("next      pydfm fit FOLDER_OF_GOOD_PICTURES -o model.pydfm")


def _draw(
    figure: "Figure",
    demo: Demo,
    scores: NDArray[np.float32],
    kinds: NDArray[np.str_],
    auroc: float,
) -> None:
    """Scores of every kind as dots; below, the crops of lowest and highest score of each."""
    names = list(dict.fromkeys(demo.kinds))
    grid = figure.add_gridspec(2, 2 * len(names), height_ratios=(3, 1))
    axes = figure.add_subplot(grid[0, :])
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(scores))
    for i, name in enumerate(names):
        own = np.flatnonzero(kinds == name)
        axes.scatter(i + spread[own], scores[own], s=14, color="C0" if name == "brick" else "C3")
        for j, (place, extreme) in enumerate(
            (("lowest", own[scores[own].argmin()]), ("highest", own[scores[own].argmax()]))
        ):
            small = figure.add_subplot(grid[1, 2 * i + j])
            small.imshow(demo.test[extreme], cmap="gray", vmin=0, vmax=255)
            small.set_title(f"{place}\n{scores[extreme]:.1f}", fontsize=8)
            small.set_axis_off()
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("reconstruction error (fre), standardised")
    axes.set_title(f"Fitted on brick alone; AUROC {auroc:.3f}")
