"""Segmentations and structure sets among other files: which image they were drawn on, and their labels on its grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ctfoundry.errors import CTFoundryError, GeometryError, NotAScanError, ReadError
from ctfoundry.io import objects
from ctfoundry.io.dicom_file import elements
from ctfoundry.io.dicom_header import decoded, read_header
from ctfoundry.io.dicom_seg import read_seg, seg_header
from ctfoundry.io.rtstruct import read_rtstruct
from ctfoundry.io.stream import CAP
from ctfoundry.volume import Kind, Volume

if TYPE_CHECKING:
    from ctfoundry.io.discovery import Found

MODALITIES = ("SEG", "RTSTRUCT")
"""Modality of what this module reads, in `Found`."""
REASONS = ("segmentation (SEG)", "structure set (RTSTRUCT)")
"""What `dicom.why_not` calls such files."""


def is_drawn(path: Path, start: bytes | None = None) -> bool:
    """Whether a DICOM file is a segmentation or structure set, by its SOP class; `start` are its first bytes where known."""
    try:
        return read_header(str(path), start).sop_class in (*objects.SEG_CLASSES, objects.RTSTRUCT_CLASS)
    except ReadError:
        return False


def read_file(path: Path, *, kind: Kind | None = None, cap: int = CAP) -> Volume:
    """The labels of a segmentation, on the grid that its frames imply.

    Raises NotAScanError for a structure set, which has no grid of its own, and for ``kind="hu"``; else as `read_seg`.
    """
    _check_kind(kind, path)
    if objects.load(path, cap=cap).sop_class == objects.RTSTRUCT_CLASS:
        raise NotAScanError(
            "is a structure set: outlines, which become labels only on the grid of an image",
            where=path,
            do="discover() the folder that holds its image too, or read_rtstruct(path, onto=image.grid)",
        )
    return read_seg(path, cap=cap)


def read_found(found: Found, *, kind: Kind | None = None, cap: int = CAP) -> Volume:
    """The labels of what `discover` found, on `found.grid`. Raises as `read_seg` and `read_rtstruct`."""
    _check_kind(kind, found.path)
    if found.problem is not None:
        raise found.problem
    assert found.grid is not None
    if found.modality == "SEG":
        return read_seg(found.path, onto=found.grid, cap=cap)
    return read_rtstruct(found.path, found.grid, cap=cap)


def discovered(paths: Iterable[Path], images: Sequence[Found]) -> tuple[list[Found], list[Path]]:
    """(segmentations and structure sets beside the images of the same tree, files that give no labels there), by headers.

    Their grid is that of the image whose Series Instance UID they refer to; where they refer to none that is there, of the only
    one with their Frame of Reference UID. A segmentation without its image has the grid that its frames imply; a structure
    set without its image gives no labels.
    """
    volumes = [f for f in images if f.format == "dicom" and f.modality == "CT" and not f.members]
    frames: dict[Path, str] = {}
    found, left = [], []
    for path in paths:
        item = _discovered(path, volumes, frames)
        if item is None:
            left.append(path)
        else:
            found.append(item)
    return found, left


def _discovered(path: Path, volumes: Sequence[Found], frames: dict[Path, str]) -> Found | None:
    from ctfoundry.io.discovery import Found

    drawn = Found((path,), "dicom", "SEG", is_label=True)
    try:
        parsed = objects.load(path)
        with objects.parsing(path):
            if not any(name in parsed.data for name in ("SegmentationType", "StructureSetROISequence")):
                return None
            series, study, patient = (str(parsed.data.get(name, "") or "") for name in _KNOWN)
            references = objects.references(parsed.data)
        drawn = replace(drawn, series=series or None, study=study or None, patient=patient or None)
        if parsed.sop_class == objects.RTSTRUCT_CLASS:
            drawn = replace(drawn, modality="RTSTRUCT")
        else:
            drawn = replace(drawn, grid=seg_header(path).grid)
        image = _image_of(references, volumes, frames, path)
        if image is not None and image.grid is not None:
            return replace(drawn, grid=image.grid, image=image.series or "")
        return drawn if drawn.grid is not None else None
    except CTFoundryError as error:
        # Without its traceback, which would keep the file open.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return replace(drawn, grid=None, problem=error)


_FRAME_OF_REFERENCE = 0x00200052
_KNOWN = ("SeriesInstanceUID", "StudyInstanceUID", "PatientID")


def _image_of(
    references: objects.References, volumes: Sequence[Found], frames: dict[Path, str], path: Path
) -> Found | None:
    """The image that is referred to; `frames` remembers the frame of reference of each volume's first file."""
    hits = [v for v in volumes if v.series in references.series]
    if not hits and references.frame_of_reference:
        for volume in volumes:
            if volume.path not in frames:
                frames[volume.path] = _frame_of_reference(volume.path)
        hits = [v for v in volumes if frames[v.path] == references.frame_of_reference]
        if len(hits) > 1:  # which of them it was drawn on, nothing says
            return None
    if len(hits) > 1:
        raise GeometryError(
            f"refers to a series that holds {len(hits)} volumes, and does not say which",
            where=path,
            do="read it onto the grid of one: read_seg or read_rtstruct with onto=",
        )
    return hits[0] if hits else None


def _frame_of_reference(path: Path) -> str:
    try:
        return decoded(elements(str(path), None, frozenset((_FRAME_OF_REFERENCE,)))[0].get(_FRAME_OF_REFERENCE))
    except (ReadError, OSError):  # the image's own reader names it
        return ""


def _check_kind(kind: Kind | None, path: Path) -> None:
    if kind not in (None, "label"):
        raise NotAScanError("holds structures, not a scan", where=path, do=f"read it without kind={kind!r}")
