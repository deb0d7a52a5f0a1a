"""The page of PCA maps: one picture a scan, and what the colours stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.explain import pca
from ctfoundry.explain.pca import Pca
from ctfoundry.report.page import Callout, Card, Cards, Facts, Heading, Page, Prose, Section, Table
from ctfoundry.report.planes import Overlay, three_planes

if TYPE_CHECKING:
    from jaxtyping import Bool, UInt8
    from torch import Tensor

    from ctfoundry.encoder import FeatureMap
    from ctfoundry.volume import Volume

    Picture = UInt8[np.ndarray, "rows columns 3"]


@dataclass(frozen=True, eq=False)
class Shown:
    """One scan on the page: its id, both pictures, cells in the foreground and how much they overlap with the body (Dice)."""

    id: str
    plain: Picture
    coloured: Picture
    cells: int
    dice: float
    files: Sequence[str] = field(default=())


def picture(
    volume: Volume,
    fitted: Pca,
    feature: FeatureMap,
    mask: Bool[Tensor, "d h w"],
    *,
    height: int = 320,
    alpha: float = 0.75,
) -> Picture:
    """Three planes with the colours laid over the foreground; the background stays clear."""
    values = pca.colours(fitted, feature, mask).data.permute(1, 2, 3, 0).cpu().numpy().astype(np.float64)
    values[~mask.cpu().numpy()] = np.nan
    return three_planes(volume, height=height, overlay=Overlay(values, feature.affine, alpha=alpha))


def build(scans: Sequence[Shown], fitted: Pca, settings: Mapping[str, str], *, random: bool, footer: str = "") -> Page:
    """The page. `random` : whether the weights are random, which the page then says first."""
    sections: list[Section] = []
    if random:
        sections.append(
            Callout("These weights are random. What looks like anatomy is grey values and edges.", kind="warning")
        )
    share = [f"{100 * v:.0f} %" for v in fitted.explained]
    sections += [
        Prose(
            "Each cell is described by an encoder's features. The three directions in which those of all scans together "
            f"differ most ({', '.join(share)} of the variance) are shown as lightness, green to red, and blue to yellow. "
            "One colour in two scans means alike features; a drift from head to foot means that the encoder sees position. "
            "The eye finds structure in any smooth colours: the same picture from random weights tells how much of it is learned."
        ),
        Heading("Maps"),
        Cards(
            [
                card
                for scan in scans
                for card in (
                    Card(scan.coloured, f"PCA colours over scan {scan.id}", scan.id, badge="colours"),
                    Card(scan.plain, f"scan {scan.id}", scan.id),
                )
            ],
            "Components 1 to 3 as L, a and b of CIELAB, on one scale for all scans. Left of a picture is the patient's right.",
            width=430,
        ),
        Heading("Foreground"),
        Table(
            ["scan", "cells in colour", "overlap with the body (Dice)"],
            [[s.id, s.cells, None if np.isnan(s.dice) else round(s.dice, 3)] for s in scans],
            caption="The body is what lies above -300 HU in a quarter of a cell.",
        ),
        Heading("Settings"),
        Facts(settings),
    ]
    return Page("PCA colour maps", sections, "What an encoder's features tell apart, in colours", footer)
