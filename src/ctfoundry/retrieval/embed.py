"""Embeddings on disk.

``OUT/parts/*.safetensors`` hold the vectors, each with its rows (id, vector name, box, centre) in the header, so that a part
is complete in itself and appears whole; ``OUT/index.parquet`` is derived from them; ``OUT/card.json`` says which encoder and
settings made them. A scan that is there with the same content and settings is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctfoundry import files
from ctfoundry.encoder import Encoder
from ctfoundry.errors import CTFoundryError, StoreError
from ctfoundry.geometry import Vec3
from ctfoundry.infer.passes import Precision
from ctfoundry.retrieval.index import Index
from ctfoundry.settings import to_data
from ctfoundry.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

PART_SCANS = 64
"""Scans per part: ``kill -9`` loses at most this many, Ctrl-C and errors lose none."""


@dataclass(frozen=True)
class Scan:
    """A scan to embed: its public id, a digest of its content, and how to read it."""

    id: str
    digest: str
    read: Callable[[], Volume]


@dataclass(frozen=True)
class Settings:
    """What is embedded of each scan: named vectors of the whole, and optionally each window alone."""

    vectors: tuple[str, ...] = ()
    window: Vec3 | None = None
    overlap: float = 0.0
    grids: bool = False
    precision: Precision = "fp32"


@dataclass
class Outcome:
    """Ids that were embedded now, were there already, or failed with a reason."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One vector of one scan; `centre` in world mm, `box` as first voxel and size in the prepared scan, for windows."""

    id: str
    digest: str
    vector: str
    centre: tuple[float, float, float] | None = None
    box: tuple[int, ...] | None = None


def embed(
    scans: Iterable[Scan],
    encoder: Encoder,
    out: Path,
    settings: Settings = Settings(),
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Embed `scans` into `out`; one that cannot be read is named in the outcome and leaves the others alone.

    Raises StoreError when `out` holds embeddings of another encoder or other settings.
    """
    chosen = settings.vectors or (encoder.card.vector,)
    _open(out, encoder, settings)
    there = {(row["id"], row["digest"]) for row in rows(out)}
    outcome = Outcome()
    vectors: list[Tensor] = []
    waiting: list[Row] = []
    pending: list[str] = []
    try:
        for scan in scans:
            if (scan.id, scan.digest) in there:
                outcome.skipped.append(scan.id)
            else:
                try:
                    made = _one(scan, encoder, settings, chosen, out)
                except CTFoundryError as error:
                    outcome.failed[scan.id] = error.what  # not where: that is a path, and this goes into run.json
                else:
                    waiting += [row for row, _ in made]
                    vectors += [vector for _, vector in made]
                    pending.append(scan.id)
            if len(pending) >= PART_SCANS:
                _write_part(out, waiting, vectors)
                outcome.done += pending
                vectors, waiting, pending = [], [], []
            progress(scan.id)
    finally:  # when stopped, too
        if waiting:
            _write_part(out, waiting, vectors)
            outcome.done += pending
    write_index(out)
    return outcome


SAME_VECTORS = ("architecture", "arguments", "preparation", "extent", "level", "weights", "sha256", "seed")
"""What of a card decides the vectors; the rest (who trained it for how long) may differ."""


def same_model(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two cards, as plain data, give the same vectors."""
    return all(a[key] == b[key] for key in SAME_VECTORS)


def fits(out: Path, encoder: Encoder, settings: Settings = Settings()) -> bool:
    """Whether `out` is new, or holds embeddings of this encoder with these settings."""
    path = out / "card.json"
    if not path.is_file():
        return True
    there = json.loads(path.read_text())
    return same_model(there["model"], to_data(encoder.card)) and there["settings"] == _used(encoder, settings)


def _used(encoder: Encoder, settings: Settings) -> dict[str, Any]:
    return to_data(settings) | {"vectors": list(settings.vectors or (encoder.card.vector,))}


def _open(out: Path, encoder: Encoder, settings: Settings) -> None:
    if not fits(out, encoder, settings):
        raise StoreError(
            "holds embeddings of another encoder or with other settings", where=out, do="choose another folder"
        )
    if not (out / "card.json").is_file():
        files.write_json(out / "card.json", {"model": to_data(encoder.card), "settings": _used(encoder, settings)})
    (out / "parts").mkdir(exist_ok=True)
    files.sweep(out / "parts")


def _one(
    scan: Scan, encoder: Encoder, settings: Settings, chosen: Sequence[str], out: Path
) -> list[tuple[Row, Tensor]]:
    volume = scan.read()
    levels = (encoder.card.level,) if settings.grids else ()
    features = encoder(volume, vectors=chosen, levels=levels, precision=settings.precision)
    made = [(Row(scan.id, scan.digest, name), features.vectors[name].cpu()) for name in chosen]
    if settings.window is not None:
        windows = encoder.windows(volume, settings.window, settings.overlap, precision=settings.precision)
        for vector, centre, start in zip(
            windows.vectors.cpu(), windows.centres.tolist(), windows.starts.tolist(), strict=True
        ):
            made.append((Row(scan.id, scan.digest, "window", tuple(centre), (*start, *windows.size)), vector))
    if settings.grids:
        from safetensors.torch import save_file

        grid = features.grid
        with files.whole(out / "grids" / f"{scan.id}.safetensors") as part:
            save_file(
                {"features": grid.data.half().cpu().contiguous(), "valid": grid.valid.cpu().contiguous()},
                part,
                metadata={"affine": json.dumps(grid.affine.tolist()), "level": grid.level},
            )
    return made


def _write_part(out: Path, waiting: Sequence[Row], vectors: Sequence[Tensor]) -> None:
    from safetensors.torch import save_file

    header = [asdict(row) for row in waiting]
    # numbered, so that the last of two vectors of one id is the later one
    name = f"{len(list((out / 'parts').glob('*.safetensors'))):06d}-{files.digest(header)[:16]}"
    with files.whole(out / "parts" / f"{name}.safetensors") as part:
        save_file(
            {"vectors": torch.stack(list(vectors)).float().contiguous()}, part, metadata={"rows": json.dumps(header)}
        )


def rows(out: Path) -> list[dict[str, Any]]:
    """All rows of an embeddings folder, each with its part and its place in it."""
    from safetensors import SafetensorError, safe_open

    found = []
    for part in sorted((out / "parts").glob("*.safetensors")):
        try:
            with safe_open(part, "pt") as stream:
                header = json.loads(stream.metadata()["rows"])
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise StoreError(
                f"is no part of embeddings: {error}", where=part, do="remove it and embed again"
            ) from error
        found += [row | {"part": part.name, "row": i} for i, row in enumerate(header)]
    return found


def write_index(out: Path) -> None:
    """Write ``index.parquet`` from the parts: id, part, row, vector name, box, centre in mm."""
    import duckdb

    table = [[r["id"], r["part"], r["row"], r["vector"], r["box"], r["centre"], r["digest"]] for r in rows(out)]
    with duckdb.connect() as base, files.whole(out / "index.parquet") as part:
        base.execute(
            "create table rows (id varchar, part varchar, row integer, vector varchar, box integer[], centre_mm double[], digest varchar)"
        )
        if table:
            base.executemany("insert into rows values (?, ?, ?, ?, ?, ?, ?)", table)
        base.execute(f"copy rows to '{str(part).replace(chr(39), chr(39) * 2)}' (format parquet)")


def load_index(out: Path, vector: str | None = None) -> Index:
    """The index over one kind of vector (default: the encoder's own) of an embeddings folder."""
    from safetensors.torch import load_file

    if not (out / "card.json").is_file():
        raise StoreError(
            "is no embeddings folder: it has no card.json", where=out, do="make one with `ctfoundry embed`"
        )
    card = json.loads((out / "card.json").read_text())
    wanted = vector or card["settings"]["vectors"][0]
    chosen = [row for row in rows(out) if row["vector"] == wanted]
    if not chosen:
        raise StoreError(f"holds no vector {wanted!r}", where=out)
    latest = {row["id"]: row for row in chosen}
    parts = {name: load_file(out / "parts" / name)["vectors"] for name in {row["part"] for row in latest.values()}}
    return Index.of(tuple(latest), torch.stack([parts[row["part"]][row["row"]] for row in latest.values()]))
