"""Labelled phantoms as files, made by several processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from ctfoundry import files, io, phantom
from ctfoundry.keys import Key
from ctfoundry.settings import to_data


def make_one(folder: Path, seed: int, number: int) -> str:
    """Write phantom `number` of `seed`: ``ct.nii.gz``, ``labels.nii.gz``, ``labels.json``, ``spec.json``; a finished one is kept."""
    home = folder / f"phantom-{seed}-{number:03d}"
    spec = phantom.draw(Key.of("phantom", seed, number))
    data = to_data(spec)
    done = home / "spec.json"
    if done.is_file() and files.digest(json.loads(done.read_text())) == files.digest(data):
        return home.name
    made = phantom.make(spec)
    home.mkdir(parents=True, exist_ok=True)
    io.write(made.ct, home / "ct.nii.gz")
    io.write(made.labels, home / "labels.nii.gz")
    files.write_json(home / "labels.json", {str(k): v for k, v in (made.labels.names or {}).items()})
    files.write_json(done, data)  # last: it says that the others are whole
    return home.name


def make_many(folder: Path, count: int, seed: int, *, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Write `count` phantoms with one process for each core that this process may use."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(min(count, cores), mp_context=get_context("spawn")) as pool:
        for name in pool.map(make_one, [folder] * count, [seed] * count, range(count)):
            names.append(name)
            say(f"phantom {len(names)} of {count}")
    return names
