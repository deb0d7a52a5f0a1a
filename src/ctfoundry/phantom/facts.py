"""What a report may say of a phantom's scan beside its findings, measured from the label map and the HU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry.phantom import wording
from ctfoundry.phantom.findings import Finding
from ctfoundry.phantom.spec import Device, Kernel, LesionKind, Phase
from ctfoundry.phantom.wording import PHRASES

if TYPE_CHECKING:
    from ctfoundry.phantom.make import Phantom

LEAST_VOXELS = 20
"""Fewer voxels of a structure do not count as seeing it."""
MOTION_MM = 3.0
"""Movement from which a report mentions it."""
STEATOSIS_HU = {"none": -10.0, "portal": -25.0}
"""Liver minus spleen at or below which a liver is called fatty, by phase: unenhanced at least 10 HU below the spleen, 25 HU
in the portal venous phase (criteria in common use, after Boll et al., Radiology 2009, and Johnston et al., AJR 2008). In
other phases nothing is said."""


@dataclass(frozen=True)
class Facts:
    """What a report may use beside findings.

    Attributes
    ----------
    parts : parts of the body that were scanned, head to foot.
    present : structures in the scan; cut : those of them that touch its first or last slice.
    phase, kernel, thickness_mm : of the acquisition.
    liver_hu, spleen_hu : median HU, None where not in the scan.
    devices : implants that the scan shows.
    motion : whether the patient moved or breathed enough to blur or step the slices.
    unsure : kinds with lesion voxels in the scan but no finding (too little of it): nothing is said about these.
    """

    parts: tuple[str, ...]
    present: frozenset[str]
    cut: frozenset[str] = frozenset()
    phase: Phase = "none"
    kernel: Kernel = "standard"
    thickness_mm: float = 3.0
    liver_hu: float | None = None
    spleen_hu: float | None = None
    devices: tuple[Device, ...] = ()
    motion: bool = False
    unsure: frozenset[LesionKind] = frozenset()

    @property
    def steatosis(self) -> bool | None:
        """Whether the liver is fatty by its HU; None where the phase or the field of view does not tell."""
        if self.liver_hu is None or self.spleen_hu is None or self.phase not in STEATOSIS_HU:
            return None
        return self.liver_hu - self.spleen_hu <= STEATOSIS_HU[self.phase]


def facts(phantom: Phantom, findings: Sequence[Finding] = ()) -> Facts:
    """What can be said about a phantom's scan, measured from its voxels."""
    scan, labels = phantom.spec.acquisition, phantom.labels
    names = labels.names or {}
    count = np.bincount(labels.voxels.ravel(), minlength=256)
    present = frozenset(names[i] for i in np.flatnonzero(count >= LEAST_VOXELS).tolist() if i in names)
    ends = labels.reorient("SPL").voxels[[0, -1]]
    cut = frozenset(names[i] for i in np.unique(ends).tolist() if i in names) & present
    seen = {finding.kind for finding in findings}
    spec = phantom.spec.subject.lesions
    marked = {int(v) - 1 for v in np.unique(phantom.lesions.voxels) if v}
    return Facts(
        parts=tuple(part for part, signs in wording.PARTS if any(sign in present for sign in signs)) or ("body",),
        present=present,
        cut=cut,
        phase=scan.phase,
        kernel=scan.kernel,
        thickness_mm=scan.thickness_mm,
        liver_hu=_median(phantom, "liver"),
        spleen_hu=_median(phantom, "spleen"),
        devices=tuple(d for d in phantom.spec.subject.devices if {d.kind, d.site} <= present),
        motion=max(scan.motion_mm, scan.breath_steps_mm) >= MOTION_MM,
        unsure=frozenset(spec[i].kind for i in marked if i < len(spec)) - seen,
    )


def negatives(known: Facts, findings: Sequence[Finding]) -> tuple[LesionKind, ...]:
    """Kinds that a reader can call absent: one of their organs is in the scan, and nothing of them is."""
    found = {finding.kind for finding in findings} | known.unsure
    return tuple(
        kind
        for kind, phrases in PHRASES.items()
        if kind not in found and any(name.startswith(phrases.seen_in) for name in known.present)
    )


def _median(phantom: Phantom, name: str) -> float | None:
    """Median HU of a structure, without the voxels of lesions."""
    ids = [i for i, found in (phantom.labels.names or {}).items() if found == name]
    inside = (phantom.labels.voxels == (ids[0] if ids else -1)) & (phantom.lesions.voxels == 0)
    return float(np.median(phantom.ct.voxels[inside])) if inside.sum() >= LEAST_VOXELS else None
