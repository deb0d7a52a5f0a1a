"""The verb convert: one scan or label map to another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import show, verb

if TYPE_CHECKING:
    from ctfoundry.geometry import Grid
    from ctfoundry.volume import Volume

_NAMES = "labels.json"


@verb()
def convert(
    scan: Annotated[str, typer.Argument(help="any readable scan or label map; DICOM SEG and RTSTRUCT too")],
    out: Annotated[Path, typer.Argument(help="target: .nii, .nii.gz, .nrrd, .mha, or .dcm with --as and --like")],
    like: Annotated[
        str, typer.Option(help="image that the labels belong to: its grid is taken; for .dcm its DICOM series")
    ] = "",
    kind: Annotated[
        str, typer.Option("--as", help="what a .dcm is: seg, labelmap (a SEG that keeps numbers) or rtstruct")
    ] = "",
    only: Annotated[list[str], typer.Option(help="structure of a SEG or RTSTRUCT to take; may be repeated")] = [],  # noqa: B006
    overlap: Annotated[str, typer.Option(help="where structures overlap: error, or smallest wins")] = "error",
    threshold: Annotated[float | None, typer.Option(help="share from which a FRACTIONAL segment holds a voxel")] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="resample a series with missing or uneven slices; a note says where")
    ] = False,
) -> None:
    """One scan to another format; geometry, HU and labels are kept. Names of labels go to labels.json beside it."""
    from ctfoundry import files, io
    from ctfoundry.errors import UsageError

    to_dicom = out.suffix.lower() == ".dcm"
    if kind not in ("", "seg", "labelmap", "rtstruct") or to_dicom != bool(kind):
        raise UsageError("--as is seg, labelmap or rtstruct, for a target .dcm and for no other")
    if to_dicom and not like:
        raise UsageError("a .dcm needs --like with the DICOM series that the labels belong to")
    if overlap not in ("error", "smallest"):
        raise UsageError(f"--overlap is error or smallest, not {overlap!r}")
    options: dict[str, Any] = {"overlap": overlap, "names": [int(n) if n.isdigit() else n for n in only] or None}
    volume = _read(scan, like, options, threshold, to_dicom=to_dicom, allow_gaps=allow_gaps)
    names: dict[int, str] = {}
    if to_dicom:
        if kind == "rtstruct":
            names = io.write_rtstruct(volume, out, like)
        else:
            numbers = io.write_seg(volume, out, like, kind="LABELMAP" if kind == "labelmap" else "BINARY")
            names = {number: (volume.names or {}).get(label, f"label {label}") for label, number in numbers.items()}
    else:
        table = None
        if volume.kind == "label" and volume.names:
            names = dict(volume.names)
            table = _table(out.parent / _NAMES, names)
        io.write(volume, out)
        if table is not None:
            files.write_json(out.parent / _NAMES, table)
    result = {"volume": repr(volume), "out": str(out), "notes": list(volume.notes), "labels": names}

    def table_of() -> None:
        print(f"{volume!r} -> {out}")
        for note in volume.notes:
            print(note)
        for number, name in names.items():
            print(f"{number} {name}")

    show(result, table_of)


def _read(
    scan: str, like: str, options: dict[str, Any], threshold: float | None, *, to_dicom: bool, allow_gaps: bool
) -> Volume:
    from ctfoundry import io
    from ctfoundry.errors import UsageError
    from ctfoundry.io import drawn, objects

    path = Path(scan)
    if not (path.is_file() and drawn.is_drawn(path)):
        if options["names"] or threshold is not None or options["overlap"] != "error":
            raise UsageError("--only, --overlap and --threshold are for a DICOM SEG or RTSTRUCT", where=scan)
        if like and not to_dicom:
            raise UsageError("--like is for a DICOM SEG or RTSTRUCT, or for a target .dcm", where=scan)
        return io.read(scan, allow_gaps=allow_gaps)
    grid = _grid(like) if like else None
    if objects.load(path).sop_class != objects.RTSTRUCT_CLASS:
        return io.read_seg(path, onto=grid, threshold=threshold, **options)
    if grid is None:
        raise UsageError(
            "is a structure set, whose outlines become labels on the grid of an image",
            where=path,
            do="give the image with --like",
        )
    return io.read_rtstruct(path, grid, **options)


def _grid(like: str) -> Grid:
    """The grid of an image; of a DICOM series from its headers alone."""
    from ctfoundry import io
    from ctfoundry.io.places import place_of
    from ctfoundry.io.references import source_of

    return source_of(like).grid if place_of(like)[0].is_dir() else io.read(like).grid


def _table(path: Path, names: dict[int, str]) -> dict[str, str]:
    """Names as they stand in labels.json. Raises UsageError where one with other names is there already."""
    import json

    from ctfoundry.errors import UsageError

    table = {str(number): name for number, name in sorted(names.items())}
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if there != table:
            raise UsageError("names other labels already", where=path, do="write into another folder")
    return table
