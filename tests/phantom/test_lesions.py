"""Lesions: drawn from their distributions, in place, of the size asked for, and where the patient's body takes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.ndimage as ndi

from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.phantom import IDS, Acquisition, Phantom, Spec, Subject, draw, draw_subject, make
from ctfoundry.phantom.disease import CHOICES, KINDS, SIZES, draw_lesions
from ctfoundry.phantom.lesions import OVER
from ctfoundry.phantom.space import Pose
from ctfoundry.phantom.spec import Lesion, LesionKind

KEY = Key.of("test lesions")
TORSO: dict[LesionKind, tuple[str, float]] = {
    "lung_nodule": ("lung_upper_lobe_right", 20.0),
    "liver_lesion": ("liver", 40.0),
    "renal_cyst": ("kidney_left", 30.0),
    "pleural_effusion": ("lung_lower_lobe_right", 24.0),
    "pneumothorax": ("lung_upper_lobe_left", 20.0),
    "aortic_aneurysm": ("aorta", 56.0),
    "fracture": ("rib_right_7", 24.0),
    "soft_tissue_mass": ("gluteus_maximus_left", 55.0),
}
"""One lesion of each kind, none near another."""
BLEEDS: dict[LesionKind, tuple[str, float]] = {
    "epidural_haemorrhage": ("brain", 18.0),
    "subdural_haemorrhage": ("brain", 15.0),
    "parenchymal_haemorrhage": ("brain", 45.0),
}
ALL = {**TORSO, **BLEEDS}
NAMES = {label: name for name, label in IDS.items()}


_MADE: dict[str, Phantom] = {}


def scanned(lesions: tuple[Lesion, ...], voxel: float = 4.0, **scan: object) -> Phantom:
    """A quiet scan of one patient, made once."""
    name = repr((lesions, voxel, sorted(scan.items())))
    if name not in _MADE:
        _MADE[name] = _scanned(lesions, voxel, scan)
    return _MADE[name]


def _scanned(lesions: tuple[Lesion, ...], voxel: float, scan: dict[str, object]) -> Phantom:
    matrix = round(400 / voxel)
    values = {"field_mm": matrix * voxel, "matrix": matrix, "spacing_mm": voxel, "thickness_mm": voxel, "noise_hu": 0.0}
    acquisition = {"seed": 1, "z_range": (-190.0, 470.0), "kernel": "soft", **values, **scan}
    return make(Spec(Subject(11, lesions=lesions), Acquisition(**acquisition)))  # type: ignore[arg-type]


def ill(kind: LesionKind, share: float = 1.0) -> Phantom:
    """The patient with lesions of all torso kinds, or with one haemorrhage; `share` of the full sizes, 0 for none."""
    if kind in BLEEDS:
        return head(kind, share)
    found = tuple(Lesion(k, 3, site, size * share) for k, (site, size) in TORSO.items()) if share else ()
    return scanned(found)


def head(kind: LesionKind, share: float = 1.0, **attributes: str) -> Phantom:
    found = (Lesion(kind, 3, "brain", BLEEDS[kind][1] * share, attributes),) if share else ()
    return scanned(found, 4.0, z_range=(590.0, 740.0), field_mm=240.0, matrix=60, centre_mm=(0.0, 8.0), phase="none")


def mask(phantom: Phantom, kind: LesionKind | None = None) -> np.ndarray:
    """Voxels of the lesion of a kind, or of the only one."""
    index = 0 if kind is None else [lesion.kind for lesion in phantom.spec.subject.lesions].index(kind)
    return phantom.lesions.voxels == index + 1


def inner(phantom: Phantom, kind: LesionKind | None = None) -> np.ndarray:
    """HU in the lesion, at least a voxel from its edge."""
    return phantom.ct.voxels[ndi.binary_erosion(mask(phantom, kind))]


def shares(labels: np.ndarray) -> dict[str, float]:
    ids, counts = np.unique(labels, return_counts=True)
    return {NAMES.get(int(i), "air"): int(n) / labels.size for i, n in zip(ids, counts, strict=True)}


@pytest.mark.parametrize("kind", ALL)
def test_a_grown_lesion_holds_the_smaller_one_in_one_piece(kind: LesionKind) -> None:
    large, small = mask(ill(kind), kind), mask(ill(kind, 0.7), kind)
    assert large.sum() > 1.25 * small.sum() > 10
    for each in (large, small):
        pieces, count = ndi.label(each, np.ones((3, 3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.98 * each.sum(), count
    assert not (small & ~large).any()


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_sits_at_its_site(kind: LesionKind) -> None:
    sick, healthy, site = ill(kind), ill(kind, 0), ALL[kind][0]
    share = shares(healthy.labels.voxels[mask(sick, kind)])
    if kind in ("pleural_effusion", "pneumothorax"):
        side = site.rsplit("_", 1)[1]
        assert sum(v for n, v in share.items() if n.startswith("lung") and n.endswith(side)) > 0.95, share
    elif kind in OVER:
        assert share.get(site, 0) > 0.15, share
        assert sum(v for n, v in share.items() if n in OVER[kind]) > 0.97, share
    else:
        assert share.get(site, 0) > {"aortic_aneurysm": 0.1}.get(kind, 0.5), share
    # The label on top: the organ's own inside organs, one of its own where something new fills a space.
    named = {"renal_cyst": "kidney_cyst_left"} | {k: k for k in ("pleural_effusion", "pneumothorax", *BLEEDS)}
    top = shares(sick.labels.voxels[mask(sick, kind)])
    assert max(top, key=lambda name: top[name]) == named.get(kind, site)


def test_contrast_follows_the_phase() -> None:
    lesions = (
        Lesion("liver_lesion", 3, "liver", 30.0, {"attenuation": "hyper"}),
        Lesion("liver_lesion", 5, "liver", 30.0, {"attenuation": "hypo"}),
        Lesion("renal_cyst", 3, "kidney_left", 30.0),
    )
    hyper, hypo, cyst = {}, {}, {}
    for phase in ("none", "arterial", "portal", "late"):
        phantom = scanned(lesions, z_range=(80.0, 290.0), phase=phase)
        marked = phantom.lesions.voxels
        liver = (phantom.labels.voxels == IDS["liver"]) & ~ndi.binary_dilation(marked > 0, iterations=2)
        around = np.median(phantom.ct.voxels[ndi.binary_erosion(liver)])
        values = [float(np.median(phantom.ct.voxels[ndi.binary_erosion(marked == i)])) for i in (1, 2, 3)]
        hyper[phase], hypo[phase], cyst[phase] = values[0] - around, values[1] - around, values[2]
    assert hyper["arterial"] > 20  # bright in the first pass only
    assert hyper["late"] < hyper["portal"] + 5 < 10
    assert max(hypo.values()) < -5
    assert hypo["portal"] == min(hypo.values())
    assert max(cyst.values()) - min(cyst.values()) < 3  # nothing is taken up
    assert -5 < cyst["none"] < 20


def test_nodules_look_like_their_attributes() -> None:
    traits = (
        ("upper_lobe_left", {}),
        ("upper_lobe_right", {"attenuation": "ground-glass"}),
        ("lower_lobe_left", {"attenuation": "part-solid"}),
        ("lower_lobe_right", {"calcification": "diffuse"}),
        ("middle_lobe_right", {"cavitation": "yes"}),
    )
    lesions = tuple(Lesion("lung_nodule", 3, f"lung_{lobe}", 24.0, trait) for lobe, trait in traits)
    phantom = scanned(lesions, z_range=(190.0, 460.0))
    solid, glass, part, hard, hollow = (
        phantom.ct.voxels[ndi.binary_erosion(phantom.lesions.voxels == i + 1)] for i in range(5)
    )
    assert 0 < np.median(solid) < 100
    assert -750 < np.median(glass) < -400
    assert part.max() > -50 > -400 > np.quantile(part, 0.2)
    assert hard.mean() > 250
    assert hollow.min() < -700
    around = [
        scanned((Lesion("lung_nodule", 3, "lung_upper_lobe_right", 20.0, {"margin": m}),), z_range=(330.0, 460.0))
        for m in ("smooth", "spiculated")
    ]
    rim = ndi.binary_dilation(mask(around[0]), iterations=2) & ~ndi.binary_dilation(mask(around[0]))
    assert around[1].ct.voxels[rim].mean() > around[0].ct.voxels[rim].mean() + 20


def test_blood_darkens_with_age() -> None:
    hu = [float(np.median(inner(head("subdural_haemorrhage", 1.0, stage=s)))) for s in ("acute", "subacute", "chronic")]
    assert hu[0] > 48 > hu[1] > 28 > 24 > hu[2] > 0


@pytest.mark.parametrize("turn", [20.0, -20.0])
def test_fluid_sinks_and_air_rises_in_the_world(turn: float) -> None:
    """On the table's side, also when the patient lies turned."""
    lesions = (
        Lesion("pleural_effusion", 3, "lung_lower_lobe_right", 24.0),
        Lesion("pneumothorax", 3, "lung_upper_lobe_left", 20.0),
    )
    phantom = scanned(lesions, z_range=(190.0, 420.0), tilt_deg=(0.0, 0.0, turn))
    y = np.arange(phantom.labels.shape[1])[:, None]  # rows go backwards
    for kind, side in (("pleural_effusion", "right"), ("pneumothorax", "left")):
        own = mask(phantom, kind)
        lung = np.isin(phantom.labels.voxels, [label for n, label in IDS.items() if n.startswith("lung") and side in n])
        apart = ((own * y).sum() / own.sum() - (lung * y).sum() / lung.sum()) * 4.0
        assert apart > 20 if kind == "pleural_effusion" else apart < -20, kind


def test_fluid_and_air_have_their_hu_and_press_the_lung() -> None:
    sick, healthy = ill("pneumothorax"), ill("pneumothorax", 0)
    assert -10 < np.median(inner(sick, "pleural_effusion")) < 30
    assert np.median(inner(sick, "pneumothorax")) < -940
    left = np.isin(sick.labels.voxels, [IDS["lung_upper_lobe_left"], IDS["lung_lower_lobe_left"]])
    assert np.median(sick.ct.voxels[left]) > np.median(healthy.ct.voxels[left]) + 20
    fluid = mask(sick, "pleural_effusion")
    beside = ndi.binary_dilation(fluid, iterations=2) & np.isin(sick.labels.voxels, [IDS["lung_lower_lobe_right"]])
    assert sick.ct.voxels[beside].mean() > healthy.ct.voxels[beside].mean() + 200


@pytest.mark.parametrize("kind", ["epidural_haemorrhage", "subdural_haemorrhage"])
def test_blood_lies_between_skull_and_brain(kind: LesionKind) -> None:
    phantom, healthy = ill(kind), ill(kind, 0)
    labels, blood = phantom.labels.voxels, mask(phantom)
    depth = ndi.distance_transform_edt(labels != IDS["skull"], sampling=phantom.labels.spacing)
    assert np.quantile(depth[blood], 0.02) < 6  # nothing between bone and blood
    assert depth[blood].max() < BLEEDS[kind][1] + 6  # and no blood deeper than it is thick
    around = shares(labels[ndi.binary_dilation(blood) & ~blood])
    assert around["skull"] > 0.25
    assert around["brain"] > 0.25
    assert sum(around.get(n, 0) for n in ("skull", "brain", "subarachnoid_space", "cerebellum", "venous_sinus")) > 0.95
    # Blood on one side, and the ventricles give way to the other.
    x = [p.labels.world(np.argwhere(p.labels.voxels == IDS["ventricle"]))[:, 0].mean() for p in (phantom, healthy)]
    side = np.sign(phantom.labels.world(np.argwhere(blood))[:, 0].mean())
    assert (x[0] - x[1]) * side < (-0.5 if kind == "subdural_haemorrhage" else -0.1)


def test_lesions_move_with_the_patient() -> None:
    lesions = (
        Lesion("lung_nodule", 3, "lung_lower_lobe_right", 20.0),
        Lesion("liver_lesion", 3, "liver", 30.0),
    )
    places = []
    for change in (
        {},
        {"breath_mm": 25.0},
        {"tilt_deg": (3.0, -4.0, 12.0), "origin_mm": (20.0, -15.0, 300.0), "seed": 9, "phase": "arterial"},
    ):
        phantom = scanned(lesions, z_range=(110.0, 400.0), **change)  # type: ignore[arg-type]
        pose = Pose.of(phantom.spec.subject, phantom.spec.acquisition)
        world = np.stack([phantom.lesions.world(np.argwhere(phantom.lesions.voxels == i)).mean(0) for i in (1, 2)])
        places.append((world, pose.body(world.T).T))
    rest, deep, turned = places
    assert (rest[0][:, 2] - deep[0][:, 2] > (4, 10)).all()  # down with the diaphragm
    assert (np.linalg.norm(turned[0] - rest[0], axis=1) > 200).all()
    for other in (deep, turned):  # and in one place of the body
        assert (np.linalg.norm(other[1] - rest[1], axis=1) < 2.0).all()


def test_an_aneurysm_widens_the_aorta() -> None:
    kind: LesionKind = "aortic_aneurysm"
    sick, healthy = ill(kind), ill(kind, 0)
    planes = mask(sick, kind).any(axis=(1, 2))
    wide = [
        np.sqrt((p.labels.voxels == IDS["aorta"])[planes].sum(axis=(1, 2)).max() * 16 * 4 / np.pi)
        for p in (sick, healthy)
    ]
    assert wide[0] == pytest.approx(56, rel=0.12)
    assert wide[1] < 30
    hu = inner(sick, kind)  # contrast in the stream, clot along the wall
    assert np.quantile(hu, 0.9) > 110
    assert np.quantile(hu, 0.2) < 65
    open_ = scanned((Lesion(kind, 3, "aorta", 56.0, {"thrombus": "no"}),), z_range=(20.0, 180.0))
    assert np.quantile(inner(open_), 0.2) > 90


def test_a_crushed_vertebra_is_lower() -> None:
    heights = []
    for loss in ("", "40"):
        lesions = (Lesion("fracture", 3, "vertebrae_L1", 30.0, {"height_loss_percent": loss}),) if loss else ()
        phantom = scanned(lesions, 2.0, z_range=(130.0, 220.0), field_mm=120.0, matrix=60, centre_mm=(0.0, -10.0))
        bone = phantom.labels.voxels == IDS["vertebrae_L1"]
        columns = bone.sum(axis=0)
        y, x = np.nonzero(columns)
        body = y < np.quantile(y, 0.5)  # in front of the canal
        heights.append(float(np.quantile(columns[y[body], x[body]], 0.25)) * 2)
    assert heights[1] < 0.85 * heights[0]


def test_a_break_is_dark_and_a_callus_thick() -> None:
    acute, healing, healthy = (
        scanned(
            (Lesion("fracture", 3, "rib_right_7", 24.0, {"stage": stage, "displacement_mm": "3"}),) if stage else (),
            2.5,
            z_range=(200.0, 310.0),
        )
        for stage in ("acute", "healing", "")
    )
    # Within the rib, away from its edge, where a whole one is nowhere as dark.
    zone = mask(acute) & ndi.binary_erosion(healthy.labels.voxels == IDS["rib_right_7"])
    assert acute.ct.voxels[zone].min() < healthy.ct.voxels[zone].min() - 30
    rib = [int((p.labels.voxels == IDS["rib_right_7"]).sum()) for p in (healing, healthy)]
    assert rib[0] > 1.02 * rib[1]


def test_draws_follow_their_distributions() -> None:
    subject = draw_subject(KEY("subject"))
    every = dict.fromkeys(KINDS, 1.0)
    drawn = [lesion for i in range(200) for lesion in draw_lesions(KEY(i), subject, odds=every)]
    for kind in KINDS:
        sizes = np.array([lesion.size_mm for lesion in drawn if lesion.kind == kind])
        assert len(sizes) >= 200
        assert np.median(sizes) == pytest.approx(SIZES[kind].median, rel=0.15)
        assert sizes.min() >= SIZES[kind].low
        assert sizes.max() <= SIZES[kind].high
        inside = np.log(sizes[(sizes > SIZES[kind].low) & (sizes < SIZES[kind].high)])
        assert inside.std() == pytest.approx(SIZES[kind].sigma, rel=0.35)
        for name, options in CHOICES[kind].items():
            seen = {lesion.attributes[name] for lesion in drawn if lesion.kind == kind}
            assert seen == {option for option, _ in options}, (kind, name)
    assert {lesion.site for lesion in drawn} <= set(IDS)
    assert len({lesion.seed for lesion in drawn}) == len(drawn)
    # One kind's draw is its own.
    alone = [draw_lesions(KEY(i), subject, odds=every, kinds=["lung_nodule"]) for i in range(20)]
    both = [draw_lesions(KEY(i), subject, odds=every) for i in range(20)]
    assert alone == [tuple(lesion for lesion in all_ if lesion.kind == "lung_nodule") for all_ in both]
    counts = [len(draw_lesions(KEY(i), subject, odds={"renal_cyst": 0.5})) > 0 for i in range(200)]
    assert np.mean(counts) == pytest.approx(0.5, abs=0.1)
    assert draw_lesions(KEY(0), subject, odds={}) == ()


def test_draws_look_where_the_scan_looks() -> None:
    subject = Subject(1)
    chest = Acquisition(1, z_range=(220.0, 480.0))
    every = dict.fromkeys(KINDS, 1.0)
    kinds = {lesion.kind for i in range(30) for lesion in draw_lesions(KEY(i), subject, chest, odds=every)}
    assert kinds == {"lung_nodule", "pleural_effusion", "pneumothorax", "aortic_aneurysm", "fracture"}
    with pytest.raises(UsageError, match="unknown kinds"):
        draw_lesions(KEY(0), subject, odds={"cough": 1.0})  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="probabilities"):
        draw_lesions(KEY(0), subject, odds={"fracture": 2.0})


def test_healthy_unless_asked_for() -> None:
    plain, sick = draw(KEY("draw")), draw(KEY("draw"), lesions=True, odds=dict.fromkeys(KINDS, 1.0))
    assert plain.subject.lesions == plain.subject.devices == ()
    assert plain.subject.wear == 0
    assert sick.subject.lesions
    assert sick.acquisition == plain.acquisition
    alike = {"lesions": (), "devices": (), "wear": 0.0, "age_years": plain.subject.age_years}
    assert dataclasses.replace(sick.subject, **alike) == plain.subject  # type: ignore[arg-type]
    assert not ill("liver_lesion", 0).lesions.voxels.any()


def test_where_lesions_meet_the_later_one_has_the_voxel() -> None:
    def liver(*sizes: float) -> np.ndarray:
        lesions = tuple(Lesion("liver_lesion", 3, "liver", size) for size in sizes)
        return scanned(lesions, z_range=(110.0, 290.0)).lesions.voxels

    both = liver(40.0, 20.0)
    assert np.array_equal(both > 0, liver(40.0) > 0)
    assert np.array_equal(both == 2, liver(20.0) > 0)
