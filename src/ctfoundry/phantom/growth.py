"""How the reference body is scaled for children: head early, limbs late.

Rounded growth facts, boys and girls together below 13 years: stature (WHO and CDC growth charts), sitting height (0.63 of the
stature at one year, 0.555 at five, 0.52 in adults), head circumference (46, 51 and 56 cm), breadth of chest and pelvis and
depth of the chest (Snyder et al., Anthropometry of Infants, Children and Youths, 1977). They set proportions, not norms: the
factors are blended along the body's axis and organs follow them, so no organ has a growth curve of its own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

ADULT_YEARS = 18.0
"""From here on nothing is scaled."""

_AGES = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 18.0)
_STATURE = {"female": (495, 740, 860, 1085, 1380, 1620, 1630), "male": (500, 755, 875, 1095, 1380, 1690, 1760)}
# Factors on the adult reference, by age: length of trunk, head, leg; breadth of pelvis and chest, depth of the trunk; head's breadth.
_FACTORS = {
    "trunk": (0.29, 0.40, 0.45, 0.57, 0.76, 0.96, 1.0),
    "head": (0.62, 0.82, 0.86, 0.92, 0.95, 0.99, 1.0),
    "leg": (0.20, 0.34, 0.42, 0.59, 0.80, 0.98, 1.0),
    "pelvis": (0.29, 0.41, 0.46, 0.59, 0.76, 0.95, 1.0),
    "chest": (0.36, 0.52, 0.56, 0.64, 0.77, 0.94, 1.0),
    "depth": (0.40, 0.56, 0.59, 0.65, 0.77, 0.93, 1.0),
}
_KNOTS = (-1100.0, -230.0, -90.0, 20.0, 160.0, 470.0, 570.0, 900.0)
"""Body z between which the factors are blended."""


def stature_mm(years: float, sex: str) -> float:
    """Median stature at an age; 18 years and more are grown up."""
    return float(np.interp(years, _AGES, _STATURE[sex]))


@dataclass(frozen=True)
class Growth:
    """Factors along the body's axis, and the map of its length that follows from them.

    Attributes
    ----------
    z : body millimetres (the adult reference), 2 mm apart.
    along : where these heights lie in this body, with z = 0 at 0; strictly rising.
    wide, deep : factors on x and y at these heights; `size` : on everything (the cube root of the three factors).
    """

    z: np.ndarray
    along: np.ndarray
    wide: np.ndarray
    deep: np.ndarray
    size: np.ndarray


@functools.lru_cache(16)
def growth(years: float) -> Growth | None:
    """The scaling at an age; None for adults."""
    if years >= ADULT_YEARS:
        return None
    f = {name: float(np.interp(years, _AGES, values)) for name, values in _FACTORS.items()}
    z = np.arange(-1200.0, 1001.0, 2.0)
    long = np.interp(z, _KNOTS, [f[n] for n in ("leg", "leg", "trunk", "trunk", "trunk", "trunk", "head", "head")])
    wide = np.interp(
        z, _KNOTS, [f[n] for n in ("pelvis", "pelvis", "pelvis", "pelvis", "chest", "chest", "head", "head")]
    )
    deep = np.interp(
        z, _KNOTS, [f[n] for n in ("pelvis", "pelvis", "depth", "depth", "depth", "depth", "head", "head")]
    )
    along = np.concatenate([[0.0], np.cumsum(2.0 * (long[1:] + long[:-1]) / 2)])
    along -= np.interp(0.0, z, along)
    return Growth(z, along, wide, deep, np.cbrt(long * wide * deep))


def bone_hu(years: float) -> tuple[float, float]:
    """Offsets of spongy and cortical bone to those at 50 years, HU.

    Spongy bone loses about 2.4 HU a year in adults (Pickhardt et al. 2013); a child's cortex is less mineralised.
    """
    spongy = np.interp(years, (0, 5, 15, 25, 50, 90), (-20, 20, 55, 60, 0, -95))
    cortex = np.interp(years, (0, 5, 12, 18, 60, 90), (-220, -130, -60, 0, 0, -60))
    return float(spongy), float(cortex)
