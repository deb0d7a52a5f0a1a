"""The addresses of the app, for the page and for scripts. Answers are JSON, or plain bytes for voxels and overlays.

``GET  /api/state``                      the model, limits, what is being done
``GET  /api/scans?offset=&count=``       the list of scans
``GET  /api/scans/ID``                   one scan: shape, affine, window
``GET  /api/scans/ID/thumb``             PNG
``GET  /api/scans/ID/slices?plane=&first=&count=&step=``   int16, little-endian
``GET  /api/scans/ID/colours``           RGBA on the coarse grid, once its job is done
``POST /api/scans/ID/similar?k=``        neighbours, or a job that finds them
``POST /api/jobs``                       ``{"kind": "search", "scan", "point", "targets"}`` or ``{"kind": "colours", "scan"}``
``GET  /api/jobs/JOB/events``            server-sent events; ``DELETE /api/jobs/JOB`` cancels
``GET  /api/jobs/JOB/heat/ID``           similarity over a target, 8 bit
``POST /api/uploads``                    the file as the body; ``DELETE /api/scans/ID`` forgets it
``POST /api/uploads/ID``                 ``{"choice": K}`` of what an archive with several scans offered; ``DELETE`` removes it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ctfoundry.errors import CTFoundryError, TooLargeError, UsageError
from ctfoundry.serve import jobs, picture, uploads
from ctfoundry.serve.guard import LOOPBACK, Guard
from ctfoundry.serve.jobs import BusyError, Desk, Job
from ctfoundry.serve.library import FullError, GoneError, UnknownError
from ctfoundry.serve.offers import Offer
from ctfoundry.serve.picture import Shown
from ctfoundry.serve.reader import Reader
from ctfoundry.serve.uploads import STANDARD, DiskError, Limits, SlowError
from ctfoundry.serve.work import Engine
from ctfoundry.settings import from_data

T = TypeVar("T")

JSON_BYTES = 1 << 20
"""Most bytes of a request that is no upload: a search among ten thousand scans names each."""
PAGE = 200
"""Most scans in one answer of the list."""
TARGETS = 10_000

STATUS: tuple[tuple[type[CTFoundryError], int], ...] = (
    (UnknownError, 404),
    (GoneError, 410),
    (FullError, 409),
    (BusyError, 503),
    (SlowError, 408),
    (DiskError, 507),
    (TooLargeError, 413),
)
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
}


@dataclass(frozen=True)
class Ask:
    """What ``POST /api/jobs`` takes; `targets` None: all other scans that are there."""

    kind: Literal["search", "colours"]
    scan: str
    point: tuple[float, float, float] | None = None
    targets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Chosen:
    """What ``POST /api/uploads/ID`` takes: the number of a scan that was offered, from 0."""

    choice: int


def page_files() -> dict[str, bytes]:
    """The page's own files by name, read once: no request ever names a file of the disk."""
    folder = resources.files("ctfoundry.serve") / "web"
    return {item.name: item.read_bytes() for item in folder.iterdir() if Path(item.name).suffix in TYPES}


def make_app(
    engine: Engine,
    *,
    token: str,
    port: int = 0,
    names: tuple[str, ...] = LOOPBACK,
    limits: Limits = STANDARD,
    reader: Reader | None = None,
    report: Callable[[BaseException], None] = lambda _: None,
) -> Guard:
    """The application for any ASGI server.

    Parameters
    ----------
    token : opens the app; in the address once, in a cookie from then on.
    port : only tells the cookies of several servers apart.
    names : host names under which the server is reached; requests under other names are refused.
    reader : of files that are sent; closed with the app.
    report : told of errors that nobody foresaw; the page hears only that there was one.
    """
    files = page_files()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan(engine))
    desk, pool, upload_pool = Desk(report), ThreadPoolExecutor(4, "ctfoundry-read"), ThreadPoolExecutor(1)
    reader = reader or Reader()
    waiting = uploads.Waiting(limits.choose_s)
    app.state.closing = (
        waiting.close,
        desk.close,
        reader.close,
        partial(pool.shutdown, False),
        partial(upload_pool.shutdown, False),
    )
    _answer_errors(app)
    library = engine.library

    async def apart(function: Callable[..., T], *args: Any) -> T:
        """A blocking call in another thread, so that the server goes on answering."""
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

    def handed(job: Job) -> dict[str, str]:
        _watch(desk, job)
        return {"job": job.id}

    def job_of(id: str) -> Job:
        job = desk.find(id)
        if job is None:
            raise UnknownError("there is no such search", do="search again")
        return job

    @app.get("/")
    async def page() -> Response:
        return Response(files["index.html"], media_type=TYPES[".html"])

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in files or name.endswith(".html"):
            raise UnknownError("there is no such file")
        return Response(files[name], media_type=TYPES[Path(name).suffix])

    @app.get("/api/state")
    async def state() -> dict[str, Any]:
        card = engine.encoder.card
        return {
            "model": {"name": card.name, "weights": card.weights, "levels": list(engine.looking.levels)},
            "scans": len(library.ids),
            "maps": {"used": engine.uses_stored, "stored": engine.stored, "levels": list(engine.held)},
            "upload_bytes": limits.file_bytes,
            "work": desk.load(),
        }

    @app.get("/api/scans")
    async def scans(offset: int = Query(0, ge=0), count: int = Query(60, ge=1, le=PAGE)) -> dict[str, Any]:
        ids = library.ids
        chosen = await apart(lambda: [library.describe(id) for id in ids[offset : offset + count]])
        return {"total": len(ids), "scans": chosen}

    @app.get("/api/scans/{id}")
    async def scan(id: str) -> dict[str, Any]:
        found = await apart(library.scan, id)
        return library.describe(id) | found.facts()

    @app.get("/api/scans/{id}/thumb")
    async def thumb(id: str) -> Response:
        return Response(await apart(library.thumb, id), media_type="image/png")

    @app.get("/api/scans/{id}/slices")
    async def slices(id: str, plane: str, first: int, count: int = 1, step: int = 1) -> Response:
        data = await apart(lambda: picture.slices(library.scan(id), plane, first, count, step))
        return Response(data, media_type="application/octet-stream")

    @app.get("/api/scans/{id}/colours")
    async def colours(id: str) -> Response:
        return _cells(await apart(engine.colours_of, id))

    @app.post("/api/scans/{id}/similar")
    async def similar(id: str, k: int = Query(8, ge=1, le=100)) -> dict[str, Any]:
        if id not in library.ids:
            raise UnknownError("there is no scan of this id", do="go back to the list of scans")
        found = await apart(engine.neighbours, id, k)
        return handed(desk.submit("similar", engine.similar(id, k))) if found is None else {"neighbours": found}

    @app.delete("/api/scans/{id}")
    async def forget(id: str) -> dict[str, str]:
        library.remove(id)
        return {"removed": id}

    @app.post("/api/jobs")
    async def start(request: Request) -> dict[str, str]:
        ask = from_data(Ask, await _json_body(request), "the request")
        known = set(library.ids)
        if ask.scan not in known:
            raise UnknownError("there is no scan of this id", do="go back to the list of scans")
        if ask.kind == "colours":
            return handed(desk.submit("colours", engine.colours(ask.scan)))
        if ask.point is None or not all(math.isfinite(v) and abs(v) < 1e6 for v in ask.point):
            raise UsageError("a search needs a point", do="x, y, z in world millimetres, RAS+")
        wanted = ask.targets
        if wanted is None:
            wanted = tuple(await apart(lambda: [id for id in library.ids if library.available(id)]))
        if len(wanted) > TARGETS or not known.issuperset(wanted):
            raise UnknownError("a target is no scan of this server, or there are too many", do="load the page again")
        return handed(desk.submit("search", engine.search(ask.scan, ask.point, list(dict.fromkeys(wanted)))))

    @app.get("/api/jobs/{id}/events")
    async def events(id: str, request: Request) -> StreamingResponse:
        job = job_of(id)
        last = request.headers.get("last-event-id", "")
        first = int(last) + 1 if last.isdecimal() and len(last) < 9 else 0
        return StreamingResponse(_stream(desk, job, first), media_type="text/event-stream")

    @app.delete("/api/jobs/{id}")
    async def cancel(id: str) -> dict[str, str]:
        desk.cancel(job_of(id))
        return {"cancelled": id}

    @app.get("/api/jobs/{job}/heat/{id}")
    async def heat(job: str, id: str) -> Response:
        return _cells(await apart(engine.heat, job, id))

    arriving: set[object] = set()

    async def read(path: Path, name: str | None = None) -> Shown | Offer:
        return await asyncio.get_running_loop().run_in_executor(
            upload_pool, reader.read, path, limits.voxel_bytes, limits.read_s, name
        )

    def taken(found: Shown | Offer) -> dict[str, Any]:
        assert isinstance(found, Shown)
        return library.describe(library.add(found))

    @app.post("/api/uploads", response_model=None)
    async def upload(request: Request) -> dict[str, Any] | JSONResponse:
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limits.file_bytes:
            raise uploads.too_large(limits.file_bytes)
        if not library.room():
            raise FullError("there is no room for another upload", do="remove one that is not needed")
        with contextlib.ExitStack() as stack:
            stack.enter_context(uploads.slot(arriving, limits.at_once))
            path = Path(stack.enter_context(uploads.private_folder())) / "000000"
            await uploads.receive(request.stream(), path, limits, apart)
            found = await read(path)
            if isinstance(found, Offer):
                id = waiting.hold(path, found, stack.pop_all().close)
                offer = {"id": id, "seconds": limits.choose_s, "more": found.more, "broken": found.broken}
                return JSONResponse({"choose": offer | {"scans": [c.facts() for c in found.choices]}}, 202)
        return taken(found)

    @app.post("/api/uploads/{id}")
    async def choose(id: str, request: Request) -> dict[str, Any]:
        held, choice = waiting.take(id, from_data(Chosen, await _json_body(request), "the request").choice)
        with contextlib.ExitStack() as stack:
            stack.callback(held.release)
            found = await read(held.path, choice.name)
        return taken(found)

    @app.delete("/api/uploads/{id}")
    async def drop(id: str) -> dict[str, str]:
        waiting.drop(id)
        return {"removed": id}

    return Guard(
        app,
        token=token,
        cookie=f"ctfoundry-{port}",
        names=names,
        public=[f"/static/{name}" for name in files if not name.endswith(".html")],
        refusal=files["refused.html"],
        report=report,
    )


def _lifespan(engine: Engine) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for close in (*app.state.closing, engine.library.close):
                close()

    return life


def _watch(desk: Desk, job: Job) -> None:
    """Cancel a job that nobody listens to any more."""

    def look() -> None:
        if not job.over and not job.heard:
            desk.cancel(job)

    asyncio.get_running_loop().call_later(jobs.LONELY_S, look)


async def _stream(desk: Desk, job: Job, first: int) -> AsyncIterator[str]:
    try:
        async with contextlib.aclosing(job.listen(first)) as heard:  # type: ignore[type-var]
            async for item in heard:
                yield ": \n\n" if item is None else f"id: {item[0]}\ndata: {json.dumps(item[1])}\n\n"
    finally:
        _watch(desk, job)


def _cells(found: tuple[tuple[int, int, int], bytes] | None) -> Response:
    if found is None:
        raise UnknownError("this map is not kept any more", do="ask for it again")
    shape, data = found
    return Response(data, media_type="application/octet-stream", headers={"x-shape": ",".join(map(str, shape))})


async def _json_body(request: Request) -> Any:
    """The JSON of a request; raises TooLargeError and UsageError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UsageError("the request is no JSON", do="send content-type: application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > JSON_BYTES:
            raise TooLargeError("the request is too large", do="name fewer targets")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise UsageError("the request is no JSON", do="send one JSON document") from None


def _answer_errors(app: FastAPI) -> None:
    """Every error as JSON: what is wrong and what to do; never where in the code."""

    def answer(status: int, what: str, do: str = "") -> JSONResponse:
        # a body that was not read to its end cannot be followed by another request
        return JSONResponse({"error": {"what": what, "do": do}}, status, {"connection": "close"})

    @app.exception_handler(CTFoundryError)
    async def ours(_: Request, error: CTFoundryError) -> JSONResponse:
        return answer(next((code for kind, code in STATUS if isinstance(error, kind)), 400), error.what, error.do or "")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        places = ", ".join(str(e["loc"][-1]) for e in error.errors())
        return answer(422, f"missing or out of range: {places}", "see docs/serve.md")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        what = {404: "there is nothing at this address", 405: "this address does not take that method"}
        return answer(error.status_code, what.get(error.status_code, "the request is not understood"))
