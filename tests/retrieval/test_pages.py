"""Pages of what was found: who is shown, in which order, what is said of scans that could not be read."""

from __future__ import annotations

import numpy as np
import pytest

import worlds
from ctfoundry.report.page import render
from ctfoundry.retrieval import pages
from ctfoundry.retrieval.search import Hit
from ctfoundry.volume import Volume

VOLUME = worlds.body()


def hit(similarity: float, **more: object) -> Hit:
    heat = Volume(np.linspace(0, 1, VOLUME.voxels.size, dtype=np.float32).reshape(VOLUME.shape), VOLUME.affine, "other")
    point = tuple(float(v) for v in VOLUME.world([12, 30, 30]))
    return Hit(point, similarity, np.linspace(0, similarity, 50), np.zeros((50, 3)), heat, **more)  # type: ignore[arg-type]


def test_the_most_similar_stand_first_and_no_more_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "SHOWN", 2)
    cards: list[tuple[float, pages.Card]] = []
    for id, similarity in (("low", 0.2), ("high", 0.9), ("middle", 0.5)):
        cards = pages.best([*cards, (similarity, pages.hit_card(id, VOLUME, hit(similarity)))])
    asked = ("query", VOLUME, (10.0, 20.0, 30.0), "the point")
    text = render(pages.search_page(asked, cards, 3, "tiny", calibrated=False))
    assert text.index("high") < text.index("middle")
    assert "0.200" not in text
    assert "the first 2 of them" in text
    assert "10.0, 20.0, 30.0 mm" in text
    assert "Uncalibrated" in text


def test_an_answer_that_is_judged_absent_says_so() -> None:
    card = pages.hit_card("x", VOLUME, hit(0.4, confidence=0.07, present=False))
    assert (card.badge, card.tone, card.facts["confidence"]) == ("not in this scan", "poor", "0.07")
    card = pages.hit_card("x", VOLUME, hit(0.4, confidence=0.8, present=True))
    assert (card.badge, card.tone) == ("", "plain")


def test_scans_without_a_picture_are_named_with_the_reason() -> None:
    found = [("a", {"similarity": "0.900"}, VOLUME, None), ("b", {"similarity": "0.800"}, None, None)]
    text = render(pages.retrieve_page(("q", VOLUME), found, "exact, 2 vectors", {"b": "no such file or folder"}))
    assert "scan a" in text
    assert "b: no such file or folder" in text
    assert text.count("<img") == 2
