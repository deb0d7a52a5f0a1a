"""Data sets that mean harm, or were damaged: each is one named error, and nothing outside of the folder is touched."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctfoundry.archive.adapters import DataSetError, open_dataset, sheet, tree
from ctfoundry.archive.adapters.tree import Tree


def msd(folder: Path, image: str = "./imagesTr/a.nii.gz", **more: Any) -> Path:
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "imagesTr" / "a.nii.gz").touch()
    data = {
        "labels": {"0": "background", "1": "liver"},
        "training": [{"image": image, "label": "./labelsTr/a.nii.gz"}],
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize(
    "name",
    ["../../secret.nii.gz", "/etc/passwd", "imagesTr/../../x", "C:/x", "..\\x", "~/x", "a\0b", "\\\\host\\share"],
)
def test_names_out_of_the_folder(tmp_path, name):
    with pytest.raises(DataSetError, match=r"dataset.json: names the file .* does not lie below"):
        open_dataset(msd(tmp_path / "Task03_Liver", name))


def test_links_out_of_the_folder(tmp_path):
    (tmp_path / "secret.nii.gz").touch()
    (tmp_path / "far").mkdir()
    root = msd(tmp_path / "Task03_Liver", "./imagesTr/b.nii.gz")
    (root / "imagesTr" / "b.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    with pytest.raises(DataSetError, match=r"b.nii.gz: is a link out of the data set's folder"):
        open_dataset(root)
    other = tmp_path / "amos22"
    (other / "imagesTr").mkdir(parents=True)
    (other / "imagesTr" / "amos_0001.nii.gz").touch()
    (other / "labelsTr").symlink_to(tmp_path / "far")
    with pytest.raises(DataSetError, match="labelsTr: is a link out"):
        open_dataset(other)


def test_links_within_the_folder_are_followed(tmp_path):
    root = msd(tmp_path / "Task03_Liver", "./imagesTr/b.nii.gz")
    (root / "imagesTr" / "b.nii.gz").symlink_to("a.nii.gz")
    assert [case.id for case in open_dataset(root).cases] == ["b"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"training": [', "is not JSON"),
        ('["training"]', "holds list where dict is expected"),
        ('{"training": 5}', "'training' is no list"),
        ('{"training": [7]}', "names no image"),
        ('{"training": [], "labels": {"liver": "one"}}', "does not name labels by numbers"),
        ('{"training": ' + "[" * 100_000, "is not JSON"),
        ('{"training": "\ud800"}', "is not UTF-8"),
    ],
)
def test_damaged_lists(tmp_path, text, words):
    root = msd(tmp_path / "Task03_Liver")
    (root / "dataset.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(DataSetError, match=words):
        open_dataset(root)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"image_id;split\ns0001;tr\xe9in\n", "is not UTF-8"),
        (b"id;split;image_id_old\ns0001;train;1\n", "has no column image_id"),
        (b"image_id;split\ns0001;train;x;y\n", "line 2 has 4 cells, the header 2"),
        (b"image_id;split;split\n", "names a column twice"),
        (b"image_id;" + b";".join(b"c%d" % i for i in range(5000)) + b"\n", "thousands of them"),
        (b"image_id;split\ns0001;" + b"x" * 200_000 + b"\n", "is not a table"),
    ],
)
def test_damaged_tables(tmp_path, data, words):
    (tmp_path / "s0001").mkdir()
    (tmp_path / "s0001" / "ct.nii.gz").touch()
    (tmp_path / "meta.csv").write_bytes(data)
    with pytest.raises(DataSetError, match=words):
        open_dataset(tmp_path, "totalsegmentator-v1")


def test_endless_tables(tmp_path, monkeypatch):
    """Rows that no scan asks for are forgotten; past the limits the table is refused."""
    monkeypatch.setattr(tree, "TABLE_ROWS", 50_000)
    path = tmp_path / "t.csv"
    path.write_text("id,text\n" + "".join(f"{i},{'x' * 80}\n" for i in range(50_000)))
    tracemalloc.start()
    assert list(Tree(tmp_path).keyed(path, "id", {"7"}, "t.csv")) == ["7"]
    assert tracemalloc.get_traced_memory()[1] < 2 << 20
    tracemalloc.stop()
    with open(path, "a") as stream:
        stream.write("50000,y\n")
    with pytest.raises(DataSetError, match="more than 50,000 rows"):
        Tree(tmp_path).keyed(path, "id", {"7"}, "t.csv")
    monkeypatch.setattr(tree, "TABLE_BYTES", 1 << 20)
    with pytest.raises(DataSetError, match="larger than 1 MiB"):
        list(Tree(tmp_path).rows(path))


def npy(array: np.ndarray | None = None, header: bytes | None = None, body: bytes = b"") -> bytes:
    if array is not None:
        import io

        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()
    assert header is not None
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def npz(path: Path, **arrays: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in arrays.items():
            archive.writestr(f"{name}.npy", data)
    return path


def good(**changes: bytes) -> dict[str, bytes]:
    cubes, labels = npy(np.zeros((2, 28, 28, 28), np.uint8)), npy(np.array([[0], [10]], np.uint8))
    return {
        f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", cubes), ("labels", labels))
    } | changes


def shaped(text: str, body: bytes = b"") -> bytes:
    return npy(
        header=f"{{'descr': '|u1', 'fortran_order': False, 'shape': {text}, }}".encode().ljust(117) + b"\n", body=body
    )


class Trap:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, ("raise SystemExit('a pickle ran')",)


def pickled() -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_images": pickled()}, "holds pickled objects"),
        ({"train_labels": pickled()}, "holds pickled objects"),
        ({"val_images": shaped("(1000000, 28, 28, 28)")}, "declares .* and holds 0 bytes"),
        ({"val_images": shaped("(-1, 28, 28, 28)")}, "in an order that is not read here"),
        ({"val_images": shaped("(__import__('os').getcwd(),)")}, "is not a NumPy array"),
        ({"val_images": shaped("(2, " + "(" * 500)}, "is not a NumPy array"),
        ({"val_images": b"hello"}, "is not a NumPy array"),
        ({"val_images": npy(np.zeros((2, 28, 28), np.uint8))}, r"not cubes of uint8"),
        ({"val_images": npy(np.zeros((2, 8, 8, 8), np.float64))}, r"not cubes of uint8"),
        ({"val_labels": npy(np.zeros((3, 1), np.uint8))}, r"not \(2, 1\) whole numbers"),
        ({"val_labels": npy(np.array([[0], [11]], np.uint8))}, "is 11, not below 11"),
    ],
)
def test_arrays_that_lie(tmp_path, changes, words):
    npz(tmp_path / "organmnist3d.npz", **good(**changes))
    with pytest.raises(DataSetError, match=words):
        open_dataset(tmp_path)


def test_bombs_in_arrays(tmp_path):
    """A hundred megabytes of zeros in some kilobytes; one member that shares the bytes of another; a cut archive."""
    tracemalloc.start()
    npz(tmp_path / "organmnist3d.npz", **good(train_labels=npy(np.zeros((20 << 20, 1), np.uint8))))
    tracemalloc.reset_peak()
    with pytest.raises(DataSetError, match="is larger than 16 MiB"):
        open_dataset(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    path = npz(tmp_path / "organmnist3d.npz", **good())
    data = path.read_bytes()
    first = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", first + 4)
    at = second + 42  # the second file begins where the first one does
    path.write_bytes(data[:at] + data[first + 42 : first + 46] + data[at + 4 :])
    with pytest.raises(DataSetError, match="share bytes, as zip bombs do"):
        open_dataset(tmp_path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataSetError, match="ends before the directory"):
        open_dataset(tmp_path)
    npz(path, **good())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../evil.npy", b"x")
    with pytest.raises(DataSetError, match="outside of its own folder"):
        open_dataset(tmp_path)


def merlin(folder: Path, sheet_xml: bytes, strings: bytes | None = None) -> Path:
    (folder / "merlin_data").mkdir(parents=True)
    (folder / "merlin_data" / "AC1.nii.gz").touch()
    with zipfile.ZipFile(folder / "reports_final.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("xl/worksheets/sheet1.xml", sheet_xml)
        if strings is not None:
            book.writestr("xl/sharedStrings.xml", strings)
    return folder


def row(n: int, *cells: str) -> str:
    inner = "".join(f'<c r="{chr(65 + i)}{n}" t="s"><v>{cell}</v></c>' for i, cell in enumerate(cells) if cell)
    return f'<row r="{n}">{inner}</row>'


def test_a_workbook_with_shared_texts_and_gaps(tmp_path):
    """As Excel writes them, unlike the layout writer here: texts in a table of their own, empty cells left out."""
    texts = ["study id", "Findings", "Split", "Few Shot", "AC1", "LIVER: <normal>", "val"]
    strings = "".join(f"<si><t>{t.replace('<', '&lt;')}</t></si>" for t in texts[:5])
    strings += "<si><r><t>LIVER: </t></r><r><t>&lt;normal&gt;</t></r></si><si><t>val</t></si>"
    xml = f"<worksheet><sheetData>{row(1, '0', '1', '3', '2')}{row(2, '4', '5', '', '6')}</sheetData></worksheet>"
    made = open_dataset(merlin(tmp_path, xml.encode(), f"<sst>{strings}</sst>".encode()))
    assert (made.cases[0].report, made.cases[0].split) == ("LIVER: <normal>", "validation")


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (
            b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><worksheet>&b;</worksheet>",
            "declares types or entities",
        ),
        ("<!DOCTYPE x><worksheet/>".encode("utf-16"), "declares types or entities"),
        (b"<worksheet><sheetData><row>", "is not XML inside"),
        (row(1, "5").encode(), "refers to a text that it does not have"),
        (b"<worksheet><sheetData>" + row(1).encode() + b"</sheetData></worksheet>", "has no column study id"),
        (
            b"<worksheet><sheetData><row>" + b"<c/>" * 200_000 + b"</row></sheetData></worksheet>",
            "a row or text without end",
        ),
        (b"<a>" * 5000, "a row or text without end"),
    ],
)
def test_hostile_workbooks(tmp_path, xml, words):
    with pytest.raises(DataSetError, match=words):
        open_dataset(merlin(tmp_path, xml))


def test_a_workbook_that_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "PART_BYTES", 1 << 20)
    with pytest.raises(DataSetError, match="unpacks to more than 1 MiB"):
        open_dataset(merlin(tmp_path, b"<a>" + b" " * (2 << 20) + b"</a>"))
    (tmp_path / "reports_final.xlsx").write_bytes(b"no zip")
    with pytest.raises(DataSetError, match="ends before the directory"):
        open_dataset(tmp_path)


def test_coordinates_that_are_none(tmp_path):
    (tmp_path / "subset0").mkdir()
    for name in ("1.2.mhd", "1.2.raw"):
        (tmp_path / "subset0" / name).touch()
    (tmp_path / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,1,nan,3,4\n")
    with pytest.raises(DataSetError, match="has 'nan' where a coordinate is expected"):
        open_dataset(tmp_path)


def test_two_scans_of_one_name(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    for name in ("amos_0001.nii.gz", "amos_0001.nii"):
        (tmp_path / "imagesTr" / name).touch()
    with pytest.raises(DataSetError, match="two scans called amos_0001"):
        open_dataset(tmp_path)
