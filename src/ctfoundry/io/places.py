"""Names of volumes: a path, or a path and what is meant in it, as ``FOLDER#SeriesInstanceUID@PART``."""

from __future__ import annotations

import os
from pathlib import Path


def place_of(text: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """(path, name in it) of ``FOLDER#UID``, ``ARCHIVE#FILE`` and the like; a path that exists as it is written has no name.

    >>> place_of("/#1.2.3@2")[1]
    '1.2.3@2'
    """
    text = os.fspath(text)
    if not os.path.exists(text):
        for at in (k for k in reversed(range(len(text))) if text[k] == "#"):
            if os.path.exists(text[:at]):
                return Path(text[:at]), text[at + 1 :]
    return Path(text), None


def series_of(name: str | None) -> tuple[str, str]:
    """(series UID, part) of the name in a place; "" for what it does not say.

    >>> series_of("1.2.3@phase 30%")
    ('1.2.3', 'phase 30%')
    """
    series, _, part = (name or "").partition("@")
    return series, part
