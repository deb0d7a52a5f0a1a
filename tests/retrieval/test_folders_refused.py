"""What a folder of embeddings refuses and says: parts without a card or under another one, a full disk, nothing in it."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import worlds
from ctfoundry import files, identity
from ctfoundry.errors import DiskFullError, StoreError
from ctfoundry.retrieval import cards, folders, parts
from ctfoundry.retrieval import embed as embedding
from ctfoundry.retrieval.cards import Settings
from ctfoundry.retrieval.embed import Scan, embed, load_index
from ctfoundry.settings import to_data

MEAN = Settings(("mean",))


def scans(count: int) -> list[Scan]:
    return [Scan(f"s{i}", f"digest{i}", partial(worlds.body, i)) for i in range(count)]


def made(out: Path, *ids: str, settings: Settings = MEAN, width: int = 4, **card: object) -> str:
    """A folder with a part of made-up vectors; returns the part's name."""
    (out / "parts").mkdir(parents=True, exist_ok=True)
    if not (out / "card.json").is_file():
        about = {"model": to_data(worlds.tiny().card) | card, "settings": to_data(settings)}
        (out / "card.json").write_text(json.dumps(about))
    return parts.write(out, [parts.Row(id, "d", "mean") for id in ids], np.ones((len(ids), width)))


@contextlib.contextmanager
def no_room(most: int = 64) -> Iterator[None]:
    """No file of this process grows over `most` bytes: `ulimit -f`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(out: Path) -> set[str]:
    return {place.name for place in out.rglob("*") if not place.name.endswith(".lock")}


def test_parts_without_a_card_are_not_taken_over(tmp_path):
    embed(scans(1), worlds.tiny(), tmp_path)
    (tmp_path / "card.json").unlink()
    for seed in (0, 1):
        with pytest.raises(StoreError, match=r"no card\.json that says which model"):
            embed(scans(2), worlds.tiny(seed=seed), tmp_path)
        assert not (tmp_path / "card.json").exists()


@pytest.mark.parametrize("other", [{"seed": 7}, {"settings": Settings(("mean",), precision="bf16")}])
def test_a_part_of_another_model_or_other_settings_is_named(tmp_path, other):
    made(tmp_path / "own", "a")
    foreign = made(tmp_path / "other", "b", **other)
    load_index(tmp_path / "own")
    shutil.copy(tmp_path / "other" / "parts" / foreign, tmp_path / "own" / "parts")
    before = names(tmp_path / "own")
    for act in (
        load_index,
        folders.compact,
        lambda out: folders.remove(out, ["a"]),
        lambda out: folders.export(out, "csv"),
        lambda out: folders.merge(tmp_path / "new", [out]),
        lambda out: embedding.rows(out),
    ):
        with pytest.raises(StoreError, match=f"{foreign}: was made by another model or with other settings"):
            act(tmp_path / "own")
    assert names(tmp_path / "own") - {"tables"} == before
    (tmp_path / "own" / "parts" / foreign).unlink()
    assert load_index(tmp_path / "own").ids == ("a",)


def test_parts_of_the_same_model_in_another_folder_are_taken(tmp_path):
    """A card may say the same in other words, and of who trained the model for how long anything."""
    made(tmp_path / "own", "a")
    one = made(tmp_path / "same", "b", training={"steps": 3}, name="another name")
    card = json.loads((tmp_path / "same" / "card.json").read_text())
    del card["settings"]["precision"]  # as before there was that setting
    (tmp_path / "older" / "parts").mkdir(parents=True)
    (tmp_path / "older" / "card.json").write_text(json.dumps(card))
    two = made(tmp_path / "older", "c")
    cards.check_same(tmp_path / "own", tmp_path / "same")
    cards.check_same(tmp_path / "own", tmp_path / "older")
    shutil.copy(tmp_path / "same" / "parts" / one, tmp_path / "own" / "parts")
    shutil.copy(tmp_path / "older" / "parts" / two, tmp_path / "own" / "parts")
    assert sorted(load_index(tmp_path / "own").ids) == ["a", "b", "c"]


def test_parts_of_earlier_versions_are_taken_as_they_are(tmp_path):
    made(tmp_path, "a")
    before = parts.write(tmp_path, [parts.Row(id, "d", "mean") for id in ("b", "c")], np.ones((2, 4)), card="")
    assert parts.header(tmp_path, before).card == ""
    folders.remove(tmp_path, ["c"])
    folders.compact(tmp_path)
    assert sorted(load_index(tmp_path).ids) == ["a", "b"]
    marks = [parts.header(tmp_path, name).card for name in parts.names(tmp_path)]
    assert sorted(map(bool, marks)) == [False, True]  # nobody knows of the rewritten part what made it


@pytest.mark.parametrize("kind", folders.EXPORTS)
def test_tables_of_parts_of_two_widths_are_refused_by_name(tmp_path, kind):
    made(tmp_path, "a")
    other = parts.write(tmp_path, [parts.Row("b", "d", "mean")], np.ones((1, 6)), card="")
    with pytest.raises(StoreError, match=f"{other}: its vectors have 6 numbers, the others 4"):
        folders.export(tmp_path, kind)


def test_a_full_disk_says_so_and_leaves_nothing_half_made(tmp_path):
    made(tmp_path, "a", "b", width=64)
    parts.write_index(tmp_path)
    before = names(tmp_path)
    for act in (
        lambda: made(tmp_path, "c", width=64),
        lambda: folders.remove(tmp_path, ["a"]),
        lambda: parts.write_index(tmp_path),
        lambda: folders.export(tmp_path, "csv"),
        lambda: identity.write_private(tmp_path, {"a": "x" * 100}),
    ):
        with no_room(), pytest.raises(DiskFullError, match="may not grow") as error:
            act()
        assert "make room and run it again" in str(error.value)
        assert names(tmp_path) - {"tables"} == before
    assert sorted(load_index(tmp_path).ids) == ["a", "b"]
    for kind, most in (("npy", 150), ("parquet", 1500)):  # beside each lies a table of text, which fits
        with no_room(most), pytest.raises(DiskFullError, match=rf"\.{kind}: .*may not grow"):
            folders.export(tmp_path, kind)
    assert not [name for name in names(tmp_path) if "ctfoundry-part" in name]


@pytest.mark.parametrize("grids", [False, True])
def test_embedding_onto_a_full_disk_ends_with_the_reason(tmp_path, grids):
    """With maps the first scan finds it out, and no other one is looked at."""
    encoder, looked = worlds.tiny(), []
    embedding.open_folder(tmp_path, encoder, Settings(grids=grids))
    with no_room(), pytest.raises(DiskFullError, match="may not grow"):
        embed(scans(3), encoder, tmp_path, Settings(grids=grids), progress=looked.append)
    assert looked == ([] if grids else ["s0", "s1", "s2"])
    assert embed(scans(3), encoder, tmp_path, Settings(grids=grids)).done == ["s0", "s1", "s2"]


def test_what_a_killed_writer_of_the_index_left_goes(tmp_path):
    made(tmp_path, "a")
    left = [f"{start}{files._TEMPORARY}x-index.parquet" for start in ("", "tmp_")]
    others = [f"{files._TEMPORARY}x-private.json", "tmp_index.parquet"]  # somebody may be writing these now
    for name in (*left, *others):
        (tmp_path / name).touch()
    parts.write_index(tmp_path)
    assert names(tmp_path) & {*left, *others} == set(others)


def test_an_empty_folder_says_that_it_is_empty(tmp_path):
    embedding.open_folder(tmp_path, worlds.tiny(), Settings())
    with pytest.raises(StoreError, match="holds no scan yet"):
        load_index(tmp_path)
    embed(scans(1), worlds.tiny(), tmp_path)
    with pytest.raises(StoreError, match=r"no vector 'max'\n  -> it holds mean"):
        load_index(tmp_path, "max")
    folders.remove(tmp_path, ["s0"])
    with pytest.raises(StoreError, match="holds no scan: all were taken out"):
        load_index(tmp_path)


def test_a_stopped_run_leaves_no_scan_without_its_place(tmp_path, monkeypatch):
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "PART_SCANS", 1)
    with pytest.raises(KeyboardInterrupt):
        embed([*scans(2), Scan("stop", "d", stop)], worlds.tiny(), tmp_path, paths={"s0": "/a", "s1": "/b"})
    assert json.loads((tmp_path / identity.PRIVATE).read_text()) == {"s0": "/a", "s1": "/b"}
    assert (tmp_path / identity.PRIVATE).stat().st_mode & 0o777 == 0o600


def test_a_refused_folder_gets_no_private_file(tmp_path):
    embed(scans(1), worlds.tiny(), tmp_path)
    with pytest.raises(StoreError):
        embed(scans(1), worlds.tiny(seed=1), tmp_path, paths={"s0": "/a"})
    assert not (tmp_path / identity.PRIVATE).exists()


def test_merge_takes_no_folder_of_other_things(tmp_path):
    made(tmp_path / "source", "a")
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "scan.nii.gz").touch()
    (tmp_path / "file").touch()
    for name in ("full", "file"):
        with pytest.raises(StoreError, match="is no folder of embeddings, and not empty"):
            folders.merge(tmp_path / name, [tmp_path / "source"])
    assert names(tmp_path / "full") == {"scan.nii.gz"}
    (tmp_path / "empty" / ".DS_Store").touch()
    for _ in range(2):  # its own folder is no other thing
        folders.merge(tmp_path / "empty", [tmp_path / "source"])
    assert load_index(tmp_path / "empty").ids == ("a",)
