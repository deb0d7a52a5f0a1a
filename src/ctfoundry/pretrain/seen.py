"""What training saw: crops and views of one scan, drawn again.

Everything goes through the task's own `plan` and `batch` under the key that the loop gives, so what is shown is what is trained on.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ctfoundry import files
from ctfoundry.errors import UsageError
from ctfoundry.keys import Key
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.task import CropTask, ScanDraws
from ctfoundry.pretrain.views import ViewDraw
from ctfoundry.settings import from_data
from ctfoundry.store import Entry, Store
from ctfoundry.train import checkpoint
from ctfoundry.train.data import Quarantine, Samples

if TYPE_CHECKING:
    from jaxtyping import Float32


@dataclass(frozen=True, eq=False)
class Seen:
    """One scan as training saw it once.

    Attributes
    ----------
    entry, epoch : which scan, in which pass over the store.
    draws : every random decision.
    crops : the crops before anything is done to them, intensities 0..1.
    views : both views of each.
    """

    entry: Entry
    epoch: int
    draws: ScanDraws
    crops: Float32[np.ndarray, "m d h w"]
    views: Float32[np.ndarray, "m 2 d h w"]

    def without_voxels(self) -> Seen:
        """The decisions alone, which may be kept for many scans."""
        return replace(self, crops=self.crops[:0].copy(), views=self.views[:0].copy())


def scan_key(seed: int, epoch: int, id: str) -> Key:
    """The key under which the loop plans a scan in an epoch, counted from 0."""
    return Key.of("train", seed)("sample", epoch, id)


def in_epoch(task: CropTask, store: Store, id: str, epoch: int, seed: int | None = None) -> Seen:
    """What training with the task's recipe sees of a scan in an epoch (`seed` None: the recipe's own).

    Raises UnknownScanError, and whatever planning or reading the scan raises.
    """
    if epoch < 0:
        raise UsageError(f"epochs are counted from 0, so there is none numbered {epoch}")
    entry = store.entry(id)
    draws = task.plan(scan_key(task.recipe.train.seed if seed is None else seed, epoch, id), entry)
    return seen(task, entry, epoch, draws, [store.read(id, box) for box in draws.boxes])


def seen(task: CropTask, entry: Entry, epoch: int, draws: ScanDraws, reads: Sequence[np.ndarray]) -> Seen:
    """The crops and views that `task` makes of what was drawn and read."""
    crop, place = task.recipe.crop, torch.device("cpu")
    shape = (task.recipe.crops, 2, *crop)
    # with one scan both orders of a batch are by crop and view; a view of which nothing is drawn is the crop itself
    views = task.batch([reads], [draws], place).view(shape)
    nothing = ViewDraw(1.0, (0, 0, 0), crop)
    bare = task.batch([reads], [replace(draws, views=((nothing, nothing),) * task.recipe.crops)], place)
    return Seen(entry, epoch, draws, bare.view(shape)[:, 0].float().numpy(), views.float().numpy())


def recipe_of(run: Path) -> Recipe:
    """The recipe that a run folder was begun with; raises UsageError where there is none."""
    kept = run / "recipe.json"
    if not kept.is_file():
        raise UsageError("is no run of pretraining: it holds no recipe.json", where=run)
    recipe: Recipe = from_data(Recipe, json.loads(kept.read_text()), where=str(kept))
    return recipe


def at_step(task: CropTask, store: Store, run: Path, step: int) -> list[Seen]:
    """What a run saw at a step (1 is the first, as ``metrics.jsonl`` counts), scan by scan, substitutes of failing scans included.

    Raises UsageError when the run was made on other scans than those of the store.
    """
    settings = task.recipe.train
    if step < 1:
        raise UsageError(f"steps are counted from 1, so there is none numbered {step}")
    trained_on = _scans(run)
    if trained_on not in (None, files.digest([e.id for e in store.entries])):
        raise UsageError("the run was made on other scans than those of this store", where=store.path)
    key, first = Key.of("train", settings.seed), (step - 1) * settings.batch
    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "quarantine.jsonl"  # a copy: looking writes nothing into the run
        if (run / known.name).is_file():
            shutil.copyfile(run / known.name, known)
        quarantine = Quarantine(known, len(store), settings.failing_share)
        with Samples(
            task, store, key, quarantine, start=first, workers=0, ahead=1, balance=settings.balance
        ) as samples:
            epochs = [samples.order[first + place][0] for place in range(settings.batch)]
            taken = samples.take(settings.batch)
    return [
        seen(task, store.entry(sample.id), epoch, sample.draws, sample.reads)
        for epoch, sample in zip(epochs, taken, strict=True)
    ]


def _scans(run: Path) -> str | None:
    """The digest of the scans that a run was made on: its last checkpoint knows; None before the first one."""
    folder = run / "checkpoints"
    found = checkpoint.steps(folder)
    if not found:
        return None
    state = json.loads((folder / f"step-{found[-1]:08d}" / "state.json").read_text())
    return str(state["state"]["scans"])
