"""Patients stay out of outputs: identifying values are planted everywhere a file can hold them, and no output holds one."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io as streams
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blosc2
import duckdb
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement

import worlds
from ctfoundry import io, zoo
from ctfoundry.cli import common
from ctfoundry.io.dicom_write import write_series

NAME, NUMBER, DATE, ROOT = "Zyxplant^Quentin", "83164277", "19031107", "1.2.826.0.777000777"
MARKS = re.compile(rb"zyxplant|quentin|83164277|19031107|1903-11-07|777000777", re.IGNORECASE)
PLANTS = dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), NAME) | {
    "DA": DATE, "DT": f"{DATE}123456", "TM": "123456", "AS": "119Y", "DS": NUMBER, "IS": NUMBER, "UI": ROOT,
}  # fmt: skip
NEEDED = {
    "SOPClassUID", "Modality", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
    "RescaleIntercept", "PhotometricInterpretation", "SpacingBetweenSlices", "NumberOfFrames", "RescaleType", "PixelPaddingValue", "SpecificCharacterSet",
}  # fmt: skip
"""Without these, or with nonsense in them, it is no CT series."""


def plant(data: Any, slice_: int) -> None:
    """Fill every element of a text VR that the dictionary knows; UIDs differ by slice only where slices must."""
    for tag, (vr, vm, _, retired, keyword) in DicomDictionary.items():
        if vr not in PLANTS or not keyword or keyword in NEEDED or retired or tag >> 16 in (0, 2, 4):
            continue
        value: Any = PLANTS[vr] + (f".{tag}" if vr == "UI" else "")
        data[tag] = DataElement(
            tag, vr, value if vm != "2" else [value, value], already_converted=vr not in ("DS", "IS", "PN")
        )
    data.SOPInstanceUID = f"{ROOT}.5.{slice_}"
    block = data.private_block(0x0099, NAME, create=True)
    block.add_new(1, "LO", NAME)
    item = pydicom.Dataset()
    item.PatientName = item.CodeMeaning = NAME
    data.RequestAttributesSequence = [item]
    data.preamble = NAME.encode().ljust(128, b"\0")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans with planted values in headers, names of files and of folders; two that are refused, with planted reasons."""
    folder = tmp_path_factory.mktemp("planted") / NAME / f"{NUMBER} {DATE}"
    scans = [worlds.body(k) for k in range(4)]
    with pydicom.config.disable_value_validation():
        write_series(folder / NAME, scans[0].voxels, scans[0].affine, change=plant, name=f"{NAME}-{{:04d}}.dcm".format)
        gap = folder / f"gap {NAME}"
        write_series(
            gap, scans[3].voxels, scans[3].affine, series="7", change=plant, name=f"{NAME}-{{:04d}}.dcm".format
        )
        for path in gap.iterdir():
            data = pydicom.dcmread(path)
            data.SeriesInstanceUID = f"{ROOT}.77"
            data.save_as(path)
    sorted(gap.iterdir())[9].unlink()
    image = nib.Nifti1Image(scans[1].voxels.transpose(2, 1, 0), np.diag([-2.0, -2, 6, 1]))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = NAME.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{NAME} {NUMBER} {DATE}".encode()))
    with open(folder / f"{NAME}.nii.gz", "wb") as file, gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=file) as packed:
        packed.write(image.to_bytes())
    (folder / f"cut {NAME}.nii.gz").write_bytes((folder / f"{NAME}.nii.gz").read_bytes()[:9000])
    io.write(scans[2], folder / f"{NAME}.nrrd")
    text = (folder / f"{NAME}.nrrd").read_bytes()
    first, _, rest = text.partition(b"\n")
    (folder / f"{NAME}.nrrd").write_bytes(
        b"\n".join([first, b"# " + NAME.encode(), b"patient:=" + NAME.encode(), rest])
    )
    (folder / f"odd {NAME}.nrrd").write_bytes(text.replace(b"encoding: ", f"encoding: {NAME} ".encode()))
    io.write(scans[2].with_voxels(scans[2].voxels + np.int16(1)), folder / f"{NAME}.mha")
    text = (folder / f"{NAME}.mha").read_bytes()
    (folder / f"odd {NAME}.mha").write_bytes(text.replace(b"MET_SHORT", NAME.encode()))
    (folder / f"{NAME}.mha").write_bytes(
        text.replace(b"NDims", f"Comment = {NAME}\nPatientName = {NAME}\nNDims".encode(), 1)
    )
    return folder.parent


def call(*arguments: object) -> bytes:
    """A verb's stdout, run in this process."""
    told = streams.StringIO()
    before, sys.argv = sys.argv, ["ctfoundry", *map(str, arguments)]
    try:
        errors = streams.StringIO()
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as leave:
            common.main()
    finally:
        sys.argv = before
    assert leave.value.code in (0, common.PARTLY), errors.getvalue()
    return told.getvalue().encode()


def unpacked(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The bytes themselves, and those that are packed in them, as deep as it goes."""
    yield name, data
    if data[:2] == b"\x1f\x8b":
        yield from unpacked(f"{name}!gz", gzip.decompress(data))
    elif data[:4] == b"PK\3\4":
        with zipfile.ZipFile(streams.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield f"{name}!name", member.encode()
                yield from unpacked(f"{name}!{member}", archive.read(member))
    elif name.endswith(".parquet"):
        rows = duckdb.sql(f"SELECT * FROM read_parquet('{name}')").fetchall()
        about = duckdb.sql(f"SELECT key, value FROM parquet_kv_metadata('{name}')").fetchall()
        yield f"{name}!rows", repr((rows, about)).encode()
    elif name.endswith(".b2nd"):
        yield f"{name}!voxels", blosc2.ndarray_from_cframe(data)[:].tobytes()
    else:
        for k, run in enumerate(re.findall(rb"[A-Za-z0-9+/]{64,}={0,2}", data)):
            with contextlib.suppress(ValueError):
                yield f"{name}!base64-{k}", base64.b64decode(run, validate=True)


def found_in(folder: Path) -> dict[str, bytes]:
    """Planted values in names and bytes of all files but the private ones."""
    hits = {}
    for path in folder.rglob("*"):
        relative = str(path.relative_to(folder))
        if match := MARKS.search(relative.encode()):
            hits[relative] = match.group()
        if path.is_file() and not path.name.startswith("private"):
            for name, data in unpacked(str(path), path.read_bytes()):
                if match := MARKS.search(data):
                    hits[name] = data[max(match.start() - 60, 0) : match.end() + 60]
    return hits


def test_no_output_holds_what_was_planted(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CTFOUNDRY_SALT", "privacy-test")
    out = tmp_path / "out"
    store = out / "store"
    told = {
        "prepare": call("prepare", planted, store, "--workers", 0, "--grid", "6x2x2", "--failing-share", 1, "--json")
    }
    made = json.loads(told["prepare"])
    assert (len(made["added"]), sorted(made["rules"])) == (4, ["gaps", "truncated", "unreadable"])
    told["again"] = call("prepare", planted, store, "--workers", 0, "--grid", "6x2x2", "--failing-share", 1)
    told["gaps"] = call(
        "prepare", planted, out / "t", "--workers", 0, "--allow-gaps", "--representative", "--collection", "Made up"
    )
    told["stats"] = call("store", "stats", store, "--html", out / "stats.html")
    told["verify"] = call("store", "verify", store)
    told["export"] = call("store", "export", store, out / "export", "--id", made["added"][0])
    zoo.save_model(worlds.tiny(), out / "tiny.safetensors")
    told["inspect"] = call("inspect", planted, "--html", out / "inspect.html", "--phi")
    told["inspect-json"] = call("inspect", planted, "--phi", "--json")
    model = out / "tiny.safetensors"
    told["embed"] = call("embed", planted, "--model", model, "-o", out / "index", "--grids")
    told["embed-store"] = call("embed", store, "--model", model, "-o", out / "index2")
    told["retrieve"] = call("retrieve", "--index", out / "index2", "--query", made["added"][0], "-k", 3)
    private = [path for path in out.rglob("private*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}
    assert any(MARKS.search(path.read_bytes()) for path in private)  # or the test would look for what is nowhere
    hits = found_in(out) | {
        f"stdout of {verb}": text[max(m.start() - 80, 0) : m.end() + 40]
        for verb, text in told.items()
        if (m := MARKS.search(text))
    }
    assert {place: text.decode(errors="replace") for place, text in hits.items()} == {}


def test_the_search_finds_what_is_there(planted: Path, tmp_path: Path) -> None:
    """Each kind of container, with a planted value in it."""
    np.savez_compressed(tmp_path / "a.npz", x=np.frombuffer(NAME.encode(), np.uint8))
    duckdb.sql(f"COPY (SELECT '{NUMBER}' AS x) TO '{tmp_path / 'a.parquet'}' (FORMAT parquet, COMPRESSION zstd)")
    (tmp_path / "a.html").write_bytes(
        b"<img src='data:," + base64.b64encode(b"-" * 60 + DATE.encode() + b"-" * 60) + b"'>"
    )
    (tmp_path / "a.gz").write_bytes(gzip.compress(ROOT.encode() * 9))
    array = np.frombuffer(NAME.encode() * 200, np.int16).copy()
    blosc2.asarray(array, urlpath=str(tmp_path / "a.b2nd"), contiguous=True)
    assert {Path(name.partition("!")[0]).name for name in found_in(tmp_path)} == {
        "a.npz", "a.parquet", "a.html", "a.gz", "a.b2nd",
    }  # fmt: skip
    header = pydicom.dcmread(next(planted.rglob("*.dcm")))
    assert sum(MARKS.search(str(e.value).encode()) is not None for e in header) > 1500
