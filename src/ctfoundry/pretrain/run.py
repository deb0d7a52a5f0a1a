"""One pretraining run: a recipe, a store, a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctfoundry import files, parallel
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import UsageError
from ctfoundry.infer.passes import Extent
from ctfoundry.pretrain.recipe import Recipe
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.pretrain.report import device_name, keep_report
from ctfoundry.record import Record
from ctfoundry.settings import to_data, with_changes
from ctfoundry.store import Entry, Store, open_store
from ctfoundry.train import Summary, fit
from ctfoundry.train.checkpoint import averaged, check_same
from ctfoundry.train.loop import FREE
from ctfoundry.zoo.files import save_model
from ctfoundry.zoo.models import device_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Int16

    from ctfoundry.adapt.curve import ProbeSet
    from ctfoundry.geometry import Box
    from ctfoundry.preparation import Preparation
    from ctfoundry.pretrain.task import CropTask


@dataclass(frozen=True)
class RunSummary:
    """What a pretraining run has come to.

    Attributes
    ----------
    run, model : the folder and the encoder's weights in it (``model.json`` beside them).
    recipe : its name.
    scans, patients : that were trained on.
    device : where.
    train : steps, time, last log line, warnings.
    """

    run: Path
    model: Path
    recipe: str
    scans: int
    patients: int
    device: str
    train: Summary


@dataclass(frozen=True)
class Chosen:
    """Some scans of a store."""

    store: Store
    entries: Sequence[Entry]

    def read(self, id: str, box: Box) -> Int16[np.ndarray, "d h w"]:
        """As `Store.read`."""
        return self.store.read(id, box)


def pretrain(
    recipe: Recipe | str | Path,
    store: Store | str | Path,
    run: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    changes: Sequence[str] = (),
    device: str = "auto",
    patients: Collection[str] | None = None,
    quiet: bool = False,
    command: Sequence[str] = ("pretrain",),
    probe: tuple[int, ProbeSet] | None = None,
) -> RunSummary:
    """Pretrain an encoder on the scans of a store; continues the run that it finds in `run`.

    Writes ``recipe.json`` (with the changes), ``metrics.jsonl``, ``checkpoints/``, and at its end ``model.safetensors`` with its
    card ``model.json``, which `ctfoundry.zoo.load_encoder(run)` loads, and ``run.json``; at each checkpoint and at the end
    ``report.html`` (`ctfoundry.pretrain.report`).

    Parameters
    ----------
    recipe : one, or its name or file (`load_recipe`).
    minutes, steps : see `ctfoundry.train.fit`.
    changes : ``key=value`` changes to the recipe, such as ``train.optimiser.rate=1e-3``.
    device : ``auto``, ``cpu`` or ``cuda[:i]``; under torchrun process i of a machine takes GPU i.
    patients : train on the scans of these only.
    probe : (every, data): at step 0, each such step and the end the frozen encoder is probed on labelled scans
        (`ctfoundry.adapt.curve`): rows in ``probe.jsonl``, weights in ``probed/``, and the best step in ``run.json``.
    """
    chosen = with_changes(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), changes)
    opened = store if isinstance(store, Store) else open_store(store)
    with parallel.joined(device_of(device)) as place:  # before there is a task, which asks how many share a step
        return _pretrain(chosen, choose(opened, patients), Path(run), place, minutes, steps, quiet, command, probe)


def _pretrain(
    chosen: Recipe,
    source: Chosen,
    run: Path,
    place: torch.device,
    minutes: float | None,
    steps: int | None,
    quiet: bool,
    command: Sequence[str],
    probe: tuple[int, ProbeSet] | None,
) -> RunSummary:
    from ctfoundry.pretrain.task import CropTask

    record = Record(command, {"train": chosen.train.seed}, str(place))
    run.mkdir(parents=True, exist_ok=True)
    kept, first = run / "recipe.json", parallel.rank() == 0
    if first:
        files.sweep(run)
    if first and not kept.is_file():
        files.write_json(kept, to_data(chosen))
    parallel.barrier()
    check_same(json.loads(kept.read_text()), to_data(chosen), kept, free={f"train.{name}" for name in FREE})

    every = chosen.train.checkpoint_every

    def reached(step: int) -> None:
        if probe is not None and step % probe[0] == 0:
            _probed(run, step, probe[1], place)
        if step % every == 0:
            keep_report(run, device=device_name(place))

    if probe is not None and first:
        _probed(run, 0, probe[1], place)
    parallel.barrier()
    task = CropTask(chosen)
    summary = fit(
        task,
        source,
        chosen.train,
        run,
        minutes=minutes,
        steps=steps,
        device=place,
        quiet=quiet,
        title=chosen.name,
        at=(every if probe is None else math.gcd(every, probe[0]), reached),
    )
    seen = {entry.patient for entry in source.entries}
    done = RunSummary(run, run / "model.safetensors", chosen.name, len(source.entries), len(seen), str(place), summary)
    if not first:
        return done
    if chosen.train.ema is not None:  # what is used afterwards is the average
        task.modules.load_state_dict(averaged(run / "checkpoints"))
    save_model(
        Encoder.of(task.encoder.float(), _card(task, _training(task, summary, source, len(seen)))),
        run / "model.safetensors",
    )
    record.inputs = {"recipe": files.digest(to_data(chosen)), "scans": files.digest([e.id for e in source.entries])}
    record.results = {"scans": done.scans, "patients": done.patients, **asdict(summary)}
    if probe is not None:
        from ctfoundry.adapt.curve import best

        _probed(run, summary.steps, probe[1], place)
        record.results["best_checkpoint"] = best(run, probe[1].digest)
    record.write(run, ["recipe.json", "metrics.jsonl", "model.safetensors", "model.json"])
    keep_report(run, device=device_name(place))
    return done


def choose(store: Store, patients: Collection[str] | None) -> Chosen:
    """The scans of some patients (None: all); raises UsageError when there is none."""
    entries: Sequence[Entry] = store.entries
    if patients is not None:
        wanted = set(patients)
        entries = [store.entries[i] for i, p in enumerate(store.entries.column("patient")) if p in wanted]
    if not len(entries):
        raise UsageError("the store has no scan to train on", where=store.path, do="prepare scans into it first")
    return Chosen(store, entries)


def preparation_of(recipe: Recipe) -> Preparation:
    """The preparation that encoders of a recipe come with."""
    from ctfoundry.pretrain.task import CropTask

    return CropTask(recipe).preparation


def encoder_at(run: Path, step: int, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of a step of a run, finished or not, from its kept checkpoint; step 0 is as it began.

    With averaged weights (`LoopSettings.ema`) it is these. Raises WeightsError where the step has no whole checkpoint.
    """
    from ctfoundry.pretrain.task import CropTask
    from ctfoundry.train.checkpoint import load_strict, read

    recipe = load_recipe(run / "recipe.json")
    task, folder = CropTask(recipe), run / "checkpoints"
    if step:
        tensors = averaged(folder, step) if recipe.train.ema is not None else read(folder, step)[0]["modules"]
        load_strict(task.modules, tensors, folder)
    training = {"recipe": to_data(recipe), "steps": step, "of_steps": recipe.train.schedule.steps}
    encoder = Encoder.of(task.encoder.to(device), _card(task, training))
    return encoder if step else replace(encoder, card=replace(encoder.card, weights="random"))


def _probed(run: Path, step: int, data: ProbeSet, device: torch.device) -> None:
    """Probe a step unless that was done before, with these very scans and settings."""
    from ctfoundry.adapt.curve import kept, probe_checkpoint, read_rows

    known = any(row["step"] == step and row["probe"] == data.digest for row in read_rows(run))
    if not known or not kept(run, step).is_file():
        probe_checkpoint(run, step, encoder_at(run, step, device), data)


def _training(task: CropTask, summary: Summary, source: Chosen, patients: int) -> dict[str, Any]:
    return {
        "recipe": to_data(task.recipe),
        "steps": summary.steps,
        "of_steps": summary.total,
        "precision": summary.precision,
        "scans": len(source.entries),
        "patients": patients,
        "store_grid": source.store.grid,
        "seconds": round(summary.seconds, 1),
        "warnings": list(summary.warnings),
    }


def _card(task: CropTask, training: Mapping[str, Any]) -> Card:
    recipe = task.recipe
    return Card(
        name=recipe.name,
        kind="encoder",
        architecture="segresnet-encoder",
        arguments={"in_channels": 1, "filters": recipe.model.filters, "blocks": list(recipe.model.blocks)},
        preparation=task.preparation,
        extent=Extent("whole"),
        level=task.level.name,
        vector="mean",
        weights="trained",
        origin=recipe.source,
        seed=recipe.train.seed,
        training=training,
    )
