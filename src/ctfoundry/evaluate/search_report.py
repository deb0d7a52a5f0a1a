"""``search.json`` and the page of `evaluate search`: tables, reliability, pictures of hits and misses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctfoundry import files
from ctfoundry.evaluate.search import Result
from ctfoundry.evaluate.search_cases import Known
from ctfoundry.evaluate.search_summary import Answer
from ctfoundry.evaluate.search_walk import BEST_CELL
from ctfoundry.report.page import Callout, Card, Cards, Heading, Page, Prose, Section, Table, write
from ctfoundry.report.planes import Mark, three_planes


def tables(result: Result) -> list[Table]:
    """Methods, structures, and where there is a calibration its reliability."""
    s = result.summary
    rows = [
        [
            method,
            s.errors[method].text(1),
            s.right[method].text(2),
            s.inside[method].text(3) if method in s.inside else None,
            s.gains[method].text(1) if method in s.gains else None,
            s.agreement[method].text(2) if method in s.agreement else None,
            f"{s.seconds[method]:.1f}" if method in s.seconds else None,
            s.errors[method].values,
        ]
        for method in s.errors
    ]
    right = f"{result.right_mm:g} mm"
    first = next(iter(s.errors))
    made = [
        Table(
            [
                "method",
                "median error, mm",
                f"within {right}",
                "inside",
                f"{first} minus this, mean mm",
                f"answers within {right} of its",
                "s a scan",
                "searches",
            ],
            rows,
            "lrrrrrrr",
            "Searches between patients, all pairs and structures; 95 % two-way over patients; seconds to look at one scan"
            + (f": median of {max(s.looked.values())}" if s.looked else ""),
            marked=(0,),
        )
    ]
    methods = list(s.errors)
    made.append(
        Table(
            ["structure", "searches", *methods],
            [
                [name, int(row["searches"]), *(None if m not in row else f"{row[m]:.0f}" for m in methods)]
                for name, row in sorted(s.structures.items(), key=lambda item: item[1].get(first, 0.0))
            ],
            "l" + "r" * (len(methods) + 1),
            "Median error by structure, mm",
        )
    )
    if result.reliability:
        made += _reliability(result.reliability, right)
    return made


def _reliability(found: dict[str, Any], right: str) -> list[Table]:
    bins = [[f"{b['said']:.2f}", _text(b["true"]), b["true"]["values"]] for b in found["bins"]]
    rest = [
        ["sensitivity: present and not called absent", _text(found["sensitivity"])],
        ["specificity: absent and called absent", _text(found["specificity"])],
        ["area under the curve, present or absent", _number(found["auroc_present"])],
        ["area under the curve, right or wrong", _number(found["auroc_right"])],
        ["the same by similarity alone", _number(found["auroc_similarity_alone"])],
        ["Brier score", _number(found["brier"])],
        ["Brier score of always saying the base rate", _number(found["brier_of_the_base_rate"])],
        ["expected calibration error", _number(found["expected_error"])],
    ]
    return [
        Table(["confidence said", f"answers within {right}", "searches"], bins, "rrr", "Reliability, by fifths"),
        Table(["measure", "value"], rest, "lr", "Confidence and presence"),
    ]


def _text(value: dict[str, Any] | None) -> str | None:
    if value is None:
        return None
    low, high = value["low"], value["high"]
    return f"{value['value']:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


def report(result: Result, out: Path) -> list[str]:
    """Write ``search.json`` and ``report.html`` into `out`; returns their names."""
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "search.json", result.data())
    first = next(iter(result.summary.errors))
    sections: list[Section] = [
        Prose(
            f"{result.summary.errors[first].values} searches for structures that both scans hold whole, {result.summary.absent} for "
            f"structures that the target does not hold. `{BEST_CELL}` is what the grid of cells allows at all."
        ),
        *(Callout(note) for note in (*result.notes, *_left_out(result))),
        Heading("Numbers"),
        *tables(result),
        Heading("Hits and misses"),
        Prose(
            "Chosen by rank of the error and not by looks: those a tenth, three, five, seven and nine tenths down the list. A green ring is the "
            "true place, an orange one the answer; planes pass through the answer."
        ),
    ]
    known = {scan.id: scan for scan in result.scans}
    ranked = sorted(
        (a for a in result.answers if a.method == first and a.error is not None), key=lambda a: a.error or 0.0
    )
    shown = [ranked[round(share * (len(ranked) - 1))] for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    sections.append(Cards([card for answer in shown for card in _cards(answer, known, result.right_mm)], width=420))
    write(out / "report.html", Page("Search: the same place in another patient", sections, subtitle=first))
    return ["search.json", "report.html"]


def _left_out(result: Result) -> list[str]:
    count = len(result.failed)
    return (
        [f"{count} of {count + len(result.scans)} scans could not be used: {', '.join(sorted(result.failed))}."]
        if count
        else []
    )


def _cards(answer: Answer, scans: dict[str, Known], right_mm: float) -> list[Card]:
    query, target = scans[answer.query], scans[answer.target]
    asked, truth = query.landmarks[answer.structure], target.landmarks[answer.structure]
    good = answer.error is not None and answer.error <= right_mm
    facts = {"error": f"{answer.error:.0f} mm", "patient": target.patient}
    if answer.evidence is not None:
        facts["similarity"] = f"{answer.evidence.similarity:.2f}"
    left = three_planes(query.scan.image(), point=asked, height=180, marks=[Mark(asked, "#4cc3ff")])
    right = three_planes(
        target.scan.image(),
        point=answer.point,
        height=180,
        marks=[Mark(truth, "#3fbf5f"), Mark(answer.point, "#ff9a3c")],
    )
    name = answer.structure.replace("_", " ")
    return [
        Card(left, f"{name} in the query", name, {"patient": query.patient}, "query"),
        Card(right, f"answer for {name}", name, facts, "hit" if good else "miss", "good" if good else "poor"),
    ]
