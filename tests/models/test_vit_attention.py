"""The transformer's attention in parts: against a literal float64 one, within its memory, and only where the rule says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ctfoundry.bench.memory import peak_gib
from ctfoundry.models import attention
from ctfoundry.models.attention import attend, in_parts
from ctfoundry.models.vit import FlexibleViT
from models.test_vit import image, joined, literal, tiny

CPU = torch.device("cpu")
MIB = 2**20
pytestmark = pytest.mark.xdist_group("vit")


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax of all scores at once, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bhnc,bhmc->bhnm", q, k) / q.shape[-1] ** 0.5
    weight = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhnm,bhmc->bhnc", weight / weight.sum(-1, keepdim=True), v)


def inputs(b: int, heads: int, n: int, m: int, width: int, dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    """Queries and keys side by side, values from a projection of all three, as the network has them."""
    q = image("q", (b, heads, n, width)) / 4 * spread
    k, v = (image(f"{name}{m}", (b, m, 3, heads, width)).permute(2, 0, 3, 1, 4)[2] / 4 for name in "kv")
    return [t.to(dtype) for t in (q, k.contiguous(), v)]


def error(seen: Tensor, wanted: Tensor) -> float:
    """Root of the mean square of the difference, as a share of the wanted values'."""
    return float((seen.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with bfloat16 products and no tiles, whatever this one is."""
    monkeypatch.setattr(attention, "PLAIN_BF16", True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Tokens of each attention that went in parts."""
    seen: list[int] = []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(q.shape[2])
        return in_parts(q, k, v)

    monkeypatch.setattr(attention, "in_parts", spy)
    return seen


# ---------------------------------------------------------------------- the function


@pytest.mark.parametrize(
    "size",
    [8 * MIB, 3 * 4 * 37 * 53, 4 * 37 * 53, 4 * 10 * 53, 4 * 53, 1],
    ids=["all", "three heads", "one head", "ten rows", "one row", "less than a row"],
)
@pytest.mark.parametrize("b", [1, 2])
def test_equals_the_literal_one_however_it_is_cut(monkeypatch: pytest.MonkeyPatch, size: int, b: int) -> None:
    """Seven heads and 37 queries leave a last part that is smaller; keys are other tokens than queries."""
    monkeypatch.setattr(attention, "SCORE_BYTES", size)
    q, k, v = inputs(b, 7, 37, 53, 24, torch.float32, spread=3)
    out = in_parts(q, k, v)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), exact(q, k, v), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("spread", "times"), [(0.3, 1.3), (1.0, 3.0), (4.0, 9.0)])
def test_bf16_is_as_near_as_stated(spread: float, times: float) -> None:
    """Scores are rounded once, so the error is the fused kernel's for small ones and a multiple of it for large ones."""
    q, k, v = inputs(1, 4, 300, 300, 72, torch.bfloat16, spread)
    wanted = exact(q, k, v)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    ours = error(in_parts(q, k, v), wanted)
    assert ours < times * error(fused, wanted)
    assert ours < 0.02


def test_large_scores_stay_finite() -> None:
    """Scores of some thousand overflow an exponential that does not take the largest off first."""
    q, k, v = (300 * t for t in inputs(1, 2, 20, 20, 16, torch.bfloat16))
    out = in_parts(q, k, v)
    assert bool(out.isfinite().all())
    assert error(out, exact(q, k, v)) < 0.05


def test_memory_does_not_grow_with_the_square_of_the_tokens() -> None:
    """All scores of one head would be 137 MiB here, of all heads 275."""
    q, k, v = inputs(1, 2, 8500, 8500, 8, torch.bfloat16)
    in_parts(q, k, v)  # kernels are made
    held = peak_gib(lambda: in_parts(q, k, v), CPU)
    if held is not None:  # the system counts pages
        assert held * 1024 < 2 * attention.SCORE_BYTES / MIB + 6


# ---------------------------------------------------------------------- when


def test_only_bf16_without_gradients_and_where_the_processor_is_such(plain: None, calls: list[int]) -> None:
    half = inputs(1, 2, 9, 9, 8, torch.bfloat16)
    attend(*half)
    assert calls == [9]
    attend(*inputs(1, 2, 9, 9, 8, torch.float32))
    attend(*inputs(1, 2, 9, 9, 8, torch.float16))
    attend(*(t.to("meta") for t in half))
    for i in range(3):
        attend(*(t.clone().requires_grad_(i == j) for j, t in enumerate(half)))
    assert calls == [9]


def test_elsewhere_it_is_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    monkeypatch.setattr(attention, "PLAIN_BF16", False)
    q, k, v = inputs(1, 2, 9, 9, 8, torch.bfloat16)
    assert torch.equal(attend(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert not calls


# ---------------------------------------------------------------------- in the network


def half_pass(network: FlexibleViT, images: list[Tensor], masks: list[Tensor | None]) -> list[Tensor]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return [joined(t) for t in network(images, masks=masks)]


@torch.no_grad()
def test_the_network_in_bf16_is_no_further_from_float64(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    """Several sizes, batches and masks in one pass; the fused kernel's own distance is the measure."""
    network, images = tiny(), [image("a", (2, 1, 16, 16, 12)), image("b", (3, 1, 24, 20))]
    away = {}
    for here in (False, True):
        monkeypatch.setattr(attention, "PLAIN_BF16", here)
        out = half_pass(network, images, [None, None])
        away[here] = [error(one, literal(network, x, (4,) * (x.ndim - 2))) for one, x in zip(out, images, strict=True)]
    assert calls == [5 + 48, 5 + 30] * 3
    for ours, fused in zip(away[True], away[False], strict=True):
        assert ours < 1.25 * fused
    mask = torch.arange(48) % 3 == 0
    (masked,) = half_pass(network, images[:1], [mask.expand(2, -1)])
    changed = images[0].clone()
    changed[:, :, :4, :4, :4] = 9.0  # the first patch, which is masked
    assert torch.equal(masked, half_pass(network, [changed], [mask.expand(2, -1)])[0])


def test_training_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    def gradients(here: bool) -> list[Tensor]:
        monkeypatch.setattr(attention, "PLAIN_BF16", here)
        network = tiny(2).train()
        (out,) = half_pass(network, [image("a", (2, 1, 24, 20))], [None])
        out.float().square().sum().backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    first, second = gradients(False), gradients(True)
    assert len(first) > 30
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not calls


# ---------------------------------------------------------------------- weights of an autocast pass


def test_casts_that_are_let_go_change_nothing() -> None:
    """With gradients autocast keeps them, without it does not: the numbers are the same, and so is the caller's context after."""
    network, x = tiny(), image("x", (1, 1, 8, 8, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (kept,) = network(x)
        with torch.no_grad():
            (free,) = network(x)
        assert torch.is_autocast_cache_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(joined(kept), joined(free))
    with torch.no_grad():
        (full,) = network(x)
        with torch.autocast("cpu", enabled=False):
            (off,) = network(x)
    assert torch.equal(joined(full), joined(off))
    assert full.cls.dtype == torch.float32


@torch.no_grad()
def test_a_pass_holds_no_second_set_of_weights() -> None:
    """54 MiB of casts if they were kept; one weight's is 4.5 MiB."""
    network = FlexibleViT(2, 8, (768, 4, 16)).eval()
    for p in network.parameters():
        p.fill_(0.01)
    x = image("x", (1, 1, 32, 32))

    def call() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            network(x)

    call()
    held = peak_gib(call, CPU)
    if held is not None:  # the system counts pages
        assert held * 1024 < 20
