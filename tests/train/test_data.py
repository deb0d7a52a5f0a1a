from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ctfoundry.errors import StoreError
from ctfoundry.keys import Key
from ctfoundry.train.data import Order, Quarantine, Samples, collection_shares
from train.toys import Regression, ToySource

KEY = Key.of("test")


def ids_and_noise(
    tmp_path: Path,
    source: ToySource,
    *,
    start: int = 0,
    count: int = 30,
    workers: int = 0,
    ahead: int = 5,
    share: float = 0.3,
) -> list[tuple[str, float]]:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", source.count, share)
    with Samples(Regression(), source, KEY, quarantine, start=start, workers=workers, ahead=ahead) as samples:
        found = [samples.take(1)[0] for _ in range(count)]
    assert all((s.reads[0] == 100 * int(s.id[4:])).all() for s in found)
    return [(s.id, s.draws.noise) for s in found]


def test_each_pass_shows_every_scan_once_in_another_order(tmp_path: Path) -> None:
    ids = [id for id, _ in ids_and_noise(tmp_path, ToySource(), count=21)]
    passes = [ids[:7], ids[7:14], ids[14:]]
    assert all(len(set(p)) == 7 for p in passes)
    assert passes[0] != passes[1] != passes[2]


def test_workers_and_start_change_nothing(tmp_path: Path) -> None:
    plain = ids_and_noise(tmp_path, ToySource())
    for workers, ahead in ((1, 1), (2, 3), (5, 40)):
        assert ids_and_noise(tmp_path, ToySource(), workers=workers, ahead=ahead) == plain
    assert ids_and_noise(tmp_path, ToySource(), start=11, count=19, workers=2) == plain[11:]


def test_draws_depend_on_epoch_and_scan_and_not_on_the_position(tmp_path: Path) -> None:
    drawn = ids_and_noise(tmp_path, ToySource(), count=14)
    task, source = Regression(), ToySource()
    for epoch, part in enumerate((drawn[:7], drawn[7:])):
        expected = {e.id: task.plan(KEY("sample", epoch, e.id), e).noise for e in source.entries}
        assert dict(part) == expected


def test_reading_ahead_is_bounded(tmp_path: Path) -> None:
    source = ToySource(count=50)
    quarantine = Quarantine(tmp_path / "q", 50, 0.1)
    with Samples(Regression(), source, KEY, quarantine, start=0, workers=3, ahead=4) as samples:
        samples.take(1)
    assert len(source.read_ids) <= 4


def test_a_failing_scan_is_named_and_replaced_the_same_way_every_time(tmp_path: Path) -> None:
    broken = ToySource(broken=frozenset({"scan2", "scan5"}))
    first = ids_and_noise(tmp_path / "a" if (tmp_path / "a").mkdir() is None else tmp_path, broken, count=40, workers=0)
    (tmp_path / "b").mkdir()
    assert ids_and_noise(tmp_path / "b", broken, count=40, workers=3, ahead=9) == first
    # continued, knowing what has failed, and begun anew in the middle without knowing
    assert ids_and_noise(tmp_path / "b", broken, start=13, count=27, workers=2) == first[13:]
    (tmp_path / "c").mkdir()
    assert ids_and_noise(tmp_path / "c", broken, start=13, count=27) == first[13:]
    assert {id for id, _ in first} == {"scan0", "scan1", "scan3", "scan4", "scan6"}
    rows = [json.loads(line) for line in (tmp_path / "b" / "quarantine.jsonl").read_text().splitlines()]
    assert Counter(row["id"] for row in rows) == {"scan2": 1, "scan5": 1}
    assert all("OSError" in row["reason"] and "chunk 3 is damaged" in row["reason"] for row in rows)


def test_too_many_failing_scans_stop_the_run(tmp_path: Path) -> None:
    broken = ToySource(broken=frozenset({"scan2", "scan5", "scan6"}))
    with pytest.raises(StoreError, match=r"3 of 7 scans failed.*chunk 3 is damaged"):
        ids_and_noise(tmp_path, broken)


def test_the_only_scan_fails(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="1 of 1 scans failed"):
        ids_and_noise(tmp_path, ToySource(1, frozenset({"scan0"})))


def test_a_plan_that_fails_counts_as_a_failing_scan(tmp_path: Path) -> None:
    class Bad(Regression):
        def plan(self, key, entry):  # type: ignore[no-untyped-def]
            raise ValueError("no box of HU > 0")

    quarantine = Quarantine(tmp_path / "q", 7, 0.1)
    with (
        Samples(Bad(), ToySource(), KEY, quarantine, start=0, workers=1, ahead=2) as samples,
        pytest.raises(StoreError, match="no box of HU > 0"),
    ):
        samples.take(1)


def test_order_is_a_function_of_the_position() -> None:
    order = Order(KEY, 5)
    forward = [order[p] for p in range(20)]
    assert [order[p] for p in reversed(range(20))] == forward[::-1]


def test_a_line_that_a_kill_cut_short_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"id": "a", "position": 3, "reason": "x"}\n{"id": "b", "posi')
    assert Quarantine(path, 10, 0.5).since == {"a": 3}


def test_balance_gives_collections_their_share() -> None:
    """Shares follow n ** (1 - balance); every pass is as long as the corpus, and a scan's count differs by less than 1."""
    sizes = {"nlst": 700, "kits": 90, "ovary": 10}
    names = [name for name, n in sizes.items() for _ in range(n)]
    for balance in (0.5, 1.0):
        shares = collection_shares(names, balance)
        assert shares is not None
        order = Order(KEY, len(names), shares)
        passes = [[order[e * len(names) + p] for p in range(len(names))] for e in range(20)]
        assert all(epoch == e for e, drawn in enumerate(passes) for epoch, _ in drawn)
        wanted = {name: n ** (1 - balance) for name, n in sizes.items()}
        for drawn in passes:
            count = Counter(names[index] for _, index in drawn)
            for name in sizes:
                expected = len(names) * wanted[name] / sum(wanted.values())
                # a comb over scans in a random order: each scan is off by less than one, a collection by less than that sum
                assert abs(count[name] - expected) <= 4 * sizes[name] ** 0.5
            each = Counter(index for _, index in drawn)
            assert all(abs(each[k] - len(names) * shares[k]) < 1 for k in range(len(names)))
        total = Counter(index for drawn in passes for _, index in drawn)
        mean = np.array([total[k] for k in range(700)]) / 20
        assert abs(mean.mean() - len(names) * shares[0]) < 0.02
    assert collection_shares(names, 0.0) is None


def test_a_balanced_order_is_a_function_of_the_position() -> None:
    shares = collection_shares(["a"] * 6 + ["b"], 1.0)
    order = Order(KEY, 7, shares)
    forward = [order[p] for p in range(28)]
    assert [Order(KEY, 7, shares)[p] for p in reversed(range(28))] == forward[::-1]
    assert forward[:7] != forward[7:14]


@pytest.mark.parametrize("workers", [0, 3])
def test_processes_share_each_step(tmp_path: Path, workers: int) -> None:
    """Together two and four processes see what one sees, whatever fails, and each step's scans stay in that step."""
    source = ToySource(broken=frozenset({"scan2", "scan5"}))
    (tmp_path / "1").mkdir()
    alone = ids_and_noise(tmp_path / "1", source, start=8, count=24)
    for ranks in (2, 4):
        (tmp_path / str(ranks)).mkdir()
        path = tmp_path / str(ranks) / "quarantine.jsonl"
        drawn = []
        for rank, quarantine in enumerate([Quarantine(path, 7, 0.3, rank) for rank in range(ranks)]):
            known = {"start": 8, "workers": workers, "ahead": 3, "share": (rank, ranks, 4)}
            with Samples(Regression(), source, KEY, quarantine, **known) as samples:  # type: ignore[arg-type]
                drawn.append([[(s.id, s.draws.noise) for s in samples.take(4 // ranks)] for _ in range(6)])
        assert [pair for step in range(6) for steps in drawn for pair in steps[step]] == alone
    assert {path.name for path in (tmp_path / "2").iterdir()} == {"quarantine.jsonl", "quarantine-1.jsonl"}
    # one that continues reads what all found, and so comes to what one process found
    found = Quarantine(tmp_path / "2" / "quarantine.jsonl", 7, 0.3, 3).since
    assert found == Quarantine(tmp_path / "1" / "quarantine.jsonl", 7, 0.3).since
    assert found.keys() == source.broken
