"""``ctfoundry evaluate search``: how far a search's answers lie from the truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ctfoundry.cli.common import Device, Seed, finish, print_table, say, show, state, verb
from ctfoundry.cli.evaluate import evaluate_app
from ctfoundry.cli.search import Levels, Method, Overlap, Patch, Plain, Shifts, Weights, Window, patch_size, triple

if TYPE_CHECKING:
    from ctfoundry.encoder import Encoder
    from ctfoundry.retrieval.search_maps import Looking
    from ctfoundry.train.progress import Progress

PARTS = "parts"
"""Folder in the results' folder: what scans hold, looks, answers; cells and phantoms until all is written."""
LINE_SECONDS = 15.0


@verb(evaluate_app, "search")
def evaluate_search(
    model: Annotated[str, typer.Argument(help="name of the zoo, run folder or .safetensors")],
    weights: Weights = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="folder for search.json and report.html; what is done there already is not done again"
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="labelled scans: one folder a scan; default: phantoms")] = None,
    phantoms: Annotated[int, typer.Option(help="phantoms to make", min=2)] = 16,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="fit confidence on these scans and store it beside the model")
    ] = False,
    structure: Annotated[list[str] | None, typer.Option(help="only these; may be repeated")] = None,
    protocol: Annotated[str, typer.Option(help="ct-fm: as published (fixed source, heart, windows at 1 mm)")] = "",
    method: Method = "dense",
    window: Window = "16x64x64",
    overlap: Overlap = 0.625,
    levels: Levels = None,
    shifts: Shifts = "1x1x1",
    plain: Plain = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            help="another way to look, measured beside: windows=DxHxW, plain, shifts=DxHxW ... with commas; repeatable"
        ),
    ] = None,
    patch: Patch = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """How far a search's answers lie from the truth, beside random weights, HU, position and the best possible cell."""
    from ctfoundry import identity
    from ctfoundry.adapt.probe import random_twin
    from ctfoundry.errors import UsageError
    from ctfoundry.evaluate import search as measured
    from ctfoundry.evaluate.search_cases import labelled_scans, phantom_scans
    from ctfoundry.evaluate.search_report import report, tables
    from ctfoundry.record import Record
    from ctfoundry.retrieval import search_confidence
    from ctfoundry.retrieval.embed import ModelOf
    from ctfoundry.retrieval.search import how_to_look

    if protocol not in ("", "ct-fm"):
        raise UsageError(f"no protocol is called {protocol!r}; known: ct-fm")
    if protocol and (calibrate or structure or beside):
        raise UsageError("the published protocol has its own structure and way to look, and no calibration")
    place = search_confidence.place_of(model)
    if calibrate and place is None:
        raise UsageError(
            "a calibration stands beside a model's file", where=model, do="give a run folder or a .safetensors"
        )
    if out is not None and place is not None and (out / "search.json").resolve() == place.resolve():
        raise UsageError("the calibration stands there as search.json", where=out, do="give another folder as --out")
    encoder = ModelOf(model, weights, device, seed, patch_size(patch)).load()
    random = random_twin(encoder, seed) if encoder.card.weights == "trained" else None
    record = Record(
        ["evaluate", "search", encoder.card.name, *([protocol] if protocol else [])],
        {"seed": seed},
        str(encoder.device),
    )
    looking = how_to_look(
        encoder,
        method=method,
        window=triple(window),
        levels=levels.split(",") if levels else None,
        overlap=overlap,
        shifts=triple(shifts),
        whiten=not plain,
    )
    others = {text: _otherwise(text, looking, encoder) for text in beside or ()}
    methods = measured.ways(encoder, random, looking, others)
    if calibrate:  # nothing is compared, and the old calibration does not matter
        methods = {name: methods[name] for name in list(methods)[:1]}
    old = None if calibrate or protocol else search_confidence.load(place, encoder.card, looking)
    made_from = {"data": "labelled scans" if data else "phantoms", "seed": seed}
    with _parts(out) as parts:
        gathered = labelled_scans(data) if data else phantom_scans(phantoms, seed, parts, say=say)
        with closing(Bars()) as bars:
            told: dict[str, Any] = {"parts": parts, "tell": bars, "say": say}
            if protocol:
                result = measured.published(encoder, random, gathered, **told)
            else:
                result = measured.measure(
                    methods, gathered, structure or (), seed=seed, calibration=old, made_from=made_from, **told
                )
        if calibrate:
            assert place is not None
            search_confidence.save(measured.calibration_of(result, encoder.card, looking), place)
            say(f"calibrated on {len(result.scans)} scans; measure it on others: another --seed")
        if out is not None:
            files = report(result, out)
            record.inputs = {known.id: identity.sealed(known.content) for known in result.scans}
            record.results = result.data()
            record.write(out, files)

    def shown() -> None:
        for table in tables(result):
            print_table(table.headers, table.rows, table.caption)

    show(result.data(), shown)
    finish(result.failed, len(result.scans), gathered.paths)


@contextmanager
def _parts(out: Path | None) -> Iterator[Path]:
    """Where the work stands: in the results' folder, so that it is done once; without one, nowhere that stays. Raises StoreError where
    another run works there: it removes the cells that it has done with."""
    import shutil
    import tempfile

    from ctfoundry import files
    from ctfoundry.errors import StoreError

    if out is None:
        with tempfile.TemporaryDirectory(prefix="ctfoundry-search-") as folder:
            yield Path(folder)
        return
    parts = out / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(files.alone(parts))
        except BlockingIOError:
            raise StoreError("another run works here", where=out, do="wait for it, or give another --out") from None
        yield parts
        # gigabytes, and quickly made again: phantoms, and cells of other ways whose runs were stopped
        for left in (parts / "phantoms", *parts.glob("ways/*/cells")):
            shutil.rmtree(left, ignore_errors=True)


def _otherwise(text: str, first: Looking, encoder: Encoder) -> Looking:
    """The first way to look with the changes of `text`, such as ``windows=8x32x32,plain``."""
    from dataclasses import replace

    from ctfoundry.errors import UsageError
    from ctfoundry.retrieval.search_maps import default_levels

    looking = first
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name in ("plain", "whitened") and not value:
            looking = replace(looking, whiten=name == "whitened")
        elif name == "windows":
            looking = replace(looking, window=triple(value), levels=(), shifts=(1, 1, 1))
        elif name == "dense" and not value:
            looking = replace(looking, window=None, levels=default_levels(encoder))
        elif name == "levels":
            looking = replace(looking, window=None, levels=tuple(encoder.level(n).name for n in value.split("+")))
        elif name == "shifts":
            if looking.window is not None:
                raise UsageError("windows have no shifts", where="--beside", do="give dense,shifts=DxHxW, or --overlap")
            looking = replace(looking, shifts=triple(value))
        else:
            raise UsageError(
                f"{part!r} is no way to look",
                where="--beside",
                do="give windows=DxHxW, dense, levels=A+B, shifts=DxHxW, plain or whitened, with commas between",
            )
    return looking


class Bars:
    """One bar after the other where stderr is a terminal, with rate and time left; else a line at the end of each part and now and then."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        self.title, self.last = "", time.monotonic()
        self.began = self.told = self.last

    def __call__(self, title: str, done: int, of: int) -> None:
        """`done` of `of` of the part called `title`, which began when the part before it ended."""
        from ctfoundry.report.text import rate
        from ctfoundry.train.progress import Progress

        now = time.monotonic()
        if self.bar is None or title != self.title:
            self.close()
            self.title, self.began, self.told = title, self.last, now
            unit = "pair" if title.endswith("searching") else "scan"
            self.bar = Progress(title, quiet=state.quiet, unit=unit).__enter__()
        self.last = now
        seconds = max(now - self.began, 1e-3)
        self.bar.step(done, done / of, seconds)
        if done == of or now - self.told > LINE_SECONDS or self.bar.is_bar:
            self.told = now
            self.bar.log(done, done / of, seconds, f"{rate(done / seconds)}/s")

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None
