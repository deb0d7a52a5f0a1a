"""The vectors of one kind as a matrix on disk, memory-mapped: bfloat16 to search, float32 to decide.

``matrix-VECTOR.json`` names the files of the latest generation and how much of them counts; it is replaced when the rest is
on the disk, so a reader sees the old state or the new one. Parts that were added since are appended, under a lock; a reader
that has the files open keeps what it sees. Everything is made anew when a part has gone, or when the matrix has outgrown the
vectors that its centre was taken from.

A row is stored as ``x - m`` in bfloat16, where x has unit length and m is the mean of the rows that the matrix began with:
features of CTs are all alike (cosines of 0.9 and more), and what they share would cost the digits that tell them apart. Three
more columns hold ``m . (x - m)``. Rows are filled with zeros to a multiple of 32 columns.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.errors import DiskFullError, StoreError
from ctfoundry.retrieval import parts

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FORMAT = 1
GROWTH = 8
"""A matrix is made anew, with a new centre, when it has grown by this factor."""
EXTRA, MULTIPLE = 3, 32
"""Columns for the part along the centre, and what the number of columns is a multiple of."""
BLOCK = 8192
"""Rows that are converted at once."""
FILES = ("f32", "bf16", "rows", "scans")

ROW = np.dtype(
    [("scan", "<i4"), ("part", "<i4"), ("row", "<i4"), ("box", "<i4", (6,)), ("norm", "<f8"), ("centre", "<f8", (3,))]
)
"""A row: its scan (line of the scans file), its part and place in it, box (-1: none), length of its vector, centre in mm (NaN: none)."""


class _NoCentreError(Exception):
    """The first vectors of a kind have come to a matrix that was made without any."""


@dataclass(frozen=True)
class Bounds:
    """Over all rows: largest rounding error, length of a stored row, and part along the centre."""

    error: float = 0.0
    length: float = 0.0
    along: float = 0.0

    def __or__(self, other: Bounds) -> Bounds:
        return Bounds(max(self.error, other.error), max(self.length, other.length), max(self.along, other.along))


@dataclass(frozen=True)
class Manifest:
    """What of a generation's files counts: `count` rows, the first `scan_bytes` of the scans; `parts` with their sizes."""

    format: int
    generation: str
    vector: str
    channels: int
    begun: int
    count: int
    scan_bytes: int
    parts: tuple[tuple[str, int], ...]
    centre: tuple[float, ...]
    bounds: Bounds


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix as a reader has it.

    Attributes
    ----------
    raw : vectors as they were embedded, float32 (n, c).
    half : rounded rows, bfloat16 (n, width).
    rows : `ROW` of each.
    scans : (id, digest, part) by `ROW`'s scan; a digest of None takes an id out.
    centre : float64 (c,).
    """

    raw: Float[np.ndarray, "n c"]
    half: Float[Tensor, "n width"]
    rows: np.ndarray
    scans: list[tuple[str, str | None, str]]
    centre: Float[np.ndarray, "c"]
    bounds: Bounds


def width(channels: int) -> int:
    """Columns of a stored row."""
    return -(-(channels + EXTRA) // MULTIPLE) * MULTIPLE


def centre_of(vectors: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "c"]:
    """The mean of the vectors' directions, in numbers that float32 holds."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1.0)
    return unit.mean(0).astype(np.float32).astype(np.float64)


def rounded(
    vectors: Float[np.ndarray, "n c"], centre: Float[np.ndarray, "c"]
) -> tuple[Float[Tensor, "n width"], Float[np.ndarray, "n"], Bounds]:
    """Stored rows, lengths of the vectors, and bounds; all in float64 until they are rounded. A vector of zeros stays one."""
    count, channels = vectors.shape
    half = torch.zeros(count, width(channels), dtype=torch.bfloat16)
    norms = np.zeros(count)
    bounds = Bounds()
    for start in range(0, count, BLOCK):
        some = slice(start, min(start + BLOCK, count))
        block = vectors[some].astype(np.float64)
        norms[some] = np.sqrt((block * block).sum(1))
        rest = torch.from_numpy(block / np.where(norms[some] > 0, norms[some], 1.0)[:, None] - centre)
        kept = rest.bfloat16()
        along = rest @ torch.from_numpy(centre)
        high = along.bfloat16()
        half[some, :channels] = kept
        half[some, channels] = half[some, channels + 1] = high
        half[some, channels + 2] = (along - high).bfloat16()
        found = kept.double()
        bounds |= Bounds(
            float((rest - found).norm(dim=1).max()), float(found.norm(dim=1).max()), float(along.abs().max())
        )
    return half, norms, bounds


def in_memory(vectors: Float[np.ndarray, "n c"]) -> Matrix:
    """A matrix of vectors that are in no folder: one scan a row."""
    raw = np.ascontiguousarray(vectors, dtype=np.float32)
    centre = centre_of(raw) if len(raw) else np.zeros(raw.shape[1])
    half, norms, bounds = rounded(raw, centre)
    rows = _rows(len(raw))
    rows["scan"], rows["norm"] = np.arange(len(raw)), norms
    return Matrix(raw, half, rows, [], centre, bounds)


def open_matrix(out: Path, vector: str) -> Matrix:
    """The matrix of one kind of vector with all parts that are there now; made or extended where need be.

    Where the folder cannot be written to, or the disk is full, it is made in memory. Raises StoreError for a broken part.
    """
    missing = False
    for _ in range(8):
        manifest = _read(out, vector)
        try:
            if missing or manifest is None or dict(manifest.parts) != parts.names(out):
                try:
                    with parts.locked(out, "matrix"):
                        manifest = _brought_up(out, vector)
                except (OSError, DiskFullError) as error:  # a full disk takes the search nothing but its speed
                    if isinstance(error, OSError) and error.errno not in (*files.READ_ONLY, *files.NO_ROOM):
                        raise
                    return _collected(out, vector)
            return _mapped(out, manifest)
        except FileNotFoundError:
            missing = True  # somebody has just replaced this generation, or compacted the parts, or taken a file away
    raise StoreError("its matrix is replaced again and again", where=out, do="try again")


def _stem(vector: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", vector)[:48]
    return f"matrix-{vector}" if plain == vector else f"matrix-{plain}-{files.digest(vector)[:8]}"


def _place(out: Path, manifest: Manifest, kind: str) -> Path:
    return out / f"{_stem(manifest.vector)}-{manifest.generation}.{kind}"


def _read(out: Path, vector: str) -> Manifest | None:
    try:
        data = json.loads((out / f"{_stem(vector)}.json").read_text())
        if data["format"] != FORMAT or data["vector"] != vector:
            return None
        data["parts"] = tuple((name, size) for name, size in data["parts"])
        data["centre"], data["bounds"] = tuple(data["centre"]), Bounds(**data["bounds"])
        return Manifest(**data)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _brought_up(out: Path, vector: str) -> Manifest:
    """The manifest of all parts; the caller holds the lock."""
    there, manifest = parts.names(out), _read(out, vector)
    if manifest is not None and not all(_place(out, manifest, kind).is_file() for kind in FILES):
        manifest = None
    if manifest is not None and dict(manifest.parts) == there:
        return manifest
    if manifest is not None and (dict(manifest.parts).items() <= there.items()):
        fresh = [name for name in there if name not in dict(manifest.parts)]
        with contextlib.suppress(FileNotFoundError, _NoCentreError):
            manifest = _extended(out, manifest, fresh, there)
            if manifest.count <= GROWTH * max(manifest.begun, 1):
                return manifest
    made = _made(out, vector, there)
    for place in out.glob(f"{_stem(vector)}-*"):
        ours = re.fullmatch(re.escape(_stem(vector)) + r"-([0-9a-f]{12})\.\w+", place.name)
        if ours is not None and ours[1] != made.generation:
            place.unlink(missing_ok=True)
    return made


def _made(out: Path, vector: str, there: dict[str, int]) -> Manifest:
    """A new generation of the rows that count now."""
    known = parts.Catalogue()
    for name in there:
        known.add(parts.header(out, name))
    begun = list(_chosen(out, vector, list(there), known, most=8 * BLOCK))
    for name, _, block in begun:
        parts.check_width(out, name, block.shape[1], begun[0][2].shape[1])
    if not begun:
        channels, centre = 0, np.zeros(0)
    else:
        sample = np.concatenate([block for _, _, block in begun])
        channels, centre = sample.shape[1], centre_of(sample)
    empty = Manifest(FORMAT, secrets.token_hex(6), vector, channels, 0, 0, 0, (), tuple(centre.tolist()), Bounds())
    try:
        for kind in FILES:
            _place(out, empty, kind).write_bytes(b"")
        made = _extended(out, empty, list(there), there, known)
    except (OSError, DiskFullError):
        for kind in FILES:
            _place(out, empty, kind).unlink(missing_ok=True)
        raise
    made = replace(made, begun=made.count)
    _commit(out, made)
    return made


def _extended(
    out: Path, manifest: Manifest, fresh: Sequence[str], there: dict[str, int], known: parts.Catalogue | None = None
) -> Manifest:
    """Append the rows of parts `fresh`; what a killed writer has appended beyond what counts is overwritten."""
    count, bounds, channels = manifest.count, manifest.bounds, manifest.channels
    sizes = {"f32": 4 * channels, "bf16": 2 * width(channels), "rows": ROW.itemsize}
    centre = np.array(manifest.centre)
    with contextlib.ExitStack() as stack:
        streams = {kind: stack.enter_context(open(_place(out, manifest, kind), "r+b")) for kind in FILES}
        for kind, stream in streams.items():
            stream.truncate(manifest.scan_bytes if kind == "scans" else count * sizes[kind])
            stream.seek(0, os.SEEK_END)
        lines = _count_lines(_place(out, manifest, "scans"), manifest.scan_bytes)
        places = {name: i for i, name in enumerate([*dict(manifest.parts), *fresh])}
        for name in fresh:
            head = parts.header(out, name)
            scans: list[tuple[str, str | None]] = [(id, None) for id in head.removed]
            scans += list(head.scans)
            line = {scan: lines + i for i, scan in enumerate(scans)}
            for id, digest in scans:
                streams["scans"].write(json.dumps([id, digest, name]).encode() + b"\n")
            lines += len(scans)
            for _, listed, block in _chosen(out, manifest.vector, [name], known):
                if channels == 0:
                    raise _NoCentreError
                parts.check_width(out, name, block.shape[1], channels)
                half, norms, found = rounded(block, centre)
                rows = _rows(len(block))
                rows["scan"] = [line[row["id"], row["digest"]] for row in listed]
                rows["part"], rows["norm"] = places[name], norms
                rows["row"] = [row["row"] for row in listed]
                for i, row in enumerate(listed):
                    if row["box"]:
                        rows["box"][i] = row["box"]
                    if row["centre"]:
                        rows["centre"][i] = row["centre"]
                streams["f32"].write(np.ascontiguousarray(block, dtype="<f4").tobytes())
                streams["bf16"].write(half.view(torch.int16).numpy().tobytes())
                streams["rows"].write(rows.tobytes())
                count, bounds = count + len(block), bounds | found
        for stream in streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        end = streams["scans"].tell()
    listed_parts = tuple((name, there[name]) for name in places)
    new = replace(manifest, count=count, scan_bytes=end, parts=listed_parts, bounds=bounds)
    if manifest.begun:
        _commit(out, new)
    return new


def _commit(out: Path, manifest: Manifest) -> None:
    files.write_json(out / f"{_stem(manifest.vector)}.json", asdict(manifest))


def _chosen(
    out: Path, vector: str, chosen: Sequence[str], known: parts.Catalogue | None, most: int | None = None
) -> Iterator[tuple[str, list[dict[str, Any]], np.ndarray]]:
    """Part by part the rows of one kind of vector (with `known`, those that count), and their vectors."""
    seen = 0
    for name in chosen:
        head = parts.header(out, name)
        if known is not None and not any(known.counts(id, digest, name) for id, digest in head.scans):
            continue
        listed = [
            row | {"row": place}
            for place, row in enumerate(head.rows())
            if row["vector"] == vector and (known is None or known.counts(row["id"], row["digest"], name))
        ]
        if listed:
            block = parts.vectors(out, name)[[row["row"] for row in listed]]
            if not np.isfinite(block).all():
                raise StoreError(
                    "has vectors that are not finite", where=out / "parts" / name, do="remove it and embed again"
                )
            yield name, listed, block
            seen += len(listed)
        if most is not None and seen >= most:
            return


def _collected(out: Path, vector: str) -> Matrix:
    """The matrix in memory, where it cannot be written."""
    there, known = parts.names(out), parts.Catalogue()
    for name in there:
        known.add(parts.header(out, name))
    found = list(_chosen(out, vector, list(there), known))
    if not found:
        return in_memory(np.zeros((0, 1), np.float32))
    for name, _, block in found:
        parts.check_width(out, name, block.shape[1], found[0][2].shape[1])
    made = in_memory(np.concatenate([block for _, _, block in found]))
    scans: list[tuple[str, str | None, str]] = []
    for i, (name, row) in enumerate((name, row) for name, listed, _ in found for row in listed):
        scans.append((row["id"], row["digest"], name))
        made.rows["box"][i] = row["box"] or -1
        made.rows["centre"][i] = row["centre"] or np.nan
        made.rows["row"][i] = row["row"]
    return replace(made, scans=scans)


def _mapped(out: Path, manifest: Manifest) -> Matrix:
    n, c = manifest.count, manifest.channels
    with open(_place(out, manifest, "scans"), "rb") as stream:
        lines = stream.read(manifest.scan_bytes).splitlines()
    scans = [(id, digest, part) for id, digest, part in map(json.loads, lines)]
    centre = np.array(manifest.centre)
    if n == 0:
        half = torch.zeros(0, width(c), dtype=torch.bfloat16)
        return Matrix(np.zeros((0, max(c, 1)), np.float32), half, _rows(0), scans, centre, manifest.bounds)
    # "c": pages that are shared with the file and never written back; torch wants them writable
    raw = np.memmap(_place(out, manifest, "f32"), "<f4", "c", shape=(n, c))
    half = torch.from_numpy(np.memmap(_place(out, manifest, "bf16"), "<i2", "c", shape=(n, width(c)))).view(
        torch.bfloat16
    )
    rows = np.memmap(_place(out, manifest, "rows"), ROW, "c", shape=(n,))
    return Matrix(raw, half, rows, scans, centre, manifest.bounds)


def _rows(count: int) -> np.ndarray:
    rows = np.zeros(count, ROW)
    rows["box"], rows["centre"] = -1, np.nan
    return rows


def _count_lines(path: Path, size: int) -> int:
    with open(path, "rb") as stream:
        return stream.read(size).count(b"\n")


def alive(matrix: Matrix) -> np.ndarray | None:
    """The rows that count, in order; None where all do: the latest content of an id, unless it was taken out."""
    latest: dict[str, tuple[str, int]] = {}
    for line, (id, _, part) in enumerate(matrix.scans):
        if id not in latest or latest[id][0] <= part:
            latest[id] = part, line
    good = np.zeros(len(matrix.scans) + 1, bool)
    good[[line for _, line in latest.values()]] = True
    if not len(matrix.rows):
        return None
    kept = good[matrix.rows["scan"]]
    return None if kept.all() else np.flatnonzero(kept)
