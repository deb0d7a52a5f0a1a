"""Label systems: which number means which structure, and how structures are grouped.

Where each comes from:

- ``totalsegmentator`` (version 2): the 117 numbers and the five groups as the reference lists them (ct-fm.md 7.2).
- ``totalsegmentator-v1``: the 104 numbers of the class map that versions 1.x of the public tool carry (Wasserthal et al. 2023).
  The reference names the members of its v1 groups and gives ranges of numbers; both agree with this map, range by range.
- ``merlin``: the 20 structures of version 2 that the reference compares with Merlin, numbered 1 to 20 in the order of their v2 numbers.
- ``msd-*``: ``labels`` of the ten tasks' dataset.json (Antonelli et al. 2022), spelled as there.

Names, not numbers, say what a structure is: a v1 map read by v2 numbers would teach that the pancreas is a lung lobe, since the
two agree on 1 to 6 alone. A data set must therefore name its numbers; `confused` tells whose names they are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ctfoundry.errors import SettingsError
from ctfoundry.settings import nearest

BACKGROUND = "background"


@dataclass(frozen=True)
class LabelSystem:
    """What the numbers of a label map mean.

    Attributes
    ----------
    name, title, source : what it is called, in words, and where it is defined.
    names : the structure of each number; number 0 is `BACKGROUND`.
    groups : structures that are trained and reported together, by name, in the order of their numbers.
    within : another system by whose names the structures go, where this one is a part of it.
    """

    name: str
    title: str
    source: str
    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    within: str = ""

    @property
    def structures(self) -> tuple[str, ...]:
        """All but the background, in the order of their numbers."""
        return self.names[1:]

    @property
    def table(self) -> dict[int, str]:
        """Number to structure: what a ``labels.json`` holds.

        >>> system("msd-liver").table
        {1: 'liver', 2: 'cancer'}
        """
        return dict(enumerate(self.structures, 1))


def _listed(words: str) -> tuple[str, ...]:
    return (BACKGROUND, *words.split())


def _ranged(names: tuple[str, ...], **groups: tuple[tuple[int, int], ...]) -> dict[str, tuple[str, ...]]:
    """Groups from ranges of numbers, both ends included."""
    return {
        group: tuple(names[i] for first, last in ranges for i in range(first, last + 1))
        for group, ranges in groups.items()
    }


_SPINE = " ".join(f"vertebrae_{part}{n}" for part, most in (("L", 5), ("T", 12), ("C", 7)) for n in range(most, 0, -1))
_RIBS = " ".join(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13))
_LOBES = "lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right"
_GIRDLES = (
    "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right"
    " femur_left femur_right hip_left hip_right"
)
_MUSCLES = (
    "gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right gluteus_minimus_left"
    " gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right"
)
_ILIAC = "iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right"

_V2 = _listed(
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left"
    f" {_LOBES} esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left"
    f" kidney_cyst_right sacrum vertebrae_S1 {_SPINE} heart aorta pulmonary_vein brachiocephalic_trunk"
    " subclavian_artery_right subclavian_artery_left common_carotid_artery_right common_carotid_artery_left"
    " brachiocephalic_vein_left brachiocephalic_vein_right atrial_appendage_left superior_vena_cava inferior_vena_cava"
    f" portal_vein_and_splenic_vein {_ILIAC} {_GIRDLES} spinal_cord {_MUSCLES} brain skull {_RIBS} sternum"
    " costal_cartilages"
)
_V1 = _listed(
    "spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava portal_vein_and_splenic_vein"
    f" pancreas adrenal_gland_right adrenal_gland_left {_LOBES} {_SPINE} esophagus trachea heart_myocardium"
    " heart_atrium_left heart_ventricle_left heart_atrium_right heart_ventricle_right pulmonary_artery brain"
    f" {_ILIAC} small_bowel duodenum colon {_RIBS} {_GIRDLES} sacrum face {_MUSCLES} urinary_bladder"
)
_MERLIN = (BACKGROUND, *(_V2[i] for first, last in ((1, 7), (18, 22), (25, 32)) for i in range(first, last + 1)))

_DECATHLON: dict[str, tuple[str, tuple[str, ...]]] = {
    "msd-brain-tumour": ("Task01_BrainTumour", ("edema", "non-enhancing tumor", "enhancing tumour")),
    "msd-heart": ("Task02_Heart", ("left atrium",)),
    "msd-liver": ("Task03_Liver", ("liver", "cancer")),
    "msd-hippocampus": ("Task04_Hippocampus", ("Anterior", "Posterior")),
    "msd-prostate": ("Task05_Prostate", ("PZ", "TZ")),
    "msd-lung": ("Task06_Lung", ("cancer",)),
    "msd-pancreas": ("Task07_Pancreas", ("pancreas", "cancer")),
    "msd-hepatic-vessel": ("Task08_HepaticVessel", ("Vessel", "Tumour")),
    "msd-spleen": ("Task09_Spleen", ("spleen",)),
    "msd-colon": ("Task10_Colon", ("colon cancer primaries",)),
}

SYSTEMS: dict[str, LabelSystem] = {
    each.name: each
    for each in (
        LabelSystem(
            "totalsegmentator",
            "TotalSegmentator CT, version 2 (117 structures)",
            "doi 10.5281/zenodo.10047292; groups: public repository of CT-FM (reference ct-fm.md 7.2)",
            _V2,
            _ranged(
                _V2,
                organs=((1, 24),),
                vertebrae=((25, 50),),
                cardiac=((51, 68),),
                muscles=((69, 91),),
                ribs=((92, 117),),
            ),
        ),
        LabelSystem(
            "totalsegmentator-v1",
            "TotalSegmentator CT, version 1 (104 structures)",
            "doi 10.5281/zenodo.6802614; groups: public repository of CT-FM, after SuPreM's (reference ct-fm.md 7.2)",
            _V1,
            _ranged(
                _V1,
                organs=((1, 17),),
                vertebrae=((18, 41),),
                cardiac=((42, 57), (93, 93), (104, 104)),
                muscles=((82, 92), (94, 103)),
                ribs=((58, 81),),
            ),
        ),
        LabelSystem(
            "merlin",
            "The structures of TotalSegmentator v2 that Merlin is compared on (20)",
            "arXiv 2501.09001 (reference ct-fm.md 7.2, merlin_v2)",
            _MERLIN,
            within="totalsegmentator",
        ),
        *(
            LabelSystem(
                name, f"Medical Segmentation Decathlon, {task}", f"{task}/dataset.json", (BACKGROUND, *structures)
            )
            for name, (task, structures) in _DECATHLON.items()
        ),
    )
}
"""By name."""


def system(name: str) -> LabelSystem:
    """The label system of a name; raises SettingsError that names the nearest one.

    >>> system("totalsegmentator").names[51], len(system("totalsegmentator-v1").structures)
    ('heart', 104)
    """
    if name not in SYSTEMS:
        raise SettingsError(f"no label system is called {name!r}; {nearest(name, SYSTEMS)}")
    return SYSTEMS[name]


def chosen(labels: str) -> tuple[str, ...]:
    """The structures of a system, or of one of its groups (``SYSTEM/GROUP``), in the order of their numbers.

    >>> len(chosen("totalsegmentator/ribs"))
    26
    """
    name, slash, group = labels.partition("/")
    found = system(name)
    if not slash:
        return found.structures
    if group not in found.groups:
        raise SettingsError(f"{name} has no group {group!r}; {nearest(group, found.groups)}")
    return found.groups[group]


def confused(labels: str, named: Collection[str]) -> LabelSystem | None:
    """The other system whose labels a data set that names `named` has, when they are taken for `labels`; None where they are not.

    They are another's when all of its names are there and no others, or when `labels` lacks some of them and another system has
    all of them while structures that are asked for are missing.

    >>> v1 = system("totalsegmentator-v1").structures
    >>> confused("totalsegmentator", v1).name, confused("totalsegmentator-v1/ribs", v1)
    ('totalsegmentator-v1', None)
    """
    asked, given = system(labels.partition("/")[0]), set(named)
    own = {asked.name, asked.within}
    others = [other for other in SYSTEMS.values() if other.name not in own and other.within != asked.name]
    if given <= set(asked.structures) and set(asked.structures) <= given:
        return None
    for other in others:
        if given == set(other.structures):
            return other
    known = set(SYSTEMS[asked.within].structures if asked.within else asked.structures)
    if given <= known or set(chosen(labels)) <= given:
        return None
    return next((other for other in others if given <= set(other.structures)), None)
