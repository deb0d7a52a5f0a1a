"""Whole scans: labels and probabilities on the scan's own grid against MONAI's windows and SciPy's interpolation of all logits."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

import worlds
from ctfoundry import geometry
from ctfoundry.errors import ContractError
from ctfoundry.infer import onto, passes
from ctfoundry.infer.components import keep_largest
from ctfoundry.infer.passes import Extent
from ctfoundry.preparation import Foreground, prepare
from ctfoundry.segmenter import Pass
from infer import networks

SIZE = (16, 32, 32)


def all_logits(segmenter, volume) -> tuple[np.ndarray, np.ndarray]:
    """Logits (k, d, h, w) of every voxel of the scan, the long way, and which voxels the preparation covers."""
    from monai.inferers.utils import sliding_window_inference

    prepared = prepare(segmenter.preparation, volume)
    with torch.no_grad():
        logits = sliding_window_inference(prepared.x[None], SIZE, 2, segmenter.network, 0.5, mode="gaussian")[0].numpy()
    where = np.stack(np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij"), -1)
    at = geometry.to_index(prepared.affine, volume.world(where))
    inside = ((at >= -0.5) & (at <= np.array(logits.shape[1:]) - 0.5)).all(-1)
    found = [ndimage.map_coordinates(c, np.moveaxis(at, -1, 0), order=1, mode="nearest") for c in logits]
    return np.stack(found), inside


def decided(logits: np.ndarray) -> np.ndarray:
    """Where the best logit is further than rounding from the second."""
    best = np.sort(logits, 0)
    return best[-1] - best[-2] > 1e-4


CASES = [
    ("SPL", (3.0, 1.0, 1.0), (24, 40, 44), (1.5, 1.5, 1.5)),  # rows become more, columns fewer
    ("LPS", (1.0, 1.0, 3.0), (40, 44, 22), (1.5, 1.5, 1.5)),
    ("RAI", (1.0, 1.3, 0.7), (30, 31, 60), (2.0, 1.0, 2.0)),  # turned in all axes
    ("IAR", (1.0, 2.0, 2.0), (50, 28, 24), (2.0, 2.0, 2.0)),  # against the order of slices
    ("SPL", (2.0, 2.0, 2.0), (10, 20, 24), (2.0, 2.0, 2.0)),  # smaller than a window
]


@pytest.mark.monai
@pytest.mark.parametrize("features", [4, 9], ids=["head last", "logits"])
@pytest.mark.parametrize(("code", "spacing", "shape", "prepared"), CASES)
def test_labels_on_the_scans_own_grid(code, spacing, shape, prepared, features, monkeypatch):
    monkeypatch.setattr(onto, "SLAB_BYTES", 2**17)
    segmenter = networks.segmenter(7, networks.resampled(prepared), features=features)
    volume = worlds.body(3, shape, spacing, code)
    logits, inside = all_logits(segmenter, volume)
    found = segmenter(volume)
    assert found.kind == "label"
    assert found.shape == volume.shape
    np.testing.assert_array_equal(found.affine, volume.affine)
    sure = decided(logits) & inside
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(found.voxels[sure], logits.argmax(0)[sure])
    assert (found.voxels[~inside] == 0).all()
    assert np.unique(found.voxels).size > 3

    asked = segmenter.probabilities(volume, ["part2", "part5"])
    share = np.exp(logits - logits.max(0))
    share /= share.sum(0)
    for name, k in (("part2", 2), ("part5", 5)):
        np.testing.assert_allclose(asked[name].voxels, np.where(inside, share[k], 0), atol=1e-4)


def test_asked_labels_are_those_of_the_full_map():
    segmenter, volume = networks.segmenter(), worlds.body()
    whole, asked = segmenter(volume), segmenter(volume, labels=["part3", "part1"])
    np.testing.assert_array_equal(asked.voxels, np.where(np.isin(whole.voxels, [1, 3]), whole.voxels, 0))
    assert asked.names == {1: "part1", 3: "part3"}
    with pytest.raises(ContractError, match="no structure 'part33'; the nearest known one is 'part3'"):
        segmenter(volume, labels=["part33"])


def test_what_the_preparation_cuts_off_is_background():
    made = networks.native()
    cut = replace(made, resampling=replace(made.resampling, foreground=Foreground(above=100.0)))
    segmenter, volume = networks.segmenter(3, cut), worlds.body()
    segmenter.network.head.bias.data[2] += 100  # structure 2 wherever it looks
    found = segmenter(volume).voxels
    box = geometry.bounding_box(volume.voxels > 100)
    assert box is not None
    wanted = np.zeros(volume.shape)
    wanted[geometry.slices(box)] = 2
    assert 0 < (wanted == 0).sum() < wanted.size
    np.testing.assert_array_equal(found, wanted)


def test_mirrored_outputs_are_means_over_all_flips():
    segmenter, volume = networks.segmenter(extent=Extent("whole")), worlds.body(shape=(8, 16, 12))
    x = torch.from_numpy((volume.voxels[None, None].astype(np.float32).clip(-1024, 2048) + 1024) / 3072)
    with torch.no_grad():
        flips = [(), (2,), (4,), (2, 4)]
        logits = torch.stack([segmenter.network(x.flip(f)).flip(f) if f else segmenter.network(x) for f in flips]).mean(
            0
        )
    wanted = logits[0].softmax(0).numpy()
    found = segmenter.probabilities(volume, segmenter.names[1:], settings=Pass(mirror=(0, 2)))
    for k, name in enumerate(segmenter.names[1:], start=1):
        np.testing.assert_allclose(found[name].voxels, wanted[k], atol=1e-5)
    alone = segmenter.probabilities(volume, ["part1"])["part1"].voxels
    assert np.abs(alone - wanted[1]).max() > 1e-2


def test_largest_parts_as_simpleitk_finds_them():
    rough = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(4, 24, 30, 28)), (0, 1.5, 1.5, 1.5)).argmax(0)
    found, lost = keep_largest(rough.astype(np.uint8))
    for value in (1, 2, 3):
        parts = sitk.ConnectedComponent(sitk.GetImageFromArray((rough == value).astype(np.uint8)))
        ranked = sitk.GetArrayFromImage(sitk.RelabelComponent(parts, sortByObjectSize=True))
        assert ranked.max() > 1
        np.testing.assert_array_equal(found == value, ranked == 1)
        assert lost[value] == int((ranked > 1).sum())
    some, _ = keep_largest(rough.astype(np.uint8), [2])
    np.testing.assert_array_equal(some == 1, rough == 1)
    np.testing.assert_array_equal(some == 2, found == 2)


def test_largest_is_an_option_of_segmenting_and_is_said():
    segmenter, volume = networks.segmenter(), worlds.body()
    plain, one = segmenter(volume), segmenter(volume, largest=["part2"])
    np.testing.assert_array_equal(one.voxels, keep_largest(plain.voxels, [2])[0])
    assert (one.voxels != plain.voxels).any()
    assert any(note.startswith("part2: ") and note.endswith("removed") for note in one.notes)


@pytest.mark.parametrize("text", ["CUDA", "CPU"])
def test_out_of_memory_falls_back_by_name(monkeypatch, text):
    segmenter, volume = networks.segmenter(), worlds.body()
    whole = segmenter(volume)
    sizes: list[int] = []
    real = segmenter.network.trunk

    def trunk(x):
        sizes.append(len(x))
        if len(x) > 1:
            raise (
                torch.OutOfMemoryError("CUDA out of memory")
                if text == "CUDA"
                else RuntimeError("DefaultCPUAllocator: can't")
            )
        return real(x)

    monkeypatch.setattr(segmenter.network, "trunk", trunk)
    with pytest.warns(RuntimeWarning, match="out of memory on cpu: one window at a time, stitched on the CPU"):
        found = segmenter(volume)
    assert sizes[0] > 1
    assert set(sizes[1:]) == {1}
    np.testing.assert_array_equal(found.voxels, whole.voxels)
    assert found.notes == ("out of memory on cpu: one window at a time, stitched on the CPU",)


def test_memory_that_never_suffices_and_other_errors(monkeypatch):
    segmenter, volume = networks.segmenter(), worlds.body()

    def no_memory(x):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenter.network, "trunk", no_memory)
    with pytest.warns(RuntimeWarning), pytest.raises(ContractError, match="not even one window at a time fits"):
        segmenter(volume)

    def broken(x):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(segmenter.network, "trunk", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        segmenter(volume)


def peak_bytes(call) -> int:
    """The most memory that torch's tensors and NumPy's arrays had at once while `call` ran (tracemalloc, torch's profiler)."""
    import tracemalloc

    tracemalloc.start()
    try:
        with torch.autograd.profiler.profile(profile_memory=True, use_cpu=True) as profile:
            call()
        arrays = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    steps = [e.nbytes() for e in profile.kineto_results.events() if e.name() == "[memory]"]
    assert steps
    return int(np.cumsum(steps).max()) + arrays


@pytest.mark.parametrize("grid", ["1.5 mm", "its own"])
def test_an_eighth_of_the_logits_is_enough(grid, monkeypatch):
    """The published proportions in small: 118 classes, 32 features, windows of a third of each axis of the scan.

    On a grid of 1.5 mm, as published, all counts, the network's own maps too. On the scan's own finer grid the network's maps
    are left out: they do not grow with the scan, and blending alone takes 32/118 of a third.
    """
    monkeypatch.setattr(onto, "SLAB_BYTES", 2**18)
    monkeypatch.setattr(onto, "LOGIT_BYTES", 2**18)
    volume = worlds.body(1, (50, 64, 64), (1.5, 0.9, 0.9))
    preparation = networks.resampled((1.5, 1.5, 1.5)) if grid == "1.5 mm" else networks.native()
    segmenter = networks.segmenter(118, preparation, Extent("windows", (16, 24, 24), 0.5, "gaussian"), features=32)
    if grid == "its own":
        monkeypatch.setattr(segmenter.network, "trunk", lambda x: x.expand(-1, 32, -1, -1, -1))
    full = 118 * volume.voxels.size * 4
    segmenter(volume)
    peak = peak_bytes(lambda: segmenter(volume, settings=Pass(batch=1)))
    assert peak < full / 8, f"{peak / full:.3f} of the float logits"

    def held() -> torch.Tensor:
        parts = [
            p for _, p in passes.dense(segmenter.network, torch.zeros(1, *volume.shape), segmenter.extent, batch=1)
        ]
        return torch.cat(parts).argmax(1)

    with torch.no_grad():  # the measure sees what it should
        assert peak_bytes(held) > full


def test_labels_and_probabilities_of_one_pass():
    segmenter, volume = networks.segmenter(), worlds.body()
    labels, shares = segmenter.both(volume, ["part5", "part2"], largest=True)
    np.testing.assert_array_equal(labels.voxels, segmenter(volume, largest=True).voxels)
    alone = segmenter.probabilities(volume, ["part2", "part5"])
    assert list(shares) == ["part5", "part2"]
    for name, share in shares.items():
        np.testing.assert_array_equal(share.voxels, alone[name].voxels)


def test_flips_from_side_to_side_are_refused_where_names_tell_sides():
    plain, volume = networks.segmenter(4), worlds.body()
    sided = networks.sided()
    assert plain.mirrors() == (0, 1, 2)
    assert sided.mirrors() == (0, 1)  # prepared as SPL
    plain(volume, settings=Pass(mirror=(2,)))
    sided(volume, settings=Pass(mirror=(0, 1)))
    with pytest.raises(ContractError, match="calls a left kidney right") as error:
        sided(volume, settings=Pass(mirror=(1, 2)))
    assert error.value.do == "flip other axes: 0, 1"
    # where the preparation keeps the scan's own axes, they are looked at scan by scan
    loose = replace(sided.preparation, resampling=replace(sided.preparation.resampling, orientation=None))
    free = replace(sided, preparation=loose)
    with pytest.raises(ContractError, match="fixes no orientation"):
        free.mirrors()
    turned = worlds.body(shape=(24, 30, 40), spacing=(2, 2, 2), code="LPS")
    free(turned, settings=Pass(mirror=(1, 2)))
    with pytest.raises(ContractError, match="axis 0 runs from one side to the other"):
        free(turned, settings=Pass(mirror=(0,)))


ALLOCATE = """
import os, resource, sys, warnings
import torch
import worlds
from ctfoundry.segmenter import Pass
from infer import networks

torch.set_num_threads(1)
segmenter, volume = networks.segmenter(features=5), worlds.body(1, (40, 96, 96), (2.0, 2.0, 2.0))
segmenter.network.body = torch.nn.Conv3d(1, 5, 1)
layer = torch.nn.Conv3d(1, 64, 1)  # a window takes some 20 MB here, a hundred at once 2 GB
real = segmenter.network.trunk
segmenter.network.trunk = lambda x: real(x) + 0 * layer(x).repeat_interleave(4, 1).mean()
whole = segmenter(volume, settings=Pass(batch=4))

def attempt(spare):
    size = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + spare * 2**20,) * 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = segmenter(volume, settings=Pass(batch=300))
        except Exception as error:
            print(type(error).__name__, str(error).splitlines()[0])
        else:
            print((found.voxels == whole.voxels).all(), found.notes)
    print(*(w.message for w in said), sep="; ", flush=True)

for spare in map(int, sys.argv[1:]):
    pid = os.fork()
    if not pid:
        attempt(spare)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_memory_that_really_runs_out():
    """Processes whose address space ends soon: torch's allocator itself fails, as on a machine that is too small."""
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, "120", "1"], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    enough, warned, never, warned_too = done.stdout.splitlines()
    said = "out of memory on cpu: one window at a time, stitched on the CPU"
    assert enough == f"True ('{said}',)"
    assert warned == warned_too == f"tiny-segmenter: {said}"
    assert never == "ContractError not even one window at a time fits into the memory of cpu"
