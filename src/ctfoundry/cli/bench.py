"""``ctfoundry bench``: our speed against a fair alternative, in one run, as ratios."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ctfoundry.cli.common import print_table, show, verb

WHAT = ("loss", "views", "read", "store", "phantom", "pretrain", "vit", "infer", "search", "retrieve", "saliency")


@verb()
def bench(
    what: Annotated[str, typer.Argument(help=" | ".join(WHAT))],
    repeats: Annotated[int, typer.Option(help="repeats; medians are reported", min=1)] = 5,
) -> None:
    """Medians of alternating repeats, one thread, equal dtype; the other side stands in bench/baselines."""
    import importlib

    from ctfoundry.errors import UsageError
    from ctfoundry.settings import nearest

    if what not in WHAT:
        raise UsageError(f"no benchmark is called {what!r}; {nearest(what, WHAT)}")
    rows: list[dict[str, Any]] = importlib.import_module(f"ctfoundry.bench.{what}").run(repeats=repeats)
    columns: tuple[str, ...] = ("name", "ours_s", "other_s", "ratio", "max_error", "threads", "dtype")
    columns += tuple(c for c in ("ours_gib", "other_gib") if any(row.get(c) is not None for row in rows))
    show(
        {"results": rows, "ratio": rows[0]["ratio"]},
        lambda: print_table(columns, [[row.get(c) for c in columns] for row in rows]),
    )
