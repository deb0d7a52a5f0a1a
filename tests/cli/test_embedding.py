"""``embed``, ``retrieve`` and ``embeddings`` on the command line: what the options do together, in one process."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import h5py
import numpy as np
import pytest

import worlds
from ctfoundry import io, zoo
from ctfoundry.retrieval.cards import Settings, read_card
from ctfoundry.retrieval.embed import Scan, embed, load_index
from ctfoundry.retrieval.sources import resolve
from ctfoundry.volume import Volume

COUNT = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Scans with names that tell too much, a label map for each, and a narrow model."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(COUNT):
        volume = worlds.body(i, (6, 24, 26))
        io.write(volume, folder / "scans" / f"Doe Jane {i}.nii.gz")
        voxels = np.zeros(volume.shape, np.uint8)
        voxels[2:4, 6:18, 6:18] = 1
        io.write(Volume(voxels, volume.affine, "label"), folder / "masks" / f"Doe Jane {i}.nii.gz")
    (folder / "masks" / "labels.json").write_text(json.dumps({"1": "liver"}))
    zoo.save_model(worlds.tiny(), folder / "model.safetensors")
    return folder


def test_embed_with_all_it_can_find_by_it_and_thin_it_out(data, tmp_path, command):
    model, out = data / "model.safetensors", tmp_path / "emb"
    asked = (
        "embed", data / "scans", "--model", model, "-o", out, "--pool", "mean", "--pool", "windows:min",
        "--windows", "4x16x16", "--overlap", "0.5", "--roi", data / "masks", "--export", "csv",
    )  # fmt: skip
    made = command(*asked)
    ids = made["done"]
    assert (len(ids), made["failed"]) == (COUNT, {})
    assert sorted(made["tables"]) == ["mean.csv", "roi.csv", "window.csv", "windows_min.csv"]
    assert command(*asked)["skipped"] == made["done"], "run again, nothing is left to do"
    with open(out / "tables" / "roi.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["id"], row["region"]) for row in rows} == {(id, "liver") for id in ids}
    public = [p for p in out.rglob("*") if p.is_file() and p.name != "private.json"]
    assert not [p.name for p in public if b"Doe" in p.read_bytes() or str(data).encode() in p.read_bytes()]
    assert (out / "private.json").stat().st_mode & 0o777 == 0o600

    shown = command("embeddings", "show", out)
    assert (shown["scans"], shown["vectors"]["mean"], shown["vectors"]["roi:liver"]) == (COUNT, COUNT, COUNT)
    page = tmp_path / "found.html"
    found = command("retrieve", "--index", out, "--query", ids[0], "--vector", "window", "--html", page)["neighbours"]
    text = page.read_text(encoding="utf-8")
    assert all(f"scan {n['id']}" in text for n in found)
    assert text.count("<img") == 1 + len(found)
    assert ids[0] not in [n["id"] for n in found]
    assert len(found[0]["centre"]) == 3

    (tmp_path / "clinical.csv").write_text("id,age\n" + "".join(f"{id},{50 + i}\n" for i, id in enumerate(ids)))
    chosen = ("retrieve", "--index", out, "--query", ids[0], "--table", tmp_path / "clinical.csv", "--where")
    assert {n["id"] for n in command(*chosen, "age >= 52")["neighbours"]} == set(ids[2:])
    assert command(*chosen, "age > (select 1)", fails=True)[0] == 2
    assert command(*chosen[:-3], "--where", "age > 1", fails=True)[0] == 2, "no table"

    assert command("embeddings", "remove", out, ids[1])["removed"] == [ids[1]]
    assert ids[1] not in load_index(out).ids
    assert command("embeddings", "remove", out, ids[1], fails=True)[0] == 1
    assert command("embeddings", "compact", out)["freed_bytes"] > 0
    assert command("embeddings", "merge", out, tmp_path / "both")["merged"] == [COUNT - 1]
    assert command("embeddings", "export", tmp_path / "both", "parquet")["tables"][0] == "mean.parquet"
    table = tmp_path / "both" / "tables" / "mean.parquet"
    assert {row[0] for row in duckdb.sql(f"select id from '{table}'").fetchall()} == set(load_index(out).ids)


def test_what_a_stranger_gets_wrong_is_named(data, tmp_path, command, monkeypatch):
    """Every message says which argument is wrong, and what is known instead."""
    model, scan = data / "model.safetensors", tmp_path / "patient 1" / "ct.nii.gz"
    for seed, place in enumerate((scan, tmp_path / "patient 2" / "ct.nii.gz")):
        io.write(worlds.body(seed, (6, 24, 26)), place)
    io.write(io.read(data / "masks" / "Doe Jane 0.nii.gz"), scan.parent / "labels.nii.gz")
    monkeypatch.chdir(tmp_path)
    ids = command("embed", "patient 1", "patient 2", "--model", model, "-o", "emb")["done"]
    monkeypatch.chdir(data)
    out, page = tmp_path / "emb", tmp_path / "found.html"
    command("retrieve", "--index", out, "--query", ids[0], "--html", page)
    assert page.read_text(encoding="utf-8").count("<img") == 2, "pictures also from another working folder"
    (table,) = command("embeddings", "export", out, "csv", "--names")["tables"]
    with open(out / "tables" / table, newline="") as stream:
        assert {row["name"] for row in csv.DictReader(stream)} == {"patient 1/ct.nii.gz", "patient 2/ct.nii.gz"}

    def said(*asked: object) -> str:
        return str(command(*asked, fails=True)[1])

    find = ("retrieve", "--index", out, "--model", model, "--query")
    assert f"neither an id of the index {out} nor a file" in said(*find, "scan-nosuch")
    assert "labels.nii.gz: is a label map" in said(*find, scan.parent / "labels.nii.gz")
    assert "grids no, not yes" in said("embed", scan, "--model", model, "-o", out, "--grids")
    assert "is a file, not a folder" in said("embed", scan, "--model", model, "-o", scan)
    assert resolve([str(scan.parent)]).passed_over() == "1 x label map"
    assert f"{COUNT} x label map" in said("embed", data / "masks", "--model", model, "-o", tmp_path / "no")
    (tmp_path / "t.csv").write_text("id;age\n" + "".join(f"{id};50\n" for id in ids))
    asked = ("retrieve", "--index", out, "--query", ids[0], "--table", tmp_path / "t.csv", "--where")
    assert "columns: id (varchar), age (bigint)" in said(*asked, "alter > 5")
    assert command(*asked, "age > 60")["neighbours"] == []
    (tmp_path / "t.csv").write_text("id;age\n7;50\n")
    assert "none of its 1 ids is in the index" in said(*asked, "age > 5")

    # a scan and its labels in one folder, which is how single scans are passed on
    regions = command("embed", scan, "--model", model, "-o", tmp_path / "roi", "--roi", scan.parent)
    assert regions["failed"] == {}
    assert "roi:1" in command("embeddings", "show", tmp_path / "roi")["vectors"]


def test_slices_of_a_vit_with_another_patch_and_two_indices_fused(data, tmp_path, command):
    vit, narrow = tmp_path / "vit", tmp_path / "narrow"
    flexict = ("--model", "flexict-tiny", "--weights", "random", "--slices")
    made = command("embed", data / "scans", *flexict, "--patch", "1x16x16", "-o", vit)
    assert (len(made["done"]), made["failed"]) == (COUNT, {})
    assert read_card(vit)["model"]["arguments"]["patch"] == [1, 16, 16]
    assert command("embeddings", "show", vit)["vectors"]["slice"] > COUNT
    thick = command("embed", data / "scans", *flexict, "--patch", "16", "-o", tmp_path / "thick", fails=True)
    assert thick[0] == 1
    assert "cannot embed a single slice" in thick[1]
    new = tmp_path / "new.nii.gz"
    io.write(worlds.body(9, (6, 24, 26)), new)
    found = command("retrieve", "--index", vit, "--query", new, "--model", "flexict-tiny", "--weights", "random")
    assert len(found["neighbours"]) == COUNT, "the index says which patch it was made with"
    command("embed", data / "scans", "--model", data / "model.safetensors", "-o", narrow)
    query = made["done"][0]
    each = [command("retrieve", "--index", place, "--query", query)["neighbours"] for place in (vit, narrow)]
    fused = command("retrieve", "--index", vit, "--index", narrow, "--query", query)["neighbours"]
    ranks = [{n["id"]: rank for rank, n in enumerate(found, 1)} for found in each]
    expected = {id: sum(1 / (60 + rank[id]) for rank in ranks) for id in ranks[0]}
    assert {n["id"]: n["score"] for n in fused} == pytest.approx(expected)
    assert [n["score"] for n in fused] == sorted(expected.values(), reverse=True)
    command("embeddings", "remove", narrow, made["done"][1])
    search = command("retrieve", "--index", vit, "--index", narrow, "--query", query)["search"]
    assert search[2:] == [f"1 of {COUNT} scans are not in every index: what an index lacks ranks lower"]


WITHOUT_TORCH = """
import sys
from ctfoundry import cli
out, second = sys.argv[1:]
for asked in (["show", out], ["export", out, "csv"], ["merge", out, second], ["remove", second, "scan-0"], ["compact", second]):
    sys.argv = ["ctfoundry", "embeddings", *asked]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, asked
assert "torch" not in sys.modules
"""


def test_commands_about_folders_start_without_torch(tmp_path):
    embed([Scan("scan-0", "d", worlds.body)], worlds.tiny(), tmp_path / "emb", Settings(grids=True))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, tmp_path / "emb", tmp_path / "both"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_maps_for_the_challenge_are_those_of_the_models_level(data, tmp_path, command):
    scan = data / "scans" / "Doe Jane 0.nii.gz"
    made = command(
        "embed", scan, "--model", data / "model.safetensors", "-o", tmp_path, "--grids", "--layout", "cvpr26"
    )
    (place,) = (tmp_path / "cvpr26-maps").iterdir()
    with h5py.File(place) as file:
        found = file["y_hat"][()]
    np.testing.assert_allclose(found, worlds.tiny()(io.read(scan)).grid.data, atol=1e-3, rtol=1e-3)
    assert made["maps"]["levels"] == ["stage2", "stage3", "stage4"]
    refused = command(
        "embed", scan, "--model", data / "model.safetensors", "-o", tmp_path / "b", "--levels", "stage4", fails=True
    )
    assert (refused[0], "give --grids too" in refused[1]) == (2, True)
