from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.train import fit, utilisation
from ctfoundry.train.utilisation import Flops, counting, flops_of, holding, peak_flops, peak_memory_gib, published_peak
from train.toys import Regression, ToySource, settings


def counted(loss: Callable[[], torch.Tensor]) -> Flops:
    with counting() as flops:
        loss().backward()
    return flops


def by_hand(filters: int, blocks: tuple[int, ...], shape: tuple[int, int, int], views: int) -> tuple[float, float]:
    """(forward, backward) operations of a SegResNet encoder from its definition: 2 * 27 * in * out * cells a convolution."""
    forward, backward = 0.0, 0.0

    def convolution(inputs: int, outputs: int, cells: int, first: bool = False) -> None:
        nonlocal forward, backward
        count = 2.0 * 27 * inputs * outputs * cells * views
        forward += count
        backward += count if first else 2 * count  # the image needs no gradient

    size = list(shape)
    convolution(1, filters, size[0] * size[1] * size[2], first=True)
    for i, count in enumerate(blocks):
        width = filters * 2**i
        for _ in range(2 * count):
            convolution(width, width, size[0] * size[1] * size[2])
        if i < len(blocks) - 1:
            size = [-(-n // 2) for n in size]
            convolution(width, 2 * width, size[0] * size[1] * size[2])
    return forward, backward


@pytest.mark.parametrize("shape", [(16, 32, 32), (8, 20, 12)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_operations_of_the_encoder_are_those_counted_by_hand(
    shape: tuple[int, int, int], layout: torch.memory_format
) -> None:
    encoder = SegResNetEncoder(1, 4, (1, 2, 1)).to(memory_format=layout)  # type: ignore[call-overload]
    x = torch.ones(3, 1, *shape).contiguous(memory_format=layout)
    found = counted(lambda: encoder.features(x, ("stage2",))[0]["stage2"].sum())
    assert (found.forward, found.backward) == by_hand(4, (1, 2, 1), shape, 3)
    assert found.again == 0


def test_operations_agree_with_torchs_own_counter() -> None:
    network = nn.Sequential(nn.Conv3d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 27, 5), nn.Linear(5, 2))
    x = torch.ones(2, 1, 8, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        network(x).sum().backward()
    assert flops_of(lambda: network(x).sum().backward()) == theirs.get_total_flops()


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_twice_to_save_memory_is_no_progress(reentrant: bool) -> None:
    network = nn.Sequential(*(nn.Conv3d(4, 4, 3, padding=1) for _ in range(3)))
    x = torch.ones(1, 4, 6, 6, 6, requires_grad=True)
    plain = counted(lambda: network(x).sum())
    saving = counted(lambda: checkpoint(network, x, use_reentrant=reentrant).sum())
    assert (saving.forward, saving.backward) == (plain.forward, plain.backward)
    assert plain.forward / 2 < saving.again <= plain.forward  # torch may stop before the last layer
    assert saving.executed == saving.useful + saving.again


def test_an_own_autograd_function_and_a_half_precision_product_are_seen() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a @ b

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad @ b.T, a.T @ grad

    a, b = torch.ones(3, 4, requires_grad=True), torch.ones(4, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = counted(lambda: Product.apply(a, b).sum())
    assert (found.forward, found.backward) == (2 * 3 * 4 * 5, 2 * 2 * 3 * 4 * 5)


def test_counting_changes_no_bit() -> None:
    def train(counted: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = SegResNetEncoder(1, 4, (1, 1)).train()
        optimiser = torch.optim.AdamW(network.parameters(), 1e-2)
        for _ in range(3):
            x = torch.randn(2, 1, 8, 8, 8)
            optimiser.zero_grad()
            if counted:
                with counting():
                    network.features(x, ("stage1",))[0]["stage1"].square().mean().backward()
            else:
                network.features(x, ("stage1",))[0]["stage1"].square().mean().backward()
            optimiser.step()
        return [*network.state_dict().values(), torch.get_rng_state()]

    for one, two in zip(train(False), train(True), strict=True):
        assert torch.equal(one, two)


def test_a_measured_peak_is_near_what_a_plain_product_reaches_and_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = torch.get_rng_state()
    peak = peak_flops("cpu", "fp32")
    assert torch.equal(state, torch.get_rng_state())
    a = torch.rand(512, 512)
    best = min(_seconds(lambda: a @ a) for _ in range(20))
    assert 0.2 < 2 * 512**3 / best / peak < 5  # another size, other noise
    monkeypatch.setattr(utilisation, "_wait", lambda place: pytest.fail("measured again"))
    assert peak_flops("cpu", "fp32") == peak


def _seconds(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.4),
        ("NVIDIA H200", "fp16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "fp32", 156),
        ("Tesla V100-SXM2-32GB", "fp32", 15.7),
        ("Tesla T4", "fp16", 65),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA RTX A6000", "bf16", 154.8),
    ],
)
def test_published_peaks_are_found_by_the_drivers_name(name: str, dtype, tera: float) -> None:
    assert published_peak(name, dtype) == pytest.approx(tera * 1e12)


def test_what_has_no_published_peak_has_none() -> None:
    assert published_peak("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16") is None
    assert published_peak("NVIDIA GeForce GTX 1080", "fp32") is None
    assert published_peak("NVIDIA H100 80GB HBM3", "fp64") is None
    assert published_peak("NVIDIA A100-SXM4-80GB", "fp32", tf32=False) == 19.5e12


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_runs_log_tells_the_share_of_the_peak(tmp_path: Path, accumulate: int) -> None:
    task, own = Regression(), settings(accumulate=accumulate)
    task.separable = True
    done = fit(task, ToySource(), own, tmp_path, quiet=True, steps=4)
    x = torch.ones(own.batch, 1, 4, 4, 4)
    with FlopCounterMode(display=False) as theirs:
        task.modules["body"](x).sum().backward()
    steps_per_second = done.last["samples_per_s"] / own.batch
    expected = theirs.get_total_flops() * steps_per_second / peak_flops("cpu", "fp32")
    assert done.last["peak_share"] == pytest.approx(
        expected, rel=5e-3
    )  # the similarities that it logs are a product too
    assert done.last["memory_gib"] == pytest.approx(peak_memory_gib("cpu"), rel=0.2)


def test_memory_held_is_what_torchs_profiler_saw() -> None:
    """With operations whose kernels take no memory of their own."""
    x = torch.ones(64, 1024, requires_grad=True)
    weight = torch.ones(1024, 512, requires_grad=True)

    def step() -> None:
        y = (x.exp() @ weight).sigmoid_()
        (y[:32] * y[32:]).square().view(-1).sum().backward()

    step()  # gradients stand
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    with holding() as held:
        step()
    assert peak > 2**20
    assert held.peak == pytest.approx(peak, rel=0.01)
    assert held.now == 0


def test_memory_held_by_the_encoder_grows_with_its_batch_and_shrinks_where_it_is_computed_again() -> None:
    def peak(scans: int, again: bool) -> float:
        encoder = SegResNetEncoder(1, 4, (1, 2, 1)).double()  # whose kernels take no way round
        encoder.checkpoint = again
        for parameter in encoder.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with holding() as held:
            encoder.features(torch.ones(scans, 1, 16, 32, 32).double(), ("stage2",))[0]["stage2"].sum().backward()
        return held.peak

    one, two, four = (peak(n, False) for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    assert peak(4, True) < 0.95 * four


def test_peak_memory_is_what_the_kernel_says() -> None:
    found = peak_memory_gib("cpu")
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    assert found == pytest.approx(int(line.split()[1]) / 2**20, rel=0.05)
