"""The scans of a cohort: which patients, which scans of each, and what is known of every one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ctfoundry import files, phantom
from ctfoundry.keys import Key
from ctfoundry.phantom.facts import Facts, facts, negatives
from ctfoundry.phantom.findings import Finding, findings
from ctfoundry.phantom.make import Phantom
from ctfoundry.phantom.repeat import CHANGES, again
from ctfoundry.phantom.reports import Report, report
from ctfoundry.phantom.spec import LesionKind, Spec, View
from ctfoundry.settings import to_data

Split = Literal["train", "val", "test"]

SCHEMA = "ctfoundry-findings/1"
"""Version of ``findings.json``."""


@dataclass(frozen=True)
class Cohort:
    """Which phantoms to make: patient n of a cohort is the same patient in a larger one.

    Attributes
    ----------
    count : patients; seed : names the cohort.
    view : part of the body, "any", or None for the five views of the torso.
    voxel_mm : pixel, slice distance and thickness; None: drawn.
    lesions : whether patients have lesions, devices and wear.
    repeat : scans of each patient; `days` : from each to the next, while lesions grow.
    """

    count: int
    seed: int = 0
    view: View | None = None
    voxel_mm: float | None = None
    lesions: bool = False
    repeat: int = 1
    days: float = 180.0

    def specs(self, patient: int) -> tuple[Spec, ...]:
        """The scans of a patient, the first one first."""
        key = Key.of("phantom", self.seed, patient)
        first = phantom.draw(key, view=self.view, voxel_mm=self.voxel_mm, lesions=self.lesions)
        scans = [first]
        for scan in range(1, self.repeat):
            # the same part of the body, so that what is called new was not there before
            kept = {"range", "field", *(("thickness",) if self.voxel_mm is not None else ())}
            changes = [name for name in CHANGES if name not in kept]
            days = (
                {n: _doubling(key("growth", n, scan)) for n in range(len(first.subject.lesions))} if self.days else {}
            )
            scans.append(again(scans[-1], key("again", scan), changes=changes, days=self.days, doubling_days=days))
        return tuple(scans)

    def name(self, patient: int, scan: int = 0) -> str:
        """``phantom-SEED-NNN``, with a letter for every scan but the first."""
        return f"phantom-{self.seed}-{patient:03d}" + (f"-{chr(ord('a') + scan)}" if scan else "")

    def split(self, patient: int) -> Split:
        """A tenth of the patients (at least one) for validation, a fifth (at least one) for tests; below three, all train."""
        if self.count < 3:
            return "train"
        test, val = max(round(self.count / 5), 1), max(round(self.count / 10), 1)
        left = self.count - patient
        return "test" if left <= test else "val" if left <= test + val else "train"


def _doubling(key: Key) -> float:
    """Days in which a lesion's volume doubles: a third grows within a year, a third hardly, a third shrinks."""
    fate, speed = (float(v) for v in key.uniform(shape=2))
    return (150 + 300 * speed) if fate < 1 / 3 else 1e6 if fate < 2 / 3 else -(200 + 400 * speed)


@dataclass(frozen=True, eq=False)
class Case:
    """One scan with all that is known of it.

    Attributes
    ----------
    name : of the scan; `patient`, `scan` : numbers from 0.
    split : of the patient.
    phantom, findings, facts, report : the scan, what it shows, and what is written about it.
    """

    name: str
    patient: int
    scan: int
    split: Split
    phantom: Phantom
    findings: tuple[Finding, ...]
    facts: Facts
    report: Report

    @property
    def sex(self) -> str:
        """ "F" or "M"."""
        return self.phantom.spec.subject.sex[0].upper()

    @property
    def age(self) -> int:
        """Whole years."""
        return round(self.phantom.spec.subject.age_years)

    def kinds(self) -> frozenset[LesionKind]:
        """Kinds of lesions that the scan shows."""
        return frozenset(finding.kind for finding in self.findings)

    @property
    def absent(self) -> tuple[LesionKind, ...]:
        """Kinds of lesions that the scan shows not to be there."""
        return negatives(self.facts, self.findings)

    def data(self) -> dict[str, Any]:
        """``findings.json`` (docs/phantoms.md): plain values."""
        return {
            "schema": SCHEMA,
            "id": self.name,
            "spec": files.digest(to_data(self.phantom.spec)),
            "view": list(self.facts.parts),
            "phase": self.facts.phase,
            "findings": [to_data(finding) for finding in self.findings],
            "negatives": list(self.absent),
            "devices": [to_data(device) for device in self.facts.devices],
            "liver_hu": self.facts.liver_hu,
            "spleen_hu": self.facts.spleen_hu,
            "steatosis": self.facts.steatosis,
            "report": {
                "technique": self.report.technique,
                "comparison": self.report.comparison,
                "findings": {region: list(texts) for region, texts in self.report.findings.items()},
                "impression": list(self.report.impression),
            },
        }


def case_of(
    spec: Spec,
    name: str,
    *,
    patient: int = 0,
    scan: int = 0,
    split: Split = "train",
    prior: tuple[Finding, ...] | None = None,
) -> Case:
    """Make a scan, look at it and write about it; `prior`: findings of the scan before."""
    made = phantom.make(spec)
    found = findings(made)
    known = facts(made, found)
    key = Key.of("report", spec.subject.seed, spec.acquisition.seed)
    return Case(name, patient, scan, split, made, found, known, report(known, found, key, prior=prior))


def cases(cohort: Cohort, patient: int) -> Iterator[Case]:
    """A patient's scans one after the other; each report looks back at the scan before."""
    prior = None
    for scan, spec in enumerate(cohort.specs(patient)):
        case = case_of(
            spec, cohort.name(patient, scan), patient=patient, scan=scan, split=cohort.split(patient), prior=prior
        )
        prior = case.findings
        yield case
