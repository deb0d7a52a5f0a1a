"""What a layout is: how one scan becomes the files of a public data set, and which tables stand beside them."""

from __future__ import annotations

import csv
import io as text_io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctfoundry import files, io
from ctfoundry.layouts.cases import Case
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.spec import View
from ctfoundry.volume import Volume

Row = dict[str, Any]
"""What a scan leaves for the tables: plain values."""


@dataclass(frozen=True)
class Layout:
    """A public data set's way to lay out files.

    Attributes
    ----------
    case : writes one scan below a root and returns its row.
    tables : writes what stands once, from the rows of all scans.
    source : where the layout was read up, or that it could not be verified.
    view : part of the body that the set shows, unless another is asked for.
    lesions : whether the set is about lesions.
    repeat : scans of each patient that it needs; `repeats` : whether it can hold several at all; `days` : between them.
    """

    case: Callable[[Path, Case], Row]
    tables: Callable[[Path, Sequence[Row]], None]
    source: str
    view: View | None = None
    lesions: bool = False
    repeat: int = 1
    repeats: bool = False
    days: float = 180.0


def no_tables(root: Path, rows: Sequence[Row]) -> None:
    """For sets that are files alone."""


def write_table(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[str] | None = None,
    *,
    sep: str = ",",
    bom: bool = False,
) -> None:
    """Rows as a CSV; columns of the first row where none are given."""
    names = list(columns or (rows[0] if rows else ()))
    out = text_io.StringIO()
    writer = csv.DictWriter(out, names, delimiter=sep, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, ("\ufeff" if bom else "") + out.getvalue())


def write_image(volume: Volume, path: Path, axes: str = "SAR") -> None:
    """A NIfTI with its axes in an order: "SAR" is what nibabel calls RAS, because arrays here keep the slowest axis first.

    Label maps go out without the intent code that ours have: the published ones have none, and readers must do without.
    """
    io.write(replace(volume.reorient(axes), kind="other" if volume.kind == "label" else volume.kind), path)


def relabelled(case: Case, classes: Mapping[int, Sequence[str]]) -> Volume:
    """A label map with other numbers: class to structures, groups of them by prefix (``kidney_*``) or lesions (``lesion:KIND``).

    Lesions lie over the organs that they sit in; later classes over earlier ones.
    """
    labels, made = case.phantom.labels, case.phantom
    table = np.zeros(256, dtype=np.uint8)
    spots: list[tuple[int, list[int]]] = []
    for number, parts in classes.items():
        for part in parts:
            if part.startswith("lesion:"):
                kind = part.removeprefix("lesion:")
                spots.append((number, [i for i, x in enumerate(made.spec.subject.lesions, 1) if x.kind == kind]))
            elif part.endswith("*"):
                table[[i for name, i in IDS.items() if name.startswith(part[:-1])]] = number
            elif part in IDS:
                table[IDS[part]] = number
    voxels = table[labels.voxels]
    for number, which in spots:
        voxels[np.isin(made.lesions.voxels, which)] = number
    return replace(labels, voxels=voxels, names=None)
