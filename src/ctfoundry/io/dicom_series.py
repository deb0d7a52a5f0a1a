"""One volume out of a folder or file of DICOM slices: what `reading.read` does with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ctfoundry.errors import NotAScanError
from ctfoundry.io import dicom, parts
from ctfoundry.io.dicom_header import Header
from ctfoundry.io.parts import Part
from ctfoundry.io.places import series_of
from ctfoundry.io.stream import CAP
from ctfoundry.volume import Kind, Volume

_SHOWN = 24  # volumes listed in a message


def read_folder(
    folder: Path,
    name: str | None,
    *,
    kind: Kind | None = None,
    cap: int = CAP,
    threads: int | None = None,
    allow_gaps: bool = False,
) -> Volume:
    """The one CT volume in `folder` and below, or the one that `name` says: ``UID``, ``UID@PART`` or ``UID@K``.

    PART is a name that `discover` and errors give, K counts the parts of the series from 1. Lone slices beside a volume are
    left out: they are localizers that do not say so.

    Raises NotAScanError where there is none or more than one, with their names; and what `dicom.read_stack` raises.
    """
    from ctfoundry.io.discovery import slices_in

    headers, skipped = slices_in(folder)
    return read_slices(headers, skipped, folder, name, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)


def read_slices(
    headers: list[Header],
    skipped: Mapping[str, int],
    folder: Path,
    name: str | None,
    *,
    kind: Kind | None = None,
    cap: int = CAP,
    threads: int | None = None,
    allow_gaps: bool = False,
) -> Volume:
    """As `read_folder`, of slices whose headers are known; `skipped` counts what was passed over, `folder` names them."""
    part, notes = chosen(headers, skipped, folder, name)
    volume = dicom.read_stack(part.headers, part.where, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)
    return replace(volume, notes=volume.notes + notes) if notes else volume


def chosen(
    headers: list[Header], skipped: Mapping[str, int], folder: Path, name: str | None
) -> tuple[Part, tuple[str, ...]]:
    """(the volume that `name` says, or the only one; notes of slices that it may lack), of slices in `folder`.

    Raises NotAScanError where there is none or more than one, with their names.
    """
    series, part = series_of(name)
    volumes, lone = _volumes([h for h in headers if not series or h.series == series])
    if not volumes:
        seen = ", ".join(f"{count} x {reason}" for reason, count in sorted(skipped.items())) or "no file"
        raise NotAScanError(
            f"holds no DICOM CT series{f' {series}' if series else ''} (it holds: {seen})",
            where=folder,
            do="name a file, or a folder with the slices",
        )
    if part:
        named = [v for k, v in enumerate(volumes, 1) if part in (v.name, str(k))]
        if not named:
            raise NotAScanError(
                f"has no part {part!r} in series {series}; it has {_listed(volumes)}",
                where=folder,
                do="name one of these",
            )
        volumes = named[:1]
    if len(volumes) > 1:
        raise NotAScanError(
            f"holds {len(volumes)} stacks of slices: {_listed(volumes)}",
            where=folder,
            do="name one as FOLDER#SeriesInstanceUID or FOLDER#SeriesInstanceUID@PART, as listed",
        )
    apart = sum(h.series == volumes[0].headers[0].series for h in lone)
    notes: tuple[str, ...] = ()
    if apart:
        notes += (f"{apart} slices of the series left out: each alone in its size, spacing or orientation",)
    return volumes[0], notes + dicom.lost_beside(skipped)


def read_file(
    path: Path,
    start: bytes | None = None,
    *,
    kind: Kind | None = None,
    cap: int = CAP,
    threads: int | None = None,
    allow_gaps: bool = False,
) -> Volume:
    """The volume in one DICOM file: an enhanced image, or a slice that has no companion in its folder (depth 1).

    Raises NotAScanError for anything else, and what `dicom.read_stack` raises.
    """
    from ctfoundry.io.discovery import slices_in

    slices = dicom.slices_of(str(path), start)
    if isinstance(slices, str):
        raise NotAScanError(f"is no CT slice: {slices}", where=path)
    first = slices[0]
    if len(slices) == 1:
        others = [h for h in slices_in(path.parent, deep=False)[0] if h.series == first.series]
        if len(others) > 1:
            raise NotAScanError(
                f"is one of {len(others)} slices of its series in this folder",
                where=path,
                do=f"read {path.parent}#{first.series}",
            )
    volumes, _ = _volumes(slices)
    if len(volumes) > 1:
        raise NotAScanError(
            f"holds {len(volumes)} stacks of slices: {_listed(volumes)}", where=path, do="name one of these"
        )
    return dicom.read_stack(volumes[0].headers, str(path), kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)


def _volumes(headers: list[Header]) -> tuple[list[Part], list[Header]]:
    """(the volumes, lone slices left out); lone slices are volumes only where there is nothing else."""
    volumes, lone = parts.split(headers)
    if volumes:
        return volumes, lone
    return [Part([h], "", str(Path(h.path).parent)) for h in lone], []


def _listed(volumes: list[Part]) -> str:
    lines = [
        f"{v.where} ({len(v.headers)} slices of {v.headers[0].columns}x{v.headers[0].rows})" for v in volumes[:_SHOWN]
    ]
    return "; ".join(lines) + (f" and {len(volumes) - _SHOWN} more" if len(volumes) > _SHOWN else "")
