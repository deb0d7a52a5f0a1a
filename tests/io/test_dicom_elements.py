"""The walker over DICOM elements against pydicom, and against bytes that lie."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, Sequence
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from ctfoundry.io import dicom_elements
from ctfoundry.io.dicom_elements import ElementsError, EndError, Span, explicit_within, items, walk

CODINGS = [(True, "<"), (False, "<"), (True, ">"), (False, ">")]
ENDLESS = b"\xff\xff\xff\xff"


def nested(rng: np.random.Generator, depth: int) -> Dataset:
    """A data set of texts, numbers, long values and sequences, some of which end by marks."""
    data: Any = Dataset()
    data.PatientID = "P" * int(rng.integers(1, 9))
    data.Rows = int(rng.integers(0, 1000))
    data.PixelPaddingValue = 7
    data["PixelPaddingValue"].VR = "US"
    data.TextValue = "t" * int(rng.integers(1, 20))
    data.add_new(0x00091010, "OB", bytes(int(rng.integers(0, 20))))
    if depth:
        for keyword in ("ReferencedSeriesSequence", "DerivationImageSequence"):
            inner = [nested(rng, depth - 1) for _ in range(int(rng.integers(0, 3)))]
            for item in inner:
                item.is_undefined_length_sequence_item = bool(rng.integers(0, 2))
            setattr(data, keyword, Sequence(inner))
            data[keyword].is_undefined_length = bool(rng.integers(0, 2))
    return data


def written(data: Dataset, explicit: bool, order: str) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = not explicit, order == "<"
    write_dataset(out, data)
    return out.getvalue()


def tree(data: bytes, start: int, stop: int, explicit: bool, order: str) -> dict[int, Any]:
    """What the walker makes of a data set: tag to bytes, or to the items of a sequence."""
    found: dict[int, Span] = {}
    assert walk(data, start, stop, explicit, order, found) == stop
    result: dict[int, Any] = {}
    for tag, span in found.items():
        if tag in (0x00081115, 0x00089124):
            inside = items(data, span[1], span[2], explicit_within(data, span, explicit), order)
            result[tag] = [tree(data, a, b, explicit, order) for a, b in inside]
        else:
            result[tag] = data[span[1] : span[2]]
    return result


@pytest.mark.parametrize(("explicit", "order"), CODINGS)
def test_as_pydicom_wrote_it(explicit: bool, order: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        data = nested(rng, 3)
        raw = written(data, explicit, order)
        ours = tree(raw, 0, len(raw), explicit, order)

        def same(mine: dict[int, Any], theirs: Dataset) -> None:
            assert list(mine) == sorted(int(element.tag) for element in theirs)
            for element in theirs:
                value = mine[int(element.tag)]
                if element.VR == "SQ":
                    assert len(value) == len(element.value)
                    for a, b in zip(value, element.value, strict=True):
                        same(a, b)
                elif element.VR == "US":
                    assert struct.unpack(order + "H", value) == (element.value,)
                elif element.VR == "OB":
                    assert value.rstrip(b"\0") == element.value.rstrip(b"\0")
                else:
                    assert value.decode().strip(" \0") == element.value

        same(ours, data)


@pytest.mark.parametrize(("explicit", "order"), CODINGS)
def test_cut_anywhere(explicit: bool, order: str) -> None:
    """A cut is seen wherever it is, but between two elements, where the data set may end."""
    rng = np.random.default_rng(1)
    raw = written(nested(rng, 2), explicit, order)
    whole: dict[int, Span] = {}
    walk(raw, 0, len(raw), explicit, order, whole)
    clean = {0, *(behind for _, _, behind in whole.values())}
    for end in range(len(raw)):
        for data, stop in ((raw[:end], end), (raw, end)):  # the bytes end, or the part that may be looked at
            found: dict[int, Span] = {}
            if end in clean:
                assert walk(data, 0, stop, explicit, order, found) == end
            else:
                with pytest.raises(EndError):
                    walk(data, 0, stop, explicit, order, found)
            assert found == {tag: span for tag, span in whole.items() if span[2] <= end}


def test_stops_in_front_of_a_tag_and_takes_what_is_wanted() -> None:
    raw = written(nested(np.random.default_rng(2), 1), True, "<")
    whole: dict[int, Span] = {}
    walk(raw, 0, len(raw), True, "<", whole)
    found: dict[int, Span] = {}
    stop = walk(raw, 0, len(raw), True, "<", found, {0x00100020, 0x00280010}, before=0x00280010)
    assert (stop, found) == (whole[0x00280010][0], {0x00100020: whole[0x00100020]})


def test_a_sequence_of_unknown_kind_is_implicit_inside() -> None:
    inner = struct.pack("<HHI", 0x0028, 0x0010, 2) + b"\5\0"
    item = b"\xfe\xff\x00\xe0" + ENDLESS + inner + b"\xfe\xff\x0d\xe0\0\0\0\0"
    raw = b"\x08\0\x15\x11UN\0\0" + ENDLESS + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    found: dict[int, Span] = {}
    assert walk(raw, 0, len(raw), True, "<", found) == len(raw)
    span = found[0x00081115]
    assert not explicit_within(raw, span, True)
    ((start, stop),) = items(raw, span[1], span[2], False, "<")
    assert raw[start:stop] == inner


def element(tag: int, vr: bytes, length: bytes, value: bytes = b"") -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + (b"\0\0" if len(length) == 4 else b"") + length + value


SEQUENCE = element(0x00081115, b"SQ", ENDLESS)
ITEM = b"\xfe\xff\x00\xe0"


@pytest.mark.parametrize(
    ("raw", "error", "match"),
    [
        (element(0x00100020, b"??", b"\0\0"), ElementsError, "no value representation at byte 0"),
        (element(0x00100020, b"UT", ENDLESS), ElementsError, "a value without length at byte 0"),
        (element(0x00100020, b"UT", b"\xfe\xff\xff\xff"), EndError, "^$"),
        (SEQUENCE + element(0x00100020, b"LO", b"\0\0"), ElementsError, "holds 00100020 where an item should be"),
        (SEQUENCE + ITEM + b"\xfe\xff\xff\x7f", EndError, "^$"),
        (
            SEQUENCE + ITEM + ENDLESS + b"\xfe\xff\xdd\xe0\0\0\0\0",
            ElementsError,
            "a mark at byte 20 that does not close",
        ),
        (SEQUENCE + ITEM + ENDLESS, EndError, "^$"),
        ((SEQUENCE + ITEM + ENDLESS) * 100_000, ElementsError, "more than 32 sequences within each other"),
    ],
)
def test_bytes_that_lie(raw: bytes, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        walk(raw, 0, len(raw), True, "<", {})


def test_elements_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_elements, "MOST_ELEMENTS", 100)
    raw = b"".join(struct.pack("<HHI", 9, k, 0) for k in range(200))
    with pytest.raises(ElementsError, match="more than 100 elements"):
        walk(raw, 0, len(raw), False, "<", {})
    assert walk(raw, 0, len(raw), False, "<", {}, {0x00090010}) == len(raw)


def test_tags_that_fall() -> None:
    raw = element(0x00100020, b"LO", b"\0\0") + element(0x00080060, b"CS", b"\0\0")
    assert walk(raw, 0, len(raw), True, "<", {}) == len(raw)
    with pytest.raises(ElementsError, match="tags do not rise at byte 8"):
        walk(raw, 0, len(raw), True, "<", {}, rising=True)
