"""The figure of docs/calibration.md: false-alarm rates against the level alpha."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.rates import METHODS, rate


def reliability(panels: dict[str, Any], path: Path) -> None:
    """Write a figure with a panel for each title; its curves are the p-values by method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    levels = np.geomspace(0.005, 1, 60)
    for ax, (title, found) in zip(axes, panels.items(), strict=True):
        ax.plot(levels, levels, color="0.6", linewidth=1, linestyle="--")
        for method in METHODS:
            rates = np.array([rate(found[method], level) for level in levels])
            ax.plot(levels, np.where(rates > 0, rates, np.nan), label=method, linewidth=1.5)
        ax.set(title=title, xscale="log", yscale="log", xlabel="level asked for")
        ax.set(xlim=(levels[0], 1), ylim=(levels[0], 1.1))
        ax.grid(color="0.9")
    axes[0].set_ylabel("share of fresh normals below it")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=90, metadata={"Software": None})
