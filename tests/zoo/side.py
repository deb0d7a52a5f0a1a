"""Other tools in a folder beside the environment: installed without their dependencies, seen by subprocesses alone.

nnU-Net wants some forty packages, one of which (torchvision, through timm) does not load on a CPU torch; those that it really imports for
what is tested here are named below. ``CTFOUNDRY_SIDE_ENV`` names a folder to keep them in between runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import skips

NNUNET = (
    "nnunetv2==2.8.1",
    "dynamic-network-architectures==0.4.4",
    "acvl-utils==0.2.6",
    "batchgenerators==0.25.5",
    "batchgeneratorsv2==0.3.6",
    "connected-components-3d==4.1.1",
    "fft-conv-pytorch==1.2.0",
    "future==1.0.0",
    "imageio==2.38.1",
    "lazy-loader==0.6",
    "pandas==3.1.1",
    "scikit-image==0.26.0",
    "seaborn==0.13.2",
    "tifffile==2026.3.3",
)
BUNDLE = ("pytorch-ignite==0.5.5", "fire==0.7.1", "termcolor==3.2.0")

_UNREACHABLE = (
    "No matching distribution found",
    "Could not find a version",
    "Connection",
    "Temporary failure",
    "timed out",
)


def folder(base: Path) -> Path:
    """The packages, installed once; skips aloud where the package index does not give them."""
    place = Path(os.environ.get("CTFOUNDRY_SIDE_ENV") or base)
    wanted = "\n".join((*NNUNET, *BUNDLE))
    mark = place / "installed.txt"
    if not mark.is_file() or mark.read_text() != wanted:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-compile",
        ]
        done = subprocess.run(
            [*command, "--target", str(place), *NNUNET, *BUNDLE], capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            if any(words in done.stderr for words in _UNREACHABLE):
                pytest.skip(skips.SIDE_ABSENT)
            raise AssertionError(done.stderr[-2000:])
        mark.write_text(wanted)
    return place


def run(arguments: Sequence[object], packages: Path, *paths: Path, cwd: Path | None = None) -> str:
    """``python ARGUMENTS`` with the packages and `paths` importable; its output. Fails with the end of it."""
    path = os.pathsep.join(map(str, (*paths, packages)))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=env, cwd=cwd, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout
