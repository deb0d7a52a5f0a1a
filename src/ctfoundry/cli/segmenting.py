"""``ctfoundry segment``: many scans to label maps, DICOM objects, volumes and one page to look at."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, finish, print_table, say, show, state, verb
from ctfoundry.cli.search import Scans

if TYPE_CHECKING:
    from ctfoundry.adapt.apply import Item, Step
    from ctfoundry.retrieval.sources import Source
    from ctfoundry.segmenter import Pass, Segmenter
    from ctfoundry.train.progress import Progress

LINE_SECONDS = 15.0
"""Between two lines of progress where stderr is no terminal and a scan takes longer."""


@verb()
def segment(
    scans: Scans,
    model: Annotated[
        str, typer.Option(help="a run folder, a .safetensors with its card, a name of the zoo, or hf://...")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder; a part-filled one is continued")],
    labels: Annotated[str, typer.Option(help="structures to write and measure, as liver,spleen; default: all")] = "",
    probabilities: Annotated[str, typer.Option(help="structures whose probability is written too")] = "",
    dicom_seg: Annotated[bool, typer.Option("--dicom-seg", help="also a DICOM SEG of each DICOM series")] = False,
    rtstruct: Annotated[bool, typer.Option("--rtstruct", help="also an RTSTRUCT of each DICOM series")] = False,
    largest: Annotated[bool, typer.Option("--largest", help="keep the largest part of each structure alone")] = False,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror", help="mean over flips of the input, never left to right where names tell sides: 4 or 8 passes"
        ),
    ] = False,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16: of the network")] = "fp32",
    overlap: Annotated[float | None, typer.Option(help="share by which windows overlap; default: the model's")] = None,
    weights: Annotated[
        str | None, typer.Option(help="for a name of the zoo: a .safetensors file, a hub name, or 'random'")
    ] = None,
    device: Device = "auto",
) -> None:
    """Label maps of scans on their own grids (NIfTI), DICOM SEG and RTSTRUCT, volumes, and a page to check them."""
    from ctfoundry import identity, zoo
    from ctfoundry.adapt.apply import Options, check, segment_many
    from ctfoundry.record import Record
    from ctfoundry.retrieval.sources import resolve
    from ctfoundry.train.progress import Progress

    segmenter = zoo.load_segmenter(model, weights=weights, device=device)
    options = Options(
        labels=_names(labels),
        largest=largest,
        settings=_pass(segmenter, mirror=mirror, precision=precision, overlap=overlap),
        probabilities=_names(probabilities),
        dicom_seg=dicom_seg,
        rtstruct=rtstruct,
    )
    check(segmenter, options)
    record = Record(["segment", "--model", segmenter.card.name, *_chosen(options)], {}, str(segmenter.device))
    found = resolve(scans)
    out.mkdir(parents=True, exist_ok=True)
    identity.write_private(out, found.paths)
    with Progress("segment", quiet=state.quiet, unit="window") as bar:
        outcome = segment_many(
            [_item(source) for source in found.scans], segmenter, out, options, progress=_Teller(bar)
        )
    failed = outcome.failed | found.failed
    record.inputs = {s.scan.id: s.scan.digest for s in found.scans}
    record.results = {
        "done": outcome.done,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "unreadable": sorted(found.failed),  # ids alone: the reason may quote what a header says of a person
        "flagged": outcome.flagged,
        "rows": len(outcome.table),
    }
    record.write(out, ["volumes.csv", "volumes.json", "labels.json", "model.json"])
    ours = {source.scan.id for source in found.scans}
    table = [row for row in outcome.table if row["scan"] in ours]
    result = {"done": outcome.done, "skipped": outcome.skipped, "failed": failed, "flagged": outcome.flagged}

    def report() -> None:
        print_table(
            ("scan", "structure", "ml", "mean HU", "cut at", "flags"),
            [[row[k] for k in ("scan", "name", "volume_ml", "mean_hu", "cut_at", "flags")] for row in table],
        )
        print(
            f"{len(outcome.done)} segmented, {len(outcome.skipped)} there already, {len(failed)} with something missing; "
            f"{len(outcome.flagged)} scans to look at: {out / 'qc.html'}"
        )

    show(result | {"volumes": table}, report)
    finish(failed, len(outcome.done) + len(outcome.skipped), found.paths)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _chosen(options: Any) -> list[str]:
    """The options as they stand in run.json."""
    from ctfoundry.settings import to_data

    settings = to_data(options)
    settings |= settings.pop("settings")
    return [f"{key}={value}" for key, value in settings.items() if value not in (None, False, [], "fp32")]


def _pass(segmenter: Segmenter, *, mirror: bool, precision: str, overlap: float | None) -> Pass:
    from dataclasses import replace

    from ctfoundry.errors import UsageError
    from ctfoundry.segmenter import Pass
    from ctfoundry.settings import from_data

    if precision not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"--precision is fp32, bf16 or fp16, not {precision!r}")
    extent = None
    if overlap is not None:
        if segmenter.extent.mode != "windows" or not 0 <= overlap < 1:
            raise UsageError("--overlap is a share from 0 to below 1, for a model that works in windows")
        extent = replace(segmenter.extent, overlap=overlap)
    axes = segmenter.mirrors() if mirror else ()
    if mirror and len(axes) < 3:
        say("--mirror: no flips from left to right, because this model's names tell sides")
    return replace(from_data(Pass, {"precision": precision}), extent=extent, mirror=axes)


def _item(source: Source) -> Item:
    """A scan with the DICOM series that it comes from, or why there is none."""
    from ctfoundry.adapt.apply import Item
    from ctfoundry.io.dicom_file import is_dicom
    from ctfoundry.io.discovery import is_listing
    from ctfoundry.io.places import place_of

    path, name = place_of(source.path)
    item = Item(source.scan.id, source.scan.digest, source.scan.read)
    if (path / "store.json").is_file():
        why = "the scan comes from a store, which keeps no DICOM headers"
    elif path.is_file() and is_listing(path):
        why = "its series lies in an archive or is listed by a DICOMDIR: unpack it into a folder"
    elif path.is_dir() and name is not None:
        return Item(item.id, item.digest, item.read, series=source.path)
    elif path.is_file():
        with open(path, "rb") as stream:
            if is_dicom(stream.read(132 + 512)):
                return Item(item.id, item.digest, item.read, series=(path,))
        return item
    else:
        return item
    return Item(item.id, item.digest, item.read, no_series=why)


class _Teller:
    """Shows how far the work is: a bar where stderr is a terminal; else a line a scan, and one now and then within a long scan."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.start, self.told = bar, time.monotonic(), time.monotonic()
        self.windows, self.last = 0, ("", 0)

    def __call__(self, step: Step) -> None:
        """After every batch of windows and after every scan."""
        now = time.monotonic()
        seconds = max(now - self.start, 1e-3)
        if step.windows_of:
            self.windows += step.windows - (self.last[1] if self.last[0] == step.id else 0)
            self.last = step.id, step.windows
        self.bar.step(self.windows, step.share, seconds)
        text = f"{step.scans} of {step.of} scans through, {step.id}"
        text += f": window {step.windows} of {step.windows_of}" if step.windows_of else " written"
        if not step.windows_of or now - self.told > LINE_SECONDS or self.bar.is_bar:
            self.told = now
            self.bar.log(self.windows, max(step.share, 1e-6), seconds, text)
