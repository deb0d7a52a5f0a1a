"""Prepared crops from a store equal the whole scan prepared and then cropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctfoundry import preparation, resampling, store
from ctfoundry.errors import ContractError
from ctfoundry.preparation import PREPARATIONS, Foreground, Preparation, Resampling, Sizing
from ctfoundry.store import errors

UNIT = preparation.Intensity()


def prepared_whole(volume, settings):
    """`prepare` without sizing: the reference is the slow path that users' scans take."""
    return preparation.prepare(Preparation("test", 1, resampling=settings, intensity=UNIT, sizing=Sizing()), volume)


def crop_of(x, box):
    """The box of a tensor, padded with 0 (what -1024 HU becomes)."""
    out = torch.zeros([high - low for low, high in box])
    inner = [(max(low, 0), min(high, n)) for (low, high), n in zip(box, x.shape, strict=True)]
    if all(low < high for low, high in inner):
        source = tuple(slice(low, high) for low, high in inner)
        target = tuple(slice(a - low, b - low) for (a, b), (low, _) in zip(inner, box, strict=True))
        out[target] = x[source]
    return out


@pytest.fixture(scope="module")
def stores(tmp_path_factory, scan):
    made = {}
    for grid in ("native", "floor:1", "ct-fm", "flexict-3d", "6x2x2"):
        with store.create(tmp_path_factory.mktemp("s"), grid) as made[grid]:
            made[grid].add(scan(1, code="PIR", tilt=0.1), "a", patient="p")
    return made


SETTINGS = {
    **{name: p.resampling for name, p in PREPARATIONS.items() if p.resampling.orientation in (None, "SPL")},
    "antialias": Resampling(spacing=(4.0, 3.0, 1.7), rule="antialias", foreground=Foreground(0.0)),
    "finer": Resampling(spacing=(1.0, 0.5, 0.5), rule="monai", foreground=Foreground(0.0, margin=3)),
    "sitk-cropped": Resampling(spacing=(3.3, 3.3, 3.3), rule="sitk", foreground=Foreground(0.0)),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_placed_crop_is_prepare_then_crop(stores, data):
    scans = stores[data.draw(st.sampled_from(sorted(stores)))]
    wanted = SETTINGS[data.draw(st.sampled_from(sorted(SETTINGS)))]
    entry = scans.entries[0]
    whole = prepared_whole(scans.volume("a"), wanted)
    placed = store.placement(entry, wanted)
    assert placed.shape == tuple(whole.x.shape[1:])
    np.testing.assert_allclose(placed.affine, whole.affine, atol=1e-9)
    box = []
    for n in placed.shape:
        low = data.draw(st.integers(-12, n + 3))
        box.append((low, low + data.draw(st.integers(1, 40))))
    plan = store.plan_crop(placed, tuple(box))
    voxels = scans.read("a", plan.reads)
    ours = preparation.scale(store.make_crop(torch.from_numpy(voxels), plan.operators), UNIT)
    assert ours.shape == tuple(high - low for low, high in box)
    assert (ours - crop_of(whole.x[0], box)).abs().max() < 1e-4
    reach = [abs(s) * (high - low) + 2 * max(abs(s), 1) + 2 for s, (low, high) in zip(placed.step, box, strict=True)]
    assert all(n <= r for n, r in zip(voxels.shape, reach, strict=True)), "more was read than the crop needs"


def test_crops_of_another_orientation_are_refused(stores):
    scans = stores["native"]
    with pytest.raises(ContractError, match="the grid is SPL, the preparation wants RAS"):
        store.placement(scans.entries[0], PREPARATIONS["suprem"].resampling)


@pytest.mark.parametrize(
    ("grid", "name"),
    [("ct-fm", "ct-fm"), ("flexict-3d", "flexict-3d"), ("6x2x2", "ct-fm-tiny"), ("native", "ct-fm-native")],
)
def test_on_its_own_grid_a_placed_crop_is_a_pure_crop(stores, grid, name):
    scans, wanted = stores[grid], PREPARATIONS[name].resampling
    entry = scans.entries[0]
    placed = store.placement(entry, wanted)
    assert placed.step == (1, 1, 1)
    box = tuple((n // 4, n // 4 + max(n // 2, 1)) for n in placed.shape)
    plan = store.plan_crop(placed, box)
    voxels = scans.read("a", plan.reads)
    assert all(resampling.is_identity(op) for op in plan.operators)
    start = [int(s) for s in placed.start]
    expected = scans.read("a", tuple((low + s, high + s) for (low, high), s in zip(box, start, strict=True)))
    np.testing.assert_array_equal(voxels, expected)


def test_a_store_and_the_scan_itself_give_the_same_input(tmp_path, scan):
    """Nothing but orientation happens in a native store, so preparing from it or from the file is one."""
    volume = scan(3, code="RAI", tilt=0.1)
    with store.create(tmp_path / "s", "native") as scans:
        scans.add(volume, "a", patient="p")
    for name, prep in PREPARATIONS.items():
        small = replace(prep, sizing=Sizing(pad=prep.sizing.pad))
        one, two = preparation.prepare(small, volume), preparation.prepare(small, scans.volume("a"))
        assert torch.equal(one.x, two.x), name
        np.testing.assert_allclose(one.affine, two.affine, atol=1e-9)


def test_z_scores_of_a_crop_use_the_volumes_statistics(stores):
    scans, prep = stores["flexict-3d"], PREPARATIONS["flexict-3d"]
    entry = scans.entries[0]
    whole = preparation.prepare(replace(prep, sizing=Sizing(pad="min")), scans.volume("a"))
    box = ((3, 20), (5, 25), (7, 27))
    voxels = scans.read("a", store.plan_crop(store.placement(entry, prep.resampling), box).reads)
    mean, deviation = entry.statistics(prep.intensity.clip, ddof=prep.intensity.ddof)
    ours = (torch.from_numpy(voxels).float().clamp(*prep.intensity.clip) - mean) / deviation
    torch.testing.assert_close(ours, crop_of(whole.x[0], box), atol=1e-5, rtol=1e-5)


def test_unknown_foregrounds_and_orientations_are_refused(stores):
    scans = stores["native"]
    with pytest.raises(errors.ForegroundError, match="HU > 300"):
        store.placement(scans.entries[0], Resampling(foreground=Foreground(300.0)))
    with pytest.raises(ContractError, match="RAS"):
        store.placement(scans.entries[0], Resampling(orientation="RAS"))


@pytest.mark.parametrize(("grid", "name"), [("ct-fm", "ct-fm"), ("flexict-3d", "flexict-3d")])
def test_a_crop_from_a_native_store_is_that_of_a_store_on_its_grid(stores, grid, name):
    """Within the rounding to whole HU: half a unit. Without the foreground crop, whose box is found on each store's own grid."""
    wanted = replace(PREPARATIONS[name].resampling, foreground=None)
    crops = []
    for key in ("native", grid):
        scans = stores[key]
        placed = store.placement(scans.entries[0], wanted)
        box = tuple((n // 5 - 3, n // 5 + 25) for n in placed.shape)
        plan = store.plan_crop(placed, box)
        crops.append((placed, store.make_crop(torch.from_numpy(scans.read("a", plan.reads)), plan.operators)))
    (one, near), (two, exact) = crops
    assert one.shape == two.shape
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-9)
    difference = (near - exact).abs().max()
    assert 0 < difference <= 0.5 + 1e-3
