"""The same patient again: another scan of one body, and where each point of the one lies in the other.

Everything that belongs to the patient (size, organs, contents, textures) is a function of the subject, and all that differs in
shape between two scans passes through `space.Pose`, which can be undone. So the displacement between two scans is known, not
estimated: world to body at rest by the one pose, back to the world by the other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ctfoundry.errors import UsageError
from ctfoundry.geometry import Grid
from ctfoundry.keys import Key
from ctfoundry.phantom.frame import HeadPose
from ctfoundry.phantom.space import Pose
from ctfoundry.phantom.spec import Z_RANGE, Acquisition, Kernel, Phase, Spec, Subject
from ctfoundry.settings import nearest

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

Change = Literal["pose", "breath", "dose", "kernel", "thickness", "phase", "field", "range"]
CHANGES: tuple[Change, ...] = get_args(Change)
"""All that can differ between two scans of a patient."""


def again(
    spec: Spec,
    key: Key,
    *,
    changes: Collection[Change] = CHANGES,
    days: float = 0.0,
    doubling_days: Mapping[int, float] | None = None,
) -> Spec:
    """The patient of `spec` in a second scan, `days` later.

    Parameters
    ----------
    changes : what is drawn anew; the rest stays as in `spec`. "pose" is place and turn, "field" size and middle of the field,
        "range" moves both ends by up to 30 mm. Noise and the timing of the contrast are always the new scan's own; a patient who
        moved (`motion_mm`, `breath_steps_mm`) lies still this time.
    days, doubling_days : a lesion (by its index) grows so that its volume doubles in so many days, negative ones halve it; lesions
        not named keep their size. Sizes follow as the cube root: a nodule with 400 days is 1.23 times as wide after 250 days.

    Raises
    ------
    UsageError : an unknown change, a lesion that the patient does not have, a doubling time of 0.
    """
    for name in changes:
        if name not in CHANGES:
            raise UsageError(f"no change is called {name!r}; {nearest(name, CHANGES)}", where="again")
    scan, subject = spec.acquisition, grown(spec.subject, days=days, doubling_days=doubling_days or {})
    new: dict[str, Any] = {"seed": key.seed() % 2**31, "motion_mm": 0.0, "breath_steps_mm": 0.0}
    for name in CHANGES:
        if name in changes:
            new |= _DRAWS[name](key(name), scan)
    return Spec(subject, replace(scan, **new))


def grown(subject: Subject, *, days: float, doubling_days: Mapping[int, float]) -> Subject:
    """The patient `days` later, with those lesions grown whose volume doubling time is given (see `again`)."""
    lesions = list(subject.lesions)
    for index, doubling in doubling_days.items():
        if not 0 <= index < len(lesions):
            raise UsageError(f"lesion {index} of {len(lesions)} does not exist", where="doubling_days")
        if doubling == 0 or not math.isfinite(doubling):
            raise UsageError(f"a volume does not double in {doubling} days", where="doubling_days")
        doublings = days / doubling
        if abs(doublings) > 15:
            raise UsageError(f"{doublings:.3g} doublings are beyond any lesion (at most 15)", where="doubling_days")
        size = lesions[index].size_mm * 2 ** (doublings / 3)
        lesions[index] = replace(lesions[index], size_mm=round(size, 3))
    return replace(subject, lesions=tuple(lesions))


def points(fixed: Spec, moving: Spec, world: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Where the anatomy at world points (RAS+ mm) of the scan `fixed` lies in the scan `moving`, to 0.01 mm.

    Raises
    ------
    UsageError : the two are not one patient, or one of them changed its breath between slabs, so that no single map exists.
    """
    return _moved(_poses(fixed, moving), np.asarray(world, dtype=np.float64))


def displacement(fixed: Spec, moving: Spec, grid: Grid) -> Float32[np.ndarray, "d h w 3"]:
    """The field u (world mm, RAS+) with: anatomy at world p of `fixed` lies at p + u(p) in `moving`, at the voxels of `grid`.

    It is smooth and can be undone by exchanging the two (to 0.01 mm where there is a body). The map goes on into the air
    around the patient, where nothing lies. Raises UsageError as `points` does.
    """
    poses = _poses(fixed, moving)
    depth, height, width = grid.shape
    out = np.empty((*grid.shape, 3), dtype=np.float32)
    plane = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1).reshape(-1, 2)
    for d in range(depth):
        index = np.concatenate([np.full((len(plane), 1), d), plane], axis=1)
        world = np.asarray(index @ grid.affine[:3, :3].T + grid.affine[:3, 3])
        out[d] = (_moved(poses, world) - world).reshape(height, width, 3)
    return out


def _moved(poses: tuple[HeadPose, HeadPose], world: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """World points of the first pose in the second: by body millimetres, and by the head's own where they begin to differ."""
    start, end = poses
    body = Pose.body(start, world.T).T
    head = start.rigid(body.T) > 0
    out = np.empty_like(body)
    out[~head] = Pose.world(end, body[~head])
    if head.any():
        out[head] = end.world(start.body(world[head].T).T)
    return out


def _poses(fixed: Spec, moving: Spec) -> tuple[HeadPose, HeadPose]:
    one, other = (replace(s.subject, lesions=(), devices=()) for s in (fixed, moving))
    if one != other:
        raise UsageError(
            f"the scans show two patients (seeds {one.seed} and {other.seed}) or one who was built otherwise; "
            "only what `again` makes can be matched",
            where="repeat",
        )
    for spec in (fixed, moving):
        if spec.acquisition.breath_steps_mm:
            raise UsageError("a scan whose slabs differ in breath has no single map (breath_steps_mm)", where="repeat")
    first, second = (HeadPose.at(Pose.of(one, s.acquisition), one) for s in (fixed, moving))
    return first, second


def _round(value: float) -> float:
    return round(float(value), 3)


def _pose(key: Key, scan: Acquisition) -> dict[str, Any]:
    turn = key("turn").normal(3).clip(-2, 2) * (3.0, 3.0, 4.0)
    place = key("place").uniform(-1, 1, 3) * (20, 30, 400)
    x, y, z = (a + b for a, b in zip(scan.origin_mm, place, strict=True))
    return {
        "tilt_deg": (_round(turn[0]), _round(turn[1]), _round(turn[2])),
        "origin_mm": (_round(x), _round(y), _round(z)),
    }


def _breath(key: Key, scan: Acquisition) -> dict[str, Any]:
    """At least 6 mm from the first one's."""
    spans = ((-10.0, scan.breath_mm - 6), (scan.breath_mm + 6, 28.0))
    long = [max(b - a, 0.0) for a, b in spans]
    at = float(key.uniform(0, sum(long)))
    value = spans[0][0] + at if at < long[0] else spans[1][0] + at - long[0]
    return {"breath_mm": _round(min(max(value, -20.0), 40.0))}


def _dose(key: Key, scan: Acquisition) -> dict[str, Any]:
    return {"noise_hu": _round(scan.noise_hu * math.exp(float(key.uniform(-0.7, 0.7))))}


def _kernel(key: Key, scan: Acquisition) -> dict[str, Any]:
    others = [k for k in get_args(Kernel) if k != scan.kernel]
    return {"kernel": others[int(key.integers(0, len(others)))]}


def _thickness(key: Key, scan: Acquisition) -> dict[str, Any]:
    distances = [s for s in (1.5, 2.0, 2.5, 3.0, 4.0, 5.0) if s != scan.spacing_mm]
    spacing = distances[int(key.integers(0, len(distances)))]
    return {"spacing_mm": spacing, "thickness_mm": spacing * (1.0, 1.25, 2.0)[int(key("overlap").integers(0, 3))]}


def _phase(key: Key, scan: Acquisition) -> dict[str, Any]:
    others = [p for p in get_args(Phase) if p != scan.phase]
    return {"phase": others[int(key.integers(0, len(others)))]}


def _field(key: Key, scan: Acquisition) -> dict[str, Any]:
    field = scan.field_mm * float(key.uniform(0.9, 1.15))
    shift = key("centre").normal(2).clip(-2, 2) * 12
    return {
        "field_mm": _round(field),
        "matrix": max(round(field / scan.pixel_mm * float(key("pixel").uniform(0.85, 1.15))), 8),
        "centre_mm": (_round(scan.centre_mm[0] + shift[0]), _round(scan.centre_mm[1] + shift[1])),
    }


def _range(key: Key, scan: Acquisition) -> dict[str, Any]:
    low, high = (end + off for end, off in zip(scan.z_range, key.uniform(-30, 30, 2), strict=True))
    low = min(max(low, Z_RANGE[0]), Z_RANGE[1] - 60)
    return {"z_range": (_round(low), _round(min(max(high, low + 60), Z_RANGE[1])))}


_DRAWS = {
    "pose": _pose,
    "breath": _breath,
    "dose": _dose,
    "kernel": _kernel,
    "thickness": _thickness,
    "phase": _phase,
    "field": _field,
    "range": _range,
}
