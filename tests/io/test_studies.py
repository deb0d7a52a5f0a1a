"""The rule that says which series represents a study: each point alone, and whole studies as hospitals send them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ctfoundry.errors import MissingSlicesError
from ctfoundry.geometry import Grid, make_affine
from ctfoundry.io import Facts, Found
from ctfoundry.io.studies import extent_mm, field_mm, judge, phase, plane, representatives, sharpness, thickness_mm


def series(
    number: int, description: str = "", *, slices: int = 300, step: float = 1.0, thick: float | None = None, kernel: str = "B30f",
    pixel: float = 0.75, code: str = "SPL", study: str = "1", image_type: str = "ORIGINAL\\PRIMARY\\AXIAL", contrast: str = "", **more: object,
) -> Found:  # fmt: skip
    """A series of 512x512 slices as discovery would list it."""
    facts = Facts(
        description=description,
        number=str(number),
        kernel=kernel,
        thickness_mm=step if thick is None else thick,
        contrast=contrast,
        image_type=tuple(image_type.split("\\")),
    )
    found = Found(
        paths=tuple(Path(f"{study}.{number}", f"{k}.dcm") for k in range(slices)),
        format="dicom",
        modality="CT",
        series=f"{study}.{number}",
        study=study,
        patient="A",
        grid=Grid((slices, 512, 512), make_affine((step, pixel, pixel), code)),
        facts=facts,
    )
    return replace(found, **more)  # type: ignore[arg-type]


def outcome(*found: Found) -> tuple[int | None, dict[int, str]]:
    """(number of the chosen series, number to the reason of each other one)."""
    chosen, reasons = None, {}
    for verdict in judge(found):
        number = int(verdict.found.facts.number)
        if verdict.chosen:
            assert chosen is None
            assert verdict.reason == ""
            chosen = number
        else:
            assert verdict.reason
            reasons[number] = verdict.reason
    return chosen, reasons


SOFT = "B10f B20s B30f B31f B35f B40f B41s B43f I26f I31f\\2 I30s I41f\\3 J30s\\3 Br36d\\3 Br40d Br44f\\2 Bv40d Hr40f H30s H31s H41s Qr40d Bf37 " \
       "STANDARD SOFT STND Standard soft FC01 FC02 FC08 FC10 FC13 FC18 FC26 FC41 FC43 FC64 A B C UB EC B_SOFT_B BODY SMOOTH"  # fmt: skip
MEDIUM = "B45f B46f Br48d H48s Hv49 DETAIL"
SHARP = "B50f B50s B60f B70f B75f B80s U90u H60s H70h I50f I70f\\3 Br54 Br59d Br64 Bl57d Bl64 Bv56 Hr64h Ur77u S80s LUNG BONE BONEPLUS BONE+ EDGE " \
        "HD_LUNG FC30 FC35 FC51 FC52 FC55 FC80 FC81 FC86 D E YA YB YC L B_VSHARP_C"  # fmt: skip


@pytest.mark.parametrize(("kernels", "level"), [(SOFT, "soft"), (MEDIUM, "medium"), (SHARP, "sharp")])
def test_kernels_of_the_vendors(kernels, level):
    assert {name: sharpness(name) for name in kernels.split()} == dict.fromkeys(kernels.split(), level)


@pytest.mark.parametrize("kernel", ["", "CUSTOM", "X1", "FC99"])
def test_unknown_kernels_stay_unknown(kernel):
    assert sharpness(kernel) == ""


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("Abdomen portal venous 1.0", "portal venous"), ("ABD VEN", "portal venous"), ("Oberbauch portalvenös", "portal venous"),
        ("ABDOMEN FASE VENOSA", "portal venous"), ("abdo temps portal", "portal venous"), ("Leber 70s", "portal venous"), ("门脉期", "portal venous"),
        ("Liver ART 1.25", "arterial"), ("Thorax CTA", "arterial"), ("temps artériel", "arterial"), ("fase arteriosa", "arterial"),
        ("Spätphase", "delayed"), ("KIDNEY_DELAY", "delayed"), ("temps tardif", "delayed"), ("排泄 遅延相", "delayed"),
        ("Schädel nativ", "native"), ("Chest w/o contrast", "native"), ("HEAD NON-CONTRAST", "native"), ("Thorax ohne KM", "native"),
        ("sans injection", "native"), ("sin contraste", "native"), ("senza mdc", "native"), ("Pre-contrast", "native"), ("平扫", "native"),
        ("Thorax mit KM", "contrast"), ("Chest with contrast", "contrast"), ("CT Abdomen IV", "contrast"),
        ("Thorax 1.0 B30f", ""), ("Sagittal", ""), ("Part 2", ""),
    ],
)  # fmt: skip
def test_phases_in_several_languages(description, name):
    assert phase(Facts(description=description)) == name


@pytest.mark.parametrize(
    ("agent", "name"),
    [("Ultravist 370", "contrast"), ("APPLIED", "contrast"), ("NONE", "native"), ("ohne", "native"), ("", "")],
)
def test_the_contrast_element_speaks_where_the_description_does_not(agent, name):
    assert phase(Facts(description="Abdomen", contrast=agent)) == name


REFERENCE = series(1, "Thorax")


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (series(2, "Topogram 0.6", slices=2), "scout"),
        (series(2, "Thorax", image_type="ORIGINAL\\PRIMARY\\LOCALIZER"), "scout"),
        (series(2, "Premonitoring"), "bolus monitoring"),
        (series(2, "MIP ax"), "projection"),
        (series(2, "Thorax", image_type="DERIVED\\SECONDARY\\MINIP"), "projection"),
        (series(2, "Iodine map"), "spectral map"),
        (series(2, "Thorax", slices=15, step=5), "15 slices"),
        (series(2, "Thorax", slices=30, step=1), "covers 30 mm"),
        (series(2, "Thorax", is_label=True), "label map"),
        (series(2, "Thorax", modality="MR"), "not CT (MR)"),
        (series(2, "Thorax", problem=MissingSlicesError("2 slices are missing"), grid=None), "missing slices"),
        (series(2, "Thorax", image_type="DERIVED\\SECONDARY\\MPR"), "reformatted"),
        (series(2, "Thorax cor"), "reformatted"),
        (series(2, "Thorax", code="ASL"), "coronal, not axial"),
        (series(2, "Thorax", slices=150), "covers 150 of 300 mm"),
        (series(2, "Thorax", pixel=0.4), "narrow field (205 mm)"),
        (series(2, "Thorax", slices=60, step=5.0), "thicker (5 mm)"),
        (series(2, "Thorax", step=1.0, thick=8.0), "thicker (8 mm)"),
        (series(2, "Thorax", kernel="B70f"), "sharp kernel"),
        (series(2, "Thorax", kernel=""), "unknown kernel"),
        (series(2, "Thorax", slices=1000, step=0.3), "very thin (0.3 mm)"),
        (series(2, "Thorax", slices=200, step=1.5), "thicker (1.5 mm)"),
        (series(2, "Thorax", slices=250), "covers 250 mm"),
        (series(2, "Thorax"), "later series"),
    ],
)
def test_each_point_alone(other, reason):
    """The other series is the reference but for one thing, and that is why it loses."""
    assert outcome(REFERENCE, other) == (1, {2: reason})
    assert outcome(other, REFERENCE) == (1, {2: reason})


def test_phases_are_ranked():
    names = ["portalvenös", "mit KM", "arteriell", "spät", "nativ"]
    found = [series(k + 1, f"Leber {name}") for k, name in enumerate(names)]
    for k, item in enumerate(found):
        assert outcome(*found[k:])[0] == int(item.facts.number)
    assert outcome(*found)[1][3] == "arterial phase"


def test_thin_and_sharp_against_thick_and_soft():
    """Thin slices come before a soft kernel; within one class of thickness the kernel decides."""
    assert outcome(series(1, kernel="B30f", slices=60, step=5.0), series(2, kernel="B70f", step=1.0))[0] == 2
    assert outcome(series(1, kernel="B30f", slices=100, step=3.0), series(2, kernel="B70f", step=1.0))[0] == 1


def test_a_chest_as_it_comes_from_the_scanner():
    chosen, reasons = outcome(
        series(1, "Topogram 0.6 T20f", slices=1, kernel="T20f", image_type="ORIGINAL\\PRIMARY\\LOCALIZER"),
        series(2, "Thorax 5.0 B31f", slices=70, step=5.0, kernel="B31f", contrast="Imeron"),
        series(3, "Thorax 1.0 B70f", slices=350, step=1.0, kernel="B70f", contrast="Imeron"),
        series(4, "Thorax 1.0 B31f", slices=350, step=1.0, kernel="B31f", contrast="Imeron"),
        series(5, "Thorax cor 3.0", slices=80, step=3.0, code="ASL", image_type="DERIVED\\SECONDARY\\REFORMATTED"),
        series(6, "MIP 10.0", slices=100, step=3.0, image_type="DERIVED\\SECONDARY\\MIP"),
        series(501, "Patient Protocol", slices=1, grid=None),
    )
    assert chosen == 4
    assert reasons == {
        1: "scout", 2: "thicker (5 mm)", 3: "sharp kernel", 5: "reformatted", 6: "projection", 501: "protocol page",
    }  # fmt: skip


def test_a_liver_in_three_phases():
    chosen, reasons = outcome(
        series(2, "Abd nativ 5.0", slices=60, step=5.0),
        series(3, "Abd art 1.25", slices=240, step=1.25, contrast="x"),
        series(4, "Abd portalvenoes 1.25", slices=360, step=1.25, contrast="x"),
        series(5, "Abd portalvenoes 0.625 LUNG", slices=720, step=0.625, kernel="LUNG", contrast="x"),
    )
    assert chosen == 4
    assert reasons == {2: "thicker (5 mm)", 3: "arterial phase", 5: "sharp kernel"}


def test_a_study_of_rejects_has_no_representative():
    found = [series(1, "Scout", slices=2), series(2, "Thorax", slices=3)]
    assert outcome(*found) == (None, {1: "scout", 2: "3 slices"})
    assert representatives(found) == {}


def test_studies_and_files_stand_alone():
    nifti = [
        replace(series(k), format="nifti", study=None, series=None, facts=None, paths=(Path(f"{k}.nii"),))
        for k in (1, 2)
    ]
    other = series(1, study="2")
    chosen = representatives([REFERENCE, series(2, "Thorax", kernel="B70f"), other, *nifti])
    assert chosen == {"1": REFERENCE, "2": other, "1.nii": nifti[0], "2.nii": nifti[1]}


def test_the_order_of_the_input_does_not_matter():
    rng = random.Random(0)
    found = [
        series(n, rng.choice(["Thorax", "Thorax nativ", "Abd art", "MIP", "cor"]), step=rng.choice([0.4, 1.0, 1.5, 5.0]),
               slices=rng.choice([12, 100, 300]), kernel=rng.choice(["B30f", "B70f", "", "LUNG"]), study=rng.choice("123"))
        for n in range(60)
    ]  # fmt: skip
    expected = {v.found.series: (v.chosen, v.reason) for v in judge(found)}
    for _ in range(5):
        rng.shuffle(found)
        assert {v.found.series: (v.chosen, v.reason) for v in judge(found)} == expected
    assert sum(chosen for chosen, _ in expected.values()) == 3


@pytest.mark.parametrize("code", ["SPL", "IPL", "SAL", "PSL", "ASR", "LSP", "RIA"])
def test_extent_field_and_plane_follow_the_patient(code):
    """Against the corners of the grid in world millimetres, whatever the axes are called."""
    grid = Grid((40, 50, 60), make_affine((3.0, 2.0, 1.0), code))
    found = replace(series(1), grid=grid)
    corners = grid.corners
    centre_to_centre = corners.max(axis=0) - corners.min(axis=0)
    along_z = {"S": 0, "I": 0}
    axis = next(k for k, letter in enumerate(code) if letter in along_z)
    assert extent_mm(found) == pytest.approx(centre_to_centre[2] + grid.spacing[axis])
    assert field_mm(found) == (100.0, 60.0)
    name = {"S": "axial", "I": "axial", "P": "coronal", "A": "coronal", "L": "sagittal", "R": "sagittal"}[code[0]]
    assert plane(found) == (name, pytest.approx(0, abs=1e-5))


@pytest.mark.parametrize(
    ("degrees", "name"), [(0, "axial"), (20, "axial"), (30, "axial"), (45, "oblique"), (60, "coronal")]
)
def test_slices_turned_about_the_left_right_axis(degrees, name):
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = replace(series(1), grid=Grid((40, 50, 60), turn @ make_affine((3.0, 2.0, 1.0), "SPL")))
    got, off = plane(found)
    assert got == name
    assert off == pytest.approx(min(degrees, 90 - degrees), abs=1e-6)


def test_thickness_is_the_larger_of_thickness_and_step():
    assert thickness_mm(series(1, step=1.0, thick=3.0)) == 3.0
    assert thickness_mm(series(1, step=2.0, thick=1.0)) == 2.0
    assert thickness_mm(replace(series(1), grid=None, facts=None)) == float("inf")
