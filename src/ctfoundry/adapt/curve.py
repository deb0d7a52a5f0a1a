"""Which checkpoint of a run is best: probed on validation patients, a row for each in ``RUN/probe.jsonl``.

The weights of every probed checkpoint are kept in ``RUN/probed/`` (``step-00000120.safetensors``) with their card, ready to load.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ctfoundry import files, parallel
from ctfoundry.adapt.cases import LabelledScan, chosen_classes, few, open_labelled, split
from ctfoundry.adapt.kept import preparation_digest
from ctfoundry.adapt.prepared import Cases
from ctfoundry.adapt.probe import DEFAULTS, ProbeResult, ProbeSettings, probe_segmentation
from ctfoundry.encoder import Encoder
from ctfoundry.errors import UsageError
from ctfoundry.preparation import Preparation
from ctfoundry.settings import to_data
from ctfoundry.zoo.files import save_model

ROWS = "probe.jsonl"
KEPT = "probed"


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Labelled scans for probing any encoder of one preparation, prepared once.

    Attributes
    ----------
    train, validation : few scans to learn from, and all validation scans. settings : of the probe.
    notes : what was left out of the data set.
    """

    train: Cases
    validation: Cases
    settings: ProbeSettings
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """What tells probes apart whose numbers must not be compared."""
        parts: Sequence[Any] = (
            [_scan_digest(scan) for scan in self.train.scans],
            [_scan_digest(scan) for scan in self.validation.scans],
            to_data(self.train.classes),
            to_data(self.settings),
            preparation_digest(self.train.preparation),
        )
        return files.digest(parts)[:12]


def _scan_digest(scan: LabelledScan) -> str:
    return files.digest([scan.id, scan.patient])


def probe_set(
    folder: str | PathLike[str],
    preparation: Preparation,
    *,
    name: str | None = None,
    shots: int = 5,
    labels: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    settings: ProbeSettings = DEFAULTS,
    cache: Path | None = None,
) -> ProbeSet:
    """`shots` training patients and all validation patients of a data set (`open_labelled`, `split`, `few`), by the settings' seed.

    Test patients are never touched: what chooses must not report.
    """
    data = open_labelled(folder, name)
    parts = split(data.scans, seed=settings.seed)
    classes = chosen_classes(data, labels, groups)
    train = few(parts.train, shots, seed=settings.seed)
    return ProbeSet(
        Cases(train, preparation, classes, cache=cache),
        Cases(parts.validation, preparation, classes, cache=cache),
        settings,
        data.notes,
    )


def probe_checkpoint(run: Path, step: int, encoder: Encoder, data: ProbeSet) -> dict[str, Any]:
    """Probe the encoder of one step, keep its weights, and write its row; an older row of the step is replaced.

    The row: ``step``, ``dice`` (macro) with ``low`` and ``high``, ``micro``, ``patients``, ``probe`` (digest of data and settings).
    Other processes of a distributed run may wait meanwhile: nothing here asks them.
    """
    with parallel.alone():
        result = probe_segmentation(encoder, data.train, data.validation, data.settings)
    save_model(encoder, kept(run, step))
    row = row_of(step, result, data.digest)
    rows = [old for old in read_rows(run) if (old["step"], old["probe"]) != (step, row["probe"])] + [row]
    files.write_text(run / ROWS, "".join(json.dumps(r) + "\n" for r in sorted(rows, key=lambda r: r["step"])))
    return row


def kept(run: Path, step: int) -> Path:
    """Where the weights of a probed step are kept."""
    return run / KEPT / f"step-{step:08d}.safetensors"


def row_of(step: int, result: ProbeResult, digest: str) -> dict[str, Any]:
    """One line of ``probe.jsonl``."""
    macro, micro = result.scores.macro, result.scores.micro
    return {
        "step": step,
        "dice": macro.value,
        "low": macro.low,
        "high": macro.high,
        "micro": micro.value,
        "patients": macro.patients,
        "train": result.train,
        "seed": macro.seed,
        "probe": digest,
    }


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Rows of ``probe.jsonl``; lines that are no JSON are left out."""
    path = run / ROWS
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"step", "dice", "probe"} <= row.keys():
            found.append(row)
    return found


def best(run: Path, digest: str) -> dict[str, Any] | None:
    """The row with the highest macro Dice of one probe, the earlier of equals; None without rows."""
    rows = sorted((r for r in read_rows(run) if r["probe"] == digest), key=lambda r: r["step"])
    return max(rows, key=lambda r: float(r["dice"]), default=None)


def best_text(row: Mapping[str, Any]) -> str:
    """The best checkpoint in words, with its interval; step 0 is the encoder with random weights, and is said to be."""
    tail = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
    said = f"best checkpoint: step {row['step']}, macro Dice {row['dice']:.3f}{tail} of {row['patients']} validation patients"
    return (
        said if row["step"] else f"{said}; that is the untrained encoder, so by this probe training has gained nothing"
    )


def probe_steps(
    run: Path,
    steps: Sequence[int],
    encoder_at: Callable[[int], Encoder],
    data: ProbeSet,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Probe several steps of a run, those that have no row yet; returns the rows of all, by step."""
    if not steps:
        raise UsageError("the run has kept no checkpoint", where=run, do="set train.keep_every, or use --probe-every")
    known = {row["step"] for row in read_rows(run) if row["probe"] == data.digest}
    for step in sorted(set(steps) - known):
        row = probe_checkpoint(run, step, encoder_at(step), data)
        say(f"step {step}: macro Dice {row['dice']:.3f}")
    return [row for row in read_rows(run) if row["probe"] == data.digest and row["step"] in set(steps)]
