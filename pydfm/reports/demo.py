"""The figure of the demo: the scores of each kind of image, and images at both ends."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pydfm.runtime.files import check_output, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DemoFigure:
    """A figure that is checked before any work is done, and drawn and written at its end.

    Parameters
    ----------
    path : str or path
        File of the figure, in the format of its extension, PNG if there is none.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If the extension is not a format that matplotlib writes.
    OSError
        If `path` cannot be written.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "the demo needs matplotlib; install it with "
                "`pip install -c constraints.txt '.[demo]'`"
            ) from error
        self._path = path
        self._figure = Figure(figsize=(9, 5.2), layout="constrained")
        self._extension = Path(path).suffix[1:].lower() or "png"
        formats = self._figure.canvas.get_supported_filetypes()
        if self._extension not in formats:
            raise ValueError(
                f"the figure '{os.fspath(path)}' cannot be written as {self._extension}; its "
                f"extension must be one of {', '.join(sorted(formats))}"
            )
        check_output(path)

    def write(
        self,
        images: Sequence[Image.Image],
        kinds: Sequence[str],
        scores: NDArray[np.float32],
        auroc: float,
    ) -> None:
        """Draw the figure and write it.

        Parameters
        ----------
        images : sequence of N PIL images
        kinds : sequence of N str
            What each image shows; the first kind is the normal one.
        scores : ndarray of shape (N,)
        auroc : float
        """
        _draw(self._figure, images, np.asarray(kinds), scores, auroc)
        drawn = io.BytesIO()
        self._figure.savefig(drawn, format=self._extension, dpi=110)
        write_file(self._path, drawn.getvalue())


def _draw(
    figure: "Figure",
    images: Sequence[Image.Image],
    kinds: NDArray[np.str_],
    scores: NDArray[np.float32],
    auroc: float,
) -> None:
    """Draw the scores of each kind as dots and, below, its images of lowest and highest score."""
    names = list(dict.fromkeys(kinds.tolist()))
    grid = figure.add_gridspec(2, 2 * len(names), height_ratios=(3, 1))
    axes = figure.add_subplot(grid[0, :])
    spread = np.random.default_rng(0).uniform(-0.2, 0.2, len(scores))
    for i, name in enumerate(names):
        own = np.flatnonzero(kinds == name)
        axes.scatter(i + spread[own], scores[own], s=14, color="C3" if i else "C0")
        for j, (end, place) in enumerate(
            (("lowest", own[scores[own].argmin()]), ("highest", own[scores[own].argmax()]))
        ):
            small = figure.add_subplot(grid[1, 2 * i + j])
            small.imshow(images[place], cmap="gray", vmin=0, vmax=255)
            small.set_title(f"{end}\n{scores[place]:.1f}", fontsize=8)
            small.set_axis_off()
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("reconstruction error (fre), standardised")
    axes.set_title(f"Fitted on {names[0]} alone; AUROC {auroc:.3f}")
