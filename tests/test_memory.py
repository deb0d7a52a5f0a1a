"""Values made once for many threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ctfoundry.memory import Memory


@pytest.mark.parametrize(("size", "makes"), [(100, 1), (101, 6)])
def test_a_value_is_never_made_twice_at_a_time(size, makes):
    memory, busy, made = Memory(100), threading.Lock(), []

    def make():
        assert busy.acquire(blocking=False), "another thread makes the same value"
        time.sleep(0.05)
        made.append(size)
        busy.release()
        return "value", size

    def ask(number):
        time.sleep(0.03 * number)  # some come while others wait, some when one has left
        return memory.once("key", make)

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == ["value"] * 6
    assert len(made) == makes
    assert not memory._making


def test_after_a_failure_the_next_caller_makes_it():
    memory = Memory(100)
    with pytest.raises(ZeroDivisionError):
        memory.once("key", lambda: (1 // 0, 1))
    assert memory.once("key", lambda: ("value", 1)) == "value"
    assert not memory._making
