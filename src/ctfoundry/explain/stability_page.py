"""The stability of an embedding as a page, a chart and a picture of its outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import stats
from ctfoundry.explain.stability import Row
from ctfoundry.report import charts, page

if TYPE_CHECKING:
    from jaxtyping import UInt8

    Picture = UInt8[np.ndarray, "rows columns 3"]

HEADERS = (
    "what differs",
    "described by",
    "cosine",
    "squared error, share of elsewhere",
    "AUROC, same patient",
    "AUROC, others",
    "AUROC (same patient), first minus this",
)


def table(rows: Sequence[Row], kind: str) -> list[list[str | None]]:
    """Lines of one kind, with intervals."""
    return [
        [
            r.factor,
            r.name,
            r.cosine.text(3),
            r.mse_share.text(3),
            r.auroc.text(3),
            None if r.auroc_other is None else r.auroc_other.text(3),
            None if r.gain is None else r.gain.text(3),
        ]
        for r in rows
        if r.kind == kind
    ]


def outliers(pairs: Mapping[str, Mapping[str, Any]], main: str, count: int = 6) -> list[tuple[str, float, list[float]]]:
    """The pairs whose worst window agrees least: (name, cosine, place), lowest first; at most `count`."""
    found = []
    for name, pair in pairs.items():
        windows = pair["found"][main]["windows"]
        n = int(np.argmin(windows["cosine"]))
        found.append((name, float(windows["cosine"][n]), list(windows["places"][n])))
    return sorted(found, key=lambda item: item[1])[:count]


def registration(pairs: Mapping[str, Mapping[str, Any]], *, seed: int = 0) -> dict[str, stats.Interval]:
    """Measures of the registrations, by patient."""
    out = {}
    for pick in ("correlation", "overlap", "inconsistency_mm", "true_error_mm"):
        values: dict[str, list[float]] = {}
        for pair in pairs.values():
            if pick in pair["registration"]:
                values.setdefault(pair["patient"], []).append(pair["registration"][pick])
        if values:
            out[pick] = stats.mean(values, seed=seed)
    return out


def chart(rows: Sequence[Row], kind: str, main: str) -> charts.Svg:
    """AUROC of each factor for each descriptor."""
    lines = [(f"{r.factor}, {r.name}", r.auroc.value, r.auroc.low, r.auroc.high) for r in rows if r.kind == kind]
    marked = [n for n, r in enumerate(r for r in rows if r.kind == kind) if r.name == main]
    return charts.intervals(
        lines, xlabel="AUROC: the corresponding place against others of the patient", reference=0.5, marked=marked
    )


def make_page(
    rows: Sequence[Row],
    pairs: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, Picture],
    failed: Mapping[str, str],
    main: str,
    footer: str,
) -> page.Page:
    """The report of one run."""
    patients = len({pair["patient"] for pair in pairs.values()})
    laid = registration(pairs)
    sections: list[page.Section] = [
        page.Numbers([(str(patients), "patients"), (str(len(pairs)), "pairs of scans"), (str(len(failed)), "refused")]),
        page.Prose(
            "Each patient was scanned twice. Windows (embedded alone) and cells of the dense map at corresponding places are compared. "
            "**A high cosine alone says nothing**: the AUROC says how often the corresponding place is more similar than another "
            "place of the same patient, or any place of other patients (0.5: no better than chance). Below four patients numbers "
            "are examples without an interval."
        ),
        page.Heading("Windows"),
        page.Table(HEADERS, table(rows, "windows")),
        page.Figure(chart(rows, "windows", main), "AUROC with intervals over patients.", "AUROC by what differs"),
        page.Heading("Cells"),
        page.Table(HEADERS, table(rows, "cells")),
        page.Heading("Registration"),
        page.Facts({name.replace("_", " "): value.text(2) for name, value in laid.items()}),
        page.Heading("Outliers"),
        page.Prose(
            "The windows that agree least, above in the first scan, below in the second; the ring is the place."
        ),
        page.Cards(
            [
                page.Card(pictures[name], f"{name}, both scans", name, {"cosine": f"{cosine:.3f}"})
                for name, cosine, _ in outliers(pairs, main)
                if name in pictures
            ],
            width=420,
        ),
    ]
    if failed:
        refused = [[name, reason] for name, reason in failed.items()]
        sections += [page.Heading("Refused"), page.Table(("pair", "why"), refused)]
    return page.Page("Stability between scans of one patient", sections, subtitle=main, footer=footer)
