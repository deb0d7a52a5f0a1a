"""Many scans through one model: reading the next, computing this one and writing the last at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Made = TypeVar("Made")

POLL_SECONDS = 0.1
"""How soon a waiting thread notices that the work was given up."""


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What became of one item: written, or the error and the stage that raised it."""

    item: Item
    error: Exception | None = None
    stage: Literal["read", "work", "write"] | None = None


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    work: Callable[[Read], Made],
    write: Callable[[Item, Made], None],
    *,
    ahead: int = 1,
    behind: int = 1,
) -> Iterator[Outcome[Item]]:
    """Each item read, worked on and written, in order; one outcome each.

    `read` runs in a thread that is at most `ahead` finished items ahead, `write` in one that is at most `behind` items behind, `work` in the
    caller's, so that at most ``ahead + behind + 3`` items are held whatever is slowest. An error ends its own item alone. Leaving the
    loop early ends both threads after what they are doing.
    """
    stop = threading.Event()
    to_work: queue.Queue[Any] = queue.Queue(ahead)
    to_write: queue.Queue[Any] = queue.Queue(behind)
    outcomes: queue.Queue[Outcome[Item]] = queue.Queue()
    broken: list[BaseException] = []

    def reader() -> None:
        try:
            for item in items:
                try:
                    _put(to_work, (item, read(item), None), stop)
                except Exception as error:
                    _put(to_work, (item, None, error), stop)
                if stop.is_set():
                    return
        except BaseException as error:  # the list of items itself broke: no item's error, so the caller's
            broken.append(error)
        finally:
            _put(to_work, None, stop)

    def writer() -> None:
        while (job := _get(to_write, stop)) is not None:
            item, made = job
            try:
                write(item, made)
                outcomes.put(Outcome(item))
            except Exception as error:
                outcomes.put(Outcome(item, error, "write"))
            del job, item, made  # nothing is held while waiting for the next

    threads = [threading.Thread(target=run, daemon=True, name=run.__name__) for run in (reader, writer)]
    for thread in threads:
        thread.start()
    try:
        while (job := _get(to_work, stop)) is not None:
            item, given, error = job
            if error is not None:
                outcomes.put(Outcome(item, error, "read"))
            else:
                try:
                    made = work(given)
                except Exception as failed:
                    outcomes.put(Outcome(item, failed, "work"))
                else:
                    _put(to_write, (item, made), stop)
                    del made
            del job, given
            while not outcomes.empty():
                yield outcomes.get()
        _put(to_write, None, stop)
        threads[1].join()
        while not outcomes.empty():
            yield outcomes.get()
        if broken:
            raise broken[0]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _put(place: queue.Queue[Any], value: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return place.put(value, timeout=POLL_SECONDS)
        except queue.Full:
            continue
    return None


def _get(place: queue.Queue[Any], stop: threading.Event) -> Any:
    while not stop.is_set():
        try:
            return place.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
    return None
