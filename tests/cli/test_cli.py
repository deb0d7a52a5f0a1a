"""The command line as a stranger uses it: real processes, exit codes, JSON, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import worlds
from ctfoundry import io, zoo
from ctfoundry.geometry import make_affine
from ctfoundry.retrieval.search import dense_map
from ctfoundry.volume import Volume
from program import result, run

VERBS = (
    "quickstart", "inspect", "convert", "phantom", "prepare", "pretrain", "plan", "embed", "retrieve", "search", "bench", "doctor",
    "store", "zoo", "explain", "cohort", "evaluate",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed in range(3):
        io.write(worlds.body(seed, (24, 60, 64), (4, 2, 2)), folder / f"case{seed}" / "ct.nii.gz")
    zoo.save_model(worlds.tiny(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("verb", [*VERBS, ""])
def test_help_imports_nothing_heavy(verb):
    code = (
        f"import sys; sys.argv = ['ctfoundry', *{verb!r}.split(), '--help']\n"
        "from ctfoundry.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code in (0, None), stop.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'monai', 'transformers', 'matplotlib', 'SimpleITK', 'nibabel', 'pydicom', 'duckdb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


def test_inspect_lists_scans_with_geometry(data):
    found = result("inspect", data)
    assert len(found["series"]) == 3
    assert found["series"][0]["shape"] == [24, 60, 64]
    assert found["series"][0]["orientation"] == "SPL"


def test_convert_keeps_voxels_and_geometry(data, tmp_path):
    source = data / "case0" / "ct.nii.gz"
    result("convert", source, tmp_path / "x.nrrd")
    first, second = io.read(source), io.read(tmp_path / "x.nrrd")
    assert (first.voxels == second.voxels).all()
    assert first.grid.same(second.grid)


def test_prepare_verify_stats_and_again(data, tmp_path):
    store = tmp_path / "store"
    made = result("prepare", data, store, "--grid", "6x2x2")
    assert len(made["added"]) == 3
    again = result("prepare", data, store, "--grid", "6x2x2")
    assert (again["added"], len(again["skipped"])) == ([], 3)
    assert result("store", "verify", store)["problems"] == []
    assert result("store", "stats", store)["patients"] == 3
    record = (store / "run.json").read_text()
    assert str(data) not in record
    assert (store / "private.json").stat().st_mode & 0o777 == 0o600


def test_prepare_with_a_bad_file_is_partly_done(data, tmp_path):
    bad = tmp_path / "in"
    bad.mkdir()
    (bad / "good.nii.gz").write_bytes((data / "case0" / "ct.nii.gz").read_bytes())
    (bad / "cut.nii.gz").write_bytes((data / "case1" / "ct.nii.gz").read_bytes()[:4000])
    done = run("prepare", bad, tmp_path / "store", "--json")
    assert done.returncode == 3
    assert len(json.loads(done.stdout)["failed"]) == 1
    assert "cut.nii.gz" in done.stderr
    assert "cut.nii.gz" not in (tmp_path / "store" / "quarantine.csv").read_text()


def test_store_verify_finds_damage(data, tmp_path):
    store = tmp_path / "store"
    result("prepare", data, store)
    array = next((store / "scans").glob("*.b2nd"))
    bytes_ = bytearray(array.read_bytes())
    bytes_[len(bytes_) // 2] ^= 255
    array.write_bytes(bytes_)
    done = run("store", "verify", store)
    assert done.returncode == 1
    assert array.stem in done.stdout


def test_embed_retrieve_and_search(data, tmp_path):
    model = data / "model.safetensors"
    made = result("embed", data, "--model", model, "-o", tmp_path / "out")
    assert len(made["done"]) == 3
    query = data / "case0" / "ct.nii.gz"
    near = result("retrieve", "--index", tmp_path / "out", "--query", query, "-k", 2)
    assert len(near["neighbours"]) == 2
    cells = dense_map(zoo.load_model(model), io.read(query), ("stage1",))
    point = ",".join(f"{v:.2f}" for v in cells.world([4, 12, 13]))
    target = data / "case1" / "ct.nii.gz"
    found = result(
        "search", "--model", model, "--query", query, "--point", point, "--target", target, "-o", tmp_path / "heat"
    )
    heat = io.read(tmp_path / "heat" / f"{found['hits'][0]['target']}.nii.gz", kind="other")
    assert heat.grid.same(io.read(target).grid)
    itself = result(
        "search", "--model", model, "--query", query, "--point", point, "--target", query, "--levels", "stage1"
    )
    distance = (
        sum((a - float(b)) ** 2 for a, b in zip(itself["hits"][0]["point"], point.split(","), strict=True)) ** 0.5
    )
    assert distance < 6.7  # answers lie between cells, at most half a cell of 12 x 4 x 4 mm away


def test_a_target_that_cannot_be_read_leaves_the_others(data, tmp_path):
    source = data / "case0" / "ct.nii.gz"
    cut = tmp_path / "Secret Name.nii.gz"
    cut.write_bytes((data / "case1" / "ct.nii.gz").read_bytes()[:4000])
    x, y, z = io.read(source).world([12, 30, 32]).tolist()
    done = run(
        "search", "--model", data / "model.safetensors", "--query", source, "--point", f"{x},{y},{z}",
        "--target", source, "--target", cut, "-o", tmp_path / "heat", "--json",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert (len(found["hits"]), len(found["failed"])) == (1, 1)
    assert "Secret" not in done.stdout
    assert "Secret" not in (tmp_path / "heat" / "run.json").read_text()


def test_paths_of_earlier_scans_stay_known(data, tmp_path):
    for case in ("case0", "case1"):
        result("embed", data / case, "--model", data / "model.safetensors", "-o", tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "private.json").read_text())) == 2


def test_explain_pca_writes_pictures(data, tmp_path):
    from PIL import Image

    made = result(
        "explain",
        "pca",
        data / "case0" / "ct.nii.gz",
        "--model",
        data / "model.safetensors",
        "-o",
        tmp_path,
        "--levels",
        "stage1,stage2",
    )
    with Image.open(tmp_path / made["pictures"][0]) as picture:
        assert picture.size[0] > 300


def test_doctor_and_zoo():
    assert "torch" in result("doctor")["versions"]
    assert {m["name"] for m in result("zoo", "list")["models"]} == {*zoo.CARDS, zoo.WHOLE_BODY}
    assert result("zoo", "show", "ct-fm")["preparation"]["resampling"]["spacing"] == [3.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "missing-folder"], 1, "missing-folder"),
        (["nonsense"], 2, "nonsense"),
        (["embed"], 2, "Missing argument"),
        (["bench", "loss", "--repeats", "x"], 2, "--repeats"),
        (["bench", "lost"], 2, "'loss'"),
        (["embed", "missing.nii", "--model", "ct-fm-tiny", "--weights", "random", "-o", "out"], 2, "no such file"),
        (["embed", "x", "--model", "ct-fm-tiny", "-o", "out"], 1, "no weights come with it"),
        (["search", "--model", "ct-fm-tiny", "--weights", "random", "--query", "a", "--point", "1,2", "--target", "b"], 2, "not a point"),
        (["pretrain", "ct-fm-tinny", "--store", "s", "--run", "r"], 1, "nearest known one is 'ct-fm-tiny'"),
        (["quickstart", "--data", "missing-folder"], 2, "no such folder"),
        (["quickstart", "--minutes", "0"], 2, "above 0"),
        (["zoo", "show", "ct-fm-tinny"], 2, "nearest known one is 'ct-fm-tiny'"),
        (["phantom", "/proc/nothing", "--count", "1"], 1, "/proc/nothing: No such file"),
    ],
)  # fmt: skip
def test_errors_are_short_and_say_what_to_do(tmp_path, arguments, code, words):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 6


def test_debug_shows_the_traceback(tmp_path):
    done = run("inspect", "missing-folder", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_a_mask_is_not_embedded(data, tmp_path):
    mask = worlds.body(0, (24, 60, 64), (4, 2, 2))
    io.write(Volume((mask.voxels > 0).astype("uint8"), make_affine((4, 2, 2)), "label"), tmp_path / "mask.nii.gz")
    done = run("embed", tmp_path / "mask.nii.gz", "--model", data / "model.safetensors", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "mask.nii.gz" in done.stderr
    assert "takes hu, this volume is 'label'" in done.stderr
