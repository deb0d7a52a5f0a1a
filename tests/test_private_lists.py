"""``private.json`` of a folder that several fill at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ctfoundry import identity


def test_nobody_overwrites_what_another_has_just_noted(tmp_path: Path) -> None:
    """Two `embed` into one folder end together: without its path a scan is found and cannot be shown."""
    folder = tmp_path / "made when missing"

    def note(number: int) -> None:
        identity.write_private(folder, {f"scan-{number}": f"/data/{number}"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(64)))
    assert json.loads((folder / identity.PRIVATE).read_text()) == {f"scan-{n}": f"/data/{n}" for n in range(64)}
    assert (folder / identity.PRIVATE).stat().st_mode & 0o777 == 0o600
