"""``ctfoundry quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Device, Seed, print_table, say, show, state, verb


@verb()
def quickstart(
    data: Annotated[
        Path | None, typer.Option(help="folder with any mix of readable CTs (default: phantoms are made)")
    ] = None,
    patients: Annotated[Path | None, typer.Option(help="CSV with the columns path and patient")] = None,
    out: Annotated[Path, typer.Option(help="folder for everything that is made")] = Path("quickstart-out"),
    minutes: Annotated[float, typer.Option(help="time for pretraining")] = 1.5,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """CT files in; a pretrained encoder, searchable embeddings and a report out. Killed, it continues when run again."""
    from ctfoundry.quickstart import quickstart as run

    command = ["quickstart", "--minutes", f"{minutes:g}", "--seed", str(seed), *(["--data", "FOLDER"] if data else [])]
    done = run(
        out,
        data=data,
        patients=patients,
        minutes=minutes,
        seed=seed,
        device=device,
        command=command,
        quiet=state.quiet,
        say=say,
    )

    def table() -> None:
        found = done["results"]
        rows = [
            ("views of one place that find each other", n, _text(v, 100, "%"))
            for n, v in found["view_matching"].items()
        ]
        rows += [
            ("median error of a landmark search", n, _text(v, 1, "mm")) for n, v in found["localisation_mm"].items()
        ]
        print_table(("held-out patients", "method", "value [95 % interval]"), rows)
        print(f"report: {out / 'report.html'}")

    show(done, table)


def _text(value: dict[str, float | None], scale: float, unit: str) -> str:
    low, high = value["low"], value["high"]
    middle = f"{(value['value'] or 0.0) * scale:.1f} {unit}"
    return middle if low is None or high is None else f"{middle} [{low * scale:.1f}, {high * scale:.1f}]"
