"""Searches over all pairs: who is asked, what counts as absent, tables, reliability, the published protocol, the page."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry.adapt.cases import LabelledScan, scan_of
from ctfoundry.encoder import Encoder
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import landmarks, search_summary
from ctfoundry.evaluate import search as measured
from ctfoundry.evaluate.localise import inside
from ctfoundry.evaluate.search_cases import Gathered, know
from ctfoundry.evaluate.search_report import report, tables
from ctfoundry.evaluate.search_summary import Answer
from ctfoundry.evaluate.search_walk import BEST_CELL, POSITION, Searched, Way, search_all
from ctfoundry.keys import Key
from ctfoundry.retrieval import search_confidence
from ctfoundry.retrieval.search import Seen, find
from ctfoundry.retrieval.search_confidence import Evidence
from ctfoundry.retrieval.search_maps import Looking
from ctfoundry.volume import Volume

LOOKING = Looking(("stage1", "stage2"))
NAMES = {1: "heart", 2: "Liver", 3: "spleen", 4: "aorta"}


def case(number: int, drop: tuple[int, ...] = ()) -> LabelledScan:
    """A body with labelled boxes: heart and liver whole, the spleen cut by the border, without those of `drop`."""
    volume = worlds.body(number)
    voxels = np.zeros(volume.shape, np.uint8)
    voxels[10:14, 20:28, 20:28] = 1
    voxels[6:9, 30:44, 40:50] = 2
    voxels[20:24, 30:36, 30:36] = 3
    for label in drop:
        voxels[voxels == label] = 0
    return scan_of(f"p{number}", volume, Volume(voxels, volume.affine, "label", NAMES))


def searched(
    scans: list[LabelledScan], methods: dict[str, Way], parts: Path, structures: tuple[str, ...] = ()
) -> Searched:
    """All searches between these."""
    failed: dict[str, str] = {}
    found = search_all(know(scans, parts, failed), methods, structures, parts=parts, failed=failed)
    assert failed == {}
    return found


@pytest.fixture(scope="module")
def cases() -> list[LabelledScan]:
    return [case(0), case(1), case(2, drop=(1, 3)), case(3), case(4)]


@pytest.fixture(scope="module")
def result(cases: list[LabelledScan]) -> measured.Result:
    return measured.measure(measured.ways(worlds.tiny(), worlds.tiny(seed=1), LOOKING), Gathered(cases))


def test_every_pair_structure_and_method_once(result):
    first = [a for a in result.answers if a.method == "tiny"]
    there = {(a.structure, a.query, a.target) for a in first if a.error is not None}
    whole = {"liver": ["p0", "p1", "p2", "p3", "p4"], "heart": ["p0", "p1", "p3", "p4"]}
    assert there == {(n, q, t) for n, ids in whole.items() for q in ids for t in ids if q != t}
    # absent is only what the target does not hold at all: the cut spleen is nobody's query, and in p2 it would be absent
    assert {(a.structure, a.target) for a in first if a.error is None} == {("heart", "p2")}
    counts = {m: sum(a.method == m and a.error is not None for a in result.answers) for m in result.summary.errors}
    assert counts == dict.fromkeys(["tiny", "random weights", measured.HU, POSITION, BEST_CELL], len(there))


def test_answers_are_those_of_find(result, cases):
    answer = next(a for a in result.answers if a.method == "tiny" and a.error is not None)
    known = {c.id: c for c in cases}
    query, target = known[answer.query], known[answer.target]
    query_at, truth = (landmarks.centroids(c.maps["labels"]())[answer.structure] for c in (query, target))
    hit = find(worlds.tiny(), query.image(), query_at, target.image(), levels=LOOKING.levels)
    np.testing.assert_allclose(answer.point, hit.point, atol=1e-6)
    assert answer.error == pytest.approx(np.linalg.norm(np.array(hit.point) - truth))
    assert answer.inside == float(inside(target.maps["labels"](), answer.structure, np.array([hit.point]))[0])
    assert answer.evidence == hit.evidence


def test_best_cell_bounds_answers_on_cells(cases, tmp_path):
    way = Way(worlds.tiny(), replace(LOOKING, refine=False))
    found = searched(cases[:2], {"a": way}, tmp_path).answers
    best = {(a.structure, a.query): a.error for a in found if a.method == BEST_CELL}
    assert all(a.error >= best[a.structure, a.query] - 1e-9 for a in found if a.method == "a")


def test_windows_are_searched_with_too(cases):
    looking = Looking(window=(8, 16, 16), overlap=0.5)
    found = measured.measure(measured.ways(worlds.tiny(), None, looking), Gathered(cases[:2]), ["heart"])
    assert found.summary.errors["tiny"].values == 2
    assert set(found.summary.errors) == {"tiny", measured.HU, POSITION, BEST_CELL}


def test_a_place_that_one_way_does_not_hold_is_asked_of_none(cases, tmp_path, monkeypatch):
    ways = {
        "a": Way(worlds.tiny(), LOOKING),
        "b": Way(worlds.tiny(), replace(LOOKING, shifts=(1, 2, 2))),
    }
    edges = {}
    for own in cases[:2]:
        volume = own.image()
        first, second = (Seen.of(way.encoder, volume, way.looking) for way in ways.values())
        steps = [volume.world([12, 30, x]) for x in np.arange(-2, volume.shape[2] + 2, 0.05)]
        edge = next(p for p in steps if first.holds(p) and not second.holds(p))
        edges[id(own.maps["labels"]().voxels)] = {"edge": tuple(float(v) for v in edge)}
    centroids = landmarks.centroids
    monkeypatch.setattr(landmarks, "centroids", lambda labels: {**centroids(labels), **edges[id(labels.voxels)]})
    found = searched(cases[:2], ways, tmp_path).answers
    assert {a.structure for a in found} == {"heart", "liver"}
    assert search_summary.summarise(found, 40.0).gains.keys() == {"b", POSITION, BEST_CELL}


def test_prepared_scans_are_not_held_for_all_cases(cases, tmp_path, monkeypatch):
    alive, most = [], []
    prepare = Encoder.prepare

    def counted(self, volume):
        made = prepare(self, volume)
        alive.append(weakref.ref(made))
        most.append(sum(ref() is not None for ref in alive))
        return made

    monkeypatch.setattr(Encoder, "prepare", counted)
    searched(cases, {"a": Way(worlds.tiny(), Looking(window=(8, 16, 16), overlap=0.0))}, tmp_path, ("heart",))
    assert len(alive) > len(cases)
    assert max(most) <= 2


def test_the_published_protocol_has_one_source(cases):
    found = measured.published(worlds.tiny(), None, Gathered([case(2, drop=(1,)), *cases[:2]]))
    assert {a.query for a in found.answers} == {"p0"}
    assert {a.structure for a in found.answers} == {"heart"}
    assert any("no" not in n and "wrong" in n for n in found.notes)
    with pytest.raises(UsageError, match="named heart"):
        measured.published(worlds.tiny(), None, Gathered([case(0, drop=(1,)), case(1, drop=(1,))]))


def test_too_few_scans():
    with pytest.raises(UsageError, match="two are needed"):
        measured.measure({"a": Way(worlds.tiny(), LOOKING)}, Gathered([case(0)]))


def answers(count: int, honest: bool) -> list[Answer]:
    """Answers whose chance to be right is their similarity (honest), or has nothing to do with it."""
    key = Key.of("answers", count)
    said = key.uniform(0.02, 0.98, count)
    right = key("right").uniform(0, 1, count) < (said if honest else 0.5)
    return [
        Answer(
            "a", "heart", "q", "t", (f"p{n % 7}", f"p{7 + n % 5}"), (0.0, 0.0, 0.0),
            (5.0 if r else 300.0) if r or n % 2 else None, None, Evidence(s, 0, 0, 0),
        )
        for n, (s, r) in enumerate(zip(said, right, strict=True))
    ]  # fmt: skip


def test_reliability_tells_an_honest_calibration_from_another():
    logit = search_confidence.Logistic((0.5, 0, 0, 0), (1, 1, 1, 1), (4.6, 0, 0, 0), 0.0)
    made = search_confidence.Calibration(logit, logit, 0.5, 40.0, LOOKING, {}, {})
    honest = search_summary.reliability(answers(3000, True), made)
    other = search_summary.reliability(answers(3001, False), made)
    assert honest["expected_error"] < 0.06 < 0.2 < other["expected_error"]
    assert honest["brier"] < honest["brier_of_the_base_rate"] < 0.26 < other["brier"]
    for row in honest["bins"]:
        assert row["true"]["low"] - 0.05 <= row["said"] <= row["true"]["high"] + 0.05


def test_area_under_the_curve_is_scikit_learns():
    from sklearn.metrics import roc_auc_score

    key = Key.of("auc")
    score, truth = np.round(key.uniform(0, 1, 200), 1), key("t").uniform(0, 1, 200) < 0.3
    assert search_summary._auroc(score, truth) == pytest.approx(roc_auc_score(truth, score))
    assert search_summary._auroc(score, np.ones(200, bool)) is None


def test_a_calibration_from_the_same_scans_is_not_praised(result, cases):
    logit = search_confidence.Logistic((0,) * 4, (1,) * 4, (1, 0, 0, 0), 0.0)
    made = search_confidence.Calibration(logit, logit, 0.5, 40.0, LOOKING, {}, {"data": "x", "scans": 2})
    methods = {"tiny": Way(worlds.tiny(), LOOKING)}
    same = measured.measure(methods, Gathered(cases[:2]), calibration=made, made_from={"data": "x"})
    assert same.reliability is None
    assert "these very scans" in same.notes[-1]
    other = measured.measure(methods, Gathered(cases[:3]), calibration=made, made_from={"data": "x"})
    assert other.made_from == {"data": "x", "scans": 3}
    assert other.reliability is not None


def test_the_page_and_the_file(result, tmp_path):
    assert report(result, tmp_path) == ["search.json", "report.html"]
    data = json.loads((tmp_path / "search.json").read_text())
    assert data["error_mm"]["tiny"]["value"] == result.summary.errors["tiny"].value
    assert data["absent"] == 4
    page = (tmp_path / "report.html").read_text()
    assert "Hits and misses" in page
    assert "random weights" in page
    assert [len(t.rows) for t in tables(result)] == [5, 2]


def test_another_way_to_look_stands_beside_the_first(cases, tmp_path):
    """Agreement recomputed from the answers' points; the windows' answers are those that windows alone give."""
    windows = Looking(window=(8, 16, 16), overlap=0.5, whiten=False)
    encoder = worlds.tiny()
    found = measured.measure(
        measured.ways(encoder, None, LOOKING, {"windows=8x16x16,plain": windows}), Gathered(cases[:3])
    )
    name = "tiny, windows=8x16x16,plain"
    alone = searched(cases[:3], {name: Way(encoder, windows)}, tmp_path).answers
    of = {m: {a.asked: a for a in found.answers if a.method == m and a.error is not None} for m in ("tiny", name)}
    for answer in alone:
        if answer.method == name and answer.error is not None:
            assert of[name][answer.asked].point == pytest.approx(answer.point)
    apart = [np.linalg.norm(np.subtract(a.point, of["tiny"][asked].point)) for asked, a in of[name].items()]
    assert found.summary.agreement[name].value == pytest.approx(np.mean(np.array(apart) <= found.right_mm))
    assert set(found.summary.seconds) == {"tiny", name, measured.HU}
    assert set(found.summary.looked.values()) == {3}
    assert found.data()["settings"][name]["window"] == [8, 16, 16]
