"""Maps on the disk: they are what the network gives, a search in them answers as a fresh one, and what means something else is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

import worlds
from ctfoundry.encoder import FeatureMap
from ctfoundry.errors import StoreError, UsageError
from ctfoundry.infer.passes import Extent
from ctfoundry.retrieval import embed as embedding
from ctfoundry.retrieval import folders, grids
from ctfoundry.retrieval.cards import Settings, held_levels, read_card
from ctfoundry.retrieval.embed import Scan, embed
from ctfoundry.retrieval.search import Seen
from ctfoundry.retrieval.search_confidence import Evidence, calibrate
from ctfoundry.retrieval.search_maps import Looking, default_levels, grid_looking, grid_scene

LEVELS = ("stage2", "stage3", "stage4")


def scans(count: int) -> list[Scan]:
    return [Scan(f"s{i}", f"digest{i}", partial(worlds.body, i)) for i in range(count)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grids")
    assert embed(scans(3), worlds.tiny(), folder, Settings(grids=True)).failed == {}
    return folder


def test_the_levels_of_a_search_are_stored_as_the_network_gives_them(stored):
    encoder = worlds.tiny()
    assert held_levels(read_card(stored)) == default_levels(encoder) == LEVELS
    maps = encoder(worlds.body(0), levels=LEVELS).maps
    tensors = load_file(grids.place(stored, "s0"))
    assert {name: str(tensor.dtype) for name, tensor in tensors.items()} == {
        f"{what}/{name}": kind
        for name in LEVELS
        for what, kind in (("features", "torch.float16"), ("valid", "torch.bool"))
    }
    for found in grids.read(stored, "s0", LEVELS):
        expected = maps[found.level]
        torch.testing.assert_close(torch.from_numpy(found.data).float(), expected.data, atol=1e-3, rtol=1e-3)
        np.testing.assert_array_equal(found.valid, expected.valid)
        np.testing.assert_allclose(found.affine, expected.affine)
    assert grids.size(stored) == (3, sum(p.stat().st_size for p in (stored / "grids").iterdir()))
    assert grids.size(stored, ["s0", "nothing"]) == (1, grids.place(stored, "s0").stat().st_size)


def test_a_search_in_stored_maps_answers_as_a_fresh_one_and_its_calibration_speaks_for_it(stored):
    encoder, volumes = worlds.tiny(), [worlds.body(0), worlds.body(1)]
    fresh, looking = Looking(LEVELS), grid_looking(stored, encoder)
    made = calibrate([Evidence(0.1, 0, 1, 9), Evidence(0.9, 1, 4, 0)], [None, 0.0], encoder.card, fresh, {})
    assert made.fits(encoder.card, looking)
    for start in ([12, 32, 36], [8, 20, 30], [15, 40, 50]):
        point = volumes[0].world(start)
        there = Seen.of(encoder, volumes[0], looking, seen=grid_scene(stored, "s0", encoder, looking)).query(point)
        ours = there.find_in(grid_scene(stored, "s1", encoder, looking))
        theirs = Seen.of(encoder, volumes[0], fresh).query(point).find(volumes[1], heatmap=False)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=5e-3)
        np.testing.assert_allclose(ours.centres, theirs.centres)
        np.testing.assert_allclose(ours.point, theirs.point, atol=0.5)


def test_numbers_too_large_for_half_precision_are_stored_in_single(tmp_path):
    data = torch.full((2, 1, 2, 3), 1e6)
    one = FeatureMap(data, np.eye(4), torch.ones(1, 2, 3, dtype=torch.bool), "wide")
    grids.write(tmp_path, "s", [one, replace(one, data=data / 1e6, level="plain")], "digest")
    wide, plain = grids.read(tmp_path, "s", ["wide", "plain"])
    assert (str(wide.data.dtype), str(plain.data.dtype)) == ("float32", "float16")
    np.testing.assert_array_equal(wide.data, data)


@pytest.mark.parametrize(("factor", "offset"), [(1e-7, 0.0), (1.0, 300.0), (1e30, 0.0)])
def test_maps_that_half_precision_would_blur_are_stored_in_single(tmp_path, factor, offset):
    """Small numbers lose their digits, and so does what differs little from a large one; a search in them would be another one."""
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype(np.float32))
    one = FeatureMap(data * factor + offset, np.eye(4), torch.ones(3, 5, 5, dtype=torch.bool), "one")
    grids.write(tmp_path, "s", [one], "digest")
    (found,) = grids.read(tmp_path, "s", ["one"])
    np.testing.assert_array_equal(found.data, one.data)
    assert grids.in_half(data).dtype == torch.float16
    np.testing.assert_allclose(grids.in_half(data).float(), data, rtol=2**-11)


def first_version(folder: Path) -> FeatureMap:
    """What the first version wrote: one level, in a card that knows no levels."""
    encoder = worlds.tiny()
    embed(scans(1), encoder, folder, Settings(grids=True, levels=("stage4",)))
    card = json.loads((folder / "card.json").read_text())
    del card["settings"]["levels"]
    (folder / "card.json").write_text(json.dumps(card))
    grid = encoder(worlds.body(0)).grid
    about = {"affine": json.dumps(grid.affine.tolist()), "level": grid.level}
    save_file({"features": grid.data.half(), "valid": grid.valid}, grids.place(folder, "s0"), metadata=about)
    return grid


def test_a_folder_of_the_first_version_opens_and_does_what_it_did(tmp_path):
    encoder, grid = worlds.tiny(), first_version(tmp_path)
    assert held_levels(read_card(tmp_path)) == ("stage4",)
    looking = grid_looking(tmp_path, encoder, ["stage4"])
    found = grid_scene(tmp_path, "s0", encoder, looking).feature
    assert found is not None
    torch.testing.assert_close(found.data, grid.data, atol=1e-3, rtol=1e-3)
    with pytest.raises(StoreError, match="stores maps of stage4; the search also takes stage2, stage3") as refused:
        grid_looking(tmp_path, encoder)
    assert "--grids --levels stage2,stage3,stage4 into another folder" in str(refused.value.do)
    outcome = embed(scans(2), encoder, tmp_path, Settings(grids=True))  # the same command goes on
    assert (outcome.skipped, outcome.done) == (["s0"], ["s1"])
    assert list(grids.about(tmp_path, "s1").levels) == ["stage4"]
    with pytest.raises(StoreError, match="levels stage4, not stage2"):
        embed(scans(2), encoder, tmp_path, Settings(grids=True, levels=LEVELS))


def test_maps_are_used_only_where_they_mean_the_same(stored, tmp_path):
    encoder = worlds.tiny()
    for other in (
        Looking(LEVELS, shifts=(1, 2, 2)),
        Looking(window=(8, 16, 16)),
        Looking(LEVELS, extent=Extent("windows", (8, 16, 16), 0.25)),
    ):
        with pytest.raises(UsageError, match="one pass over a scan"):
            grid_scene(stored, "s0", encoder, other)
    with pytest.raises(StoreError, match="random weights, seed 0"):
        grid_looking(stored, worlds.tiny(seed=1))
    with pytest.raises(StoreError, match="also takes stage1"):
        grid_looking(stored, encoder, ["stage1", "stage2"])
    embed(scans(1), encoder, tmp_path / "none")
    with pytest.raises(StoreError, match="stores no maps"):
        grid_looking(tmp_path / "none", encoder)
    # passes of another precision give other features: the same is asked of the query, and no calibration for fp32 fits
    embed(scans(1), encoder, tmp_path / "half", Settings(grids=True, precision="bf16"))
    assert grid_looking(tmp_path / "half", encoder) == Looking(LEVELS, precision="bf16") != Looking(LEVELS)


def test_what_a_scan_lacks_is_said(stored, tmp_path):
    assert grids.lacking(stored, "s0", LEVELS, "digest0") == grids.lacking(stored, "s0", LEVELS) == ""
    assert "another content" in grids.lacking(stored, "s0", LEVELS, "digest1")
    assert "lack stage1" in grids.lacking(stored, "s0", ("stage1", "stage2"))
    assert grids.lacking(stored, "s9", LEVELS) == "has no map of scan s9"
    with pytest.raises(StoreError, match="has no map of scan s9"):
        grids.read(stored, "s9", LEVELS)
    (tmp_path / "grids").mkdir()
    for content in (b"", grids.place(stored, "s0").read_bytes()[:2000]):
        grids.place(tmp_path, "s0").write_bytes(content)
        assert "holds no maps of a scan" in grids.lacking(tmp_path, "s0", LEVELS)


def changed(tensors: dict[str, np.ndarray], about: dict[str, str], kind: str) -> None:
    """Make a file of maps lie about itself."""
    places = json.loads(about["levels"])
    if kind == "affine":
        about["levels"] = json.dumps(places | {"stage2": np.full((4, 4), np.nan).tolist()})
    elif kind == "list":
        about["levels"] = json.dumps(list(places))
    elif kind == "name":
        tensors["features/stage9"] = tensors.pop("features/stage2")
    elif kind == "content":
        del about["content"]
    elif kind == "valid":
        tensors["valid/stage3"] = tensors["valid/stage3"][:1].copy()
    elif kind == "axes":
        tensors["features/stage2"] = tensors["features/stage2"][0].copy()
    elif kind == "type":
        tensors["features/stage2"] = tensors["features/stage2"].astype(np.int32)
    else:
        tensors["features/stage3"] = tensors["features/stage3"][:5].copy()


@pytest.mark.parametrize("kind", ["affine", "list", "name", "content", "valid", "axes", "type", "channels"])
def test_files_that_are_not_what_they_say_are_named(stored, tmp_path, kind):
    encoder = worlds.tiny()
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    with safe_open(grids.place(stored, "s0"), "numpy") as stream:
        tensors, about = {name: stream.get_tensor(name) for name in stream.keys()}, stream.metadata()  # noqa: SIM118
    changed(tensors, about, kind)
    save_arrays(tensors, grids.place(tmp_path, "s0"), metadata=about)
    with pytest.raises(StoreError, match="remove it and embed again") as said:
        grid_scene(tmp_path, "s0", encoder, grid_looking(tmp_path, encoder))
    assert said.value.where == str(grids.place(tmp_path, "s0"))
    # what the header alone tells is passed through the network instead; how many channels a model has it does not know
    assert bool(grids.lacking(tmp_path, "s0", LEVELS)) is (kind != "channels")


def test_an_id_names_no_other_place(stored):
    for id in ("../s0", "a/b", "/etc/x"):
        with pytest.raises(StoreError, match="is no id of a scan"):
            grids.place(stored, id)


def test_maps_that_are_gone_or_broken_are_made_again(stored, tmp_path):
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    grids.place(tmp_path, "s0").unlink()
    grids.place(tmp_path, "s1").write_bytes(b"broken")
    outcome = embed(scans(3), worlds.tiny(), tmp_path, Settings(grids=True))
    assert (outcome.done, outcome.skipped) == (["s0", "s1"], ["s2"])
    for id in ("s0", "s1"):
        for ours, theirs in zip(grids.read(tmp_path, id, LEVELS), grids.read(stored, id, LEVELS), strict=True):
            np.testing.assert_array_equal(ours.data, theirs.data)
    assert len(embedding.rows(tmp_path)) == 3


def test_labels_change_the_digest_of_a_scan_and_not_the_content_of_its_maps(tmp_path):
    (scan,) = scans(1)
    embed([replace(scan, digest="with labels", voxels=scan.digest)], worlds.tiny(), tmp_path, Settings(grids=True))
    assert grids.lacking(tmp_path, "s0", LEVELS, scan.digest) == ""


def test_levels_are_chosen_in_the_networks_order_and_belong_to_maps(tmp_path):
    encoder = worlds.tiny()
    embed(scans(1), encoder, tmp_path / "two", Settings(grids=True, levels=("stage4", "stage3")))
    assert held_levels(read_card(tmp_path / "two")) == ("stage3", "stage4")
    with pytest.raises(UsageError, match="of stored maps"):
        embed(scans(1), encoder, tmp_path / "no", Settings(levels=("stage4",)))


def test_maps_that_memory_cannot_hold_are_refused_before_the_pass(tmp_path, monkeypatch):
    encoder = worlds.tiny(extent=Extent("windows", (16, 64, 64), 0.0))
    assert embed(scans(1), encoder, tmp_path / "fits", Settings(grids=True)).failed == {}
    monkeypatch.setattr(embedding, "WHOLE_CAP_BYTES", 1 << 10)
    assert "while they are made" in embed(scans(1), encoder, tmp_path / "no", Settings(grids=True)).failed["s0"]


def test_maps_go_with_their_scans(stored, tmp_path):
    folders.merge(tmp_path / "both", [stored])
    assert grids.ids(tmp_path / "both") == {"s0", "s1", "s2"}
    assert grids.place(tmp_path / "both", "s1").read_bytes() == grids.place(stored, "s1").read_bytes()
    folders.remove(tmp_path / "both", ["s1"])
    assert grids.ids(tmp_path / "both") == {"s0", "s2"}
