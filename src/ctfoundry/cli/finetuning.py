"""``ctfoundry finetune``: from a pretrained encoder and labelled scans to a segmenter or a classifier."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, print_table, say, show, state, verb

if TYPE_CHECKING:
    from ctfoundry.adapt.finetune import FinetuneSummary


@verb()
def finetune(
    recipe: Annotated[str, typer.Argument(help="name of a fine-tuning recipe, or a YAML or JSON file")],
    data: Annotated[Path, typer.Option(help="labelled scans: any data set of `ctfoundry datasets`")],
    run: Annotated[Path, typer.Option(help="folder of the run; an unfinished one is continued")],
    init: Annotated[
        str | None, typer.Option(help="what the encoder begins with: a model, or random; there is no default")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="for a model of the zoo: a .safetensors file or hub name")] = None,
    shots: Annotated[int | None, typer.Option(help="training patients, drawn by the seed; default: all", min=1)] = None,
    labels: Annotated[str, typer.Option(help="structures, such as liver,spleen, instead of the recipe's")] = "",
    groups: Annotated[str, typer.Option(help="'coarse', or a JSON file {name: [structures]}: classes of several")] = "",
    name: Annotated[str | None, typer.Option("--as", help="which data set the folder is")] = None,
    table: Annotated[Path | None, typer.Option(help="classification: CSV of targets; default: the data set's")] = None,
    target: Annotated[str | None, typer.Option(help="classification: which column or target is learnt")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, such as train.optimiser.rate=3e-4")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="stop after this time")] = None,
    steps: Annotated[int | None, typer.Option(help="stop after this many steps")] = None,
    test_share: Annotated[
        float,
        typer.Option(help="share of patients kept for a test at the end, where the data set has none", min=0, max=0.8),
    ] = 0.0,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps prepared scans")] = None,
    seed: Annotated[int | None, typer.Option(help="of split, shots, weights and crops; default: the recipe's")] = None,
    device: Device = "auto",
) -> None:
    """Fine-tune an encoder on labelled scans; continues a run it finds. The best step is chosen on validation patients."""
    from ctfoundry.adapt.recipe import ClassificationRecipe, finetune_recipe

    state.quiet |= os.environ.get("RANK", "0") != "0"
    changes = [*(change or ()), *([f"train.seed={seed}"] if seed is not None else ())]
    chosen = finetune_recipe(recipe)
    command = ["finetune", Path(recipe).name, *[f"--set {c}" for c in changes]]
    command += [f"--shots {shots}"] if shots is not None else []
    options: dict[str, Any] = {
        "init": init, "weights": weights, "shots": shots, "changes": changes, "minutes": minutes, "steps": steps,
        "device": device, "quiet": state.quiet, "command": command,
    }  # fmt: skip
    if isinstance(chosen, ClassificationRecipe):
        _classification(chosen, data, run, {**options, "name": name, "table": table, "target": target})
        return
    if table is not None or target is not None:
        from ctfoundry.errors import UsageError

        raise UsageError(f"recipe {chosen.name!r} learns labels of voxels; --table and --target are for whole scans")
    from ctfoundry.adapt.finetune import finetune as train
    from ctfoundry.cli.adapt import groups_of, names_of

    done = train(
        chosen, data, run, name=name, labels=names_of(labels), groups=groups_of(groups), cache=cache,
        test_share=test_share, **options,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        show(_data(done), lambda: _print(done))


def _classification(recipe: Any, data: Path, run: Path, options: dict[str, Any]) -> None:
    from dataclasses import asdict

    from ctfoundry.adapt import classify_run

    done = classify_run.finetune(recipe, data, run, **options)
    if os.environ.get("RANK", "0") == "0":
        found = {key: value for key, value in asdict(done).items() if not isinstance(value, Path)}
        rows = [(key, value) for key, value in found.items() if isinstance(value, str | int | float)]
        show(found, lambda: print_table(("what", "value"), rows))


def _data(done: FinetuneSummary) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "recipe": done.recipe,
        "init": dict(done.init),
        "classes": list(done.classes),
        "patients": dict(done.patients),
        "device": done.device,
        "best": done.best,
        "test": done.test,
        "warnings_of_data": list(done.warnings),
        **asdict(done.train),
    }


def _print(done: FinetuneSummary) -> None:
    for warning in done.warnings:
        say(f"warning: {warning}")
    assert done.best is not None
    rows = [(what, row["step"], _text(row), row["micro"], row["patients"]) for what, row in _rows(done)]
    print_table(
        ("patients", "step", "macro Dice", "micro Dice", "of"), rows, title=f"{done.recipe}, {done.train.steps} steps"
    )
    columns = [(what, row["labels"]) for what, row in _rows(done)]
    table = [
        (name, *("not asked" if v[name] is None else _text(v[name], "value") for _, v in columns))
        for name in done.classes
    ]
    print_table(("label", *(what for what, _ in columns)), table)
    print(
        "The step was chosen by the validation patients' macro Dice, which is therefore a little too high; the test is not."
    )


def _rows(done: FinetuneSummary) -> list[tuple[str, Any]]:
    return [("validation", done.best), *([("test", done.test)] if done.test else [])]


def _text(row: Any, name: str = "dice") -> str:
    tail = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row[name]:.3f}{tail}"
