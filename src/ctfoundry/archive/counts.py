"""A cohort's counts beside the table that the paper gives for its corpus."""

from __future__ import annotations

from dataclasses import dataclass

from ctfoundry.archive.cohort import Cohort
from ctfoundry.archive.query import table

PAPER = "ct-fm-collections.csv"
"""Scans per collection of CT-FM's corpus, as its public notebook prints them; they sum to 148,394."""


@dataclass(frozen=True)
class Row:
    """One collection: series in the cohort, scans in the paper's table (None: not in it)."""

    collection: str
    cohort: int
    paper: int | None

    @property
    def verdict(self) -> str:
        """ "equal", "within 5 %", "more", "fewer", "missing" or "not in the paper"."""
        if self.paper is None:
            return "not in the paper"
        if self.cohort == self.paper:
            return "equal"
        if self.cohort == 0:
            return "missing"
        if abs(self.cohort - self.paper) <= 0.05 * self.paper:
            return "within 5 %"
        return "more" if self.cohort > self.paper else "fewer"


def paper_counts() -> dict[str, int]:
    """Scans per collection of the paper's corpus."""
    return {row["collection"]: int(row["scans"]) for row in table(PAPER)}


def compare(cohort: Cohort) -> list[Row]:
    """One row a collection of either side, largest in the paper first."""
    here, paper = cohort.counts(), paper_counts()
    names = sorted({*here, *paper}, key=lambda n: (-paper.get(n, 0), -here.get(n, 0), n))
    return [Row(name, here.get(name, 0), paper.get(name)) for name in names]
