"""A phantom from its spec."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.phantom import motion, scanner
from ctfoundry.phantom.abdomen import paint_abdomen
from ctfoundry.phantom.anatomy import Body
from ctfoundry.phantom.bones import paint_bones
from ctfoundry.phantom.canvas import Canvas
from ctfoundry.phantom.cover import add_cover
from ctfoundry.phantom.devices import paint_devices
from ctfoundry.phantom.frame import HeadCanvas, rise
from ctfoundry.phantom.girdles import paint_girdles
from ctfoundry.phantom.head import paint_head, paint_head_wall
from ctfoundry.phantom.heart import paint_heart
from ctfoundry.phantom.leg import paint_legs
from ctfoundry.phantom.lesions import paint_lesions
from ctfoundry.phantom.metal import add_streaks
from ctfoundry.phantom.names import LABELS
from ctfoundry.phantom.space import Pose, Space
from ctfoundry.phantom.spec import Spec
from ctfoundry.phantom.thorax import paint_lungs
from ctfoundry.phantom.tissue import Tissue
from ctfoundry.phantom.vessels import paint_vessels
from ctfoundry.phantom.wall import paint_muscles, paint_wall
from ctfoundry.phantom.wear import paint_wear
from ctfoundry.volume import AIR, Volume


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic scan with its truth.

    Attributes
    ----------
    ct : int16 HU.
    labels : uint8, on the same grid, with the names of all structures that phantoms hold (`names.LABELS`).
    lesions : uint8, on the same grid: i + 1 where ``spec.subject.lesions[i]`` is, 0 elsewhere. Organs keep their label there.
    spec : what it was made from; `make(spec)` gives the same bits again.
    """

    ct: Volume
    labels: Volume
    lesions: Volume
    spec: Spec


def make(spec: Spec) -> Phantom:
    """The scan and its label map; a pure function of `spec`."""
    subject, scan = spec.subject, spec.acquisition
    low, high = (rise(subject, z) for z in scan.z_range)
    count = max(int((high - low) / scan.spacing_mm) + 1, 1)
    fine, margin = scanner.sub_slices(scan), scanner.margin_slices(scan)
    ox, oy, oz = scan.origin_mm
    first = oz + low
    z = first + (np.arange((count - 1) * fine + 1 + 2 * margin) - margin) * (scan.spacing_mm / fine)
    # The middle of the patient lies 10 mm in front of the reference point.
    left = ox + scan.centre_mm[0] - (np.arange(scan.matrix) - (scan.matrix - 1) / 2) * scan.pixel_mm
    back = oy + 10 + scan.centre_mm[1] - (np.arange(scan.matrix) - (scan.matrix - 1) / 2) * scan.pixel_mm
    canvas = Canvas.joined(
        [paint_body(Spec(subject, then), (z[part], back, left)) for part, then in motion.slabs(scan, z)]
    )
    motion.jerk(canvas.hu, z, scan)
    add_cover(canvas.hu, canvas.labels, z, scan)
    scanner.add_table(canvas.hu, canvas.labels, back, left, ox, Key.of("phantom", scan.seed, "table"))
    labels = np.ascontiguousarray(canvas.labels[margin::fine][:count])
    averaged = scanner.average_slices(canvas.hu, scan, count)
    if subject.devices:
        metal = scanner.average_slices(canvas.metal, scan, count)
        add_streaks(averaged, metal, scan, Key.of("phantom", scan.seed, "metal"))
    hu = scanner.scan_body(averaged, labels, scan)
    np.clip(np.rint(hu, out=hu), AIR, 3071, out=hu)
    affine = make_affine(
        (scan.spacing_mm, scan.pixel_mm, scan.pixel_mm), "SPL", (float(left[0]), float(back[0]), float(first))
    )
    ct = Volume(hu.astype(np.int16), affine, "hu", source=f"phantom-{spec.subject.seed}-{scan.seed}")
    truth = Volume(labels, affine, "label", names=LABELS, source=ct.source)
    lesions = truth.with_voxels(np.ascontiguousarray(canvas.lesions[margin::fine][:count]))
    turned = [v.reorient(scan.orientation) for v in (ct, truth, lesions)]
    return Phantom(turned[0], turned[1], turned[2], spec)


def paint_body(spec: Spec, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Canvas:
    """The patient on voxels at world `axes` (z, y, x), in the one breath of `spec`, before the scanner has seen it."""
    body = Body(spec.subject, spec.acquisition)
    canvas = Canvas.of(Space.of(Pose.of(spec.subject, spec.acquisition), axes))
    tissue = Tissue(body)
    paint_healthy(canvas, body, tissue)
    paint_wear(canvas, body, tissue)
    paint_lesions(canvas, body, tissue, paint_healthy)
    paint_devices(canvas, body, paint_healthy)
    return canvas


def paint_healthy(canvas: Canvas, body: Body, tissue: Tissue) -> None:
    """The patient without lesions and devices; what is painted later covers what is there, or spares it."""
    head = HeadCanvas.of(canvas, body)
    paint_wall(canvas, body, tissue)
    if head is not None:
        paint_head_wall(head, body, tissue)
    paint_muscles(canvas, body, tissue)
    paint_lungs(canvas, body, tissue)
    paint_heart(canvas, body, tissue)
    paint_bones(canvas, body)
    paint_girdles(canvas, body, tissue)
    paint_vessels(canvas, body, tissue)
    paint_legs(canvas, body, tissue)
    if head is not None:
        paint_head(head, body, tissue)
    paint_abdomen(canvas, body, tissue)
