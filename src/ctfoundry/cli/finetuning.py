"""``ctfoundry finetune``: from a pretrained encoder and labelled scans to a segmenter or a classifier."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, print_table, say, show, state, verb

if TYPE_CHECKING:
    from ctfoundry.adapt.classify_run import ClassifySummary
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
    measures: Annotated[
        str | None,
        typer.Option(help="of test scans beside Dice: surfaces,lesions or none; default: both of few classes"),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps prepared scans")] = None,
    seed: Annotated[int | None, typer.Option(help="of split, shots, weights and crops; default: the recipe's")] = None,
    device: Device = "auto",
) -> None:
    """Fine-tune an encoder on labelled scans; continues a run it finds. The best step is chosen on validation patients."""
    from ctfoundry.adapt.recipe import ClassificationRecipe, finetune_recipe
    from ctfoundry.errors import UsageError

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
        unused = {
            "--labels": labels, "--groups": groups, "--cache": cache, "--test-share": test_share, "--measures": measures,
        }  # fmt: skip
        given = [option for option, value in unused.items() if value]
        if given:
            raise UsageError(
                f"recipe {chosen.name!r} learns labels of whole scans, where {', '.join(given)} has no meaning",
                do="choose labels with --target, shares with --set test=0.2",
            )
        _classification(chosen, data, run, {**options, "name": name, "table": table, "target": target})
        return
    if table is not None or target is not None:
        raise UsageError(f"recipe {chosen.name!r} learns labels of voxels; --table and --target are for whole scans")
    from ctfoundry.adapt.finetune import finetune as train
    from ctfoundry.cli.adapt import groups_of, names_of

    done = train(
        chosen, data, run, name=name, labels=names_of(labels), groups=groups_of(groups), cache=cache,
        test_share=test_share, measures=None if measures is None else [] if measures == "none" else names_of(measures), **options,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        show(_data(done), lambda: _print(done))


def _classification(recipe: Any, data: Path, run: Path, options: dict[str, Any]) -> None:
    from dataclasses import asdict

    from ctfoundry.adapt import classify_run

    done = classify_run.finetune(recipe, data, run, **options)
    if os.environ.get("RANK", "0") == "0":
        found = {key: value for key, value in asdict(done).items() if not isinstance(value, Path)}
        show(found, lambda: _print_classes(done))


def _print_classes(done: ClassifySummary) -> None:
    for warning in done.warnings:
        say(f"note: {warning}")
    several, best = len(done.classes) > 1, done.best
    area = "macro AUROC" if several else "AUROC"
    rows = [("validation", _text(best, "auroc"), done.patients["validation"], f"step {best['step']}, which it chose")]
    for what, found in (("test", done.test), ("test, HU histogram alone", done.baseline)):
        if found is not None:
            whole = found["overall"]["macro_auroc"] if several else found["classes"][done.classes[0]]["auroc"]
            rows.append((what, _text(whole, "value"), found["patients"], "looked at once" if what == "test" else ""))
    print_table(("patients", area, "of", ""), rows, title=f"{done.recipe}, {done.train.steps} steps")
    if done.test is None:
        print("There are no test measures: the run is not at its end, or no scan is kept for a test.")
        return
    table = []
    for name in done.classes:
        row = done.test["classes"][name]
        limit = "most probable" if row["threshold"] is None else f"{row['threshold']:.3f}"
        shown = ("auroc", *(key for key in ("sensitivity", "specificity", "f1") if key in row))
        table.append((name, row["positive"], limit, *(_text(row[key], "value") for key in shown)))
    columns = ("AUROC", "sensitivity", "specificity", "F1") if done.kind != "multiclass" else ("AUROC",)
    print_table(("test", "positive", "called from", *columns), table)
    print(f"Thresholds and temperature ({done.rule.temperature:.2f}) come from validation patients.")


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
    if row[name] is None:
        return "-"
    tail = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row[name]:.3f}{tail}"
