"""Borders and lesions, gathered scan by scan."""

from __future__ import annotations

import numpy as np
import pytest

from adapt.bodies import scans
from ctfoundry.adapt.borders import Borders, kinds_for, lesion_names
from ctfoundry.adapt.cases import IGNORE
from ctfoundry.errors import UsageError
from ctfoundry.geometry import make_affine
from ctfoundry.volume import Volume


def test_which_measures_are_made():
    assert kinds_for(("liver", "cancer"), None) == ("surfaces", "lesions")
    assert kinds_for(("liver", "spleen"), None) == ("surfaces",)
    assert kinds_for(tuple("abcde"), None) == ()
    assert kinds_for(tuple("abcde"), ["lesions"]) == ("lesions",)
    assert kinds_for(("cancer",), []) == ()
    assert lesion_names(("liver", "Tumour", "lung nodule")) == ("Tumour", "lung nodule")
    assert lesion_names(("a", "b")) == ("a", "b")
    with pytest.raises(UsageError, match="no measure is called 'hausdorff'"):
        kinds_for(("a",), ["hausdorff"])


def test_measures_of_two_scans_by_hand():
    """Cubes in a grid of 4x1x1 mm: one moved by a voxel of 4 mm, one missed, one invented, and one where nobody asks."""
    affine = make_affine((4.0, 1.0, 1.0), "SPL")
    made = Borders(("liver", "cancer"), ("surfaces", "lesions"))
    for number, scan in enumerate(scans(2)):
        own, found = (np.zeros((12, 24, 24), dtype=np.uint8) for _ in range(2))
        own[3:6, 3:6, 3:6] = found[4:7, 3:6, 3:6] = 2
        own[3:6, 12:15, 12:15] = 2  # missed
        found[9:11, 20:22, 20:22] = 2  # invented
        own[0, 20:22, 20:22], found[0, 20:22, 20:22] = IGNORE, 2
        if number:
            own[8, 3:6, 3:6] = found[8, 3:6, 3:6] = 1
        made.add(scan, found, Volume(own, affine, "label"))
    data = made.data()
    assert data["lesions"].keys() == {"cancer"}
    cancer = data["lesions"]["cancer"]
    assert cancer["lesions"] == 4
    assert cancer["sensitivity"]["value"] == 0.5
    assert cancer["false_positives"]["value"] == 1
    assert cancer["dice"]["value"] == pytest.approx((2 * 18 / 54) / 2)
    liver = data["surfaces"]["liver"]  # one patient has none and gets none: not asked
    assert (liver["distance"]["value"], liver["normalised"]["value"], liver["distance"]["patients"]) == (0, 1, 1)
    assert data["surfaces"]["cancer"]["empty"] == {"prediction": 0, "reference": 0}
    assert 0 < data["surfaces"]["cancer"]["normalised"]["value"] < 1
