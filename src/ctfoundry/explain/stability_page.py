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
    "AUROC, same patient",
    "first minus this",
    "AUROC, others",
    "cosine",
    "squared error, share of elsewhere",
)
"""What tells encoders apart first: a wide table is cut at the right."""


def table(rows: Sequence[Row], kind: str) -> tuple[list[str], list[list[str | None]], str]:
    """Headers, lines of one kind and a caption that says what the numbers are; columns that hold nothing are left out."""
    own = [r for r in rows if r.kind == kind]
    lines = [
        [r.factor, r.name, *(_number(v) for v in (r.auroc, r.gain, r.auroc_other, r.cosine, r.mse_share))] for r in own
    ]
    held = [c for c in range(len(HEADERS)) if any(line[c] is not None for line in lines)]
    return [HEADERS[c] for c in held], [[line[c] for c in held] for line in lines], f"{kind.capitalize()}: {count(own)}"


def count(rows: Sequence[Row]) -> str:
    """How many patients stand behind the numbers, and whether that makes an interval."""
    most = max((r.cosine.patients for r in rows), default=0)
    some = f"{most} patient{'s' * (most != 1)}"
    if any(r.cosine.low is not None for r in rows):
        return f"{some}, with 95 % intervals over them."
    return f"{some}: examples, too few for intervals."


def _number(value: stats.Interval | None) -> str | None:
    """With its interval; bare where there are too few patients, which the caption says once for all."""
    if value is None:
        return None
    return value.text(3) if value.low is not None or np.isnan(value.value) else f"{value.value:.3f}"


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
    model: str = "",
) -> page.Page:
    """The report of one run; `main` is the model's place in `pairs`, `model` its name."""
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
        _page_table(rows, "windows"),
        page.Figure(chart(rows, "windows", main), f"AUROC of windows, {count(rows)}", "AUROC by what differs"),
        page.Heading("Cells"),
        _page_table(rows, "cells"),
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
    return page.Page("Stability between scans of one patient", sections, subtitle=model or main, footer=footer)


def _page_table(rows: Sequence[Row], kind: str) -> page.Table:
    headers, lines, caption = table(rows, kind)
    return page.Table(headers, lines, caption=caption)
