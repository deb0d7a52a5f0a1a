"""Folders of embeddings as a whole: take scans out, put folders together, write tables."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files, identity
from ctfoundry.errors import StoreError, UsageError
from ctfoundry.retrieval import grids, parts
from ctfoundry.retrieval.cards import check_same, held_levels, read_card
from ctfoundry.retrieval.parts import Row, vector_names

if TYPE_CHECKING:
    from jaxtyping import Float

EXPORTS = ("npy", "parquet", "csv")


def remove(out: Path, ids: Collection[str]) -> list[str]:
    """Take scans out of a folder: from now on they are not found. Their vectors stay in the parts' files until `compact`.

    Returns those that were there. Raises StoreError for an id that is not, and then takes none out.
    """
    read_card(out)
    there = parts.catalogue(out).scans()
    unknown = sorted(set(ids) - set(there))
    if unknown:
        raise StoreError(f"holds no scan {', '.join(unknown[:5])}", where=out)
    if ids:
        with parts.writing(out):
            parts.take_out(out, ids)
            for id in ids:
                grids.place(out, id).unlink(missing_ok=True)
            parts.write_index(out)
    return sorted(set(ids))


def compact(out: Path) -> int:
    """Rewrite the parts so that only what counts is left, for good; returns how many bytes that freed.

    Killed, it loses nothing, and goes on when it is run again. Raises StoreError while somebody else is writing.
    """
    read_card(out)
    before = sum(parts.names(out).values())
    with parts.writing(out, alone=True):
        old = list(parts.names(out))
        for name, rows, vectors in _living(out):
            head = parts.header(out, name)
            if len(rows) < len(head.rows()):
                parts.write(out, rows, vectors, head.card)
        known = parts.catalogue(out)
        for name in old:
            head = parts.header(out, name)
            if not any(known.counts(id, digest, name) for id, digest in head.scans):
                (out / "parts" / name).unlink()
        parts.write_index(out)
    return before - sum(parts.names(out).values())


def merge(out: Path, sources: Sequence[Path]) -> dict[str, int]:
    """Put the scans of other folders into `out`, made when it is missing; returns how many came from each.

    A scan that is there with the same content is left alone, so a merge that was killed can be run again. Raises StoreError for
    folders of another model or other settings, and where `out` holds other things, before anything is written.
    """
    if not sources:
        raise UsageError("nothing to merge")
    if _holds_other_things(out):
        raise StoreError("is no folder of embeddings, and not empty", where=out, do="merge into a new folder")
    first = out if (out / "card.json").is_file() else sources[0]
    for source in sources:
        check_same(first, source)
    out.mkdir(parents=True, exist_ok=True)
    files.create_once(out / "card.json", (first / "card.json").read_bytes())
    check_same(out, first)  # somebody else may have made it meanwhile
    (out / "parts").mkdir(exist_ok=True)
    counts = {}
    with parts.writing(out):
        there = parts.catalogue(out).scans()
        for source in sources:
            came: dict[str, str] = {}
            new = {id for id, digest in parts.catalogue(source).scans().items() if there.get(id) != digest}
            # before their vectors: where a merge is killed, the next one takes them for known
            identity.write_private(out, {id: path for id, path in _paths(source).items() if id in new})
            for _, rows, vectors in _living(source):
                fresh = [i for i, row in enumerate(rows) if there.get(row.id) != row.digest]
                for id in dict.fromkeys(rows[i].id for i in fresh):
                    _copy_grid(source, out, id)
                if fresh:
                    parts.write(out, [rows[i] for i in fresh], vectors[fresh])
                    came |= {rows[i].id: rows[i].digest for i in fresh}
            there |= came
            counts[str(source)] = len(came)
        parts.write_index(out)
    return counts


def _holds_other_things(out: Path) -> bool:
    if (out / "card.json").is_file() or not out.exists():
        return False
    return not out.is_dir() or any(not place.name.startswith(".") for place in out.iterdir())


def _living(out: Path) -> Iterator[tuple[str, list[Row], Float[np.ndarray, "n c"]]]:
    """Part by part the rows that count, and their vectors. Raises StoreError where a part's are of another width than the first's."""
    known = parts.catalogue(out)
    width = 0
    for name in parts.names(out):
        head = parts.header(out, name)
        if not any(known.counts(id, digest, name) for id, digest in head.scans):
            continue
        places, rows = [], []
        for place, row in enumerate(head.rows()):
            if known.counts(row["id"], row["digest"], name):
                places.append(place)
                centre, box = row["centre"], row["box"]
                rows.append(Row(row["id"], row["digest"], row["vector"], centre and tuple(centre), box and tuple(box)))
        vectors = parts.vectors(out, name)[places]
        width = width or vectors.shape[1]
        parts.check_width(out, name, vectors.shape[1], width)
        yield name, rows, vectors


def _copy_grid(source: Path, out: Path, id: str) -> None:
    maps = grids.place(source, id)
    if maps.is_file():
        with files.whole(grids.place(out, id)) as part:
            shutil.copyfile(maps, part)


def _paths(out: Path) -> Mapping[str, str]:
    place = out / identity.PRIVATE
    return json.loads(place.read_text()) if place.is_file() else {}


def export(out: Path, kind: str, *, names: bool = False) -> list[Path]:
    """Tables that join to clinical ones by ``id``: ``OUT/tables/VECTOR.csv`` (or .parquet, or .npy with .csv of its rows).

    Columns: id, for windows and slices x, y, z (centre, mm) and box0 .. box5, then f0, f1 ... All regions of interest are in one
    table, ``roi``, with a column `region`. `names` adds the file's own name
    from ``private.json`` (with its folders, where several files are called alike); such a table is for its owner's eyes (mode 0600, ``private-`` before its name).
    """
    if kind not in EXPORTS:
        raise UsageError(f"tables are {', '.join(EXPORTS)}, not {kind!r}", where="--export")
    own = _file_names(_paths(out)) if names else None
    written = []
    for vector in dict.fromkeys(_table(name) for name in vector_names(out)):
        stem = ("private-" if names else "") + "".join(c if c.isalnum() or c in "-_" else "_" for c in vector)
        target = out / "tables" / f"{stem}.{kind}"
        place = target.with_suffix(".csv")
        with files.whole(place, mode=0o600 if names else 0o644) as part:
            found = _write_csv(out, vector, part, own, numbers=kind != "npy")
        if kind == "npy":
            files.write_npy(target, np.concatenate(found) if found else np.zeros((0, 0), np.float32))
        elif kind == "parquet":
            _to_parquet(place, target, 0o600 if names else 0o644)
            place.unlink()
        written.append(target)
    return written


def _file_names(paths: Mapping[str, str]) -> dict[str, str]:
    """The scans' file names, with as many folders before them as tell them all apart (``s0001/ct.nii.gz``)."""
    parts = {id: Path(path.partition("#")[0]).parts for id, path in paths.items()}
    different = len(set(parts.values()))
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        found = {id: "/".join(each[-count:]) for id, each in parts.items()}
        if len(set(found.values())) == different:
            return found
    return {}


def _table(vector: str) -> str:
    return "roi" if vector.startswith("roi:") else vector


def _write_csv(
    out: Path, vector: str, place: Path, own: Mapping[str, str] | None, *, numbers: bool
) -> list[Float[np.ndarray, "n c"]]:
    """One line a row; the vectors too where `numbers`, else they are returned."""
    found = []
    with open(place, "w", newline="") as stream:
        table = csv.writer(stream)
        head = False
        for _, rows, vectors in _living(out):
            chosen = [i for i, row in enumerate(rows) if _table(row.vector) == vector]
            if not chosen:
                continue
            placed = rows[chosen[0]].box is not None
            if not head:
                columns = ["id", *(["name"] if own is not None else []), *(["region"] if vector == "roi" else [])]
                columns += ["x", "y", "z", *(f"box{i}" for i in range(6))] if placed else []
                columns += [f"f{i}" for i in range(vectors.shape[1])] if numbers else []
                table.writerow(columns)
                head = True
            for i in chosen:
                row = rows[i]
                line: list[Any] = [row.id, *([own.get(row.id, "")] if own is not None else [])]
                line += [row.vector.removeprefix("roi:")] if vector == "roi" else []
                line += [*(row.centre or ("", "", "")), *(row.box or ())] if placed else []
                # the shortest digits that give the same float32 again
                line += [str(value) for value in vectors[i]] if numbers else []
                table.writerow(line)
            if not numbers:
                found.append(vectors[chosen])
        if not head:
            table.writerow(["id"])
    return found


def _to_parquet(place: Path, target: Path, mode: int) -> None:
    import duckdb

    with duckdb.connect() as base, files.whole(target, mode=mode) as part:
        columns = [row[0] for row in base.execute("DESCRIBE SELECT * FROM read_csv($1)", [str(place)]).fetchall()]
        kinds = {c: "FLOAT" for c in columns if c[0] == "f" and c[1:].isdigit()}
        kinds |= dict.fromkeys(("x", "y", "z"), "DOUBLE") | dict.fromkeys((f"box{i}" for i in range(6)), "INTEGER")
        kinds |= dict.fromkeys(("id", "name", "region"), "VARCHAR")
        typed = ", ".join(f"'{c}': '{kinds[c]}'" for c in columns)
        source, goal = (str(p).replace("'", "''") for p in (place, part))
        base.execute(
            f"COPY (SELECT * FROM read_csv('{source}', header = true, columns = {{{typed}}})) TO '{goal}' "
            "(FORMAT parquet, USE_TMP_FILE false)"
        )


def challenge_layout(out: Path, *, names: bool = False) -> list[Path]:
    """``OUT/cvpr26/CASE.h5`` as the evaluation scripts of "CVPR 2026: Foundation Models for 3D Computed Tomography" read them.

    One file a case with the dataset ``y_hat``: the default vector (c,) for task 1 (linear probing); where grids were written,
    the map (c, d, h, w) for task 2 (embedding aggregation), in ``OUT/cvpr26-maps``. CASE is the scan's id, or with `names`
    the name of its file without suffix, which is what the challenge's label tables call it.

    Source: github.com/kmin940/CVPR26-3DCTFMCompetition, README.md, run_LP.py and run_EAO.py (FeaturesDataset).
    """
    try:
        import h5py
    except ImportError as error:
        raise UsageError("--layout cvpr26 writes HDF5", do="pip install 'ctfoundry[cvpr26]'") from error
    own = _paths(out) if names else {}
    cases: dict[str, str] = {}
    written: list[Path] = []
    default = vector_names(out)[0]
    card = read_card(out)
    own_level, held = card["model"]["level"], held_levels(card)
    level = own_level if own_level in held or not held else held[-1]
    for _, rows, vectors in _living(out):
        for row, vector in zip(rows, vectors, strict=True):
            if row.vector != default:
                continue
            case = _case(own[row.id]) if row.id in own else row.id
            if cases.setdefault(case, row.id) != row.id:
                raise UsageError(f"two scans are called {case!r}", where=out, do="leave out --names")
            written.append(_write_h5(h5py, out / "cvpr26" / f"{case}.h5", vector))
            if grids.place(out, row.id).is_file():
                (grid,) = grids.read(out, row.id, [level])
                written.append(_write_h5(h5py, out / "cvpr26-maps" / f"{case}.h5", grid.data))
    return written


def _write_h5(h5py: Any, place: Path, data: np.ndarray) -> Path:
    with files.whole(place) as part, h5py.File(part, "w") as file:
        file.create_dataset("y_hat", data=np.asarray(data, np.float32))
    return place


def _case(path: str) -> str:
    name = Path(path.partition("#")[0]).name
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"):
        name = name.removesuffix(suffix)
    return name.replace(os.sep, "_") or "scan"
