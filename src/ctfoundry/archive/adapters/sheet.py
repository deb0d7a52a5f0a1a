"""The first sheet of an Excel workbook as rows of texts (ECMA-376), unpacked and parsed within limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ctfoundry.archive.adapters.dataset import DataSetError
from ctfoundry.errors import CTFoundryError
from ctfoundry.io import zip_directory

PART_BYTES = 1 << 29
"""Most bytes of one part of a workbook; 25,494 reports are about 60 MB."""
ROWS = 1_000_000
WIDTH = 100_000
"""Most elements of one row; a sheet has at most 16,384 columns."""
_DEPTH = 64
_SHEET, _STRINGS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
_AGAIN = "download it again"


def rows(path: Path) -> Iterator[list[str]]:
    """Rows of the first sheet, each as long as its last filled cell.

    Raises DataSetError for what is no workbook, is too large, or declares entities (with which a small file grows without end).
    """
    try:
        table = {member.name: member for member in zip_directory.members(path)}
        if _SHEET not in table:
            raise DataSetError("is no Excel workbook with a first sheet", where=path, do=_AGAIN)
        shared: list[str] = []
        if _STRINGS in table:
            shared += [_text(item) for item in _elements(path, table[_STRINGS], "si")]
        for count, row in enumerate(_elements(path, table[_SHEET], "row"), 1):
            if count > ROWS:
                raise DataSetError(f"has more than {ROWS:,} rows", where=path, do=_AGAIN)
            yield _cells(row, shared, path)
    except DataSetError:
        raise
    except CTFoundryError as error:
        raise DataSetError(error.what, where=error.where or path, do=error.do) from error
    except ElementTree.ParseError as error:
        raise DataSetError(f"is not XML inside ({error})", where=path, do=_AGAIN) from error
    except OSError as error:
        raise DataSetError(f"cannot be read ({error.strerror})", where=path) from error


def _text(element: ElementTree.Element) -> str:
    return "".join(t.text or "" for t in element.iter() if _tag(t) == "t")


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _elements(path: Path, member: zip_directory.Member, name: str) -> Iterator[ElementTree.Element]:
    """Elements called `name`, each forgotten once it was given."""
    if member.size > PART_BYTES:
        raise DataSetError(f"unpacks to more than {PART_BYTES >> 20} MiB", where=path, do=_AGAIN)
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    above: list[ElementTree.Element] = []
    tail, inside = b"", 0
    for piece in zip_directory.pieces(path, member):
        if b"\0" in piece or any(word in tail + piece for word in (b"<!DOCTYPE", b"<!ENTITY")):
            raise DataSetError("declares types or entities, which no workbook needs", where=path, do="do not use it")
        tail = piece[-9:]
        parser.feed(piece)
        for event, element in parser.read_events():
            if event == "start":
                above.append(element)
                inside += 1
                if inside > WIDTH or len(above) > _DEPTH:
                    raise DataSetError("has a row or text without end", where=path, do=_AGAIN)
                continue
            above.pop()
            if _tag(element) == name:
                yield element
                inside = 0
                if above:
                    above[-1].clear()  # else the parent would keep every one of them
    parser.close()


def _cells(row: ElementTree.Element, shared: list[str], path: Path) -> list[str]:
    found: list[str] = []
    for cell in row:
        letters = re.match(r"[A-Z]{1,3}", cell.get("r", ""))
        at = _column(letters[0]) if letters else len(found)
        found += [""] * (at - len(found))
        value = next((c.text or "" for c in cell if _tag(c) == "v"), "")
        if cell.get("t") == "inlineStr":
            value = _text(cell)
        elif cell.get("t") == "s":
            if not value.isdigit() or int(value) >= len(shared):
                raise DataSetError("refers to a text that it does not have", where=path, do=_AGAIN)
            value = shared[int(value)]
        found.append(value)
    return found


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - 64
    return number - 1
