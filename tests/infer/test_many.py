"""Reading, network and writing at the same time; one item's error is its own."""

from __future__ import annotations

import threading
import time

import pytest

from ctfoundry.infer.many import overlapped


def test_every_item_in_order_with_its_own_error():
    written: list[int] = []

    def read(n: int) -> int:
        if n == 1:
            raise OSError("no such file")
        return n * 10

    def work(value: int) -> int:
        if value == 30:
            raise ValueError("not a scan")
        return value + 1

    def write(n: int, made: int) -> None:
        if n == 4:
            raise OSError("disk full")
        assert made == n * 10 + 1
        written.append(n)

    outcomes = {o.item: o for o in overlapped(range(7), read, work, write)}
    assert written == [0, 2, 5, 6]
    assert sorted(outcomes) == list(range(7))
    failed = {n: (o.stage, str(o.error)) for n, o in outcomes.items() if o.error is not None}
    assert failed == {1: ("read", "no such file"), 3: ("work", "not a scan"), 4: ("write", "disk full")}


def test_the_three_overlap():
    """Each stage waits until the two others are busy with their own item; one after the other would wait for ever."""
    meeting = threading.Barrier(3, timeout=20)

    def read(n: int) -> int:
        if n >= 2:
            meeting.wait()  # reading n while n - 1 is worked on and n - 2 written
        return n

    def work(n: int) -> int:
        if 1 <= n <= 4:
            meeting.wait()
        return n

    def write(n: int, _: int) -> None:
        if n <= 3:
            meeting.wait()

    outcomes = list(overlapped(range(6), read, work, write))
    assert [o.item for o in outcomes] == list(range(6))
    assert all(o.error is None for o in outcomes)


def test_memory_is_bounded_by_the_queues():
    held, most = 0, 0
    lock = threading.Lock()

    def change(by: int) -> None:
        nonlocal held, most
        with lock:
            held += by
            most = max(most, held)

    def read(n: int) -> int:
        change(1)
        return n

    def write(n: int, _: int) -> None:
        time.sleep(0.005)
        change(-1)

    assert len(list(overlapped(range(30), read, lambda n: n, write, ahead=1, behind=1))) == 30
    assert 3 <= most <= 5


def test_leaving_early_ends_the_threads():
    before = set(threading.enumerate())
    read: list[int] = []
    run = overlapped(range(1000), lambda n: read.append(n) or n, lambda n: n, lambda *_: None)
    assert next(run).item == 0
    run.close()
    assert set(threading.enumerate()) <= before
    assert len(read) < 20


def test_a_broken_list_of_items_is_the_callers_error():
    def items():
        yield 1
        raise RuntimeError("the folder went away")

    seen = []
    with pytest.raises(RuntimeError, match="the folder went away"):
        seen.extend(o.item for o in overlapped(items(), lambda n: n, lambda n: n, lambda *_: None))
    assert not seen or seen == [1]
