"""Archives with several scans: what is offered, the choice, and that nothing of an archive stays."""

from __future__ import annotations

import io as streams
import multiprocessing
import signal
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import io
from ctfoundry.errors import NotAScanError
from ctfoundry.io.dicom_write import write_series
from ctfoundry.serve import offers, reader
from ctfoundry.serve.offers import Offer, offered
from ctfoundry.serve.uploads import Limits
from serve.conftest import archive


@pytest.fixture
def sent(tmp_path):
    """An archive with three series, one more that lacks a slice, and a text; and the volumes."""
    return archive(tmp_path)


def upload(client, data):
    return client.post("/api/uploads", content=data)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_in_an_archive_is_told_without_a_word_that_was_typed(served, sent, temporary):
    data, volumes = sent
    with served.client() as client:
        answer = upload(client, data)
        assert answer.status_code == 202
        offer = answer.json()["choose"]
        assert offer.keys() == {"id", "seconds", "more", "broken", "scans"}
        assert (offer["more"], offer["broken"]) == (0, 1)
        found = [(s["slices"], s["plane"], tuple(s["spacing"]), s["modality"], s["detail"]) for s in offer["scans"]]
        assert found == [
            (9, "axial", (2.0, 0.8, 0.8), "CT", []),
            (6, "axial", (3.0, 0.8, 0.8), "CT", ["kernel B30f"]),
            (4, "coronal", (5.0, 1.0, 1.0), "CT", ["kernel STANDARD"]),
        ]
        assert not any(word in answer.text for word in ("Doe", "Jane", "1.2.826", "/", "#"))
        assert len(files(temporary)) == 1  # the archive, and nothing unpacked
        # the choice: exactly these voxels
        chosen = client.post(f"/api/uploads/{offer['id']}", json={"choice": 1})
        assert chosen.status_code == 200, chosen.text
        id = chosen.json()["id"]
        got = np.frombuffer(client.get(f"/api/scans/{id}/slices?plane=axial&first=0&count=6").content, "<i2")
        np.testing.assert_array_equal(got.reshape(6, 28, 30), volumes[0].voxels)
        assert client.request("DELETE", f"/api/scans/{id}").status_code == 200
    assert list(temporary.iterdir()) == []


def test_a_choice_is_made_once_of_what_there_is_or_not_at_all(served, sent, temporary):
    with served.client() as client:
        offer = upload(client, sent[0]).json()["choose"]["id"]
        for wrong in ({"choice": 3}, {"choice": -1}, {"choice": 10**30}, {"choice": "1"}, {"choice": True}, {"choice": 1.5}, {}, [], {"choice": 0, "name": "x"}):  # fmt: skip
            refused = client.post(f"/api/uploads/{offer}", json=wrong)
            assert refused.status_code == 400, (wrong, refused.text)
            assert refused.json()["error"]["what"]
        assert len(files(temporary)) == 1, "a wrong choice does not cost the archive"
        id = client.post(f"/api/uploads/{offer}", json={"choice": 2}).json()["id"]
        for again in (client.post(f"/api/uploads/{offer}", json={"choice": 2}), client.delete(f"/api/uploads/{offer}")):
            assert again.status_code == 404
            assert "any more" in again.json()["error"]["what"]
        client.delete(f"/api/scans/{id}")
        # nobody chooses
        offer = upload(client, sent[0]).json()["choose"]["id"]
        assert client.delete(f"/api/uploads/{offer}").json() == {"removed": offer}
        assert client.post(f"/api/uploads/{offer}", json={"choice": 0}).status_code == 404
        for place in ("x", "..%2fx", "a" * 5000):
            assert client.post(f"/api/uploads/{place}", json={"choice": 0}).status_code in (404, 405)
        assert client.get("/api/scans").json()["scans"][0]["state"] == "ready"
    assert list(temporary.iterdir()) == []
    with served.client(origin="http://evil.example") as client:
        assert client.post("/api/uploads/x", json={"choice": 0}).status_code == 403


def test_an_archive_waits_for_a_short_time_and_in_an_uploads_place(serve, sent, temporary):
    served = serve(limits=Limits(choose_s=0.4, at_once=2))
    with served.client() as client:
        first, second = (upload(client, sent[0]) for _ in range(2))
        assert (first.status_code, second.status_code) == (202, 202)
        assert first.json()["choose"]["id"] != second.json()["choose"]["id"]
        end = time.monotonic() + 10
        while list(temporary.iterdir()):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert client.post(f"/api/uploads/{first.json()['choose']['id']}", json={"choice": 0}).status_code == 404
    served = serve(limits=Limits(at_once=2))
    with served.client() as client:
        waiting = [upload(client, sent[0]).json()["choose"]["id"] for _ in range(2)]
        assert upload(client, sent[0]).status_code == 409, "both places are taken"
        made = [client.post(f"/api/uploads/{id}", json={"choice": k}).json()["id"] for k, id in enumerate(waiting)]
        shapes = [client.get(f"/api/scans/{id}").json()["shape"] for id in made]
        assert [shape[0] for shape in shapes] == [9, 6]
        assert upload(client, sent[0]).status_code == 202
    assert len(files(temporary)) == 1  # and goes when the server ends: see below


def test_the_end_of_the_server_removes_what_waits(index, sent, temporary):
    from serve.conftest import starting

    with starting(index) as start, start().client() as client:
        assert upload(client, sent[0]).status_code == 202
        assert len(files(temporary)) == 1
    assert list(temporary.iterdir()) == []


def test_limits_hold_for_the_choice(serve, sent):
    served = serve(limits=Limits(voxel_bytes=7 * 28 * 30 * 2))
    with served.client() as client:
        offer = upload(client, sent[0]).json()["choose"]
        assert [s["too_large"] for s in offer["scans"]] == [False, False, True], "what cannot be taken comes last"
        assert [s["slices"] for s in offer["scans"]] == [6, 4, 9]
        assert client.post(f"/api/uploads/{offer['id']}", json={"choice": 2}).status_code == 413
        assert client.post(f"/api/uploads/{offer['id']}", json={"choice": 0}).status_code == 404
    served = serve(limits=Limits(scans=1))
    with served.client() as client:
        ids = [upload(client, sent[0]).json()["choose"]["id"] for _ in range(2)]
        codes = [client.post(f"/api/uploads/{id}", json={"choice": 0}).status_code for id in ids]
        assert codes == [200, 409]


def test_thousands_of_series(tmp_path):
    paths = write_series(tmp_path / "one", worlds.body(0, (2, 6, 6)).voxels, worlds.body(0).affine, series="1000000")
    pair = [path.read_bytes() for path in paths]
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as made:
        for number in range(1200):
            for k, data in enumerate(pair):
                made.writestr(f"{number}/{k}", data.replace(b".1000000", b".%07d" % (1000000 + number)))
        for path in write_series(tmp_path / "two", worlds.body(1, (5, 6, 6)).voxels, worlds.body(1).affine, series="5"):
            made.write(path, f"last/{path.name}")
    found = offered(tmp_path / "many.zip", 1 << 30)
    assert isinstance(found, Offer)
    assert (len(found.choices), found.more, found.broken) == (offers.MOST, 1001, 0)
    assert len({choice.name for choice in found.choices}) == offers.MOST
    assert found.choices[0].shape[0] == 5, "the one that is meant comes first"
    np.testing.assert_array_equal(
        io.read(f"{tmp_path / 'many.zip'}#{found.choices[0].name}").voxels, worlds.body(1, (5, 6, 6)).voxels
    )


def test_what_is_unpacked_lies_beside_the_archive_so_it_goes_with_it(tmp_path, monkeypatch):
    """A reader that is killed removes nothing itself."""
    places = []
    monkeypatch.setattr(
        reader, "read_upload", lambda path, cap, name: places.append(tempfile.mkdtemp()) or Offer((), 0, 0)
    )
    monkeypatch.setattr("ctfoundry.ingest.workers.limit_memory", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(tempfile, "tempdir", None)
    ours, theirs = multiprocessing.Pipe()
    ours.send((tmp_path / "000000", 1, None))
    ours.close()
    reader._serve(theirs, 1)
    assert [Path(place).parent for place in places] == [tmp_path]


def zipped(**members):
    stream = streams.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, path in members.items():
            made.write(path, f"{name}.nii.gz")
    return stream.getvalue()


def test_other_formats_and_label_maps(tmp_path):
    from ctfoundry.volume import Volume

    ct, other = worlds.body(0, (6, 20, 22)), worlds.body(1, (5, 20, 22))
    io.write(ct, tmp_path / "ct.nii.gz")
    io.write(other, tmp_path / "other.nii.gz")
    io.write(Volume((ct.voxels > 0).astype(np.uint8), ct.affine, "label"), tmp_path / "mask.nii.gz")
    place = tmp_path / "sent"
    place.write_bytes(zipped(ct=tmp_path / "ct.nii.gz", mask=tmp_path / "mask.nii.gz"))
    name = offered(place, 1 << 30)
    assert isinstance(name, str), "a scan and what was drawn on it: there is nothing to choose"
    np.testing.assert_array_equal(io.read(f"{place}#{name}").voxels, ct.voxels)
    place.write_bytes(zipped(ct=tmp_path / "ct.nii.gz", other=tmp_path / "other.nii.gz"))
    found = offered(place, 1 << 30)
    assert isinstance(found, Offer)
    assert [(c.shape[0], c.modality, c.detail) for c in found.choices] == [(6, "nifti", ()), (5, "nifti", ())]
    place.write_bytes(zipped(ct=tmp_path / "ct.nii.gz"))
    assert offered(place, 1 << 30) is None
    assert offered(tmp_path / "ct.nii.gz", 1 << 30) is None


def test_archives_of_pieces_are_refused_in_few_words(tmp_path):
    """`io.read` would list them all by UID."""
    flat = worlds.body(0, (1, 6, 6))
    (path,) = write_series(tmp_path / "one", flat.voxels, flat.affine, series="777")
    with zipfile.ZipFile(tmp_path / "sent", "w") as made:
        for number in range(20):
            made.writestr(f"Doe/{number}", path.read_bytes().replace(b".777", b".%03d" % (777 + number)))
    with pytest.raises(NotAScanError, match="holds 20 single slices, each of another series"):
        offered(tmp_path / "sent", 1 << 30)
    with zipfile.ZipFile(tmp_path / "sent", "w") as made:
        for number in range(3):
            files = write_series(
                tmp_path / f"{number}", worlds.body(number, (6, 6, 6)).voxels, worlds.body(0).affine, series=f"{number}"
            )
            for path in (*files[:2], *files[3:]):
                made.write(path, f"Doe/{number}/{path.name}")
    with pytest.raises(NotAScanError, match="holds 3 volumes, of which none can be opened: 3 are damaged"):
        offered(tmp_path / "sent", 1 << 30)


@pytest.mark.parametrize(
    ("kernel", "shown"),
    [("B30f", True), ("FC08", True), ("Br40d\\3", True), ("LUNG", True), ("SMITH", False), ("J Doe", False), ("B30f" * 9, False), ("", False)],
)  # fmt: skip
def test_only_known_kernels_are_shown(kernel, shown):
    assert bool(offers.KERNELS.fullmatch(kernel.split("\\")[0])) is shown
