"""The page in a real browser: open, click, result, switches, a link, a file; nothing from elsewhere, nothing on the console."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import urlsplit

import pytest

import skips
import worlds
from ctfoundry import io
from serve import chromium
from serve.conftest import TOKEN, archive, build

SETTLED = "document.querySelectorAll('#planes .busy').length === 0"
SEARCHED = "document.querySelector('#state').textContent.startsWith('Searched')"
SPREAD = """(canvas => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let seen = new Set(); for (let i = 0; i < d.length; i += 4) seen.add(d[i] << 16 | d[i+1] << 8 | d[i+2]); return seen.size; })"""


@pytest.fixture(scope="module")
def browser():
    path = chromium.program()
    if path is None:
        pytest.skip(skips.CHROMIUM_ABSENT)
    return path


@pytest.fixture
def page(browser, served):
    with chromium.Page(browser) as page:
        page.open(f"{served.url}/?token={TOKEN}")
        yield page
        assert page.problems == []
        assert {urlsplit(url).netloc for url in page.requests if url.startswith("http")} == {f"127.0.0.1:{served.port}"}
        assert not any(TOKEN in url for url in page.requests[1:])


def enter(page, name):
    page.run(f"void (location.hash = '#scan={name}')")
    page.wait(f"document.title.startsWith('{name.removeprefix('scan-')[:8]}') && {SETTLED}")
    page.wait("document.querySelectorAll('#neighbours .neighbour').length > 0")


def middle(page, plane="axial"):
    x, y, w, h = page.run(
        f"(b => [b.x, b.y, b.width, b.height])(document.querySelector('#planes canvas[data-plane={plane}]').getBoundingClientRect())"
    )
    return x + w / 2, y + h / 2


def test_from_the_list_to_the_same_place_in_another_scan(page, index, tmp_path):
    page.wait("document.querySelectorAll('.card').length === 4 && !document.querySelector('.picture.busy')")
    assert page.run("location.search") == ""  # the token is out of the address
    assert "token" not in page.run("document.cookie")
    enter(page, index.names[0])
    for plane in ("axial", "coronal", "sagittal"):
        assert page.run(f"{SPREAD}(document.querySelector('canvas[data-plane={plane}]'))") > 50
    x, y = middle(page)
    page.click(x - 20, y + 10)
    page.wait(SEARCHED)
    assert page.run("document.querySelectorAll('.hit').length") == 4
    assert page.run("document.querySelector('.hit .tag').textContent") == "sought"
    similar = page.run("[...document.querySelectorAll('.hit .number')].map(e => +e.textContent)")
    assert similar == sorted(similar, reverse=True)
    page.wait("[...document.querySelectorAll('.hit canvas')].slice(0, 6).every(c => c.width > 50)")
    page.wait(f"{SPREAD}(document.querySelectorAll('.hit canvas')[3]) > 20")
    plain = page.run(f"{SPREAD}(document.querySelector('canvas[data-plane=axial]'))")
    page.key("h")
    page.wait(f"{SPREAD}(document.querySelector('canvas[data-plane=axial]')) > {plain} + 20")
    assert len(page.screenshot(tmp_path / "found.png")) > 20_000
    # jump into the best other scan: its heat map lies over it, and the address leads back here
    link = page.run(
        "(document.querySelectorAll('.hit button')[1].click(), document.querySelectorAll('.hit')[1].dataset.scan)"
    )
    page.wait(f"location.hash.includes('scan={link}') && {SETTLED}")
    page.wait("location.hash.includes('show=heat') && location.hash.includes('from=')")
    page.wait(f"document.querySelector('.hit.current')?.dataset.scan === '{link}'")


def test_a_link_shows_the_same_again(page, served, index):
    enter(page, index.names[1])
    page.click(*middle(page, "coronal"))
    page.wait(SEARCHED)
    page.key("2")
    page.wait("location.hash.includes('window=-600,1500')")
    address = page.run("location.hash")
    shown = page.run("document.querySelector('#reading').textContent")
    page.run("void (location.hash = '')")
    page.wait("!document.querySelector('#gallery').hidden && document.querySelectorAll('.card').length === 4")
    page.call("Page.navigate", url="about:blank")
    page.open(f"{served.url}/{address}")
    page.wait(f"{SETTLED} && {SEARCHED}")
    point = shown.split("(")[1].split(")")[0]
    page.wait("document.querySelector('#reading').textContent.includes('W 1500 C -600')")
    again = page.run("document.querySelector('#reading').textContent").split("(")[1].split(")")[0]
    assert [float(v) for v in again.split(",")] == pytest.approx([float(v) for v in point.split(",")], abs=0.11)
    assert page.run("location.hash") == address


def test_the_number_under_the_pointer_is_the_voxels(page, index):
    volume = io.read(index.files[2]).reorient("SPL")
    enter(page, index.names[2])
    page.run("document.querySelector('#onclick').checked = false")
    for dx, dy in ((-30, -25), (15, 22), (0, 0)):
        x, y = middle(page)
        page.click(x + dx, y + dy)
        told = page.run("document.querySelector('#reading').textContent")
        value, place = float(told.split(" HU")[0]), [float(v) for v in told.split("(")[1].split(")")[0].split(",")]
        k, j, i = (round(v) for v in volume.index(place))
        assert value == volume.voxels[k, j, i]
    # the patient's right is on the left, the front is up
    left, right = (at(page, dx, 0) for dx in (-40, 40))
    assert left[0] > right[0]
    up, down = (at(page, 0, dy) for dy in (-40, 40))
    assert up[1] > down[1]
    top, bottom = (at(page, 0, dy, "coronal") for dy in (-20, 20))
    assert top[2] > bottom[2]


def at(page, dx, dy, plane="axial"):
    x, y = middle(page, plane)
    page.mouse("mouseMoved", x + dx, y + dy)
    return [
        float(v)
        for v in page.run("document.querySelector('#reading').textContent").split("(")[1].split(")")[0].split(",")
    ]


def test_wheel_drag_and_keys(page, index):
    enter(page, index.names[0])
    page.run("document.querySelector('#onclick').checked = false")
    x, y = middle(page)
    start = at(page, 0, 0)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=120)
    page.wait(
        f"Math.abs(+document.querySelector('#reading').textContent.split('(')[1].split(')')[0].split(',')[2] - ({start[2]} - 6)) < 0.2"
    )
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    page.mouse("mouseMoved", x + 40, y, button="left", buttons=1)
    page.mouse("mouseReleased", x + 40, y, button="left", clickCount=1)
    assert page.run("[...document.querySelectorAll('#presets [aria-pressed=true]')].length") == 0
    page.key("4")
    assert page.run("document.querySelector('#presets [aria-pressed=true]').textContent") == "Bone"
    page.key("?")
    assert page.run("document.querySelector('#keys').open")
    page.run("document.querySelector('#keys').close()")
    light = page.run("getComputedStyle(document.body).backgroundColor")
    page.theme("dark")
    dark = page.run("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, light[4:-1].split(","))) > 600 > 200 > sum(map(int, dark[4:-1].split(",")))
    page.key("t")  # light, whatever the system says
    assert page.run("getComputedStyle(document.body).backgroundColor") == light
    page.key("Escape")
    page.wait("!document.querySelector('#gallery').hidden")


def drop(page, data, name):
    """Give a file to the page as a person does."""
    code = json.dumps(base64.b64encode(data).decode())
    page.run(
        f"""(() => {{ const held = new DataTransfer();
        held.items.add(new File([Uint8Array.from(atob({code}), c => c.charCodeAt(0))], '{name}'));
        const input = document.querySelector('#file'); input.files = held.files; input.dispatchEvent(new Event('change')); }})()"""
    )


def test_an_archive_with_several_scans_asks_which(page, served, index, tmp_path):
    data, volumes = archive(tmp_path)
    enter(page, index.names[0])
    page.click(*middle(page))
    page.wait(SEARCHED)
    drop(page, data, "Doe Jane.zip")
    page.wait("document.querySelector('#offers').open")
    rows = page.run("[...document.querySelectorAll('.offer')].map(e => e.innerText.replace(/\\s+/g, ' ').trim())")
    assert rows == [
        "9 slices axial 0.8 × 0.8 × 2 mm 30 × 28 CT",
        "6 slices axial 0.8 × 0.8 × 3 mm 30 × 28 CT, kernel B30f",
        "4 slices coronal 1 × 1 × 5 mm 30 × 28 CT, kernel STANDARD",
    ]
    assert "1 is not listed: damaged, or with slices missing. The archive waits 3 minutes" in page.run(
        "document.querySelector('#offer-note').textContent"
    )
    for size, scheme in (((1280, 800), "light"), ((900, 700), "dark"), ((420, 700), "dark")):
        page.size(*size)
        page.theme(scheme)
        page.screenshot(tmp_path / f"offer-{scheme}-{size[0]}.png")
        wide, room = page.run("(e => [e.scrollWidth, e.clientWidth])(document.querySelector('#offered'))")
        assert wide <= room, size
    page.size(1280, 800)
    before = page.run("document.querySelector('#planes canvas').ariaLabel + location.hash")
    page.key("ArrowDown")  # chooses another scan, not another slice of what is open behind
    assert page.run("document.querySelector('.offer :checked').value") == "1"
    assert page.run("document.querySelector('#planes canvas').ariaLabel + location.hash") == before
    page.key("Enter")
    page.wait(f"location.hash.startsWith('#scan=upload-') && {SETTLED}")
    assert not page.run("document.querySelector('#offers').open")
    id = page.run("location.hash.slice(6).split('&')[0]")
    assert tuple(page.run(f"fetch('/api/scans/{id}').then(a => a.json()).then(f => f.shape)")) == volumes[0].shape
    # nobody chooses: the archive goes, the page stays as it is
    drop(page, data, "Doe Jane.zip")
    page.wait("document.querySelector('#offers').open")
    page.key("Escape")
    page.wait("!document.querySelector('#offers').open && !document.querySelector('#upload').disabled")
    assert f"scan={id}" in page.run("location.hash")
    assert page.run("document.querySelectorAll('.hit').length") == 0, "an answer to another scan is none to this one"
    end = time.monotonic() + 20
    while [status for status, url in page.answers if "/api/uploads/" in url] != [200, 200]:  # the choice, and this
        assert time.monotonic() < end, page.answers
        page.run("0")
    with served.client() as client:
        client.delete(f"/api/scans/{id}")


NOTICES = "[...document.querySelectorAll('.notice')].map(e => e.innerText.replace(/\\s+/g, ' ').replace(' ✕', ''))"


def test_a_scan_that_is_gone_or_has_changed_says_so_everywhere(browser, serve, tmp_path):
    small = build(tmp_path, worlds.tiny())
    small.files[0].unlink()
    small.files[1].write_bytes(b"broken")
    small.files[2].write_bytes(small.files[3].read_bytes())
    served = serve(folder=small.folder)
    gone, changed = "Its file is gone.", "Its file has changed since it was embedded."
    with chromium.Page(browser) as page:
        page.open(f"{served.url}/?token={TOKEN}")
        page.wait("document.querySelectorAll('.picture.none').length === 3 && !document.querySelector('.picture.busy')")
        said = page.run(
            "[...document.querySelectorAll('.card')].map(e => [e.title, e.querySelector('.none')?.innerText, e.disabled])"
        )
        assert said == [
            *([n, t, True] for n, t in zip(small.names, (gone, changed, changed), strict=False)),
            [small.names[3], None, False],
        ]
        # a link to one: a notice that names it, once; it goes with the next view
        for name in (small.names[0], small.names[0], small.names[1]):
            page.run(f"void (location.hash = '#scan={name}')")
            page.wait(f"({NOTICES})[0]?.includes('{name[5:13]}') && !document.querySelector('#gallery').hidden")
            assert len(page.run(NOTICES)) == 1
        assert page.run(NOTICES) == [f"Scan {small.names[1][5:13]}: {changed} Embed it again."]
        enter(page, small.names[3])
        assert page.run(NOTICES) == []
        page.wait("document.querySelectorAll('.neighbour:disabled').length === 3")
        # searches and colours do without them
        page.click(*middle(page))
        page.wait(SEARCHED)
        assert "There is no other scan to search in." in page.run("document.querySelector('#hits').innerText")
        plain = page.run(f"{SPREAD}(document.querySelector('canvas[data-plane=axial]'))")
        page.key("c")
        page.wait(f"{SPREAD}(document.querySelector('canvas[data-plane=axial]')) > {plain} + 20")
        # options are not broken after their hyphens
        page.size(330, 700)
        page.run(f"void (location.hash = '#scan={small.names[0]}')")
        page.wait(f"({NOTICES}).length === 1")
        assert page.run(
            "(e => [e.innerText, e.getClientRects().length])(document.querySelector('.notice .option'))"
        ) == ["--scans FOLDER", 1]
        assert all("410" in problem for problem in page.problems)  # the browser tells of every refused request


def test_colours_a_file_and_an_error(page, index, tmp_path):
    enter(page, index.names[0])
    plain = page.run(f"{SPREAD}(document.querySelector('canvas[data-plane=axial]'))")
    page.key("c")
    page.wait(f"{SPREAD}(document.querySelector('canvas[data-plane=axial]')) > {plain} + 20")
    for size in ((400, 800), (820, 1180), (900, 700), (1280, 800)):
        page.size(*size)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
    io.write(worlds.body(9, shape=(8, 30, 32)), tmp_path / "new.nii.gz")
    for name, data in (("wrong", b"no scan"), ("new", (tmp_path / "new.nii.gz").read_bytes())):
        drop(page, data, f"{name}.nii.gz")
        if name == "wrong":
            page.wait("document.querySelector('.notice')?.textContent.includes('no NIfTI')")
            page.run("document.querySelector('.notice button').click()")
            page.problems[:] = [
                p for p in page.problems if "400" not in p
            ]  # the browser tells of every refused request
    page.wait(f"location.hash.startsWith('#scan=upload-') && {SETTLED}")
    page.wait("document.querySelectorAll('#neighbours .neighbour').length === 4")  # embedded for this
    page.key("Escape")
    page.wait("document.querySelector('.carded')?.textContent.includes('this session')")
    page.wait("!document.querySelector('.carded .busy')")
    page.run("document.querySelector('.carded > .quiet').click()")
    page.wait("document.querySelectorAll('.card').length === 4 && !document.querySelector('.carded')")
