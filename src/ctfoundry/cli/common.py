"""What all verbs share: options, output, errors, exit codes.

Exit codes: 0 done; 1 failed, nothing harmed; 2 wrong usage; 3 partly done. Results go to stdout (a table, or one JSON
document with ``--json``), progress and errors to stderr.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ctfoundry.errors import CTFoundryError, UsageError

app = typer.Typer(
    name="ctfoundry",
    help="Choose, prepare, pretrain, search, explain and measure: the whole life of a CT foundation model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

VERBS = (
    "quickstart",
    "cohorts",
    "datasets",
    "inspect",
    "convert",
    "prepare",
    "stores",
    "phantoms",
    "training",
    "adapt",
    "finetuning",
    "segmenting",
    "classifying",
    "exporting",
    "models",
    "embedding",
    "search",
    "explain",
    "explain_maps",
    "explain_saliency",
    "explain_stability",
    "evaluate",
    "evaluate_search",
    "serving",
    "bench",
    "doctor",
)
"""Modules of this package; importing one registers its verbs."""

PARTLY = 3

Device = Annotated[str, typer.Option(help="auto, cpu or cuda[:i]")]
Seed = Annotated[int, typer.Option(help="seed of every random decision")]


@dataclass
class State:
    """Options that every verb has."""

    json: bool = False
    quiet: bool = False
    debug: bool = False


state = State()

_COMMON = {
    "json": Annotated[bool, typer.Option("--json", help="one JSON document on stdout, nothing else")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="no progress")],
    "threads": Annotated[int, typer.Option("--threads", help="threads of torch and numpy (0: all cores)")],
    "debug": Annotated[bool, typer.Option("--debug", help="show tracebacks")],
}


def verb(group: typer.Typer = app, name: str | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a command that also takes the options every verb has."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            state.json, state.quiet, state.debug = kwargs.pop("json"), kwargs.pop("quiet"), kwargs.pop("debug")
            threads = kwargs.pop("threads")
            if threads:
                # before torch or BLAS is loaded, so that every pool sees it
                for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                    os.environ[variable] = str(threads)
            return function(*args, **kwargs)

        signature = inspect.signature(function, eval_str=True)
        extra = [
            inspect.Parameter(
                key, inspect.Parameter.KEYWORD_ONLY, default=0 if key == "threads" else False, annotation=kind
            )
            for key, kind in _COMMON.items()
        ]
        run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
        group.command(name)(run)
        return function

    return register


def say(text: str) -> None:
    """A line of progress on stderr."""
    if not state.quiet:
        print(text, file=sys.stderr, flush=True)


def show(data: Any, table: Callable[[], None] | None = None) -> None:
    """The result: the JSON document with ``--json``, else `table`."""
    if state.json or table is None:
        print(jsonlib.dumps(data, indent=1, allow_nan=False))
    else:
        table()


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """A readable table on stdout; numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [[_cell(value) for value in row] for row in rows]
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for i, header in enumerate(headers):
        numeric = bool(rows) and all(row[i].replace(".", "", 1).replace("-", "", 1).isdigit() for row in rows if row[i])
        table.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, markup=False).print(table)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(failed: Mapping[str, str], done: int, paths: Mapping[str, str] = {}) -> None:
    """Exit with 3 when some items failed and others did not, with 1 when all did; each is named on stderr, with its path."""
    for item, reason in failed.items():
        place = f" ({paths[item]})" if item in paths else ""
        print(f"failed: {item}{place}: {reason}", file=sys.stderr)
    if failed:
        raise typer.Exit(PARTLY if done else 1)


def main() -> None:
    """Entry point of ``ctfoundry``."""
    for module in VERBS:
        importlib.import_module(f"ctfoundry.cli.{module}")
    command = typer.main.get_command(app)
    try:
        code = command(standalone_mode=False)
    except CTFoundryError as error:
        code = 2 if isinstance(error, UsageError) else 1
        _report(error, f"error: {error}")
    except KeyboardInterrupt:
        code = 130
        print("stopped; run the same command again to continue", file=sys.stderr)
    except typer.Exit as leave:
        code = leave.exit_code
    except Exception as error:
        code = _click_error(error)
    sys.exit(code if isinstance(code, int) else 0)


def _click_error(error: Exception) -> int:
    show_usage = getattr(
        error, "show", None
    )  # click's exceptions; newer versions of typer bring their own copies of them
    if show_usage is not None:
        show_usage()
        return 2
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        _report(error, f"error: {place}{error.strerror}\n  -> mend that and run it again: what was finished stays")
        return 1
    _report(error, f"error: {type(error).__name__}: {error}\n  -> this is a defect of ctfoundry; --debug shows where")
    return 1


def _report(error: Exception, text: str) -> None:
    print(text, file=sys.stderr)
    if state.debug:
        import traceback

        traceback.print_exception(error)
