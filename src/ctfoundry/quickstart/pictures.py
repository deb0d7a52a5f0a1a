"""Pictures of results: colour maps over scans, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.encoder import FeatureMap
from ctfoundry.report.planes import Overlay, three_planes
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

    Picture = UInt8[np.ndarray, "rows columns 3"]


def colour_picture(volume: Volume, colours: FeatureMap, *, height: int = 220) -> Picture:
    """Three planes with PCA colours laid over the body; cells outside it stay clear."""
    values = colours.data.permute(1, 2, 3, 0).cpu().numpy().astype(np.float64)
    values[~(values > 0).any(-1)] = np.nan
    return three_planes(volume, height=height, overlay=Overlay(values, colours.affine, alpha=0.75))


WIDTH = 1240
"""Pixels of a sheet."""


def sheet(rows: Sequence[Sequence[Picture]], *, width: int = WIDTH, gap: int = 8) -> Picture:
    """Pictures in rows; the pictures of a row have one height, and all rows are scaled to `width` pixels."""
    from PIL import Image

    def scaled(picture: Picture, columns: int, height: int) -> Picture:
        return np.asarray(Image.fromarray(picture).resize((columns, height), Image.Resampling.LANCZOS))

    lines = []
    for row in rows:
        aspects = [picture.shape[1] / picture.shape[0] for picture in row]
        height = int((width - gap * (len(row) - 1)) / sum(aspects))
        parts = [scaled(p, int(a * height), height) for p, a in zip(row, aspects, strict=True)]
        spaced = [part for p in parts for part in (p, np.zeros((height, gap, 3), np.uint8))][:-1]
        line = np.concatenate(spaced, axis=1)
        lines.append(np.pad(line, ((0, gap), (0, width - line.shape[1]), (0, 0))))
    return np.concatenate(lines, axis=0)[:-gap]
