"""The rows of `inspect`: every series of a discovery as plain data, without names of patients unless asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.ingest.rules import public
from ctfoundry.io import Discovery, Facts, Found, Skip, discover, discovery, reading, skips, studies
from ctfoundry.io.phi import tidy
from ctfoundry.io.places import place_of
from ctfoundry.report.text import visible

_HEAD = 1 << 18
"""Bytes of a slice in an archive that are unpacked for its header."""


def plain(text: str) -> str:
    """One line of text from outside, without anything that could steer a terminal."""
    return visible(" ".join(text.split()))


def look(path: str) -> tuple[Path, Discovery]:
    """(the file or folder, what it holds) of a path, or of ``FOLDER#SeriesInstanceUID`` and the like, as `io.read` takes them.

    Raises ReadError when there is nothing there.
    """
    place, name = place_of(path)
    if not place.exists():
        raise ReadError("does not exist", where=place, do="check the path")
    try:
        whole = discover(place)
    except ReadError:
        if place.is_dir() or name is not None or not place.is_file():
            raise
        return place, _one_file(place)
    if name is None:
        return place, whole
    wanted = whole.named(name)
    if not wanted:
        raise ReadError("holds no such series or file", where=path, do="leave out what follows the #")
    return place, Discovery(place, wanted, ())


def _one_file(path: Path) -> Discovery:
    """A file alone; of a slice the series that it belongs to."""
    with open(path, "rb", buffering=0) as file:
        start = file.read(reading.START)
    form = reading.format_of(path, start)
    if form == "dicom":
        around = discover(path.parent, deep=False)
        return Discovery(
            path,
            tuple(f for f in around.found if path in f.paths),
            tuple(s for s in around.skips if s.path == path),
        )
    if form is None:
        return Discovery(path, (), (Skip(path, skips.EMPTY if not start else skips.NO_SCAN_FILE),))
    return Discovery(path, (discovery.from_file(path, form)[0],), ())


def rows(found: Discovery, *, paths: bool = False, patients: bool = False) -> list[dict[str, Any]]:
    """What `inspect --json` says of each series, in the order of the discovery; docs/inspect.md explains the keys.

    `paths` adds where it lies, `patients` the Patient ID: both may name somebody.
    """
    people: dict[str, str] = {}
    numbers: dict[str, str] = {}
    result = []
    for number, verdict in enumerate(studies.judge(found.found), 1):
        item = verdict.found
        person = people.setdefault(item.patient, f"P{len(people) + 1}") if item.patient is not None else None
        study = None
        if person is not None:
            before = sum(name.startswith(f"{person}.") for name in numbers.values())
            study = numbers.setdefault(verdict.study, f"{person}.{before + 1}")
        row = {"no": number, "patient": person, "study": study} | _row(item, verdict)
        if paths:
            row["path"] = str(item.path.parent if len(item.paths) > 1 else item.path)
            row["name"] = item.name
        if patients:
            row["patient_id"] = item.patient
        result.append(row)
    return result


def _row(item: Found, verdict: studies.Verdict) -> dict[str, Any]:
    facts, grid = item.facts or Facts(), item.grid
    known = (item.patient or "",)
    plane, off = studies.plane(item)
    return {
        "number": tidy(facts.number, known),
        "description": tidy(facts.description, known),
        "part": tidy(item.part, known),
        "format": item.format,
        "modality": item.modality,
        "kind": "label map" if item.is_label else "scan",
        "values": _values(item),
        "files": len(item.members or item.paths),
        "shape": None if grid is None else list(grid.shape),
        "spacing_mm": None if grid is None else [round(s, 4) for s in grid.spacing],
        "thickness_mm": facts.thickness_mm,
        "field_mm": None if grid is None else [round(v, 1) for v in studies.field_mm(item)],
        "coverage_mm": None if grid is None else round(studies.extent_mm(item), 1),
        "orientation": None if grid is None else grid.orientation,
        "plane": None if grid is None else plane,
        "off_plane_deg": None if grid is None else round(off, 1),
        "tilt_deg": round(facts.tilt_deg, 2),
        "kernel": tidy(facts.kernel, known),
        "sharpness": studies.sharpness(facts.kernel),
        "kvp": facts.kvp if facts.kvp and 0 < facts.kvp <= 300 else None,  # a record number is no voltage
        "contrast": tidy(facts.contrast, known),
        "phase": studies.phase(facts, item.part),
        "image_type": [tidy(v, known) for v in facts.image_type],
        "body_part": tidy(facts.body_part, known),
        "manufacturer": tidy(facts.manufacturer, known),
        "model": tidy(facts.model, known),
        "problem": None if item.problem is None else public(item.problem.what, item),
        "problem_name": None if item.problem is None else studies.problem_name(item.problem),
        "notes": list(item.notes),
        "represents": verdict.chosen,
        "why_not": verdict.reason,
    }


def _values(item: Found) -> str:
    """What the numbers are, as far as one header says: "HU", "labels", "by values" (told when they are read), "?"."""
    if item.is_label:
        return "labels"
    if item.format != "dicom":
        return "by values"
    from ctfoundry.io import dicom, dicom_header, zip_directory

    try:
        if item.members:
            member = next(m for m in zip_directory.members(item.path) if m.name == item.members[0])
            start = b"".join(zip_directory.pieces(item.path, member, limit=_HEAD))
            header = dicom_header.read_header(str(item.path), start)
        else:
            slices = dicom.slices_of(str(item.path))
            if isinstance(slices, str):
                return "?"
            header = slices[0]
    except (CTFoundryError, OSError):
        return "?"
    return "HU" if dicom.says_hu(header) else "by values"
