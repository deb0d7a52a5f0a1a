"""What was found, as pictures: places in other scans (`search`) and the most similar scans (`retrieve`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.report.page import Callout, Card, Cards, Figure, Page, Prose, Section
from ctfoundry.report.planes import Mark, Overlay, three_planes
from ctfoundry.retrieval.search import Hit
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import UInt8

    Picture = UInt8[np.ndarray, "rows columns 3"]

QUERY, FOUND, TRUTH = "#ffb000", "#7cff6b", "#4cc3ff"
"""Colours of the query's crosshair, the found place and the true place."""
SHOWN = 40
"""Most targets that a page shows; a page of that many takes about 2 MB."""
FOOTER = "Similarity is what this model computed; nobody checked these places. Research software; not a medical device."


def query_picture(volume: Volume, point: Sequence[float], *, height: int = 200) -> Picture:
    """Three planes through the query point with a crosshair."""
    return three_planes(volume, point=point, height=height, crosshair=QUERY)


def hit_picture(
    target: Volume, hit: Hit, truth: tuple[float, float, float] | None = None, *, height: int = 200
) -> Picture:
    """Three planes through the found place, the similarity as a heat map, the true place as a ring where it is known."""
    assert hit.heatmap is not None
    # only the most similar tenth of the cells is coloured, so that the picture is not one warm fog
    low, high = float(np.quantile(hit.scores, 0.9)), float(hit.scores.max())
    heat = np.clip((hit.heatmap.voxels - low) / max(high - low, 1e-9), 0, 1)
    marks = [] if truth is None else [Mark(truth, TRUTH, "true")]
    return three_planes(
        target,
        point=hit.point,
        height=height,
        crosshair=FOUND,
        marks=marks,
        overlay=Overlay(heat, hit.heatmap.affine, alpha=0.55),
    )


def hit_card(id: str, target: Volume, hit: Hit) -> Card:
    """One target's best place."""
    facts = {"similarity": f"{hit.similarity:.3f}", "place, mm": _place(hit.point)}
    if hit.confidence is not None:
        facts["confidence"] = f"{hit.confidence:.2f}"
    absent = hit.present is False
    return Card(
        hit_picture(target, hit),
        f"the most similar place in {id}",
        id,
        facts,
        "not in this scan" if absent else "",
        "poor" if absent else "plain",
    )


def best(cards: Sequence[tuple[float, Card]]) -> list[tuple[float, Card]]:
    """The `SHOWN` most similar of them, best first."""
    return sorted(cards, key=lambda pair: -pair[0])[:SHOWN]


def search_page(
    query: tuple[str, Volume, Sequence[float], str],
    cards: Sequence[tuple[float, Card]],
    searched: int,
    model: str,
    *,
    calibrated: bool,
) -> Page:
    """The query (id, scan, place, what the place is), then the best place of each target, in the order of `best`."""
    id, volume, point, what = query
    sections: list[Section] = [
        Figure(
            query_picture(volume, point, height=300),
            f"The query: planes through {what} {_place(point)} mm (RAS+) of {id}.",
            "three planes of the query scan with a crosshair",
        ),
        Prose(
            f"Below, the best place in each of {searched} scans, the most similar first"
            + (f" (the first {SHOWN} of them)" if searched > SHOWN else "")
            + ": planes through it, and the most similar tenth of all cells as a heat map. Heat maps of whole scans lie beside this page."
        ),
    ]
    if not calibrated:
        sections.append(
            Callout(
                "Uncalibrated: similarity is no probability, and every scan has a most similar place, whether the structure is in it or not. "
                "`ctfoundry evaluate search --calibrate` adds a confidence."
            )
        )
    sections.append(Cards([card for _, card in best(cards)], width=420))
    return Page("The same place in other scans", sections, subtitle=model, footer=FOOTER)


def retrieve_page(
    query: tuple[str, Volume | str],
    found: Iterable[tuple[str, Mapping[str, str], Volume | str, Sequence[float] | None]],
    how: str,
) -> Page:
    """The query and the most similar scans, best first: (id, facts, the scan or why it could not be read, the place that was alike).

    `found` is gone through once, and of its scans only the pictures are kept.
    """
    cards, missing = [], {}
    for rank, (id, facts, volume, place) in enumerate(found, 1):
        if isinstance(volume, str):
            missing[id] = volume
            continue
        crosshair = FOUND if place is not None else None
        picture = three_planes(volume, point=place, height=200, crosshair=crosshair)
        cards.append(Card(picture, f"scan {id}", id, facts, str(rank)))
    sections: list[Section] = []
    if isinstance(query[1], str):
        missing[query[0]] = query[1]
    else:
        sections.append(
            Figure(
                three_planes(query[1], height=300),
                f"The query: {query[0]}.",
                "three planes of the query scan",
            )
        )
    if missing:
        listed = "; ".join(f"{id}: {reason}" for id, reason in missing.items())
        sections.append(Callout(f"Without a picture: {listed}.", "Scans that could not be read", "warning"))
    sections.append(Cards(cards, width=420))
    return Page("The most similar scans", sections, subtitle=how, footer=FOOTER.replace("these places", "them"))


def _place(point: Sequence[float]) -> str:
    return ", ".join(f"{v:.1f}" for v in point)
