"""The verb prepare: raw scans into a store."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ctfoundry.cli.common import finish, print_table, say, show, verb

if TYPE_CHECKING:
    from ctfoundry.ingest import Executor


@verb()
def prepare(
    sources: Annotated[
        list[Path], typer.Argument(help="files, folders, zip archives, then the STORE", metavar="SRC... STORE")
    ],
    grid: Annotated[str, typer.Option(help="native, floor:1, ct-fm, flexict-3d, or mm as DxHxW")] = "floor:1",
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="processes of this machine, or a Ray cluster")
    ] = "local",
    address: Annotated[str | None, typer.Option(help="of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT")] = None,
    workers: Annotated[
        int | None, typer.Option(help="scans at a time; 0: in this process; by default all cores")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="GiB for all workers of this machine (default: 80 % of it)")
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option(help="cohort file: only its series, with licence, DOI and public UIDs")
    ] = None,
    collection: Annotated[str, typer.Option(help="public name of the collection that all of it belongs to")] = "",
    representative: Annotated[
        bool, typer.Option("--representative", help="only the series that represents each study")
    ] = False,
    min_slices: Annotated[int | None, typer.Option(help="the same as --set min_slices=N")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="threshold of a rule, such as min_cover_mm=100 (docs/prepare.md)")
    ] = None,
    failing_share: Annotated[
        float, typer.Option(help="stop when more than this share of at least 10 scans fails")
    ] = 0.2,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="hash all files anew, whatever their size and time say")
    ] = False,
    i_know: Annotated[
        bool, typer.Option("--i-know", help="take for HU what does not look it (8 bit, MR, 0..1 ...), marked")
    ] = False,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="resample series with missing or uneven slices, marked")
    ] = False,
) -> None:
    """Raw scans into a store: int16 HU, SPL, one grid. What is left out stands in quarantine.csv with its reason."""
    from ctfoundry.errors import UsageError
    from ctfoundry.ingest import Checks, prepare_store
    from ctfoundry.ingest.pipeline import measured
    from ctfoundry.settings import with_changes

    if len(sources) < 2:
        raise UsageError("give at least one source and the store", do="ctfoundry prepare SRC... STORE")
    changes = [*(change or ()), *([f"min_slices={min_slices}"] if min_slices is not None else ())]
    with _terminable():
        outcome = prepare_store(
            sources[:-1],
            sources[-1],
            grid,
            checks=with_changes(Checks(), changes),
            i_know=i_know,
            allow_gaps=allow_gaps,
            representative=representative,
            collection=collection,
            cohort=cohort,
            rehash=rehash,
            failing_share=failing_share,
            executor=_executor(executor, address, workers, memory),
            say=say,
        )

    def table() -> None:
        out = outcome.left_out
        print(
            f"{len(outcome.added)} added, {len(outcome.skipped)} there already, {len(out)} left out, {outcome.labels} label maps"
        )
        if out:
            rows = [
                (rule, n, next(o.reason for _, o in sorted(out.items()) if o.rule == rule))
                for rule, n in outcome.rules.items()
            ]
            print_table(("rule", "scans", "the first of them"), rows, "left out (quarantine.csv)")
        for reason, count in outcome.passed_over.most_common():
            print(f"passed over: {count} x {reason}")
        for id, notes in outcome.notes.items():
            print(f"{id}: {'; '.join(notes)}")

    results: dict[str, Any] = {
        "added": outcome.added,
        "skipped": outcome.skipped,
        "failed": outcome.failed,
        "left_out": {id: {"rule": o.rule, "reason": o.reason} for id, o in sorted(outcome.left_out.items())},
        "rules": outcome.rules,
        "label_maps": outcome.labels,
        "passed_over": dict(outcome.passed_over),
        "notes": outcome.notes,
        "changed": outcome.changed,
        "work": measured(outcome),
    }
    show(results, table)
    finish(outcome.failed, len(outcome.added) + len(outcome.skipped))


def _executor(name: str, address: str | None, workers: int | None, memory: float | None) -> Executor:
    from ctfoundry.errors import UsageError
    from ctfoundry.ingest import Inline, Local

    if name == "ray":
        from ctfoundry.ingest.cluster import Cluster

        return Cluster(address, workers)
    if address is not None:
        raise UsageError("belongs to --executor ray", where="--address")
    return Inline() if workers == 0 else Local(workers, None if memory is None else int(memory * 2**30))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the verb like Ctrl-C: workers are stopped, the index is written, and it says so."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
