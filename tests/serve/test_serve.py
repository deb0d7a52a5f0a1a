"""What the app answers: voxels, places, heat maps, colours, neighbours; one network job at a time."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

import worlds
from ctfoundry import identity, io, store, zoo
from ctfoundry.errors import StoreError, UsageError
from ctfoundry.memory import Memory
from ctfoundry.retrieval import folders, grids, sources
from ctfoundry.retrieval.cards import Settings
from ctfoundry.retrieval.embed import embed
from ctfoundry.retrieval.search import dense_map, find
from ctfoundry.retrieval.search_maps import Looking, default_levels, scene
from ctfoundry.retrieval.sources import resolve
from ctfoundry.serve import jobs, opening, picture, work
from serve.conftest import build

PLANE_AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


class Slow:
    """An encoder that waits at each scan until it is let go, and counts how many it sees at one time."""

    def __init__(self, encoder) -> None:
        self._encoder, self.gate, self.seen, self.most, self._now = encoder, threading.Event(), 0, 0, 0

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def __call__(self, *arguments, **options):
        self._now += 1
        self.seen += 1
        self.most = max(self.most, self._now)
        assert self.gate.wait(20)
        self._now -= 1
        return self._encoder(*arguments, **options)


def test_the_list_and_a_scan(served, index):
    with served.client() as client:
        about = client.get("/api/scans").json()
        assert about["total"] == len(index.files)
        assert {s["id"] for s in about["scans"]} == set(index.names)
        assert all(s["state"] == "ready" and s["indexed"] for s in about["scans"])
        assert client.get("/api/scans?offset=1&count=2").json()["scans"] == about["scans"][1:3]
        thumb = client.get(f"/api/scans/{index.names[0]}/thumb")
    assert thumb.headers["content-type"] == "image/png"
    assert thumb.content.startswith(b"\x89PNG")
    everything = str(about)
    assert not any(path.name in everything for path in index.files)


@pytest.mark.parametrize("which", range(4))
def test_slices_are_the_scans_own_voxels_in_radiological_order(served, index, which):
    image = nib.as_closest_canonical(nib.load(index.files[which]))  # x, y, z towards right, anterior, superior
    expected = np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]  # superior, posterior, left
    with served.client() as client:
        facts = client.get(f"/api/scans/{index.names[which]}").json()
        assert tuple(facts["shape"]) == expected.shape
        for plane, axis in PLANE_AXES.items():
            asked = client.get(f"/api/scans/{index.names[which]}/slices?plane={plane}&first=3&count=2").content
            got = np.frombuffer(asked, "<i2").reshape(2, *np.delete(expected.shape, axis))
            np.testing.assert_array_equal(got, np.moveaxis(expected, axis, 0)[3:5])
    k, j, i = 4, 7, 9
    x, y, z = (image.shape[0] - 1 - i, image.shape[1] - 1 - j, k)
    np.testing.assert_allclose(np.array(facts["affine"]) @ [k, j, i, 1], image.affine @ [x, y, z, 1], atol=1e-3)


def test_images_that_are_no_hu_keep_their_numbers():
    voxels = np.linspace(0, 1, 5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    volume = replace(worlds.body(0), voxels=voxels, kind="other", valid=None)
    made = picture.shown(volume)
    back = made.voxels.astype(np.float64) * made.slope + made.intercept
    np.testing.assert_allclose(back, made.volume.voxels, atol=1e-5)
    assert made.unit == ""


def test_a_search_finds_what_find_finds(served, index):
    volumes = [io.read(path) for path in index.files]
    point = [float(v) for v in volumes[0].world((10, 20, 22))]
    events = served.job(kind="search", scan=index.names[0], point=point)
    assert events[-1]["type"] == "done"
    hits = {e["scan"]: e for e in events if e["type"] == "hit"}
    assert set(hits) == set(index.names)
    assert hits[index.names[0]]["similarity"] == pytest.approx(1, abs=0.02)  # the place itself
    encoder = worlds.tiny()
    for name, volume in zip(index.names[1:], volumes[1:], strict=True):
        hit = find(encoder, volumes[0], point, volume)
        assert hits[name]["similarity"] == pytest.approx(hit.similarity, abs=5e-3)  # maps are kept in half precision
        np.testing.assert_allclose(hits[name]["point"], hit.point, atol=2.0)


def test_a_heat_map_lies_over_its_scan(served, index):
    volumes = [io.read(path) for path in index.files]
    point = [float(v) for v in volumes[0].world((10, 20, 22))]
    with served.client() as client:
        job = client.post("/api/jobs", json={"kind": "search", "scan": index.names[0], "point": point}).json()["job"]
        hits = {e["scan"]: e for e in served.events(job) if e["type"] == "hit"}
        for name, volume in zip(index.names, volumes, strict=True):
            answer = client.get(f"/api/jobs/{job}/heat/{name}")
            shape = tuple(int(n) for n in answer.headers["x-shape"].split(","))
            assert shape == volume.reorient("SPL").shape  # smaller than the coarse grid's limit
            heat = np.frombuffer(answer.content, np.uint8).reshape(shape)
            # the brightest place is where the hit is, to a cell
            best = volume.reorient("SPL").world(np.argwhere(heat == heat.max()))
            assert np.linalg.norm(best - hits[name]["point"], axis=1).min() < 15


def test_maps_are_made_once(serve, index):
    encoder = Slow(worlds.tiny())
    encoder.gate.set()
    served = serve(encoder=encoder)
    point = [float(v) for v in io.read(index.files[0]).world((10, 20, 22))]
    first = served.job(kind="search", scan=index.names[0], point=point)
    seen = encoder.seen
    again = served.job(kind="search", scan=index.names[0], point=point)
    assert seen == len(index.files) == encoder.seen
    order = [e["scan"] for e in first if e["type"] == "hit"]
    assert sorted(order) == sorted(e["scan"] for e in again if e["type"] == "hit")


def test_one_job_at_a_time_others_wait_in_sight_and_a_search_can_be_cancelled(serve, index):
    encoder = Slow(worlds.tiny())
    served = serve(encoder=encoder)
    ask = {"kind": "search", "scan": index.names[0], "point": [10, -20, 30]}
    with served.client() as client:
        ask["point"] = client.get(f"/api/scans/{index.names[0]}").json()["centre"]
        running, waiting = (client.post("/api/jobs", json=ask).json()["job"] for _ in range(2))
        end = time.monotonic() + 10
        while encoder.seen == 0:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert client.get("/api/state").json()["work"] == {"running": "search", "waiting": 1}
        # the network is busy, and the rest is served
        assert client.get(f"/api/scans/{index.names[1]}/slices?plane=axial&first=0").status_code == 200
        assert client.request("DELETE", f"/api/jobs/{waiting}").status_code == 200
        told = served.events(waiting)
        assert told[0] in ({"type": "waiting", "ahead": 1}, {"type": "waiting", "ahead": 0})
        assert told[-1] == {"type": "cancelled"}
        assert client.request("DELETE", f"/api/jobs/{running}").status_code == 200
        encoder.gate.set()
        told = served.events(running)
        assert told[-1] == {"type": "cancelled"}
        assert len([e for e in told if e["type"] == "hit"]) < len(index.files)
    assert encoder.most == 1


def test_a_search_that_nobody_hears_is_cancelled(serve, index, monkeypatch):
    monkeypatch.setattr(jobs, "LONELY_S", 0.2)
    encoder = Slow(worlds.tiny())
    served = serve(encoder=encoder)
    with served.client() as client:
        centre = client.get(f"/api/scans/{index.names[0]}").json()["centre"]
        ask = {"kind": "search", "scan": index.names[0], "point": centre}
        client.post("/api/jobs", json=ask)
        second = client.post("/api/jobs", json=ask).json()["job"]
        time.sleep(0.6)
        assert served.events(second)[-1] == {"type": "cancelled"}
    encoder.gate.set()


def test_neighbours_are_those_of_the_index(served, index):
    vectors = torch.stack([worlds.tiny()(io.read(path)).vector for path in index.files]).double().numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    with served.client() as client:
        found = client.post(f"/api/scans/{index.names[1]}/similar?k=3").json()["neighbours"]
    expected = np.argsort(-(unit @ unit[1]))[1:]
    assert [n["id"] for n in found] == [index.names[i] for i in expected]
    np.testing.assert_allclose([n["similarity"] for n in found], (unit @ unit[1])[expected], atol=1e-4)


def test_colours_are_shared_by_scans_and_lie_on_the_body(served, index):
    for name in index.names[:2]:
        assert served.job(kind="colours", scan=name)[-1]["type"] == "done"
    with served.client() as client:
        for name, path in zip(index.names[:2], index.files, strict=False):
            answer = client.get(f"/api/scans/{name}/colours")
            shape = tuple(int(n) for n in answer.headers["x-shape"].split(","))
            rgba = np.frombuffer(answer.content, np.uint8).reshape(*shape, 4)
            body = io.read(path).reorient("SPL").voxels > -300
            assert rgba[..., 3].any()
            assert body[rgba[..., 3] > 250].mean() > 0.7
            assert len(np.unique(rgba[rgba[..., 3] > 250][:, :3], axis=0)) > 20
        assert client.get(f"/api/scans/{index.names[3]}/colours").status_code == 404


def test_the_kept_map_is_that_of_dense_map(index):
    engine = opening.engine(index.folder, worlds.tiny())
    expected = dense_map(engine.encoder, io.read(index.files[0]), engine.looking.levels)
    kept = engine._normal(index.names[0])
    torch.testing.assert_close(kept.data, expected.data, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["ct-fm-tiny", "flexict-tiny"])
def test_both_families_are_served_alike(tmp_path, serve, name):
    encoder = zoo.load_encoder(name, weights="random", device="cpu", seed=0)
    small = build(tmp_path, encoder, count=2)
    engine = opening.engine(small.folder, encoder)
    centre = engine.library.scan(small.names[0]).centre
    events = list(engine.search(small.names[0], centre, small.names)(jobs.Job("search", lambda _: iter(()))))
    assert [e["scan"] for e in events if e["type"] == "hit"] == small.names
    assert [e["type"] for e in engine.colours(small.names[1])(None)][-1] == "colours"
    assert [n["id"] for n in engine.neighbours(small.names[0], 3)] == [small.names[1]]


def test_a_scan_whose_file_is_gone_or_another_one_is_unavailable(tmp_path, serve):
    small = build(tmp_path, worlds.tiny(), count=3)
    small.files[0].unlink()
    before = small.files[1].read_bytes()
    small.files[1].write_bytes(small.files[2].read_bytes())
    engine = opening.engine(small.folder, worlds.tiny())  # nothing was read yet: colours are fitted on what can be
    assert [e["type"] for e in engine.colours(small.names[2])(None)][-1] == "colours"
    served = serve(folder=small.folder)
    with served.client() as client:
        listed = {s["id"]: s for s in client.get("/api/scans").json()["scans"]}
        assert (listed[small.names[0]]["state"], listed[small.names[0]]["problem"]) == (
            "unavailable",
            "its file is gone",
        )
        gone, other = (client.get(f"/api/scans/{name}") for name in small.names[:2])
        assert (gone.status_code, other.status_code) == (410, 410)
        assert other.json()["error"]["what"] == "its file has changed since it was embedded"
        assert str(tmp_path) not in gone.text + other.text
        centre = client.get(f"/api/scans/{small.names[2]}").json()["centre"]
    events = served.job(kind="search", scan=small.names[2], point=centre, targets=small.names)
    assert [e["scan"] for e in events if e["type"] == "missed"] == small.names[:2]
    # once read, the list says it too, and searches leave it out
    with served.client() as client:
        line = client.get("/api/scans").json()["scans"][1]
        assert (line["id"], line["state"], line["problem"]) == (
            small.names[1], "unavailable", "its file has changed since it was embedded",
        )  # fmt: skip
    events = served.job(kind="search", scan=small.names[2], point=centre)
    assert [e["type"] for e in events if e["type"] in ("hit", "missed")] == ["hit"]
    # a file that is the old one again is shown again
    small.files[1].write_bytes(before)
    with served.client() as client:
        assert client.get("/api/scans").json()["scans"][1]["state"] == "ready"
        assert client.get(f"/api/scans/{small.names[1]}").status_code == 200
    # where they lie now can be said
    moved = tmp_path / "moved.nii.gz"
    moved.write_bytes(small.files[2].read_bytes())
    engine = opening.engine(small.folder, worlds.tiny(), [str(moved)])
    assert engine.library.available(small.names[2])


def test_stored_maps_answer_as_passes_do_and_no_scan_of_the_index_is_passed(tmp_path, serve, index):
    mapped, said = tmp_path / "mapped", []
    found = [s.scan for s in resolve([str(f) for f in index.files[:3]]).scans]
    embed(found, worlds.tiny(), mapped, Settings(grids=True))
    identity.write_private(mapped, {s.id: str(f) for s, f in zip(found, index.files, strict=False)})
    encoder = Slow(worlds.tiny())
    encoder.gate.set()
    stored = serve(folder=mapped, encoder=encoder, say=said.append)
    assert said == ["searches use the stored maps (stage2, stage3, stage4)"]
    assert stored.engine.looking == Looking(default_levels(worlds.tiny())), "what a calibration is made for"
    volumes = [io.read(path) for path in index.files]
    point = [float(v) for v in volumes[0].world((10, 20, 22))]
    hits = {e["scan"]: e for e in stored.job(kind="search", scan=found[0].id, point=point) if e["type"] == "hit"}
    assert (len(hits), encoder.seen) == (3, 0), "no pass"
    for scan, volume in zip(found[1:], volumes[1:3], strict=True):
        hit = find(worlds.tiny(), volumes[0], point, volume)
        assert hits[scan.id]["similarity"] == pytest.approx(hit.similarity, abs=5e-3)
        np.testing.assert_allclose(hits[scan.id]["point"], hit.point, atol=2.0)
    assert stored.job(kind="colours", scan=found[0].id)[-1]["type"] == "done"
    assert encoder.seen == 0
    with stored.client() as client:
        assert client.get("/api/state").json()["maps"] == {
            "used": True, "stored": 3, "levels": ["stage2", "stage3", "stage4"]
        }  # fmt: skip

    # a scan without a map, or whose content is another one now, is passed through the network
    grids.place(mapped, found[1].id).unlink()
    grids.write(
        mapped,
        found[2].id,
        list(worlds.tiny()(volumes[2], levels=grids.about(mapped, found[2].id).levels).maps.values()),
        "other",
    )
    again = serve(folder=mapped, encoder=encoder, say=said.append, scans=[str(f) for f in index.files[:3]])
    assert said.pop().endswith("of 2 scans; the other 1 pass through the network once")
    again.job(kind="search", scan=found[0].id, point=point)
    assert encoder.seen == 2


def test_maps_of_a_store_that_was_made_anew_are_not_used(tmp_path, serve):
    """The id of a scan in a store is a name: only its content tells that the maps are of other voxels."""

    def stored(first: int) -> list:
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        sources._opened.cache_clear()  # as another process
        with store.create(tmp_path / "store") as scans:
            for k in range(2):
                scans.add(worlds.body(first + k), f"s{k}", patient=f"p{k}")
        return resolve([str(tmp_path / "store")]).scans

    found = stored(0)
    embed([s.scan for s in found], worlds.tiny(), tmp_path / "index", Settings(grids=True))
    identity.write_private(tmp_path / "index", {s.scan.id: s.path for s in found})
    encoder = Slow(worlds.tiny())
    encoder.gate.set()
    point = [float(v) for v in worlds.body(0).world((10, 20, 22))]
    for first, passes in ((0, 0), (5, 2)):
        stored(first)
        served = serve(folder=tmp_path / "index", encoder=encoder)
        events = served.job(kind="search", scan="s0", point=point)
        assert events[-1]["type"] == "done", events
        assert encoder.seen == passes


def test_features_too_large_for_half_precision_are_kept(index, monkeypatch):
    """As half they would be infinite, and all similarities no numbers."""

    def loud(*arguments):
        there = scene(*arguments)
        return replace(there, feature=replace(there.feature, data=there.feature.data * 1e6))

    monkeypatch.setattr(work, "scene", loud)
    kept = opening.engine(index.folder, worlds.tiny()).feature_map(index.names[0])
    assert bool(kept.data.isfinite().all())
    assert float(kept.data.abs().max()) > 65504


def test_maps_of_other_levels_are_used_only_when_asked_for(tmp_path, serve, index):
    mapped, said = tmp_path / "mapped", []
    found = [s.scan for s in resolve([str(f) for f in index.files[:2]]).scans]
    assert opening.engine(index.folder, worlds.tiny(), say=said.append).stored == 0
    assert said.pop().endswith("maps stored by `embed --grids` would save that")
    embed(found, worlds.tiny(), mapped, Settings(grids=True, levels=("stage4",)))
    identity.write_private(mapped, {s.id: str(f) for s, f in zip(found, index.files, strict=False)})
    encoder = Slow(worlds.tiny())
    encoder.gate.set()
    passing = serve(folder=mapped, encoder=encoder, say=said.append)
    assert (
        "the maps stored are of stage4, and it takes stage2, stage3, stage4; --levels stage4 searches in" in said.pop()
    )
    stored = serve(folder=mapped, encoder=encoder, levels=("stage4",), say=said.append)
    assert said.pop() == "searches use the stored maps (stage4)"
    point = [float(v) for v in io.read(index.files[0]).world((10, 20, 22))]
    stored.job(kind="search", scan=found[0].id, point=point)
    assert encoder.seen == 0, "no pass"
    passing.job(kind="search", scan=found[0].id, point=point)
    assert encoder.seen == 2, "not without being asked for"
    with passing.client() as client:
        assert client.get("/api/state").json()["maps"] == {"used": False, "stored": 2, "levels": ["stage4"]}


def test_an_index_of_another_model_and_a_folder_that_is_none_are_refused(index, tmp_path):
    with pytest.raises(UsageError, match="other weights"):
        opening.engine(index.folder, worlds.tiny(seed=1))
    with pytest.raises(StoreError):
        opening.engine(tmp_path, worlds.tiny())


def test_a_folder_whose_scans_were_all_taken_out_opens_as_an_empty_page(tmp_path, serve):
    small = build(tmp_path, worlds.tiny(), count=1)
    folders.remove(small.folder, list(opening.engine(small.folder, worlds.tiny()).library.ids))
    with serve(folder=small.folder).client() as client:
        assert client.get("/api/scans").json()["scans"] == []


def test_an_index_of_another_patch_is_refused_and_the_same_in_other_words_is_not(tmp_path):
    plain = zoo.load_encoder("flexict-tiny", weights="random", device="cpu", seed=0)
    thick, same = zoo.with_patch(plain, (4, 16, 16)), zoo.with_patch(plain, 8)
    (tmp_path / "thick").mkdir()
    (tmp_path / "plain").mkdir()
    small = build(tmp_path / "thick", thick, count=1)
    assert opening.engine(small.folder, thick).encoder.levels[-1].stride == (4, 16, 16)
    with pytest.raises(UsageError, match="patch of 4x16x16, not 8") as refused:
        opening.engine(small.folder, plain)
    assert refused.value.do == "give --patch 4x16x16"
    opening.engine(build(tmp_path / "plain", plain, count=1).folder, same)
    with pytest.raises(UsageError, match="other weights"):
        opening.engine(small.folder, zoo.load_encoder("flexict-tiny", weights="random", device="cpu", seed=1))


def test_memory_is_bounded_and_drops_what_was_not_used():
    memory = Memory(100)
    for key in "abc":
        memory.put(key, key, 40)
    assert "a" not in memory
    assert memory.get("b") == "b"
    memory.put("d", "d", 40)
    assert ("b" in memory, "c" in memory, memory.used) == (True, False, 80)
    memory.put("huge", 0, 101)
    assert "huge" not in memory
    assert "b" in memory
    made = []
    threads = [
        threading.Thread(target=lambda: memory.once("e", lambda: (made.append(1) or time.sleep(0.05) or "e", 1)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
