"""The encoder that an evaluation pretrains for itself where none is given: ct-fm-tiny on phantoms that nothing is measured on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

SEED = 1000
"""Of the phantoms; `HEAD_SEED` of the heads among them. Evaluations make theirs from other seeds."""
HEAD_SEED = 2000


def pretrained(
    out: Path,
    count: int,
    steps: int,
    *,
    heads: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """The run ``OUT/pretrained``, made or continued: `steps` steps on `count` phantoms, `heads` of them heads with findings."""
    from ctfoundry.evaluate.gather import fill_store, gather
    from ctfoundry.layouts import plain
    from ctfoundry.layouts.cases import Cohort
    from ctfoundry.preparation import PREPARATIONS
    from ctfoundry.pretrain.run import pretrain

    folder, run = out / "pretraining", out / "pretrained"
    if not (run / "run.json").is_file():
        plain.make_many(folder / "phantoms", Cohort(count - heads, SEED), say=say)
        if heads:
            plain.make_many(folder / "phantoms", Cohort(heads, HEAD_SEED, view="head", lesions=True), say=say)
        spacing = PREPARATIONS["ct-fm-tiny"].resampling.spacing
        fill_store(folder / "store", gather(folder / "phantoms", say=say).scans, spacing, say)
    changes = [f"train.schedule.steps={steps}", f"train.schedule.warmup={min(60, steps // 4)}"]
    return pretrain("ct-fm-tiny", folder / "store", run, changes=changes, device=device, quiet=True).run
