"""Files that others wrote, measured before they are read: safetensors headers and JSON.

A safetensors file is 8 bytes of header length, a JSON header of names, types, shapes and byte ranges, and the bytes
(github.com/huggingface/safetensors). Every claim of the header is checked against the file's size before a tensor is made.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry.errors import TooLargeError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

FILE_CAP_BYTES = 32 * 2**30
"""Largest weight file that is opened."""
HEADER_CAP_BYTES = 16 * 2**20
"""Largest safetensors header; the published models' have 20 to 80 KiB."""
JSON_CAP_BYTES = 4 * 2**20
"""Largest card or configuration."""
TENSORS = 100_000
AXES = 8

_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_AGAIN = "copy or download the file again"


def check_size(path: Path) -> int:
    """Size of a weight file; raises WeightsError where there is no plain file, TooLargeError over the cap."""
    if not path.is_file():
        raise WeightsError("no such file", where=path)
    size = path.stat().st_size
    if size > FILE_CAP_BYTES:
        raise TooLargeError(
            f"is {size / 2**30:.0f} GiB; weights over {FILE_CAP_BYTES >> 30} GiB are not read", where=path
        )
    return size


def read_json(path: Path, cap: int = JSON_CAP_BYTES) -> dict[str, Any]:
    """A JSON object from a file; raises WeightsError for what is none, has a key twice, a NaN, or is too large or too deep."""
    if not path.is_file():
        raise WeightsError("no such file", where=path)
    size = path.stat().st_size
    if size > cap:
        raise TooLargeError(f"has {size:,} bytes of JSON, more than {cap:,}", where=path)
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, where: Path) -> dict[str, Any]:
    """A JSON object from bytes; see `read_json`."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key stands in it twice")
        return made

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=table, parse_constant=constant)
    except RecursionError as error:
        raise WeightsError("its JSON is nested too deeply", where=where) from error
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise WeightsError(f"is not JSON: {error}", where=where) from error
    if not isinstance(found, dict):
        raise WeightsError(f"is not JSON: expected an object, got {type(found).__name__}", where=where)
    return found


def check_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from a safetensors header of which every claim holds; no tensor is read.

    Raises WeightsError: the header is longer than the file or the cap, no JSON, or names a type, shape or byte range that
    cannot be; ranges overlap, leave holes, or do not end with the file.
    """
    size = check_size(path)

    def bad(what: str) -> WeightsError:
        return WeightsError(f"is no whole safetensors file: {what}", where=path, do=_AGAIN)

    with open(path, "rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise bad(f"{len(head)} bytes cannot hold the length of its header")
        length = int.from_bytes(head, "little")
        if length > HEADER_CAP_BYTES:
            raise bad(f"a header of {length:,} bytes is over the cap of {HEADER_CAP_BYTES:,}")
        if length + 8 > size:
            raise bad(f"a header of {length:,} bytes does not fit into {size:,}")
        data = file.read(length)
    try:
        header = parse_json(data, path)
    except WeightsError as error:
        raise bad("its header " + error.what) from error
    header.pop("__metadata__", None)
    if len(header) > TENSORS:
        raise bad(f"it lists {len(header):,} tensors, more than {TENSORS:,}")
    ranges, shapes = [], {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise bad(f"tensor {name[:80]!r} has not exactly a type, a shape and offsets")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in _BYTES:
            raise bad(f"tensor {name[:80]!r} is of the unknown type {str(kind)[:20]!r}")
        if not _counts(shape) or len(shape) > AXES or not _counts(offsets) or len(offsets) != 2:
            raise bad(f"shape or offsets of tensor {name[:80]!r} are no whole numbers")
        need = math.prod(shape) * _BYTES[kind]
        if offsets[1] - offsets[0] != need:
            raise bad(
                f"tensor {name[:80]!r} of shape {tuple(shape)} needs {need:,} bytes, not {offsets[1] - offsets[0]:,}"
            )
        ranges.append((offsets[0], offsets[1], name))
        shapes[name] = tuple(shape)
    end = 0
    for first, last, name in sorted(ranges):
        if first != end:
            what = "overlaps with another" if first < end else "leaves a hole before it"
            raise bad(f"the bytes of tensor {name[:80]!r} begin at {first:,}, not {end:,}: it {what}")
        end = last
    if end != size - 8 - length:
        raise bad(f"its tensors end at byte {end:,} of {size - 8 - length:,}")
    return shapes


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in values)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file whose header holds."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"is no whole safetensors file: {error}", where=path, do=_AGAIN) from error


def inside(folder: Path, name: str) -> Path | None:
    """``folder/name`` where it is there and really in the folder; None where it is absent.

    A link out of the folder is refused, except the hub's own: a snapshot of its cache links into ``blobs`` beside it.
    Raises WeightsError.
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs"
    homes = [home, blobs] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(place) for place in homes):
        raise WeightsError(f"its {name} is a link out of the folder", where=folder, do="put the file itself there")
    if not real.is_file():
        raise WeightsError(f"its {name} is no file", where=folder)
    return path
