"""What ``explain views`` shows is what training saw."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ctfoundry import geometry
from ctfoundry.errors import UsageError
from ctfoundry.preparation import PREPARATIONS, prepare
from ctfoundry.pretrain.run import pretrain
from ctfoundry.pretrain.seen import at_step, in_epoch, recipe_of
from ctfoundry.pretrain.sheet import CROP, Overview, _place, caption, crop_box, draw_sheet, overview
from ctfoundry.pretrain.task import CropTask
from ctfoundry.pretrain.views import ViewDraw, ViewSettings
from ctfoundry.settings import to_data
from ctfoundry.store import Store, placement
from ctfoundry.train import fit
from pretrain.toys import loop, make_store, recipe

ADDED = ViewSettings(affine=0.5, intensity_scale=0.5, intensity_shift=0.5)


@pytest.fixture(scope="module", params=["6x2x2", "native"])
def scans(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Store:
    shape = (24, 60, 64) if request.param == "6x2x2" else (90, 70, 80)
    return make_store(tmp_path_factory.mktemp("store"), grid=request.param, count=3, shape=shape)


class Spy(CropTask):
    """The task, which remembers what the loop gave it and what it made."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.planned: dict[Any, str] = {}
        self.steps: list[tuple[list[str], torch.Tensor]] = []

    def plan(self, key: Any, entry: Any) -> Any:
        draws = super().plan(key, entry)
        self.planned[draws.starts, draws.views] = entry.id
        return draws

    def batch(self, reads: Any, draws: Any, device: torch.device) -> Any:
        made = super().batch(reads, draws, device)
        self.steps.append(([self.planned[d.starts, d.views] for d in draws], made))
        return made


@pytest.mark.parametrize("batch_norm", ["all", "per-scan"])
def test_what_is_shown_is_what_was_trained_on(scans: Store, tmp_path: Path, batch_norm: str) -> None:
    """Bit for bit, against what the loop itself handed to the task, in two epochs and by step."""
    chosen = recipe(views=ADDED, batch_norm=batch_norm, train=loop(3, batch=2, seed=5, workers=1))
    spy = Spy(chosen)
    fit(spy, scans, chosen.train, tmp_path, quiet=True)
    task, count = CropTask(chosen), {}
    for number, (ids, made) in enumerate(spy.steps, 1):
        by_scan = (
            made.view(2, 4, 2, 8, 16, 16)
            if batch_norm == "per-scan"
            else made.view(4, 2, 2, 8, 16, 16).permute(2, 0, 1, 3, 4, 5)
        )
        shown = at_step(task, scans, tmp_path, number)
        assert [s.entry.id for s in shown] == ids
        for id, views, one in zip(ids, by_scan, shown, strict=True):
            epoch = count.get(id, 0)
            count[id] = epoch + 1
            np.testing.assert_array_equal(one.views, views.numpy())
            assert one.epoch == epoch
            again = in_epoch(task, scans, id, epoch)
            np.testing.assert_array_equal(again.views, views.numpy())
    assert set(count.values()) == {2}
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_a_step_after_a_scan_failed_is_shown_as_the_run_saw_it(tmp_path: Path) -> None:
    scans = make_store(tmp_path / "store", count=3)
    chosen = recipe(train=loop(3, batch=2, workers=0, failing_share=0.5))
    (tmp_path / "store" / "scans" / "scan1.b2nd").write_bytes(b"broken")
    spy = Spy(chosen)
    fit(spy, scans, chosen.train, tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "quarantine.jsonl").read_bytes()
    for number, (ids, made) in enumerate(spy.steps, 1):
        assert "scan1" not in ids
        shown = at_step(CropTask(chosen), scans, tmp_path / "run", number)
        for place, one in enumerate(shown):
            assert one.entry.id == ids[place]
            np.testing.assert_array_equal(one.views, made.view(4, 2, 2, 8, 16, 16)[:, :, place].numpy())
    assert (tmp_path / "run" / "quarantine.jsonl").read_bytes() == before


def test_crops_are_those_of_the_prepared_scan_and_boxes_lie_where_they_do(scans: Store) -> None:
    task = CropTask(recipe())
    entry = scans.entries[1]
    seen = in_epoch(task, scans, entry.id, 3)
    whole = prepare(PREPARATIONS["ct-fm-tiny"], scans.volume(entry.id))
    placed = placement(entry, task.preparation.resampling)
    for (i, j, k), crop in zip(seen.draws.starts, seen.crops, strict=True):
        np.testing.assert_allclose(crop, whole.x[0, i : i + 8, j : j + 16, k : k + 16].numpy(), atol=2e-6)
        edges = np.array([(i, j, k), (i + 8, j + 16, k + 16)]) - 0.5  # corner to corner, through the world
        expected = geometry.to_index(entry.affine, geometry.to_world(whole.affine, edges))
        np.testing.assert_allclose(crop_box(placed, (i, j, k), (8, 16, 16)).T, expected, atol=1e-6)


def test_the_green_box_surrounds_the_crop_in_the_scan() -> None:
    """A bright cuboid in the dark, thinned by 2 along one axis: the outline lies on its edges, in both planes."""
    hu = np.full((40, 50, 60), -1024, np.int16)
    hu[10:20, 20:30, 6:36] = 900
    image = Image.new("RGB", (240, 420))
    thin = Overview(hu[:, :, ::2].copy(), (1, 1, 2), (3.0, 2.0, 1.0))
    box = np.array([(9.5, 19.5), (19.5, 29.5), (5.5, 35.5)])
    _place(image, thin, box, (4, 2), (200, 200))
    pixels = np.asarray(image).astype(int)
    green = (pixels == [int(CROP[i : i + 2], 16) for i in (1, 3, 5)]).all(-1)
    bright = (pixels.min(-1) > 128) | green
    for rows in (slice(2, 202), slice(206, 406)):
        found, marked = (np.argwhere(mask[rows]) for mask in (bright, green))
        assert len(marked) > 50
        # smoothing of the picture reaches a few pixels; a voxel is 3 to 6 pixels high and 7 wide
        assert np.abs(found.min(0) - marked.min(0)).max() <= 3
        assert np.abs(found.max(0) - marked.max(0)).max() <= 3
    assert not green[:, 236:].any()


def test_an_overview_is_the_thinned_scan(scans: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from ctfoundry.pretrain import sheet

    entry = scans.entries[0]
    whole = scans.volume(entry.id).voxels
    assert np.array_equal(overview(scans, entry.id).hu, whole)
    monkeypatch.setattr(sheet, "LONGEST", 20)
    thin = overview(scans, entry.id)
    a, b, c = thin.stride
    assert min(thin.stride) > 1
    assert np.array_equal(thin.hu, whole[::a, ::b, ::c])


def test_captions_say_what_was_drawn() -> None:
    assert caption(ViewDraw(0.5, (0, 0, 0), (4, 8, 8))) == [
        "box: 50% of each axis",
        "histogram as it is",
        "not smoothed",
    ]
    full = ViewDraw(
        0.66, (0, 0, 0), (6, 11, 11), True, (0, 0.1, 1), (0.3, 1, 1.25), (0.1, -0.26, 0), (0.9, 1, 1.2), 0.25, -0.05
    )  # fmt: skip
    assert caption(full) == [
        "box: 66% of each axis, upside down",
        "turned 6° -15° 0°, scaled 0.90 1.00 1.20",
        "histogram shifted",
        "smoothed, sigma 0.30 1.00 1.25 voxels",
        "intensities times 1.25 minus 0.050",
    ]


def test_views_are_drawn_where_the_sheet_says(scans: Store) -> None:
    """The pixels of the tiles are the views' own middle planes, up to their frames."""
    from ctfoundry.pretrain.sheet import EDGE, GAP, TILE

    task = CropTask(recipe(crop=(8, 16, 16), views=ViewSettings(shift=0)))
    seen = in_epoch(task, scans, scans.entries[0].id, 0)
    picture = draw_sheet(seen, overview(scans, seen.entry.id), task.preparation, task.recipe, [2])
    high, deep = TILE, round(TILE * 32 / 48)  # 48 x 32 x 32 mm
    left, top = EDGE + 2 * (TILE + GAP), EDGE + 20
    tile = picture[top : top + high, left : left + deep, 0].astype(float)
    hu = seen.views[2, 0][::-1, 8] * 3072 - 1024
    expected = np.clip((hu + 850) / 1800, 0, 1) * 255
    grid = Image.fromarray(expected.astype(np.float32)).resize((deep, high), Image.Resampling.BICUBIC)
    inner = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(tile[inner], np.clip(np.asarray(grid), 0, 255)[inner], atol=3)


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    from ctfoundry.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ctfoundry", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


def test_the_verb(tmp_path: Path) -> None:
    scans = make_store(tmp_path / "store", count=2)
    file = tmp_path / "toy.json"
    file.write_text(json.dumps(to_data(recipe())))
    pretrain(recipe_of_file(file), scans, tmp_path / "run", steps=2, quiet=True)
    common = ("explain", "views", tmp_path / "store", "--json", "--quiet", "-o")

    code, text, err = run(*common, tmp_path / "a", "--recipe", file, "--scan", "scan1", "--scan", "none", "--epoch", 1)
    assert code == 3, err
    data = json.loads(text)
    assert data["pictures"] == ["scan1-epoch1.png"]
    assert "none" in data["failed"]
    made = tmp_path / "a"
    assert {p.name for p in made.iterdir()} == {"scan1-epoch1.png", "views.html", "views.json", "run.json"}
    html = (made / "views.html").read_text()
    assert "scan1" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")
    drawn = json.loads((made / "views.json").read_text())["scans"][0]
    expected = in_epoch(CropTask(recipe()), scans, "scan1", 1)
    assert drawn["crops"][3]["views"][1]["start"] == list(expected.draws.views[3][1].start)
    assert all(str(tmp_path) not in p.read_text() for p in made.glob("*.[jh]*"))
    record = json.loads((made / "run.json").read_text())
    assert record["seeds"] == {"train": 0}
    assert set(record["outputs"]) == {"scan1-epoch1.png", "views.html", "views.json"}

    code, text, err = run(*common, tmp_path / "b", "--run", tmp_path / "run", "--step", 2)
    assert code == 0, err
    expected_ids = [s.entry.id for s in at_step(CropTask(recipe()), scans, tmp_path / "run", 2)]
    assert json.loads((tmp_path / "b" / "run.json").read_text())["results"]["scans"] == expected_ids

    for wrong, words in (
        (("--run", tmp_path / "run"), "shown at a step"),
        (("--run", tmp_path / "run", "--step", 2, "--seed", 3), "--seed"),
        (("--run", tmp_path / "run", "--step", 0), "counted from 1"),
        (("--run", tmp_path / "store", "--step", 1), "recipe.json"),
        (("--step", 1), "--run"),
        (("--recipe", file, "--set", "views.afine=1"), "affine"),
    ):
        code, text, err = run(*common, tmp_path / "c", *wrong)
        assert code in (1, 2), wrong
        assert words in err
        assert "Traceback" not in err
    assert not (tmp_path / "c").exists()


def recipe_of_file(file: Path) -> Any:
    from ctfoundry.pretrain.recipe_files import load_recipe

    return load_recipe(file)


def test_a_run_on_other_scans_is_refused(tmp_path: Path) -> None:
    scans = make_store(tmp_path / "store", count=2)
    pretrain(recipe(), scans, tmp_path / "run", steps=1, quiet=True, patients=["patient0"])
    other = make_store(tmp_path / "other", count=3)
    assert recipe_of(tmp_path / "run") == recipe()
    with pytest.raises(UsageError, match="other scans"):
        at_step(CropTask(recipe()), other, tmp_path / "run", 1)
    with pytest.raises(UsageError, match="counted from 0"):
        in_epoch(CropTask(recipe()), scans, "scan0", -1)
