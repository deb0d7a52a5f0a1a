"""Archives with several scans: what a person chooses from. Numbers of headers and known words; no text that somebody typed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry import io
from ctfoundry.errors import NotAScanError
from ctfoundry.io.discovery import Found
from ctfoundry.io.skips import SINGLE
from ctfoundry.io.zip_directory import is_zip

MOST = 200
"""Scans that are offered of one archive, those with most slices."""
KERNELS = re.compile(
    r"[A-Za-z]{1,3}\d{1,3}[a-z]{0,2}|standard|soft|detail|lung|bone|boneplus|edge|chest", re.IGNORECASE
)
"""Convolution kernels that are shown; in others' place may stand anything that can be typed."""
PART = re.compile(r"[a-z ]{0,20}[\d.]{1,7}(%| ms| mm thick| kV)?( \(\d{1,3}\))?|axial|coronal|sagittal|oblique|\d+x\d+")
"""What tells parts of one series apart, where it may be shown."""
PLANES = {"S": "axial", "I": "axial", "P": "coronal", "A": "coronal", "L": "sagittal", "R": "sagittal"}
LOOK = "give it to `ctfoundry inspect`, which says more"
TILTED_DEG = 10.0
"""Slices that lean more than this are called oblique."""


@dataclass(frozen=True)
class Choice:
    """A scan that may be chosen.

    Attributes
    ----------
    name : what `io.read` takes behind ARCHIVE#; private: it holds UIDs or a file's name.
    shape, spacing : voxels and mm along (d, h, w), as declared.
    plane : of its slices.
    modality : "CT" for DICOM, which says so; else the file's format.
    detail : kernel, and which part of its series it is, as far as they are harmless.
    too_large : whether its voxels are more than the server takes.
    """

    name: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    plane: str
    modality: str
    detail: tuple[str, ...]
    too_large: bool

    def facts(self) -> dict[str, Any]:
        """What the page is told."""
        return {
            "slices": self.shape[0],
            "shape": list(self.shape),
            "spacing": [round(v, 3) for v in self.spacing],
            "plane": self.plane,
            "modality": self.modality,
            "detail": list(self.detail),
            "too_large": self.too_large,
        }


@dataclass(frozen=True)
class Offer:
    """The scans of an archive; `more` are not listed, and `broken` cannot be read."""

    choices: tuple[Choice, ...]
    more: int
    broken: int


def offered(path: Path, cap: int) -> Offer | str | None:
    """What an archive holds: several scans to choose from; the name of its only one, where there is something else besides;
    None where it is left to `io.read`, which reads it or says what is wrong. Pixels are not looked at.

    Raises what `io.discover` raises, and NotAScanError for several of which none is a scan: `io.read` would list their UIDs.
    """
    with open(path, "rb") as file:
        if not is_zip(file.read(4)):
            return None
    found = io.discover(path)
    scans, count = found.scans, len(found.found)
    broken = sum(item.problem is not None and not item.is_label for item in found.found)
    lone = found.skipped.get(SINGLE, 0)
    if not count and lone > 1:
        raise NotAScanError(
            f"holds {lone} single slices, each of another series, and no scan", do="give a whole series"
        )
    if count > 1 and not scans:
        what = f"holds {count} volumes, of which none can be opened: {broken} are damaged or lack slices"
        raise NotAScanError(what + (f", {count - broken} are label maps" if count > broken else ""), do=LOOK)
    if count < 2:
        return None
    if len(scans) == 1 and not broken:
        return _name(scans[0], path)
    choices = sorted((_choice(item, path, cap) for item in scans), key=lambda c: (c.too_large, -c.shape[0]))
    return Offer(tuple(choices[:MOST]), len(choices[MOST:]), broken)


def _name(item: Found, path: Path) -> str:
    return item.name.removeprefix(f"{path}#")


def _choice(item: Found, path: Path, cap: int) -> Choice:
    assert item.grid is not None  # there is one wherever there is no problem
    dicom = item.format == "dicom"
    return Choice(
        _name(item, path),
        item.grid.shape,
        item.grid.spacing,
        _plane(item.grid.affine),
        item.modality or item.format.upper() if dicom else item.format,
        _detail(item) if dicom else (),
        2 * int(np.prod(np.array(item.grid.shape, float))) > cap,
    )


def _plane(affine: np.ndarray) -> str:
    """The plane of the slices, by the direction across them."""
    from ctfoundry import geometry

    across = np.abs(np.cross(affine[:3, 1], affine[:3, 2]))
    if np.degrees(np.arccos(min(1.0, across.max() / np.linalg.norm(across)))) > TILTED_DEG:
        return "oblique"
    return PLANES[geometry.orientation(affine)[0]]


def _detail(item: Found) -> tuple[str, ...]:
    kernel = item.facts.kernel if item.facts is not None else ""
    words = [word.strip() for word in kernel.split("\\")][:1]
    shown = [f"kernel {word}" for word in words if KERNELS.fullmatch(word)]
    pieces = item.part.split(", ") if item.part else []
    if pieces and all(PART.fullmatch(piece) for piece in pieces):
        shown.append(item.part)
    elif pieces:
        shown.append(f"part {item.part_number}")
    return tuple(shown)
