"""Pages of what was found: who is shown, in which order, what is said of scans that could not be read."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import identity, io
from ctfoundry.report.page import render
from ctfoundry.retrieval import pages
from ctfoundry.retrieval.search import Hit
from ctfoundry.retrieval.sources import in_folder
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
    found = [
        ("a", {"similarity": "0.900"}, VOLUME, None),
        ("b", {"similarity": "0.800"}, "no such file or folder", None),
    ]
    text = render(pages.retrieve_page(("q", VOLUME), found, "exact, 2 vectors"))
    assert "scan a" in text
    assert "b: no such file or folder" in text
    assert text.count("<img") == 2
    text = render(pages.retrieve_page(("q", "its file is gone"), found, "exact, 2 vectors"))
    assert "q: its file is gone" in text
    assert text.count("<img") == 1


def test_scans_of_a_page_are_held_one_by_one() -> None:
    alive: list[weakref.ref[Volume]] = []

    def found() -> Iterator[tuple[str, dict[str, str], Volume, None]]:
        for number in range(6):
            scan = Volume(VOLUME.voxels.copy(), VOLUME.affine, "hu")
            alive.append(weakref.ref(scan))
            assert sum(ref() is not None for ref in alive) <= 2
            yield str(number), {}, scan, None

    assert render(pages.retrieve_page(("q", VOLUME), found(), "")).count("<img") == 7


def test_reasons_name_neither_places_nor_series(tmp_path: Path) -> None:
    empty, two = tmp_path / "Doe_Jane", tmp_path / "Roe_Richard"
    empty.mkdir()
    for seed in range(2):
        io.write(worlds.body(seed, (8, 16, 16)), two / f"{seed}.nii.gz")
    known = {
        "a": f"{empty}",
        "b": f"{two}",
        "c": f"{two}#1.2.826.0.1",
        "d": f"{tmp_path / 'gone.nii.gz'}",
        "e": f"{two / '0.nii.gz'}",
    }
    (tmp_path / identity.PRIVATE).write_text(json.dumps(known))
    reasons = dict(in_folder(tmp_path, [*known, "f"]))
    assert [id for id, reason in reasons.items() if isinstance(reason, str)] == list("abcdef")
    assert not any(word in str(reasons) for word in ("Doe", "Roe", "1.2.826", "gone", str(tmp_path)))
