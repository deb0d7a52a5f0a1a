"""Sliding windows against MONAI's."""

from __future__ import annotations

import itertools

import pytest
import torch

from ctfoundry.errors import ContractError
from ctfoundry.infer import passes
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from infer import networks


def image(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.from_numpy(Key.of("image", *shape).normal((1, *shape))).float()


def ours(network: torch.nn.Module, x: torch.Tensor, extent: Extent, **options) -> torch.Tensor:
    parts = list(passes.dense(network, x, extent, **options))
    assert [start for start, _ in parts] == [0, *itertools.accumulate(len(p) for _, p in parts)][:-1]
    return torch.cat([part for _, part in parts]).transpose(0, 1)


CASES = [
    ((20, 30, 25), (8, 12, 12), 0.5, "gaussian"),
    ((20, 30, 25), (8, 12, 12), 0.625, "gaussian"),
    ((20, 30, 25), (8, 12, 12), 0.0, "mean"),
    ((21, 17, 40), (7, 9, 11), 0.25, "mean"),
    ((5, 9, 40), (8, 12, 12), 0.5, "gaussian"),  # smaller than a window on two axes, the padding odd
    ((4, 6, 7), (8, 16, 16), 0.5, "gaussian"),  # on all
    ((8, 12, 12), (8, 12, 12), 0.75, "gaussian"),
    ((9, 13, 13), (8, 12, 12), 0.9, "mean"),
    ((30, 12, 5), (3, 6, 5), 0.99, "gaussian"),  # steps of one voxel
]


@pytest.mark.monai
@pytest.mark.parametrize(("shape", "size", "overlap", "blend"), CASES)
def test_equal_to_monai(shape, size, overlap, blend):
    from monai.inferers.utils import sliding_window_inference

    network, x = networks.Local(6).eval(), image(shape)
    with torch.no_grad():
        theirs = sliding_window_inference(
            x[None], size, 3, network, overlap, mode="gaussian" if blend == "gaussian" else "constant", cval=0.3
        )
        found = ours(network, x, Extent("windows", size, overlap, blend), air=0.3, batch=2, slab=lambda _: 3)
    torch.testing.assert_close(found, theirs[0], atol=1e-4, rtol=0)
    assert float(theirs.std()) > 0.1  # there is something to be equal to


@pytest.mark.monai
def test_the_network_itself_equals_monai():
    from monai.inferers.utils import sliding_window_inference

    made, x = networks.segresnet(), image((20, 40, 24))
    with torch.no_grad():
        theirs = sliding_window_inference(x[None], (16, 16, 16), 4, made.network, 0.625, mode="gaussian")[0]
        found = ours(made.network, x, Extent("windows", (16, 16, 16), 0.625, "gaussian"))
        late = made.network.head(ours(made.network.trunk, x, Extent("windows", (16, 16, 16), 0.625, "gaussian"))[None])
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(late[0], theirs, atol=1e-4, rtol=0)


def test_whole_is_one_pass():
    network, x = networks.Local(3), image((6, 7, 8))
    with torch.no_grad():
        torch.testing.assert_close(ours(network, x, Extent("whole")), network(x[None])[0])


def test_progress_counts_every_window():
    seen: list[tuple[int, int]] = []
    with torch.no_grad():
        ours(
            networks.Local(2),
            image((20, 20, 20)),
            Extent("windows", (8, 8, 8), 0.5),
            batch=5,
            progress=lambda *at: seen.append(at),
        )
    # four starts along each axis: 0, 4, 8, 12
    assert seen[-1] == (64, 64)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_extent_that_leaves_voxels_out_is_refused():
    with pytest.raises(ContractError, match="each voxel needs an answer"):
        next(passes.dense(networks.Local(2), image((4, 4, 4)), Extent("cube", (4, 4, 4))))
