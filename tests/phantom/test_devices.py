"""Implants: where they sit, how bright they are, and what metal does to the slices it is in."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.ndimage as ndi

from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom import IDS, Acquisition, Phantom, Spec, Subject, make
from ctfoundry.phantom.devices import DEVICE_SITES, draw_devices
from ctfoundry.phantom.metal import ANGLES, SPECTRUM, TITANIUM, WATER, _projector, add_streaks
from ctfoundry.phantom.spec import Device

RANGES = {"aorta": (60.0, 190.0), "vertebrae_L3": (60.0, 170.0), "femur_left": (-190.0, -90.0)}


@functools.cache
def scanned(site: str, kind: str = "") -> Phantom:
    devices = (Device(kind, 5, site),) if kind else ()  # type: ignore[arg-type]
    scan = Acquisition(
        1, z_range=RANGES[site], matrix=160, field_mm=400, spacing_mm=2.5, thickness_mm=2.5, noise_hu=0, phase="portal"
    )
    return make(Spec(Subject(11, devices=devices), scan))


def test_screws_hold_the_vertebrae_and_streak() -> None:
    with_it, without = scanned("vertebrae_L3", "screws"), scanned("vertebrae_L3")
    screws = with_it.labels.voxels == IDS["screws"]
    held = without.labels.voxels[screws]
    # Heads and rods lie behind the bone, the screws in it.
    assert np.isin(held, [IDS["vertebrae_L3"], IDS["vertebrae_L2"]]).mean() > 0.2
    assert {IDS["vertebrae_L3"], IDS["vertebrae_L2"]} <= set(held.tolist())
    assert not (held == IDS["spinal_cord"]).any()
    assert with_it.ct.voxels[ndi.binary_erosion(screws)].min() > 2500
    assert with_it.ct.voxels.max() == 3071
    assert not with_it.lesions.voxels.any()
    # In front of the tips, where rays run along the screws, it is darker than without them; far slices are as they were.
    change = with_it.ct.voxels.astype(float) - without.ct.voxels
    plane = int(np.argmax(screws.sum(axis=(1, 2))))
    rows, columns = np.nonzero(screws[plane])
    middle = int(columns.min() + columns.max()) // 2
    ahead = change[plane, rows.min() - 6 : rows.min(), middle - 2 : middle + 3]
    assert ahead.mean() < -50
    none = ~screws.any(axis=(1, 2))
    none &= ~ndi.binary_dilation(~none, iterations=2)
    assert none.any()
    assert np.abs(change[none]).max() == 0
    # Rays reach soft tissue centimetres away.
    away = ndi.distance_transform_edt(~screws[plane]) * 2.5 > 30
    assert np.abs(change[plane][away & (without.labels.voxels[plane] > 0)]).max() > 25


def test_a_stent_is_a_mesh_in_the_aorta() -> None:
    with_it, without = scanned("aorta", "stent"), scanned("aorta")
    change = with_it.ct.voxels.astype(float) - without.ct.voxels
    near = ndi.binary_dilation(without.labels.voxels == IDS["aorta"], iterations=2)
    struts = change > 300
    assert struts.sum() > 60
    assert near[struts].mean() > 0.95
    assert (with_it.labels.voxels == IDS["stent"]).sum() > 60
    # A ring with blood inside, not a plug.
    plane = int(np.argmax(struts.sum(axis=(1, 2))))
    core = ndi.binary_erosion(without.labels.voxels[plane] == IDS["aorta"], iterations=2)
    assert core.any()
    assert struts[plane][core].mean() < 0.2


def test_a_nail_fills_the_femur() -> None:
    with_it, without = scanned("femur_left", "screws"), scanned("femur_left")
    nail = with_it.labels.voxels == IDS["screws"]
    assert nail.sum() > 100
    assert (without.labels.voxels[nail] == IDS["femur_left"]).mean() > 0.5


def test_projections_are_those_of_a_disc() -> None:
    """A water disc of 10 cm: every ray through its middle has 10 cm, at all angles; the area is kept."""
    side, pixel = 96, 0.25
    c = (np.arange(side) - (side - 1) / 2) * pixel
    disc = (np.hypot(c, c[:, None]) < 5).astype(np.float32)
    back, bins = _projector(side)
    rays = (back.T @ disc.reshape(-1) * pixel).reshape(ANGLES, bins)
    np.testing.assert_allclose(rays.max(axis=1), 10, rtol=0.06)
    np.testing.assert_allclose(rays.sum(axis=1) * pixel, np.pi * 25, rtol=0.01)


def test_hardening_of_a_water_disc_with_two_rods() -> None:
    side = 128
    scan = Acquisition(1, matrix=side, field_mm=256, noise_hu=1.0)
    c = np.arange(side) - (side - 1) / 2
    y, x = c[:, None], c
    hu = np.where(np.hypot(y, x) < 50, 0.0, -1000.0).astype(np.float32)[None].repeat(2, axis=0)
    metal = np.zeros_like(hu)
    metal[1] = (np.hypot(y, x - 18) < 3) | (np.hypot(y, x + 18) < 3)
    before = hu.copy()
    add_streaks(hu, metal, scan, Key.of("streaks"))
    assert np.array_equal(hu[0], before[0])
    change = hu[1] - before[1]
    between = (np.abs(y) < 2) & (np.abs(x) < 10)
    beside = (np.abs(x) < 2) & (np.abs(y) > 15) & (np.abs(y) < 40)
    assert change[between].mean() < -60  # rays through both rods read far too little
    assert abs(change[beside].mean()) < 0.35 * abs(change[between].mean())
    single = hu[1:].copy() * 0 + before[1:]
    one = metal[1:] * (x > 0)
    add_streaks(single, one, scan, Key.of("streaks"))
    assert abs((single[0] - before[1])[between].mean()) < 0.5 * abs(change[between].mean())


def test_the_spectrum_is_one() -> None:
    assert SPECTRUM.sum() == pytest.approx(1)
    assert (np.diff(WATER) < 0).all()
    assert (TITANIUM / WATER > 6).all()


def test_drawn_devices() -> None:
    drawn = [d for i in range(300) for d in draw_devices(Key.of("devices", i), odds={"stent": 1.0, "screws": 0.5})]
    assert sum(d.kind == "stent" for d in drawn) == 300
    assert 110 < sum(d.kind == "screws" for d in drawn) < 190
    assert {d.site for d in drawn} == {site for sites in DEVICE_SITES.values() for site in sites}
    chest = Acquisition(1, z_range=(250.0, 480.0))
    assert not any(draw_devices(Key.of("devices", i), chest, odds={"stent": 1.0, "screws": 1.0}) for i in range(30))
    with pytest.raises(UsageError, match="probabilities"):
        draw_devices(Key.of("devices", 1), odds={"stent": 2.0})
