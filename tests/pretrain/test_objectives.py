"""What every objective must keep to, whichever way a step is cut into pieces. Everything in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import processes
from ctfoundry.errors import ContractError, SettingsError
from ctfoundry.pretrain.recipe import LossSettings, ModelSettings, Recipe
from ctfoundry.pretrain.recipe_files import load_recipe
from ctfoundry.pretrain.task import CropTask
from ctfoundry.settings import from_data, to_data, with_changes
from pretrain import literal
from pretrain.toys import loop, recipe

OBJECTIVES = ("simclr", "simclr-intra", "simsiam", "simsiam-intra", "vicreg", "vicreg-intra")
NORMS = ("per-crop-view", "per-scan", "all")
SCANS, CROPS = 4, 3
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def small(objective: str, batch_norm: str = "per-crop-view", **changes: Any) -> Recipe:
    """A recipe of one objective with a network of a thousand weights."""
    head, predictor = ((6, 5), (4, 5)) if objective.startswith("simsiam") else ((6, 5), None)
    values = {
        "objective": objective,
        "batch_norm": batch_norm,
        "crop": (4, 6, 8),
        "crops": CROPS,
        "model": ModelSettings(filters=2, blocks=(1, 1), head=head, predictor=predictor),
        "loss": LossSettings(symmetric=objective == "simclr"),
        "train": loop(batch=SCANS, channels_last=False),
    }
    return recipe(**{**values, **changes})


def task_of(chosen: Recipe) -> CropTask:
    task = CropTask(chosen)
    task.modules.double().train()
    return task


def crops(count: int = SCANS, each: int = CROPS) -> Tensor:
    """Both views of each crop of each scan: b m 2 d h w. Crops differ more than views, scans more than crops."""
    generator = torch.Generator().manual_seed(5)
    shape = (count, each, 2, 4, 6, 8)
    whole = torch.zeros(shape, dtype=torch.float64)
    for m, v in ((1, 1), (each, 1), (each, 2)):
        whole += torch.randn(count, m, v, *shape[3:], generator=generator, dtype=torch.float64)
    return whole


def ordered(x: Tensor, chosen: Recipe) -> Tensor:
    """As `CropTask.batch` orders them."""
    rows = x if chosen.batch_norm == "per-scan" else x.permute(1, 2, 0, 3, 4, 5)
    return rows.reshape(-1, 1, *x.shape[3:])


def step(task: CropTask, x: Tensor) -> dict[str, Tensor]:
    """Losses, gradients and running statistics of one step, by name."""
    losses = task.losses(ordered(x, task.recipe), 0)
    task.modules.zero_grad()
    losses["loss"].backward()
    grads = {f"gradient {name}": p.grad.clone() for name, p in task.modules.named_parameters() if p.grad is not None}
    buffers = {f"buffer {name}": b.clone() for name, b in task.modules.named_buffers()}
    return {**{name: value.detach() for name, value in losses.items()}, **grads, **buffers}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(ours) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def published(task: CropTask, x: Tensor) -> Tensor:
    """A step as the public code takes it: one pass through the network for each part that batch norm averages over, the formula
    of the paper on what comes out."""
    b, m = x.shape[:2]
    parts = {
        "per-crop-view": [[(i, j, v) for i in range(b)] for j in range(m) for v in (0, 1)],
        "per-scan": [[(i, j, v) for j in range(m) for v in (0, 1)] for i in range(b)],
        "all": [[(i, j, v) for i in range(b) for j in range(m) for v in (0, 1)]],
    }[task.recipe.batch_norm]
    z: dict[tuple[int, int, int], Tensor] = {}
    p: dict[tuple[int, int, int], Tensor] = {}
    for part in parts:
        maps = task.encoder(torch.stack([x[place] for place in part])[:, None])[-1]
        found = task.modules["head"](maps.mean((2, 3, 4)))
        z.update(zip(part, found, strict=True))
        if "predictor" in task.modules:
            p.update(zip(part, task.modules["predictor"](found), strict=True))
    scans = [[(z[i, j, 0], z[i, j, 1]) for j in range(m)] for i in range(b)]
    family, intra, loss = task.recipe.family, task.recipe.intra, task.recipe.loss
    if family == "simsiam":
        predicted = [[(p[i, j, 0], p[i, j, 1]) for j in range(m)] for i in range(b)]
        return sum(map(literal.simsiam, scans, predicted)) / b
    groups = scans if intra else [[crop for scan in scans for crop in scan]]
    if family == "simclr":
        return sum(literal.nt_xent(group, loss.temperature, symmetric=loss.symmetric) for group in groups) / len(groups)
    return sum(map(literal.vicreg, groups)) / len(groups)


@pytest.mark.parametrize("batch_norm", NORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_published_one(objective: str, batch_norm: str) -> None:
    """Loss, gradients of all weights, running statistics."""
    ours, slow = (task_of(small(objective, batch_norm)) for _ in range(2))
    x = crops()
    found = step(ours, x)
    loss = published(slow, x)
    slow.modules.zero_grad()
    loss.backward()
    torch.testing.assert_close(found["loss"], loss.detach(), **EXACT)
    for name, p in slow.modules.named_parameters():
        torch.testing.assert_close(found[f"gradient {name}"], p.grad, rtol=1e-9, atol=1e-9, msg=name)
    for name, b in slow.modules.named_buffers():
        torch.testing.assert_close(found[f"buffer {name}"], b, **EXACT, msg=name)


CUTS = [("per-crop-view", 8), ("per-crop-view", 20), ("per-scan", 6), ("per-scan", 18)]


@pytest.mark.parametrize(("batch_norm", "chunk"), CUTS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_chunks_change_nothing(objective: str, batch_norm: str, chunk: int) -> None:
    """Of 24 crop-views: two groups at a time, five and one, one scan, three and one; losses, gradients, running statistics."""
    plain = step(task_of(small(objective, batch_norm)), crops())
    assert_same(step(task_of(small(objective, batch_norm, chunk=chunk)), crops()), plain)


def test_a_checkpointed_encoder_changes_nothing() -> None:
    chosen = small("vicreg")
    plain = step(task_of(chosen), crops())
    checkpointed = replace(chosen, model=replace(chosen.model, checkpoint=True))
    assert_same(step(task_of(checkpointed), crops()), plain)
    assert_same(step(task_of(replace(checkpointed, chunk=8)), crops()), plain)


def test_chunks_need_not_cut_what_batch_norm_averages_over() -> None:
    with pytest.raises(
        SettingsError, match="averages over 4 crop-views on each device, which chunks of 6 cut"
    ) as caught:
        CropTask(small("simclr-intra", chunk=6))
    assert "take a multiple of 4" in str(caught.value)
    CropTask(small("simclr-intra", chunk=24))  # all at once
    with pytest.raises(ContractError, match="no whole number of scans of 6"):
        task_of(small("simclr-intra")).losses(ordered(crops(), small("simclr-intra"))[:-1], 0)


@pytest.mark.parametrize("batch_norm", NORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_separable_is_what_it_says(objective: str, batch_norm: str) -> None:
    """Where and only where it says so, the mean of the gradients of two halves of the scans is the gradient of the whole."""
    chosen = small(objective, batch_norm)
    whole = step(task_of(chosen), crops())
    task = task_of(chosen)
    halves = [step(task, part) for part in crops().chunk(2)]
    names = [name for name in whole if name.startswith("gradient")]
    worst = max(float((whole[n] - (halves[0][n] + halves[1][n]) / 2).abs().max()) for n in names)
    assert task.separable is (worst < 1e-10)
    assert task.separable or worst > 1e-6
    if task.separable:
        assert_same(
            {n: halves[1][n] for n in whole if n.startswith("buffer")},
            {n: whole[n] for n in whole if n.startswith("buffer")},
        )


def test_head_norm_averages_over_the_step_or_over_a_scan() -> None:
    for batch_norm in ("all", "per-scan"):
        chosen = small("simclr-intra", batch_norm)
        task = task_of(replace(chosen, model=replace(chosen.model, head_norm=True)))
        seen: list[Tensor] = []
        task.modules["head"].register_forward_hook(lambda _, inputs, out, seen=seen: seen.append(inputs[0].detach()))
        step(task, crops())
        rows = seen[0].unflatten(0, (SCANS, -1) if batch_norm == "per-scan" else (1, -1))
        assert float(rows.mean(1).abs().max()) < 1e-10
        assert task.separable is (batch_norm == "per-scan")


def test_plain_monitors_are_those_of_all_scans() -> None:
    """One crop a scan: other crops are those of other scans."""
    chosen = small("simclr", crops=1, batch_norm="all")
    task = task_of(chosen)
    found = step(task, crops(each=1))
    assert -1 <= float(found["negative"]) <= 1
    assert 0 <= float(found["matching"]) <= 1
    measures = task.measures()
    assert measures["rank_of"] == 5  # channels of the head
    assert measures["vector_rank_of"] == 4  # of the encoder's last stage


TOGETHER = """
import sys
import torch
from ctfoundry import parallel
from pretrain.test_objectives import SHARED, crops, step, task_of

with parallel.joined("cpu", timeout=30):
    r, found = parallel.rank(), {}
    for name, chosen in SHARED.items():
        found[name] = step(task_of(chosen), crops().chunk(2)[r])
    torch.save(found, f"{sys.argv[1]}/{r}")
"""
SHARED = {
    "simclr, chunks": small("simclr", chunk=4),
    "simclr-intra, scans": small("simclr-intra", "per-scan"),
    "simclr-intra, head norm": replace(
        small("simclr-intra", "all"), model=replace(small("simclr").model, head_norm=True)
    ),
    "simsiam": small("simsiam-intra"),
    "vicreg, stages": replace(small("vicreg"), model=replace(small("vicreg").model, checkpoint=True)),
}


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Means over processes of losses and gradients, running statistics of both, for losses that gather, that do not, and every batch norm."""
    processes.run(TOGETHER, 2, tmp_path)
    ranks = [torch.load(tmp_path / str(r), weights_only=True) for r in range(2)]
    for name, chosen in SHARED.items():
        expected = step(task_of(chosen), crops())
        for key, value in expected.items():
            both = [found[name][key] for found in ranks]
            if key.startswith("buffer"):
                if chosen.batch_norm != "per-scan":  # one process' scans follow one another, two processes' do not
                    torch.testing.assert_close(both, [value, value], **EXACT)
            else:
                torch.testing.assert_close(sum(both) / 2, value, **EXACT, msg=f"{name}: {key}")
            if key == "loss" and chosen.objective in ("simclr", "vicreg"):
                torch.testing.assert_close(both, [value, value], **EXACT)


def test_published_sizes() -> None:
    """Of the whole model that made the public weights (reference, 3.3)."""
    task = CropTask(load_recipe("ct-fm"))
    assert sum(p.numel() for p in task.modules.parameters()) == 77_925_216


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"crops": 1}, "compares the crops of a scan: crops is at least 2, not 1"),
        ({"objective": "simclr", "crops": 0}, "crops is at least 1, not 0"),
        ({"objective": "simclr", "crops": 1, "train.batch": 1}, "crops times train.batch is at least 2"),
        ({"objective": "vicreg", "train.batch": 1}, "'per-crop-view' averages over scans: train.batch is at least 2"),
        ({"chunk": -1}, "not -1"),
        ({"batch_norm": "all", "chunk": 4}, "chunk is 0"),
        ({"batch_norm": "per-scan", "chunk": 4}, "a multiple of a scan's 6 crop-views, not 4"),
        ({"objective": "simsiam"}, r"needs model.predictor, \[hidden, 5\]"),
        ({"objective": "simsiam", "model.predictor": [3, 4]}, r"needs model.predictor, \[hidden, 5\]"),
        ({"model.predictor": [3, 5]}, "has no predictor"),
        ({"loss.stop_gradient": False}, "stop_gradient is SimSiam's"),
        ({"loss.temperature": 0.0}, "temperature is above 0"),
        ({"loss.variance": -1.0}, "not below 0"),
        ({"model.head": []}, "no list is empty"),
        ({"model.head": [4, 0]}, "at least 1"),
        ({"model.checkpoint": True, "train.compile": True}, "take chunk instead of model.checkpoint"),
        ({"objective": "simclr-intro"}, "is not one of"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], problem: str) -> None:
    data = to_data(small("simclr-intra"))
    for path, value in changes.items():
        place, _, key = path.rpartition(".")
        (data[place] if place else data)[key] = value
    with pytest.raises(SettingsError, match=problem):
        from_data(Recipe, data)


def test_settings_of_an_objective_from_the_command_line() -> None:
    chosen = with_changes(small("simsiam"), ["loss.stop_gradient=false", "model.predictor=[3, 5]"])
    assert (chosen.loss.stop_gradient, chosen.model.predictor) == (False, (3, 5))
    stopped, let_through = (
        step(task_of(r), crops()) for r in (small("simsiam"), replace(small("simsiam"), loss=chosen.loss))
    )
    assert float(stopped["loss"]) == pytest.approx(float(let_through["loss"]), abs=1e-12)
    name = "gradient encoder.conv_init.weight"
    assert float((stopped[name] - let_through[name]).abs().max()) > 1e-4


@pytest.mark.parametrize("objective", ["simclr", "simsiam", "vicreg"])
def test_half_precision_reaches_the_convolutions_only(objective: str) -> None:
    """Under autocast loss, projections and statistics are float32; with chunks, what is computed again is so in bf16 too."""
    results = []
    for chunk in (0, 8):
        task = CropTask(small(objective, chunk=chunk))
        task.modules.train()
        with torch.autocast("cpu", torch.bfloat16):
            losses = task.losses(ordered(crops(), task.recipe).float(), 0)
        assert {value.dtype for value in losses.values()} == {torch.float32}
        losses["loss"].backward()
        results.append(torch.cat([p.grad.flatten() for p in task.modules.parameters()]))
    # weights' gradients of each chunk are rounded to bf16 (a relative 2e-3) before they are added
    assert float((results[0] - results[1]).norm()) < 1e-2 * float(results[0].norm())
