"""What a survey finds: values planted in every place, compared with pydicom's own walk, GDCM's profile and the files' bytes."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.datadict import dictionary_VR, tag_for_keyword

from ctfoundry.errors import ReadError
from ctfoundry.geometry import make_affine
from ctfoundry.io import dicom_file, phi
from ctfoundry.io.dicom_write import write_series
from ctfoundry.io.phi import tags, texts

NUMBERS = np.zeros((1, 4, 4), dtype=np.uint16)
AFFINE = make_affine((1.0, 1.0, 1.0))


def write(
    folder: Path, change, *, count: int = 1, syntax: str = dicom_file.EXPLICIT, name="{:04d}.dcm".format
) -> list[Path]:
    """Slices without any person in them, as `change` alters them."""

    def clean_and_change(data, d: int) -> None:
        data.PatientID = data.PatientName = ""
        change(data)

    pixels = np.repeat(NUMBERS, count, axis=0)
    return write_series(folder, pixels, AFFINE, intercept=-1024, syntax=syntax, change=clean_and_change, name=name)


def findings(folder: Path) -> list[phi.Finding]:
    return list(phi.survey(folder).findings)


def values(folder: Path) -> set[str]:
    return {value for finding in findings(folder) for value in finding.values}


def at(found: list[phi.Finding], where: str) -> phi.Finding:
    (finding,) = (f for f in found if f.where == where)
    return finding


# One element of every VR that holds text, and what is planted there.
PLANTED = {
    "StationAETitle": "AEPLANTED", "PatientAge": "047Y", "PatientSex": "O", "PatientBirthDate": "19470321", "AcquisitionDateTime": "20240102030405",
    "PatientWeight": "71.25", "InstitutionName": "LO planted", "AdditionalPatientHistory": "LT planted\nin lines", "PatientName": "Plánted^Nàme",
    "AccessionNumber": "SH-PLANTED", "InstitutionAddress": "ST planted street 1", "StudyTime": "123456.789", "StrainDescription": "UC planted",
    "StudyInstanceUID": "1.2.3.4.5.6.7", "SelectorURValue": "http://planted.example/x", "MakerNote": b"OB planted??", "UniqueDeviceIdentifier": "UT planted",
    "PregnancyStatus": 2, "PatientTelephoneNumbers": "+49 221 123456",
}  # fmt: skip
TEXT_VRS = {"AE", "AS", "CS", "DA", "DT", "DS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}


def test_the_planted_elements_cover_every_kind_of_text():
    assert {dictionary_VR(tag_for_keyword(keyword)) for keyword in PLANTED} >= TEXT_VRS


@pytest.mark.parametrize(
    "syntax", [dicom_file.EXPLICIT, dicom_file.IMPLICIT, dicom_file.BIG_ENDIAN, dicom_file.DEFLATED]
)
def test_planted_values_are_found_in_every_syntax(tmp_path, syntax):
    def plant(data) -> None:
        data.SpecificCharacterSet = "ISO_IR 192"
        for keyword, value in PLANTED.items():
            setattr(data, keyword, value)

    write(tmp_path, plant, syntax=syntax)
    found = findings(tmp_path)
    for keyword, value in PLANTED.items():
        tag = tag_for_keyword(keyword)
        finding = at(found, f"({tag >> 16:04x},{tag & 0xFFFF:04x})")
        assert finding.times == 1
        if isinstance(value, str):
            assert finding.values == (value,)


def test_every_element_of_the_profile_is_found_when_it_is_not_empty(tmp_path):
    """Planted by keyword, read back by pydicom: all that pydicom sees with a value is a finding, and nothing of it is lost."""
    text = {"LO", "SH", "ST", "LT", "UT", "UC", "CS", "AE"}
    planted: dict[str, str] = {}

    def plant(data) -> None:
        for n, keyword in enumerate(k for words in tags.REASONS.values() for k in words.split()):
            tag = tag_for_keyword(keyword)
            if tag is not None and tag >> 16 not in (0x0004, 0x5000, 0x6000) and dictionary_VR(tag)[:2] in text:
                planted[f"({tag >> 16:04x},{tag & 0xFFFF:04x})"] = f"T{n}"
                setattr(data, keyword, f"T{n}")

    write(tmp_path, plant)
    assert len(planted) > 200
    got = {f.where: f.values for f in findings(tmp_path)}
    assert {where: got.get(where) for where in planted} == {where: (value,) for where, value in planted.items()}


def test_the_table_is_made_of_known_elements_and_holds_gdcm_s_profile():
    words = [keyword for listed in tags.REASONS.values() for keyword in listed.split()]
    assert len(words) == len(set(words)) > 350
    unknown = {keyword for keyword in words if tag_for_keyword(keyword) is None}
    assert unknown == {"OverlayData", "OverlayComments", "CurveData"}  # repeating groups
    # in a process of its own: GDCM's C++ exceptions do not live beside those of other libraries
    code = "import gdcm; [print(hex(t.GetGroup() << 16 | t.GetElement())) for t in gdcm.Anonymizer.GetBasicApplicationLevelConfidentialityProfileAttributes()]"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) > 40
    for word in listed:
        assert tags.reason_of(int(word, 16)) or dictionary_VR(int(word, 16)) in {"PN", "DA", "DT", "TM", "UI", "AS"}, (
            word
        )


def test_sequences_are_walked_as_pydicom_walks_them(tmp_path):
    """Random nestings; the values of all elements with the token are those that pydicom's walk meets."""
    rng = np.random.default_rng(7)
    keywords = ["PatientName", "InstitutionName", "StudyDate", "AccessionNumber", "PatientComments", "StationName"]
    sequences = [
        "RequestAttributesSequence",
        "OriginalAttributesSequence",
        "ReferencedStudySequence",
        "ContentSequence",
    ]

    def nest(depth: int) -> pydicom.Dataset:
        data = pydicom.Dataset()
        for keyword in rng.choice(keywords, 3, replace=False):
            setattr(data, keyword, "20240229" if keyword == "StudyDate" else f"Token{rng.integers(1 << 30)}")
        if depth:
            for keyword in rng.choice(sequences, 2, replace=False):
                setattr(data, keyword, pydicom.Sequence([nest(depth - 1) for _ in range(rng.integers(1, 3))]))
        return data

    def plant(data) -> None:
        for element in nest(3):
            data.add(element)
        block = data.private_block(0x13, "PLANTER", create=True)
        block.add_new(1, "LO", "Token in private")
        block.add_new(2, "SQ", [nest(1)])

    (path,) = write(tmp_path, plant)
    expected: list[str] = []
    pydicom.dcmread(path).walk(
        lambda _, e: expected.append(str(e.value)) if e.VR != "SQ" and "Token" in str(e.value) else None
    )
    assert len(expected) > 40
    assert set(expected) <= values(tmp_path)
    times = sum(
        f.times for f in findings(tmp_path) if any("Token" in v for v in f.values) and f.group != "looks identifying"
    )
    assert times == len(expected)


def test_private_elements_are_listed_by_creator_and_their_texts_judged(tmp_path):
    def plant(data) -> None:
        data.PatientName = "Quillfeather^Tom"
        block = data.private_block(0x29, "MAKER A", create=True)
        block.add_new(1, "OB", b"\0\1\2\3")
        block.add_new(2, "LO", "seen by quillfeather")
        data.private_block(0x31, "MAKER B", create=True).add_new(5, "DS", "1.5")

    write(tmp_path, plant, count=3)
    found = findings(tmp_path)
    private = {f.where: (f.name, f.times) for f in found if f.group == "private"}
    assert private == {"(0029,10xx)": ("MAKER A", 6), "(0031,10xx)": ("MAKER B", 3)}
    assert [(f.where, f.times) for f in found if f.group == "looks identifying"] == [("(0029,1002)", 3)]


def test_texts_outside_the_profile_are_judged_by_what_the_headers_say(tmp_path):
    def plant(data) -> None:
        data.PatientName, data.PatientID = "Quillfeather^Tom", "XK-4711"
        data.KVP, data.ConvolutionKernel, data.Manufacturer = "120", "B30f", "SIEMENS"
        data.ScanOptions = "QUILLFEATHER"
        data.SoftwareVersions = ["syngo CT 2012B", "of xk-4711"]

    write(tmp_path, plant)
    looks = {f.where: f.why for f in findings(tmp_path) if f.group == "looks identifying"}
    assert looks == {"(0018,0022)": texts.REPEATS, "(0018,1020)": texts.REPEATS}


LOOKING = {
    "a name": ["DOE^JOHN", "seen by Dr. Miller", "Herr Schmidt", "МИЛЛЕР^ИВАН"],
    "a date": [
        "20240131",
        "2024-01-31",
        "31.01.2024",
        "1/31/2024",
        "31 Jan 2024",
        "12-Okt-2023",
        "scan of 19991231 late",
    ],
    "a telephone number": ["+49 221 4785-123", "(0221) 478 51 23", "0221/4785123", "555-123-4567"],
    "an address on the net": ["a.b@clinic.example", "https://pacs.example/x"],
    "a record number": ["4711234", "MRN: A12", "123-45-6789", "PID_77x"],
}
PLAIN = [
    "Thorax 1.0 B30f", "Abdomen venous 5 mm", "syngo CT 2012B", "SOMATOM Definition AS+", "iDose (3)", "120 kV", "Br40d\\3", "GE MEDICAL SYSTEMS",
    "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI", "HELICAL MODE", "2.16.840.1.113883.6.96", "PART 2 of 3", "FOV 350x350", "512\\512", "CT 64-slice", "-600\\1500",
]  # fmt: skip


def test_shapes_of_names_dates_and_numbers():
    for what, examples in LOOKING.items():
        for example in examples:
            assert f"has the shape of {what}" in list(texts.looks(example, None)), example
    for example in PLAIN:
        assert list(texts.looks(example, None)) == [], example
        assert texts.tidy(example, ["P-12345"]) == example


def test_tidy_withholds_what_looks_identifying():
    for examples in LOOKING.values():
        for example in examples:
            assert texts.tidy(example) == "(withheld)"
    assert texts.tidy("Thorax p-12345", ["P-12345"]) == "(withheld)"
    assert texts.tidy("Thorax", ["", "T"]) == "Thorax"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Doe_John.nii.gz", "has the shape of a name"), ("DOE^JOHN", "has the shape of a name"), ("Schmidt, Anna", "has the shape of a name"),
        ("scan_20240131.nii", "has the shape of a date"), ("CT 31.01.2024", "has the shape of a date"), ("pat4711234", "has the shape of a record number"),
        ("1.2.840.113619.2.55.3.604688119.dcm", "holds a UID"),
    ],
)  # fmt: skip
def test_names_that_look_identifying(name, why):
    assert list(texts.name_looks(name, None)) == [why]


@pytest.mark.parametrize(
    "name",
    [
        "000001.dcm",
        "IM-0001-0042.dcm",
        "ct.nii.gz",
        "Thorax_Series",
        "CRLM-CT-1004.nii.gz",
        "labels.json",
        "Brain_Atlas.nii",
        "case0",
        "STS_013_GTV.nii.gz",
    ],
)
def test_names_that_do_not(name):
    assert list(texts.name_looks(name, None)) == []


def test_names_of_files_and_folders_that_repeat_a_patient(tmp_path):
    def plant(data) -> None:
        data.PatientName, data.PatientID = "Quillfeather^Tom", "XK-4711"

    write(tmp_path / "quillfeather study", plant, name="xk-4711_{:d}.dcm".format)
    (tmp_path / "quillfeather study" / "notes.txt").write_text("x")
    found = {f.where: f.values for f in findings(tmp_path) if f.group == "file name"}
    assert found == {"file": ("xk-4711_0.dcm",), "folder": ("quillfeather study",)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: setattr(d, "BurnedInAnnotation", "YES"), "YES: letters stand in the pixels"),
        (lambda d: None, "not stated"),
        (lambda d: setattr(d, "ConversionType", "WSD"), "not stated, and the picture is a capture: letters are likely"),
        (lambda d: setattr(d, "BurnedInAnnotation", "NO"), None),
    ],
)
def test_letters_in_pixels(tmp_path, change, said):
    write(tmp_path, change, count=2)
    got = [(f.why, f.times) for f in findings(tmp_path) if f.where == "(0028,0301)"]
    assert got == ([] if said is None else [(said, 2)])


def test_pictures_documents_and_faces(tmp_path):
    def capture(data) -> None:
        data.SOPClassUID, data.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.9"
        data.add_new(0x60003000, "OW", b"\1\2\3\4")
        data.RecognizableVisualFeatures = "YES"

    def report(data) -> None:
        data.SOPClassUID, data.BodyPartExamined = "1.2.840.10008.5.1.4.1.1.88.67", "CHEST"

    write(tmp_path / "a", capture)
    write(tmp_path / "b", report)
    write(tmp_path / "c", lambda data: setattr(data, "BodyPartExamined", "HEAD"), count=2)
    write(tmp_path / "d", lambda data: setattr(data, "StudyDescription", "Schädel nativ"))
    (tmp_path / "letter.bin").write_bytes(b"%PDF-1.7")
    found = [
        (f.group, f.where, f.name, f.times) for f in findings(tmp_path) if f.group in ("document", "face", "picture")
    ]
    assert ("document", "(0008,0016)", "secondary capture, a picture of a screen or paper", 1) in found
    assert ("document", "(0008,0016)", "structured report, often a dose sheet", 1) in found
    assert ("document", "file", "PDF document", 1) in found
    assert ("face", "(0028,0302)", "Recognizable Visual Features", 1) in found
    assert ("face", "pixels", "scan of head or neck", 3) in found
    assert ("picture", "(6000,3000)") in [f[:2] for f in found]


def test_a_preamble_that_hides_another_file(tmp_path):
    (path,) = write(tmp_path, lambda data: None)
    bytes_ = path.read_bytes()
    path.write_bytes(b"MZ" + bytes_[2:])
    assert [f.where for f in findings(tmp_path) if f.where == "preamble"] == ["preamble"]


def test_a_file_without_a_person_has_only_its_uids(tmp_path):
    write(tmp_path, lambda data: setattr(data, "BurnedInAnnotation", "NO"), count=3)
    assert {f.group for f in findings(tmp_path)} == {"uid"}
    assert {f.where for f in findings(tmp_path)} == {
        "(0002,0003)",
        "(0008,0018)",
        "(0020,000d)",
        "(0020,000e)",
        "(0020,0052)",
    }


def test_text_of_nifti_headers(tmp_path):
    for kind, name in ((nib.Nifti1Image, "one.nii.gz"), (nib.Nifti2Image, "two.nii")):
        image = kind(np.zeros((2, 2, 2), dtype=np.int16), np.eye(4))
        image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = (
            b"Planted descrip",
            b"planted.aux",
            b"Planted name",
        )
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"planted comment"))
        nib.save(image, tmp_path / name)
    found = {
        f.where: (f.values, f.times)
        for f in findings(tmp_path)
        if f.group == "header" and f.where != "gzip original name"
    }
    assert found == {
        "NIfTI descrip": (("Planted descrip",), 2),
        "NIfTI aux_file": (("planted.aux",), 2),
        "NIfTI intent_name": (("Planted name",), 2),
        "NIfTI extension of code 6": (("planted comment",), 2),
    }


def test_the_name_that_gzip_keeps(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), dtype=np.int16), np.eye(4)), tmp_path / "a.nii")
    body = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").unlink()
    with open(tmp_path / "b.nii.gz", "wb") as raw, gzip.GzipFile("Doe_John.nii", "wb", fileobj=raw) as packed:
        packed.write(body)
    assert at(findings(tmp_path), "gzip original name").values == ("Doe_John.nii",)


def test_text_of_nrrd_and_metaimage_headers(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((2, 3, 4), dtype=np.int16))
    image.SetMetaData("planted_key", "planted value")
    sitk.WriteImage(image, tmp_path / "a.nrrd")
    sitk.WriteImage(image, tmp_path / "b.mha")
    text = (tmp_path / "b.mha").read_bytes()
    (tmp_path / "b.mha").write_bytes(text.replace(b"NDims = 3", b"Comment = planted comment\nNDims = 3"))
    nrrd = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(
        nrrd.replace(b"\ntype:", b"\n# planted remark\ncontent: planted content\ntype:", 1)
    )
    found = {f.where: f.values for f in findings(tmp_path) if f.group == "header"}
    assert found == {
        "NRRD planted_key": ("planted value",),
        "NRRD comment": ("planted remark",),
        "NRRD content": ("planted content",),
        "MetaImage planted_key": ("planted value",),
        "MetaImage Comment": ("planted comment",),
    }


def test_values_are_masked():
    for value in ("DOE^JOHN", "19470321", "1.2.840.1"):
        shown = phi.masked(value)
        assert shown == f"{value[0]}… ({len(value)})"
    assert phi.masked("MF") == "… (2)"


def test_many_values_are_counted_and_few_kept(tmp_path):
    counter = iter(range(1000))
    write(tmp_path, lambda data: setattr(data, "ImageComments", f"comment {next(counter)}"), count=205)
    finding = at(findings(tmp_path), "(0020,4000)")
    assert (finding.times, len(finding.values), finding.more) == (205, 200, True)


def test_large_values_are_named_by_their_length(tmp_path):
    write(tmp_path, lambda data: setattr(data, "SelectorUTValue", "x" * 200_000))
    assert at(findings(tmp_path), "(0072,0070)").values == ("200000 bytes",)


def test_damaged_files_are_counted_and_leave_the_others(tmp_path):
    (path,) = write(tmp_path, lambda data: setattr(data, "PatientName", "Quillfeather^Tom"))
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    for n in range(60):
        body = bytearray(good[:-40])
        for k in rng.integers(132, len(body), 8):
            body[k] = rng.integers(256)
        (tmp_path / f"bad{n}.dcm").write_bytes(bytes(body[: rng.integers(140, len(body))] if n % 2 else body))
    result = phi.survey(tmp_path)
    assert sum(result.files.values()) + sum(result.unread.values()) == 61
    assert "Quillfeather^Tom" in values(tmp_path)


def test_a_deflate_bomb_stops_at_the_limit(tmp_path, monkeypatch):
    import zlib

    monkeypatch.setattr(dicom_file, "HEADER_LIMIT", 1 << 20)
    (path,) = write(tmp_path, lambda data: None, syntax=dicom_file.DEFLATED)
    start = path.read_bytes()
    at_ = dicom_file.meta(start)[1]
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    element = struct.pack("<HH2sHI", 0x0008, 0x0008, b"UT", 0, 1 << 30)
    path.write_bytes(start[:at_] + pack.compress(element + bytes(1 << 26)) + pack.flush())
    taken: list[int] = []
    take = dicom_file.Stream.take
    monkeypatch.setattr(dicom_file.Stream, "take", lambda self, size: taken.append(size) or take(self, size))
    phi.survey(tmp_path)
    assert max(taken) <= 1 << 20


def test_archives_are_looked_into(tmp_path):
    (path,) = write(tmp_path / "in", lambda data: setattr(data, "PatientName", "Quillfeather^Tom"))
    (tmp_path / "out").mkdir()
    with zipfile.ZipFile(tmp_path / "out" / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(path, "quillfeather/Doe_John/1.dcm")
        packed.writestr("letter.pdf", b"%PDF-1.4")
    found = findings(tmp_path / "out")
    assert at(found, "(0010,0010)").values == ("Quillfeather^Tom",)
    assert {v for f in found if f.where == "folder" for v in f.values} == {"quillfeather", "Doe_John"}
    assert "PDF document" in {f.name for f in found}
    body = (tmp_path / "out" / "a.zip").read_bytes()
    (tmp_path / "out" / "a.zip").write_bytes(body[: len(body) // 2])
    result = phi.survey(tmp_path / "out")
    assert (sum(result.files.values()), sum(result.unread.values())) == (0, 1)


def test_one_file_and_no_file(tmp_path):
    (path,) = write(tmp_path, lambda data: setattr(data, "PatientName", "A^B"))
    assert phi.survey(path).files == {"dicom": 1}
    with pytest.raises(ReadError, match="does not exist"):
        phi.survey(tmp_path / "none")


def test_pixels_are_not_read(tmp_path):
    (path,) = write(tmp_path, lambda data: setattr(data, "PatientName", "A^B"))
    path.write_bytes(path.read_bytes()[:-20])  # within the pixels
    assert "A^B" in values(tmp_path)


def test_progress_and_plain_data(tmp_path):
    steps: list[int] = []
    for n in range(501):
        (tmp_path / f"{n}.txt").touch()
    result = phi.survey(tmp_path, progress=steps.append)
    assert steps == [500]
    assert json.dumps(result.files) == '{"other": 501}'
