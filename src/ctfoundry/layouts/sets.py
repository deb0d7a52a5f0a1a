"""Cohorts written as public data sets are laid out: the list of layouts, and the one way to write them.

>>> sorted(LAYOUTS)[:4]
['amos', 'cq500', 'ct-rate', 'kits23']
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.layouts import heads, luna16, medmnist, segmentation, tcia, texts
from ctfoundry.layouts.cases import Cohort, cases
from ctfoundry.layouts.layout import Layout, Row
from ctfoundry.layouts.plain import in_processes
from ctfoundry.settings import nearest, to_data

LAYOUTS: dict[str, Layout] = {
    **segmentation.LAYOUTS,
    **luna16.LAYOUTS,
    **texts.LAYOUTS,
    **heads.LAYOUTS,
    **tcia.LAYOUTS,
    **medmnist.LAYOUTS,
}
"""Name to layout."""

DONE = ".ctfoundry"
"""Folder with one file a patient: which scans are written, and their rows of the tables."""


def layout_named(name: str) -> Layout:
    """A layout; raises UsageError that names the nearest one."""
    if name not in LAYOUTS:
        raise UsageError(f"no layout is called {name!r}; {nearest(name, LAYOUTS)}", where="--layout")
    return LAYOUTS[name]


def suited(cohort: Cohort, name: str) -> Cohort:
    """The cohort as the set would have it: its part of the body where none is asked for, lesions, scans of each patient."""
    layout = layout_named(name)
    if cohort.repeat > 1 and not layout.repeats:
        raise UsageError(f"{name} has one scan of each patient", where="--repeat", do="leave --repeat out")
    return replace(
        cohort,
        view=cohort.view or layout.view,
        lesions=cohort.lesions or layout.lesions,
        repeat=max(cohort.repeat, layout.repeat),
        days=layout.days,
    )


def write_set(root: Path, cohort: Cohort, name: str, *, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Write a cohort in a layout, with one process for each core; finished patients are kept. Returns the tables' rows."""
    cohort = suited(cohort, name)
    jobs = [(root, cohort, name, patient) for patient in range(cohort.count)]
    rows = [row for each in in_processes(write_patient, jobs, say=say) for row in each]
    LAYOUTS[name].tables(root, rows)
    return rows


def write_patient(root: Path, cohort: Cohort, name: str, patient: int) -> list[Row]:
    """Write one patient's scans unless they are there already; what says so is written last."""
    done = root / DONE / f"{name}-{patient:05d}.json"
    wanted = files.digest([cohort.split(patient), *(to_data(spec) for spec in cohort.specs(patient))])
    if done.is_file():
        try:
            found = json.loads(done.read_text())
            if found["wanted"] == wanted:
                return list(found["rows"])
        except (ValueError, KeyError, TypeError):
            pass  # damaged: written again
    rows = [LAYOUTS[name].case(root, case) for case in cases(cohort, patient)]
    done.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(done, {"wanted": wanted, "rows": rows})
    return rows
