"""The parts of an embeddings folder: files that appear whole, are never changed, and say by themselves what they hold.

``parts/NUMBER-TOKEN.safetensors`` holds vectors (n, c), and in its header the rows (id, digest, vector, centre, box), the scans
among them, ids that are taken out (`removed`), and the mark of the card that they were made under (`cards.mark`; parts of the
first versions have none and are taken as they are). Names are unique, so any number of writers may add parts at once; the
order of names is the order in time. Of an id that was embedded twice the latest content counts; one that was taken out is
back when a later part holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files
from ctfoundry.errors import StoreError
from ctfoundry.retrieval.cards import mark, read_card

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Row:
    """One vector of one scan; `centre` in world mm, `box` as first voxel and size in the prepared scan, for windows and slices."""

    id: str
    digest: str
    vector: str
    centre: tuple[float, float, float] | None = None
    box: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Header:
    """What a part says of itself: its scans as (id, digest), ids it takes out, the mark of its card, and its rows, not parsed until
    asked for."""

    name: str
    scans: tuple[tuple[str, str], ...]
    removed: tuple[str, ...]
    card: str
    _rows: str

    def rows(self) -> list[dict[str, Any]]:
        """id, digest, vector, centre, box of each vector, in order."""
        return json.loads(self._rows)


def names(out: Path) -> dict[str, int]:
    """Name and size in bytes of every part, in the order of names; unfinished files do not count."""
    try:
        with os.scandir(out / "parts") as found:
            sizes = {entry.name: entry.stat().st_size for entry in found if _is_part(entry.name)}
    except FileNotFoundError:
        return {}
    return dict(sorted(sizes.items()))


def _is_part(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith(".")


def header(out: Path, name: str) -> Header:
    """The header of one part; no vector is read. Raises StoreError for what is no part, and for a part of embeddings that another
    model or other settings made; FileNotFoundError for one that has gone."""
    from safetensors import SafetensorError, safe_open

    place = out / "parts" / name
    try:
        with safe_open(place, "numpy") as stream:
            about = stream.metadata() or {}
        rows = about["rows"]
        if "scans" in about:
            scans = [tuple(pair) for pair in json.loads(about["scans"])]
        else:  # parts of the first version say their scans in their rows alone
            scans = list(dict.fromkeys((row["id"], row["digest"]) for row in json.loads(rows)))
        found = Header(name, tuple(scans), tuple(json.loads(about.get("removed", "[]"))), about.get("card", ""), rows)
    except FileNotFoundError:
        raise  # compacted meanwhile: what it held stands in another part
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"is no part of embeddings: {error}", where=place, do="remove it and embed again") from error
    own = _mark_of(out)
    if found.card and own and found.card != own:
        raise StoreError(
            "was made by another model or with other settings than card.json of this folder says",
            where=place,
            do="move it out of this folder",
        )
    return found


def _mark_of(out: Path) -> str:
    """The mark of a folder's card, "" where there is none; read again when the card is another one."""
    try:
        about = os.stat(out / "card.json")
    except FileNotFoundError:
        return ""
    return _mark_in(out, about.st_mtime_ns, about.st_ino, about.st_size)


@lru_cache(maxsize=64)
def _mark_in(out: Path, *_: int) -> str:
    return mark(read_card(out))


def check_width(out: Path, name: str, width: int, others: int) -> None:
    """Raise StoreError for a part whose vectors have not as many numbers as the others."""
    if width != others:
        raise StoreError(
            f"its vectors have {width} numbers, the others {others}",
            where=out / "parts" / name,
            do="remove it and embed again",
        )


def vectors(out: Path, name: str) -> Float[np.ndarray, "n c"]:
    """All vectors of a part, memory-mapped by safetensors."""
    from safetensors import safe_open

    with safe_open(out / "parts" / name, "numpy") as stream:
        return stream.get_tensor("vectors")


def write(out: Path, rows: Sequence[Row], found: Float[np.ndarray, "n c"], card: str | None = None) -> str:
    """Add a part, with the mark of the folder's card or the one given; returns its name. Raises DiskFullError."""
    data = np.ascontiguousarray(found, dtype=np.float32)
    return _add(out, data, rows, list(dict.fromkeys((row.id, row.digest) for row in rows)), [], card)


def take_out(out: Path, ids: Iterable[str]) -> str:
    """Add a part that takes scans out; their vectors stay in their files and are not found any more. Returns its name."""
    return _add(out, np.zeros((0, 1), np.float32), [], [], sorted(set(ids)), None)


def _add(
    out: Path,
    data: np.ndarray,
    rows: Sequence[Row],
    scans: Sequence[tuple[str, str]],
    removed: Sequence[str],
    card: str | None,
) -> str:
    from safetensors.numpy import save_file

    last = max((int(name.split("-")[0]) for name in names(out) if name.split("-")[0].isdigit()), default=-1)
    name = f"{last + 1:06d}-{secrets.token_hex(8)}.safetensors"
    about = {
        "rows": json.dumps([asdict(row) for row in rows], separators=(",", ":")),
        "scans": json.dumps(scans, separators=(",", ":")),
        "removed": json.dumps(removed),
        "card": _mark_of(out) if card is None else card,
    }
    with files.whole(out / "parts" / name) as part:
        save_file({"vectors": data}, part, metadata=about)
    return name


class Catalogue:
    """Which content of which scan counts: that of the latest part which names its id."""

    def __init__(self) -> None:
        self._latest: dict[str, tuple[str, str | None]] = {}

    def add(self, head: Header) -> None:
        """Take in a part; the order of calls does not matter."""
        for id in head.removed:
            self._set(id, head.name, None)
        for id, digest in head.scans:
            self._set(id, head.name, digest)

    def _set(self, id: str, part: str, digest: str | None) -> None:
        if id not in self._latest or self._latest[id][0] <= part:
            self._latest[id] = part, digest

    def counts(self, id: str, digest: str, part: str) -> bool:
        """Whether the vectors of `id` with `digest` in `part` are the ones that count."""
        return self._latest.get(id) == (part, digest)

    def scans(self) -> dict[str, str]:
        """Id to digest of all scans that are in."""
        return {id: digest for id, (_, digest) in self._latest.items() if digest is not None}


def catalogue(out: Path) -> Catalogue:
    """The catalogue of a folder, from the headers of its parts."""
    found = Catalogue()
    for name in names(out):
        found.add(header(out, name))
    return found


def rows(out: Path) -> Iterator[dict[str, Any]]:
    """All rows that count, each with its part and its place in it, part by part."""
    known = catalogue(out)
    for name in names(out):
        head = header(out, name)
        if not any(known.counts(id, digest, name) for id, digest in head.scans):
            continue
        for place, row in enumerate(head.rows()):
            if known.counts(row["id"], row["digest"], name):
                yield row | {"part": name, "row": place}


def vector_names(out: Path) -> list[str]:
    """Names of the vectors that a folder holds, the default one first; regions of interest are read off the parts."""
    settings = read_card(out)["settings"]
    found = list(settings["vectors"])
    found += ["window"] if settings["window"] is not None else []
    found += ["slice"] if settings["slices"] else []
    if settings["roi"]:
        found += sorted({row["vector"] for row in rows(out)} - set(found))
    return found


_TABLE = (
    "id, part, row, vector, CASE WHEN box0 < 0 THEN NULL ELSE [box0, box1, box2, box3, box4, box5] END AS box, "
    "CASE WHEN isnan(x) THEN NULL ELSE [x, y, z] END AS centre_mm, digest"
)


def write_index(out: Path) -> None:
    """Write ``index.parquet`` from the parts: id, part, row, vector name, box, centre in mm, digest of what counts.

    One writer at a time, each from what is there when its turn comes, so the last one to end lists everything.
    """
    import duckdb

    with locked(out, "index"):
        files.sweep(out, "index.parquet")  # what writers that were killed have left
        with duckdb.connect() as base, files.whole(out / "index.parquet") as place:
            base.execute(
                "CREATE TABLE listed (id VARCHAR, part VARCHAR, row INTEGER, vector VARCHAR, box INTEGER[], "
                "centre_mm DOUBLE[], digest VARCHAR)"
            )
            for block in _blocks(rows(out)):
                nowhere = [float("nan")] * 3
                box = np.array([row["box"] or [-1] * 6 for row in block], np.int32)
                centre = np.array([row["centre"] or nowhere for row in block])
                table = {
                    name: np.array([row[name] for row in block], object) for name in ("id", "part", "vector", "digest")
                }
                table |= {"row": np.array([row["row"] for row in block], np.int32)}
                table |= {f"box{i}": box[:, i].copy() for i in range(6)}
                table |= {axis: centre[:, i].copy() for i, axis in enumerate("xyz")}
                base.register("block", table)
                base.execute(f"INSERT INTO listed SELECT {_TABLE} FROM block")
                base.unregister("block")
            base.execute(
                f"COPY listed TO '{str(place).replace(chr(39), chr(39) * 2)}' (FORMAT parquet, USE_TMP_FILE false)"
            )


def _blocks(source: Iterable[dict[str, Any]], size: int = 50_000) -> Iterator[list[dict[str, Any]]]:
    block: list[dict[str, Any]] = []
    for row in source:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


@contextlib.contextmanager
def locked(out: Path, name: str, *, shared: bool = False) -> Iterator[None]:
    """Hold ``.NAME.lock`` of a folder, alone unless `shared`; the kernel frees it when its holder dies."""
    handle = os.open(out / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(out: Path, *, alone: bool = False) -> Iterator[None]:
    """Writers share this; unfinished files that killed ones left go when nobody else is at work.

    With `alone` no other writer may be, else StoreError is raised.
    """
    handle = os.open(out / ".parts.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if alone:
                raise StoreError("somebody is writing to it", where=out, do="try again later") from None
        else:
            files.sweep(out / "parts")
            if (out / "grids").is_dir():
                files.sweep(out / "grids")
        if not alone:
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)
