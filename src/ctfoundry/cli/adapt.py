"""``ctfoundry probe``: what a frozen encoder's features hold, beside a random encoder and methods that need none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, print_table, say, show, verb

if TYPE_CHECKING:
    from ctfoundry.adapt.curve import ProbeSet
    from ctfoundry.adapt.probe import ProbeSettings
    from ctfoundry.adapt.scores import Scores
    from ctfoundry.preparation import Preparation

Data = Annotated[Path, typer.Option(help="labelled scans: phantoms, or any data set of `ctfoundry datasets`")]
Labels = Annotated[str, typer.Option(help="structures, such as liver,spleen; by default all that the data set names")]
Groups = Annotated[str, typer.Option(help="'coarse' (18 groups of the torso), or a JSON file {name: [structures]}")]


@verb()
def probe(
    model: Annotated[str, typer.Argument(help="model of the zoo, run folder, or .safetensors file")],
    data: Data,
    task: Annotated[str, typer.Option(help="segmentation, the only one so far")] = "segmentation",
    shots: Annotated[int, typer.Option(help="training patients, drawn by the seed", min=1)] = 5,
    labels: Labels = "",
    groups: Groups = "",
    name: Annotated[str | None, typer.Option("--as", help="which data set the folder is")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="key=value of the probe, such as steps=300")] = None,
    weights: Annotated[str | None, typer.Option(help="for a model of the zoo: a .safetensors file, or random")] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="all kept checkpoints of a run")] = False,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps prepared scans")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="without the random encoder and the trivial methods")] = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """A light decoder on the frozen encoder, learnt from few labelled scans; Dice on validation patients.

    Weights and running statistics of the encoder stay as they are. Test patients of the data set are never touched.
    """
    from ctfoundry.errors import UsageError

    if task != "segmentation":
        raise UsageError(f"there is no probe for {task!r} yet; known: segmentation", where="--task")
    options = {"name": name, "shots": shots, "labels": names_of(labels), "groups": groups_of(groups), "cache": cache}
    settings = _settings(change or (), seed)
    if checkpoints:
        _checkpoints(Path(model), data, options, settings, device)
        return
    from ctfoundry.adapt.probe import probe_segmentation, random_twin
    from ctfoundry.adapt.trivial import intensity_scores, position_scores
    from ctfoundry.zoo.models import load_encoder

    encoder = load_encoder(model, weights=weights, device=device, seed=seed)
    scans = _opened(data, encoder.preparation, options, settings)
    result = probe_segmentation(encoder, scans.train, scans.validation, settings)
    rows = [result.scores]
    if not alone:
        if encoder.card.weights == "trained":
            twin = random_twin(encoder, seed)
            rows.append(probe_segmentation(twin, scans.train, scans.validation, settings).scores)
        rows += [f(scans.train, scans.validation, seed=seed) for f in (intensity_scores, position_scores)]
    for warning in result.warnings:
        say(f"warning: {warning}")
    shown: dict[str, Any] = {
        "task": task,
        "model": encoder.card.name,
        "weights": encoder.card.weights,
        "train_patients": result.train,
        "validation_patients": result.validation,
        "results": [scores.data() for scores in rows],
        "seconds": {what: round(value, 2) for what, value in result.seconds.items()},
        "warnings": list(result.warnings),
        "seed": seed,
    }
    show(shown, lambda: _print(rows, result.train))


def _print(rows: Sequence[Scores], train: int) -> None:
    validation = rows[0].macro.patients
    said = f"Dice of {validation} validation patients, learnt from {train}"
    print_table(
        ("method", "macro", "micro"), [(s.method, s.macro.text(3), s.micro.text(3)) for s in rows], title=f"\n{said}"
    )
    table = []
    for label in rows[0].classes:
        found = [scores.labels[label] for scores in rows]
        if any(found):
            table.append((label, *("not asked" if i is None else i.text(2) for i in found)))
    print_table(("label", *(scores.method for scores in rows)), table, title="by label")
    absent = [label for label in rows[0].classes if not any(scores.labels[label] for scores in rows)]
    print("macro: mean over patients of the mean over a patient's classes; micro: all foreground voxels pooled.")
    print("A class that neither the reference nor the prediction of a scan holds is left out there.")
    if absent:
        print(f"In no validation scan: {', '.join(absent)}.")


def _checkpoints(run: Path, data: Path, options: Mapping[str, Any], settings: ProbeSettings, device: str) -> None:
    from ctfoundry.adapt.curve import best, best_text, kept, probe_steps
    from ctfoundry.errors import UsageError
    from ctfoundry.pretrain.recipe_files import load_recipe
    from ctfoundry.pretrain.run import encoder_at, preparation_of
    from ctfoundry.train import checkpoint
    from ctfoundry.zoo.files import load_model
    from ctfoundry.zoo.models import device_of

    if not (run / "recipe.json").is_file():
        raise UsageError("is not the folder of a pretraining run", where=run, do="give one, or leave --checkpoints out")
    place = device_of(device)
    stored = set(checkpoint.steps(run / "checkpoints"))
    probed = {int(path.stem.removeprefix("step-")) for path in kept(run, 0).parent.glob("step-*.safetensors")}
    scans = _opened(data, preparation_of(load_recipe(run / "recipe.json")), options, settings)
    rows = probe_steps(
        run,
        sorted(stored | probed),
        lambda step: encoder_at(run, step, place) if step in stored else load_model(kept(run, step), device=place),
        scans,
        say,
    )
    found = best(run, scans.digest)
    assert found is not None

    def table() -> None:
        columns = ("step", "dice", "low", "high", "micro", "patients")
        print_table(columns, [[row[c] for c in columns] for row in rows])
        print(best_text(found))

    show({"rows": rows, "best": found}, table)


def _settings(changes: Sequence[str], seed: int) -> ProbeSettings:
    from ctfoundry.adapt.probe import ProbeSettings
    from ctfoundry.settings import with_changes

    return with_changes(ProbeSettings(seed=seed), changes)


def _opened(folder: Path, preparation: Preparation, options: Mapping[str, Any], settings: ProbeSettings) -> ProbeSet:
    from ctfoundry.adapt.curve import probe_set

    scans = probe_set(folder, preparation, settings=settings, **options)
    for note in scans.notes:
        say(f"note: {note}")
    say(f"preparing {len(scans.train)} training and {len(scans.validation)} validation scans")
    return scans


def opened(
    folder: Path,
    preparation: Preparation,
    *,
    shots: int = 5,
    groups: str = "",
    change: Sequence[str] = (),
    seed: int = 0,
) -> ProbeSet:
    """Labelled scans for `pretrain --probe-every`, with the same options as `probe`."""
    options = {"shots": shots, "groups": groups_of(groups)}
    return _opened(folder, preparation, options, _settings(change, seed))


def names_of(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def groups_of(text: str) -> Mapping[str, Sequence[str]] | None:
    """Groups by name or from a file; None where none are asked for."""
    import json

    from ctfoundry.errors import UsageError
    from ctfoundry.phantom.names import GROUPS

    if not text or text == "coarse":
        return GROUPS if text else None
    try:
        found = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read as JSON ({error})", where=text, do="give 'coarse' or a file") from error
    good = isinstance(found, dict) and all(
        isinstance(parts, list) and all(isinstance(p, str) for p in parts) for parts in found.values()
    )
    if not good:
        raise UsageError('is not of the form {"lungs": ["lung_left", "lung_right"]}', where=text)
    return {name: tuple(parts) for name, parts in found.items()}
