"""Many jobs on many processes, behind one small interface: jobs in, (job, result) out, in whatever order they come.

`Inline` works in this process, `Local` in processes of this machine, `ray.Cluster` on those of a Ray cluster. A worker that dies
(killed, out of memory, a crash in a library) takes no other job with it: its job is tried once more in a fresh one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ctfoundry.errors import UsageError
from ctfoundry.ingest import task
from ctfoundry.ingest.rules import LeftOut
from ctfoundry.memory import machine_memory
from ctfoundry.report.text import rate

ATTEMPTS = 2
"""So often a job is given to a worker that dies."""
SHARE_OF_MEMORY = 0.8
"""All workers together take no more of the machine's memory than this."""
SLACK, LEAST_MEMORY = 2, 1 << 30
"""A worker may take so many times what its job declares, and at least a gibibyte."""
STOP_S = 5.0
"""Seconds that a worker has to end before it is killed."""

Say = Callable[[str], None]


def pace(done: int, total: int, seconds: float) -> str:
    """How fast it goes and how long it takes still, for a line of progress.

    >>> pace(920, 1000, 2.0), pace(3, 10, 60.0)
    ('460 a second, 0 s left', '0.05 a second, 140 s left')
    """
    speed = done / max(seconds, 1e-9)
    return f"{rate(speed)} a second, {(total - done) / speed:.0f} s left"


class Work(Protocol):
    """A job: it can be pickled, and a worker of whatever kind calls `work`."""

    @property
    def memory(self) -> int:
        """Bytes that it may take; 0 where that is not known."""
        ...

    @property
    def place(self) -> str:
        """What it is called on stderr; may be private."""
        ...

    def work(self) -> Any:
        """Do it; the result can be pickled."""
        ...

    def lost(self, out: LeftOut) -> Any:
        """Its result where it is not done."""
        ...


J = TypeVar("J", bound=Work)


class Executor(Protocol):
    """Where jobs are done."""

    def run(self, jobs: Iterable[J], say: Say) -> Iterator[tuple[J, Any]]:
        """Every job with its result, in the order of their ends; jobs are taken from the iterable as there is room."""
        ...

    def __enter__(self) -> Executor: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Inline:
    """One job after the other in this process: no start-up, and no protection from crashes."""

    def run(self, jobs: Iterable[J], say: Say) -> Iterator[tuple[J, Any]]:
        """Every job with its result, in order."""
        task.forget()
        limit = int(machine_memory() * SHARE_OF_MEMORY)
        for job in jobs:
            yield job, job.work() if job.memory <= limit else too_large(job, limit)

    def __enter__(self) -> Inline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class _Death(str):
    """How a worker died."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: Any = None
    attempt: int = 1


class Local:
    """Processes of this machine, each doing one job at a time.

    They are started when there is work (spawned, so that no library inherits another's threads) and end when this process does,
    however it ends. A job starts when what it declares fits beside those that run, so what can be prepared does not depend on
    the number of workers; a worker that takes more than that gets a MemoryError instead of driving the machine out of memory.

    Parameters
    ----------
    workers : how many; by default one for each processor.
    memory : bytes for all of them; by default `SHARE_OF_MEMORY` of the machine's (or the container's).
    """

    def __init__(self, workers: int | None = None, memory: int | None = None) -> None:
        self.workers = workers if workers is not None else len(os.sched_getaffinity(0))
        if self.workers < 1 or (memory is not None and memory < 1):
            raise UsageError("at least one worker, and memory for it")
        self.memory = memory or int(machine_memory() * SHARE_OF_MEMORY)
        self._pool: list[_Worker] = []

    def run(self, jobs: Iterable[J], say: Say) -> Iterator[tuple[J, Any]]:
        """Every job with its result, in the order of their ends."""
        source, again = iter(jobs), deque[J]()
        following = next(source, None)
        while True:
            while again and self._free(again[0]):
                self._give(again.popleft(), ATTEMPTS, fresh=True)
            while following is not None and not again and self._free(following):
                if following.memory > self.memory:
                    yield following, too_large(following, self.memory)
                else:
                    self._give(following, 1)
                following = next(source, None)
            busy = [w for w in self._pool if w.job is not None]
            if not busy:
                return
            for pipe in wait([w.pipe for w in busy]):
                worker = next(w for w in busy if w.pipe is pipe)
                job, attempt, pid = worker.job, worker.attempt, worker.process.pid
                result = self._result(worker)
                if not isinstance(result, _Death):
                    worker.job = None
                    yield job, result
                elif attempt < ATTEMPTS:
                    say(f"{job.place}: its worker (process {pid}) died: {result}; tried once more")
                    again.append(job)
                else:
                    say(f"{job.place}: its worker (process {pid}) died again: {result}")
                    yield job, died(job, result)

    def _free(self, job: Work) -> bool:
        """Whether there is a worker and memory for a job; one that needs more than all may have is told so by its own turn."""
        running = [w.job for w in self._pool if w.job is not None]
        taken = sum(j.memory for j in running)
        return not running or (len(running) < self.workers and taken + job.memory <= self.memory)

    def _give(self, job: Work, attempt: int, *, fresh: bool = False) -> None:
        idle = [w for w in self._pool if w.job is None]
        if fresh and idle and len(self._pool) >= self.workers:
            self._end(idle.pop())
        worker = self._start() if fresh or not idle else idle[0]
        worker.job, worker.attempt = job, attempt
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died meanwhile, which its pipe tells
            worker.pipe.send(job)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        quiet = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        try:
            os.environ.update(
                dict.fromkeys(quiet, "1")
            )  # a worker is one thread; the pools read this when they are loaded
            process = context.Process(target=_serve, args=(theirs, self.memory // self.workers), daemon=True)
            process.start()
        finally:
            for name, value in quiet.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        theirs.close()
        worker = _Worker(process, ours)
        self._pool.append(worker)
        return worker

    def _result(self, worker: _Worker) -> Any:
        """What a worker answers, or how it died."""
        try:
            return worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(STOP_S)
            code = worker.process.exitcode
            self._end(worker)
            if code is not None and code < 0:
                return _Death(signal.Signals(-code).name)
            return _Death("no answer" if code is None else f"exit code {code}")

    def _end(self, worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.join(0 if worker.job is not None else STOP_S)
        if worker.process.is_alive():
            worker.process.terminate()
            worker.process.join(STOP_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.process.close()
        self._pool.remove(worker)

    def __enter__(self) -> Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._pool:
            worker.pipe.close()  # an idle one leaves by itself
            if worker.job is not None:
                worker.process.terminate()
        for worker in list(self._pool):
            self._end(worker)


def too_large(job: Work, limit: int) -> Any:
    """The result of a job that is not started."""
    reason = f"may take {job.memory / 2**30:.3g} GiB of memory, there are {limit / 2**30:.3g}"
    return job.lost(LeftOut("memory", reason))


def died(job: Work, how: str) -> Any:
    """The result of a job whose workers died; no process is named, so the same death gives the same words."""
    return job.lost(LeftOut("worker-died", f"its worker died {ATTEMPTS} times ({how})"))


def _serve(pipe: Connection, share: int) -> None:
    """A worker's life: jobs until the pipe closes, which it also does when the process at its other end is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the one that started us decides
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        limit_memory(max(SLACK * job.memory, LEAST_MEMORY) if job.memory else share)
        result = job.work()
        try:
            pipe.send(result)
        except (BrokenPipeError, ConnectionResetError):
            return


def limit_memory(memory: int) -> None:
    """Allocations beyond `memory` more than now raise MemoryError here, before the machine runs out of it (Linux)."""
    try:
        import resource

        status = Path("/proc/self/status").read_text()
        now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")) << 10
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (now + memory, hard))
    except (ImportError, OSError, StopIteration, ValueError) as error:
        warnings.warn(f"workers have no limit of memory here ({error})", stacklevel=2)
