"""The gallery: what is shown, credited and left out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import worlds
from adapt import levels
from ctfoundry import io
from ctfoundry.errors import UsageError
from ctfoundry.quickstart import gallery


@pytest.fixture
def data(tmp_path):
    """Two scans that may be shown, one under the GPL, one too small, one that is no CT."""
    folder = tmp_path / "data"
    rows = ["name,origin,licence"]
    sets = [
        ("one", "somebody@1", "CC BY 4.0 (Somewhere)"),
        ("two", "a|b", "Apache-2.0"),
        ("gpl", "c", "GPL-3"),
        ("small", "d", "MIT"),
        ("bad", "e", "CC0"),
    ]
    for number, (name, origin, licence) in enumerate(sets):
        (folder / name).mkdir(parents=True)
        volume = worlds.body(number, shape=(24, 48, 48) if name != "small" else (6, 16, 16), spacing=(6, 3, 3))
        if name == "bad":
            (folder / name / "ct.nii.gz").write_bytes(b"no scan")
        else:
            io.write(volume, folder / name / "ct.nii.gz")
        rows.append(f"{name},{origin},{licence}")
    (folder / "SOURCES.csv").write_text("\n".join([*rows, "gone,f,MIT"]) + "\n")
    return folder


def test_gallery_shows_credits_and_says_what_the_model_is(data, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "VIEWS", ("chest", "pelvis"))
    out = tmp_path / "docs"
    named = levels.segmenter()
    card = replace(named.card, training={"patients": {"train": 7}, "steps": 1200})
    named = replace(named, card=card)
    asked = {"segmenter": named, "segmenter_on": "made-up blobs", "phantoms": 3}
    made = gallery.make(data, worlds.tiny(), out, random=worlds.tiny(seed=1), **asked)
    assert set(made["results"]["failed"]) == {"gpl", "small", "bad"}
    text = (out / "gallery.md").read_text()
    assert "**random weights**" in text
    assert "| two | Apache-2.0 | a/b |" in text
    assert "gpl" not in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert [p.rsplit("/", 1)[1] for p in pictures] == made["results"]["pictures"]
    kinds = ("scans", "pca", "search", "segment", "saliency", "clusters")
    assert {f"{kind}.webp" for kind in kinds} == set(made["results"]["pictures"])
    assert "`levels`, trained for 1,200 steps on 7 patients (made-up blobs)" in text
    for picture in pictures:
        assert (out / picture).read_bytes()[8:12] == b"WEBP"
    assert str(tmp_path) not in text + (out / "images" / "gallery" / "run.json").read_text()


def test_without_credits_or_scans_there_is_no_gallery(data, tmp_path):
    (data / "SOURCES.csv").write_text("name,origin,licence\none,x,CC0\n")
    with pytest.raises(UsageError, match="two are needed"):
        gallery.make(data, worlds.tiny(), tmp_path / "docs")
    (data / "SOURCES.csv").write_text("name,origin\none,x\n")
    with pytest.raises(UsageError, match="columns"):
        gallery.sources(data)
    (data / "SOURCES.csv").unlink()
    with pytest.raises(UsageError, match="missing"):
        gallery.sources(data)
