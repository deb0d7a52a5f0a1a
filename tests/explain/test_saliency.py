"""Occlusion saliency: every mode against hiding the box and running the network, and against MONAI where definitions meet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ctfoundry import io, phantom, zoo
from ctfoundry.encoder import Encoder
from ctfoundry.errors import CTFoundryError, UsageError
from ctfoundry.explain.saliency import Ledger, Mode, Settings, measure
from ctfoundry.explain.saliency_local import LocalPass
from ctfoundry.explain.saliency_passes import FILLS, Fill, hidden
from ctfoundry.explain.saliency_target import Target, target_of
from ctfoundry.geometry import Grid, make_affine
from ctfoundry.infer.passes import Extent
from ctfoundry.keys import Key
from ctfoundry.models.initialisation import initialise
from ctfoundry.models.segresnet import SegResNetEncoder
from ctfoundry.preparation import Prepared
from ctfoundry.volume import Volume
from ctfoundry.zoo.files import save_model
from program import result


def small_encoder(blocks: tuple[int, ...] = (1, 1, 2), extent: Extent | None = None) -> Encoder:
    """A narrow SegResNet whose norms hold statistics of their own, as trained ones do."""
    network = initialise(SegResNetEncoder(1, 4, blocks), Key.of("test", "saliency"))
    for n, module in enumerate(network.modules()):
        if isinstance(module, torch.nn.BatchNorm3d):
            key = Key.of("test", "norm", n)
            module.running_mean.copy_(torch.from_numpy(key.normal(module.num_features) * 0.1))
            module.running_var.copy_(torch.from_numpy(key("v").uniform(0.5, 2, module.num_features)))
    card = zoo.load_encoder("ct-fm-tiny", weights="random").card
    arguments = {"in_channels": 1, "filters": 4, "blocks": list(blocks)}
    card = replace(card, arguments=arguments, level=f"stage{len(blocks) - 1}", extent=extent or Extent("whole"))
    return Encoder.of(network, card)


def scan(shape: tuple[int, int, int] = (20, 31, 37), dtype: torch.dtype = torch.float32) -> Prepared:
    """Smooth and rough values, a ring of air, and a corner that is not valid."""
    x = torch.from_numpy(Key.of("test", "scan").uniform(0, 1, shape)).to(dtype)
    x[:, :4] = 0
    valid = torch.ones(shape, dtype=torch.bool)
    valid[:, :, -6:] = False
    return Prepared(
        x[None], make_affine((6.0, 2.0, 2.0), "SPL"), valid, Grid(shape, make_affine((6.0, 2.0, 2.0), "SPL"))
    )


def literal(encoder: Encoder, prepared: Prepared, target: Target, at: np.ndarray, fill: torch.Tensor) -> np.ndarray:
    """1 - cosine as its definition says, one box after another, in float64 NumPy."""

    def vector(x: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            data = encoder.raw(x[None], (target.level,))[0][target.level][0].double().numpy()
        cells = target.weight.numpy() > 0
        return data[:, cells] @ (target.weight.numpy()[cells].astype(np.float64))

    base, found = vector(prepared.x), []
    for a, b, c in at.tolist():
        x = prepared.x.clone()
        x[:, a : a + 8, b : b + 8, c : c + 8] = fill[:, a : a + 8, b : b + 8, c : c + 8]
        other = vector(x)
        found.append(1 - base @ other / np.linalg.norm(base) / np.linalg.norm(other))
    return np.array(found)


@pytest.mark.parametrize("shape", [(20, 31, 37), (9, 40, 16), (41, 24, 33)])
def test_local_changes_equal_the_whole_pass_in_float64(shape: tuple[int, int, int]) -> None:
    """All cells: those in the windows, and those outside them, which must not have changed."""
    encoder, prepared = small_encoder((1, 2, 2)), scan(shape, torch.float64)
    network = encoder.network.double()
    local = LocalPass(network, prepared.x, 2)
    limits = np.array(shape) - 8
    at = np.array([(0, 0, 0), limits, limits // 2, (0, limits[1], 3), (limits[0], 5, limits[2])])
    boxes = torch.from_numpy(Key.of("test", "boxes").normal((len(at), 1, 8, 8, 8)))
    data, cells = local.changed(boxes, at)
    for new, cell, (a, b, c), box in zip(data, cells.tolist(), at.tolist(), boxes, strict=True):
        x = prepared.x.clone()
        x[:, a : a + 8, b : b + 8, c : c + 8] = box
        with torch.no_grad():
            true = network.features(x[None], ("stage2",))[0]["stage2"][0]
        ours = local.base.clone()
        ours[(slice(None), *(slice(i, i + n) for i, n in zip(cell, new.shape[1:], strict=True)))] = new
        assert float((ours - true).abs().max()) < 1e-12 * float(true.abs().max() + 1)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_deviations_are_what_the_definition_says(fill: Fill, mode: Mode) -> None:
    encoder, prepared = small_encoder(), scan()
    target = target_of(encoder, prepared)
    found = measure(encoder, prepared, target, Settings(fill=fill, mode=mode, reach=None, checked=4))
    filled = hidden(prepared, fill, (8, 8, 8), Key.of("saliency", 0))
    true = literal(encoder, prepared, target, found.starts.reshape(-1, 3), filled)
    assert np.allclose(found.scores.reshape(-1), true, atol=1e-3 * true.max())
    assert np.corrcoef(found.scores.reshape(-1), true)[0, 1] > 0.99999
    if mode == "fast":
        assert found.checked["correlation"] > 0.9999


def test_a_shorter_reach_loses_little_and_says_how_much() -> None:
    encoder, prepared = small_encoder(), scan()
    target = target_of(encoder, prepared)
    whole = measure(encoder, prepared, target, Settings(reach=None))
    short = measure(encoder, prepared, target, Settings(reach=1, checked=10))
    assert np.corrcoef(whole.scores.ravel(), short.scores.ravel())[0, 1] > 0.95
    assert 0 < short.checked["worst"] < 0.3  # an approximation that shows itself as one


def test_boxes_that_change_nothing_cost_nothing() -> None:
    encoder, prepared = small_encoder(), scan()
    prepared.x[:, :, :16] = 0
    found = measure(encoder, prepared, target_of(encoder, prepared), Settings())
    assert (found.scores[:, :2] == 0).all()
    assert (found.scores[:, 2:] != 0).all()
    assert found.computed == found.scores[:, 2:].size


def test_overlapping_boxes_are_averaged_on_voxels() -> None:
    encoder, prepared = small_encoder(), scan((16, 16, 16))
    found = measure(encoder, prepared, target_of(encoder, prepared), Settings(stride=(8, 8, 4), reach=None))
    total, count = np.zeros((16, 16, 16)), np.zeros((16, 16, 16))
    for value, (a, b, c) in zip(found.scores.ravel(), found.starts.reshape(-1, 3), strict=True):
        total[a : a + 8, b : b + 8, c : c + 8] += value
        count[a : a + 8, b : b + 8, c : c + 8] += 1
    assert np.allclose(found.map, total / count, rtol=1e-5)


def test_region_point_and_similarity_are_watched() -> None:
    encoder, prepared = small_encoder(), scan((24, 48, 48))
    grid = encoder(prepared).grid
    voxels = np.zeros((24, 48, 48), np.uint8)
    voxels[:8, :12, :12], voxels[16:, 30:, 20:34] = 1, 2
    roi = Volume(voxels, prepared.affine, "label", {1: "one", 2: "two"})
    target = target_of(encoder, prepared, roi=roi, label="two")
    assert torch.allclose(target.base.float(), encoder(prepared, roi=roi).vectors["roi:two"], rtol=1e-4, atol=1e-5)
    for text in ("2", "two"):
        found = target_of(encoder, prepared, roi=roi, label=text)
        assert (found.name, torch.equal(found.base, target.base)) == ("roi:two", True)
    place = grid.world((3, 5, 7)) + (1.0, -2.0, 3.0)
    at_point = target_of(encoder, prepared, point=place)
    assert torch.allclose(at_point.base.float(), grid.sample(place[None])[0], rtol=1e-4, atol=1e-5)
    # what is far from a point and outside its receptive field turns nothing; what is there does
    small = target_of(small_encoder((1, 1)), scan((24, 48, 48)), point=(-80.0, -80.0, 120.0))
    found = measure(small_encoder((1, 1)), scan((24, 48, 48)), small, Settings(reach=None))
    assert found.scores[2, 5, 5] > 1e-4
    assert abs(found.scores[0, 0, 0]) < 1e-12
    # similarity to the scan's own vector falls by exactly the deviation
    own = target_of(encoder, prepared)
    against = target_of(encoder, prepared, reference=own.base)
    assert np.allclose(
        measure(encoder, prepared, against, Settings()).scores, measure(encoder, prepared, own, Settings()).scores
    )
    with pytest.raises(UsageError, match="holds one, two"):
        target_of(encoder, prepared, roi=roi, label="three")
    with pytest.raises(UsageError, match="outside"):
        target_of(encoder, prepared, point=(9000, 0, 0))


@pytest.mark.parametrize("how", ["max", "min"])
def test_other_pools(how: str) -> None:
    encoder = small_encoder()
    encoder = replace(encoder, card=replace(encoder.card, vector=how))
    prepared = scan()
    target = target_of(encoder, prepared)
    assert torch.allclose(target.base.float(), encoder(prepared).vector)
    fast, exact = (measure(encoder, prepared, target, Settings(mode=m, reach=None)) for m in ("fast", "exact"))
    assert np.allclose(fast.scores, exact.scores, atol=1e-3 * exact.scores.max())


def test_slices_and_windows() -> None:
    """Slices: only those that a box touches; windows: through the encoder itself."""
    slices, prepared = small_encoder(extent=Extent("slices")), scan()
    target = target_of(slices, prepared)
    fast, exact = (measure(slices, prepared, target, Settings(mode=m, checked=0)) for m in ("fast", "exact"))
    assert fast.method == "changed slices"
    assert np.allclose(fast.scores, exact.scores, atol=1e-3 * exact.scores.max())
    windows = small_encoder(extent=Extent("windows", (16, 16, 16)))
    found = measure(windows, scan((16, 32, 16)), target_of(windows, scan((16, 32, 16))), Settings())
    assert found.method.startswith("one pass a box")
    assert found.scores.max() > 0


def test_a_killed_run_continues_and_other_settings_begin_anew(tmp_path: Path) -> None:
    encoder, prepared = small_encoder(), scan()
    target = target_of(encoder, prepared)
    whole = measure(encoder, prepared, target, Settings())

    def stop(done: int, count: int) -> None:
        if done >= count // 2:
            raise KeyboardInterrupt

    path = tmp_path / "part.npz"
    ledger = Ledger.at(path, "a")
    ledger.saved = -1e9  # as after a long time
    with pytest.raises(KeyboardInterrupt):
        measure(encoder, prepared, target, Settings(), ledger=ledger, progress=stop)
    again = measure(encoder, prepared, target, Settings(), ledger=Ledger.at(path, "a"))
    assert 0 < again.computed < whole.computed
    assert np.array_equal(again.scores, whole.scores)
    assert Ledger.at(path, "b").tables == {}


@pytest.mark.monai
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # MONAI's own
def test_monai_gives_the_same_where_definitions_meet() -> None:
    """A constant fill, no overlap, and sizes that boxes divide: there MONAI's map of one output is ours."""
    from monai.visualize.occlusion_sensitivity import OcclusionSensitivity

    encoder, prepared = small_encoder(), scan((16, 24, 32))
    target = target_of(encoder, prepared)

    class Deviation(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            data = encoder.raw(x, (target.level,))[0][target.level]
            return torch.from_numpy(target.score(target.of_maps(data)))[:, None]

    with torch.no_grad():
        theirs, _ = OcclusionSensitivity(
            Deviation(), mask_size=8, n_batch=2, verbose=False, mode=0.0, overlap=0.0, activate=False
        )(prepared.x[None])
    assert float(prepared.x.min()) == 0
    found = measure(encoder, prepared, target, Settings(mode="exact"))
    assert np.allclose(found.map, theirs[0, 0].numpy(), atol=1e-4 * found.map.max())


def test_settings_refuse_what_makes_no_sense() -> None:
    for wrong in ({"fill": "black"}, {"mode": "best"}, {"stride": (9, 8, 8)}):
        with pytest.raises(CTFoundryError):
            Settings(**wrong)  # type: ignore[arg-type]


def test_the_verb_writes_maps_on_the_scan_and_says_what_random_weights_give(tmp_path: Path) -> None:
    """In a process of its own, on a phantom of few voxels; run again it gives the same."""
    made = phantom.make(phantom.draw(Key.of("test", "saliency"), view="chest", voxel_mm=8))
    io.write(made.ct, tmp_path / "ct.nii.gz")
    encoder = small_encoder((1, 1))
    save_model(replace(encoder, card=replace(encoder.card, weights="trained")), tmp_path / "small.safetensors")
    out = tmp_path / "out"
    options = ("--model", tmp_path / "small.safetensors", "-o", out, "--checked", 3)
    found = result("explain", "saliency", tmp_path / "ct.nii.gz", *options)
    ((id, numbers),) = found["scans"].items()
    assert numbers["checked"]["correlation"] > 0.99
    assert -1 <= numbers["rank_correlation"]["random_weights"] <= 1
    written = io.read(out / f"{id}.nii.gz", kind="other")
    assert written.grid.same(made.ct.grid, tolerance=0.01)
    x, y, z = numbers["top"][0]["point"]
    at = tuple(np.rint(written.index((x, y, z))).astype(int).clip(0, np.array(written.shape) - 1))
    assert written.voxels[at] > 0.5 * numbers["largest"]
    held = json.loads((out / "saliency.json").read_text())
    assert held["scans"].keys() == found["scans"].keys()
    assert str(tmp_path) not in (out / "saliency.html").read_text() + (out / "run.json").read_text()
    assert not list(out.glob(".*.npz"))
