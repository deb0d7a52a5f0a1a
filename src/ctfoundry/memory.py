"""Values kept by key in bounded memory, the least recently used dropped first; how much memory there is."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any


class Memory:
    """A table that holds at most `limit` bytes, as its users count them. All methods may be called by many threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, tuple[threading.Lock, int]] = {}  # and how many callers hold it or wait for it
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._kept

    def get(self, key: Hashable) -> Any:
        """The value, or None where there is none or it was dropped."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of `size` bytes; one that is larger than all the room is not kept."""
        with self._lock:
            if key in self._kept:
                self.used -= self._kept.pop(key)[1]
            if size > self.limit:
                return
            self._kept[key] = (value, size)
            self.used += size
            while self.used > self.limit:
                self.used -= self._kept.popitem(last=False)[1][1]

    def drop(self, wanted: Callable[[Any], bool]) -> None:
        """Forget all keys that `wanted` says."""
        with self._lock:
            for key in [k for k in self._kept if wanted(k)]:
                self.used -= self._kept.pop(key)[1]

    def once(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value, made by `make` (value, bytes) where it is missing; callers that come meanwhile wait for it.

        Of one key nothing is ever made twice at a time, also where making fails, or gives a value too large to be kept: then the
        next caller makes it again.
        """
        with self._lock:
            making, callers = self._making.get(key, (threading.Lock(), 0))
            self._making[key] = making, callers + 1
        try:
            with making:
                found = self.get(key)
                if found is None:
                    found, size = make()
                    self.put(key, found, size)
        finally:
            with self._lock:
                callers = self._making[key][1] - 1
                if callers:
                    self._making[key] = making, callers
                else:
                    del self._making[key]
        return found


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container around us, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return total
