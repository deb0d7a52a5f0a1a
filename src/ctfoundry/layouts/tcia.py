"""Collections of The Cancer Imaging Archive in the tree that its downloader makes: RIDER Lung CT and NSCLC-Radiomics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ctfoundry.layouts.cases import Case
from ctfoundry.layouts.layout import Layout, Row, no_tables, relabelled
from ctfoundry.layouts.series import uid, write_ct
from ctfoundry.volume import Volume

_TARGETS = {1: ("lesion:lung_nodule",), 2: ("lung_*",), 3: ("spinal_cord",)}
_NAMES = {1: "GTV-1", 2: "Lungs-Total", 3: "Spinal-Cord"}


def _last(*path: object) -> str:
    """The last five digits of a UID, as in the folders' names."""
    return uid(*path)[-5:]


def rider_case(root: Path, case: Case) -> Row:
    """``RIDER Lung CT/RIDER-NNNNNNNNNN/DATE-1-NA-NNNNN/N.000000-NA-NNNNN/1-01.dcm``: two scans of a patient on one day."""
    who = f"RIDER-{1000000000 + case.patient}"
    study = root / "RIDER Lung CT" / who / f"01-01-2020-1-NA-{_last('study', who)}"
    number = 100 * (case.scan + 1)
    folder = study / f"{number}.000000-NA-{_last('series', who, case.scan)}"
    write_ct(folder, case, patient=who, number=number, description="", name=_numbered)
    return {"patient": who, "series": folder.name}


def nsclc_case(root: Path, case: Case) -> Row:
    """``NSCLC-Radiomics/LUNG1-001/DATE-StudyID-NA-NNNNN/0.000000-NA-NNNNN/1-01.dcm``, with RTSTRUCT and SEG beside the CT."""
    who = f"LUNG1-{case.patient + 1:03d}"
    study = root / "NSCLC-Radiomics" / who / f"01-01-2020-StudyID-NA-{_last('study', who)}"
    ct = study / f"0.000000-NA-{_last('ct', who)}"
    write_ct(ct, case, patient=who, number=0, description="", name=_numbered)
    labels = relabelled(case, _TARGETS)
    write_objects(study, ct, labels, who)
    return {"patient": who}


def write_objects(study: Path, ct: Path, labels: Volume, who: str) -> None:
    """The contours and the segmentation of one CT series, each in a folder of its own."""
    from ctfoundry.io.dicom_seg_write import write_seg
    from ctfoundry.io.rtstruct_write import write_rtstruct

    named = replace(labels, names=_NAMES)
    write_rtstruct(named, study / f"0.000000-NA-{_last('contours', who)}" / "1-1.dcm", ct)
    write_seg(named, study / f"300.000000-Segmentation-{_last('seg', who)}" / "1-1.dcm", ct, made="MANUAL")


def _numbered(index: int) -> str:
    return f"1-{index + 1:03d}.dcm"


LAYOUTS = {
    "rider": Layout(
        rider_case,
        no_tables,
        "TCIA collection RIDER Lung CT; folders such as RIDER-1129164940/09-20-2006-1-NA-96508 in public code; two scans of a"
        " patient on one day (doi 10.7937/k9/tcia.2015.u1x8a5nr)",
        "chest",
        lesions=True,
        repeat=2,
        repeats=True,
        days=0,
    ),
    "nsclc": Layout(
        nsclc_case,
        no_tables,
        "TCIA collection NSCLC-Radiomics; folders such as LUNG1-001/09-18-2008-StudyID-NA-69331/0.000000-NA-82046 with 1-NN.dcm in"
        " public code; GTV-1, lungs and spinal cord as RTSTRUCT and SEG (pwoznicki/RadiomicsHub, radhub/NSCLC_Radiomics/README.md)",
        "chest",
        lesions=True,
    ),
}
