"""What a scan must be to enter a store: each rule by name, with its threshold as data (docs/prepare.md lists them).

Rules about size and place are asked of headers, before a voxel is read; rules about values of the voxels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ctfoundry import errors
from ctfoundry.errors import CTFoundryError
from ctfoundry.geometry import Grid
from ctfoundry.io import Found, studies
from ctfoundry.volume import Volume

CHOICES = frozenset({"copy", "duplicate", "representative", "cohort"})
"""Rules that choose among good scans: what they leave out does not count as failing."""

_OF_ERRORS: tuple[tuple[type[CTFoundryError], str], ...] = (
    (errors.MissingSlicesError, "gaps"),
    (errors.IrregularSpacingError, "irregular-spacing"),
    (errors.DuplicateSlicesError, "duplicate-slices"),
    (errors.GeometryError, "geometry"),
    (errors.TruncatedError, "truncated"),
    (errors.TooLargeError, "too-large"),
    (errors.NotAScanError, "not-a-scan"),
    (errors.ReadError, "unreadable"),
    (errors.ContractError, "not-hu"),
    (errors.StoreError, "store"),
)


@dataclass(frozen=True)
class Checks:
    """Thresholds of the rules.

    Attributes
    ----------
    min_slices : rule ``slices``: fewer slices than this are no volume (the published corpora ask for 20 to 50).
    min_cover_mm : rule ``coverage``: extent along the patient's axis, to the voxels' edges.
    spacing_mm : rule ``spacing``: least and largest distance of voxels, along each axis.
    plausible_hu, min_plausible : rule ``hu-range``: at least this share of the voxels lies within these HU. Wide enough for
        metal on an extended scale of 12 bits; a wrong rescale slope does not pass.
    body_hu, min_body : rule ``body``: at least this share lies within the HU of soft tissue and fat, so somebody is there.
    """

    min_slices: int = 16
    min_cover_mm: float = 40.0
    spacing_mm: tuple[float, float] = (0.1, 10.0)
    plausible_hu: tuple[float, float] = (-1500.0, 4095.0)
    min_plausible: float = 0.99
    body_hu: tuple[float, float] = (-200.0, 300.0)
    min_body: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.min_plausible <= 1 or not 0 <= self.min_body <= 1:
            raise ValueError("shares lie between 0 and 1")
        for low, high in (self.spacing_mm, self.plausible_hu, self.body_hu):
            if not low < high:
                raise ValueError(f"{low:g} to {high:g} is no range")


@dataclass(frozen=True)
class LeftOut:
    """The rule that a scan breaks, and how, in public words."""

    rule: str
    reason: str


def by_header(found: Found, checks: Checks, *, allow_gaps: bool = False) -> LeftOut | None:
    """What the header says against a scan; None when it may be read."""
    if found.problem is not None:
        mended = (errors.MissingSlicesError, errors.IrregularSpacingError)
        if not (allow_gaps and isinstance(found.problem, mended)):
            return of_error(found.problem, found)
    if found.grid is None or found.is_label:  # what looks like a label map is told by its values
        return None
    return by_grid(found.grid, checks)


def by_grid(grid: Grid, checks: Checks) -> LeftOut | None:
    """Rules ``slices``, ``spacing`` and ``coverage``; the slices are those of the file's slowest axis."""
    low, high = checks.spacing_mm
    if grid.shape[0] < checks.min_slices:
        return LeftOut("slices", f"{grid.shape[0]} slices, fewer than {checks.min_slices}")
    if not low <= min(grid.spacing) <= max(grid.spacing) <= high:
        text = " x ".join(f"{s:.4g}" for s in grid.spacing)
        return LeftOut("spacing", f"spacing of {text} mm, not within {low:g} to {high:g}")
    cover = float(np.abs(grid.affine[2, :3]) @ np.array(grid.shape))
    if cover < checks.min_cover_mm * (1 - 1e-6):  # a rounded last digit of a header decides nothing
        return LeftOut("coverage", f"covers {cover:.4g} mm of the patient's axis, less than {checks.min_cover_mm:g}")
    return None


def by_voxels(volume: Volume, checks: Checks) -> LeftOut | None:
    """Rules ``constant``, ``hu-range`` and ``body``, of a volume in HU; fill counts as air."""
    first = volume.voxels.flat[0]
    plausible = body = 0
    same = True
    for part in volume.voxels:  # one slice at a time: masks of a whole volume would double its memory
        same &= bool((part == first).all())
        plausible += int(np.count_nonzero((part >= checks.plausible_hu[0]) & (part <= checks.plausible_hu[1])))
        body += int(np.count_nonzero((part >= checks.body_hu[0]) & (part <= checks.body_hu[1])))
    count = volume.voxels.size
    if same:
        return LeftOut("constant", f"all voxels are {float(first):g} HU")
    if plausible < checks.min_plausible * count:
        low, high = checks.plausible_hu
        return LeftOut("hu-range", f"only {plausible / count:.1%} of the voxels lie within {low:g} to {high:g} HU")
    if body < checks.min_body * count:
        low, high = checks.body_hu
        return LeftOut(
            "body", f"only {body / count:.2%} of the voxels lie within {low:g} to {high:g} HU: nobody is there"
        )
    return None


def of_error(error: Exception, found: Found) -> LeftOut:
    """The rule and the public reason of an error; its own text may quote headers and goes to stderr alone."""
    if isinstance(error, CTFoundryError):
        rule = next((rule for kind, rule in _OF_ERRORS if isinstance(error, kind)), "unreadable")
        return LeftOut(rule, public(error.what, found))
    if isinstance(error, MemoryError):
        return LeftOut("memory", "needs more memory than a worker may take")
    if isinstance(error, OSError):
        return LeftOut("unreadable", f"cannot be read ({error.strerror or type(error).__name__})")
    return LeftOut("defect", f"{type(error).__name__} while it was read")


def public(text: str, found: Found) -> str:
    """`text` without anything that could name a patient: parts of paths, values of headers, whatever is quoted."""
    facts = found.facts
    values = {part for path in found.files for part in (*path.parts, path.stem)} | {*found.members}
    values |= {part for name in found.members for part in re.split(r"[/\\]", name)}
    values |= {v for v in (found.series, found.study, found.patient, found.part, found.image) if v}
    if facts is not None:
        values |= {facts.description, facts.number, facts.acquisition, facts.kernel, facts.contrast, facts.body_part}
        values |= {facts.manufacturer, facts.model, *facts.image_type}
    for value in sorted((v for v in values if len(v) > 2), key=len, reverse=True):
        text = text.replace(value, "(withheld)")
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "(withheld)", text)
    return re.sub(r"[^\x20-\x7e]", "?", " ".join(text.split()))[:300]


def judged(found: list[Found]) -> dict[int, str]:
    """Position to the reason, for every scan that does not represent its study."""
    return {k: verdict.reason for k, verdict in enumerate(studies.judge(found)) if not verdict.chosen}
