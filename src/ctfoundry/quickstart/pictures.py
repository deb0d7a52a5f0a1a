"""Pictures of results: colour maps and heat maps over scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.encoder import FeatureMap
from ctfoundry.report.planes import Mark, Overlay, three_planes
from ctfoundry.retrieval.search import Hit
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

    Picture = UInt8[np.ndarray, "rows columns 3"]

QUERY, FOUND, TRUTH = "#ffb000", "#7cff6b", "#4cc3ff"
"""Colours of the query's crosshair, the found place and the true place."""


def colour_picture(volume: Volume, colours: FeatureMap, *, height: int = 220) -> Picture:
    """Three planes with PCA colours laid over the body; cells outside it stay clear."""
    values = colours.data.permute(1, 2, 3, 0).cpu().numpy().astype(np.float64)
    values[~(values > 0).any(-1)] = np.nan
    return three_planes(volume, height=height, overlay=Overlay(values, colours.affine, alpha=0.75))


def query_picture(volume: Volume, point: Sequence[float], *, height: int = 200) -> Picture:
    """Three planes through the query point with a crosshair."""
    return three_planes(volume, point=point, height=height, crosshair=QUERY)


def hit_picture(target: Volume, hit: Hit, truth: tuple[float, float, float] | None, *, height: int = 200) -> Picture:
    """Three planes through the found place, the similarity as a heat map, the true place as a ring where it is known."""
    assert hit.heatmap is not None
    # only the most similar tenth of the cells is coloured, so that the picture is not one warm fog
    low, high = float(np.quantile(hit.scores, 0.9)), float(hit.scores.max())
    heat = np.clip((hit.heatmap.voxels - low) / max(high - low, 1e-9), 0, 1)
    marks = [] if truth is None else [Mark(truth, TRUTH, "true")]
    return three_planes(
        target,
        point=hit.point,
        height=height,
        crosshair=FOUND,
        marks=marks,
        overlay=Overlay(heat, hit.heatmap.affine, alpha=0.55),
    )


def sheet(rows: Sequence[Sequence[Picture]], *, width: int = 1240, gap: int = 8) -> Picture:
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
