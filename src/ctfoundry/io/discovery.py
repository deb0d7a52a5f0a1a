"""What a folder holds, from headers alone.

`discover` walks a tree of any files, tells formats by content, puts DICOM slices together and counts what it passes over.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.geometry import Grid
from ctfoundry.io import dicom, names, raw, reading, stack
from ctfoundry.io.dicom_header import Header, read_header
from ctfoundry.io.raw import Format
from ctfoundry.io.stream import CAP
from ctfoundry.volume import Kind, Volume

SINGLE = "single slice"
"""Reason for a DICOM slice that has no other of its series, size and orientation."""
NO_SCAN_FILE = "not a scan file"
"""Reason for files in none of the formats."""

_LABEL_WORDS = ("mask", "label", "labels", "seg", "segmentation", "gtv", "roi", "contour")


@dataclass(frozen=True)
class Facts:
    """What DICOM headers say of how a series was taken; texts are as typed at the scanner, so keep them out of stores and logs.

    Attributes
    ----------
    description, number, acquisition : Series Description, Series Number, Acquisition Number ("" where absent).
    kernel : Convolution Kernel; `kvp` : peak kilovoltage; `thickness_mm` : Slice Thickness.
    contrast : Contrast/Bolus Agent given, whatever it says.
    image_type : values of Image Type.
    body_part, manufacturer, model : as given.
    tilt_deg : gantry tilt found from the positions (not the tag), 0 where there is none.
    """

    description: str = ""
    number: str = ""
    acquisition: str = ""
    kernel: str = ""
    kvp: float | None = None
    thickness_mm: float | None = None
    contrast: str = ""
    image_type: tuple[str, ...] = ()
    body_part: str = ""
    manufacturer: str = ""
    model: str = ""
    tilt_deg: float = 0.0


@dataclass(frozen=True)
class Found:
    """One volume that a folder holds, known by its header only.

    Attributes
    ----------
    paths : its file, or its slices in the order of their positions. Private: they may name a patient.
    format : "dicom", "nifti", "nrrd" or "metaimage".
    modality : "CT" for DICOM; other formats do not say.
    series, study, patient : UIDs and Patient ID as the DICOM files give them, raw: salt them before they go anywhere.
    grid : shape, affine, spacing and orientation as declared; None when the header has a problem.
    is_label : best guess from the header and file name; `read` decides by the values.
    problem : the error that `read` would raise, as far as headers show it.
    data : the file with the numbers where that is not the one in `paths` (`.mhd`, `.nhdr`, `.hdr`).
    facts : what DICOM headers say of how it was taken; None for other formats.
    part : which part of its series this is ("acquisition 2", "phase 30%", ...) where the series was split; "" otherwise.
    notes : what reading it will do to it, such as undoing a gantry tilt; the same texts stand in `Volume.notes`.
    """

    paths: tuple[Path, ...]
    format: Format
    modality: str | None = None
    series: str | None = None
    study: str | None = None
    patient: str | None = None
    grid: Grid | None = None
    is_label: bool = False
    problem: CTFoundryError | None = None
    data: Path | None = None
    facts: Facts | None = None
    part: str = ""
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """All files whose bytes make it what it is."""
        return self.paths if self.data is None else (*self.paths, self.data)

    @property
    def path(self) -> Path:
        """Its file, or the first slice."""
        return self.paths[0]

    @property
    def name(self) -> str:
        """What `read` accepts for it: the file, or FOLDER#SeriesInstanceUID."""
        return f"{self.path.parent}#{self.series}" if self.format == "dicom" else str(self.path)

    def read(self, *, kind: Kind | None = None, cap: int = CAP, threads: int | None = None) -> Volume:
        """Read it; as `io.read`, and exactly these slices."""
        if self.format != "dicom":
            return reading.read(self.path, kind=kind, cap=cap)
        try:
            headers = [read_header(str(path)) for path in self.paths]
            return dicom.read_stack(headers, self.name, kind=kind, cap=cap, threads=threads)
        except OSError as error:
            raise ReadError(f"cannot be read ({error.strerror or error})", where=self.name) from error


@dataclass(frozen=True)
class Skip:
    """One file that is no scan, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Discovery:
    """What `discover` saw: volumes, and files passed over."""

    root: Path
    found: tuple[Found, ...]
    skips: tuple[Skip, ...]

    @property
    def skipped(self) -> Mapping[str, int]:
        """How many files were passed over for each reason, most frequent first."""
        return dict(Counter(s.reason for s in self.skips).most_common())

    @property
    def scans(self) -> tuple[Found, ...]:
        """Those that look like images rather than label maps and have no problem."""
        return tuple(f for f in self.found if not f.is_label and f.problem is None)


def discover(root: str | os.PathLike[str], *, deep: bool = True) -> Discovery:
    """All volumes in the folder `root` (and, if `deep`, below), in the order of their paths; pixels are not read.

    Links to folders are not followed. DICOM slices are grouped over the whole tree by series, size, in-plane spacing and
    orientation. A file that looks like a scan but has a broken header is listed with its problem.

    Raises ReadError when `root` is not a folder.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ReadError("is not a folder", where=folder, do="give a folder, or read the file")
    found: list[Found] = []
    skips: list[Skip] = []
    headers: list[Header] = []
    data_files: set[Path] = set()
    for path, fmt, start, reason in _files(folder, deep=deep):
        if fmt is None:
            skips.append(Skip(path, reason))
        elif fmt == "dicom":
            result = _slice(str(path), start)
            if isinstance(result, Header):
                headers.append(result)
            else:
                skips.append(Skip(path, result))
        else:
            item, data = _from_file(path, fmt)
            found.append(item)
            data_files.add(data)
    for slices in stack.group(headers):
        if len(slices) > 1:
            found.append(_from_slices(slices))
        else:
            skips.append(Skip(Path(slices[0].path), SINGLE))
    skips = [s for s in skips if s.path.resolve() not in data_files]  # the numbers of .mhd, .nhdr and .hdr are no junk
    return Discovery(folder, tuple(sorted(found, key=lambda f: f.paths)), tuple(skips))


def slices_in(folder: Path, *, deep: bool = True) -> tuple[list[Header], Counter[str]]:
    """Headers of all CT slices in `folder` (and, if `deep`, below), and how many files were passed over for what."""
    headers: list[Header] = []
    skipped: Counter[str] = Counter()
    for path, fmt, start, reason in _files(folder, deep=deep):
        result = _slice(str(path), start) if fmt == "dicom" else reason or f"{fmt} file"
        if isinstance(result, Header):
            headers.append(result)
        else:
            skipped[result] += 1
    return headers, skipped


def _files(folder: Path, *, deep: bool) -> Iterator[tuple[Path, Format | None, bytes, str]]:
    """(path, format, first bytes, reason when there is no format) of every file, in the order of paths."""
    for parent, below, files in os.walk(folder):
        below.sort()
        if not deep:
            below.clear()
        for name in sorted(files):
            path = Path(parent, name)
            try:
                with open(path, "rb", buffering=0) as file:
                    start = file.read(reading.START)
                fmt = reading.format_of(path, start)
            except OSError as error:
                yield path, None, b"", f"cannot be opened ({error.strerror})"
                continue
            if fmt is None:
                reason = "empty file" if not start else "zip archive" if start[:4] == b"PK\3\4" else NO_SCAN_FILE
                yield path, None, start, reason
            else:
                yield path, fmt, start, ""


def _slice(path: str, start: bytes) -> Header | str:
    """The header of a CT slice, or the reason why the file is none."""
    try:
        header = read_header(path, start)
    except (ReadError, OSError):
        return dicom.DAMAGED
    return dicom.why_not(header) or header


def _from_slices(slices: list[Header]) -> Found:
    first, grid, problem = slices[0], None, None
    try:
        slices, affine = stack.arrange(slices, dicom.series_name(slices))
        grid = Grid((len(slices), first.rows, first.columns), affine)
        for header in slices:
            dicom.check_pixels(header)
    except CTFoundryError as error:
        problem = error
    return Found(
        paths=tuple(Path(h.path) for h in slices),
        format="dicom",
        modality="CT",
        series=first.series,
        study=first.study,
        patient=first.patient,
        grid=grid,
        problem=problem,
    )


def _from_file(path: Path, fmt: Format) -> tuple[Found, Path]:
    """(what the file holds, the resolved path of its numbers)."""
    try:
        declared = reading.HEADERS[fmt](path)
    except CTFoundryError as error:
        return Found((path,), fmt, is_label=_named_as_label(path), problem=error), path
    except OSError as error:
        problem = ReadError(f"cannot be read ({error.strerror or error})", where=path)
        return Found((path,), fmt, problem=problem), path
    grid, numbers = Grid(declared.shape, declared.affine), declared.data.resolve()
    apart = None if numbers == path.resolve() else numbers
    return Found((path,), fmt, grid=grid, is_label=_looks_like_label(declared), data=apart), numbers


def _looks_like_label(declared: raw.Declared) -> bool:
    """8-bit whole numbers, a header that says so, or whole numbers in a file named like a mask."""
    if declared.dtype.kind not in "iu" or (declared.slope, declared.intercept) != (1, 0):
        return False
    return declared.says_label or declared.dtype.itemsize == 1 or _named_as_label(declared.path)


def _named_as_label(path: Path) -> bool:
    words = names.stem(path).lower().replace("-", "_").replace(".", "_").split("_")
    return any(word in _LABEL_WORDS for word in words)
