"""Encoders with another patch size: nothing is cut off, and cells stand where their voxels are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import worlds
from ctfoundry import zoo
from ctfoundry.encoder import Card, Encoder
from ctfoundry.errors import ContractError, UsageError
from ctfoundry.infer.passes import Extent
from ctfoundry.models.vit import FlexibleViT
from ctfoundry.preparation import PREPARATIONS

WHOLE = Extent("whole")
PATCHES = [8, 12, (4, 16, 8), (6, 10, 20)]


def encoder(extent: Extent = WHOLE, name: str = "flexict-3d") -> Encoder:
    """A small network on scans of 4 mm whose size no patch of `PATCHES` divides."""
    axes = 2 if name == "flexict-2d" else 3
    arguments = {"axes": axes, "patch": 8, "size": [72, 2, 1], "rotary": "float32"}
    preparation = PREPARATIONS["flexict-2d" if axes == 2 else "flexict-tiny"]
    card: Card = replace(
        zoo.CARDS[name], arguments=arguments, preparation=preparation, extent=extent, level="block1", seed=0
    )
    return Encoder.of(zoo.build(card), card)


SCAN = worlds.body(0, (23, 37, 41), (4.0, 4.0, 4.0))


def whole_patches(shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // p) for n, p in zip(shape, patch, strict=True))


@pytest.mark.parametrize("patch", PATCHES)
def test_the_preparation_pads_to_whole_patches(patch) -> None:
    size = (patch,) * 3 if isinstance(patch, int) else patch
    changed = zoo.with_patch(encoder(), patch)
    grid = changed(SCAN).grid
    assert grid.data.shape[1:] == whole_patches(SCAN.shape, size)
    last = np.array(SCAN.shape) - 1
    corners = [tuple(last * at) for at in np.ndindex(2, 2, 2)]
    assert all(grid.holds(SCAN.world(corner)) for corner in corners)
    assert changed.card.arguments["patch"] == list(size)


@pytest.mark.parametrize("patch", PATCHES)
def test_a_cell_stands_where_its_voxels_are(patch) -> None:
    """LayerScale starts at 1e-5, so a fresh network's cell answers to its own patch alone: it is found by what moves it."""
    changed = zoo.with_patch(encoder(), patch)
    size = np.array((patch,) * 3 if isinstance(patch, int) else patch)
    grid = changed(SCAN).grid
    cell = tuple((np.array(grid.data.shape[1:]) // 2).tolist())
    centre = grid.world(cell)
    prepared = changed.prepare(SCAN)
    # every voxel of the prepared scan that lies within half a patch of the cell's centre, in millimetres
    index = np.stack(np.meshgrid(*map(np.arange, prepared.x.shape[1:]), indexing="ij"), -1)
    world = index @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    away = np.abs((world - centre) @ np.linalg.inv(prepared.affine[:3, :3]).T)
    inside = torch.from_numpy((away < size / 2).all(-1))
    assert int(inside.sum()) == size.prod()
    with torch.no_grad():
        pattern = torch.from_numpy(index.sum(-1) % 3 - 1)
        before = changed.raw(prepared.x[None], ["block1"])[0]["block1"][0]
        moved = changed.raw((prepared.x + 3.0 * inside * (pattern))[None].float(), ["block1"])[0]["block1"][0]
        # all but a voxel's width around the cell moved: it does not answer
        outside = changed.raw((prepared.x + 3.0 * ~inside)[None].float(), ["block1"])[0]["block1"][0]
    assert (moved - before)[:, *cell].abs().max() > 0.05
    others = (moved - before).abs().amax(0)
    others[cell] = 0
    assert others.max() < 1e-3
    assert (outside - before)[:, *cell].abs().max() < 1e-3


def test_cubes_and_windows_grow_to_whole_patches() -> None:
    cube = zoo.with_patch(encoder(Extent("cube", (16, 32, 32))), (6, 12, 8))
    assert cube.extent.size == (18, 36, 32)
    assert cube(SCAN).grid.data.shape[1:] == (3, 3, 4)
    windows = zoo.with_patch(encoder(Extent("windows", (16, 16, 16), 0.5)), (4, 12, 6))
    assert windows.extent.size == (16, 24, 18)
    assert windows(SCAN).grid.data.shape[1:] == whole_patches(SCAN.shape, (4, 12, 6))
    with pytest.raises(ContractError, match="whole cells"):
        windows(SCAN, extent=Extent("windows", (16, 16, 16)))
    slices = zoo.with_patch(encoder(Extent("slices"), "flexict-2d"), (12, 6))
    found = slices(SCAN)
    assert found.grid.data.shape[1:] == (23, *whole_patches(SCAN.shape[1:], (12, 6)))
    step = np.linalg.norm(found.grid.affine[:3, :3], axis=0)
    np.testing.assert_allclose(step, (4, 48, 24))


def test_an_input_that_nobody_padded_is_refused() -> None:
    """The patch was changed in the network alone: an error, and never a grid with its last cells missing."""
    made = encoder()
    card = replace(made.card, arguments={**made.card.arguments, "patch": 12})
    wrong = Encoder.of(zoo.build(card), card)
    with pytest.raises(ContractError, match=r"no whole number of patches(.|\n)*sizing.multiple"):
        wrong(SCAN)
    with pytest.raises(ContractError, match="no whole number of patches"):
        made(SCAN, extent=Extent("cube", (20, 16, 16)))
    with pytest.raises(ContractError, match="no whole number of patches"):
        made.windows(SCAN, (8, 12, 8))


def test_weights_are_shared_and_the_file_keeps_the_size(tmp_path) -> None:
    made = encoder()
    changed = zoo.with_patch(made, (4, 16, 8))
    assert all(a is b for a, b in zip(made.network.parameters(), changed.network.parameters(), strict=True))
    assert made.level("block1").stride == (8, 8, 8)
    zoo.save_model(changed, tmp_path / "m.safetensors")
    again = zoo.load_encoder(tmp_path / "m.safetensors", device="cpu")
    assert isinstance(again.network, FlexibleViT)
    assert again.network.patch == (4, 16, 8)
    assert torch.equal(again(SCAN).grid.data, changed(SCAN).grid.data)
    with pytest.raises(UsageError, match="no patch size"):
        zoo.with_patch(worlds.tiny(), 8)


def test_class_token_and_mean_of_patches() -> None:
    made = encoder()
    found = made(SCAN, vectors=("cls", "mean", "cls+mean"))
    grid = found.grid
    torch.testing.assert_close(found.vectors["mean"], grid.data[:, grid.valid].mean(1))
    with torch.no_grad():
        (tokens,) = made.network(made.prepare(SCAN).x[None])
    torch.testing.assert_close(found.vectors["cls"], tokens.cls[0])
    torch.testing.assert_close(found.vectors["cls+mean"], torch.cat([tokens.cls[0], tokens.patches[0].mean(0)]))


@pytest.mark.xdist_group("text")  # transformers is slow to import
@pytest.mark.parametrize("name", [name for name in zoo.CARDS if name.startswith("flexict")])
def test_the_card_says_which_rotary_tables(name: str) -> None:
    """bfloat16 for every name that published weights are loaded under, float32 for networks of our own."""
    card = zoo.CARDS[name]
    network = zoo.models.empty(card, device="meta")
    trunk = getattr(network, "vision_model", network)
    said = card.arguments.get("vision", card.arguments)["rotary"]
    assert said == ("float32" if name == "flexict-tiny" else "bfloat16")
    assert str(trunk.rope_embed_3D.periods.dtype) == f"torch.{said}"
    assert str(trunk.rope_embed_2D.periods.dtype) == f"torch.{said}"
