from __future__ import annotations

import pytest
import torch

from ctfoundry.errors import ContractError
from ctfoundry.pretrain.recipe import ModelSettings
from ctfoundry.pretrain.vicreg import heads, vicreg, vicreg_intra
from pretrain import literal
from pretrain.test_nt_xent import assert_same, embeddings

WEIGHTS = (25.0, 25.0, 1.0)


@pytest.mark.parametrize("shape", [(3, 4, 2, 6), (1, 2, 2, 3), (2, 7, 2, 3), (2, 3, 2, 3)])
@pytest.mark.parametrize("weights", [WEIGHTS, (2.0, 3.0, 5.0)])
def test_equals_the_literal_formula(shape: tuple[int, ...], weights: tuple[float, float, float]) -> None:
    """With fewer crops than channels and with more, which are two ways of computing. Scaled so that some channels vary by more
    than 1 and some by less."""
    z = (0.9 * embeddings(*shape)).requires_grad_()
    scans = literal.pairs(z)
    slow = sum(literal.vicreg(scan, weights) for scan in scans) / len(scans)
    assert_same(vicreg_intra(z, *weights), slow, z)
    assert_same(vicreg(z, *weights), literal.vicreg([crop for scan in scans for crop in scan], weights), z)


def test_plain_takes_one_crop_of_each_scan() -> None:
    z = embeddings(5, 1, 2, 4).requires_grad_()
    assert_same(vicreg(z), literal.vicreg([crop for scan in literal.pairs(z) for crop in scan]), z)
    with pytest.raises(ContractError, match="2 views"):
        vicreg(embeddings(1, 1, 2, 4))
    with pytest.raises(ContractError, match="2 views"):
        vicreg_intra(embeddings(5, 1, 2, 4))


def test_by_hand() -> None:
    """Two crops, two channels, views equal: variances 2 and 0, covariance 0."""
    z = torch.tensor([[[[1.0, 0.5]] * 2, [[-1.0, 0.5]] * 2]], dtype=torch.float64)
    expected = 25 * (0 + (1 - 1e-4**0.5)) / 2  # the second channel does not vary
    assert float(vicreg_intra(z)) == pytest.approx(expected, abs=1e-12)
    # both channels equal: variance 2 each, covariance 2 twice, squared, over 2 channels, for both views
    z = torch.tensor([[[[1.0, 1.0]] * 2, [[-1.0, -1.0]] * 2]], dtype=torch.float64)
    assert float(vicreg_intra(z)) == pytest.approx(2 * (2 * 2**2) / 2, abs=1e-12)
    # views 2 apart in one channel of two: mean square 2
    z = torch.tensor([[[[1.0, 3.0], [1.0, 1.0]], [[-1.0, -3.0], [-1.0, -5.0]]]], dtype=torch.float64)
    assert float(vicreg_intra(z, 1.0, 0.0, 0.0)) == pytest.approx(2.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 2, 5), (2, 5, 2, 3)])
def test_gradient_is_right_in_float64(shape: tuple[int, ...]) -> None:
    z = (0.5 * embeddings(*shape)).requires_grad_()
    assert torch.autograd.gradcheck(vicreg_intra, (z,))
    assert torch.autograd.gradcheck(vicreg, (z,))


def test_collapse_is_finite_and_costs_what_it_must() -> None:
    z = torch.ones(2, 6, 2, 8, requires_grad=True)
    loss = vicreg_intra(z)
    assert float(loss.detach()) == pytest.approx(25 * 0.99)  # 25 (1 - sqrt(1e-4))
    assert bool(torch.autograd.grad(loss, z)[0].isfinite().all())


def test_channels_that_share_nothing_cost_nothing() -> None:
    """Rows of a Hadamard matrix: every channel varies by 8/7, no two together."""
    matrix = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(1, 8)] for i in range(8)])
    for z in (matrix, matrix[:, :4]):
        assert float(vicreg_intra(z[None, :, None].expand(-1, -1, 2, -1))) == pytest.approx(0, abs=1e-6)


def test_computes_in_float32_under_autocast() -> None:
    z = embeddings(2, 8, 2, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = vicreg_intra(z)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), vicreg_intra(z.double()), rtol=1e-5, atol=1e-5)


def test_the_published_head() -> None:
    """Reference, 3.3: 512 -> 8192 -> 8192 -> 8192."""
    with torch.device("meta"):
        made = heads(512, ModelSettings(head=(8192, 8192, 8192)))
    assert {f"{name}.{key}": tuple(p.shape) for name, head in made.items() for key, p in head.named_parameters()} == {
        "head.layers.0.weight": (8192, 512),
        "head.layers.1.weight": (8192,),
        "head.layers.1.bias": (8192,),
        "head.layers.3.weight": (8192, 8192),
        "head.layers.4.weight": (8192,),
        "head.layers.4.bias": (8192,),
        "head.layers.6.weight": (8192, 8192),
        "head.layers.6.bias": (8192,),
    }
