"""``store.json``: what is said once about a whole store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ctfoundry.errors import SettingsError
from ctfoundry.settings import from_data
from ctfoundry.store import grids
from ctfoundry.store.errors import NotAStoreError, UnknownFormatError
from ctfoundry.store.sidecar import FORMAT


@dataclass(frozen=True)
class Meta:
    """``store.json``: format version, grid, name of the salt that patients were hashed with (never the salt), program."""

    format: int
    grid: str
    salt_id: str
    created_by: str


def read_meta(path: Path) -> Meta:
    """``store.json`` of a folder; raises NotAStoreError, UnknownFormatError."""
    place = path / "store.json"
    try:
        data = json.loads(place.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStoreError("this is no store: it has no store.json", where=path, do="make one with prepare") from None
    except (OSError, ValueError) as error:
        raise NotAStoreError(f"store.json cannot be read ({error})", where=path) from error
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise UnknownFormatError(
            f"the store has format {version}, this program knows {FORMAT}", where=path, do="update ctfoundry"
        )
    try:
        meta = from_data(Meta, data, "store.json")
        grids.resampling_onto(meta.grid, (1.0, 1.0, 1.0))
    except SettingsError as error:
        raise NotAStoreError(f"store.json is not valid: {error.what}", where=path) from error
    if not (path / "scans").is_dir():
        raise NotAStoreError("the store has no scans folder", where=path)
    return meta
