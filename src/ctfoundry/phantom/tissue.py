"""Hounsfield units of the tissues, by contrast phase.

Plain values are textbook means at 120 kV; enhanced ones lie in the ranges usual for the phases (arterial 25 to 35 s, portal
venous 70 s, late 5 min). Every patient draws an own offset for each tissue and an own strength of enhancement, so that
organs of one scan overlap with other organs of the next.
"""

from __future__ import annotations

import numpy as np

from ctfoundry.phantom.anatomy import Body

_PHASES = {"none": 0, "arterial": 1, "portal": 2, "late": 3}

_TABLE: dict[str, tuple[float, float, float, float]] = {
    # plain, arterial, portal, late
    "artery": (42, 290, 150, 105),
    "vein": (42, 70, 145, 105),
    "right_heart": (42, 190, 145, 105),
    "portal": (42, 85, 165, 108),
    "liver": (57, 68, 106, 88),
    "spleen": (48, 115, 118, 90),
    "cortex": (34, 150, 175, 150),
    "medulla": (30, 55, 150, 150),
    "pelvis": (8, 8, 15, 420),
    "pancreas": (40, 95, 90, 72),
    "adrenal": (28, 62, 76, 56),
    "myocardium": (46, 85, 105, 90),
    "bowel": (38, 70, 95, 75),
    "muscle": (52, 56, 62, 62),
    "bladder": (5, 5, 6, 60),
    "prostate": (40, 55, 75, 70),
    "bile": (8, 8, 10, 10),
}
_SPREAD = {"liver": 9.0, "spleen": 7.0, "cortex": 7.0, "medulla": 6.0, "muscle": 6.0, "bowel": 12.0, "pancreas": 9.0}
"""Standard deviation between patients without contrast, HU; 5 where not listed."""


class Tissue:
    """HU of one patient's tissues in one scan."""

    def __init__(self, body: Body) -> None:
        self._key = body.key("tissue")
        scan = body.acquisition
        self._phase = _PHASES[scan.phase]
        # Dose, heart and timing differ from scan to scan of one patient.
        strength, late = body.key("contrast", scan.seed).normal(2).clip(-2, 2)
        self._strength, self._late = float(np.exp(0.28 * strength)), float(late)
        # One liver in four is fatty: 0 to 45 HU below the mean.
        fatty = self._key("steatosis").uniform(shape=2)
        self._fatty = float(45 * fatty[1]) if fatty[0] < 0.25 else 0.0

    def __call__(self, name: str) -> float:
        """HU of a tissue of the table."""
        plain, here = _TABLE[name][0], _TABLE[name][self._phase]
        own = self._key(name).normal(2).clip(-2, 2)
        value = plain + _SPREAD.get(name, 5.0) * own[0] + (here - plain) * self._strength * np.exp(0.12 * own[1])
        return float(value) - (self._fatty if name == "liver" else 0.0)

    @property
    def phase(self) -> int:
        """0 without contrast, 1 arterial, 2 portal venous, 3 late."""
        return self._phase

    @property
    def mottled(self) -> bool:
        """Whether spleen and kidneys show the uneven first pass of the contrast."""
        return self._phase == 1
