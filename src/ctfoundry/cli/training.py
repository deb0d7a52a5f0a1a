"""Verbs that train: pretrain, and plan, which says beforehand what that takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctfoundry.cli.common import Device, print_table, say, show, state, verb

if TYPE_CHECKING:
    from ctfoundry.pretrain.plan import Plan

Recipe = Annotated[str, typer.Argument(help="name of a recipe, or a YAML or JSON file")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="key=value, such as train.optimiser.rate=3e-4")]


@verb()
def pretrain(
    recipe: Recipe,
    store: Annotated[Path, typer.Option(help="store to train on")],
    run: Annotated[Path, typer.Option(help="folder of the run; an unfinished one is continued")],
    change: Changes = None,
    minutes: Annotated[float | None, typer.Option(help="stop after this time")] = None,
    steps: Annotated[int | None, typer.Option(help="stop after this many steps")] = None,
    device: Device = "auto",
    probe_every: Annotated[
        int | None, typer.Option(help="probe the frozen encoder after so many steps (needs --probe-data)", min=1)
    ] = None,
    probe_data: Annotated[Path | None, typer.Option(help="labelled scans to probe on, as for `probe --data`")] = None,
    probe_shots: Annotated[int, typer.Option(help="training patients of each probe", min=1)] = 5,
    probe_groups: Annotated[str, typer.Option(help="as for `probe --groups`")] = "",
    probe_set: Annotated[list[str] | None, typer.Option(help="as for `probe --set`")] = None,
    launcher: Annotated[
        str, typer.Option(help="local: one process; torchrun: many on this machine; slurm: a job on a cluster")
    ] = "local",
    gpus: Annotated[int, typer.Option(help="processes on each machine, each with a GPU where there are any")] = 1,
    nodes: Annotated[int, typer.Option(help="machines (slurm)")] = 1,
    slurm: Annotated[
        list[str] | None, typer.Option("--slurm", help="key=value for sbatch, such as partition=gpu or time=2-0")
    ] = None,
) -> None:
    """Self-supervised pretraining from a store; continues a run it finds."""
    from dataclasses import asdict

    from ctfoundry.errors import UsageError
    from ctfoundry.pretrain.run import pretrain as train
    from ctfoundry.train.launch import check_launcher

    if (probe_every is None) is not (probe_data is None):
        raise UsageError("probing needs both --probe-every and --probe-data")
    if probe_data is not None and not probe_data.is_dir():  # a job in a queue would tell hours later
        raise UsageError("is no folder of labelled scans", where=probe_data)
    if check_launcher(launcher, gpus, nodes, slurm or ()) != "local":
        return _launch(recipe, store, run, change or [], launcher, gpus, nodes, slurm or [], device)
    leads = os.environ.get("RANK", "0") == "0"
    state.quiet |= not leads
    probe = None
    if probe_every is not None and probe_data is not None:
        from ctfoundry.cli.adapt import opened
        from ctfoundry.pretrain.recipe_files import load_recipe
        from ctfoundry.pretrain.run import preparation_of
        from ctfoundry.settings import with_changes

        preparation = preparation_of(with_changes(load_recipe(recipe), change or ()))
        probe = (
            probe_every,
            opened(probe_data, preparation, shots=probe_shots, groups=probe_groups, change=probe_set or ()),
        )
    done = train(
        recipe,
        store,
        run,
        minutes=minutes,
        steps=steps,
        changes=change or (),
        device=device,
        quiet=state.quiet,
        command=["pretrain", Path(recipe).name, *[f"--set {c}" for c in change or ()]],
        probe=probe,
    )
    if not leads:  # one result of one run
        return None
    data = {
        "recipe": done.recipe,
        "scans": done.scans,
        "patients": done.patients,
        "device": done.device,
        **asdict(done.train),
    }
    if probe is not None:
        from ctfoundry.adapt.curve import best, best_text

        data["best_checkpoint"] = best(run, probe[1].digest)
        say(best_text(data["best_checkpoint"]))
    show(
        data,
        lambda: print_table(("what", "value"), [(k, v) for k, v in data.items() if isinstance(v, str | int | float)]),
    )
    return None


def _launch(
    recipe: str,
    store: Path,
    run: Path,
    changes: list[str],
    launcher: str,
    gpus: int,
    nodes: int,
    options: list[str],
    device: str,
) -> None:
    """Hand the same command to many processes, after what can be checked here was checked here."""
    from ctfoundry.errors import UsageError
    from ctfoundry.pretrain.recipe_files import load_recipe
    from ctfoundry.settings import with_changes
    from ctfoundry.store import open_store
    from ctfoundry.train.launch import slurm_options, submit, torchrun, without_launcher

    batch = with_changes(load_recipe(recipe), changes).train.batch
    if batch % (gpus * nodes):
        raise UsageError(
            f"{batch} scans a step do not divide among {gpus * nodes} processes",
            do="take a number of processes that divides them, or change them with --set train.batch=N",
        )
    open_store(store)
    arguments = without_launcher(sys.argv[1:])
    if launcher == "torchrun":
        _check_gpus(device, gpus)
        raise typer.Exit(torchrun(arguments, gpus))
    handed = submit(
        arguments,
        run / "job",
        nodes=nodes,
        processes=gpus,
        gpu=device != "cpu",
        options=slurm_options(options),
        name=f"ctfoundry-{Path(recipe).stem}",
    )
    say(f"logs: {handed.logs}")
    show({"job": handed.id, "processes": gpus * nodes}, lambda: print(f"job {handed.id}, {gpus * nodes} processes"))


def _check_gpus(device: str, wanted: int) -> None:
    from ctfoundry.errors import UsageError

    if device == "cpu":
        return
    import torch

    found = torch.cuda.device_count()
    if wanted > found and (found or device != "auto"):
        raise UsageError(f"{wanted} processes want a GPU each, and here are {found}", do="lower --gpus")


@verb()
def plan(
    recipe: Recipe,
    gpus: Annotated[int, typer.Option(help="to plan for; 0: the device that is measured, as it is")] = 0,
    scans: Annotated[int | None, typer.Option(help="of the corpus; by default those of the store")] = None,
    store: Annotated[
        Path | None, typer.Option(help="measure reading and sizes on it; without one, on made-up scans")
    ] = None,
    seconds: Annotated[float, typer.Option(help="for measuring")] = 30.0,
    gpu: Annotated[
        str | None, typer.Option(help="GPU to plan for, such as A100; by default the measured one, or an H100")
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="share of the GPU's published peak; by default as measured, or 0.3")
    ] = None,
    change: Changes = None,
    device: Device = "auto",
) -> None:
    """Days, memory and disk of a recipe, from a few measured steps."""
    from dataclasses import asdict

    from ctfoundry.pretrain.plan import plan as make

    say(f"measuring for about {seconds:.0f} s")
    made = make(
        recipe,
        gpus=gpus,
        scans=scans,
        store=store,
        seconds=seconds,
        device=device,
        gpu=gpu,
        share=share,
        changes=change or (),
    )
    show(asdict(made), lambda: _print_plan(made))


def _print_plan(made: Plan) -> None:
    each = " each" if made.gpus > 1 else ""
    on = f"{made.gpus} x {made.gpu}" if made.gpus else made.gpu
    again = f", and {made.tera_again:.3g} done twice to save memory" if made.tera_again else ""
    reading = "not measured" if made.reading_rate is None else f"{made.reading_rate:.3g} read here"
    parts = ", ".join(f"{name} {gib:.2g}" for name, gib in made.memory_gib.items() if name != "all")
    said = made.measured
    rows = [
        ("time", _duration(made.days * 86400), f"{made.steps} steps of {_duration(made.step_seconds)}"),
        (
            "operations",
            f"{made.tera:.3g} T a step",
            f"{made.share:.1%} ({made.share_from}) of a peak of {made.peak_tera:.4g} T/s{each}{again}",
        ),
        ("memory", f"{made.memory_gib['all']:.2g} GiB{each}", parts),
        ("passes", f"{made.passes:.3g}", f"over {made.scans} scans"),
        ("reading", f"{made.reading_wanted:.3g} scans/s", reading),
        ("store", _size(made.store_gb), made.store_from),
        (
            "checkpoints",
            _size(made.checkpoints_gb),
            f"{made.checkpoints_kept} kept and one being written, {_size(made.checkpoint_gb)} each",
        ),
        (
            "measured",
            f"{said['seconds']:.3g} s",
            f"{said['scans']} scans x {said['crops']} crops of {said['crop']}, {said['precision']}, on {said['device']}, {said['steps']} times",
        ),
    ]
    print_table(("what", "value", "from"), rows, title=f"{made.recipe} on {on}")
    for note in made.notes:
        print(f"note: {note}")


def _duration(seconds: float) -> str:
    for limit, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * limit:
            return f"{seconds / limit:.3g} {unit}"
    return f"{seconds:.3g} s"


def _size(gb: float) -> str:
    return f"{gb / 1e3:.3g} TB" if gb >= 1e3 else f"{gb:.3g} GB" if gb >= 1 else f"{gb * 1e3:.3g} MB"
