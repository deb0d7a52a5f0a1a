"""The second stage of a cohort: rules on Slice Thickness, Image Type and positions, asked of downloaded headers.

The bundled index has none of the three. The rules are those of the paper's query, per series (reference, 1.1): every
thickness within the limits, as many different positions as instances, no instance that is a localizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ctfoundry.archive.cohort import Cohort
from ctfoundry.archive.rules import Rules
from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.io import dicom_file, dicom_header


@dataclass
class Seen:
    """What the headers of one series say, instance by instance."""

    instances: int = 0
    thickness: list[float | None] = field(default_factory=list)
    positions: set[tuple[float, ...]] = field(default_factory=set)
    localizer: bool = False
    damaged: int = 0


def read_series(folder: Path) -> dict[str, Seen]:
    """All DICOM series under a folder, by UID, from headers alone; files that are no DICOM are passed over."""
    found: dict[str, Seen] = {}
    for path in _files(folder):
        try:
            with open(path, "rb", buffering=0) as file:
                start = file.read(dicom_file.FIRST_READ)
            if not dicom_file.is_dicom(start):
                continue
            header = dicom_header.read_header(path, start)
        except (OSError, ReadError):
            found.setdefault("", Seen()).damaged += 1
            continue
        seen = found.setdefault(header.series, Seen())
        seen.instances += 1
        seen.thickness.append(header.thickness)
        seen.positions.add(header.position)
        seen.localizer |= "LOCALIZER" in header.image_type.upper()
    return found


def why_not(seen: Seen, rules: Rules) -> str | None:
    """The first rule that a series breaks, in words; None when it keeps all that ask for headers."""
    if rules.thickness_mm is not None:
        low, high = rules.thickness_mm
        known = [t for t in seen.thickness if t is not None]
        if not known:
            return "no Slice Thickness"
        if min(known) < low or max(known) > high:
            return f"Slice Thickness {min(known):g} to {max(known):g} mm, not within {low:g} to {high:g}"
    if rules.unique_positions and len(seen.positions) != seen.instances:
        return f"{seen.instances} instances at {len(seen.positions)} positions"
    if rules.no_localizer and seen.localizer:
        return "holds a localizer"
    return None


def check_headers(
    cohort: Cohort, folder: Path, out: Path, *, say: Callable[[str], None] = lambda _: None
) -> tuple[Cohort, Mapping[str, str]]:
    """(the cohort of the series that keep all rules, written to `out`; the others with their reasons, by series UID).

    A series that is not under `folder`, or not whole there, is among the others.
    """
    say("reading headers")
    seen = read_series(folder)
    kept, left = [], {}
    for row in cohort.rows():
        uid = row["series_uid"]
        if uid not in seen:
            left[uid] = "not downloaded"
            continue
        one = seen[uid]
        if row["instances_from"] == "index" and one.instances != row["instances"]:
            left[uid] = f"{one.instances} of {row['instances']} instances are there"
            continue
        reason = why_not(one, cohort.rules)
        if reason is None:
            kept.append(uid)
        else:
            left[uid] = reason
    if not kept:
        raise CTFoundryError(
            "no series of the cohort keeps all rules", where=folder, do="is this the folder it was downloaded to?"
        )
    return cohort.only(kept, out, checked=cohort.unchecked), left


def _files(folder: Path) -> Iterator[str]:
    for parent, below, names in os.walk(folder):
        below.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            if os.path.isfile(path):
                yield path
