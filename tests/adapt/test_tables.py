"""Tables of labels and scans: what fits is joined, what does not is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from adapt.heads import head, target_scan, write_heads
from ctfoundry.adapt.tables import TableError, TargetSet, open_targets
from ctfoundry.adapt.target_splits import few_of_each, split_targets
from ctfoundry.errors import ContractError, UsageError


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("heads"), 6)


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text)
    return path


def rows(values, header="scan,label"):
    return header + "\n" + "\n".join(f"head{n:03d}.nii.gz,{v}" for n, v in enumerate(values)) + "\n"


def test_a_table_is_joined_to_a_folder(heads, tmp_path):
    data = open_targets(heads, heads / "labels.csv")
    assert (data.kind, data.classes, len(data.scans)) == ("binary", ("bleed",), 6)
    assert [s.target for s in sorted(data.scans, key=lambda s: s.place)] == [(0,), (1,)] * 3
    assert len({s.id for s in data.scans}) == 6
    assert all("head" not in s.id + s.patient for s in data.scans)
    assert any("0/1 or yes/no, so binary" in note for note in data.notes)
    # the same scans by path, by name without suffix, with semicolons and words
    text = "id;bleed\n" + "\n".join(
        f"{heads / f'head{n:03d}.nii.gz' if n < 3 else f'head{n:03d}'};{'yes' if n % 2 else 'no'}" for n in range(6)
    )
    other = open_targets(heads, table(tmp_path, text))
    assert {(s.id, s.target) for s in other.scans} == {(s.id, s.target) for s in data.scans}
    assert any("each scan counts as a patient" in note for note in other.notes)
    assert data.scans[0].image().kind == "hu"


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ("012012", "multiclass", ("0", "1", "2")),
        (["a", "b", "b", "a", "b", "a"], "multiclass", ("a", "b")),
        (["1", "2", "10", "10", "2", "1"], "multiclass", ("1", "2", "10")),
        (["1.0", "2", "2.0", "1", "3", "3."], "multiclass", ("1", "2", "3")),
    ],
)
def test_kinds_are_inferred_and_said(heads, tmp_path, values, kind, classes):
    data = open_targets(heads, table(tmp_path, rows(values)))
    assert (data.kind, data.classes) == (kind, classes)
    assert any("so multiclass" in note for note in data.notes)


def test_several_labels_and_missing_values(heads, tmp_path):
    text = rows(["1,0", "0,1", "1,1", ",1", "0,NA", "0,0"], "scan,ich,fracture")
    data = open_targets(heads, table(tmp_path, text), "ich,fracture")
    assert (data.kind, data.classes) == ("multilabel", ("ich", "fracture"))
    assert sorted(s.target for s in data.scans) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert any("2 scans without a value" in note for note in data.notes)
    with pytest.raises(UsageError, match="2 columns that may be labels: ich, fracture"):
        open_targets(heads, tmp_path / "table.csv")
    with pytest.raises(UsageError, match="nearest known one is 'fracture'"):
        open_targets(heads, tmp_path / "table.csv", "fractures")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (rows("111111"), UsageError, "only '1'"),
        (rows([""] * 6), UsageError, "no value"),
        (rows(["0.31", "1.2", "0.31", "3.3", "2", "1"]), UsageError, "measurements"),
        (rows(list("abcdef")), UsageError, "6 different values in 6 scans"),
        (rows(["1,x", "0,y", "1,x", "0,y", "1,x", "0,y"], "scan,a,b"), UsageError, "holds more than 0/1"),
        ("name,label\nhead000.nii.gz,1\n", UsageError, "no column 'scan'"),
        ("scan,label\n", UsageError, "no rows"),
        ("scan,label,label\na,1,0\n", UsageError, "'label' twice"),
        ("scan,label\nhead000.nii.gz,1,3\n", UsageError, "line 2 has 3 cells"),
        (rows("010101") + "head000,1\n", TableError, "1 scans have two rows"),
        ("scan,label\nx,1\ny,0\n", TableError, "none of its 2 rows"),
        (rows(["0,train", "1,train", "0,val", "1,val", "0,rest", "1,test"], "scan,label,split"), UsageError, "'rest' is none of"),
        (rows(["0,p", "1,", "0,r", "1,s", "0,t", "1,u"], "scan,label,patient"), UsageError, "has no patient"),
        (
            rows(["0,p,train", "1,p,val", "0,r,train", "1,s,val", "0,t,val", "1,u,train"], "scan,label,patient,split"),
            ContractError,
            "is in train and in validation",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(heads, tmp_path, text, error, says):
    target = "a,b" if text.startswith("scan,a,b") else "label"
    with pytest.raises(error, match=says):
        open_targets(heads, table(tmp_path, text), target)


def test_rows_and_scans_without_each_other_are_counted(heads, tmp_path):
    data = open_targets(heads, table(tmp_path, rows("0101") + "gone.nii.gz,1\n"))
    assert len(data.scans) == 4
    assert any("1 rows name no scan and are left out, such as row 6" in n for n in data.notes)
    assert any("2 scans have no row" in n for n in data.notes)
    assert not any("gone" in n for n in data.notes)


def test_no_folder_no_table_no_text(heads, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        open_targets(tmp_path / "none", heads / "labels.csv")
    with pytest.raises(UsageError, match="cannot be read as a table"):
        open_targets(heads, tmp_path / "none.csv")
    (tmp_path / "table.csv").write_bytes(b"scan,label\n\xff\xfe,1\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        open_targets(heads, tmp_path / "table.csv")


def test_the_same_scan_twice(tmp_path):
    folder = write_heads(tmp_path / "heads", 4)
    (folder / "copy.nii.gz").write_bytes((folder / "head000.nii.gz").read_bytes())
    data = open_targets(folder, table(tmp_path, rows("0101") + "copy.nii.gz,0\n"))
    assert len(data.scans) == 4
    assert any("1 scans are there twice" in n for n in data.notes)
    with pytest.raises(TableError, match="two files hold the same scan"):
        open_targets(folder, table(tmp_path, rows("0101") + "copy.nii.gz,1\n"))


def test_head_data_sets_bring_their_own_targets(tmp_path):
    """Phantoms laid out as CQ500 and SinoCT are laid out: any reading that is not 0 counts, as in the published evaluation."""
    for name in ("cq500", "sinoct"):
        folder = tmp_path / name
        for n in range(3):
            place = folder / (f"CQ500CT{n} CQ500CT{n}/Unknown Study/CT PLAIN" if name == "cq500" else f"{n:06d}")
            write_slices(place, f"{n}")
        if name == "cq500":
            signs = ["R1:ICH", "R2:ICH", "R1:Fracture", "R2:Fracture"]
            told = ["0,0,0,0", "0,1,0,0", "0,0,1,0"]
            text = (
                "name,Category,"
                + ",".join(signs)
                + "\n"
                + "\n".join(f"CQ500-CT-{n},B1,{t}" for n, t in enumerate(told))
            )
            (folder / "reads.csv").write_text(text + "\n")
        else:
            (folder / "labels.csv").write_text('id,label\n000000,"0,0"\n000001,"1,1"\n000002,"2,1"\n')
    found = open_targets(tmp_path / "cq500", target="any", dataset="cq500")
    assert sorted(s.target for s in found.scans) == [(0,), (1,), (1,)]
    assert any("any of 4 readings is not 0" in n for n in found.notes)
    both = open_targets(tmp_path / "cq500", target="ICH,Fracture", dataset="cq500")
    assert sorted(s.target for s in both.scans) == [(0, 0), (0, 1), (1, 0)]
    with pytest.raises(UsageError, match="several targets"):
        open_targets(tmp_path / "cq500", dataset="cq500")
    abnormal = open_targets(tmp_path / "sinoct", dataset="sinoct")
    assert abnormal.classes == ("abnormal",)
    assert sorted(s.target for s in abnormal.scans) == [(0,), (1,), (1,)]


def write_slices(folder: Path, who: str) -> None:
    from ctfoundry.io.dicom_write import write_series

    made = head(int(who), False)
    write_series(folder, made.voxels, made.affine, series=f"{int(who) + 1}")


def test_splits_hold_every_class_and_no_patient_twice():
    scans = tuple(target_scan(n, (int(n % 5 == 0),)) for n in range(40))
    data = TargetSet("x", scans, "binary", ("bleed",))
    parts, notes = split_targets(data, seed=3)
    everyone = [s.id for part in (parts.train, parts.validation, parts.test) for s in part]
    assert sorted(everyone) == sorted(s.id for s in scans)
    assert [sum(s.target[0] for s in part) for part in (parts.train, parts.validation, parts.test)] == [4, 2, 2]
    assert len(notes) == 2
    assert split_targets(data, seed=4)[0].test != parts.test
    given = TargetSet(
        "x", tuple(target_scan(n, (n % 2,), "train" if n < 30 else "test") for n in range(40)), "binary", ("b",)
    )
    parts, _ = split_targets(given)
    assert {s.id for s in parts.test} == {f"scan{n}" for n in range(30, 40)}
    assert len(parts.validation) == 6
    lone = TargetSet("x", tuple(target_scan(n, (int(n == 0),)) for n in range(10)), "binary", ("b",))
    with pytest.raises(UsageError, match="is in no scan"):
        split_targets(lone)


def test_shots_come_in_turns_and_nest():
    scans = tuple(target_scan(n, (int(n % 5 == 0),)) for n in range(40))
    four, eight = (few_of_each(scans, k, "binary", seed=1) for k in (4, 8))
    assert sum(s.target[0] for s in four) == 2
    assert {s.id for s in four} < {s.id for s in eight}
    for wrong in (1, 41):
        with pytest.raises(UsageError, match="shots"):
            few_of_each(scans, wrong, "binary")


def test_a_shot_of_a_patient_shows_what_the_patient_was_drawn_for():
    """Patients with two clear scans and one with blood count as bleeding: that scan is drawn."""
    scans = tuple(replace(target_scan(n, (int(n % 3 == 2 and n < 12),)), patient=f"p{n // 3}") for n in range(24))
    for seed in range(3):
        drawn = few_of_each(scans, 4, "binary", seed=seed)
        assert sorted(s.target[0] for s in drawn) == [0, 0, 1, 1]
        assert len({s.patient for s in drawn}) == 4
