"""Jobs on a Ray cluster, or on a Ray of this machine's own. Every node needs this program and sees sources and store at the same paths."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.ingest.workers import ATTEMPTS, J, Say, Work, died, too_large

NODE_ATTEMPTS = 4
"""A job that was on a node that went away is tried this often: that is not its fault."""
TASK = "work"
"""What Ray calls a process that does a job: ``ray::work``."""
AHEAD = 2
"""Jobs that are handed over for each processor of the cluster, so that none waits for the next one."""
_OFFLINE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Cluster:
    """Ray as an executor.

    Parameters
    ----------
    address : of a cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``); None starts a Ray of this machine's own.
    workers : jobs at a time; by default as many as the cluster has processors.

    A job asks Ray for the memory that it declares; one that no node has is left out.
    """

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise UsageError("at least one worker")
        self.address, self.workers = address, workers

    def __enter__(self) -> Cluster:
        for name, value in _OFFLINE.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise UsageError("--executor ray needs Ray", do="pip install 'ctfoundry[ray]'") from error
        own: dict[str, Any] = {"include_dashboard": False, "num_cpus": self.workers} if self.address is None else {}
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", configure_logging=False, **own)
        except (ConnectionError, ValueError, RuntimeError, ImportError) as error:
            raise CTFoundryError(
                f"no Ray cluster answers ({error})",
                where=self.address,
                do="start one with `ray start --head`, or leave out --address",
            ) from error
        self._ray = ray
        return self

    def run(self, jobs: Iterable[J], say: Say) -> Iterator[tuple[J, Any]]:
        """Every job with its result, in the order of their ends."""
        ray, source, more = self._ray, iter(jobs), True
        task = ray.remote(max_retries=0, num_cpus=1)(_work)
        running: dict[Any, tuple[J, int]] = {}
        again: list[tuple[J, int]] = []
        while True:
            room = self.workers or AHEAD * max(int(ray.cluster_resources().get("CPU", 1)), 1)
            while len(running) < room and (again or more):
                if again:
                    job, attempt = again.pop()
                else:
                    following = next(source, None)
                    if following is None:
                        more = False
                        break
                    job, attempt = following, 1
                limit = max(
                    (int(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]), default=0
                )
                if job.memory > limit:
                    yield job, too_large(job, limit)
                else:
                    running[task.options(memory=job.memory, name=TASK).remote(job)] = job, attempt
            if not running:
                return
            for ref in ray.wait(list(running), num_returns=1, timeout=5.0)[0]:
                job, attempt = running.pop(ref)
                try:
                    result = ray.get(ref)
                except ray.exceptions.RayError as error:
                    how = type(error).__name__
                    lost = isinstance(error, ray.exceptions.NodeDiedError | ray.exceptions.ObjectLostError)
                    if attempt < (NODE_ATTEMPTS if lost else ATTEMPTS):
                        say(f"{job.place}: its worker died: {how}; tried once more")
                        again.append((job, attempt + 1))
                        continue
                    say(f"{job.place}: its worker died again: {how}")
                    result = died(job, how)
                yield job, result

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "ray" in sys.modules and self._ray.is_initialized():
            self._ray.shutdown()


def _work(job: Work) -> Any:
    return job.work()
