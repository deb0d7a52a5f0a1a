"""A small made-up patient with known lesions, for layouts: no anatomy is drawn, so the files can be checked to the voxel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ctfoundry.geometry import make_affine
from ctfoundry.keys import Key
from ctfoundry.layouts.cases import Case
from ctfoundry.phantom.facts import facts
from ctfoundry.phantom.findings import Finding
from ctfoundry.phantom.make import Phantom
from ctfoundry.phantom.names import IDS, LABELS
from ctfoundry.phantom.reports import report
from ctfoundry.phantom.spec import Acquisition, Lesion, Spec, Subject
from ctfoundry.volume import Volume

BLOCKS = {
    "lung_upper_lobe_right": (0, 0), "lung_lower_lobe_left": (0, 2), "heart": (0, 1), "liver": (1, 0), "spleen": (1, 2),
    "kidney_right": (2, 0), "kidney_left": (2, 2), "aorta": (1, 1), "brain": (2, 1),
}  # fmt: skip
"""Structures as blocks of 6 x 8 x 8 voxels: (row along S, column along L)."""
LESIONS = (
    ("lung_nodule", "lung_upper_lobe_right", "right"),
    ("liver_lesion", "liver", ""),
    ("renal_cyst", "kidney_left", "left"),
    ("subdural_haemorrhage", "brain", "left"),
)


def phantom(seed: int, code: str = "SPL") -> Phantom:
    """Blocks in a world of 18 x 10 x 24 voxels of 3 x 2 x 2 mm; a lesion of 2 x 2 x 2 voxels in four of them."""
    labels = np.zeros((18, 10, 24), np.uint8)
    for name, (row, column) in BLOCKS.items():
        labels[6 * row : 6 * row + 6, 1:9, 8 * column : 8 * column + 8] = IDS[name]
    lesions = np.zeros_like(labels)
    for i, (_, site, _) in enumerate(LESIONS, 1):
        row, column = BLOCKS[site]
        lesions[6 * row + 2 : 6 * row + 4, 4:6, 8 * column + 3 : 8 * column + 5] = i
    hu = np.where(labels > 0, labels.astype(np.int16), -1000) + Key.of("hu", seed).integers(0, 40, labels.shape)
    affine = make_affine((3.0, 2.0, 2.0), "SPL", (20.0 + seed, -30.0, 50.0))
    subject = Subject(seed=seed, lesions=tuple(Lesion(kind, i, site, 6.0) for i, (kind, site, _) in enumerate(LESIONS)))
    ct = Volume(hu.astype(np.int16), affine, "hu", source=f"blocks-{seed}")
    truth = Volume(labels, affine, "label", names=LABELS)
    turned = [v.reorient(code) for v in (ct, truth, truth.with_voxels(lesions))]
    return Phantom(*turned, Spec(subject, Acquisition(seed, phase="none", orientation=code)))


@pytest.fixture
def case_of() -> Callable[..., Case]:
    """Makes a case: patient and scan number, split, array order."""

    def make(patient: int = 0, *, scan: int = 0, split: str = "train", code: str = "SPL") -> Case:
        made = phantom(patient, code)
        found = []
        for i, (kind, site, side) in enumerate(LESIONS):
            centre = made.lesions.world(np.argwhere(made.lesions.voxels == i + 1).mean(0))
            found.append(Finding(i, kind, site, side, 5.5, 0.1, tuple(float(v) for v in centre), True))
        known = facts(made, found)
        words = report(known, found, Key.of("case", patient))
        return Case(f"blocks-{patient}-{scan}", patient, scan, split, made, tuple(found), known, words)

    return make
