"""``ctfoundry evaluate``: what is measured, beside what trivial methods reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, app, print_table, say, show, verb

evaluate_app = typer.Typer(help="Measure, beside trivial methods.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluate_app, name="evaluate")


@verb(evaluate_app, "difficulty")
def difficulty(
    what: Annotated[list[str] | None, typer.Option(help="hu, position or findings; all three where not given")] = None,
    count: Annotated[int, typer.Option(help="phantoms, half of them to learn from", min=2)] = 48,
    view: Annotated[str, typer.Option(help="part of the body; default: the torso's five views")] = "",
    voxel: Annotated[float, typer.Option(help="mm of the phantoms", min=0.4)] = 4.0,
    data: Annotated[Path | None, typer.Option(help="labelled scans in place of phantoms: one folder a scan")] = None,
    seed: Seed = 0,
) -> None:
    """How much trivial methods find: single voxels' HU, position in the body box, the HU histogram."""
    from ctfoundry.evaluate.difficulty import WHAT, measure

    rows = measure(what or WHAT, count, view=view, voxel_mm=voxel, data=data, seed=seed, say=say)
    results: list[dict[str, Any]] = [row.data() for row in rows]

    def table() -> None:
        columns = ("measure", "structures", "value", "limit", "verdict", "patients")
        print_table(columns, [[row.line()[c] for c in columns] for row in rows])

    show({"results": results, "seed": seed, "voxel_mm": None if data else voxel}, table)


@verb(evaluate_app, "ablation")
def ablation(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="folder for phantoms, runs and results; continued when it is there")
    ],
    data: Annotated[Path | None, typer.Option(help="real scans beside the phantoms")] = None,
    patients: Annotated[Path | None, typer.Option(help="CSV: path (relative to --data), patient")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="of the table in docs/recipes.md; default: all")] = None,
    phantoms: Annotated[int, typer.Option(help="patients to make; a third is held out", min=12)] = 36,
    forwards: Annotated[
        int, typer.Option(help="crops of 16x64x64 voxels that go through the encoder in a run", min=1)
    ] = 3600,
    seeds: Annotated[int, typer.Option(help="runs of each arm", min=1)] = 3,
    jobs: Annotated[int, typer.Option(help="encoders made at a time", min=1)] = 2,
    device: Device = "cpu",
) -> None:
    """CT-FM's objectives and crop counts, redone small: equal voxels, several seeds, patients that no arm saw."""
    from ctfoundry.evaluate.ablation import Plan
    from ctfoundry.evaluate.ablation import ablation as run
    from ctfoundry.evaluate.ablation_report import tables, write_results
    from ctfoundry.record import Record

    plan = Plan(phantoms=phantoms, forwards=forwards, seeds=seeds)
    record = Record(["evaluate", "ablation", f"--forwards {forwards}", f"--seeds {seeds}"], {"seeds": seeds}, device)
    results = run(out, data=data, patients=patients, plan=plan, arms=arm or (), jobs=jobs, device=device, say=say)
    summary = write_results(out, results, plan)
    record.write(out, ["ablation.json", "ablation.md", "report.html"])

    def table() -> None:
        for part in tables(summary):
            say(part.caption)
            print_table(part.headers, part.rows)

    show(json.loads((out / "ablation.json").read_text()), table)


@verb(evaluate_app, "few-shot")
def few_shot(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="folder for phantoms, runs and results; continued when it is there")
    ],
    init: Annotated[
        str | None, typer.Option(help="pretrained model; default: one is pretrained on phantoms of another seed")
    ] = None,
    shots: Annotated[str, typer.Option(help="labelled phantoms to learn from, separated by commas")] = "5,10,20,50",
    seeds: Annotated[int, typer.Option(help="draws and runs of each number of shots", min=1)] = 3,
    phantoms: Annotated[int, typer.Option(help="patients to make; two sevenths of them test", min=14)] = 84,
    frozen: Annotated[
        bool, typer.Option(help="also the decoder alone on frozen encoders, at the fewest and the most shots")
    ] = True,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="key=value changes to the recipe, in place of the plan's own")
    ] = None,
    jobs: Annotated[int, typer.Option(help="runs at a time", min=1)] = 1,
    minutes: Annotated[float | None, typer.Option(help="begin no run after so many; report what is finished")] = None,
    device: Device = "cpu",
) -> None:
    """Segmentation of phantoms from few labels: pretrained against from scratch, beside HU and position alone."""
    from dataclasses import replace

    from ctfoundry.errors import UsageError
    from ctfoundry.evaluate.few_shot import Plan
    from ctfoundry.evaluate.few_shot import few_shot as run
    from ctfoundry.evaluate.few_shot_report import tables, write_results
    from ctfoundry.record import Record

    try:
        counts = tuple(sorted({int(part) for part in shots.split(",")}))
    except ValueError as error:
        raise UsageError(f"shots are numbers separated by commas, not {shots!r}", where="--shots") from error
    plan = Plan(shots=counts, seeds=seeds, phantoms=phantoms, frozen=frozen)
    if changes:
        plan = replace(plan, changes=tuple(changes))
    record = Record(["evaluate", "few-shot", f"--shots {shots}", f"--seeds {seeds}"], {"seeds": seeds}, device)
    results = run(out, init=init, plan=plan, jobs=jobs, minutes=minutes, device=device, say=say)
    setup = json.loads((out / "setup.json").read_text())
    summary = write_results(out, results, setup)
    record.inputs = {"model": setup["model"]["sha256"]}
    record.write(out, ["setup.json", "results.json", "few-shot.md", "report.html"])

    def table() -> None:
        for part in tables(summary):
            say(part.caption)
            print_table(part.headers, part.rows)

    show(json.loads((out / "results.json").read_text()), table)


@verb(evaluate_app, "triage")
def triage(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="folder for heads, runs and results; continued when it is there")
    ],
    init: Annotated[
        str | None, typer.Option(help="pretrained model; default: one is pretrained on phantoms of other patients")
    ] = None,
    seeds: Annotated[int, typer.Option(help="runs of each method and share", min=1)] = 3,
    train: Annotated[int, typer.Option(help="training heads", min=4)] = 96,
    test: Annotated[int, typer.Option(help="test heads of each scanner", min=4)] = 64,
    share: Annotated[list[float] | None, typer.Option(help="of the training heads; default: 0.1 and 1")] = None,
    device: Device = "cpu",
) -> None:
    """Head CT triage on phantoms: pretrained against from scratch, on the scanner that was learnt on and on another one."""
    from dataclasses import replace

    from ctfoundry.evaluate.triage import Plan
    from ctfoundry.evaluate.triage import triage as run
    from ctfoundry.evaluate.triage_report import tables, write_results
    from ctfoundry.record import Record

    plan = replace(Plan(), seeds=seeds, train=train, test=test, shares=tuple(share) if share else Plan().shares)
    record = Record(["evaluate", "triage", f"--seeds {seeds}"], {"seeds": seeds}, device)
    results = run(out, init=init, plan=plan, device=device, say=say)
    setup = json.loads((out / "setup.json").read_text())
    summary = write_results(out, results, setup, plan)
    record.write(out, ["results.json", "triage.md", "triage.png", "report.html"])

    def table() -> None:
        for part in tables(summary, setup):
            say(part.caption)
            print_table(part.headers, part.rows)

    show(json.loads((out / "results.json").read_text()), table)


@verb(evaluate_app, "tumours")
def tumours(
    out: Annotated[
        Path, typer.Option("-o", "--out", help="folder for runs, masks and results; continued when it is there")
    ],
    data: Annotated[Path, typer.Option(help="scans with tumour masks: NAME_CT and NAME_GTV, or any labelled data set")],
    init: Annotated[
        list[str] | None, typer.Option(help="pretrained model, several times; default: one is pretrained on phantoms")
    ] = None,
    chest: Annotated[
        Path | None, typer.Option(help="one labelled chest, which networks taught by phantoms alone segment")
    ] = None,
    folds: Annotated[int, typer.Option(help="parts of the patients, each tested once", min=2)] = 2,
    seeds: Annotated[int, typer.Option(help="runs of each fold", min=1)] = 1,
    steps: Annotated[int, typer.Option(help="of each run", min=1)] = 200,
    suprem_folds: Annotated[int, typer.Option(help="folds that the SuPreM U-Net is tested on; 0: none", min=0)] = 2,
    suprem_filters: Annotated[int, typer.Option(help="its width; 32 as published", min=1)] = 8,
    suprem_steps: Annotated[int, typer.Option(help="of each of its runs", min=1)] = 150,
    jobs: Annotated[int, typer.Option(help="runs at a time", min=1)] = 1,
    device: Device = "cpu",
) -> None:
    """Tumours on real scans, cross-validated by patient: pretrained against from scratch, beside what a crop gives away."""
    from ctfoundry.evaluate.tumours import Plan
    from ctfoundry.evaluate.tumours import tumours as run
    from ctfoundry.evaluate.tumours_chest import chest as on_chest
    from ctfoundry.evaluate.tumours_report import tables, write_results
    from ctfoundry.record import Record

    plan = Plan(
        folds=folds, seeds=seeds, steps=steps, validate_every=max(steps // 4, 1),
        suprem_folds=suprem_folds, suprem_filters=suprem_filters, suprem_steps=suprem_steps,
    )  # fmt: skip
    record = Record(["evaluate", "tumours", f"--folds {folds}", f"--seeds {seeds}", f"--steps {steps}"], {}, device)
    results = run(out, data, init=init or (), plan=plan, jobs=jobs, device=device, say=say)
    setup = json.loads((out / "setup.json").read_text())
    beside = on_chest(out, chest, init[0] if init else out / "pretrained", device=device, say=say) if chest else None
    summary = write_results(out, data, results, setup, beside)
    record.inputs = {name: card["sha256"] for name, card in setup["models"].items()}
    record.write(out, ["setup.json", "results.json", "tumours.md", "report.html"])

    def table() -> None:
        for part in tables(summary):
            say(part.caption)
            print_table(part.headers, part.rows)

    show(json.loads((out / "results.json").read_text()), table)
