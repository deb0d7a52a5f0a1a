"""Implants: a stent's mesh in an artery; screws and rods in the spine, a nail in a femur."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom.anatomy import LEVEL_EDGES, LEVEL_NAMES, Body
from ctfoundry.phantom.aneurysm import vessel_line
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.names import IDS
from ctfoundry.phantom.place import Atlas, Paint, Spot, atlas, box_around
from ctfoundry.phantom.shapes import smooth_path, tube
from ctfoundry.phantom.spec import Acquisition, Device, DeviceKind

METAL_HU = 9000.0
"""Of titanium; the scanner's scale ends at 3071."""
_HEIGHTS = {"stent": (-60.0, 440.0), "screws": (-330.0, 60.0)}

DEVICE_ODDS: dict[DeviceKind, float] = {"stent": 0.08, "screws": 0.08}
"""Probability that a patient has an implant, where the scan shows its site."""
DEVICE_SITES: dict[DeviceKind, dict[str, tuple[float, float]]] = {
    "stent": {"aorta": (0.5, 130), "iliac_artery_left": (0.25, 10), "iliac_artery_right": (0.25, 10)},
    "screws": {"vertebrae_L4": (0.3, 72), "vertebrae_L3": (0.25, 108), "vertebrae_L1": (0.15, 178), "femur_left": (0.15, -160), "femur_right": (0.15, -160)},
}  # fmt: skip
"""Sites of each implant: weight, and the body height (mm) near which it lies. Pedicle screws hold the site and the level above."""


def draw_devices(
    key: Key, acquisition: Acquisition | None = None, *, odds: Mapping[DeviceKind, float] | None = None
) -> tuple[Device, ...]:
    """The implants of a random patient: each kind by its odds (`DEVICE_ODDS`), at a site that the scan is meant to show.

    Raises UsageError for odds that are no probabilities.
    """
    chances = DEVICE_ODDS if odds is None else odds
    if not all(0 <= chance <= 1 for chance in chances.values()):
        raise UsageError("odds are probabilities between 0 and 1", where="draw_devices")
    found = []
    for kind, chance in chances.items():
        own = key("device", kind)
        sites = {
            site: weight
            for site, (weight, z) in DEVICE_SITES[kind].items()
            if acquisition is None or acquisition.z_range[0] + 10 <= z <= acquisition.z_range[1] - 10
        }
        if float(own.uniform()) < chance and sites:
            point = float(own("site").uniform()) * sum(sites.values())
            for site, weight in sites.items():
                point -= weight
                if point < 0:
                    found.append(Device(kind, own.seed() % 2**31, site))
                    break
    return tuple(found)


def paint_devices(canvas: Canvas, body: Body, paint: Paint) -> None:
    """All implants of the patient, over everything else; `paint` paints the healthy body."""
    for device in body.subject.devices:
        key = Key.of("phantom", "device", device.kind, device.seed)
        if device.site.startswith("vertebrae"):
            _paint_pedicles(canvas, body, device, key)
            continue
        chart = atlas(body.subject, _HEIGHTS[device.kind], paint)
        if device.kind == "stent":
            _paint_stent(canvas, device, key, chart)
        else:
            _paint_nail(canvas, device, chart)


def _paint_stent(canvas: Canvas, device: Device, key: Key, chart: Atlas) -> None:
    """Diamond-shaped struts of 0.4 mm on a cylinder that fits the vessel."""
    aorta = device.site == "aorta"
    line = vessel_line(chart, device.site, (45, 220) if aorta else (-60, 45))
    if len(line) < 6:
        return
    middle = float(key("place").uniform(0.35, 0.65))
    half = float(key("length").uniform(26, 45)) / (1 if aorta else 1.6)
    at = line[int(middle * (len(line) - 1))]
    path = line[np.abs(line[:, 2] - at[2]) <= half + 8]
    box = box_around(canvas.space, canvas.space.pose.world(path), 24)
    if len(path) < 3 or box is None:
        return
    x, y, z = canvas.space.coordinates(box)
    order = np.argsort(path[:, 2])
    path = path[order]
    cx, cy = (np.interp(z, path[:, 2], path[:, i]).astype(np.float32) for i in (0, 1))
    slope = np.polyfit(path[:, 2], path[:, :2], 1)[0]
    scale = np.linalg.norm(Spot.of(chart.pose, at).metric, axis=0)
    # Circles across the vessel are ellipses across the body where the vessel runs aslant.
    lean = np.array([slope[0] * scale[0], slope[1] * scale[1], scale[2]])
    lean /= np.linalg.norm(lean)
    u, v = (x - cx) * scale[0], (y - cy) * scale[1]
    rho = np.sqrt(np.maximum(u**2 + v**2 - (u * lean[0] + v * lean[1]) ** 2, 0))
    along = (z - at[2]) * scale[2] / max(lean[2], 0.3) + u * lean[0] + v * lean[1]
    radius = 9.6 if aorta else 4.6
    wall = canvas.share(np.abs(rho - np.float32(radius)) - np.float32(0.2))
    angle, wave = np.arctan2(v, u), 2 * np.pi * along / 12
    count = 6 if aorta else 4
    mesh = np.minimum(np.abs(np.sin(0.5 * (count * angle + wave))), np.abs(np.sin(0.5 * (count * angle - wave))))
    pitch = 2 * np.pi * radius / count
    struts = np.clip(0.5 + (0.4 - mesh * pitch / np.pi) / canvas.space.voxel_mm, 0, 1)
    share = wall * struts * (np.abs(along) < half * scale[2])
    _put(canvas, box, share.astype(np.float32), "stent", least=0.03)


def _paint_pedicles(canvas: Canvas, body: Body, device: Device, key: Key) -> None:
    """Four pedicle screws with heads, and two rods."""
    level = LEVEL_NAMES.index(device.site)
    heads: dict[int, list[np.ndarray]] = {-1: [], 1: []}
    for step in (0, 1):
        low, high = float(LEVEL_EDGES[level + step]), float(LEVEL_EDGES[level + step + 1])
        z = low + 0.45 * (high - low)
        y = float(body.spine(z))
        for side in (-1, 1):
            wander = key("screw", step, side).uniform(-1.5, 1.5, 3)
            head, tip = np.array([side * 21.0, y - 41, z + 2]) + wander, np.array([side * 7.0, y + 7, z]) + wander
            _tube(canvas, [head, tip], [3.2, 2.4])
            _tube(canvas, [head - (0, 5, 0), head + (-side * 1.5, 3, 0)], [6.2, 6.0])
            heads[side].append(head - (0, 6, 0))
    for ends in heads.values():
        along = ends[1] - ends[0]
        _tube(
            canvas,
            [ends[0] - 0.25 * along, ends[0] + 0.5 * along - (0, 1.5, 0), ends[1] + 0.25 * along],
            [2.8, 2.8, 2.8],
        )


def _paint_nail(canvas: Canvas, device: Device, chart: Atlas) -> None:
    """A nail down the femoral shaft and a screw through it into the head."""
    side = -1 if device.site.endswith("left") else 1
    line = vessel_line(chart, device.site, (-330, -175))
    if len(line) < 4:
        return
    line = line[np.argsort(-line[:, 2])]
    top = line[0] + (line[0] - line[-1]) / max(float(np.linalg.norm(line[0] - line[-1])), 1) * 45
    path = smooth_path(np.concatenate([top[None], line[:: max(len(line) // 6, 1)]]), 24)
    _tube(canvas, list(path), [5.2] * len(path))
    enter = path[np.argmin(np.abs(path[:, 2] + 178))]
    voxels = np.argwhere(chart.labels == IDS[device.site])
    points = chart.body(voxels.astype(float))
    upper = points[points[:, 2] > points[:, 2].max() - 45]
    head = upper[upper[:, 0] * side <= np.median(upper[:, 0] * side)].mean(0)
    start = enter + (enter - head) * 0.35
    _tube(canvas, [start, head + (head - enter) * 0.05], [4.6, 4.4])


def _tube(canvas: Canvas, points: list[np.ndarray], radii: list[float]) -> None:
    found = tube(canvas.space, np.array(points), radii)
    if found is not None:
        _put(canvas, found[0], canvas.share(found[1]), "screws", least=0.5)


def _put(canvas: Canvas, box: tuple[slice, slice, slice], share: np.ndarray, name: str, least: float) -> None:
    """Metal by share; voxels with at least `least` of it get its label (struts never fill one)."""
    under = canvas.hu[box]
    under += share * (METAL_HU - under)
    metal = canvas.metal[box]
    np.maximum(metal, share, out=metal)
    np.copyto(canvas.labels[box], np.uint8(IDS[name]), where=share >= least)
