from __future__ import annotations

import json

import pytest
import torch

import processes
from ctfoundry import parallel

SCRIPT = """
import json, time
import torch
from ctfoundry import parallel

generator = torch.Generator().manual_seed(0)
data = torch.randn(4, 3, generator=generator, dtype=torch.float64)
weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
with parallel.joined("cpu", timeout=30) as place, parallel.joined("cpu"):
    r = parallel.rank()
    x = data[2 * r : 2 * r + 2].clone().requires_grad_()
    everything = parallel.all_gather(x.mT.contiguous().mT)
    total = parallel.all_reduce_sum(x.sum(0))
    # each process adds a loss of its own: 1 + r times the same function of all
    ((1 + r) * ((everything * weight).sum() + total.prod())).backward()
    found = {
        "size": parallel.size(), "rank": r, "place": str(place),
        "everything": everything.tolist(), "total": total.tolist(), "grad": x.grad.tolist(),
        "said": parallel.broadcast_object(f"from {r}"), "all": parallel.gather_objects(r),
    }
    parallel.barrier()
found["after"] = parallel.size()
for late in (0, 1):  # blocks follow one another, also where one process has still to do
    if parallel.os.environ["RANK"] == str(late):
        time.sleep(0.2)
    with parallel.joined("cpu", timeout=20):
        found[f"again{late}"] = parallel.gather_objects(parallel.rank())
print(json.dumps(found))
"""


def doubles(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_two_processes_see_and_differentiate_what_one_would() -> None:
    one, two = (json.loads(out) for out in processes.run(SCRIPT, 2))
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    (3 * ((data * weight).sum() + data.sum(0).prod())).backward()
    assert data.grad is not None
    torch.testing.assert_close(doubles(one["grad"] + two["grad"]), data.grad, rtol=1e-12, atol=1e-12)
    for r, found in enumerate((one, two)):
        assert (found["size"], found["rank"], found["place"], found["after"]) == (2, r, "cpu", 1)
        assert found["everything"] == data.tolist()
        torch.testing.assert_close(doubles(found["total"]), data.sum(0).detach(), rtol=1e-12, atol=1e-12)
        assert (found["said"], found["all"]) == ("from 0", [0, 1])
        assert (found["again0"], found["again1"]) == ([0, 1], [0, 1])


def test_alone_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    x = torch.randn(2, 3)
    with parallel.joined("cpu") as place:
        assert place == torch.device("cpu")
        assert (parallel.rank(), parallel.size()) == (0, 1)
        assert parallel.all_gather(x) is x
        assert parallel.all_reduce_sum(x) is x
        assert (parallel.broadcast_object("a"), parallel.gather_objects("a")) == ("a", ["a"])
        parallel.barrier()
