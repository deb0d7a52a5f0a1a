"""Embeddings on disk: complete parts, resumable, one bad scan leaves the others alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import duckdb
import numpy as np
import pytest
import torch

import worlds
from ctfoundry import io, zoo
from ctfoundry.encoder import Encoder
from ctfoundry.errors import ReadError, StoreError, UsageError
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import PREPARATIONS
from ctfoundry.retrieval import embed as embedding
from ctfoundry.retrieval.cards import Settings
from ctfoundry.retrieval.embed import Scan, embed, load_index
from ctfoundry.retrieval.index import Index
from ctfoundry.retrieval.sources import query_in_index


def scans(count: int) -> list[Scan]:
    return [Scan(f"s{i}", f"digest{i}", partial(worlds.body, i)) for i in range(count)]


def broken() -> None:
    raise ReadError("is broken", where="private/path.nii")


def test_vectors_survive_the_disk(tmp_path):
    encoder = worlds.tiny()
    outcome = embed(scans(3), encoder, tmp_path)
    assert outcome.done == ["s0", "s1", "s2"]
    index = load_index(tmp_path)
    for i in range(3):
        expected = torch.nn.functional.normalize(encoder(worlds.body(i)).vector, dim=0)
        torch.testing.assert_close(index.rows[index.ids.index(f"s{i}")], expected)


def test_parquet_says_where_each_vector_is(tmp_path):
    embed(scans(2), worlds.tiny(), tmp_path, Settings(window=(16, 32, 32)))
    rows = duckdb.sql(f"select id, part, row, vector, box, centre_mm from '{tmp_path}/index.parquet'").fetchall()
    assert {r[3] for r in rows} == {"mean", "window"}
    found = worlds.tiny().windows(worlds.body(0), (16, 32, 32))
    centres = [r[5] for r in rows if r[0] == "s0" and r[3] == "window"]
    np.testing.assert_allclose(centres, found.centres)


def test_a_second_run_skips_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PART_SCANS", 1)
    embed(scans(2), worlds.tiny(), tmp_path)
    outcome = embed(scans(3), worlds.tiny(), tmp_path)
    assert (outcome.skipped, outcome.done) == (["s0", "s1"], ["s2"])
    assert load_index(tmp_path).ids == ("s0", "s1", "s2") or set(load_index(tmp_path).ids) == {"s0", "s1", "s2"}


def test_a_bad_scan_is_named_and_leaves_the_others(tmp_path):
    listed = [*scans(1), Scan("bad", "d", broken), *scans(2)[1:]]
    outcome = embed(listed, worlds.tiny(), tmp_path)
    assert outcome.done == ["s0", "s1"]
    assert "is broken" in outcome.failed["bad"]


def test_another_encoder_is_refused(tmp_path):
    embed(scans(1), worlds.tiny(), tmp_path)
    with pytest.raises(StoreError, match="random weights, seed"):
        embed(scans(1), worlds.tiny(seed=1), tmp_path)


def test_a_broken_part_is_named(tmp_path):
    embed(scans(1), worlds.tiny(), tmp_path)
    part = next((tmp_path / "parts").iterdir())
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(StoreError, match="no part of embeddings"):
        load_index(tmp_path)


def test_nearest_is_the_literal_ranking():
    generator = torch.Generator().manual_seed(0)
    vectors, query = torch.randn(50, 8, generator=generator), torch.randn(8, generator=generator)
    index = Index.of([f"s{i}" for i in range(50)], vectors)
    cosine = {
        f"s{i}": float(v.double() @ query.double() / v.double().norm() / query.double().norm())
        for i, v in enumerate(vectors)
    }
    expected = sorted(cosine, key=lambda name: -cosine[name])
    found = index.nearest(query, 5)
    assert [n.id for n in found] == expected[:5]
    assert found[0].similarity == pytest.approx(cosine[expected[0]], abs=1e-6)
    assert [n.id for n in index.nearest(query, 2, without=expected[:3])] == expected[3:5]


def test_reasons_hold_no_path(tmp_path):
    outcome = embed([*scans(1), Scan("bad", "d", broken)], worlds.tiny(), tmp_path)
    assert outcome.failed == {"bad": "is broken"}


def test_what_was_embedded_before_a_stop_is_there(tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed([*scans(2), Scan("stop", "d", stop)], worlds.tiny(), tmp_path)
    assert embed(scans(2), worlds.tiny(), tmp_path).skipped == ["s0", "s1"]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_contents_of_one_id_the_later_counts(tmp_path, order):
    for i in order:
        embed([Scan("s", f"digest{i}", partial(worlds.body, i))], worlds.tiny(), tmp_path)
    expected = torch.nn.functional.normalize(worlds.tiny()(worlds.body(order[1])).vector, dim=0)
    torch.testing.assert_close(load_index(tmp_path).rows[0], expected)


QWEN = {
    "model_type": "qwen3", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("name", ["flexict-3d", "flexict-vlm"])
def test_a_new_scan_is_asked_with_the_patch_of_the_index(tmp_path, monkeypatch, name):
    vision = {"axes": 3, "patch": 8, "size": [144, 3, 2], "rotary": "float32"}
    card = replace(
        zoo.CARDS[name], arguments={"vision": vision, "text": QWEN, "width": 24} if name == "flexict-vlm" else vision,
        preparation=PREPARATIONS["flexict-tiny"], extent=Extent("whole"), level="block2", seed=0,
    )  # fmt: skip
    encoder = Encoder.of(zoo.build(card), card)
    embed(scans(2), zoo.with_patch(encoder, (8, 16, 16)), tmp_path / "index")
    io.write(worlds.body(3), tmp_path / "new.nii.gz")
    monkeypatch.setattr(embedding.ModelOf, "load", lambda how: encoder)
    asked = (tmp_path / "index", load_index(tmp_path / "index"), str(tmp_path / "new.nii.gz"))
    vector, _ = query_in_index(*asked, name, None, "cpu", 0)
    expected = zoo.with_patch(encoder, (8, 16, 16))(io.read(tmp_path / "new.nii.gz")).vector
    torch.testing.assert_close(vector, expected)
    other = replace(card, seed=1)
    monkeypatch.setattr(embedding.ModelOf, "load", lambda how: Encoder.of(zoo.build(other), other))
    with pytest.raises(UsageError, match="other weights"):
        query_in_index(*asked, name, None, "cpu", 0)


def test_a_scan_thinner_than_a_cell_is_embedded_and_doubted(tmp_path):
    """Cells of the last stage are 96x32x32 mm: a localiser of three slices, and a scan whose sizes are in centimetres."""
    thin = worlds.body(0, shape=(3, 64, 72))
    metric = worlds.body(1, spacing=(0.6, 0.2, 0.2), code="RAS")
    made = [
        Scan("thin", "a", lambda: thin),
        Scan("whole", "b", partial(worlds.body, 2)),
        Scan("cm", "c", lambda: metric),
    ]
    outcome = embed(made, worlds.tiny(), tmp_path)
    assert outcome.done == ["thin", "whole", "cm"]
    assert outcome.doubtful.keys() == {"thin", "cm"}
    assert "3 voxels of 6 mm along an axis fill little of one cell of 96 mm" in outcome.doubtful["thin"]
