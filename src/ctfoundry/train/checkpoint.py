"""Exact checkpoints: a folder with weights, optimiser state and counters, there whole or not at all.

``checkpoints/step-00000120/`` holds ``modules.safetensors``, ``optimiser.safetensors``, ``ema.safetensors`` where weights are
averaged, and ``state.json``, which names the SHA-256 of each. It is written under another name, flushed, and renamed: a kill leaves the previous one whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import files
from ctfoundry.errors import SettingsError, WeightsError
from ctfoundry.zoo.files import check_state

if TYPE_CHECKING:
    from torch import Tensor, nn

_PART = ".part-"
_TENSORS = ("modules", "optimiser")
"""What every checkpoint holds."""


def write(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` below `folder`; returns its path. `tensors` has ``modules``, ``optimiser`` and perhaps ``ema``."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    final, part = folder / f"step-{step:08d}", folder / f"{_PART}{step:08d}-{os.getpid()}"
    _remove(part)
    part.mkdir()
    hashes = {}
    for name, named in tensors.items():
        path = part / f"{name}.safetensors"
        with files.whole(path) as temporary:
            # safetensors takes contiguous tensors only, and channels_last ones are not
            save_file({k: v.detach().cpu().contiguous() for k, v in named.items()}, temporary)
        hashes[path.name] = files.sha256(path)
    files.write_json(part / "state.json", {"step": step, "sha256": hashes, **state})
    _remove(final)
    part.replace(final)
    files.flush_folder(folder)
    return final


def prune(folder: Path, keep_every: int) -> None:
    """Keep the last checkpoint and those of every `keep_every`-th step (0: the last only); sweep what a kill left."""
    whole = steps(folder)
    for step in whole[:-1]:
        if not keep_every or step % keep_every:
            # renamed first: a kill in the middle of a removal must not leave a part under a valid name
            gone = folder / f"{_PART}removed-{step:08d}"
            _remove(gone)
            (folder / f"step-{step:08d}").replace(gone)
    for left in folder.glob(_PART + "*"):
        _remove(left)


def steps(folder: Path) -> list[int]:
    """The steps that have a whole checkpoint, in order."""
    found = (path.name.removeprefix("step-") for path in folder.glob("step-*") if path.is_dir())
    return sorted(int(name) for name in found if name.isdigit())


def read(folder: Path, step: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, state) of a checkpoint; raises WeightsError when a byte of it is not what was written."""
    from safetensors.torch import load_file

    path = folder / f"step-{step:08d}"
    advice = f"delete the folder {path.name} to continue from the checkpoint before it"
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        for name, digest in state["sha256"].items():
            if files.sha256(path / name) != digest:
                raise WeightsError("is not what was written (SHA-256 differs)", where=path / name, do=advice)
        names = dict.fromkeys([*_TENSORS, *(Path(name).stem for name in state["sha256"])])
        return {name: load_file(path / f"{name}.safetensors") for name in names}, state
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"is no whole checkpoint: {error}", where=path, do=advice) from error


def averaged(folder: Path, step: int | None = None) -> dict[str, Tensor]:
    """State dict of the modules with weights averaged over steps (`LoopSettings.ema`), of a checkpoint or the last one.

    Raises WeightsError when there is no checkpoint, or when the run averages nothing.
    """
    whole = steps(folder)
    if step is None and not whole:
        raise WeightsError("holds no checkpoint", where=folder)
    tensors, _ = read(folder, whole[-1] if step is None else step)
    if "ema" not in tensors:
        raise WeightsError("the run averages no weights", where=folder, do="set train.ema, such as 0.999, in a new run")
    return tensors["ema"]


def load_strict(modules: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load weights; raises WeightsError with the missing, unexpected and mis-shaped names."""
    check_state(modules.state_dict(), tensors, where)
    modules.load_state_dict(tensors)


def check_same(was: Any, now: Any, where: Path, *, free: Collection[str] = (), path: str = "") -> None:
    """Raise SettingsError that names the first setting in which a run differs from how it was begun; `free` ones may."""
    for name, value in now.items():
        full, before = path + name, was.get(name)
        if full in free:
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            check_same(before, value, where, free=free, path=f"{full}.")
        elif before != value:
            raise SettingsError(
                f"the run was begun with {full} = {before!r}, not {value!r}",
                where=where,
                do="start a new run, or continue with the settings it was begun with",
            )


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
