"""What a folder holds, from headers alone.

`discover` walks a tree of any files, tells formats by content, puts DICOM slices together and counts what it passes over.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from ctfoundry.errors import CTFoundryError, ReadError
from ctfoundry.files import digest, sha256
from ctfoundry.geometry import Grid
from ctfoundry.io import archives, dicom, dicomdir, drawn, enhanced, names, parts, raw, reading, stack, zip_directory
from ctfoundry.io.dicom_header import Header, read_header
from ctfoundry.io.parts import Part
from ctfoundry.io.places import series_of
from ctfoundry.io.raw import Format
from ctfoundry.io.skips import (
    BROKEN_LINK,
    DEVICE,
    EMPTY,
    LINK,
    NO_SCAN_FILE,
    NOT_OPENED,
    REFUSED,
    SINGLE,
    ZIP,
    ZIPPED,
    Missing,
    Skip,
    missing,
)
from ctfoundry.io.stream import CAP
from ctfoundry.volume import Kind, Volume

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
    tilt_deg : gantry tilt found from the positions (not the tag), without sign, 0 where there is none.

    Where slices of one part differ, it is what the first one says.
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
    paths : its file, or its files in the order of their slices' positions. Private: they may name a patient.
    format : "dicom", "nifti", "nrrd" or "metaimage".
    modality : "CT" for DICOM scans, "SEG" and "RTSTRUCT" for what was drawn on them; other formats do not say.
    series, study, patient : UIDs and Patient ID as the DICOM files give them, raw: salt them before they go anywhere.
    grid : shape, affine, spacing and orientation as declared; None when the header has a problem.
    is_label : best guess from the header and file name; `read` decides by the values.
    problem : the error that `read` would raise, as far as headers show it.
    data : the file with the numbers where that is not the one in `paths` (`.mhd`, `.nhdr`, `.hdr`).
    facts : what DICOM headers say of how it was taken; None for other formats.
    part : which part of its series this is ("acquisition 2", "phase 30%", ...) where the series was split; "" otherwise.
    part_number : its number among them, from 1; 0 for other formats than DICOM.
    notes : what reading it will do to it, such as undoing a gantry tilt, and damaged slices in its folders, which may be of it; the same
        texts stand in `Volume.notes`.
    folder : for DICOM, the smallest folder that holds all slices of its series.
    frames : the frames that it takes from each of `paths`, where these are multi-frame files; else empty.
    members : where `paths` is one zip archive, the names of its files in there; else empty.
    image : for SEG and RTSTRUCT, the series UID of the image that they were drawn on, where it was found too; `grid` is its.
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
    part_number: int = 0
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    frames: tuple[tuple[int, ...], ...] = ()
    members: tuple[str, ...] = ()
    image: str = ""

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
        """What `read` accepts for it: the file, ARCHIVE#FILE, or FOLDER#SeriesInstanceUID, with @PART where the series was
        split.
        """
        if self.format != "dicom" or self.modality in drawn.MODALITIES:
            return f"{self.path}#{self.members[0]}" if self.members else str(self.path)
        return f"{self.folder or self.path.parent}#{self.series}{f'@{self.part}' if self.part else ''}"

    def read(
        self, *, kind: Kind | None = None, cap: int = CAP, threads: int | None = None, allow_gaps: bool = False
    ) -> Volume:
        """Read it; as `io.read`, and exactly these slices."""
        if self.members:
            return archives.read_found(self, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)
        if self.format != "dicom":
            return reading.read(self.path, kind=kind, cap=cap)
        if self.modality in drawn.MODALITIES:
            return drawn.read_found(self, kind=kind, cap=cap)
        try:
            headers: list[Header] = []
            for k, path in enumerate(self.paths):
                slices = dicom.slices_of(str(path))
                if isinstance(slices, str):
                    raise ReadError(f"is no longer a CT slice: {slices}", where=path, do="search the folder again")
                headers += [h for h in slices if not self.frames or h.frame in self.frames[k]]
            volume = dicom.read_stack(headers, self.name, kind=kind, cap=cap, threads=threads, allow_gaps=allow_gaps)
            beside = tuple(note for note in self.notes if note not in volume.notes)
            return replace(volume, notes=volume.notes + beside) if beside else volume
        except OSError as error:
            raise ReadError(f"cannot be read ({error.strerror or error})", where=self.name) from error
        except MemoryError as error:
            raise ReadError(
                "does not fit into this machine's memory", where=self.name, do="pass a smaller cap"
            ) from error

    def hashes(self) -> list[str]:
        """SHA-256 of each of its files, those in an archive unpacked; with its frames where it is a part of its files."""
        each = zip_directory.sha256(self.path, self.members) if self.members else [sha256(path) for path in self.files]
        return (
            [digest({"file": h, "frames": f}) for h, f in zip(each, self.frames, strict=True)]
            if self.part and self.frames
            else each
        )


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
    def passed_over(self) -> Counter[str]:
        """How many files are no scans, by reason; those that may be one are `missing`."""
        return Counter(skip.reason for skip in self.skips if not skip.lost)

    @property
    def missing(self) -> tuple[Missing, ...]:
        """What could not even be recognised."""
        return missing(self.skips)

    @property
    def scans(self) -> tuple[Found, ...]:
        """Those that look like images rather than label maps and have no problem."""
        return tuple(f for f in self.found if not f.is_label and f.problem is None)

    def named(self, name: str) -> tuple[Found, ...]:
        """What ``ROOT#name`` means to `read`: all parts of a series (``UID``), one (``UID@PART``, ``UID@K``), or a file of an archive."""
        series, part = series_of(name)
        return tuple(
            f
            for f in self.found
            if f.members == (name,)
            or (f.series is not None and f.series == series and part in ("", f.part, str(f.part_number)))
        )


def discover(root: str | os.PathLike[str], *, deep: bool = True) -> Discovery:
    """All volumes in the folder `root` (and, if `deep`, below), in the order of their paths; pixels are not read.

    `root` may also be a zip archive or a DICOMDIR (the files that it lists). Archives in a folder are looked into.

    Links to folders are not followed; pipes, sockets and devices are not opened. DICOM slices are grouped over the whole tree
    by series and split where a series holds several volumes (`parts`). A file that looks like a scan but has a broken header
    is listed with its problem.

    Raises ReadError when `root` is none of these.
    """
    folder = Path(root)
    if folder.is_dir():
        return _discovered(folder, _files(folder, deep=deep))
    if not is_listing(folder):
        raise ReadError("is not a folder", where=folder, do="give a folder, or read the file")
    if zip_directory.is_zip(_start_of(str(folder))):
        return archives.discover(folder)
    return _discovered(folder, _opened(dicomdir.listed(folder)))


def is_listing(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that `discover` takes like a folder: a zip archive or a DICOMDIR."""
    if not os.path.isfile(path):
        return False
    try:
        start = _start_of(os.fspath(path))
    except OSError:
        return False
    return zip_directory.is_zip(start) or dicomdir.is_dicomdir(start)


def _discovered(folder: Path, files: Iterable[tuple[Path, Format | None, bytes, str]]) -> Discovery:
    """What `files` are, put together."""
    found: list[Found] = []
    skips: list[Skip] = []
    headers: list[Header] = []
    places: dict[str, Path] = {}
    data_files: set[Path] = set()
    structures: list[tuple[Path, str]] = []
    for path, fmt, start, reason in files:
        if reason == ZIP:
            inner, reasons = _zipped(path)
            found += inner
            skips += reasons
        elif fmt is None:
            skips.append(Skip(path, reason))
        elif fmt == "dicom":
            name = str(path)
            result = _slices(name, start)
            if isinstance(result, list):
                headers += result
                places[name] = path
            elif isinstance(result, str) and result in drawn.REASONS:
                structures.append((path, result))
            elif isinstance(result, str):
                skips.append(Skip(path, result))
            else:
                found.append(Found((path,), "dicom", "CT", problem=result))
        else:
            item, data = from_file(path, fmt)
            found.append(item)
            data_files.add(data)
    volumes, lone = parts.split(headers)
    counts: Counter[str] = Counter()
    for volume in volumes:
        counts[volume.headers[0].series] += 1
        found.append(_from_part(volume, counts[volume.headers[0].series], places))
    skips += [Skip(Path(h.path), SINGLE) for h in lone]
    found = _noted(found, skips)
    labels, left = drawn.discovered([path for path, _ in structures], found)
    found += labels
    skips += [Skip(path, reason) for path, reason in structures if path in left]
    if data_files:
        # The numbers of .mhd, .nhdr and .hdr are no junk.
        suspects = {path.name for path in data_files}
        skips = [s for s in skips if s.path.name not in suspects or s.path.resolve() not in data_files]
    return Discovery(folder, tuple(sorted(found, key=lambda f: (f.paths[0], f.paths[-1], f.part))), tuple(skips))


def _noted(found: list[Found], skips: list[Skip]) -> list[Found]:
    """The DICOM series with a note where slices that could not be read lie in the same folders."""
    lost: dict[Path, Counter[str]] = defaultdict(Counter)
    for skip in skips:
        if skip.reason in dicom.LOST:
            lost[skip.path.parent][skip.reason] += 1
    if not lost:
        return found
    noted = []
    for item in found:
        homes = {path.parent for path in item.paths} if item.format == "dicom" and item.problem is None else set()
        note = dicom.lost_beside(sum((lost[home] for home in homes if home in lost), Counter[str]()))
        noted.append(replace(item, notes=item.notes + note) if note else item)
    return noted


def slices_in(folder: Path, *, deep: bool = True) -> tuple[list[Header], Counter[str]]:
    """Headers of all CT slices in `folder` (and, if `deep`, below), and how many files were passed over for what."""
    headers: list[Header] = []
    skipped: Counter[str] = Counter()
    for path, fmt, start, reason in _files(folder, deep=deep):
        result = _slices(str(path), start) if fmt == "dicom" else reason or f"{fmt} file"
        if isinstance(result, list):
            headers += result
        else:
            skipped[result if isinstance(result, str) else dicom.DAMAGED] += 1
    return headers, skipped


def _files(folder: Path, *, deep: bool) -> Iterator[tuple[Path, Format | None, bytes, str]]:
    """(path, format, first bytes, reason when there is no format) of every file, in the order of paths.

    Only one folder's names are in memory at a time.
    """
    waiting = [str(folder)]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            yield Path(parent), None, b"", f"{NOT_OPENED} ({error.strerror})"
            continue
        below = []
        for entry in listed:
            path = Path(entry.path)
            try:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                    continue
                if not entry.is_file():
                    reason = LINK if entry.is_dir() else DEVICE if os.path.exists(path) else BROKEN_LINK
                    yield path, None, b"", reason
                    continue
            except OSError as error:
                yield path, None, b"", f"{NOT_OPENED} ({error.strerror})"
                continue
            yield _opened_one(path)
        if deep:
            waiting += reversed(below)


def _opened(paths: Iterable[Path]) -> Iterator[tuple[Path, Format | None, bytes, str]]:
    """As `_files`, of a list."""
    return map(_opened_one, paths)


def _opened_one(path: Path) -> tuple[Path, Format | None, bytes, str]:
    try:
        start = _start_of(str(path))
        fmt = reading.format_of(path, start)
    except OSError as error:
        return path, None, b"", f"{NOT_OPENED} ({error.strerror})"
    if fmt == "dicom" and dicomdir.is_dicomdir(start):
        return path, None, start, "DICOMDIR"
    return path, fmt, start, "" if fmt is not None else reason_of(start)


def reason_of(start: bytes) -> str:
    """Why a file that is in none of the formats is passed over, by its first bytes."""
    if not start:
        return EMPTY
    what = ZIP if zip_directory.is_zip(start) else reading.stranger(start)
    return what if "archive" in what or "Analyze" in what else NO_SCAN_FILE


def _zipped(path: Path) -> tuple[tuple[Found, ...], list[Skip]]:
    """What an archive holds; an archive that is refused is one file passed over."""
    try:
        inside = archives.discover(path)
    except CTFoundryError as error:
        return (), [Skip(path, REFUSED + error.what)]
    if not inside.found and all(s.reason in (NO_SCAN_FILE, EMPTY) and not s.lost for s in inside.skips):
        return (), [Skip(path, archives.NO_SCAN)]
    return inside.found, [Skip(path, ZIPPED + s.reason, s.member) for s in inside.skips]


def _start_of(path: str) -> bytes:
    """The first bytes of a file; a pipe that took its place meanwhile does not block."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        return os.read(number, reading.START)
    finally:
        os.close(number)


def _slices(path: str, start: bytes) -> list[Header] | str | CTFoundryError:
    """The slices of a DICOM file; or why it holds none; or what is wrong with a multi-frame image."""
    try:
        return dicom.slices_of(path, start)
    except ReadError as error:
        try:
            header = read_header(path, start)
        except (ReadError, OSError):
            return dicom.DAMAGED
        return error if enhanced.is_enhanced(header) else dicom.DAMAGED
    except OSError:
        return dicom.DAMAGED


def _from_part(part: Part, number: int, places: Mapping[str, Path]) -> Found:
    slices, first, grid, problem = part.headers, part.headers[0], None, None
    notes: tuple[str, ...] = ()
    tilt = 0.0
    try:
        plan = stack.plan(slices, part.where)
        slices, grid, notes, tilt = plan.headers, plan.grid, plan.notes, plan.tilt_deg
        for header in {h.path: h for h in slices}.values():
            dicom.check_pixels(header)
    except CTFoundryError as error:
        problem = error
    except OSError as error:
        problem = ReadError(f"cannot be read ({error.strerror or error})", where=part.where)
    frames: dict[str, list[int]] = {}
    for header in slices:
        frames.setdefault(header.path, []).append(header.frame)
    several = any(enhanced.is_enhanced(h) for h in slices)
    return Found(
        paths=tuple(places[path] for path in frames),
        format="dicom",
        modality="CT",
        series=first.series,
        study=first.study,
        patient=first.patient,
        grid=grid,
        problem=problem,
        facts=_facts(slices[0], tilt),
        part=part.name,
        part_number=number,
        notes=notes,
        folder=Path(part.folder),
        frames=tuple(tuple(sorted(f)) for f in frames.values()) if several else (),
    )


def _facts(header: Header, tilt_deg: float) -> Facts:
    return Facts(
        description=header.description,
        number=header.number,
        acquisition=header.acquisition,
        kernel=header.kernel,
        kvp=_finite(header.kvp),
        thickness_mm=_finite(header.thickness),
        contrast=header.contrast,
        image_type=tuple(word.strip() for word in header.image_type.split("\\")) if header.image_type else (),
        body_part=header.body_part,
        manufacturer=header.manufacturer,
        model=header.model,
        tilt_deg=tilt_deg,
    )


def _finite(number: float | None) -> float | None:
    """None for "nan" and "inf", which decimal strings may spell and JSON may not."""
    return number if number is not None and isfinite(number) else None


def from_file(path: Path, fmt: Format) -> tuple[Found, Path]:
    """(what the file holds, the resolved path of its numbers)."""
    try:
        declared = reading.HEADERS[fmt](path)
    except CTFoundryError as error:
        return Found((path,), fmt, is_label=named_as_label(path), problem=error), path
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
    return declared.says_label or declared.dtype.itemsize == 1 or named_as_label(declared.path)


def named_as_label(path: Path) -> bool:
    """Whether a file's name says that it is a mask."""
    words = names.stem(path).lower().replace("-", "_").replace(".", "_").split("_")
    return any(word in _LABEL_WORDS for word in words)
