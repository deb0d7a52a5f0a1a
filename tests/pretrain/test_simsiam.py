from __future__ import annotations

import pytest
import torch

from ctfoundry.errors import ContractError
from ctfoundry.models.heads import NormedHead
from ctfoundry.pretrain.recipe import ModelSettings
from ctfoundry.pretrain.simsiam import heads, simsiam
from pretrain import literal
from pretrain.test_nt_xent import assert_same, embeddings


@pytest.mark.parametrize("shape", [(3, 5, 2, 7), (1, 2, 2, 3), (4, 1, 2, 6)])
def test_equals_the_literal_formula(shape: tuple[int, ...]) -> None:
    """Of each scan, averaged over scans; and of all crops at once, which is the same number."""
    z, p = embeddings(*shape).requires_grad_(), embeddings(*shape, seed=1).requires_grad_()
    scans = list(zip(literal.pairs(z), literal.pairs(p), strict=True))
    all_z, all_p = ([crop for scan in pair for crop in scan] for pair in zip(*scans, strict=True))
    for stop in (True, False):
        inputs = (p,) if stop else (z, p)
        of_scans = sum(literal.simsiam(a, b, stop_gradient=stop) for a, b in scans) / len(scans)
        assert_same(simsiam(z, p, stop_gradient=stop), of_scans, *inputs)
        assert_same(simsiam(z, p, stop_gradient=stop), literal.simsiam(all_z, all_p, stop_gradient=stop), *inputs)


def test_only_predictions_learn() -> None:
    z, p = embeddings(2, 3, 2, 4).requires_grad_(), embeddings(2, 3, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.grad(simsiam(z, p), z, allow_unused=True, materialize_grads=True)[0].count_nonzero() == 0
    assert torch.autograd.grad(simsiam(z, p, stop_gradient=False), z)[0].count_nonzero() == z.numel()
    assert torch.autograd.gradcheck(lambda t: simsiam(z, t), (p,))
    assert torch.autograd.gradcheck(lambda a, b: simsiam(a, b, stop_gradient=False), (z, p))


def test_the_stop_gradient_changes_what_a_projection_learns() -> None:
    """Through the prediction alone, or through the target too: here p is a function of z, as in training."""
    matrix = embeddings(4, 4, seed=2)
    z = embeddings(2, 3, 2, 4).requires_grad_()
    (stopped,) = torch.autograd.grad(simsiam(z, z @ matrix), z)
    (open_,) = torch.autograd.grad(simsiam(z, z @ matrix, stop_gradient=False), z)
    assert float((stopped - open_).abs().max()) > 0.01


def test_by_hand() -> None:
    z = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    assert float(simsiam(z, z.flip(2))) == pytest.approx(-1)  # each predicts the other
    assert float(simsiam(z, -z.flip(2))) == pytest.approx(1)
    assert float(simsiam(z, z)) == pytest.approx(0)
    p = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]]]])
    assert float(simsiam(z, p)) == pytest.approx(-(2**-0.5 + 0) / 2)


def test_zeros_and_collapse_are_finite() -> None:
    for value in (0.0, 1.0):
        p = torch.full((2, 3, 2, 4), value, requires_grad=True)
        loss = simsiam(torch.ones(2, 3, 2, 4), p)
        assert float(loss.detach()) == pytest.approx(-value)
        assert bool(torch.autograd.grad(loss, p)[0].isfinite().all())


def test_computes_in_float32_under_autocast() -> None:
    z, p = embeddings(2, 8, 2, 16).bfloat16(), embeddings(2, 8, 2, 16, seed=1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = simsiam(z, p)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), simsiam(z.double(), p.double()), rtol=1e-5, atol=1e-6)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ContractError, match="2 views"):
        simsiam(torch.zeros(2, 3, 4), torch.zeros(2, 3, 2, 4))
    with pytest.raises(ContractError, match="2 views"):
        simsiam(torch.zeros(2, 3, 2, 4), torch.zeros(2, 3, 3, 4))


def test_the_published_heads() -> None:
    """Reference, 3.3: 512 -> 2048 -> 2048 -> 2048, batch norm after each, the last without weights; 2048 -> 512 -> 2048."""
    with torch.device("meta"):
        made = heads(512, ModelSettings(head=(2048, 2048, 2048), predictor=(512, 2048)))
    shapes = {f"{name}.{key}": tuple(p.shape) for name, head in made.items() for key, p in head.named_parameters()}
    assert shapes == {
        "head.layers.0.weight": (2048, 512),
        "head.layers.1.weight": (2048,),
        "head.layers.1.bias": (2048,),
        "head.layers.3.weight": (2048, 2048),
        "head.layers.4.weight": (2048,),
        "head.layers.4.bias": (2048,),
        "head.layers.6.weight": (2048, 2048),
        "predictor.layers.0.weight": (512, 2048),
        "predictor.layers.1.weight": (512,),
        "predictor.layers.1.bias": (512,),
        "predictor.layers.3.weight": (2048, 512),
        "predictor.layers.3.bias": (2048,),
    }
    assert "layers.7.running_var" in made["head"].state_dict()


def test_a_head_is_what_it_says() -> None:
    """Against the same layers applied by hand, in training mode."""
    head = NormedHead(3, 4, 5, last_norm=True).double()
    x = embeddings(6, 3)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()

    first, last = head.layers[0].weight, head.layers[3].weight
    expected = norm(norm(x @ first.T).clamp_min(0) @ last.T)
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-10)
