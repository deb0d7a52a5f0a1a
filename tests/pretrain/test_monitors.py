from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.spatial import KDTree
from torch import Tensor

from ctfoundry.errors import ContractError
from ctfoundry.pretrain import monitors
from ctfoundry.pretrain.monitors import similarities

SHAPES = [(3, 4, 2, 7), (1, 2, 2, 3), (6, 1, 2, 5), (2, 9, 2, 33)]


def embeddings(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_views(z: Tensor) -> list[tuple[int, np.ndarray]]:
    """(crop, unit vector) of every view, one at a time."""
    b, m = z.shape[:2]
    found = []
    for crop, (i, j) in enumerate(itertools.product(range(b), range(m))):
        for view in (0, 1):
            vector = z[i, j, view].double().numpy()
            found.append((crop, vector / math.sqrt(sum(v * v for v in vector.tolist()))))
    return found


def distances(z: Tensor) -> list[list[float]]:
    """Of each view, the distances to all views of other crops."""
    views = unit_views(z)
    return [[math.dist(u, v) for other, v in views if other != crop] for crop, u in views]


@pytest.mark.parametrize("shape", SHAPES)
def test_uniformity_is_that_of_the_paper(shape: tuple[int, ...]) -> None:
    z = embeddings(*shape) + 0.5
    kernel = [math.exp(-2 * d * d) for row in distances(z) for d in row]
    assert float(monitors.uniformity(z)) == pytest.approx(math.log(sum(kernel) / len(kernel)), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_alignment_is_that_of_the_paper(shape: tuple[int, ...]) -> None:
    z = embeddings(*shape)
    views = unit_views(z)
    squares = [math.dist(views[i][1], views[i + 1][1]) ** 2 for i in range(0, len(views), 2)]
    assert float(monitors.alignment(z)) == pytest.approx(sum(squares) / len(squares), rel=1e-10)
    cosine = similarities(z).positive
    assert float(monitors.alignment(z)) == pytest.approx(2 - 2 * float(cosine), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbours_are_those_of_a_tree(shape: tuple[int, ...]) -> None:
    z = embeddings(*shape)
    views = unit_views(z)
    logs = []
    for crop, vector in views:
        others = np.array([v for other, v in views if other != crop])
        logs.append(math.log(KDTree(others).query(vector)[0]))
    assert float(monitors.neighbour_entropy(z)) == pytest.approx(sum(logs) / len(logs), rel=1e-10)


def test_neighbours_estimate_differential_entropy() -> None:
    """On a circle of known densities, the full Kozachenko-Leonenko estimate is the entropy; differences are the monitor's alone."""
    generator = np.random.default_rng(3)
    found = {}
    for width in (2 * math.pi, math.pi / 4):
        angle = generator.uniform(0, width, 4000)
        z = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], 1))[:, None, None].expand(-1, 1, 2, -1)
        own = float(monitors.neighbour_entropy(z))
        ball = math.log(2)  # in one dimension a ball of radius r has length 2 r
        entropy = own + math.log(4000 - 1) + ball + np.euler_gamma
        assert entropy == pytest.approx(math.log(width), abs=0.06)
        found[width] = own
    assert found[2 * math.pi] - found[math.pi / 4] == pytest.approx(math.log(8), abs=0.08)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (40, 4)])
def test_effective_rank_is_that_of_the_singular_values(shape: tuple[int, ...], centred: bool) -> None:
    z = embeddings(*shape) * torch.arange(1, shape[-1] + 1) + 1
    rows = z.numpy().reshape(-1, shape[-1])
    values = scipy.linalg.svdvals(rows - rows.mean(0) if centred else rows)
    shares = [v / values.sum() for v in values.tolist() if v > 1e-9 * values[0]]
    entropy = -sum(p * math.log(p) for p in shares)
    assert float(monitors.effective_rank(z, centred=centred)) == pytest.approx(math.exp(entropy), rel=1e-6)


def test_effective_rank_by_hand() -> None:
    assert float(monitors.effective_rank(torch.eye(6))) == pytest.approx(6, rel=1e-6)
    assert float(monitors.effective_rank(torch.ones(4, 3, 2, 5))) == pytest.approx(1, rel=1e-6)
    assert float(monitors.effective_rank(torch.zeros(4, 5))) == 0
    # singular values 3 and 1: shares 3/4 and 1/4
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(monitors.effective_rank(torch.diag(torch.tensor([3.0, 1.0])))) == pytest.approx(math.exp(entropy))


def test_norm_spread_by_hand() -> None:
    """Lengths 5, 10, 10, 15: mean 10, standard deviation root 12.5."""
    z = torch.tensor([[[[3.0, 4.0], [6.0, 8.0]], [[0.0, 10.0], [9.0, 12.0]]]])
    assert float(monitors.norm_spread(z)) == pytest.approx(math.sqrt(12.5) / 10)
    assert float(monitors.norm_spread(torch.zeros(2, 2))) == 0


@pytest.mark.parametrize("shape", [(3, 4, 2, 7), (2, 9, 2, 33)])
def test_similarities_are_those_of_plain_loops(shape: tuple[int, ...]) -> None:
    z = embeddings(*shape) + 0.3
    b, m = shape[:2]
    views = {(i, j, v): u for (i, j, v), (_, u) in zip(np.ndindex(b, m, 2), unit_views(z), strict=True)}
    positive, negative, matching = [], [], []
    for i, j in np.ndindex(b, m):
        own = float(views[i, j, 0] @ views[i, j, 1])
        others = [float(views[i, j, 0] @ views[i, k, v]) for k in range(m) for v in (0, 1) if k != j]
        positive.append(own)
        negative += others
        matching.append(own > max(others))
    expected = [sum(values) / len(values) for values in (positive, negative, matching)]
    assert list(map(float, similarities(z))) == pytest.approx(expected, rel=1e-6)


def test_one_crop_a_scan_is_told_from_those_of_other_scans() -> None:
    z = embeddings(6, 1, 2, 5)
    assert similarities(z) == similarities(z.transpose(0, 1))
    alone = similarities(embeddings(1, 1, 2, 5))
    assert bool(alone.positive.isfinite())
    assert bool(alone.negative.isnan())
    assert bool(alone.matching.isnan())
    lone = monitors.measures(embeddings(1, 1, 2, 5), embeddings(1, 1, 2, 3))
    assert math.isnan(lone["uniformity"])
    assert math.isnan(lone["vector_neighbours"])
    assert lone["rank_of"] == 2


def test_similarities_by_hand() -> None:
    """Two crops: one whose views agree, one whose views are at right angles."""
    east, north = [1.0, 0.0], [0.0, 1.0]
    found = similarities(torch.tensor([[[east, east], [north, east]]]))
    assert float(found.positive) == pytest.approx(0.5)
    assert float(found.negative) == pytest.approx((0 + 1 + 0 + 0) / 4)
    assert float(found.matching) == 0.0  # the first is tied with a view of the other crop


def test_half_precision_is_computed_in_single() -> None:
    z = embeddings(2, 4, 2, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = similarities(z)
        wide = monitors.measures(z, z)
    assert found.positive.dtype == torch.float32
    assert list(map(float, found)) == pytest.approx(list(map(float, similarities(z.double()))), abs=1e-5)
    assert wide == monitors.measures(z.double(), z.double())


def test_a_complete_collapse_is_told_from_rounding() -> None:
    """Eight crops in one point, once exactly and once with single precision's noise, beside ones at right angles."""
    point = embeddings(1, 1, 1, 16).expand(2, 4, 2, 16)
    noisy = (point + 1e-6 * embeddings(2, 4, 2, 16, seed=1)).float()
    apart = torch.eye(16, dtype=torch.float64).view(2, 4, 2, 16)
    same, near, far = (monitors.measures(x, x) for x in (point, noisy, apart))
    assert same["neighbours"] == pytest.approx(math.log(monitors.FLOOR))
    assert -16 < near["neighbours"] < -10
    assert far["neighbours"] == pytest.approx(0.5 * math.log(2))
    assert same["uniformity"] == pytest.approx(0, abs=1e-12)
    assert near["uniformity"] == pytest.approx(0, abs=1e-9)
    assert far["uniformity"] == pytest.approx(-4)
    assert [x["rank"] for x in (same, near, far)] == pytest.approx([1, 1, 16], rel=1e-4)
    assert near["centred_rank"] > 10  # noise has many directions: a centred rank alone would miss this


def test_a_dimensional_collapse_shows_in_the_rank() -> None:
    z = embeddings(4, 4, 2, 2) @ embeddings(2, 32, seed=1) + embeddings(32, seed=2)  # a plane beside the origin
    found = monitors.measures(z, z)
    assert found["centred_rank"] <= 2
    assert found["rank"] <= 3
    assert found["uniformity"] < -0.5


def test_of_many_views_some_are_looked_at() -> None:
    z = embeddings(30, 20, 2, 6)
    found = monitors.measures(z, z)
    assert found["rank_of"] == 6
    assert found["alignment"] == pytest.approx(float(monitors.alignment(z)), rel=0.1)
    assert monitors.measures(embeddings(30, 20, 2, 700), z)["vector_rank_of"] == monitors.ROWS


def test_measures_name_vectors_and_projections() -> None:
    vectors, z = embeddings(2, 3, 2, 8), embeddings(2, 3, 2, 4, seed=1)
    found = monitors.measures(vectors, z)
    assert found["vector_norm_spread"] == float(monitors.norm_spread(vectors))
    assert found["uniformity"] == float(monitors.uniformity(z))
    assert {name.removeprefix("vector_") for name in found} == {name for name in found if "vector_" not in name}


def test_other_shapes_are_refused() -> None:
    for shape in ((2, 3, 3, 4), (6, 2, 4), (2, 0, 2, 4)):
        with pytest.raises(ContractError, match="2 views"):
            similarities(torch.zeros(shape))
        with pytest.raises(ContractError, match="2 views"):
            monitors.measures(torch.zeros(2, 2, 2, 4), torch.zeros(shape))
