"""What a store says about one scan: its sidecar, its exact histogram, and the `Entry` that users see."""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ctfoundry import geometry
from ctfoundry.errors import CTFoundryError
from ctfoundry.geometry import Box, Grid, Vec3
from ctfoundry.settings import from_data, nearest, to_data
from ctfoundry.store.errors import BadIdError, ProvenanceError, SidecarError, UnknownFormatError

if TYPE_CHECKING:
    from jaxtyping import Int16, Int64

FORMAT = 1
"""Version of the store's format, in ``store.json`` and in every sidecar."""

NAME_LENGTH = 64
"""Largest length of ids, patients and collections, in ASCII characters."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_COLLECTION = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9 ._()+-]{0,63})?")

PROVENANCE = (
    "modality",
    "licence",
    "doi",
    "archive_version",
    "study",
    "series",
    "body_part",
    "contrast",
    "manufacturer",
    "model",
    "kernel",
    "kvp",
    "exposure",
    "slice_thickness_mm",
    "reader",
)
"""The only keys of a sidecar's provenance. `study` and `series` are salted hashes or public archive UIDs."""
_TEXT = re.compile(r"[\x20-\x7e]{0,128}")
_PATH = re.compile(r"^[/~\\]|^file:|\.\.[/\\]|[A-Za-z]:[\\/](?!/)", re.IGNORECASE)

NOTES, NOTE_LENGTH = 16, 300
"""Most notes of a scan, and characters of one."""
_NOTE = re.compile(rf"[\x20-\x7e]{{1,{NOTE_LENGTH}}}")

_HISTOGRAM_CAP = 65536 * 8
"""A histogram of int16 voxels has at most this many bytes before compression."""


def check_id(id: str, what: str = "id") -> str:
    """`id` itself; raises BadIdError unless it is 1 to 64 letters, digits, dots, underscores and dashes."""
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise BadIdError(
            f"{id!r} is not a valid {what}", do="use 1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or digit"
        )
    return id


def check_collection(collection: str) -> str:
    """`collection` itself; raises BadIdError unless it is the short public name of a collection, or empty."""
    if not isinstance(collection, str) or not _COLLECTION.fullmatch(collection):
        raise BadIdError(
            f"{collection!r} is not a valid collection", do="use its public name of up to 64 letters, digits, blanks"
        )
    return collection


def check_provenance(provenance: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """The provenance in sorted order; raises ProvenanceError for keys off the allow-list and values that are no plain facts."""
    kept: dict[str, str | int | float | bool] = {}
    for key in sorted(provenance):
        value = provenance[key]
        if key not in PROVENANCE:
            raise ProvenanceError(
                f"provenance key {key!r} is not on the allow-list; {nearest(key, PROVENANCE)}",
                do="leave it out: a store keeps nothing that could name a patient",
            )
        if not isinstance(value, str | int | float | bool) or value != value or value in (float("inf"), -float("inf")):
            raise ProvenanceError(
                f"provenance {key!r} is a short text, a finite number or a truth value, not {value!r}"
            )
        if isinstance(value, str) and (not _TEXT.fullmatch(value) or _PATH.search(value)):
            raise ProvenanceError(
                f"the provenance text of {key!r} looks like a path, or is not up to 128 plain characters",
                do="leave it out: a store keeps no paths",
            )
        kept[key] = value
    return kept


def check_notes(notes: Iterable[str]) -> tuple[str, ...]:
    """The notes, long ones cut; raises ProvenanceError for what looks like a path."""
    kept = tuple(note.encode("ascii", "replace").decode()[:NOTE_LENGTH] for note in notes)[:NOTES]
    for note in kept:
        if not _NOTE.fullmatch(note) or _PATH.search(note):
            raise ProvenanceError(
                "a note looks like a path, or is no plain text", do="leave it out: a store keeps no paths"
            )
    return kept


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many voxels have each HU: `counts[k]` of ``first + k``. Exact, so it gives any clip's mean and deviation."""

    first: int
    counts: Int64[np.ndarray, "bins"]

    @classmethod
    def of(cls, slabs: Iterable[Int16[np.ndarray, "d h w"]]) -> Histogram:
        """The histogram of all voxels of `slabs`."""
        total = np.zeros(65536, dtype=np.int64)
        for slab in slabs:
            for part in slab:  # one slice at a time: bincount makes 8-byte copies
                total += np.bincount(part.ravel().view(np.uint16), minlength=65536)
        total = np.roll(total, 32768)
        hit = np.flatnonzero(total)
        return cls(int(hit[0]) - 32768, total[hit[0] : hit[-1] + 1])

    @property
    def values(self) -> Int64[np.ndarray, "bins"]:
        """The HU of each bin."""
        return self.first + np.arange(len(self.counts), dtype=np.int64)

    def statistics(self, clip: tuple[float, float] | None = None, *, ddof: int = 0) -> tuple[float, float]:
        """(mean, deviation) of the voxels after clipping to `clip` HU, in float64."""
        hu = self.values.astype(np.float64)
        if clip is not None:
            hu = np.clip(hu, *clip)
        count = int(self.counts.sum())
        mean = float((self.counts * hu).sum() / count)
        square = float((self.counts * (hu - mean) ** 2).sum())
        return mean, float(np.sqrt(square / max(count - ddof, 1)))

    def same(self, other: Histogram) -> bool:
        """Whether both count the same."""
        return self.first == other.first and np.array_equal(self.counts, other.counts)

    def pack(self) -> PackedHistogram:
        """The form that sidecars hold."""
        raw = zlib.compress(self.counts.astype("<u8").tobytes(), 9)
        return PackedHistogram(self.first, base64.b64encode(raw).decode())


@dataclass(frozen=True)
class PackedHistogram:
    """`first` HU, and the counts as little-endian uint64, deflated, in base 64."""

    first: int
    counts: str

    def unpack(self) -> Histogram:
        """The histogram; raises ValueError when it is none."""
        try:
            inflate = zlib.decompressobj()
            raw = inflate.decompress(base64.b64decode(self.counts, validate=True), _HISTOGRAM_CAP)
        except (zlib.error, binascii.Error) as error:
            raise ValueError(f"the histogram cannot be unpacked ({error})") from error
        if not inflate.eof or len(raw) == 0 or len(raw) % 8:
            raise ValueError("the histogram is cut off or too long")
        counts = np.frombuffer(raw, dtype="<u8").astype(np.int64)
        if self.first < -32768 or self.first + len(counts) > 32768:
            raise ValueError("the histogram leaves the range of int16")
        return Histogram(self.first, counts)


@dataclass(frozen=True)
class ArrayFile:
    """Length and SHA-256 of the ``.b2nd`` file."""

    bytes: int
    sha256: str


Rows = tuple[
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
    tuple[float, float, float, float],
]


@dataclass(frozen=True)
class SourceGrid:
    """The grid of the scan as it was given, before it was turned and resampled."""

    shape: Vec3
    affine: Rows


@dataclass(frozen=True)
class Sidecar:
    """All that a store knows of one scan, beside its voxels.

    Attributes
    ----------
    format : version of the format.
    id, patient, collection : of the scan; the patient as a salted hash, the collection by its public name.
    grid : name of the store's grid.
    shape, affine, spacing : of the array (d, h, w); world millimetres, RAS+.
    array : length and SHA-256 of the array file.
    voxels_sha256 : of the int16 little-endian voxels in C order.
    box_soft, box_body : smallest boxes of HU > 0 and of HU > -1024; None where no voxel is.
    histogram : exact, one bin for each HU.
    source : grid of the scan as it was given.
    provenance : allow-listed facts (`PROVENANCE`).
    notes : what reading did to the scan, or what it was taken for on somebody's word (`Volume.notes`).
    """

    format: int
    id: str
    patient: str
    collection: str
    grid: str
    shape: Vec3
    affine: Rows
    spacing: tuple[float, float, float]
    array: ArrayFile
    voxels_sha256: str
    box_soft: Box | None
    box_body: Box | None
    histogram: PackedHistogram
    source: SourceGrid
    provenance: dict[str, str | int | float | bool]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The sidecar's text; the same scan always gives the same text. Without notes there is no such key."""
        data = to_data(self)
        if not self.notes:
            del data["notes"]
        return json.dumps(data, indent=1, allow_nan=False) + "\n"


def rows(affine: geometry.Affine) -> Rows:
    """An affine as nested tuples."""
    a, b, c, d = (tuple(float(v) for v in line) for line in affine)
    return a, b, c, d  # type: ignore[return-value]


def read_sidecar(path: Path, name: str) -> Sidecar:
    """The sidecar at `path`; errors name the scan by `name` (store and id), not by a path.

    Raises SidecarError when it is missing, unreadable, has unknown or missing keys or impossible values, and
    UnknownFormatError when it was written by a later program.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SidecarError("the sidecar is missing", where=name, do="remove the scan and add it again") from None
    except (OSError, ValueError) as error:
        raise SidecarError(
            f"the sidecar cannot be read ({error.__class__.__name__})",
            where=name,
            do="remove the scan and add it again",
        ) from None
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise UnknownFormatError(
            f"the sidecar has format {version}, this program knows {FORMAT}", where=name, do="update ctfoundry"
        )
    try:
        sidecar = from_data(Sidecar, data, name)
        check_id(sidecar.id)
        check_id(sidecar.patient, "patient")
        check_collection(sidecar.collection)
        check_provenance(sidecar.provenance)
        check_notes(sidecar.notes)
        Grid(sidecar.shape, geometry.as_affine(sidecar.affine))
        for box in (sidecar.box_soft, sidecar.box_body):
            if box and not all(0 <= a < b <= n for (a, b), n in zip(box, sidecar.shape, strict=True)):
                raise ValueError(f"box {box} does not lie within shape {sidecar.shape}")
    except (CTFoundryError, ValueError) as error:
        what = error.what if isinstance(error, CTFoundryError) else str(error)
        raise SidecarError(
            f"the sidecar is not valid: {what}", where=name, do="remove the scan and add it again"
        ) from error
    return sidecar


@dataclass(frozen=True)
class Entry:
    """One scan of a store.

    Attributes
    ----------
    id, patient, collection : names; the patient is a salted hash.
    grid : shape and affine.
    box_soft, box_body : smallest boxes of HU > 0 and of HU > -1024; None where no voxel is.
    """

    id: str
    patient: str
    collection: str
    grid: Grid
    box_soft: Box | None
    box_body: Box | None
    sidecar: Path = field(repr=False, compare=False)

    @property
    def shape(self) -> Vec3:
        """(d, h, w)."""
        return self.grid.shape

    @property
    def affine(self) -> geometry.Affine:
        """Voxel index to world millimetres."""
        return self.grid.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres along d, h, w."""
        return self.grid.spacing

    @cached_property
    def histogram(self) -> Histogram:
        """Voxels of each HU, read from the sidecar once."""
        try:
            return read_sidecar(self.sidecar, self.id).histogram.unpack()
        except ValueError as error:
            raise SidecarError(str(error), where=self.id, do="remove the scan and add it again") from error

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What reading did to the scan, or what it was taken for on somebody's word; from the sidecar, read once."""
        return read_sidecar(self.sidecar, self.id).notes

    def statistics(self, clip: tuple[float, float] | None = None, *, ddof: int = 0) -> tuple[float, float]:
        """(mean, deviation) of the scan after clipping to `clip` HU, exact, without reading a voxel."""
        return self.histogram.statistics(clip, ddof=ddof)
