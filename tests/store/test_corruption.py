"""Every broken invariant has its own error, and one broken scan leaves the others readable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import blosc2
import numpy as np
import pytest

from ctfoundry import store
from ctfoundry.store import errors, index

BOX = ((0, 4), (0, 4), (0, 4))


@pytest.fixture
def place(tmp_path, scan):
    with store.create(tmp_path / "s", "native") as scans:
        for id in "abc":
            scans.add(scan(ord(id), shape=(40, 50, 60)), id, patient=f"p{id}")
    return tmp_path / "s"


def problems(place):
    scans = store.open_store(place)
    assert scans.read("c", BOX).shape == (4, 4, 4)
    return {(type(e), e.where.split("#")[1]) for e in scans.verify()}


def change(place, id="b", **values):
    file = place / "scans" / f"{id}.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | values))


def rebuild(place):
    (place / "index.npy").unlink()


@pytest.mark.parametrize("keep", [0, 10, 100, -1, -100])
def test_truncated_array(place, keep):
    file = place / "scans" / "b.b2nd"
    data = file.read_bytes()
    file.write_bytes(data[: keep if keep >= 0 else len(data) + keep])
    with pytest.raises(errors.TruncatedArrayError, match=rf"s#b: the array file has \d+ bytes instead of {len(data)}"):
        store.open_store(place).read("b", BOX)
    assert problems(place) == {(errors.TruncatedArrayError, "b")}


def test_longer_array(place):
    with open(place / "scans" / "b.b2nd", "ab") as stream:
        stream.write(b"x")
    assert problems(place) == {(errors.TruncatedArrayError, "b")}


def test_missing_array(place):
    (place / "scans" / "b.b2nd").unlink()
    with pytest.raises(errors.MissingArrayError):
        store.open_store(place).read("b", BOX)
    assert problems(place) == {(errors.MissingArrayError, "b")}


@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.999])
def test_one_flipped_bit(place, at):
    file = place / "scans" / "b.b2nd"
    data = bytearray(file.read_bytes())
    data[int(at * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)
    assert problems(place) <= {(errors.ChecksumError, "b"), (errors.ArrayError, "b"), (errors.ShapeError, "b")}
    assert len(problems(place)) == 1


@pytest.mark.parametrize("seed", range(20))
def test_noise_in_an_array_never_kills_the_reader(place, seed):
    """Reads trust the bytes (verify checks them), but what blosc2 notices comes back as an error of ours."""
    rng = np.random.default_rng(seed)
    file = place / "scans" / "b.b2nd"
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    hit = rng.integers(0, len(data), 200) if seed % 2 else rng.integers(0, 400, 20)
    data[hit] = rng.integers(0, 256, len(hit))
    file.write_bytes(data.tobytes())
    try:
        got = store.open_store(place).read("b", ((0, 40), (0, 50), (0, 60)))
        assert got.shape == (40, 50, 60)
    except (errors.ArrayError, errors.DtypeError, errors.ShapeError):
        pass
    assert len(problems(place)) == 1


def forge(place, voxels, id="b"):
    """Another array under a scan's id, with length and checksum that agree."""
    file = place / "scans" / f"{id}.b2nd"
    data = blosc2.asarray(voxels, contiguous=True).to_cframe()
    file.write_bytes(data)
    import hashlib

    change(place, id, array={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    rebuild(place)


def test_wrong_dtype(place):
    forge(place, np.zeros((40, 50, 60), np.float32))
    with pytest.raises(errors.DtypeError, match="float32"):
        store.open_store(place).read("b", BOX)
    assert problems(place) == {(errors.DtypeError, "b")}


def test_wrong_shape(place):
    forge(place, np.zeros((40, 50, 61), np.int16))
    with pytest.raises(errors.ShapeError, match="61"):
        store.open_store(place).read("b", BOX)
    assert problems(place) == {(errors.ShapeError, "b")}


def test_other_voxels(place):
    forge(place, np.zeros((40, 50, 60), np.int16))
    assert problems(place) == {(errors.ChecksumError, "b"), (errors.HistogramError, "b")}


def test_other_histogram_and_boxes(place):
    other = json.loads((place / "scans" / "a.json").read_text())
    change(place, histogram=other["histogram"])
    assert problems(place) == {(errors.HistogramError, "b")}
    change(place, histogram={"first": 0, "counts": "eJwrSS0uAQAEXQHB"})
    assert problems(place) == {(errors.SidecarError, "b")}
    with pytest.raises(errors.SidecarError):
        store.open_store(place).entry("b").statistics()


def test_other_box(place):
    change(place, box_soft=[[0, 1], [0, 1], [0, 1]])
    assert problems(place) == {(errors.HistogramError, "b"), (errors.StaleIndexError, "b")}
    rebuild(place)
    assert problems(place) == {(errors.HistogramError, "b")}


def test_histogram_bomb(place):
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(10**8), 9)).decode()
    change(place, histogram={"first": -1024, "counts": bomb})
    assert problems(place) == {(errors.SidecarError, "b")}


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"patient"', '"PatientName"'),
        lambda text: text.replace('"pb"', '"/srv/x"'),
        lambda text: text.replace('"shape": [\n  40', '"shape": [\n  -40'),
        lambda text: text.replace("700.25", "NaN"),
        lambda text: text.replace('"id": "b"', '"id": "a"'),
        lambda text: "\xff",
    ],
)
def test_damaged_sidecar(place, damage):
    file = place / "scans" / "b.json"
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text), encoding="latin-1")
    assert problems(place) == {(errors.SidecarError, "b")}
    with pytest.raises(errors.SidecarError):
        store.open_store(place).sidecar("b")
    rebuild(place)
    with pytest.warns(UserWarning, match="left out: s#b"):
        scans = store.open_store(place)
    assert scans.entries.ids == ["a", "c"]
    assert [type(e) for e in scans.verify()] == [errors.SidecarError]
    assert (place / "scans" / "b.b2nd").exists()
    scans.remove("b")
    assert scans.verify() == [] == store.open_store(place).verify()


def test_missing_sidecar_keeps_the_array(place):
    (place / "scans" / "b.json").unlink()
    assert problems(place) == {(errors.SidecarError, "b")}
    scans = store.open_store(place)
    assert scans.read("b", BOX).shape == (4, 4, 4)
    with pytest.raises(errors.SidecarError, match="missing"):
        scans.sidecar("b")
    scans.flush()
    assert problems(place) == {(errors.SidecarError, "b")}
    scans.remove("b")
    assert problems(place) == set()


def test_unknown_versions(place):
    change(place, format=2)
    assert problems(place) == {(errors.UnknownFormatError, "b")}
    (place / "store.json").write_text(json.dumps({"format": 99, "shards": 4}))
    with pytest.raises(errors.UnknownFormatError, match=r"format 99.*\n.*update"):
        store.open_store(place)


def test_scan_on_another_grid(place):
    change(place, grid="ct-fm")
    assert problems(place) == {(errors.GridMismatchError, "b")}


def test_affine_off_the_grid(tmp_path, scan):
    with store.create(tmp_path / "s", "ct-fm") as scans:
        for id in "bc":
            scans.add(scan(shape=(10, 20, 30)), id, patient="p")
    data = json.loads((tmp_path / "s" / "scans" / "b.json").read_text())
    data["affine"][2][0] = 4.0
    change(tmp_path / "s", affine=data["affine"])
    rebuild(tmp_path / "s")
    found = [str(e) for e in store.open_store(tmp_path / "s").verify()]
    assert len(found) == 2
    assert all("s#b: spacing" in text for text in found)


def test_affine_in_another_orientation(place):
    data = json.loads((place / "scans" / "b.json").read_text())
    data["affine"][2][0] *= -1
    change(place, affine=data["affine"])
    rebuild(place)
    assert problems(place) == {(errors.GridMismatchError, "b")}


@pytest.mark.parametrize("damage", ["cut", "noise", "pickle", "other", "gone", "old"])
def test_a_bad_index_is_made_again(place, damage):
    file = place / "index.npy"
    good = file.read_bytes()
    if damage == "cut":
        file.write_bytes(good[:200])
    elif damage == "noise":
        file.write_bytes(b"\x93NUMPY" + os.urandom(100))
    elif damage == "pickle":
        np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif damage == "other":
        np.save(file, np.zeros(3))
    elif damage == "gone":
        file.unlink()
    else:
        index.write(file, np.load(file)[:2])
    assert store.open_store(place).entries.ids == ["a", "b", "c"]
    assert file.read_bytes() == good


def test_stale_row(place):
    table = np.load(place / "index.npy")
    table["affine"][1, 0, 3] += 5
    index.write(place / "index.npy", table)
    assert problems(place) == {(errors.StaleIndexError, "b")}


def test_foreign_files(place):
    (place / "scans" / "notes.txt").touch()
    assert problems(place) == {(errors.SidecarError, "notes.txt")}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "grid": "x", "salt_id": "", "created_by": ""}']
)
def test_damaged_store_file(place, text):
    (place / "store.json").write_text(text)
    with pytest.raises(errors.NotAStoreError, match=r"store\.json"):
        store.open_store(place)


def test_no_store(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(errors.NotAStoreError):
            store.open_store(path)


def test_every_error_stands_in_the_format_page():
    page = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text()
    own = [n for n, e in vars(errors).items() if isinstance(e, type) and issubclass(e, errors.StoreError)]
    assert len(own) > 15
    assert [name for name in own if f"`{name}`" not in page and name != "StoreError"] == []
