"""Work for the network: one job at a time in one thread, the others wait their turn in the order they came.

A job's work is a generator of events (plain data). Between two events it may be cancelled. Events are kept with the job, so that
a page that lost its connection reads them again.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ctfoundry.errors import CTFoundryError

Event = dict[str, Any]
Work = Callable[["Job"], Iterator[Event]]

WAITING = 64
"""Most jobs that wait; more are refused."""
KEPT = 64
"""Jobs whose events are kept once they are over."""
LONELY_S = 20.0
"""A job that nobody listens to for this long is cancelled: its page was closed."""
BEAT_S = 10.0
"""Something is sent at least this often, so that a lost connection is noticed."""


class BusyError(CTFoundryError):
    """The server has as much to do as it takes on."""


class Job:
    """One piece of work and what became of it so far."""

    def __init__(self, kind: str, work: Work) -> None:
        self.id = secrets.token_hex(8)
        self.kind = kind
        self.work = work
        self.events: list[Event] = []
        self.over = False
        self.cancelled = False
        self._wake: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._lock = threading.Lock()

    def emit(self, event: Event, *, last: bool = False) -> None:
        """Add an event and wake those who listen."""
        with self._lock:
            if self.over:
                return
            self.events.append(event)
            self.over = last
            for loop, wake in self._wake:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(wake.set)

    @property
    def heard(self) -> bool:
        """Whether somebody listens."""
        return bool(self._wake)

    async def listen(self, start: int = 0) -> AsyncIterator[tuple[int, Event] | None]:
        """Events from number `start` on as they come, with their numbers; None when nothing came for a while."""
        loop, wake = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._wake.add((loop, wake))
        try:
            at = start
            while True:
                wake.clear()
                over = self.over
                while at < len(self.events):
                    yield at, self.events[at]
                    at += 1
                if over:
                    return
                try:
                    await asyncio.wait_for(wake.wait(), BEAT_S)
                except TimeoutError:
                    yield None
        finally:
            with self._lock:
                self._wake.discard((loop, wake))


class Desk:
    """The thread that works, and the queue before it."""

    def __init__(self, report: Callable[[BaseException], None]) -> None:
        self._report = report
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._change = threading.Condition()
        self._running: Job | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="ctfoundry-network", daemon=True)
        self._thread.start()

    def submit(self, kind: str, work: Work) -> Job:
        """Put a job into the queue; raises BusyError when it is full."""
        with self._change:
            if len(self._waiting) >= WAITING:
                raise BusyError(f"{WAITING} searches are waiting already", do="try again in a minute")
            job = Job(kind, work)
            self._jobs[job.id] = job
            for old in [j for j in self._jobs.values() if j.over][: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[old.id]
            self._waiting.append(job)
            self._tell_waiting()
            self._change.notify()
        return job

    def find(self, id: str) -> Job | None:
        """The job of this id, where it is still known."""
        return self._jobs.get(id)

    def cancel(self, job: Job) -> None:
        """Stop a job: at once when it waits, after its present step when it runs."""
        with self._change:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.emit({"type": "cancelled"}, last=True)
                self._tell_waiting()

    def load(self) -> dict[str, Any]:
        """What is being done, and how many wait."""
        with self._change:
            return {"running": self._running.kind if self._running else None, "waiting": len(self._waiting)}

    def close(self) -> None:
        """Stop working after the present step."""
        with self._change:
            self._closed = True
            for job in self._waiting:
                job.emit({"type": "cancelled"}, last=True)
            self._waiting.clear()
            if self._running:
                self._running.cancelled = True
            self._change.notify()

    def _tell_waiting(self) -> None:
        for place, job in enumerate(self._waiting):
            job.emit({"type": "waiting", "ahead": place + (self._running is not None)})

    def _loop(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                self._tell_waiting()
            self._do(job)
            with self._change:
                self._running = None

    def _do(self, job: Job) -> None:
        try:
            job.emit({"type": "started"})
            for event in job.work(job):
                if job.cancelled:
                    break
                job.emit(event)
            job.emit({"type": "cancelled" if job.cancelled else "done"}, last=True)
        except CTFoundryError as error:
            job.emit({"type": "error", "what": error.what, "do": error.do or ""}, last=True)
        except Exception as error:  # the thread must live on, whatever one scan does to the network
            self._report(error)
            job.emit({"type": "error", "what": "the server failed at this", "do": "see its terminal"}, last=True)
