"""``ctfoundry serve``: the web app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctfoundry.cli.common import Device, Seed, say, show, state, verb
from ctfoundry.cli.search import Model, Patch, Weights, patch_size


@verb()
def serve(
    index: Annotated[Path, typer.Option(help="folder that `embed` wrote")],
    model: Model,
    weights: Weights = None,
    scans: Annotated[
        list[str] | None, typer.Option(help="scans to show besides, or where those of the index lie now; repeatable")
    ] = None,
    port: Annotated[int, typer.Option(help="0: any that is free", min=0, max=65535)] = 8765,
    token: Annotated[
        str | None, typer.Option(help="secret that opens the app (default: drawn anew)", envvar="CTFOUNDRY_TOKEN")
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; other than the default, the network can reach it")
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option(help="a host name by which browsers reach it, with --host; repeatable")
    ] = None,
    levels: Annotated[
        str | None,
        typer.Option(
            help="levels to search in, finest first, such as stage3,stage4; maps of embed --grids are used that hold them"
        ),
    ] = None,
    patch: Patch = None,
    memory: Annotated[int, typer.Option(help="MiB for scans and maps that are kept", min=64)] = 4096,
    upload_mib: Annotated[int, typer.Option(help="most MiB of a file sent from the page", min=1)] = 1024,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Show the scans of an index in the browser: views, the same place in other scans, similar scans, colours."""
    import contextlib
    import secrets

    from ctfoundry.errors import UsageError

    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "the app needs fastapi and uvicorn, which are not installed", do="pip install 'ctfoundry[serve]'"
        ) from error
    from ctfoundry.retrieval.embed import ModelOf
    from ctfoundry.retrieval.search_confidence import place_of
    from ctfoundry.serve import guard, opening
    from ctfoundry.serve.uploads import Limits

    if token is not None and len(token) < guard.TOKEN_LENGTH:
        raise UsageError(
            f"a token has at least {guard.TOKEN_LENGTH} characters", do="leave --token out, and one is drawn"
        )
    token = token or secrets.token_urlsafe(24)
    encoder = ModelOf(model, weights, device, seed, patch_size(patch)).load()
    wanted = tuple(levels.split(",")) if levels else None
    engine = opening.engine(
        index, encoder, scans or [], levels=wanted, calibration=place_of(model), memory=memory << 20, say=say
    )
    if host not in guard.LOOPBACK:
        say(
            f"warning: others can reach this server at {host}, and what it sends is not encrypted;"
            " 'ssh -L' to a server on 127.0.0.1 is the safer way"
        )
    with opening.listening(host, port) as socket, contextlib.suppress(KeyboardInterrupt):
        bound = int(socket.getsockname()[1])
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound}/?token={token}"
        show({"url": address, "port": bound, "scans": len(engine.library.ids)}, lambda: print(address, flush=True))
        say("open this address; Ctrl-C ends the server")
        opening.run(
            engine,
            socket,
            token=token,
            names=(*guard.LOOPBACK, host, *(name or ())),
            limits=Limits(file_bytes=upload_mib << 20),
            report=opening.reporter(state.debug),
        )
