"""Names of the structures in a label map, from what lies beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from ctfoundry.errors import ReadError

GENERIC = ("label", "labels", "mask", "masks", "seg", "segmentation", "segmentations")
"""File stems that name no structure."""

_SUFFIXES = (".gz", ".nii", ".nrrd", ".mha", ".mhd", ".nhdr", ".hdr", ".img")
_TABLE_LIMIT = 1 << 22  # bytes; the largest vocabularies have some thousand lines


def stem(path: Path) -> str:
    """The file's name without the suffixes of the formats read here.

    >>> stem(Path("liver.nii.gz"))
    'liver'
    """
    name = path.name
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def of_labels(path: Path, labels: np.ndarray, called: str | None = None) -> dict[int, str] | None:
    """Names of the labels of the map read from `path`, or None when nothing names them.

    `called` is the file's name where `path` is a copy under another one.

    A mask of one label (or an empty one) gets the file's stem, unless that is a general word such as "mask". Otherwise the file's
    own ``STEM.json`` is used, ``labels.json`` (``{"1": "liver"}``) or else ``structures.csv`` (columns ``structure``, ``id``) in
    the same folder, provided it names every label that occurs.
    """
    present = [int(v) for v in np.unique(labels) if v != 0]
    own = stem(path if called is None else Path(Path(called).name))
    if len(present) <= 1 and own.lower() not in GENERIC:
        return {(present or [1])[0]: own}
    table = _table(path.parent, own)
    return table if table and set(present) <= set(table) else None


def _table(folder: Path, own: str) -> dict[int, str] | None:
    for path in (folder / f"{own}.json", folder / "labels.json", folder / "structures.csv"):
        if path.is_file() and path.stat().st_size <= _TABLE_LIMIT:
            try:
                text = path.read_text(encoding="utf-8-sig")
                if path.suffix == ".json":
                    return {int(k): str(v) for k, v in json.loads(text).items()}
                return {int(row["id"]): row["structure"] for row in csv.DictReader(text.splitlines())}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ReadError(
                    f"does not name labels ({error})",
                    where=path,
                    do='make it {"1": "liver"} or columns structure,id; or move it away',
                ) from error
    return None
