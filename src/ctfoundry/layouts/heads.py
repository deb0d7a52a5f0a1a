"""Head sets: CQ500 and SinoCT, as DICOM series with labels of the whole scan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctfoundry.layouts.cases import Case
from ctfoundry.layouts.layout import Layout, Row, write_table
from ctfoundry.layouts.series import write_ct

READINGS = (
    "ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right", "ChronicBleed", "Fracture",
    "CalvarialFracture", "OtherFracture", "MassEffect", "MidlineShift",
)  # fmt: skip
"""What each of the three readers of CQ500 said."""
_BLEEDS = {"parenchymal_haemorrhage": "IPH", "subdural_haemorrhage": "SDH", "epidural_haemorrhage": "EDH"}


def cq500_case(root: Path, case: Case) -> Row:
    """``CQ500CT0 CQ500CT0/Unknown Study/CT PLAIN THIN/CT000000.dcm``; all three readers agree, because they saw the masks."""
    who, n = f"CQ500CT{case.patient}", case.patient
    folder = root / f"{who} {who}" / "Unknown Study" / "CT PLAIN THIN"
    write_ct(folder, case, patient=f"CQ500-CT-{n}", description="CT PLAIN THIN", name="CT{:06d}.dcm".format)
    bleeds = [f for f in case.findings if f.kind in _BLEEDS]
    said = {_BLEEDS[f.kind] for f in bleeds}
    said |= {"ICH"} if bleeds else set()
    said |= {f"BleedLocation-{f.side.capitalize()}" for f in bleeds if f.side}
    said |= {"ChronicBleed"} if any(f.attributes.get("stage") == "chronic" for f in bleeds) else set()
    if "fracture" in case.kinds():
        skull = any(f.kind == "fracture" and f.site == "skull" for f in case.findings)
        said |= {"Fracture", "CalvarialFracture" if skull else "OtherFracture"}
    readings = {f"R{reader}:{sign}": int(sign in said) for reader in (1, 2, 3) for sign in READINGS}
    return {"name": f"CQ500-CT-{n}", "Category": "B1" if n % 2 == 0 else "B2", **readings}


def cq500_tables(root: Path, rows: Sequence[Row]) -> None:
    """``reads.csv``: 14 readings by each of 3 readers."""
    write_table(root / "reads.csv", rows)


def sinoct_case(root: Path, case: Case) -> Row:
    """``ID/NNNN.dcm``."""
    name = f"{case.patient:06d}"
    write_ct(root / name, case, patient=name, description="HEAD")
    return {"id": name, "label": f"{case.patient},{int(bool(case.findings))}"}


def sinoct_tables(root: Path, rows: Sequence[Row]) -> None:
    """``labels.csv``: a label of two numbers, the second one 1 for an abnormal scan."""
    write_table(root / "labels.csv", rows, ("id", "label"))


LAYOUTS = {
    "cq500": Layout(
        cq500_case,
        cq500_tables,
        "headctstudy.qure.ai/dataset as used in public code: folders such as 'CQ500CT0 CQ500CT0/Unknown Study/CT PLAIN THIN',"
        " slices CTNNNNNN.dcm, and the header of reads.csv",
        "head",
        lesions=True,
    ),
    "sinoct": Layout(
        sinoct_case,
        sinoct_tables,
        "NOT VERIFIED: the set is given out on request and no description of its folders could be found. One folder a scan, and"
        " labels of two numbers of which the second counts, is what the published CT-FM evaluation implies",
        "head",
        lesions=True,
    ),
}
