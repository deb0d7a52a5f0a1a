"""Pairs of scans of one patient: phantoms scanned again with one thing changed, or scans that a user has; and one pair measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry.errors import ContractError
from ctfoundry.explain import stability
from ctfoundry.explain.stability import Described, Others
from ctfoundry.explain.stability_register import Registration, register
from ctfoundry.keys import Key
from ctfoundry.phantom import draw, make, repeat
from ctfoundry.phantom.spec import Spec
from ctfoundry.report.planes import Mark, three_planes
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float64, UInt8

    from ctfoundry.phantom.repeat import Change

FACTORS: dict[str, tuple[Change, ...]] = {
    "noise": (),
    "dose": ("dose",),
    "kernel": ("kernel",),
    "thickness": ("thickness",),
    "position": ("pose",),
    "breath": ("breath",),
}
"""What differs between a phantom's two scans; the noise is always drawn anew."""


@dataclass(frozen=True)
class Pair:
    """Two scans of one patient. `truth` gives where world points of the first lie in the second, where that is known."""

    name: str
    patient: str
    factor: str
    fixed: Callable[[], Volume]
    moving: Callable[[], Volume]
    truth: Callable[[Float64[np.ndarray, "n 3"]], Float64[np.ndarray, "n 3"]] | None = None


def phantom_pairs(count: int, *, seed: int = 0, voxel_mm: float = 3.0, view: str = "chest") -> list[Pair]:
    """`count` patients, each scanned once and once more for every factor."""
    found = []
    for number in range(count):
        key = Key.of("stability", seed, number)
        first = draw(key, view=view, voxel_mm=voxel_mm)  # type: ignore[arg-type]
        for factor, changes in FACTORS.items():
            second = repeat.again(first, key("again", factor), changes=changes)
            patient = f"P{number + 1:02d}"
            found.append(
                Pair(f"{patient}-{factor}", patient, factor, _scan(first), _scan(second), _truth(first, second))
            )
    return found


def _scan(spec: Spec) -> Callable[[], Volume]:
    return lambda: make(spec).ct


def _truth(first: Spec, second: Spec) -> Callable[[Float64[np.ndarray, "n 3"]], Float64[np.ndarray, "n 3"]] | None:
    if first.acquisition.breath_steps_mm or second.acquisition.breath_steps_mm:
        return None  # slabs in different breaths: no single map
    return lambda points: repeat.points(first, second, points)


@dataclass(frozen=True, eq=False)
class Measured:
    """One pair: numbers as JSON has them, and a picture of the place whose windows agree least."""

    data: dict[str, Any]
    picture: UInt8[np.ndarray, "rows columns 3"]


def measure_pair(
    pair: Pair,
    fixed: Volume,
    moving: Volume,
    describe: Mapping[str, Callable[[Volume], Described]],
    others: Others,
    *,
    apart_mm: float,
    every_mm: float = 32.0,
    count: int = 40,
    seed: int = 0,
    known: Mapping[str, Described] | None = None,
) -> Measured:
    """Register, check, embed, compare. The first of `describe` decides which place is pictured.

    known : descriptions of `fixed`, where they exist already.
    Raises ContractError where the registration is not to be believed or too few places lie in both scans.
    """
    laid = register(fixed, moving, seed=seed)
    if laid.doubt:
        raise ContractError(f"registration refused: {laid.doubt}", do="check that both scans show one patient")
    points = stability.body_points(fixed, every_mm, count, Key.of("stability", "points", seed))
    moved = laid.points(points)
    data: dict[str, Any] = {"patient": pair.patient, "factor": pair.factor, "registration": laid.data(), "found": {}}
    if pair.truth is not None:
        off = np.linalg.norm(pair.truth(points) - moved, axis=1)
        data["registration"]["true_error_mm"] = round(float(np.median(off)), 3)
    for name, maker in describe.items():
        one, two = (known or {}).get(name) or maker(fixed), maker(moving)
        for kind in stability.KINDS:
            first, inside = getattr(one, kind)(points)
            second, also = getattr(two, kind)(moved)
            both = inside & also
            strange = others.without(name, kind, pair.patient)
            found = stability.compare(first[both], second[both], points[both], apart_mm, strange)
            if found is not None:
                data["found"].setdefault(name, {})[kind] = asdict(found)
    main = next(iter(describe))
    if "windows" not in data["found"].get(main, {}):
        raise ContractError("fewer than four windows lie wholly in both scans", do="use smaller windows")
    return Measured(data, _worst(fixed, moving, laid, data["found"][main]["windows"]))


def _worst(
    fixed: Volume, moving: Volume, laid: Registration, found: Mapping[str, Any]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """The two scans, one above the other, at the place with the lowest cosine."""
    point = np.array(found["places"][int(np.argmin(found["cosine"]))])
    shown = []
    for volume, at in ((fixed, point), (moving, laid.points(point[None])[0])):
        x, y, z = at.tolist()
        shown.append(three_planes(volume, point=at, height=170, marks=[Mark((x, y, z))]))
    width = max(p.shape[1] for p in shown)
    return np.concatenate([np.pad(p, ((0, 4), (0, width - p.shape[1]), (0, 0))) for p in shown])
