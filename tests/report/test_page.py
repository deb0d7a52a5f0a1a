"""A page is one inert, well-formed, self-contained file."""

from __future__ import annotations

import base64
import functools
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ctfoundry import geometry
from ctfoundry.errors import UsageError
from ctfoundry.report import charts, page, planes
from ctfoundry.report.text import visible
from ctfoundry.volume import Volume

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</style><style>@import url(http://evil.example/x.css)</style>",
    "</title><base href='http://evil.example/'>",
    "{{ 7 * 7 }} {% raw %}",
    "**<b>x</b>** `<i>y</i>` ``",
    "&lt;script&gt; &amp; \x00 \u202e \udc80",
]


class Reader(HTMLParser):
    """Collects elements and text, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(seed: int = 0, size: tuple[int, int] = (60, 180)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.repeat(np.repeat(rng.integers(0, 255, (size[0] // 4, size[1] // 4, 3), np.uint8), 4, 0), 4, 1)


def example(text: str = "plain") -> page.Page:
    """Every kind of section, with `text` wherever text goes."""
    chart = charts.lines({text: ([0, 1], [1, 2])}, xlabel=text, ylabel=text, title=text)
    sections: list[page.Section] = [
        page.Prose(f"{text}\n\nsecond **strong** `code`"),
        page.Numbers([(text, text), ("41", "patients")]),
        page.Heading(text),
        page.Heading(text, 3),
        page.Heading(text, 4),
        page.Table([text, "n"], [[text, 1], ["b", None], ["c", 2.5]], caption=text, marked=[1]),
        page.Figure(picture(), text, text),
        page.Figure(chart, text, text, stretch=True),
        page.Cards(
            [
                page.Card(picture(n), text, text, {text: text, "": text}, text, tone)
                for n, tone in enumerate(("plain", "accent", "good", "poor"))
            ],
            caption=text,
        ),
        page.Cards([page.Card(chart, text)]),
        page.Callout(text, text, "warning"),
        page.Callout(text),
        page.Facts({text: text}),
        page.Details(
            text, [page.Heading(text), page.Facts({text: text}), page.Details(text, [page.Prose(text)])], True
        ),
    ]
    return page.Page(text, sections, text, text)


@functools.cache
def plain() -> str:
    return page.render(example())


def test_well_formed_and_complete():
    reader = Reader(plain())
    tags = {tag for tag, _ in reader.elements}
    assert {
        "html",
        "head",
        "title",
        "nav",
        "main",
        "table",
        "figure",
        "svg",
        "img",
        "details",
        "aside",
        "footer",
    } <= tags
    words = " ".join(reader.text)
    for part in ("Figure 1.", "Figure 2.", "Figure 3.", "Table 1.", "41", "patients", "Note"):
        assert part in words
    assert "Figure 4." not in words  # cards without a caption take no number


def test_policy_forbids_all_but_what_is_inside():
    reader = Reader(plain())
    policies = [m["content"] for m in reader.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [page.POLICY]
    assert "default-src 'none'" in page.POLICY
    assert "script-src" not in page.POLICY
    head = [tag for tag, _ in reader.elements]
    assert head.index("meta") < head.index("style")


def refuse_loads(text: str) -> None:
    reader = Reader(text)
    for tag, attributes in reader.elements:
        assert tag not in {
            "script",
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "input",
            "foreignobject",
            "i",
            "a-b",
        }
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert "javascript:" not in (value or "") or name in {"alt", "aria-label"}
            if name in {"src", "href", "xlink:href", "action", "srcset", "poster", "data"}:
                assert re.match(r"#|data:image/webp;base64,", value or ""), (tag, name, value)
    styles = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in styles
    assert "@import" not in styles
    assert text.count("<style>") == 1


def test_nothing_is_loaded():
    text = plain()
    refuse_loads(text)
    assert set(re.findall(r"https?://[^\s\"'<]*", text)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_only_text(text: str):
    """Same elements with the same attributes as an innocent page, and the string is read back as text."""
    rendered = page.render(example(text))
    refuse_loads(rendered)
    innocent = Reader(plain())
    reader = Reader(rendered)

    def skeleton(r: Reader) -> list[tuple[str, list[str]]]:
        drawn = {"svg", "g", "path", "defs", "use", "text", "clippath", "rect", "strong", "code"}
        return [(tag, sorted(attributes)) for tag, attributes in r.elements if tag not in drawn]

    assert skeleton(reader) == skeleton(innocent)
    assert all(a["alt"] == visible(text) for a in reader.all("img"))
    if not text.startswith("**"):
        assert visible(text) in reader.text


def test_only_our_drawings_stand_unescaped():
    with pytest.raises(UsageError):
        page.Figure(charts.Svg("<svg><script>x</script></svg>", 1), "", "")
    assert "<b>x" not in page.render(page.Page("<b>x", [page.Prose("**<b>x**")]))


def test_inline_marks():
    text = page.render(page.Page("t", [page.Prose("a **b** `c<d`\n\n\n second\n")]))
    assert "<p>a <strong>b</strong> <code>c&lt;d</code></p>" in text
    assert "<p>second</p>" in text or "<p> second</p>" in text


def test_accessible():
    reader = Reader(plain())
    assert reader.all("html")[0]["lang"] == "en"
    assert all(a.get("alt") for a in reader.all("img"))
    assert all(a.get("scope") in {"col", "row"} for a in reader.all("th"))
    charts_ = [a for a in reader.all("div") if a.get("class") == "chart"]
    assert charts_
    assert all(a.get("role") == "img" and a.get("aria-label") for a in charts_)
    assert len(reader.all("h1")) == 1
    ids = [a["id"] for _, a in reader.elements if "id" in a]
    drawn = {a["id"] for tag, a in reader.elements if tag in {"path", "clippath", "lineargradient"} and "id" in a}
    own = [i for i in ids if i not in drawn]
    assert len(own) == len(set(own))
    links = [a["href"] for a in reader.all("a")]
    assert links
    assert {str(link)[1:] for link in links} <= set(ids)


def luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrast(mode: int):
    """WCAG 2.2 AA: text 4.5 to 1 on every ground it stands on, lines of charts 3 to 1."""
    style = (Path(page.__file__).parent / "style.css").read_text()
    roots = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})\b", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    colours = {
        name: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for name, c in (roots[0] | roots[mode]).items()
    }

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(colours[a]), luminance(colours[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ink in ("ink", "soft", "accent"):
        for ground in ("paper", "card", "tint", "accent-tint" if ink == "ink" else "paper"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    assert contrast("warn", "warn-tint") >= 4.5
    assert contrast("ink", "warn-tint") >= 4.5
    for tone in ("good", "poor"):
        assert contrast(tone, "card") >= 4.5
    for n in range(1, 7):
        assert contrast(f"series-{n}", "paper") >= 3


def test_light_and_dark_print_and_phone():
    text = plain()
    for part in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem", 'name="viewport"'):
        assert part in text


def test_the_same_page_gives_the_same_bytes():
    assert page.render(example()) == plain()


def test_pictures_survive(tmp_path: Path):
    """The embedded picture has the right pixels (WebP is not exact, but near)."""
    from PIL import Image

    original = np.zeros((60, 180, 3), np.uint8)
    original[:, :60] = (200, 30, 30)
    original[:, 60:120] = 128
    text = page.render(page.Page("t", [page.Figure(original, "c", "a")]))
    data = re.search(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", text)
    assert data is not None
    with Image.open(io.BytesIO(base64.b64decode(data.group(1)))) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown - original).mean() < 3
    assert np.abs(shown - original)[:, 10:50].max() < 16


def test_written_whole_and_small(tmp_path: Path):
    """Twenty scans with three planes each stay under 1 MB."""
    rng = np.random.default_rng(0)
    voxels = rng.normal(40, 30, (60, 100, 100)).astype(np.int16)
    voxels[:, :15] = voxels[:, -15:] = -1000
    cards = []
    for n in range(20):
        volume = Volume(np.roll(voxels, n, axis=2), geometry.make_affine((5, 3, 3), "SPL"))
        cards.append(page.Card(planes.three_planes(volume), "three planes", f"scan {n}"))
    size = page.write(tmp_path / "report.html", page.Page("Twenty scans", [page.Cards(cards)]))
    assert size == (tmp_path / "report.html").stat().st_size
    assert size < 1e6
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_alignment_of_columns():
    table = page.Table(["name", "n", "mm", "note"], [["a", 1, "2.5 [1, 3]", "x"], ["1b", None, "−3", "4"]])
    text = page.render(page.Page("t", [table]))
    assert re.findall(r'<th scope="col" class="(.)"', text) == ["l", "r", "r", "l"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: page.Table(["a", "b"], [[1]]), "row of 1 cells"),
        (lambda: page.Table(["a"], [[1]], align="x"), "does not align"),
        (lambda: page.render(page.Page("t", [page.Figure(np.zeros((4, 4), np.uint8), "", "")])), "picture is uint8"),
        (lambda: page.render(page.Page("t", [page.Figure(np.zeros((4, 4, 3)), "", "")])), "picture is uint8"),
    ],
)
def test_bad_sections_are_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_sortable_table_holds_each_cells_rank_and_no_script() -> None:
    table = page.Table(
        ("name", "ml"), [("b", "1,200.5"), ("a", 30), ("</style><script>", None), ("c", 4.5)], sortable=True
    )
    text = page.render(page.Page("t", [table]))
    assert re.findall(r'<tr style="(--c0:\d;--c1:\d)">', text) == ["--c0:2;--c1:2", "--c0:1;--c1:1", "--c0:0;--c1:3", "--c0:3;--c1:0"]  # fmt: skip
    assert "<script" not in text
    assert text.count('type="radio"') == 4
    names = re.findall(r'for="(sort-1-\d-(?:up|down))"', text)
    assert sorted(names) == sorted(re.findall(r'id="(sort-1-\d-(?:up|down))"', text))
    assert 'type="radio"' not in page.render(page.Page("t", [page.Table(("a",), [("b",)])]))
