"""Phantoms as plain folders, one a scan: CT, labels, lesions, report, findings, spec."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from ctfoundry import files, io
from ctfoundry.layouts.cases import Case, Cohort, cases
from ctfoundry.settings import to_data

T = TypeVar("T")

FILES = ("ct.nii.gz", "labels.nii.gz", "labels.json", "report.txt", "findings.json")
"""Files of every phantom beside ``spec.json``; those with lesions have ``lesions.nii.gz`` and ``lesions.json`` too."""


def write_phantom(folder: Path, case: Case, *, dicom: bool = False) -> None:
    """Write one scan into `folder`, ``spec.json`` last: where it stands, all the others are whole.

    ``lesions.nii.gz`` holds i + 1 where lesion i of the spec is; ``lesions.json`` names these numbers. With `dicom` the CT
    also stands in ``dicom/`` as a series.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("spec.json", "lesions.nii.gz", "lesions.json"):  # of another phantom that was here
        (folder / name).unlink(missing_ok=True)
    made = case.phantom
    io.write(made.ct, folder / "ct.nii.gz")
    io.write(made.labels, folder / "labels.nii.gz")
    files.write_json(folder / "labels.json", {str(k): v for k, v in (made.labels.names or {}).items()})
    if made.spec.subject.lesions:
        io.write(made.lesions, folder / "lesions.nii.gz")
        named = {str(i): f"{lesion.kind} {i}" for i, lesion in enumerate(made.spec.subject.lesions, 1)}
        files.write_json(folder / "lesions.json", named)
    if dicom:
        from ctfoundry.layouts.series import write_ct

        write_ct(folder / "dicom", case)
    files.write_text(folder / "report.txt", case.report.text)
    files.write_json(folder / "findings.json", case.data())
    files.write_json(folder / "spec.json", to_data(made.spec))


def is_whole(folder: Path, spec: Any, *, dicom: bool = False) -> bool:
    """Whether `folder` holds all of the phantom of `spec` (plain data)."""
    done = folder / "spec.json"
    names = [*FILES, *(["lesions.nii.gz", "lesions.json"] if spec["subject"]["lesions"] else [])]
    if (
        not done.is_file()
        or not all((folder / name).is_file() for name in names)
        or (dicom and not (folder / "dicom").is_dir())
    ):
        return False
    try:
        return files.digest(json.loads(done.read_text())) == files.digest(spec)
    except ValueError:
        return False


def make_patient(root: Path, cohort: Cohort, patient: int, dicom: bool = False) -> list[str]:
    """Write all scans of one patient; finished ones are kept. Returns their names."""
    specs = [to_data(spec) for spec in cohort.specs(patient)]
    names = [cohort.name(patient, scan) for scan in range(len(specs))]
    if not all(is_whole(root / name, spec, dicom=dicom) for name, spec in zip(names, specs, strict=True)):
        for case in cases(cohort, patient):
            write_phantom(root / case.name, case, dicom=dicom)
    return names


def make_many(
    root: Path, cohort: Cohort, *, dicom: bool = False, say: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Write a cohort with one process for each core, and ``patients.csv`` where patients have several scans."""
    root.mkdir(parents=True, exist_ok=True)
    done = in_processes(make_patient, [(root, cohort, patient, dicom) for patient in range(cohort.count)], say=say)
    if cohort.repeat > 1:
        rows = [f"{name},{names[0]}" for names in done for name in names]
        files.write_text(root / "patients.csv", "\n".join(["path,patient", *rows]) + "\n")
    return [name for names in done for name in names]


def in_processes(
    work: Callable[..., T], jobs: Iterable[tuple[Any, ...]], *, say: Callable[[str], None] = lambda _: None
) -> list[T]:
    """Results of `work` on each job, in order, with one process for each core that this process may use."""
    jobs = list(jobs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    results: list[T] = []

    def keep(found: Iterable[T]) -> list[T]:
        for result in found:
            results.append(result)
            say(f"phantom {len(results)} of {len(jobs)}")
        return results

    if min(len(jobs), cores) < 2:
        return keep(work(*job) for job in jobs)
    with ProcessPoolExecutor(min(len(jobs), cores), mp_context=get_context("spawn")) as pool:
        return keep(pool.map(work, *zip(*jobs, strict=True)))
