"""Requests that mean harm, or are merely too much: each gets a short answer that says what is wrong, and the app goes on."""

from __future__ import annotations

import gzip
import http.client
import io as streams
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest

import worlds
from ctfoundry import io, zoo
from ctfoundry.errors import TooLargeError
from ctfoundry.io import zip_directory
from ctfoundry.io.dicom_write import write_series
from ctfoundry.serve import library, opening
from ctfoundry.serve.guard import CSP, Guard
from ctfoundry.serve.reader import Reader
from ctfoundry.serve.uploads import Limits, SlowError
from ctfoundry.volume import Volume
from serve.conftest import TOKEN, build

KNOWN = {"authorization": f"Bearer {TOKEN}"}


def ask(served, method, path, headers=None, body=None, host=None):
    """One request as it is written, with nothing tidied up: (status, headers, body)."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host or f"127.0.0.1:{served.port}")
    for key, value in (headers or {}).items():
        connection.putheader(key, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    connection.close()
    return found


def refused(found, status):
    """The answer is a refusal in JSON that gives no code, no traceback and no path away."""
    assert found[0] == status, found
    error = json.loads(found[2])["error"]
    assert error["what"]
    assert not any(word in found[2].decode() for word in ("Traceback", ".py", "/tmp", "site-packages"))
    return error


# Who may ask ------------------------------------------------------------------------------------------------------------


def test_nobody_gets_in_without_the_token(served, index):
    for path in ("/api/state", "/api/scans", f"/api/scans/{index.names[0]}", "/api/jobs/x/events", "/nowhere"):
        refused(ask(served, "GET", path), 401)
        refused(ask(served, "GET", path, {"authorization": f"Bearer {TOKEN}x"}), 401)
        refused(ask(served, "GET", path, {"cookie": f"ctfoundry-{served.port}={TOKEN}"}), 401)
    status, headers, body = ask(served, "GET", "/")
    assert status == 401
    assert b"token" in body
    assert "set-cookie" not in headers
    assert ask(served, "GET", f"/?token={TOKEN}x")[0] == 401
    assert ask(served, "GET", f"/api/state?token={TOKEN}")[0] == 401  # only the page itself takes it from the address


def test_the_address_gives_a_cookie_that_scripts_cannot_read(served):
    status, headers, body = ask(served, "GET", f"/?token={TOKEN}")
    assert (status, TOKEN in headers["set-cookie"], TOKEN.encode() in body) == (200, False, False)
    parts = [part.strip() for part in headers["set-cookie"].split(";")]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(parts)
    assert ask(served, "GET", "/api/state", {"cookie": f"a=b; {parts[0]}"})[0] == 200


def test_every_answer_tells_the_browser_to_be_careful(served, index):
    paths = ("/", "/api/state", "/nowhere", "/static/main.js", f"/api/scans/{index.names[0]}/thumb", "/api/scans/none")
    answers = [ask(served, "GET", path, KNOWN) for path in paths]
    answers += [ask(served, "GET", "/"), ask(served, "GET", "/", host="evil.example"), ask(served, "PUT", "/", KNOWN)]
    for _, headers, _ in answers:
        assert headers["content-security-policy"] == CSP
        assert "unsafe" not in CSP
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "127.0.0.1@evil.example", "localhost.:{port}",
    "127.0.0.1:{port}/x", "127.0.0.1:port", "[::1", " ", "0.0.0.0:{port}", "2130706433",
])  # fmt: skip
def test_foreign_hosts_are_refused(served, host):
    """DNS rebinding: another site's name points here, and its page asks under that name."""
    refused(ask(served, "GET", "/api/state", KNOWN, host=host.format(port=served.port)), 421)


def test_loopback_names_are_served_under_any_port(served):
    for host in (f"localhost:{served.port}", "127.0.0.1:9999", "[::1]:80"):  # a tunnel may have another port
        assert ask(served, "GET", "/api/state", KNOWN, host=host)[0] == 200
    with socket.create_connection(("127.0.0.1", served.port), 10) as line:
        line.sendall(b"GET /api/state HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 400 " in line.recv(100) or b" 421 " in line.recv(100)


@pytest.mark.parametrize("origin", [
    None, "null", "http://evil.example", "http://127.0.0.1:1", "http://localhost:{port}", "http://127.0.0.1:{port}.evil.example", "file://127.0.0.1:{port}",
])  # fmt: skip
def test_other_sites_change_nothing(served, origin):
    headers = KNOWN | ({} if origin is None else {"origin": origin.format(port=served.port)})
    for method, path in (("POST", "/api/jobs"), ("POST", "/api/uploads"), ("DELETE", "/api/scans/x")):
        refused(ask(served, method, path, headers | {"content-type": "application/json"}, b"{}"), 403)


def test_other_sites_read_nothing(served, index):
    for site in ("cross-site", "same-site"):
        headers = KNOWN | {"sec-fetch-site": site, "sec-fetch-mode": "no-cors"}
        refused(ask(served, "GET", f"/api/scans/{index.names[0]}/thumb", headers), 403)
    opened = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}  # a link in another page may open the app
    assert ask(served, "GET", f"/?token={TOKEN}", opened)[0] == 200


# Ids and numbers --------------------------------------------------------------------------------------------------------

PLACES = (
    "..", "../..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "..%5c..%5c", "scan-%00", "%252e%252e%252f", "/etc/passwd",
    "private.json", "index.parquet", "a" * 5000, "%ff%fe", "scan-*", "'; drop table", "{{7*7}}",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_ids_are_never_paths(served, place):
    place = place.replace(" ", "%20").replace("'", "%27")
    for path in (
        f"/api/scans/{place}",
        f"/api/scans/{place}/thumb",
        f"/static/{place}",
        f"/api/jobs/{place}/heat/x",
        f"/{place}",
    ):
        found = ask(served, "GET", path, KNOWN)
        assert found[0] in (404, 405), (path, found)
        refused(found, found[0])
        assert b"root:" not in found[2]


@pytest.mark.parametrize("query", [
    "plane=axial&first=-1", "plane=axial&first=0&count=65", "plane=axial&first=19&count=2", "plane=axial&first=9999999999999",
    "plane=diagonal&first=0", "plane=axial&first=0&step=0", "plane=axial&first=x", "first=0", "plane=axial&first=1e3", "",
])  # fmt: skip
def test_slices_that_are_not_there(served, index, query):
    found = ask(served, "GET", f"/api/scans/{index.names[0]}/slices?{query}", KNOWN)
    refused(found, 422 if found[0] == 422 else 400)


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'{"kind": "shell", "scan": "x"}', b'{"kind": "search"}', b"[" * 100_000, b"\xff\xfe",
    b'{"kind": "search", "scan": "SCAN"}', b'{"kind": "search", "scan": "SCAN", "point": [1, 2]}',
    b'{"kind": "search", "scan": "SCAN", "point": [NaN, 0, 0]}', b'{"kind": "search", "scan": "SCAN", "point": [1e300, 0, 0]}',
    b'{"kind": "search", "scan": "SCAN", "point": [0, 0, 0], "targets": ["../x"]}',
    b'{"kind": "search", "scan": "SCAN", "point": [0, 0, 0], "path": "/etc/passwd"}',
])  # fmt: skip
def test_requests_for_work_that_make_no_sense(served, index, body):
    body = body.replace(b"SCAN", index.names[0].encode())
    headers = KNOWN | {"origin": served.url, "content-type": "application/json"}
    found = ask(served, "POST", "/api/jobs", headers, body)
    refused(found, 404 if found[0] == 404 else 400)
    refused(ask(served, "POST", "/api/jobs", headers | {"content-type": "text/plain"}, body), 400)


def test_a_point_outside_the_scan_ends_the_job_with_its_reason(served, index):
    events = served.job(kind="search", scan=index.names[0], point=[5000, 0, 0])
    assert events[-1]["type"] == "error"
    assert "outside" in events[-1]["what"]


def test_an_error_that_nobody_foresaw_is_not_shown(serve, index):
    class Broken:
        def __getattr__(self, name):
            return getattr(worlds.tiny(), name)

        def __call__(self, *arguments, **options):
            raise ZeroDivisionError("secret of /private/path")

    served = serve(encoder=Broken())
    events = served.job(kind="colours", scan=index.names[0])
    assert events[-1]["type"] == "error"
    assert "secret" not in str(events)
    assert [type(e) for e in served.reported] == [ZeroDivisionError]
    with served.client() as client:  # the thread lives on
        client.post("/api/jobs", json={"kind": "colours", "scan": index.names[1]})
    assert len(served.job(kind="colours", scan=index.names[1])) > 1


# Files ------------------------------------------------------------------------------------------------------------------


def send(served, data, **headers):
    return ask(served, "POST", "/api/uploads", KNOWN | {"origin": served.url} | headers, data)


def nifti(tmp_path, volume):
    io.write(volume, tmp_path / "upload.nii.gz")
    return (tmp_path / "upload.nii.gz").read_bytes()


def zipped(folder, name=lambda path: f"series/{path.name}"):
    stream = streams.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, name(path))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_a_file_is_read_kept_in_memory_and_forgotten(served, index, tmp_path, temporary, kind):
    volume = worlds.body(7, shape=(12, 40, 44))
    if kind == "nifti":
        data = nifti(tmp_path, volume)
    else:
        write_series(tmp_path / "series", volume.voxels, volume.affine)
        data = zipped(tmp_path / "series")
    status, _, body = send(served, data)
    assert status == 200, body
    id = json.loads(body)["id"]
    assert list(temporary.iterdir()) == []
    with served.client() as client:
        assert client.get("/api/scans").json()["scans"][0]["id"] == id
        got = np.frombuffer(client.get(f"/api/scans/{id}/slices?plane=axial&first=5").content, "<i2")
        np.testing.assert_array_equal(got.reshape(40, 44), volume.voxels[5])
        job = client.post(f"/api/scans/{id}/similar?k=2").json()["job"]
        neighbours = next(e for e in served.events(job) if e["type"] == "neighbours")["neighbours"]
        assert [n["id"] for n in neighbours] == [
            n.id for n in served.engine.index.nearest(worlds.tiny()(volume).vector, 2)
        ]
        assert client.post(f"/api/scans/{id}/similar?k=2").json() == {"neighbours": neighbours}
        assert client.request("DELETE", f"/api/scans/{id}").status_code == 200
        assert client.get(f"/api/scans/{id}").status_code == 404
        assert client.request("DELETE", f"/api/scans/{index.names[0]}").status_code == 404  # only uploads can go
    assert not any(id in str(key) for key in served.engine.memory._kept)


def test_what_the_page_calls_a_file_is_not_taken(serve, tmp_path, temporary):
    served = serve()
    data = nifti(tmp_path, worlds.body(7, shape=(6, 20, 22)))
    name = "../../../../tmp/evil.nii.gz"
    status, _, body = send(served, data, **{"content-disposition": f'attachment; filename="{name}"', "x-name": name})
    assert (status, b"evil" in body) == (200, False)
    assert list(temporary.iterdir()) == []


def bomb():
    stream = streams.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.nii", bytes(8 << 20))
    return stream.getvalue()


def huge_header(size=(32000, 32000, 32000)):
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, 3, *size, 1, 1, 1, 1)
    struct.pack_into("<2h", head, 70, 4, 16)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", head, 108, 352)
    head[344:348] = b"n+1\0"
    return bytes(head)


def evil_zip(name):
    stream = streams.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, huge_header((2, 2, 2)) + bytes(16))
    return stream.getvalue()


LABELS = Volume(np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3, worlds.body(0).affine, "label")
HOSTILE = {
    "nothing": lambda _: b"",
    "text": lambda _: b"hello" * 100,
    "page": lambda _: b"<html><script>alert(1)</script></html>",
    "pickle": lambda _: b"\x80\x04cos\nsystem\n(S'touch /tmp/pwned'\ntR.",
    "zip bomb": lambda _: bomb(),
    "zip with nothing": lambda _: evil_zip("readme.txt")[:40],
    "zip that climbs": lambda _: evil_zip("../../evil.nii"),
    "zip with root": lambda _: evil_zip("/etc/evil.nii"),
    "nifti bomb": lambda _: huge_header(),
    "packed nifti bomb": lambda _: gzip.compress(huge_header() + bytes(1 << 20)),
    "cut nifti": lambda folder: nifti(folder, worlds.body(1))[:3000],
    "labels": lambda folder: nifti(folder, LABELS),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_files_that_are_no_scan_are_refused_and_leave_nothing(served, tmp_path, temporary, what, monkeypatch):
    monkeypatch.setattr(zip_directory, "SMALL", 1 << 20)  # a bomb that is quickly made
    found = send(served, HOSTILE[what](tmp_path))
    refused(found, 413 if found[0] == 413 else 400)
    assert list(temporary.iterdir()) == []
    with served.client() as client:
        assert all(s["state"] == "ready" for s in client.get("/api/scans").json()["scans"])


def test_a_file_over_the_limit_is_refused_before_and_while_it_comes(serve, temporary):
    served = serve(limits=Limits(file_bytes=100_000))
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest("POST", "/api/uploads")
    for key, value in (KNOWN | {"origin": served.url, "content-length": str(1 << 40)}).items():
        connection.putheader(key, value)
    connection.endheaders()  # and not a byte of the body
    answer = connection.getresponse()
    refused((answer.status, {}, answer.read()), 413)
    connection.close()

    # without a length: in pieces, for ever
    line = socket.create_connection(("127.0.0.1", served.port), 20)
    head = f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    line.sendall(head.encode())
    sent = 0
    try:
        while sent < 50 << 20:
            line.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            sent += 1 << 16
    except OSError:  # the server hung up
        pass
    assert sent < 50 << 20
    line.close()
    for path in ("/api/jobs",):
        headers = KNOWN | {"origin": served.url, "content-type": "application/json"}
        refused(ask(served, "POST", path, headers, b" " * (2 << 20)), 413)
    assert list(temporary.iterdir()) == []


def test_a_file_that_stops_coming_is_given_up(serve, temporary):
    served = serve(limits=Limits(silence_s=0.3))
    with socket.create_connection(("127.0.0.1", served.port), 10) as line:
        head = f"POST /api/uploads HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 5000\r\n\r\nab"
        line.sendall(head.encode())
        assert b" 408 " in line.recv(200)
    assert list(temporary.iterdir()) == []


def test_uploads_have_an_end(serve, tmp_path):
    served = serve(limits=Limits(scans=2))
    data = nifti(tmp_path, worlds.body(7, shape=(6, 20, 22)))
    assert [send(served, data)[0] for _ in range(3)] == [200, 200, 409]
    # the browser lost the connection in the middle
    small = serve(limits=Limits(voxel_bytes=1000))
    refused(send(small, data), 413)


def test_a_reader_that_hangs_or_dies_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "hangs")  # nobody ever writes to it
    volume, reader = worlds.body(7, shape=(6, 20, 22)), Reader()
    nifti(tmp_path, volume)
    try:
        np.testing.assert_array_equal(reader.read(tmp_path / "upload.nii.gz", 1 << 24, 200).voxels, volume.voxels)
        with pytest.raises(TooLargeError):
            reader.read(tmp_path / "upload.nii.gz", 100, 200)
        killed = reader._process
        assert killed is not None
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        with pytest.raises(SlowError, match="too long"):
            reader.read(tmp_path / "hangs", 1 << 24, 0.5)
        assert reader._process is None
    finally:
        reader.close()


# Many, and slow ---------------------------------------------------------------------------------------------------------


def test_fifty_clients_at_once(serve, index, monkeypatch):
    reads = []
    monkeypatch.setattr(library, "shown", lambda volume, of=library.shown: reads.append(1) or of(volume))
    served = serve()
    centre = served.engine.library.scan(index.names[0]).centre
    start = threading.Barrier(50)

    def visit(number):
        name = index.names[number % 2]
        with served.client() as client:
            start.wait(20)
            facts = client.get(f"/api/scans/{name}")
            planes = [
                client.get(f"/api/scans/{name}/slices?plane={p}&first=4&count=4")
                for p in ("axial", "coronal", "sagittal")
            ]
            thumb = client.get(f"/api/scans/{name}/thumb")
            codes = [a.status_code for a in (facts, *planes, thumb)]
            if number % 10 == 0:
                codes.append(
                    client.post(
                        "/api/jobs", json={"kind": "search", "scan": index.names[0], "point": centre}
                    ).status_code
                )
            return name, codes, b"".join(p.content for p in planes)

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(visit, range(50)))
    assert all(set(codes) == {200} for _, codes, _ in found)
    assert len({(name, data) for name, _, data in found}) == 2
    assert len(reads) <= len(index.names)  # each scan once, however many asked


def test_who_does_not_read_keeps_nobody_waiting(served, index):
    slow = []
    for _ in range(8):
        line = socket.create_connection(("127.0.0.1", served.port), 10)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        path = f"/api/scans/{index.names[0]}/slices?plane=axial&first=0&count=20"
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        slow.append(line)
    half = socket.create_connection(("127.0.0.1", served.port), 10)
    half.sendall(b"GET / HTTP/1.1\r\nHos")
    with served.client() as client:
        for name in index.names:
            assert client.get(f"/api/scans/{name}").status_code == 200
    for line in (*slow, half):
        line.close()


def test_nothing_is_logged_and_nothing_written(serve, index, capfd, tmp_path, temporary):
    before = sorted(p for p in index.folder.rglob("*"))
    stamps = [p.stat().st_mtime_ns for p in before if p.is_file()]
    served = serve()
    ask(served, "GET", f"/?token={TOKEN}")
    ask(served, "GET", "/nowhere/patient-name", KNOWN)
    send(served, nifti(tmp_path, worlds.body(7, shape=(6, 20, 22))))
    served.job(kind="colours", scan=index.names[0])
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert sorted(p for p in index.folder.rglob("*")) == before
    assert [p.stat().st_mtime_ns for p in before if p.is_file()] == stamps
    assert list(temporary.iterdir()) == []


def test_a_crash_is_reported_without_what_it_says(capsys):
    report = opening.reporter(debug=False)
    try:
        raise ValueError("/home/somebody/scan.nii")
    except ValueError as error:
        report(error)
    assert "somebody" not in capsys.readouterr().err


def test_the_guard_takes_plain_http_only():
    guard = Guard(None, token="t" * 16, cookie="c", names=["localhost"], public=[], refusal=b"", report=print)
    import asyncio

    asyncio.run(guard({"type": "websocket"}, None, None))  # nothing is accepted, nothing raised


def test_few_files_come_at_one_time(serve, tmp_path):
    served = serve(limits=replace(Limits(), at_once=0))
    refused(send(served, nifti(tmp_path, worlds.body(7, shape=(6, 20, 22)))), 409)


def test_the_verb_prints_an_address_that_opens_and_ends_on_request(tmp_path):
    small = build(tmp_path, zoo.load_encoder("ct-fm-tiny", weights="random", device="cpu", seed=0), count=1)
    command = [sys.executable, "-m", "ctfoundry", "serve", "--index", small.folder, "--model", "ct-fm-tiny"]
    refused = subprocess.run([*command, "--weights", "random", "--token", "short"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "16 characters" in refused.stderr
    process = subprocess.Popen(
        [*command, "--weights", "random", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    address = process.stdout.readline().strip()
    assert httpx.get(address, trust_env=False).status_code == 200
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
