from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctfoundry.errors import ContractError
from ctfoundry.pretrain.monitors import similarities
from ctfoundry.pretrain.nt_xent import nt_xent, nt_xent_intra
from pretrain import literal


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("shape", "temperature"), [((3, 5, 2, 7), 0.1), ((1, 2, 2, 3), 0.5), ((2, 9, 2, 4), 0.05)])
def test_equals_the_literal_formula(shape: tuple[int, ...], temperature: float, symmetric: bool) -> None:
    """Within scans: the mean over scans of the formula of one; plain: the formula of all crops of all scans."""
    z = embeddings(*shape).requires_grad_()
    scans = literal.pairs(z)
    slow = sum(literal.nt_xent(scan, temperature, symmetric=symmetric) for scan in scans) / len(scans)
    assert_same(nt_xent_intra(z, temperature, symmetric=symmetric), slow, z)
    slow = literal.nt_xent([crop for scan in scans for crop in scan], temperature, symmetric=symmetric)
    assert_same(nt_xent(z, temperature, symmetric=symmetric), slow, z)


def assert_same(ours: Tensor, slow: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=1e-10)
    found, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(slow, inputs, retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_plain_tells_scans_apart_where_there_is_one_crop_of_each() -> None:
    z = embeddings(5, 1, 2, 4).requires_grad_()
    assert_same(nt_xent(z), literal.nt_xent(literal.pairs(z.transpose(0, 1))[0], 0.1, symmetric=True), z)
    assert float(nt_xent(torch.ones(5, 1, 2, 4))) == pytest.approx(math.log(9), rel=1e-6)  # 8 negatives: chance
    with pytest.raises(ContractError, match="2 views"):
        nt_xent(embeddings(1, 1, 2, 4))


def test_by_hand() -> None:
    """Two crops: one whose views agree, one whose views are at right angles; temperature 1."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    z = torch.tensor([[[east, east], [north, east]]])
    # anchor (crop 0, view 0): cosines 1 to its positive; 0 and 1 to the negatives
    # anchor (crop 1, view 0): cosines 0 to its positive; 0 and 0 to the negatives
    e = math.e
    expected = (math.log((e + 1 + e) / e) + math.log(3)) / 2
    assert float(nt_xent_intra(z, 1.0)) == pytest.approx(expected, abs=1e-6)
    # anchors of view 1: (0, 1): cosines 1; 0, 1.  (1, 1): 0; 1, 1
    both = (math.log((2 * e + 1) / e) * 2 + math.log(3) + math.log(1 + 2 * e)) / 4
    assert float(nt_xent_intra(z, 1.0, symmetric=True)) == pytest.approx(both, abs=1e-6)
    found = similarities(z)
    assert float(found.positive) == pytest.approx(0.5)
    assert float(found.negative) == pytest.approx((0 + 1 + 0 + 0) / 4)
    assert float(found.matching) == 0.0  # the first is tied with a view of the other crop


def test_invariances() -> None:
    z = embeddings(3, 6, 2, 5)
    loss = nt_xent_intra(z)
    close = {"rtol": 1e-12, "atol": 1e-12}
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(3, 6, 2, 1, generator=generator, dtype=torch.float64) + 0.1
    rotation, _ = torch.linalg.qr(embeddings(5, 5, seed=2))
    torch.testing.assert_close(nt_xent_intra(z * scale), loss, **close)
    torch.testing.assert_close(nt_xent_intra(z @ rotation), loss, **close)
    torch.testing.assert_close(nt_xent_intra(z[:, torch.randperm(6, generator=generator)]), loss, **close)
    torch.testing.assert_close(nt_xent_intra(z.flip(0)), loss, **close)
    # scans do not see each other: the loss of a batch is the mean of the scans' losses
    alone = torch.stack([nt_xent_intra(z[i : i + 1]) for i in range(3)]).mean()
    torch.testing.assert_close(alone, loss, **close)
    # the symmetric form is the mean of the two one-way forms
    other = nt_xent_intra(z.flip(2))
    torch.testing.assert_close(nt_xent_intra(z, symmetric=True), (loss + other) / 2, **close)
    # equal embeddings: chance
    assert float(nt_xent_intra(torch.ones(1, 6, 2, 3))) == pytest.approx(math.log(11), rel=1e-6)


def test_gradient_is_right_in_float64() -> None:
    z = embeddings(2, 3, 2, 4).requires_grad_()
    for symmetric in (False, True):
        assert torch.autograd.gradcheck(lambda t, s=symmetric: nt_xent_intra(t, symmetric=s), (z,))
    assert torch.autograd.gradcheck(nt_xent, (z,))


def test_a_zero_embedding_is_no_nan_and_the_graph_can_be_kept() -> None:
    z = embeddings(1, 3, 2, 4)
    z[0, 1, 0] = 0
    z.requires_grad_()
    loss = nt_xent_intra(z)
    first, again = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert bool(first.isfinite().all())
    assert torch.equal(first, again)


def test_computes_in_float32_under_autocast() -> None:
    z = embeddings(2, 8, 2, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_intra(z)
        found = similarities(z)
    assert loss.dtype == found.positive.dtype == torch.float32
    expected = nt_xent_intra(z.detach().double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_one_crop_or_three_views_are_refused() -> None:
    for shape in ((2, 1, 2, 4), (2, 3, 3, 4), (6, 2, 4)):
        with pytest.raises(ContractError, match="2 views"):
            nt_xent_intra(torch.zeros(shape))
