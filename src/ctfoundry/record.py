"""``run.json``: how a folder of results came about. Paths never appear in it, only identifiers and hashes."""

from __future__ import annotations

import datetime
import platform
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ctfoundry import __version__, files

_PACKAGES = ("torch", "numpy", "scipy", "blosc2", "safetensors", "pydicom", "nibabel", "SimpleITK")


@dataclass
class Record:
    """Collects what a verb did; `write` puts it into the folder as its last act."""

    command: Sequence[str]
    seeds: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"
    inputs: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def write(self, folder: Path, outputs: Sequence[str] = ()) -> dict[str, Any]:
        """Write ``folder/run.json`` with hashes of `outputs` (names within the folder)."""
        data = {
            "command": list(self.command),
            "ctfoundry": __version__,
            "versions": versions(),
            "device": self.device,
            "seeds": dict(self.seeds),
            "inputs": dict(sorted(self.inputs.items())),
            "outputs": {name: files.sha256(folder / name) for name in outputs},
            "results": self.results,
            "started": datetime.datetime.fromtimestamp(self.started, datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 2),
            "peak_memory_mib": peak_memory_mib(),
        }
        files.write_json(folder / "run.json", data)
        return data


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose numbers results depend on, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_mib() -> int:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 if sys.platform != "darwin" else 1024**2)
