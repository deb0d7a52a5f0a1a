"""Label systems against what the reference lists, name by name."""

from __future__ import annotations

import pytest

from ctfoundry.errors import SettingsError
from ctfoundry.phantom.names import IDS
from ctfoundry.structures import SYSTEMS, chosen, confused, system

V2, V1 = system("totalsegmentator"), system("totalsegmentator-v1")


def test_sizes_and_unique_names() -> None:
    sizes = {name: len(each.structures) for name, each in SYSTEMS.items()}
    assert sizes == {
        "totalsegmentator": 117, "totalsegmentator-v1": 104, "merlin": 20, "msd-brain-tumour": 3, "msd-heart": 1,
        "msd-liver": 2, "msd-hippocampus": 2, "msd-prostate": 2, "msd-lung": 1, "msd-pancreas": 2,
        "msd-hepatic-vessel": 2, "msd-spleen": 1, "msd-colon": 1,
    }  # fmt: skip
    for name, each in SYSTEMS.items():
        assert each.name == name
        assert len(set(each.names)) == len(each.names)
        assert each.names[0] == "background"


def test_version_2_numbers() -> None:
    # from the reference's list, a few of every stretch; all that phantoms have, from their own table
    known = {
        1: "spleen", 2: "kidney_right", 3: "kidney_left", 7: "pancreas", 10: "lung_upper_lobe_left", 14: "lung_lower_lobe_right",
        17: "thyroid_gland", 18: "small_bowel", 23: "kidney_cyst_left", 25: "sacrum", 26: "vertebrae_S1", 27: "vertebrae_L5",
        31: "vertebrae_L1", 32: "vertebrae_T12", 43: "vertebrae_T1", 44: "vertebrae_C7", 50: "vertebrae_C1", 51: "heart",
        52: "aorta", 55: "subclavian_artery_right", 61: "atrial_appendage_left", 64: "portal_vein_and_splenic_vein",
        68: "iliac_vena_right", 69: "humerus_left", 79: "spinal_cord", 89: "iliopsoas_right", 90: "brain", 91: "skull",
        92: "rib_left_1", 103: "rib_left_12", 104: "rib_right_1", 115: "rib_right_12", 116: "sternum", 117: "costal_cartilages",
    }  # fmt: skip
    assert {i: V2.names[i] for i in known} == known
    phantoms = {name: i for name, i in IDS.items() if i <= 117}
    assert len(phantoms) > 100
    assert {name: V2.names.index(name) for name in phantoms} == phantoms


def test_groups_of_the_paper() -> None:
    assert {name: len(each) for name, each in V2.groups.items()} == {
        "organs": 24, "vertebrae": 26, "cardiac": 18, "muscles": 23, "ribs": 26,
    }  # fmt: skip
    assert [name for each in V2.groups.values() for name in each] == list(V2.structures)
    assert {"thyroid_gland", "prostate", "kidney_cyst_left", "esophagus", "trachea", "colon"} <= set(
        V2.groups["organs"]
    )
    assert {"sacrum", "vertebrae_S1", "vertebrae_C1"} <= set(V2.groups["vertebrae"])
    assert {"heart", "iliac_vena_right", "superior_vena_cava"} <= set(V2.groups["cardiac"])
    assert {"spinal_cord", "brain", "skull", "clavicula_left"} <= set(V2.groups["muscles"])
    assert {"sternum", "costal_cartilages", "rib_right_12"} <= set(V2.groups["ribs"])


def test_version_1_ranges_hold_the_names_that_the_reference_gives_them() -> None:
    sides = ("left", "right")
    organs = {
        "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "aorta", "inferior_vena_cava",
        "portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left", "lung_upper_lobe_left",
        "lung_lower_lobe_left", "lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right",
    }  # fmt: skip
    cardiac = {
        "esophagus", "trachea", "heart_myocardium", "heart_atrium_left", "heart_atrium_right", "heart_ventricle_left",
        "heart_ventricle_right", "pulmonary_artery", "brain", "small_bowel", "duodenum", "colon", "face", "urinary_bladder",
        *(f"iliac_{kind}_{side}" for kind in ("artery", "vena") for side in sides),
    }  # fmt: skip
    muscles = {"sacrum"} | {
        f"{part}_{side}"
        for side in sides
        for part in (
            "humerus", "scapula", "clavicula", "femur", "hip", "gluteus_maximus", "gluteus_medius", "gluteus_minimus",
            "autochthon", "iliopsoas",
        )
    }  # fmt: skip
    spine = {f"vertebrae_{p}{n}" for p, most in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, most + 1)}
    ribs = {f"rib_{side}_{n}" for side in sides for n in range(1, 13)}
    for group, names in (
        ("organs", organs),
        ("vertebrae", spine),
        ("cardiac", cardiac),
        ("muscles", muscles),
        ("ribs", ribs),
    ):
        assert set(V1.groups[group]) == names, group
    assert sorted(name for each in V1.groups.values() for name in each) == sorted(V1.structures)
    numbers = {name: i for i, name in enumerate(V1.names)}
    assert [numbers[n] for n in V1.groups["cardiac"]] == [*range(42, 58), 93, 104]
    assert [numbers[n] for n in V1.groups["muscles"]] == [*range(82, 93), *range(94, 104)]
    # the trap: only the first six numbers and names agree
    assert [i for i in range(1, 105) if V1.names[i] == V2.names[i]] == [1, 2, 3, 4, 5, 6]


def test_merlin_and_the_decathlon() -> None:
    assert system("merlin").structures == (
        "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "small_bowel", "duodenum",
        "colon", "urinary_bladder", "prostate", "sacrum", "vertebrae_S1", "vertebrae_L5", "vertebrae_L4", "vertebrae_L3",
        "vertebrae_L2", "vertebrae_L1", "vertebrae_T12",
    )  # fmt: skip
    assert system("msd-hepatic-vessel").table == {1: "Vessel", 2: "Tumour"}
    from ctfoundry.layouts.segmentation import SETS, TOTAL_V2

    assert V2.structures == TOTAL_V2
    for name in ("msd-liver", "msd-lung", "msd-spleen"):  # layouts have them from another place
        assert dict(SETS[name].names) == system(name).table


def test_names_of_systems_and_groups() -> None:
    assert chosen("totalsegmentator-v1") == V1.structures
    assert chosen("totalsegmentator/organs") == V2.structures[:24]
    with pytest.raises(SettingsError, match="'totalsegmentor'; the nearest known one is 'totalsegmentator'"):
        chosen("totalsegmentor")
    with pytest.raises(SettingsError, match="no group 'rib'; the nearest known one is 'ribs'"):
        chosen("totalsegmentator/rib")


def test_one_systems_labels_taken_for_anothers() -> None:
    def other(labels: str, named: tuple[str, ...]) -> str:
        found = confused(labels, named)
        return found.name if found else ""

    assert other("totalsegmentator", V1.structures) == "totalsegmentator-v1"
    assert other("totalsegmentator/ribs", V1.structures) == "totalsegmentator-v1"
    assert other("totalsegmentator-v1", V2.structures) == "totalsegmentator"
    assert other("totalsegmentator", (*V1.structures[:50], "face")) == "totalsegmentator-v1"
    assert other("msd-lung", ("liver", "cancer")) == "msd-liver"
    assert other("msd-pancreas", ("liver", "cancer")) == "msd-liver"
    assert other("merlin", V1.structures) == "totalsegmentator-v1"
    for labels, named in (
        ("totalsegmentator", V2.structures),
        ("merlin", V2.structures),
        ("totalsegmentator", system("merlin").structures),  # a part of it
        ("totalsegmentator", ("liver", "spleen")),
        ("totalsegmentator", ("liver", "heart", "skin")),  # a phantom
        ("msd-spleen", ("spleen",)),
        ("merlin", ("spleen", "liver")),
    ):
        assert other(labels, named) == "", labels
