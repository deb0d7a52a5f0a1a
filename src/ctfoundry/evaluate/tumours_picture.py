"""One picture of the tumour comparison: Dice of every method, what a network missed, and its best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from ctfoundry.evaluate.tumours_report import Summary

INK, MARKED = "#333333", "#c2410c"


def write_picture(path: Path, summary: Summary, marked: str, pictures: Sequence[tuple[str, str, np.ndarray]]) -> Path:
    """Write a PNG: an interval a method (`marked` stands out), below it `pictures` (caption, alternative text, RGB) of its scans."""
    from matplotlib.figure import Figure

    from ctfoundry import files

    names = list(summary.methods)
    top, row = 0.9 + 0.36 * len(names), 2.1
    height = top + row * len(pictures) + 0.35
    figure = Figure(figsize=(10.5, height), facecolor="white")
    axes = figure.add_axes((0.34, 1 - (top - 0.45) / height, 0.64, (top - 0.85) / height))
    for place, name in enumerate(reversed(names)):
        found, colour = summary.methods[name]["dice"], MARKED if name == marked else INK
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], color=colour, lw=2)
        axes.plot(found.value, place, "o", color=colour)
        text = f"{found.text(2)}, {found.patients} patients"
        axes.text(1.22, place, text, va="center", ha="right", fontsize=8.5, color=colour)
    axes.set_yticks(range(len(names)), names[::-1], fontsize=9)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 1.22)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8])
    axes.set_title("Dice on test patients, mean and 95 % interval", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    for number, (caption, _, picture) in enumerate(pictures):
        low = height - top - row * (number + 1)
        shown = figure.add_axes((0.02, (low + 0.05) / height, 0.96, (row - 0.35) / height))
        shown.imshow(picture)
        shown.axis("off")
        shown.set_title(caption, fontsize=9, pad=3)
    words = f"{marked}. Blue: reference. Orange: prediction. White: where both outlines run."
    figure.text(0.5, 0.12 / height, words, ha="center", fontsize=9)
    with files.whole(path) as part:
        figure.savefig(part, format="png", dpi=100)
    return path
