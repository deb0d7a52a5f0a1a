"""``ctfoundry phantom``: synthetic labelled CTs with reports, as plain folders or laid out as a public data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Seed, say, show, verb


@verb()
def phantom(
    out: Annotated[Path, typer.Argument(help="folder")],
    count: Annotated[int, typer.Option(help="how many patients", min=1)] = 4,
    view: Annotated[str, typer.Option(help="part of the body, or any; default: the torso's five views")] = "",
    voxel: Annotated[float | None, typer.Option(help="pixel and slice distance in mm; default: drawn", min=0.4)] = None,
    lesions: Annotated[bool, typer.Option("--lesions", help="patients with lesions and devices")] = False,
    repeat: Annotated[int, typer.Option(help="scans of each patient, half a year apart", min=1, max=26)] = 1,
    layout: Annotated[str, typer.Option(help="a public data set's folders (docs/phantoms.md lists them)")] = "",
    dicom: Annotated[bool, typer.Option("--dicom", help="the CT as a DICOM series too")] = False,
    sheet: Annotated[bool, typer.Option("--sheet", help="sheet.html and sheet.png of the first twelve")] = False,
    seed: Seed = 0,
) -> None:
    """Labelled synthetic CTs: NAME/ct.nii.gz, labels.nii.gz, lesions.nii.gz, report.txt, findings.json, spec.json."""
    from ctfoundry.errors import UsageError
    from ctfoundry.layouts import plain, sets
    from ctfoundry.layouts.cases import Cohort
    from ctfoundry.record import Record

    cohort = Cohort(count, seed, _view(view), voxel, lesions, repeat)
    if layout:
        cohort = sets.suited(cohort, layout)
        if dicom:
            raise UsageError("a layout has its own file format", where="--dicom", do="leave --dicom or --layout out")
    options = {"view": view, "voxel": voxel, "lesions": lesions, "repeat": repeat, "layout": layout, "dicom": dicom}
    words = [f"--{name} {value}" if value is not True else f"--{name}" for name, value in options.items() if value]
    record = Record(["phantom", f"--count {count}", *words], {"seed": seed})
    out.mkdir(parents=True, exist_ok=True)
    if layout:
        rows = sets.write_set(out, cohort, layout, say=say)
        names = [cohort.name(patient, scan) for patient in range(count) for scan in range(cohort.repeat)]
        record.results = {"layout": layout, "scans": len(rows)}
    else:
        names = plain.make_many(out, cohort, dicom=dicom, say=say)
        record.results = {"phantoms": names}
    pages = []
    if sheet:
        from ctfoundry.layouts.sheet import write_sheet

        pages = write_sheet(out, cohort, say=lambda text: say(f"sheet: {text}"))
    record.write(out)
    data = {"phantoms": names, "layout": layout or None, "sheet": [str(out / name) for name in pages]}
    show(data, lambda: print("\n".join([*names, *(str(out / name) for name in pages)])))


def _view(name: str):  # type: ignore[no-untyped-def]
    """A view that exists, or None where none is asked for."""
    from typing import get_args

    from ctfoundry.errors import UsageError
    from ctfoundry.phantom import spec
    from ctfoundry.settings import nearest

    def names(kind: object) -> list[str]:
        return [name for part in get_args(kind) for name in ([part] if isinstance(part, str) else names(part))]

    known = names(spec.View)
    if name and name not in known:
        raise UsageError(f"no view is called {name!r}; {nearest(name, known)}", where="--view")
    return name or None
