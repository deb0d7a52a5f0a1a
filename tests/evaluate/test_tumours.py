"""Tumours: folds by patient, what ellipsoids find in crops, measures against literal counts, and a whole run on tiny scans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from ctfoundry import io
from ctfoundry.errors import UsageError
from ctfoundry.evaluate import tumours, tumours_chest, tumours_report, tumours_trivial
from ctfoundry.evaluate.tumours import Arm, Job, Plan
from ctfoundry.keys import Key
from ctfoundry.phantom.difficulty import HU_EDGES
from ctfoundry.volume import Volume


def affine() -> np.ndarray:
    found = np.zeros((4, 4))
    found[2, 0], found[1, 1], found[0, 2], found[3, 3] = 3.0, 2.0, 2.0, 1.0
    return found


def crop(number: int, size: int = 4) -> tuple[Volume, np.ndarray]:
    """A cylinder of muscle with a darker ellipsoid, cropped with a margin of 18 mm; `size` : half its height in slices."""
    key = Key.of("crop", number)
    half = np.array([size + number % 2, 5 + number % 3, 6])
    shape = 2 * half + 1 + 2 * np.array([6, 9, 9])
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"), -1)
    mask = ((grid / (half + 0.5)) ** 2).sum(-1) <= 1
    hu = np.where((grid[..., 1:] ** 2).sum(-1) < (shape[2] / 2 - 1) ** 2, 60, -1000) + key.normal(tuple(shape)) * 4
    hu[mask] -= 45
    return Volume(np.round(hu).astype(np.int16), affine()), mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tumours")
    for number in range(6):
        image, mask = crop(number)
        io.write(image, folder / f"T_{number:03d}_CT.nii.gz")
        io.write(Volume(mask.astype(np.uint8), image.affine, "label"), folder / f"T_{number:03d}_GTV.nii.gz")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow encoder that says it is trained."""
    from ctfoundry.encoder import Encoder
    from ctfoundry.zoo.files import save_model
    from ctfoundry.zoo.models import CARDS, build

    card = replace(
        CARDS["ct-fm-tiny"],
        arguments={"in_channels": 1, "filters": 2, "blocks": [1, 1, 1]},
        level="stage2",
        seed=5,
        weights="trained",
    )
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(Encoder.of(build(card), card), path)
    return path


def test_every_patient_tests_once_and_is_in_one_part_of_a_fold(data: Path) -> None:
    known = tumours.open_tumours(data)
    plan = Plan(folds=3, validation=1)
    parts = tumours.folds(known.scans, plan)
    everyone = {scan.patient for scan in known.scans}
    assert sorted(p for part in parts for p in part["test"]) == sorted(everyone)
    for part in parts:
        assert set.union(*part.values()) == everyone
        assert sum(map(len, part.values())) == len(everyone)
        assert len(part["validation"]) == 1
    assert tumours.folds(known.scans[::-1], plan) == parts
    with pytest.raises(UsageError, match="do not divide"):
        tumours.folds(known.scans, Plan(folds=7))


def test_a_scan_without_its_mask_is_named(tmp_path: Path) -> None:
    io.write(crop(0)[0], tmp_path / "A_CT.nii.gz")
    with pytest.raises(UsageError, match="A_GTV"):
        tumours.open_tumours(tmp_path)


def test_the_crop_gives_its_tumour_away() -> None:
    train, test = [crop(n) for n in range(6)], [crop(n, size=7) for n in range(6, 10)]
    guesses = tumours_trivial.guesses(train)
    mean = {
        name: np.mean([2 * (guess(v) & m).sum() / (guess(v).sum() + m.sum()) for v, m in test])
        for name, guess in guesses.items()
    }
    assert mean[tumours_trivial.MARGIN] > 0.95  # tumours of the test are larger, and the margin says so
    assert mean[tumours_trivial.CENTRE] < mean[tumours_trivial.MARGIN] - 0.1
    assert mean[tumours_trivial.INTENSITY] > 0.9  # one HU belongs to the tumour alone
    image, mask = train[0]
    taken = np.unique(image.voxels[guesses[tumours_trivial.INTENSITY](image)] // 5)
    assert set(taken) <= set(range(-2, 10))
    assert HU_EDGES[0] < image.voxels[mask].min()


def test_measures_are_literal_counts() -> None:
    mask = np.zeros((12, 20, 20), dtype=bool)
    mask[2:8, 4:10, 4:10] = True
    found = np.zeros_like(mask)
    found[2:8, 4:10, 6:12] = True  # 4 of 6 columns of the tumour
    found[10:12, 15:18, 15:18] = True  # 18 voxels elsewhere
    found[0, 0, 0] = True  # too small to be a finding
    scan = tumours.measure(found, mask, (3.0, 2.0, 2.0))
    hit = 6 * 6 * 4
    assert scan["dice"] == pytest.approx(2 * hit / (216 + 216 + 18 + 1))
    assert (scan["lesions"], scan["touched"], scan["found"], scan["false_positives"]) == (1, 1, 1, 1)
    assert scan["reference_ml"] == pytest.approx(216 * 12 / 1000)
    assert tumours_report.value("volume", scan) == pytest.approx(100 * 19 / 216)
    inner = ~ndimage.binary_erosion(mask) & mask
    outer = ~ndimage.binary_erosion(found) & found
    a, b = (np.argwhere(x) * (3.0, 2.0, 2.0) for x in (inner, outer))
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    assert scan["surface_mm"] == pytest.approx(np.concatenate([apart.min(0), apart.min(1)]).mean(), rel=1e-6)
    nothing = tumours.measure(np.zeros_like(mask), mask, (3.0, 2.0, 2.0))
    assert nothing["empty"] == "prediction"
    assert nothing["surface_mm"] == pytest.approx(np.linalg.norm([36, 40, 40]))
    assert (nothing["dice"], nothing["touched"]) == (0, 0)
    touched = tumours.measure(np.pad(np.ones((1, 3, 4), bool), ((2, 9), (4, 13), (4, 12))), mask, (3.0, 2.0, 2.0))
    assert (touched["touched"], touched["found"]) == (1, 0)


def test_what_intervals_say() -> None:
    def result(method: str, gain: float, patients: range) -> dict[str, object]:
        scans = {
            f"P{p:02d}": {
                "patient": f"P{p:02d}", "dice": 0.5 + gain + 0.01 * p, "lesions": 1, "touched": 1, "found": 1,
                "false_positives": 2, "volume_ml": 8.0, "reference_ml": 10.0, "surface_mm": 4.0, "empty": "",
            } for p in patients
        }  # fmt: skip
        training = {"steps": 3, "best_step": 3, "validation_dice": 0.5, "parameters": 10}
        return {"arm": method, "fold": 0, "seed": 0, "training": training, "methods": {method: scans}}

    names = ("m, pretrained", "m, from scratch", tumours_trivial.MARGIN, tumours.SUPREM)
    silent = result(names[3], -0.5, range(4))
    for scan in silent["methods"][names[3]].values():  # type: ignore[index]
        scan["empty"] = "prediction"
    rows = [result(names[0], 0.1, range(8)), result(names[1], 0.0, range(8)), result(names[2], 0.2, range(4)), silent]
    summary = tumours_report.summarise(rows)
    gain = summary.differences[names[0], names[1]]["dice"]
    assert (gain.value, gain.low, gain.patients) == (pytest.approx(0.1), pytest.approx(0.1), 8)
    assert summary.differences[names[0], names[2]]["dice"].patients == 4  # only those that both were tested on
    words = "\n".join(tumours_report.conclusions(summary))
    assert f"**{names[0]} is better** than {names[1]}" in words
    assert f"**{names[0]} is worse** than {names[2]}" in words
    assert f"{names[3]} predicted nothing" in words
    assert summary.methods[names[0]]["bias"].value == pytest.approx(-20)
    for table in tumours_report.tables(summary):
        assert all(len(row) == len(table.headers) for row in table.rows)


def test_both_norms_are_the_same_weights(data: Path, tmp_path: Path) -> None:
    import torch

    from ctfoundry.segmenter import Segmenter
    from ctfoundry.zoo.models import build
    from ctfoundry.zoo.segmenters import with_decoder

    job = Job(tmp_path, data, Arm(tumours.SUPREM, "suprem"), 0, 0, Plan(suprem_filters=2), "cpu")
    recipe = tumours.recipe_of(job)
    encoder = tumours._suprem(job)
    card = with_decoder(encoder, ("background", "tumour"), extent=recipe.extent, preparation=encoder.preparation)
    made = Segmenter.of(build(card), card)
    other = tumours._as_published(made)
    assert recipe.validate_every == recipe.train.schedule.steps
    state, same = made.network.state_dict(), other.network.state_dict()
    assert state.keys() == same.keys()
    assert all(torch.equal(state[k], same[k]) for k in state)
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.allclose(made.network(x), other.network(x))


def test_a_run_from_beginning_to_end_continues_and_is_tested_once(data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = Plan(folds=2, validation=1, steps=2, validate_every=2, suprem_folds=0)
    arms = tumours._jobs(out, data, plan, [str(model)], "cpu")
    for job in arms:
        tumours.work(job)
    assert [job.arm.name for job in arms] == ["trivial"] * 2 + [
        "ct-fm-tiny, pretrained",
        "ct-fm-tiny, from scratch",
    ] * 2
    before = {job.name: job.result.stat().st_mtime_ns for job in arms}
    results = tumours.tumours(out, data, init=[model], plan=plan)
    assert {job.name: job.result.stat().st_mtime_ns for job in arms} == before
    for method in ("ct-fm-tiny, pretrained", "ct-fm-tiny, from scratch", *tumours_report.TRIVIAL):
        tested = [id for result in results for id in result["methods"].get(method, {})]
        assert sorted(tested) == [f"P{n:02d}" for n in range(1, 7)]
    for fold, part in enumerate(tumours.folds(tumours.open_tumours(data).scans, plan)):
        split = json.loads((out / "runs" / f"ct-fm-tiny-pretrained-f{fold}-s0" / "split.json").read_text())
        assert not part["test"] & {*split["train"], *split["validation"], *split["test"]}
    setup = json.loads((out / "setup.json").read_text())
    summary = tumours_report.write_results(out, data, results, setup)
    text = (out / "tumours.md").read_text() + (out / "report.html").read_text() + (out / "results.json").read_text()
    assert str(data) not in text
    assert "T_00" not in text
    kept = tumours.read_mask(out, tumours_trivial.MARGIN, 0, "P01")
    _, mask = crop(0)
    scan = summary.scans[tumours_trivial.MARGIN]["P01"]
    assert 2 * (kept & mask).sum() / (kept.sum() + mask.sum()) == pytest.approx(scan["dice"])


def test_the_chest_has_the_groups_that_its_labels_hold(tmp_path: Path) -> None:
    voxels = np.zeros((8, 16, 16), dtype=np.uint8)
    voxels[1:3], voxels[4:6] = 10, 51
    io.write(Volume(np.zeros(voxels.shape, dtype=np.int16), affine()), tmp_path / "cxr.nii.gz")
    io.write(Volume(voxels, affine(), "label"), tmp_path / "mask.nii.gz")
    with pytest.raises(UsageError, match=r"structures\.csv"):
        tumours_chest.open_chest(tmp_path)
    (tmp_path / "structures.csv").write_text("structure,id\nlung_upper_lobe_left,10\nheart,51\nliver,5\n")
    scan = tumours_chest.open_chest(tmp_path)
    assert tumours_chest.shared_classes(scan).names == ("lung_left", "heart")
