"""Whole DICOM headers as pydicom has them, for what copies or searches all their elements; never more than a limit inflated."""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.io import dicom_file
from ctfoundry.io.dicom_elements import PIXELS, ElementsError, EndError
from ctfoundry.io.dicom_file import DEFLATED, FIRST_READ, meta
from ctfoundry.io.stream import Stream

if TYPE_CHECKING:
    from pydicom import Dataset


def data_set(path: str | os.PathLike[str], *, defer_size: int | None = None) -> Dataset:
    """All elements of a DICOM file before its pixels.

    pydicom inflates a deflated data set without a limit, so that is done here, to HEADER_LIMIT bytes.

    Parameters
    ----------
    defer_size : values of more bytes are left in the file until they are asked for.

    Raises ReadError.
    """
    import pydicom
    from pydicom.filereader import read_dataset, read_file_meta_info

    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(FIRST_READ)
        try:
            syntax, at = meta(start)
        except (EndError, ElementsError):
            syntax, at = "", len(start)
        if syntax != DEFLATED:
            if DEFLATED.encode() in start[:at]:
                raise ReadError("its meta group is damaged", where=path, do="copy or download the file again")
            return pydicom.dcmread(path, stop_before_pixels=True, force=True, defer_size=defer_size)
        with Stream(path, "deflate", at) as stream:
            raw = stream.take(dicom_file.HEADER_LIMIT)
        found: Any = read_dataset(BytesIO(raw), False, True, stop_when=lambda tag, vr, length: tag >= PIXELS)
        if start[128:132] == b"DICM":
            found.file_meta = read_file_meta_info(path)
        return found
    except CTFoundryError:
        raise
    except Exception as error:  # pydicom raises many types on damaged files
        raise ReadError(f"its header cannot be parsed ({error})", where=path) from error
