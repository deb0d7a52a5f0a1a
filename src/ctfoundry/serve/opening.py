"""From an embeddings folder to a running server."""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ctfoundry.encoder import Encoder
from ctfoundry.errors import UsageError
from ctfoundry.memory import Memory
from ctfoundry.retrieval import parts
from ctfoundry.retrieval.cards import held_levels, how_they_differ, read_card, same_model
from ctfoundry.retrieval.embed import load_index
from ctfoundry.retrieval.search import how_to_look
from ctfoundry.retrieval.search_confidence import load as load_calibration
from ctfoundry.retrieval.search_maps import grid_looking
from ctfoundry.retrieval.sources import resolve
from ctfoundry.serve.library import Library, private_paths
from ctfoundry.serve.uploads import STANDARD, Limits
from ctfoundry.serve.work import Engine
from ctfoundry.settings import to_data

CONNECTIONS = 256
"""Most connections at one time; more are told to come later."""


def engine(
    folder: Path,
    encoder: Encoder,
    scans: Sequence[str] = (),
    *,
    levels: tuple[str, ...] | None = None,
    calibration: Path | None = None,
    memory: int = 4 << 30,
    limits: Limits = STANDARD,
    say: Callable[[str], None] = lambda _: None,
) -> Engine:
    """All that the app works with.

    Parameters
    ----------
    folder : embeddings that `encoder` made; raises UsageError when another one did, StoreError when it is none.
    scans : scans to show besides, or where scans of the index lie now, as `retrieval.sources.resolve` takes them.
    levels : of the maps that are searched in, finest first (default: as `retrieval.search`).
    calibration : file that turns evidence into confidence (`search_confidence.place_of`); one of another model is not used.
    memory : bytes for scans and maps.
    """
    card = read_card(folder)
    if not same_model(card["model"], to_data(encoder.card)):
        what, do = how_they_differ(card["model"], to_data(encoder.card))
        raise UsageError(what, where=folder, do=do)
    looking = how_to_look(encoder, method="dense", levels=levels)
    for name in looking.levels:
        encoder.level(name)
    held = held_levels(card)
    if held and set(looking.levels) <= set(held):
        looking = grid_looking(folder, encoder, looking.levels)
    # nothing embedded yet, or all taken out: the page says so, and files can be opened on it
    index = load_index(folder) if parts.catalogue(folder).scans() else None
    given = resolve(scans) if scans else None
    for id, reason in (given.failed if given else {}).items():
        say(f"left out: {id} ({given.paths[id] if given else ''}): {reason}")
    kept = Memory(memory)
    library = Library(
        dict.fromkeys(index.ids if index is not None else ()),
        private_paths(folder),
        given.scans if given else (),
        kept,
        uploads=limits.scans,
        upload_bytes=limits.scan_bytes,
    )
    made = Engine(
        encoder,
        library,
        index,
        kept,
        looking,
        folder,
        held,
        card["settings"]["vectors"][0],
        load_calibration(calibration, encoder.card, looking),
    )
    if index is not None:
        say(how_searched(made))
    return made


def how_searched(engine: Engine) -> str:
    """Whether a search needs passes of the network or uses maps of the disk, and how that is changed."""
    count = len(dict.fromkeys(engine.index.ids)) if engine.index else 0
    stored, looked, held = engine.stored, ", ".join(engine.looking.levels), ", ".join(engine.held)
    if engine.uses_stored and stored:
        others = (
            f" of {stored} scans; the other {count - stored} pass through the network once" if stored < count else ""
        )
        precision = engine.looking.precision
        return (
            f"searches use the stored maps ({looked})"
            + ("" if precision == "fp32" else f", made in {precision}")
            + others
        )
    a_pass = "the first search passes each scan through the network once"
    if not engine.held or engine.uses_stored:
        return f"{a_pass}; maps stored by `embed --grids` would save that"
    return (
        f"{a_pass}: the maps stored are of {held}, and it takes {looked}; --levels {held.replace(', ', ',')} searches in what is "
        "stored, with other answers; `embed --grids` into another folder stores all"
    )


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; raises UsageError where the address is taken or is none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror})", do="give another --port; 0 takes any"
        ) from error


def server(engine: Engine, listener: socket.socket, **options: Any) -> Any:
    """A uvicorn server for the app (`app.make_app` says the options). It keeps no access log: addresses hold the token, once."""
    import uvicorn

    from ctfoundry.serve.app import make_app

    config = uvicorn.Config(
        make_app(engine, port=int(listener.getsockname()[1]), **options),
        http="h11",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="error",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=32 << 10,
    )
    return uvicorn.Server(config)


def run(engine: Engine, listener: socket.socket, **options: Any) -> None:
    """Serve until the process is told to end."""
    server(engine, listener, **options).run(sockets=[listener])


def reporter(debug: bool) -> Callable[[BaseException], None]:
    """Tells the terminal of an error that nobody foresaw: where in the code, and its text only with `debug`, since that may name a file."""

    def report(error: BaseException) -> None:
        if debug:
            traceback.print_exception(error)
            return
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        print(f"error: {type(error).__name__} at {place}; --debug shows more", file=sys.stderr, flush=True)

    return report
