"""Samples in a fixed order, read ahead by threads.

Which scan stands at a position, and every draw about it, is a function of (seed, position): workers have no state, their
number changes nothing, and a run that continues at position p sees what an uninterrupted one saw there.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctfoundry import files
from ctfoundry.errors import StoreError
from ctfoundry.keys import Key
from ctfoundry.train.task import Source, Task

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64


@dataclass(frozen=True)
class Sample:
    """One planned and read sample."""

    id: str
    draws: Any
    reads: list[np.ndarray]


@dataclass(frozen=True)
class Failed:
    """A scan that could not be planned or read, and why."""

    id: str
    reason: str
    error: Exception


def collection_shares(collections: Sequence[str], balance: float) -> Float64[np.ndarray, "scans"] | None:
    """Share of the samples that each scan gets, so that a collection of n scans gets one in proportion to ``n ** (1 - balance)``.

    Balance 0: every scan as often as any other (None). 1: every collection as often as any other, which repeats the scans
    of small ones many times; 0.5 lies between (NLST, 86 % of the published corpus, keeps 28 % of the samples).
    """
    if balance == 0:
        return None
    _, places, sizes = np.unique(np.asarray(collections), return_inverse=True, return_counts=True)
    weight = (sizes ** -float(balance))[places]
    return np.asarray(weight / weight.sum())


class Order:
    """Which scan stands at which position: pass after pass of as many samples as scans, each in an order of its own.

    Without `shares` every pass holds every scan once. With them a scan stands ``count * share`` times in a pass, rounded
    down or up at random so that this is the mean (systematic sampling).
    """

    def __init__(self, key: Key, count: int, shares: Float64[np.ndarray, "scans"] | None = None) -> None:
        self.key, self.count, self.shares = key, count, shares
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(epoch, index of the scan) at a position."""
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._pass(epoch)
        return epoch, int(self._order[place])

    def _pass(self, epoch: int) -> Int64[np.ndarray, "scans"]:
        order = self.key("order", epoch).permutation(self.count)
        if self.shares is None:
            return order
        # A comb with teeth 1 apart over the scans' shares, laid end to end in a random order, then shuffled.
        ends = np.cumsum(self.shares[order]) * self.count
        teeth = np.arange(self.count) + float(self.key("order", epoch, "comb").uniform())
        drawn = order[np.minimum(np.searchsorted(ends, teeth, side="right"), self.count - 1)]
        return np.asarray(drawn[self.key("order", epoch, "shuffle").permutation(self.count)])

    def substitutes(self, epoch: int, id: str) -> Iterator[int]:
        """The scans that take the place of a failing one in this epoch, in the order in which they are tried."""
        yield from map(int, self.key("substitute", epoch, id).permutation(self.count))


class Quarantine:
    """Scans that failed, in a file, each with the position from which on it counts and its reason.

    A scan counts as failing from the position of its first failure, never before: so a run that continues, and knows more,
    still replaces the same samples. For the same reason processes that train together need not tell each other: each keeps
    its own file (``quarantine-RANK.jsonl`` beside that of rank 0) and a run that continues reads them all.
    """

    def __init__(self, path: Path, count: int, share: float, rank: int = 0) -> None:
        self.count, self.allowed = count, max(1, int(share * count))
        self.path = path.with_stem(f"{path.stem}-{rank}") if rank else path
        self.since: dict[str, int] = {}
        for found in sorted([*path.parent.glob(path.name), *path.parent.glob(f"{path.stem}-*{path.suffix}")]):
            for line in found.read_text().splitlines():
                with contextlib.suppress(ValueError):  # a line that a kill cut short: that scan will fail again
                    row = json.loads(line)
                    self.since[row["id"]] = min(int(row["position"]), self.since.get(row["id"], int(row["position"])))

    def holds(self, id: str, position: int) -> bool:
        """Whether a scan is left out at a position."""
        return id in self.since and self.since[id] <= position

    def add(self, failed: Failed, position: int) -> None:
        """Write a failing scan down; raises StoreError when too many fail."""
        if failed.id not in self.since:
            files.append_line(self.path, json.dumps({"id": failed.id, "position": position, "reason": failed.reason}))
        self.since[failed.id] = min(position, self.since.get(failed.id, position))
        if len(self.since) > self.allowed or len(self.since) >= self.count:
            raise StoreError(
                f"{len(self.since)} of {self.count} scans failed, the last is {failed.id}: {failed.reason}",
                where=self.path,
                do="run `ctfoundry store verify`, repair or remove these scans, and delete this file",
            ) from failed.error


class Samples:
    """Samples from position `start` on, in order, read ahead by `workers` threads (0: read when asked for).

    Parameters
    ----------
    start : a position at which a step begins.
    ahead : samples that are read ahead, at least one.
    balance : as in `collection_shares`.
    share : (rank, ranks, batch): of each `batch` positions from `start` on, one step, the own of `ranks` equal parts.

    `waited` sums the seconds for which the consumer had to wait.
    """

    def __init__(
        self,
        task: Task,
        source: Source,
        key: Key,
        quarantine: Quarantine,
        *,
        start: int,
        workers: int,
        ahead: int,
        balance: float = 0.0,
        share: tuple[int, int, int] = (0, 1, 1),
    ) -> None:
        self.task, self.source, self.key, self.quarantine = task, source, key, quarantine
        self.entries = source.entries
        shares = collection_shares([e.collection for e in self.entries], balance) if balance else None
        self.order = Order(key, len(self.entries), shares)
        self.start, self.share, self.taken, self.waited = start, share, 0, 0.0
        self._ahead = max(ahead, 1)
        self._queue: deque[tuple[int, int, Future[Sample | Failed]]] = deque()
        self._pool = ThreadPoolExecutor(workers, "ctfoundry-read") if workers else None

    def take(self, count: int) -> list[Sample]:
        """The next `count` samples."""
        began = time.perf_counter()
        found = [self._take() for _ in range(count)]
        self.waited += time.perf_counter() - began
        return found

    def _position(self, taken: int) -> int:
        rank, ranks, batch = self.share
        step, place = divmod(taken, batch // ranks)
        return self.start + step * batch + rank * (batch // ranks) + place

    def _take(self) -> Sample:
        position = self._position(self.taken)
        if self._pool is None:
            epoch, index = self.order[position]
            result = self._make(epoch, index)
        else:
            self._fill(self._pool)
            epoch, index, future = self._queue.popleft()
            result = future.result()
        self.taken += 1
        if isinstance(result, Failed):
            self.quarantine.add(result, position)
        elif not self.quarantine.holds(result.id, position):
            return result
        return self._substitute(position, epoch, self.entries[index].id)

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        while len(self._queue) < self._ahead:
            epoch, index = self.order[self._position(self.taken + len(self._queue))]
            self._queue.append((epoch, index, pool.submit(self._make, epoch, index)))

    def _substitute(self, position: int, epoch: int, id: str) -> Sample:
        for index in self.order.substitutes(epoch, id):
            if self.quarantine.holds(self.entries[index].id, position):
                continue
            result = self._make(epoch, index)
            if isinstance(result, Sample):
                return result
            self.quarantine.add(result, position)
        raise StoreError(f"no scan is left to take the place of {id}", where=self.quarantine.path)

    def _make(self, epoch: int, index: int) -> Sample | Failed:
        entry = self.entries[index]
        try:
            draws = self.task.plan(self.key("sample", epoch, entry.id), entry)
            return Sample(entry.id, draws, [self.source.read(entry.id, box) for box in draws.boxes])
        except Exception as error:  # one bad scan must not end a run of weeks; too many of them do
            return Failed(entry.id, f"{type(error).__name__}: {error}".replace("\n", " "), error)

    def close(self) -> None:
        """Stop the threads; reads that have not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
